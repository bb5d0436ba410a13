"""The wheel, installed without the checkout: the command works from any folder, and every page loads."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

import modalscape
from tests.servers import ROOT, free_port
from tests.story.pages import end, new_page

PAGES = ("live", "methods", "landscape", "curvature", "gradients", "spectra", "balance", "robustness", "log")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Give the wheel, built from the files that git knows of or would add."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "engine", "app", "pages", "modalscape"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in (*names, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, timeout=240)
    (made,) = folder.glob("*.whl")
    return made, {f"modalscape/{name}".replace("modalscape/modalscape/", "modalscape/") for name in names}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Give the environment of a Python that finds the installed wheel and not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    put = ["install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel[0])]
    subprocess.run([sys.executable, "-m", "pip", *put], check=True, timeout=240)
    return os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HOME": str(folder / "user")}


def said(installed, folder, *words, code=0):
    line = [sys.executable, "-m", "modalscape", *words]
    done = subprocess.run(line, cwd=folder, env=installed, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_product(wheel):
    made, names = wheel
    held = {name for name in zipfile.ZipFile(made).namelist() if ".dist-info/" not in name}
    assert held == names


def test_the_command_trains_and_replays_from_any_folder(installed, tmp_path):
    env = {key: value for key, value in installed.items() if key != "MODALSCAPE_RUNS"}
    assert f"modalscape {modalscape.__version__}" in said(env, tmp_path, "--version")
    said(env, tmp_path, "run", "--problem", "planted", "--steps", "5", "--home", "here")
    assert "identical" in said(env, tmp_path, "replay", "here")
    said(env, tmp_path, "run", "--problem", "planted", "--steps", "5")
    assert "finished" in said(env, tmp_path, "list")
    kept = list(Path(env["HOME"]).rglob("config.json"))  # where a user's data belong, not beside the code
    assert len(kept) == 1 and "modalscape" in kept[0].parts


def test_it_comes_up_without_torch_numpy_and_streamlit(installed, tmp_path):
    code = "import modalscape, sys; print(modalscape.__file__)"
    code += "; assert not {'torch', 'numpy', 'streamlit'} & set(sys.modules), sys.modules"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=installed, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(installed["PYTHONPATH"])


def test_a_lesson_that_is_not_there_is_said(installed, tmp_path):
    words = said(installed, tmp_path, "demo", "--lesson", "label_noize", code=2)
    assert "label_noize" in words and "label_noise" in words and "Traceback" not in words


def test_where_files_cannot_be_locked_it_says_so(tmp_path):
    code = "import importlib.util as u; from modalscape.__main__ import main; u.find_spec = lambda name: None; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Windows Subsystem for Linux" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.browser
def test_the_demo_runs_and_every_page_loads(browser, installed, tmp_path):
    runs, port = tmp_path / "runs", free_port()
    line = [sys.executable, "-m", "modalscape", "demo", "--headless", "--port", str(port)]
    env = installed | {"MODALSCAPE_RUNS": str(runs)}
    with (tmp_path / "demo.txt").open("wb") as log:
        program = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while "You can now view" not in (tmp_path / "demo.txt").read_text():
            assert program.poll() is None and time.monotonic() < until, (tmp_path / "demo.txt").read_text()
            time.sleep(0.1)
        (run,) = (home.name for home in runs.iterdir() if (home / "config.json").exists())
        address = f"http://localhost:{port}"
        assert f"{address}/" in (tmp_path / "demo.txt").read_text()
        page = new_page(browser, address)
        page.get_by_text("Lessons").first.wait_for()
        for name in PAGES:
            page.goto(f"{address}/{name}?run={run}", wait_until="domcontentloaded")
            page.locator("h1, h2, h3").first.wait_for()
            page.locator(".js-plotly-plot:visible, [data-testid=stDataFrame]:visible").first.wait_for()
            assert page.locator("[data-testid=stException]").count() == 0, name
        assert not page.problems
    finally:
        program.terminate()
        assert program.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        with pytest.raises(OSError):  # the server ended with it
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5)
        for home in runs.glob("*/"):
            end(home)
