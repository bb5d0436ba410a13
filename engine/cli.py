"""The command line: `python -m engine run | resume | fork | replay | probe | show | list | catalog | export | …`."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import click

from modalscape.engine import config as configuration
from modalscape.engine.client.handle import UNREADABLE, Busy, runs, runs_folder
from modalscape.engine.config import RunConfig
from modalscape.engine.errors import InputError, sentence, shown
from modalscape.engine.runtime import streams
from modalscape.engine.store.files import brief
from modalscape.engine.store.home import Gone
from modalscape.engine.store.ids import new_id

LOGGED = "modalscape-fault-"
"""How the name of a file begins in which the traceback of a fault of the program lies."""


class _Path(click.Path):
    """A path that a system can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            possible = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            possible = False
        if not possible:
            self.fail(f"No file can be named {shown(value)}; give another path.", param, ctx)
        return Path(super().convert(value, param, ctx))


_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
_HOME = click.argument("home", type=_Path())


class Ended(Exception):
    """A command that has said everything and ends with an exit code of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Train a multimodal network, measure what training does to it, and repeat it bit for bit."""


@main.command()
@click.argument("prepared", required=False, type=_Path())
@click.option("--problem", help="A built-in problem; see `catalog`.")
@click.option("--data", type=_Path(), help="A data file, one array per modality and `labels`.")
@click.option("--method", "methods", multiple=True, help="Switch a method on from the start.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting, such as optimizer.lr=0.1.")
@click.option("--probe", "probes", multiple=True, metavar="NAME[:EVERY]", help="Measure every EVERY steps.")
@click.option("--steps", default=1000, show_default=True, help="Length of the run.")
@click.option("--seed", default=0, show_default=True, help="Source of every random draw.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0 or mps.")
@click.option("--home", type=_Path(), help="Folder of the run; made if it is not there.")
@click.option("--attended", is_flag=True, hidden=True, help="Pause, rather than end, when the loss diverges.")
@_JSON
def run(prepared, problem, data, methods, pairs, probes, steps, seed, device, home, attended, as_json) -> None:
    """Train. PREPARED is a folder that holds a config.json; without it, the options say what to train."""
    from modalscape.engine import actions

    if prepared is not None:
        return _end(actions.run_prepared(prepared, attended=attended), prepared, as_json)
    made = RunConfig(
        problem, data and str(data.absolute()), methods, _intervals(probes), steps, seed, device, _settings(pairs)
    )
    home = Path(home or runs_folder() / new_id(made.problem, made.data)).absolute()
    _end(actions.run_new(made, home, attended=attended), home, as_json)


@main.command()
@_HOME
@click.option("--steps", type=int, help="A new length for the run.")
@click.option("--attended", is_flag=True, hidden=True)
@click.option("--paused", is_flag=True, hidden=True, help="Rest before the first step of a run that begins.")
@_JSON
def resume(home, steps, attended, paused, as_json) -> None:
    """Go on with a run that was stopped, crashed or finished."""
    from modalscape.engine import actions

    _end(actions.resume(home, steps, attended=attended, paused=paused), home, as_json)


@main.command()
@_HOME
@click.option("--step", type=int, required=True, help="The step of the run from which the new one goes on.")
@click.option("--home", "new", type=_Path(), help="Folder of the new run; default: beside the other.")
@click.option("--method", "methods", multiple=True, help="Switch a method on from that step.")
@click.option("--without", multiple=True, help="Switch a method off from that step.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting, such as optimizer.lr=0.1.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Source of random draws from that step; data stay.")
@click.option("--steps", type=int, help="Length of the new run and of its schedule; default: as the other's.")
@_JSON
def fork(home, step, new, methods, without, pairs, seed, steps, as_json) -> None:
    """Make a new run that has the first steps of another and then goes its own way; `resume` trains it."""
    from modalscape.engine import actions

    changes = {"methods": methods, "without": without, "settings": _settings(pairs), "seed": seed, "steps": steps}
    _shown(actions.fork(home, step, new, **changes), as_json)


@main.command()
@_HOME
@_JSON
def replay(home, as_json) -> None:
    """Repeat a run from its configuration and command log; exit 0 iff the final parameters are identical."""
    from modalscape.engine import actions

    result = actions.replay(home)
    words = "identical" if result["identical"] else "different"
    click.echo(f"{home}: parameters at step {result['step']} are {words}.", err=as_json)
    if as_json:
        click.echo(json.dumps(result))
    if not result["identical"]:
        raise Ended(1)


@main.command()
@_HOME
@click.argument("name")
@click.option("--step", type=int, help="Step to measure at; default: the last checkpoint.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A knob of the probe.")
@_JSON
def probe(home, name, step, pairs, as_json) -> None:
    """Measure a recorded run at any of its steps."""
    from modalscape.engine import actions

    result = actions.probe(home, name, step, _settings(pairs))
    for line in result["records"]:
        shown = line["value"] if line["kind"] == "scalar" else line["kind"]
        click.echo(f"{line['name']}: {shown} (n = {line['n']}, {line['mode']})", err=as_json)
    if as_json:
        click.echo(json.dumps(result))


@main.command()
@_HOME
@click.option("--number", type=click.IntRange(1, 16), default=1, show_default=True, help="Which of several.")
def observe(home, number) -> None:
    """Measure a run, beside its training or after it, as long as anything is due or asked for."""
    from modalscape.engine import actions

    if len(os.sched_getaffinity(0)) < 2:
        os.nice(10)  # training goes first on the only core
    actions.observe(home, number)


@main.command()
@_HOME
@_JSON
def show(home, as_json) -> None:
    """Say how a run stands."""
    configuration.read(home)
    _shown(home, as_json)


@main.command(name="list")
@click.option("--runs", "folder", type=_Path(), help="Folder of runs.")
@_JSON
def list_(folder, as_json) -> None:
    """List the runs in a folder, newest first."""
    from modalscape.engine.client.summary import listed

    found = [listed(path) for _, path in runs(folder or runs_folder())]
    for entry in [] if as_json else found:
        what = entry["error"] if entry["state"] == UNREADABLE else f"step {entry['step']} of {entry['steps']}"
        click.echo(f"{Path(entry['home']).name:40} {entry['state']:10} {what}")
    if as_json:
        click.echo(json.dumps({"runs": found}))


@main.command()
@_JSON
def catalog(as_json) -> None:
    """List methods, probes, problems and lessons with their knobs."""
    from modalscape.engine.catalog import catalog as describe

    found = describe()
    if as_json:
        click.echo(json.dumps(found))
        return
    for kind in ("methods", "probes", "problems", "lessons"):
        click.echo(kind)
        for entry in found[kind]:
            click.echo(f"  {entry['name']:18} {entry['title']}")
            for k in entry.get("knobs", ()):
                click.echo(f"    {entry['name']}.{k['name']} = {k['default']}  {k['help']}")
    click.echo("settings")
    for k in found["settings"]:
        click.echo(f"  {k['name']} = {k['default']}  {k['help']}")


@main.command()
@_HOME
@click.option("--to", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True)
@click.argument("folder", type=_Path())
def export(home, to, folder) -> None:
    """Write a run's scalars, events and records as tables into FOLDER."""
    from modalscape.engine.store.export import export as write

    configuration.read(home)
    for path in write(home, to, folder):
        click.echo(path)


@main.command()
@click.argument("lesson")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Seeds per arm; default: the lesson's own.")
@click.option("--first-seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="The first of them.")
@click.option("--data", type=_Path(), help="A data file in place of the lesson's problem.")
@click.option("--problem", help="Another built-in problem in place of the lesson's.")
@click.option("--runs", "folder", type=_Path(), help="Folder of the claim's runs; kept, so it resumes.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting of every arm, over its own.")
@_JSON
def claim(lesson, seeds, first_seed, data, problem, folder, pairs, as_json) -> None:
    """Run a lesson's arms over seeds and say whether its claim holds."""
    from modalscape.engine.runtime import claims

    result = claims.claim(
        lesson,
        seeds,
        data,
        Path(folder or runs_folder() / "claims"),
        say=lambda line: click.echo(line, err=True),
        settings=_settings(pairs),
        first_seed=first_seed,
        problem=problem,
    )
    for words, found in {} if as_json else ({"": result} | result["further"]).items():
        for line in claims.table(words, found):
            click.echo(line)
    verdict = {True: "holds", False: "does not hold", None: "is undecided"}[result["holds"]]
    click.echo(f"{result['lesson']}: the claim {verdict}.", err=as_json)
    if as_json:
        click.echo(json.dumps(result))


def _end(code: int, home: Path, as_json: bool) -> None:
    _shown(home, as_json)
    if code:
        raise Ended(code)


def _shown(home: Path, as_json: bool) -> None:
    from modalscape.engine.client.summary import summary

    found = summary(home)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{home}: {found['state']} at step {found['step']} of {found['steps']} after {found['seconds']:.1f} s")
    for job in found["measuring"]:
        counted = f": {job['done']:,} of {job['planned']:,} {job['what']}" if job.get("planned") else ""
        left = f", about {job['left']:.0f} s left" if job.get("left") else ""
        click.echo(f"  measuring {job['probe']} at step {job['step']:,}{counted}{left}")
    for name, value in sorted(found["scalars"].items()):
        click.echo(f"  {name:36} {value:.6g}" if isinstance(value, float) else f"  {name:36} {value}")


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as a dict of texts; the knobs convert them.

    Raises:
        InputError: a pair has no `=`, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise InputError(f"--set takes KEY=VALUE, such as optimizer.lr=0.1, not {shown(pair)}.")
        if key in found:
            raise InputError(f"--set gives {shown(key)} twice; give it once.")
        found[key] = value
    return found


def _intervals(probes: tuple[str, ...]) -> dict[str, int]:
    """Return probe to interval; 0 where none is given.

    Raises:
        InputError: the interval is not a whole number of at least 1.
    """
    found = {}
    for text in probes:
        name, sign, every = text.partition(":")
        known = every.isascii() and every.isdigit() and len(every) < 12
        if sign and not (known and int(every) > 0):
            raise InputError(f"--probe takes NAME or NAME:EVERY with EVERY at least 1, not {shown(text)}.")
        found[name] = int(every) if sign else 0
    return found


def entry(arguments: list[str] | None = None, *, program: click.Group = main) -> int:
    """Run the command line; return the exit code.

    Input errors become one sentence and 2, a busy home 3, a home that was lost while it trained 5. A fault of the
    program becomes one sentence too and 1; its traceback goes into a file that is named.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is no text is written as escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _ended(arguments, program)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # nobody reads on, as of `list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except Exception as error:
        return _said(_fault(error), 1)


def _ended(arguments: list[str] | None, program: click.Group) -> int:
    try:
        program(arguments, standalone_mode=False)
    except Ended as ended:
        return ended.code
    except Busy as error:
        return _said(error, 3)
    except Gone as error:
        return _said(error, 5)
    except InputError as error:
        return _said(error, 2)
    except click.ClickException as error:
        return _said(error.format_message(), 2)
    return 0


def _fault(error: Exception) -> str:
    """Write the traceback of a fault of the program into a file; return a sentence that names both."""
    what = f"This is a fault of the program, {type(error).__name__} ({brief(error)})"
    try:
        with tempfile.NamedTemporaryFile("w", prefix=LOGGED, suffix=".txt", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{what}; no place was found to write down where."
    return f"{what}; where it happened stands in {file.name}."


def _said(words: Exception | str, code: int) -> int:
    click.echo(f"Error: {sentence(str(words))}", err=True)
    return code


def begin(program: click.Group = main) -> None:
    """Be the program: run the command line of this process and end with its exit code."""
    streams.guard()
    if sys.argv[1:] == ["warm"]:  # for the dashboard alone; on the command line there is no such command
        from modalscape.engine.runtime import warm

        owner = warm.owner()
        if owner is not None and not warm.serve(owner):
            sys.exit(0)
    sys.exit(entry(program=program))
