"""A warm process forks engines that are as good as fresh ones, and nothing depends on it: real processes throughout."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modalscape.engine.client import launch
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.client.launch import Forked, launched
from modalscape.engine.client.observers import dismissed
from modalscape.engine.store.commands import Stop
from tests.homes import ROOT, SMALL, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a warm process")

LONG = {"problem": "planted", "steps": 10**7, "device": "cpu", "settings": SMALL}


def ready():
    """Wait until the warm process can fork; return it."""
    launch.keep_warm()
    wait_for(lambda: launch._KEPT.warm.alive() and launch._KEPT.warm.ready, 60, "the warm process")
    return launch._KEPT.warm


@pytest.fixture(scope="module", autouse=True)
def _ends():
    launch.OWN = (launch.OWN, "PYTEST_")  # says which test this is
    yield
    launch.OWN = launch.OWN[0]
    last = launch._KEPT.warm
    launch.let_go()
    if last is not None:
        last.process.wait(30)


@pytest.fixture
def warm():
    return ready()


@pytest.fixture
def training(tmp_path):
    """Give a function that starts a long run and waits for its first step; the runs end with the test."""
    handles = []

    def start(name="run"):
        handle = RunHandle.start(LONG, tmp_path / name)
        handles.append(handle)
        wait_for(lambda: handle.status().step > 0, 60, "the first step")
        return handle, int((handle.home / "lock").read_text())

    yield start
    for handle in handles:
        handle.send(Stop())
        wait_for(lambda handle=handle: not handle.status().alive, 30, "the run's end")


def ended(arguments, log, **options):
    """Start an engine and wait for its end; return how it was started, its exit code and what it wrote."""
    with log.open("wb") as file:
        process = launched(arguments, file.fileno(), **options)
    return type(process), process.wait(), log.read_text()


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_fork_says_what_a_fresh_process_says(warm, tmp_path):
    lines = (["catalog", "--json"], ["run", "--problem", "moon"], ["show", str(tmp_path)], ["warm"], ["resume"])
    for line in lines:
        forked = ended(line, tmp_path / "warm.txt")
        fresh = ended(line, tmp_path / "cold.txt", program=(sys.executable, "-um", "engine"))
        assert (forked[0], fresh[0]) == (Forked, subprocess.Popen)
        assert forked[1:] == fresh[1:] and "Traceback" not in forked[2]


def test_theta_is_the_same_bit_for_bit(warm, tmp_path):
    for name, settings in (("one", []), ("two", ["--set", "threads=2"])):
        line = ["run", "--problem", "digits_captions", "--steps", "40", "--device", "cpu"]
        line += ["--method", "gani", *settings]
        said = []
        for kind, options in ((Forked, {}), (subprocess.Popen, {"program": (sys.executable, "-um", "engine")})):
            home = tmp_path / f"{name}-{kind.__name__}"
            found, code, words = ended([*line, "--home", str(home), "--json"], tmp_path / "log.txt", **options)
            assert (found, code) == (kind, 0), words
            said.append(json.loads(words[words.index('{"home"') :]))
        assert said[0]["theta"] == said[1]["theta"] and said[0]["scalars"] == said[1]["scalars"]


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no GPU")
def test_a_fork_trains_on_a_gpu_as_a_fresh_process_does(warm, tmp_path):
    line = ["run", "--problem", "digits_captions", "--steps", "40", "--device", "cuda", "--json"]
    said = []
    for kind, options in ((Forked, {}), (subprocess.Popen, {"program": (sys.executable, "-um", "engine")})):
        found, code, words = ended([*line, "--home", str(tmp_path / kind.__name__)], tmp_path / "log.txt", **options)
        assert (found, code) == (kind, 0), words
        said.append(json.loads(words[words.index('{"home"') :])["theta"])
    assert said[0] == said[1]


def facts(pid):
    """Return what a process has from its birth: session, folder, signals, files."""
    status = Path(f"/proc/{pid}/status").read_text()
    files = {place: os.readlink(f"/proc/{pid}/fd/{place}") for place in os.listdir(f"/proc/{pid}/fd")}
    return {
        "session": os.getsid(pid) == pid,
        "folder": os.readlink(f"/proc/{pid}/cwd"),
        "signals": re.findall(r"Sig(?:Blk|Ign|Cgt):\s*(\w+)", status),
        "input": files["0"],
        "outputs": {Path(files[place]).name for place in "12"},
        "sockets": [name for name in files.values() if name.startswith(("socket", "anon_inode:[pidfd"))],
    }


def test_a_fork_has_what_a_fresh_process_has(warm, training, monkeypatch):
    _, forked = training("forked")
    assert Path(f"/proc/{forked}/stat").read_text().rpartition(")")[2].split()[1] == str(warm.process.pid)
    _, other = training("second")  # is told nothing of the first
    monkeypatch.setattr(RunHandle, "program", (sys.executable, "-um", "engine"))
    _, fresh = training("fresh")
    assert facts(forked) == facts(other) == facts(fresh) and facts(fresh)["sockets"] == []


def test_the_exit_code_of_a_fork_is_kept(warm, training, tmp_path):
    handle, pid = training("killed")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: handle.status().exit_code == -signal.SIGKILL, 10, "the exit code")
    assert handle.status().state == "crashed" and "signal 9" in handle.status().error
    handle, _ = training("stopped")
    handle.send(Stop())
    wait_for(lambda: handle.status().exit_code == 0, 30, "the exit code")
    with (tmp_path / "log.txt").open("wb") as file:
        process = launched(["run", str(handle.home), "--attended"], file.fileno())
    assert process.wait() == 2
    process.send_signal(signal.SIGTERM)  # nobody


def test_a_run_outlives_the_warm_process_and_another_takes_its_place(warm, training, tmp_path):
    handle, pid = training()
    with (tmp_path / "log.txt").open("wb") as file:
        process = launched(["resume", str(handle.home)], file.fileno())
        second = launched(["run", "--problem", "planted", "--steps", "9999999"], file.fileno())
    assert process.wait() == 3
    warm.process.kill()
    warm.process.wait(10)
    step = handle.status().step
    wait_for(lambda: handle.status().step > step + 50, 30, "more steps")
    second.send_signal(signal.SIGKILL)
    assert second.wait() is None  # it has ended, and nobody knows how
    found, code, _ = ended(["catalog"], tmp_path / "log.txt")
    assert (found, code) == (subprocess.Popen, 0)
    assert ready() is not warm
    assert ended(["list"], tmp_path / "log.txt")[:2] == (Forked, 0)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: handle.status().state == "crashed", 10, "the crash to be told")


def test_it_ends_with_its_owner_and_what_it_forked_goes_on(tmp_path):
    script = (
        "import sys, time; from modalscape.engine.client import launch\n"
        "from modalscape.engine.client.handle import RunHandle\n"
        "launch.keep_warm()\n"
        "while not (launch._KEPT.warm.alive() and launch._KEPT.warm.ready): time.sleep(0.02)\n"
        f"RunHandle.start({LONG!r}, {str(tmp_path / 'run')!r})\n"
        "print(launch._KEPT.warm.process.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid, handle = int(owner.stdout.readline()), RunHandle(tmp_path / "run")
    wait_for(lambda: handle.status().step > 0, 60, "the first step")
    assert not gone(pid)
    owner.kill()
    owner.communicate()
    wait_for(lambda: gone(pid), 10, "the warm process to end")
    step = handle.status().step
    wait_for(lambda: handle.status().step > step, 30, "more steps")
    handle.send(Stop())
    wait_for(lambda: not handle.status().alive, 30, "the run's end")


def test_changed_code_is_loaded_anew_and_exit_codes_are_still_told(warm, training, tmp_path, monkeypatch):
    handle, pid = training()

    def none():
        raise OSError("no more processes")

    monkeypatch.setattr(launch, "mark", lambda: "other code")
    monkeypatch.setattr(launch, "_Warm", none)
    assert ended(["list"], tmp_path / "log.txt")[:2] == (subprocess.Popen, 0)
    assert launch._KEPT.warm is None and not gone(warm.process.pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: handle.status().exit_code == -9, 10, "the exit code")
    dismissed(handle.home)  # forked with the run, and the warm process stays to tell how each of its children ends
    assert warm.process.wait(10) == 0


def test_a_file_of_the_engine_that_changes_changes_the_mark(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "a.py"
    file.write_text("1")
    before = launch.stamp(tmp_path)
    os.utime(file, (1, 1))
    assert launch.stamp(tmp_path) != before
    assert launch.mark() == launch.mark()


def test_another_environment_needs_a_process_of_its_own(warm, tmp_path):
    mine = dict(os.environ)
    own = mine | {"MODALSCAPE_RUNS": str(tmp_path / "none")}
    assert ended(["list", "--json"], tmp_path / "log.txt", environment=own) == (Forked, 0, '{"runs": []}\n')
    for other in (mine | {"OMP_NUM_THREADS": "7"}, mine | {"LANGUAGE": "xx"}):
        assert ended(["list"], tmp_path / "log.txt", environment=other)[:2] == (subprocess.Popen, 0)


@pytest.mark.parametrize(
    "request_",
    [b"\x00", b"[]", b"{}", b'{"arguments": [1], "environment": {}, "folder": "/"}', b"7" * 100_000],
    ids=["no text", "a list", "nothing", "numbers", "long"],
)
def test_a_request_that_makes_no_sense_is_passed_over(warm, request_, tmp_path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(warm.socket, [request_], [theirs.fileno()])
        socket.send_fds(warm.socket, [request_], [theirs.fileno()] * 2)
        warm.socket.send(request_)
    ours.settimeout(10)
    assert ours.recv(10) == b""
    ours.close()
    folder = {"arguments": ["list"], "environment": {}, "folder": str(tmp_path / "none")}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, (tmp_path / "log.txt").open("wb") as log:
        socket.send_fds(warm.socket, [json.dumps(folder).encode()], [log.fileno(), theirs.fileno()])
    ours.settimeout(10)
    assert int(ours.recv(10)) > 0 and ours.recv(10) == b"1"
    ours.close()
    assert ended(["list"], tmp_path / "log.txt")[:2] == (Forked, 0)


def test_one_that_does_not_answer_is_ended(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "ANSWER_WITHIN", 0.2)
    os.kill(warm.process.pid, signal.SIGSTOP)
    assert ended(["list"], tmp_path / "log.txt")[:2] == (subprocess.Popen, 0)
    assert warm.process.wait(10) == -signal.SIGKILL
    ready()


def test_one_that_cannot_load_is_not_tried_again(tmp_path, monkeypatch):
    started = []

    class Broken:
        mark, ready = "broken code", False

        def __init__(self):
            self.socket, _ = socket.socketpair()
            started.append(self)

        def alive(self):
            return False

        def forked(self, *request):
            return None

    kept = launch._Kept()
    monkeypatch.setattr(launch, "_Warm", Broken)
    monkeypatch.setattr(launch, "mark", lambda: Broken.mark)
    kept.begin()
    assert [kept.forked(["list"], 1, {}) for _ in range(3)] == [None] * 3 and len(started) == 1
    monkeypatch.setattr(Broken, "mark", "mended code")
    kept.forked(["list"], 1, {})
    assert len(started) == 2


LOADED = """
import os, threading, torch
from modalscape.engine.runtime import warm
before = torch.get_rng_state()
assert warm.fit()
warm.loaded()
assert warm.fit() and torch.equal(torch.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
assert not warm.fit()
done.set(); thread.join()
torch.set_num_threads(2); torch.ones(10**6).sum()
assert not warm.fit()
"""


def test_loading_leaves_a_process_that_may_be_forked_and_a_second_thread_is_noticed():
    found = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
