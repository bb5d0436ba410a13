"""Commands: what is sent is what is obeyed, once, in order, from any number of senders."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modalscape.engine.errors import InputError
from modalscape.engine.store.commands import (
    COMMANDS,
    Cancel,
    Garbled,
    Mailbox,
    Measure,
    Note,
    Pace,
    Pause,
    Resume,
    Save,
    Stop,
    Toggle,
    Tune,
    Watch,
    from_json,
    post,
    set_meta,
)
from modalscape.engine.store.writer import create

ROOT = Path(__file__).resolve().parent.parent
EVERY = [
    (Pause(), "pause", ()),
    (Resume(), "resume", (None,)),
    (Resume(1), "resume", (1,)),
    (Stop(), "stop", ()),
    (Toggle("gani", True), "toggle", ("gani", True)),
    (Tune("optimizer", "lr", 0.01), "tune", ("optimizer", "lr", 0.01)),
    (Watch("hessian", True, 50), "watch", ("hessian", True, 50)),
    (Watch("hessian", False), "watch", ("hessian", False, 0)),
    (Measure("landscape", {"size": 11}), "measure", ("landscape", {"size": 11}, None)),
    (Measure("hessian", step=40), "measure", ("hessian", {}, 40)),
    (Pace(12.5), "pace", (12.5,)),
    (Cancel("landscape"), "cancel", ("landscape",)),
    (Save(), "save", ()),
    (Note("hm „so“"), "note", ("hm „so“",)),
]


class Witness:
    """A run that writes down what it is asked."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        return lambda *arguments: self.asked.append((name, arguments))


@pytest.fixture
def home(tmp_path):
    create(tmp_path)
    return tmp_path


def test_all_commands_are_covered_here():
    assert {type(command) for command, _, _ in EVERY} == set(COMMANDS.values())


@pytest.mark.parametrize(("command", "name", "arguments"), EVERY, ids=lambda v: str(v)[:30])
def test_a_command_travels_and_applies_itself(home, command, name, arguments):
    values = command.to_json()
    assert values["do"] == name and from_json(values) == command
    number = post(home, command, who="me")
    assert Mailbox(home).unread(0) == [(number, command)]
    witness = Witness()
    from_json(values).apply(witness)
    assert witness.asked == [(name, arguments)]


def test_only_toggles_and_tunes_change_training():
    assert {type(c).__name__ for c, _, _ in EVERY if c.affects_training} == {"Toggle", "Tune"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do": "pauze"}, "did you mean pause"),
        ({}, "no command None"),
        ({"do": ["pause"]}, "no command"),
        ({"do": "garbled", "body": "", "error": ""}, "no command"),
        ("pause", "JSON object"),
        (None, "JSON object"),
        ({"do": "toggle", "method": "gani"}, "takes method, on, not method"),
        ({"do": "pause", "now": True}, "takes no fields, not now"),
        ({"do": "toggle", "method": "gani", "on": "yes"}, "true or false as on, not 'yes'"),
        ({"do": "toggle", "method": 3, "on": True}, "text as method, not 3"),
        ({"do": "resume", "steps": "1"}, "whole number or nothing as steps, not '1'"),
        ({"do": "resume", "steps": True}, "as steps, not True"),
        ({"do": "watch", "probe": "h", "on": True, "every": 1.5}, "whole number as every, not 1.5"),
        ({"do": "tune", "method": "gani", "knob": "sigma", "value": [1]}, r"as value, not \[1\]"),
        ({"do": "measure", "probe": "h", "settings": 3}, "settings by name as settings, not 3"),
    ],
)
def test_a_wrong_command_is_answered_by_a_sentence(values, words):
    with pytest.raises(InputError, match=words):
        from_json(values)


def test_the_mailbox_gives_each_command_once_and_in_order(home):
    mailbox = Mailbox(home)
    numbers = [post(home, Note(str(i))) for i in range(5)]
    assert numbers == sorted(set(numbers))
    first = mailbox.unread(0)
    assert [command.text for _, command in first] == list("01234")
    assert mailbox.unread(first[-1][0]) == []
    post(home, Pause())
    assert [command for _, command in mailbox.unread(first[-1][0])] == [Pause()]


def test_what_cannot_be_read_is_refused_and_does_not_block_the_rest(home):
    import sqlite3

    with sqlite3.connect(home / "control.db") as db:
        for body in ("{", '{"do": "explode"}', "3"):
            db.execute("INSERT INTO command(time, who, body) VALUES (0, '', ?)", (body,))
    db.close()
    post(home, Pause())
    commands = [command for _, command in Mailbox(home).unread(0)]
    assert [type(c) for c in commands] == [Garbled, Garbled, Garbled, Pause]
    for command, words in zip(commands, ("JSON", "explode", "JSON object"), strict=False):
        assert command.to_json()["body"] and not command.affects_training
        with pytest.raises(InputError, match=words):
            command.apply(Witness())


def test_the_engine_only_reads(home):
    import sqlite3

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        Mailbox(home)._db.execute("DELETE FROM command")


def test_due_is_true_at_most_ten_times_a_second(home, monkeypatch):
    now = 100.0
    monkeypatch.setattr("modalscape.engine.store.commands.time.monotonic", lambda: now)
    mailbox = Mailbox(home)
    seen = 0
    for tick in range(1000):
        now = 100.0 + tick / 1000
        seen += mailbox.due()
    assert 9 <= seen <= 10


def test_many_threads_post_at_once(home):
    numbers, errors = [], []

    def send(who):
        try:
            numbers.extend(post(home, Note(f"{who}/{i}"), who) for i in range(25))
        except Exception as error:  # raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=send, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(set(numbers)) == 200
    unread = Mailbox(home).unread(0)
    assert [n for n, _ in unread] == sorted(numbers)
    assert {c.text for _, c in unread} == {f"{w}/{i}" for w in range(8) for i in range(25)}


def test_what_is_asked_for_once_is_posted_once_however_many_ask(home):
    def ask(_):
        return [post(home, Toggle("gani", True), f"token {i}", once=True) for i in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(ask, range(8)))
    assert len(Mailbox(home).unread()) == 10
    assert all(found == numbers[0] for found in numbers)


def test_two_processes_post_at_once(home):
    code = "import sys; from modalscape.engine.store.commands import Note, post\n"
    code += "for i in range(30): post(sys.argv[1], Note(sys.argv[2]))"
    senders = [subprocess.Popen([sys.executable, "-c", code, str(home), who], cwd=ROOT) for who in "ab"]
    assert [sender.wait(60) for sender in senders] == [0, 0]
    assert sorted(c.text for _, c in Mailbox(home).unread(0)) == ["a"] * 30 + ["b"] * 30


def test_facts_of_the_dashboard_are_kept(home):
    mailbox = Mailbox(home)
    assert mailbox.meta("exit_code", "none") == "none"
    for code in (0, -9):
        set_meta(home, "exit_code", code)
        assert mailbox.meta("exit_code") == code


def test_a_folder_without_a_run_takes_no_command(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        post(tmp_path, Pause())
    assert list(tmp_path.iterdir()) == []


# What nobody should have put there.

DEEP = "[" * 100_000 + "]" * 100_000
POISON = {
    "5,000 digits": "9" * 5000,
    "5,000 digits in a field": '{"do": "watch", "probe": "hessian", "on": true, "every": ' + "9" * 5000 + "}",
    "nested": DEEP,
    "nested in a field": '{"do": "measure", "probe": "hessian", "settings": {"a": ' + "[" * 2000 + "]" * 2000 + "}}",
    "a blob": bytes(range(256)),
    "no text": b"\xff\xfe\x00\xd8",
    "nothing": "",
    "null": "null",
    "half a pair": '{"do": "note", "text": "\\ud800"}',
    "not a number": '{"do": "tune", "method": "optimizer", "knob": "lr", "value": NaN}',
    "infinite": '{"do": "tune", "method": "optimizer", "knob": "lr", "value": -Infinity}',
    "infinite by size": '{"do": "tune", "method": "optimizer", "knob": "lr", "value": 1e999}',
    "too large a whole number": '{"do": "tune", "method": "ogm_ge", "knob": "until", "value": ' + "9" * 400 + "}",
    "every": '{"do": "watch", "probe": "hessian", "on": true, "every": ' + "9" * 300 + "}",
    "steps": '{"do": "resume", "steps": ' + "9" * 4000 + "}",
    "negative steps": '{"do": "resume", "steps": -' + "9" * 4000 + "}",
    "a long note": '{"do": "note", "text": "' + "x" * 200_000 + '"}',
    "a long name": '{"do": "toggle", "method": "' + "x" * 90_000 + '", "on": true}',
    "many fields": '{"do": "pause", ' + ", ".join(f'"f{i}": {i}' for i in range(5000)) + "}",
    "a long word": '{"do": "' + "x" * 90_000 + '"}',
}


def poisoned(home, body):
    import sqlite3

    db = sqlite3.connect(home / "control.db")
    with db:
        number = db.execute("INSERT INTO command(time, who, body) VALUES (0, '', ?)", (body,)).lastrowid
    db.close()
    return number


@pytest.mark.parametrize("body", POISON.values(), ids=list(POISON))
def test_poison_is_refused_in_a_sentence_and_passed_over(tmp_path, body):
    from modalscape.engine.actions import replay, resume
    from modalscape.engine.client.handle import RunHandle
    from modalscape.engine.store.writer import RunReader
    from tests.homes import small, trained

    home = tmp_path / "run"
    sent = []
    run = trained(home, small(steps=30), {10: lambda: sent.append(poisoned(home, body)) or [Note("after it")]})
    assert run.training.state.step == 30
    refused = RunReader(home).events(kinds=("refused",))
    assert [event.detail["id"] for event in refused] == sent
    detail = refused[0].detail
    assert detail["error"] and "traceback" not in detail and len(str(detail)) < 3000
    assert str(detail).encode()
    assert RunReader(home).newest("note").detail["text"] == "after it"
    assert resume(home, 40) == 0 and len(RunReader(home).events(kinds=("refused",))) == 1
    assert replay(home)["identical"]
    poisoned(home, body)
    number = post(home, Pause())
    pending = RunHandle(home).pending()
    assert [command.word for _, command in pending][-1] == "pause" and pending[-1][0] == number and len(pending) == 2


def test_a_command_that_breaks_something_is_refused_with_its_traceback(tmp_path, monkeypatch):
    from modalscape.engine.actions import resume
    from modalscape.engine.runtime.loop import Run
    from modalscape.engine.store.writer import RunReader
    from tests.homes import small, trained

    def broken(self, text):
        raise RuntimeError("the pen is dry")

    monkeypatch.setattr(Run, "note", broken)
    run = trained(tmp_path / "run", small(steps=30), {5: [Note("x"), Toggle("gani", True)]})
    events = RunReader(run.home).events(kinds=("refused", "applied"))
    assert [event.kind for event in events] == ["refused", "applied"]
    assert "the pen is dry" in events[0].detail["error"] and "Traceback" in events[0].detail["traceback"]
    assert run.training.state.step == 30 and resume(run.home, 40) == 0


@pytest.mark.parametrize("how", ["locked", "damaged", "gone", "without its table"])
def test_a_mailbox_that_cannot_be_read_is_said_once_and_read_again_later(tmp_path, how):
    import sqlite3

    from modalscape.engine.store.writer import RunReader
    from tests.homes import small, trained

    home, held = tmp_path / "run", []
    mailbox, kept = home / "control.db", tmp_path / "kept"

    def spoil():
        mailbox.rename(kept)
        if how == "locked":
            held.append(sqlite3.connect(mailbox, isolation_level=None))
            held[0].execute("BEGIN EXCLUSIVE")
        elif how == "damaged":
            mailbox.write_bytes(b"no database" * 1000)
        elif how == "without its table":
            sqlite3.connect(mailbox).close()

    def mend():
        kept.replace(mailbox)
        for db in held:
            db.close()
        post(home, Note("heard"))

    run = trained(home, small(), {10: spoil, 30: mend})
    assert run.training.state.step == 60
    events = RunReader(home).events()
    kinds = [event.kind for event in events]
    said = next(event for event in events if event.kind == "trouble")
    assert said.detail["error"].startswith("Commands cannot be read (") and said.step in (10, 11)
    assert kinds.count("mended") == kinds.count("trouble") == 1
    assert kinds.count("note") == 1 and "failed" not in kinds
