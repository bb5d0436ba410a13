"""One damaged run hurts no other: homes damaged in hundreds of ways, beside a good one."""

import random
from collections import Counter

import pytest

from modalscape.app.runs.status import folder
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.store.writer import RunReader, RunWriter, create_observed
from tests.fixture_run import write_run
from tests.fuzz import homes
from tests.homes import small, trained


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run that has everything a run may have."""
    home = tmp_path_factory.mktemp("template") / "run"
    trained(home, small(steps=40, methods=("gani",), probes={"trajectory": 20, "imbalance": 20}))
    observed(home)
    (home / "log.txt").write_text("What the engine printed.\n")
    (home / "note.txt").write_text("A note.")
    return home


def observed(home):
    """Leave what an observer leaves: measurements, what it was at, a state that was handed over."""
    writer, reader = RunWriter(home, create_observed(home, 1)), RunReader(home)
    for name in list(reader.names()["records"])[:5]:
        writer.record(40, reader.at(name, 40))
    writer.event(40, "probe", {"name": "imbalance", "seconds": 0.5, "records": 5})
    writer.event(40, "applied", {"id": 1, "command": {"do": "measure", "probe": "imbalance", "settings": {}}})
    job = {"probe": "hessian", "step": 40, "asked": False, "claimed": True, "seconds": 1.0, "left": 2.0}
    job |= {"what": "products", "done": 4, "planned": 40}
    facts = {"jobs": [job], "costs": {"imbalance": 0.5}, "waiting": [], "steps": {"imbalance": 40}}
    tried = {"probe": "hessian", "asked": None, "settings": {}, "step": None, "tries": 1}
    writer.meta("read_up_to", 1)
    writer.meta("ends", {"hessian": 1})
    writer.beat("observing", 40, {"observing": facts, "trying": tried})
    writer.close()
    (home / "observer-1.lock").write_text("1")
    (home / "snapshot.pt").write_bytes((home / "checkpoints" / "00000040.pt").read_bytes())


def tried(count, seed, dearly, template, tmp_path, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(RunHandle, "launch", lambda handle, *words: launched.append(handle.home.name))
    write_run(folder() / homes.RUN)
    codes, wrong = Counter(), []
    for number in range(count):
        done, seen, faults = homes.tried(
            random.Random(f"{seed}/{number}"), template, folder(), tmp_path / "tables", dearly=dearly
        )
        codes += seen
        wrong += [f"{number}: {done}: {fault}" for fault in faults]
    with capsys.disabled():
        print(f"\ndamaged homes: {count} cases, {len(wrong)} leaks; {dict(sorted(codes.items()))}")
    assert not wrong, "\n".join(wrong[:40])


def test_a_damaged_home_hurts_no_other_and_costs_one_sentence(template, tmp_path, monkeypatch, capsys):
    tried(40, 0, 0.2, template, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_damaged_homes_hurt_no_other(template, tmp_path, monkeypatch, capsys):
    tried(500, 1, 1.0, template, tmp_path, monkeypatch, capsys)
