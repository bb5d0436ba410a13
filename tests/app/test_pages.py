import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from modalscape.app.runs.status import folder
from modalscape.app.server import live
from modalscape.app.server.routes import Desk
from modalscape.engine.client.handle import lock
from modalscape.engine.store.commands import Mailbox, Measure, Note, Pause, Resume, Stop, Toggle, Tune, Watch
from modalscape.engine.store.writer import RunWriter
from tests.fixture_run import STEPS, TOGGLED_AT, write_run

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "pages").glob("[0-9]*.py"))
OF_A_RUN = PAGES[1:]
RUN = "digits-captions-fixture"


def opened(page=PAGES[0], run=None) -> AppTest:
    """Open the app at a page as a browser would, through the router."""
    at = AppTest.from_file(str(ROOT / "app" / "ui.py"), default_timeout=60)
    if run:
        at.query_params["run"] = run
    at.run()
    return at if page == PAGES[0] else at.switch_page(f"../pages/{page}").run()


def texts(at) -> str:
    kinds = (at.title, at.markdown, at.caption, at.info, at.error, at.warning, at.subheader)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def mounted(at) -> list[dict]:
    """Return the data of every live component on the page."""
    found = []
    for element in [*at.main.get("bidi_component"), *at.sidebar.get("bidi_component")]:
        found.append(json.loads(element.proto.json))
    return found


def begins(monkeypatch) -> list:
    """Return a list of the configurations that pages start from now on; nothing is started."""
    begun = []
    monkeypatch.setattr(
        "modalscape.app.runs.supervisor.Supervisor.begin", lambda self, config, note="": begun.append(config) or "a-run"
    )
    monkeypatch.setattr("modalscape.app.views.shell.go", lambda page, run: None)
    return begun


def sent(home) -> list:
    return [command for _, command in Mailbox(home).unread(2)]


@pytest.fixture
def home():
    return write_run(folder() / RUN)


@contextmanager
def held(state, **options):
    """Write a run and hold it as an engine would, in `state`."""
    home = write_run(folder() / RUN, **options)
    with lock(home):
        writer = RunWriter(home)
        writer.beat(state, STEPS, {"activity": ""})
        writer.close()
        yield home


@pytest.fixture
def alive():
    """A run that an engine holds, paused, so that its controls are enabled."""
    with held("paused") as home:
        yield home


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")


def test_the_router_takes_every_page_in_the_order_of_its_number(home):
    assert [name.partition("_")[2] for name in PAGES] == [
        "start.py",
        "live.py",
        "methods.py",
        "landscape.py",
        "curvature.py",
        "gradients.py",
        "spectra.py",
        "balance.py",
        "robustness.py",
        "log.py",
    ]
    assert not opened().exception


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_the_run_without_live_routes(home, page):
    at = opened(page, RUN)
    assert not at.exception and not at.error
    assert at.title[0].value
    assert page in ("00_start.py", "60_log.py") or at.get("plotly_chart")


@pytest.mark.parametrize("page", OF_A_RUN)
def test_every_live_chart_of_a_page_has_a_figure_of_this_run(home, served, page):
    at = opened(page, RUN)
    assert not at.exception
    charts = [data for data in mounted(at) if data.get("kind") == "chart"]
    assert charts
    desk = Desk()
    for data in charts:
        assert data["run"] == RUN
        asked = json.dumps([[data["name"], data["args"], ""]])
        drawn = json.loads(desk.pulse(RUN, asked, False))["charts"][0]
        assert drawn["figure"] is not None, data


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_what_to_do_when_there_is_no_run(page):
    at = opened(page)
    assert not at.exception
    assert "no run" in texts(at).lower()


@pytest.mark.parametrize("page", OF_A_RUN)
def test_every_page_bears_a_run_that_has_not_begun(page):
    from modalscape.engine.client.handle import RunHandle

    RunHandle(folder() / RUN).prepare({"problem": "planted", "methods": [], "probes": {}, "steps": 10, "settings": {}})
    at = opened(page, RUN)
    assert not at.exception and not at.error


def test_the_methods_page_of_a_run_that_is_on_its_way_opens_on_the_method_it_has_on():
    from modalscape.engine.client.handle import RunHandle

    asked = {"problem": "planted", "methods": ["inforeg"], "probes": {}, "steps": 10, "settings": {}}
    RunHandle(folder() / RUN).prepare(asked)
    at = opened("20_methods.py", RUN)
    assert not at.exception and "InfoReg" in [head.value for head in at.subheader]


def test_an_empty_landscape_says_what_to_switch_on(served):
    with held("paused", records=False):
        at = opened("30_landscape.py", RUN)
        assert at.button(key=f"now/{RUN}/landscape").disabled is False
    empty = [data["args"]["empty"] for data in mounted(at) if data.get("kind") == "chart"]
    assert empty and all("Measure now" in words for words in empty)


def test_a_switch_shows_what_the_engine_acknowledged_and_since_when(home):
    at = opened("10_live.py", RUN)
    assert at.sidebar.toggle(key=f"side/{RUN}/gani=True").value is True
    assert at.sidebar.toggle(key=f"side/{RUN}/sam=False").value is False
    assert f"on · applied at step {TOGGLED_AT}" in texts(at)
    assert at.sidebar.toggle(key=f"side/{RUN}/gani=True").disabled


def test_a_switch_sends_a_command_and_says_requested_until_it_is_applied(alive):
    at = opened("10_live.py", RUN)
    at.sidebar.toggle(key=f"side/{RUN}/sam=False").set_value(True).run()
    assert sent(alive) == [Toggle("sam", True)]
    assert at.sidebar.toggle(key=f"side/{RUN}/sam=True").value is True
    assert "requested: on" in texts(at)


def test_a_second_tab_sees_what_the_first_asked_for(alive):
    first, second = opened("10_live.py", RUN), opened("40_curvature.py", RUN)
    first.sidebar.toggle(key=f"side/{RUN}/sam=False").set_value(True).run()
    second.run()
    assert second.sidebar.toggle(key=f"side/{RUN}/sam=True").value is True


def test_a_knob_is_sent_as_it_is_turned(alive):
    at = opened("20_methods.py", RUN)
    at.number_input(key=f"tune/{RUN}/gani.sigma=1.0").set_value(0.5).run()
    assert sent(alive) == [Tune("gani", "sigma", 0.5)]
    assert at.number_input(key=f"tune/{RUN}/gani.sigma=0.5").value == 0.5 and "requested: gani sigma = 0.5" in texts(at)
    assert not at.exception


@pytest.mark.parametrize(("key", "command"), [("resume", Resume()), ("step", Resume(1)), ("stop", Stop())])
def test_the_buttons_of_a_paused_run_send_their_commands(alive, key, command):
    at = opened("10_live.py", RUN)
    assert at.sidebar.button(key="pause").disabled
    at.sidebar.button(key=key).click().run()
    assert sent(alive) == [command]


def test_a_running_run_can_be_paused():
    with held("running") as home:
        at = opened("10_live.py", RUN)
        assert at.sidebar.button(key="resume").disabled
        at.sidebar.button(key="pause").click().run()
        assert sent(home) == [Pause()]


def test_a_measurement_is_asked_for_and_scheduled(alive):
    at = opened("40_curvature.py", RUN)
    at.button(key=f"now/{RUN}/hessian").click().run()
    at.selectbox(key=f"every/{RUN}/hessian=100").set_value(50).run()
    assert sent(alive) == [Measure("hessian", {}), Watch("hessian", True, 50)]


def test_the_settings_of_a_measurement_start_at_the_runs_own(alive):
    at = opened("40_curvature.py", RUN)
    assert at.number_input(key=f"ask/{RUN}/hessian.steps").value == 40
    assert at.number_input(key=f"ask/{RUN}/hessian.steps").proto.default == 40
    at.number_input(key=f"ask/{RUN}/hessian.steps").set_value(20).run()
    at.button(key=f"now/{RUN}/hessian").click().run()
    assert sent(alive) == [Measure("hessian", {"steps": 20})]


def test_a_note_goes_into_the_log(alive):
    at = opened("60_log.py", RUN)
    at.text_input(key=f"note-text-{RUN}").set_value("sharp here")
    at.button(key=f"note-send-{RUN}").click().run()
    assert sent(alive) == [Note("sharp here")]


def test_a_crashed_run_says_so_and_offers_to_go_on():
    write_run(folder() / RUN, state="running")
    at = opened("10_live.py", RUN)
    assert "crashed" in texts(at) and "ended without a word" in texts(at)
    assert not at.sidebar.button(key="resume").disabled


def test_a_failure_is_shown_with_its_traceback_on_the_log_only():
    write_run(folder() / RUN, state="failed", error="The data file was moved.")
    at = opened("60_log.py", RUN)
    assert any("The data file was moved." in element.value for element in at.error)
    assert any("Traceback" in element.value for element in at.code)
    assert not opened("10_live.py", RUN).code


@pytest.mark.parametrize("asked", ["../../etc", "no-such-run", "A B", "<script>"])
def test_an_unknown_run_in_the_address_falls_back_to_the_newest(home, asked):
    at = opened("10_live.py", asked)
    assert not at.exception
    assert at.sidebar.selectbox(key="picker/1").value == RUN


def test_the_address_names_the_run_in_view(home):
    other = write_run(folder() / "another-run")
    at = opened("10_live.py", other.name)
    assert at.query_params["run"] in (other.name, [other.name])
    at.sidebar.selectbox(key="picker/1").set_value(RUN).run()
    assert at.query_params["run"] in (RUN, [RUN])


def test_a_run_is_deleted_only_when_that_is_confirmed(home):
    at = opened()
    assert at.button(key=f"delete-{RUN}").disabled
    at.checkbox(key=f"sure-{RUN}").set_value(True).run()
    at.button(key=f"delete-{RUN}").click().run()
    assert not home.exists() and not at.exception


def test_a_run_that_trains_cannot_be_deleted(alive):
    at = opened()
    assert at.checkbox(key=f"sure-{RUN}").disabled and at.button(key=f"delete-{RUN}").disabled


def test_data_files_are_chosen_from_the_offered_folder_only(tmp_path, monkeypatch):
    offered = tmp_path / "offered"
    offered.mkdir()
    (offered / "mine.npz").write_bytes(b"")
    (tmp_path / "secret.npz").write_bytes(b"")
    (offered / "link.npz").symlink_to(tmp_path / "secret.npz")
    monkeypatch.setenv("MODALSCAPE_FILES", str(offered))
    at = opened()
    at.segmented_control(key="new-kind").set_value("Data file").run()
    assert list(at.selectbox(key="new-file").options) == ["mine.npz"]


def test_the_form_starts_what_it_says(monkeypatch):
    begun = []
    monkeypatch.setattr(
        "modalscape.app.runs.supervisor.Supervisor.begin",
        lambda self, config, note="": begun.append((config, note)) or RUN,
    )
    monkeypatch.setattr("modalscape.app.views.shell.go", lambda page, run: begun.append((page, run)))
    at = opened()
    at.selectbox(key="new-problem").set_value("planted").run()
    at.number_input(key="new-steps").set_value(123).run()
    at.number_input(key="new/planted/batch").set_value(32).run()
    at.pills(key="new-methods").set_value(["sam"]).run()
    at.button(key="new-start").click().run()
    assert not at.exception and not at.error
    (config, _), shown = begun
    assert (config["problem"], config["steps"], config["methods"]) == ("planted", 123, ["sam"])
    assert config["settings"] == {"batch": 32} and shown == ("live", RUN)


def test_numbers_are_exported_whole(home):
    from modalscape.app.views.log import numbers_csv, records_zip

    lines = numbers_csv(RUN).splitlines()
    assert sum(line.startswith("loss/fused,") for line in lines) == STEPS
    assert records_zip(RUN)[:2] == b"PK"


def test_the_fallback_is_chosen_by_whether_the_routes_are_there(served):
    assert live.served()
    live.serving(False)
    assert not live.served()


def test_the_app_imports_neither_torch_nor_scikit_learn(home):
    script = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "at = AppTest.from_file('app/ui.py', default_timeout=60).run()\n"
        f"for page in {PAGES!r}:\n"
        "    at.switch_page(f'../pages/{page}').run()\n"
        "    assert not at.exception, page\n"
        "import modalscape.app.main\n"
        "loaded = {'torch', 'sklearn'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
