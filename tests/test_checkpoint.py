"""Checkpoints: what is read is what was written, or the one before, and never other parameters in silence."""

import random
import shutil

import pytest
import torch

from modalscape.engine.actions import probe, replay, resume
from modalscape.engine.runtime import checkpoint
from modalscape.engine.store.writer import RunReader
from tests.homes import small, trained

CONTENT = {
    "step": 7,
    "theta": torch.arange(6.0),
    "moments": {"step": 7, "slots": {"exp_avg": torch.ones(6), "step": torch.tensor(7.0)}},
    "methods": {"gani": {"ema": torch.zeros(2, 3, dtype=torch.float64), "seen": 3, "warm": True, "names": ["a", "b"]}},
    "settings": {"optimizer.lr": 0.002, "unimodal": "heads", "nothing": None},
    "obeyed": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 60 steps with checkpoints at 0, 20, 40 and 60, one method on."""
    return trained(tmp_path_factory.mktemp("runs") / "run", small(methods=("gani",)))


@pytest.fixture
def home(tmp_path, run):
    return shutil.copytree(run.home, tmp_path / "run")


def newest(home):
    return home / "checkpoints" / "00000060.pt"


def same(one, other):
    return checkpoint.digest(one) == checkpoint.digest(other)


def test_content_comes_back_bit_for_bit(tmp_path):
    content = CONTENT | {"theta": torch.tensor([0.1, float("nan"), -0.0, float("inf"), 1e-40])}
    path = checkpoint.save(tmp_path, content)
    assert path.name == "00000007.pt" and same(checkpoint.load(tmp_path), content)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 8},
        {"step": 7.0},
        {"step": True},
        {"theta": torch.arange(6.0).reshape(2, 3)},
        {"theta": torch.arange(6.0).double()},
        {"theta": torch.arange(6.0).nextafter(torch.tensor(9.0))},
        {"methods": {}},
        {"settings": CONTENT["settings"] | {"unimodal": "head"}},
        {"more": None},
    ],
    ids=str,
)
def test_the_digest_tells_any_other_content_apart(change):
    assert not same(CONTENT, CONTENT | change)
    assert same(CONTENT, dict(reversed(CONTENT.items())))


def flipped(path, count, seed):
    """Yield the content of a file with one bit turned over, at `count` places."""
    data, rng = path.read_bytes(), random.Random(seed)
    for place in sorted(rng.sample(range(8 * len(data)), count)):
        bitten = bytearray(data)
        bitten[place // 8] ^= 1 << place % 8
        yield place, bytes(bitten)


@pytest.mark.parametrize("version", ["this", "older"])
def test_no_flipped_bit_gives_other_parameters_in_silence(home, version):
    good, before = checkpoint.load(home), checkpoint.load(home, 40)
    if version == "older":  # wrote no digest
        torch.save(good, newest(home))
    passed = 0
    for place, data in flipped(newest(home), 400, 11):
        newest(home).write_bytes(data)
        said = []
        found = next(checkpoint.newest_first(home, say=said.append))
        assert same(found, before if said else good), f"bit {place}"
        assert len(said) <= 1 and "weights_only" not in "".join(said)
        passed += bool(said)
    assert passed > 200


def test_a_flipped_bit_that_no_checksum_of_the_archive_covers_is_found_by_the_digest(home):
    content = checkpoint.load(home)
    theta = content["theta"].clone()
    theta.view(torch.int32)[3] ^= 1
    torch.save(content | {"theta": theta, "sha256": checkpoint.digest(content)}, newest(home))
    said = []
    assert next(checkpoint.newest_first(home, say=said.append))["step"] == 40
    assert "does not match its checksum" in said[0]


def spoil(path, how):
    """Damage a checkpoint in one of the ways that happen."""
    data, content = path.read_bytes(), checkpoint.load(path.parent.parent)
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello")
    elif how == "flipped":
        path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    elif how == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    elif how == "foreign keys":
        torch.save({"model": content["theta"]}, path)
    elif how == "a list":
        torch.save([content["theta"]], path)
    elif how == "another step":
        torch.save(content | {"step": 20}, path)
    elif how == "wrong shapes":
        checkpoint.save(path.parent.parent, content | {"theta": content["theta"][:-1]})
    elif how == "wrong memory":
        slots = {key: value[:3] if value.ndim else value for key, value in content["moments"]["slots"].items()}
        checkpoint.save(path.parent.parent, content | {"moments": {"step": 60, "slots": slots}})
    elif how == "wrong types":
        checkpoint.save(path.parent.parent, content | {"methods": {"gani": 3}, "moments": None})
    elif how == "unknown method":
        checkpoint.save(path.parent.parent, content | {"methods": {"gnai": {}}})


WAYS = ("truncated", "empty", "text", "flipped", "pickle", "foreign keys", "a list", "another step")
WAYS += ("wrong shapes", "wrong memory", "wrong types", "unknown method")


@pytest.mark.parametrize("how", WAYS)
def test_a_damaged_checkpoint_is_passed_over_said_and_made_up_for(home, run, how, capsys):
    spoil(newest(home), how)
    before = RunReader(home).scalars("loss/fused", points=None)[1]
    assert resume(home) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "checkpoint" in line]
    assert len(said) == 1 and "60" in said[0] and "the one before is used" in said[0] and "weights_only" not in said[0]
    told = [event.detail["error"] for event in RunReader(home).events(kinds=("trouble",))]
    assert told == said and RunReader(home).newest("resumed").detail["from"] == 40
    assert torch.equal(checkpoint.load(home)["theta"], run.training.state.theta)
    assert RunReader(home).scalars("loss/fused", points=None)[1].tolist() == before.tolist()
    assert replay(home)["identical"]
    assert [path.name for path in (home / "checkpoints").iterdir() if "aside" in path.name] == ["00000060.pt.aside"]


def test_without_any_intact_checkpoint_a_run_begins_again(home, run):
    for path in (home / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    assert resume(home) == 0
    assert RunReader(home).newest("resumed").detail["from"] == 0
    assert len(RunReader(home).events(kinds=("trouble",))) == 4
    assert torch.equal(checkpoint.load(home)["theta"], run.training.state.theta)


def test_what_is_not_named_after_a_step_is_no_checkpoint(home, run):
    for name in (
        "0abc.pt",
        "60.pt",
        "000000061.pt",
        "00000070.pt.aside",
        "-0000070.pt",
        "٠٠٠٠٠٠٧٠.pt",
        "9" * 30 + ".pt",
    ):
        (home / "checkpoints" / name).write_bytes(b"stray")
    (home / "checkpoints" / "00000100.pt").mkdir()
    assert checkpoint.steps(home) == [0, 20, 40, 60]
    assert torch.equal(checkpoint.load(home)["theta"], run.training.state.theta)
    assert resume(home, 80) == 0 and checkpoint.steps(home) == [0, 20, 40, 60, 80]


def test_a_checkpoint_that_may_not_be_read_is_passed_over(home, monkeypatch):
    opened = checkpoint.Path.open

    def refused(path, *how, **options):
        if path.name == "00000060.pt" and "w" not in "".join(how):
            raise PermissionError(13, "Permission denied")
        return opened(path, *how, **options)

    monkeypatch.setattr(checkpoint.Path, "open", refused)
    said = []
    assert next(checkpoint.newest_first(home, say=said.append))["step"] == 40
    assert said == ["The checkpoint 00000060.pt cannot be read (Permission denied); the one before is used."]


def test_a_measurement_falls_back_too_and_repeats_the_steps_between(home, capsys):
    whole = probe(home, "hessian", 60, {})
    newest(home).write_bytes(newest(home).read_bytes()[:-100])
    again = probe(home, "hessian", 60, {})
    assert again["step"] == 60 and again["records"] == [
        r | {"seconds": a.get("seconds")} if "seconds" in r else r
        for r, a in zip(whole["records"], again["records"], strict=True)
    ]
    assert "00000060.pt is damaged" in capsys.readouterr().err
    assert newest(home).exists(), "only an engine that goes on takes a damaged file out of the way"


def test_a_checkpoint_that_the_records_have_not_reached_is_not_gone_on_from(home, run):
    """As after a power cut, or when a folder was copied while its run trained."""
    content = checkpoint.load(home)
    checkpoint.save(home, content | {"step": 70})
    checkpoint.save(home, content | {"obeyed": 3})
    assert resume(home) == 0
    said = [event.detail["error"] for event in RunReader(home).events(kinds=("trouble",))]
    assert len(said) == 2 and all("newer than the run's records" in words for words in said)
    assert checkpoint.steps(home) == [0, 20, 40, 60]
    assert torch.equal(checkpoint.load(home)["theta"], run.training.state.theta)


def test_what_a_killed_engine_left_half_written_is_removed(home):
    left = [home / "checkpoints" / "00000080.4711.partial", home / "path" / "00000061.4711.partial"]
    left += [home / "config.partial", home / ".new-abc" / "run.db"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert resume(home, 61) == 0
    assert not any(path.exists() for path in (*left, home / ".new-abc"))


def test_an_older_versions_home_resumes_and_replays(home, run):
    for step in checkpoint.steps(home):
        content = checkpoint.load(home, step)
        del content["obeyed"]
        torch.save(content, home / "checkpoints" / f"{step:08d}.pt")
    assert resume(home, 80) == 0 and replay(home)["identical"]
    assert not RunReader(home).events(kinds=("trouble",))
