import gzip
import json
import threading

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.testclient import TestClient

from modalscape.app.charts import series_cache
from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.charts.request import ChartError
from modalscape.app.charts.series_cache import Tails
from modalscape.app.runs.status import folder, home_of, standing
from modalscape.app.server import routes
from modalscape.app.server.routes import BASE, MOST_CHARTS, Desk, Kept
from modalscape.engine.store.commands import Toggle, post
from modalscape.engine.store.writer import RunReader, RunWriter
from tests.app.test_alone import write_alone
from tests.fixture_run import STEPS, TOGGLED_AT, write_run

RUN = "digits-captions-fixture"
LOSS = ["series", {"names": ["loss/*"]}, ""]


@pytest.fixture
def home():
    return write_run(folder() / RUN)


@pytest.fixture
def client(home):
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["localhost"])
    app = Starlette(routes=routes.routes(), middleware=[hosts, Middleware(routes.SecurityHeaders)])
    return TestClient(app, base_url="http://localhost")


def pulse(desk, *charts, run=RUN):
    return json.loads(desk.pulse(run, json.dumps(charts), False))


def test_a_tick_brings_how_the_run_stands_and_the_charts_asked_for(home):
    got = pulse(Desk(), LOSS)
    assert got["status"]["step"] == STEPS and got["status"]["state"] == "finished"
    assert [trace["name"] for trace in got["charts"][0]["figure"]["data"] if trace.get("name")][:1] == ["fused"]
    assert got["charts"][0]["caption"].startswith(f"through step {STEPS}")


def test_a_chart_that_did_not_change_is_not_sent_again(home):
    desk = Desk()
    first = pulse(desk, LOSS)["charts"][0]
    assert pulse(desk, [*LOSS[:2], first["tag"]])["charts"] == [None]


def test_a_drawing_is_made_once_however_many_look():
    made, kept, gate = [], Kept(10), threading.Barrier(20)

    def make():
        made.append(1)
        return "drawing"

    def look():
        gate.wait()
        assert kept.get("chart", lambda: 1, make) == "drawing"

    threads = [threading.Thread(target=look) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_fresh_drawing_is_good_enough_without_looking_at_the_run():
    kept = Kept(2)
    kept.get("a", lambda: 1, lambda: "first", fresh=60)
    assert kept.get("a", lambda: pytest.fail("looked"), lambda: "second", fresh=60) == "first"
    assert kept.get("a", lambda: 2, lambda: "second") == "second"


def test_a_drawing_that_was_just_asked_for_is_looked_at_again():
    kept = Kept(2)
    made = [kept.get("a", lambda v=v: v, lambda v=v: v, fresh=60, new=60) for v in (1, 1, 2)]
    assert made == [1, 1, 2]
    assert kept.get("a", lambda: pytest.fail("looked"), lambda: 3, fresh=60, new=0.0) == 2


def test_a_new_version_is_drawn_anew_and_old_drawings_are_let_go():
    kept = Kept(2)
    assert [kept.get("a", lambda v=version: v, lambda v=version: v) for version in (1, 2)] == [1, 2]
    for key in "bcd":
        kept.get(key, lambda: 0, lambda: None)
    assert len(kept.values) == 2 and set(kept.locks) <= set(kept.values) | {"a", "b", "c", "d"}


@pytest.mark.parametrize("run", ["../other", "a", "UPPER-case", "no-such-run", "x" * 80, "digits/../..", "%2e%2e"])
def test_only_an_id_of_a_run_opens_a_run(home, run):
    with pytest.raises(ChartError):
        Desk().pulse(run, "[]", False)
    assert home_of(folder(), run) is None


@pytest.mark.parametrize(
    "asked",
    [
        "nonsense",
        '[["no such chart", {}, ""]]',
        '[["series", {"names": "loss"}, ""]]',
        '[["series", {"names": ["' + "x" * 200 + '"]}, ""]]',
        '[["series", {"half": -1}, ""]]',
        '[["series", {"step": true}, ""]]',
        '[["series"]]',
        json.dumps([LOSS] * (MOST_CHARTS + 1)),
    ],
)
def test_requests_that_no_page_makes_are_refused(client, asked):
    answer = client.get(f"{BASE}/pulse", params={"run": RUN, "charts": asked})
    assert answer.status_code == 400 and "Traceback" not in answer.text


def test_routes_are_read_only_and_carry_security_headers(client):
    answer = client.get(f"{BASE}/pulse", params={"run": RUN})
    assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] and answer.headers["cache-control"] == "no-store"
    assert {client.request(verb, f"{BASE}/pulse").status_code for verb in ("POST", "PUT", "DELETE")} == {405}


def test_another_host_name_is_turned_away(client):
    assert client.get(f"{BASE}/pulse", params={"run": RUN}, headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("path", [routes.plotly_path, routes.live_path])
def test_scripts_are_gzipped_and_kept_for_good(client, path):
    answer = client.get(path())
    assert answer.headers["content-encoding"] == "gzip" and "immutable" in answer.headers["cache-control"]
    assert answer.text.strip()


def test_plotly_is_small_on_the_wire():
    assert len(routes.plotly_script()) < 1_700_000
    assert b"plotly.js" in gzip.decompress(routes.plotly_script())[:200]


def test_the_interventions_are_marked_on_time_axes(home):
    data = pulse(Desk(), LOSS)["charts"][0]["figure"]["data"]
    words = [text for trace in data for text in trace.get("text", []) if isinstance(text, str)]
    assert any(f"on at step {TOGGLED_AT}" in text for text in words)


def test_a_record_can_be_seen_at_every_step_at_which_it_was_measured(home):
    desk = Desk()
    latest, early = (
        pulse(desk, ["record", {"names": ["landscape/2d"]} | at, ""])["charts"][0] for at in ({}, {"step": 120})
    )
    assert latest["steps"] == list(range(0, STEPS + 1, 50))
    assert latest["caption"].startswith(f"step {STEPS}") and early["caption"].startswith("step 100 ")
    assert latest["figure"]["data"][0]["z"] != early["figure"]["data"][0]["z"]


def test_captions_say_samples_mode_and_cost(home):
    caption = pulse(Desk(), ["record", {"names": ["landscape/2d"]}, ""])["charts"][0]["caption"]
    assert "n = 512" in caption and "filter-normalised" in caption and "2.4 s" in caption and "every point" in caption


def test_what_was_not_measured_says_so(home):
    drawn = pulse(Desk(), ["record", {"names": ["no/such"], "empty": "Press Measure now."}, ""])["charts"][0]
    assert drawn["figure"] is None and drawn["empty"] == "Press Measure now."


def test_every_chart_draws_the_fixture_run_in_light_and_dark(home):
    wanted = {
        "series": ["imbalance/ogm_ratio/*"],
        "sharpness": [],
        "record": ["hessian/shares"],
        "overlay": ["landscape/1d*"],
        "panel": ["landscape/1d*"],
        "density": ["hessian/*spectrum"],
        "top": ["hessian/*top"],
        "leading": ["hessian/top"],
        "matrices": ["hessian/lambda_max", "ggn/*lambda_max"],
        "densities": ["hessian/spectrum", "ggn/spectrum"],
        "opinions": ["pyhessian/trace", "pyhessian/ours/trace"],
        "pipeline": [],
        "spectrum": ["spectra/*"],
        "steps": ["landscape/2d"],
        "along": ["landscape/1d*"],
        "barrier": ["between/*/line"],
        "barriers": ["between/*/barrier"],
        "between": ["between/*/plane"],
        "alone": ["image-alone"],
        "against": ["imbalance/drift/image", "robustness/area/missing"],
    }
    write_alone("image", "image-alone")
    assert set(wanted) == set(CHARTS)
    for name, names in wanted.items():
        for dark in (False, True):
            _, body = Desk().drawing(RUN, home, name, checked(name, {"names": names}), dark)
            assert name == "steps" or json.loads(body)["figure"]["data"] is not None


def test_a_tick_reads_only_what_is_new(home):
    reader, writer = Tails().reader(home), RunWriter(home)
    before = reader.scalars("loss/fused", points=None)
    writer.scalar(STEPS, "loss/fused", 0.5)
    writer.flush()
    asked = []
    real = reader.reader.scalars
    reader.reader.scalars = lambda name, since=-1, **options: asked.append(since) or real(name, since, **options)
    steps, values = reader.scalars("loss/fused", points=None)
    assert asked == [STEPS - 1] and len(steps) == len(before[0]) + 1 and values[-1] == 0.5
    full = RunReader(home).scalars("loss/fused", points=None)
    assert steps.tolist() == full[0].tolist() and values.tolist() == full[1].tolist()


def test_a_long_series_takes_bounded_memory_and_keeps_every_extreme(tmp_path, monkeypatch):
    for name, size in (("FULL", 4096), ("WHOLE", 256), ("READ", 1000)):
        monkeypatch.setattr(series_cache, name, size)
    home = write_run(tmp_path / "long", records=False)
    values = np.random.default_rng(0).standard_normal(50_000)
    values[[7, 20_011, 49_500]] = (50.0, -60.0, 70.0)
    reader, writer = Tails().reader(home), RunWriter(home)
    for start in range(0, len(values), 5000):
        for step in range(start, start + 5000):
            writer.scalar(step, "long", values[step])
        writer.flush()
        at, kept = reader.scalars("long", points=None)
        assert len(at) <= 4096 and at[-1] == start + 4999
        assert (np.diff(at) > 0).all() and np.array_equal(kept, values[at])
    assert np.array_equal(at[:256], np.arange(256)) and {7, 20_011, 49_500} <= set(at.tolist())
    for begin in range(0, 50_000, 1000):
        own = kept[(at >= begin - 120) & (at < begin + 1120)]  # a bucket may lie across the end
        part = values[begin : begin + 1000]
        assert own.max() >= part.max() and own.min() <= part.min()
    writer.close()


def test_names_are_read_again_only_when_something_was_recorded(home):
    reader, writer = Tails().reader(home), RunWriter(home)
    read = []
    real = reader.reader.names
    reader.reader.names = lambda: read.append(1) or real()
    assert reader.names() == reader.names() == RunReader(home).names() and len(read) == 1
    writer.scalar(STEPS, "new/number", 0.5)
    writer.flush()
    assert "new/number" in reader.names()["scalars"] and len(read) == 2


def test_a_request_changes_the_control_tag_until_it_is_applied(home):
    before = standing(RUN, home)
    number = post(home, Toggle("sam", True))
    asked = standing(RUN, home)
    assert asked.tags["control"] != before.tags["control"]
    assert asked.methods["sam"].asked is True and asked.methods["sam"].words == "requested: on"
    writer = RunWriter(home)
    writer.event(STEPS, "applied", {"id": number, "command": Toggle("sam", True).to_json()})
    writer.meta("methods", {"sam": {"params": {}}})
    writer.close()
    applied = standing(RUN, home)
    assert applied.methods["sam"].words == f"on · applied at step {STEPS}" and not applied.pending


def test_a_refusal_is_said_with_its_sentence(home):
    number = post(home, Toggle("sam", True))
    writer = RunWriter(home)
    writer.event(3, "refused", {"id": number, "command": Toggle("sam", True).to_json(), "error": "sam and x conflict."})
    writer.close()
    assert standing(RUN, home).refused[1] == "sam and x conflict."


def test_a_damaged_run_is_listed_as_such_and_breaks_nothing(home):
    broken = write_run(folder() / "broken-run")
    (broken / "run.db").write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    for extra in broken.glob("run.db-*"):
        extra.unlink()
    assert standing("broken-run", broken).state == "unreadable"
    assert {entry[1] for entry in routes.roll(folder())} == {"finished", "unreadable"}
