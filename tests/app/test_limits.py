"""What the dashboard may be asked for: each limit says its sentence, in the form and where runs are begun."""

import threading
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from modalscape.app.runs import limits
from modalscape.app.runs.limits import LIMITS, bounded, contents, memory, room
from modalscape.app.runs.status import folder
from modalscape.app.runs.supervisor import Supervisor
from modalscape.engine import networks
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import RunSettings
from modalscape.engine.data.dataset import Dataset
from modalscape.engine.errors import InputError
from tests.app.test_pages import begins, opened
from tests.app.test_supervisor import CONFIG, Engines
from tests.fixture_run import write_run

SHAPES = {"vector": (50,), "image": (3, 16, 16), "sequence": (30, 12), "tokens": (20,)}


@pytest.fixture
def engines(monkeypatch):
    return Engines(monkeypatch)


def asked(**changes):
    return CONFIG | changes


def refusal(config):
    with pytest.raises(InputError) as caught:
        bounded(config)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"steps": 10_000_001}, "MODALSCAPE_MAX_STEPS"),
        ({"methods": [f"m{i}" for i in range(9)]}, "MODALSCAPE_MAX_METHODS"),
        ({"probes": {f"p{i}": 0 for i in range(13)}}, "MODALSCAPE_MAX_PROBES"),
        ({"settings": {"threads": 256}}, "MODALSCAPE_MAX_THREADS"),
        ({"settings": {"width": 4096, "hidden": 8192, "depth": 8, "dtype": "float64"}}, "MODALSCAPE_MAX_MEMORY"),
    ],
)
def test_more_than_a_limit_is_refused_with_the_number_and_the_remedy(changes, variable, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_MEMORY", "2048")
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    text = refusal(asked(**changes))
    assert variable in text and "command line" in text
    monkeypatch.setenv(variable, str(10**9))
    bounded(asked(**changes))


def test_batch_times_features_is_bounded_by_the_rows_that_there_are(tmp_path, monkeypatch):
    path = tmp_path / "wide.npz"
    np.savez(path, audio=np.zeros((2000, 20_000), np.float32), labels=np.arange(2000) % 2)
    monkeypatch.setenv("MODALSCAPE_MAX_MEMORY", "1000")
    bounded(asked(problem=None, data=str(path), settings={"batch": 64}))
    assert "batch" in refusal(asked(problem=None, data=str(path), settings={"batch": 1_000_000}))


def test_a_file_is_bounded_by_what_it_unpacks_to(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, audio=np.zeros((4096, 1024), np.float32), labels=np.arange(4096) % 2)
    assert path.stat().st_size < 100_000
    monkeypatch.setenv("MODALSCAPE_MAX_FILE", "15")
    assert "16 MiB of unpacked data" in refusal(asked(problem=None, data=str(path)))
    monkeypatch.setenv("MODALSCAPE_MAX_FILE", "17")
    bounded(asked(problem=None, data=str(path)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x93NUMPY" * 9, None])
def test_a_file_that_cannot_be_read_is_left_to_the_engine(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    assert contents(tmp_path / "x.npz") == ({}, 0)
    bounded(asked(problem=None, data=str(tmp_path / "x.npz")))


def test_what_the_engine_would_refuse_hides_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "odd.npz"
    arrays = {"audio": np.zeros((4096, 1024), np.float32), "labels": np.arange(4096) % 2}
    np.savez_compressed(path, notes=np.array([{}], object), **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("broken.npy", b"\x93NUMPY\x01\x00rubbish")
        archive.writestr("about.txt", b"a text")
    held, size = contents(path)
    assert held == {"audio": ((4096, 1024), False), "labels": ((4096,), False)} and size > 2**24
    monkeypatch.setenv("MODALSCAPE_MAX_FILE", "15")
    assert "MiB of unpacked data" in refusal(asked(problem=None, data=str(path)))


@pytest.mark.parametrize("text", ["many", "-3", "0", "1e9", "9" * 5000, "²"])
def test_a_limit_that_is_no_number_is_a_sentence(text, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_STEPS", text)
    assert "MODALSCAPE_MAX_STEPS must be a whole number" in refusal(asked())


@dataclass
class Changed:
    """A run's settings with some replaced."""

    changes: dict

    def __getattr__(self, name):
        return self.changes.get(name, RunSettings.__dataclass_fields__[name].default)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("sizes", [{}, {"hidden": 512, "depth": 3, "width": 256}, {"encoder": "mlp"}])
def test_parameters_are_estimated_to_a_factor_of_three(kind, sizes):
    words, shape = kind == "tokens", SHAPES[kind]
    if words and sizes.get("encoder"):
        return  # no perceptron takes tokens
    x = np.zeros((4, *shape), np.int64 if words else np.float32)
    vocabulary = {"a": limits._VOCABULARY} if words else {}
    data = Dataset("d", "D", {"a": x}, np.arange(4) % 2, {"train": np.arange(4)}, ("0", "1"), vocabulary)
    net = networks.build(data, Changed(sizes))
    true = sum(p.numel() for p in net.parameters())
    value = {name: getattr(Changed(sizes), name) for name in RunSettings.__dataclass_fields__}
    assert true / 3 < limits.encoder(shape, words, value)[0] < 3 * true


def test_a_resnet_is_estimated_too():
    x = {"a": np.zeros((4, 3, 16, 16), np.float32)}
    data = Dataset("d", "D", x, np.arange(4) % 2, {"train": np.arange(4)}, ("0", "1"), {})
    with torch.device("meta"):
        true = sum(p.numel() for p in networks.build(data, Changed({"encoder": "resnet18"})).parameters())
    value = {name: getattr(Changed({"encoder": "resnet18"}), name) for name in RunSettings.__dataclass_fields__}
    assert 0.9 < limits.encoder((3, 16, 16), False, value)[0] / true < 1.1


def test_what_is_usually_asked_for_is_far_below_the_limits():
    assert memory({}, [(2000, (100,), False)] * 3) < 100 * limits.MIB
    assert LIMITS["memory"].most >= 256


def test_the_queue_of_a_server_is_bounded(engines, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_WAITING", "3")
    made = Supervisor(1)
    ids = [made.begin(CONFIG) for _ in range(4)]
    with pytest.raises(InputError, match="3 runs wait already"):
        made.begin(CONFIG)
    assert len(made.waiting()) == 3 and len(list(folder().iterdir())) == 4
    write_run(folder() / "ended-run")
    made.resume("ended-run")
    assert "3 runs wait already" in made.problems["ended-run"] and len(made.waiting()) == 3
    made.cancel(ids[-1])
    made.resume("ended-run")
    assert "ended-run" in made.waiting() and "ended-run" not in made.problems
    for run in [*made.waiting()]:
        made.cancel(run)
    engines.end(ids[0])


def test_thirty_who_press_start_at_once_get_no_more_than_the_queue_holds(engines, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_WAITING", "5")
    made, refused = Supervisor(1), []
    gate = threading.Barrier(30)

    def press():
        gate.wait()
        try:
            made.begin(CONFIG)
        except InputError as error:
            refused.append(str(error))

    pressed = [threading.Thread(target=press) for _ in range(30)]
    for one in pressed:
        one.start()
    for one in pressed:
        one.join()
    assert len(made.waiting()) == 5 and len(refused) == 24
    for run in made.waiting():
        made.cancel(run)
    engines.end(made.working()[0])


def test_begin_and_resume_refuse_what_is_too_large(engines):
    made = Supervisor(1)
    with pytest.raises(InputError, match="MODALSCAPE_MAX_STEPS"):
        made.begin(asked(steps=10_000_001))
    assert not folder().exists() or not list(folder().iterdir())
    write_run(folder() / "ended-run")
    made.resume("ended-run", 20_000_000)
    assert "MODALSCAPE_MAX_STEPS" in made.problems["ended-run"] and engines.launched == []


def test_how_many_are_at_work_can_be_set(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_WORKING", "7")
    assert Supervisor().most == 7


def test_the_command_line_is_not_bound(tmp_path, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_STEPS", "1")
    RunHandle(tmp_path / "mine").prepare(CONFIG)


def test_the_form_says_it_beside_the_button_and_does_not_start(monkeypatch):
    monkeypatch.setattr("modalscape.app.runs.supervisor.Supervisor.begin", lambda *a, **k: pytest.fail("it began"))
    at = opened()
    assert not at.button(key="new-start").disabled
    at.number_input(key="new-steps").set_value(20_000_000).run()
    assert at.button(key="new-start").disabled
    assert any("20,000,000 steps" in w.value for w in at.warning)


def test_the_form_says_that_the_queue_is_full(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_MAX_WAITING", "2")
    monkeypatch.setattr("modalscape.app.runs.supervisor.Supervisor.waiting", lambda self: ["a", "b"])
    monkeypatch.setattr("modalscape.app.runs.supervisor.Supervisor.begin", lambda *a, **k: room(2))
    at = opened()
    assert any("2 runs wait already" in w.value for w in at.warning)
    at.button(key="new-start").click().run()  # the queue may have moved on, so the press is what decides
    assert not at.exception and any("2 runs wait already" in e.value for e in at.error)


def test_room_is_there_until_the_queue_is_full():
    room(19)
    with pytest.raises(InputError):
        room(20)


def test_the_form_says_at_once_what_a_method_needs_and_offers_to_set_it(monkeypatch):
    begun = begins(monkeypatch)
    at = opened()
    at.selectbox(key="new-problem").set_value("planted").run()
    at.selectbox(key="new/planted/unimodal").set_value("none").run()
    at.pills(key="new-methods").set_value(["mmpareto"]).run()
    assert at.button(key="new-start").disabled
    assert any("MMPareto needs unimodal to be heads or slices" in w.value for w in at.warning)
    at.button(key="new-remedy").click().run()
    assert at.selectbox(key="new/planted/unimodal").value == "heads"
    assert not at.warning and not at.button(key="new-start").disabled
    at.button(key="new-start").click().run()
    assert not at.exception and "unimodal" not in begun[0]["settings"] and begun[0]["methods"] == ["mmpareto"]


def test_the_form_offers_to_set_a_methods_own_knob(monkeypatch):
    at = opened()
    at.pills(key="new-methods").set_value(["fanoise"]).run()
    at.selectbox(key="new/fanoise.route").set_value("free").run()
    assert any("fanoise.scaling to be linear" in w.value.replace("\\", "") for w in at.warning)
    at.button(key="new-remedy").click().run()
    assert not at.exception and at.selectbox(key="new/fanoise.scaling").value == "linear"
    assert not at.warning


def test_what_was_not_resumed_is_said_in_the_list(engines):
    write_run(folder() / "ended-run", steps=6_000_000)
    at = opened()
    at.button(key="again-ended-run").click().run()
    assert not at.exception
    assert any("12,000,000 steps" in c.value for c in at.caption)
