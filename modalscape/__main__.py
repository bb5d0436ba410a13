"""The command `modalscape`: opens the dashboard, shows it on a lesson that runs, or does what the command line does."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

import click

from modalscape import __version__

PATIENCE = 60
"""Seconds in which the dashboard has to answer before its page is opened."""
_PORT = click.option("--port", default=8501, show_default=True, help="Port of the dashboard on this machine.")
_HEADLESS = click.option("--headless", is_flag=True, help="Open no browser.")


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, message="modalscape %(version)s")
@_PORT
@_HEADLESS
@click.pass_context
def dashboard(context: click.Context, port: int, headless: bool) -> None:
    """See, while it happens, what training does to a multimodal network. Without a command: open the dashboard."""
    if context.invoked_subcommand is None:
        raise SystemExit(_serve(port, headless))


@dashboard.command()
@click.option("--lesson", help="Name of the lesson, as `modalscape catalog` lists them; default: the first on Start.")
@_PORT
@_HEADLESS
def demo(lesson: str | None, port: int, headless: bool) -> None:
    """Open the dashboard on a lesson that is already running."""
    from modalscape.app import catalog
    from modalscape.app.runs.lessons import watched
    from modalscape.app.runs.supervisor import Supervisor
    from modalscape.engine.errors import InputError, nearest

    known = catalog.load()
    lessons = catalog.named(known["lessons"])
    entry = lessons.get(lesson or next(iter(lessons)))
    if entry is None:
        raise InputError(f"There is no lesson {lesson!r}{nearest(lesson, lessons)}")
    arm, config = next(iter(entry["arms"].items()))
    run = Supervisor().begin(watched(config, known), note=f"{entry['title']}: {arm}")
    page = (*entry["show"], "live")[0]
    raise SystemExit(_serve(port, headless, f"{page}?run={run}"))


def _serve(port: int, headless: bool, page: str = "") -> int:
    """Run the dashboard in this terminal until it is stopped; open `page` of it once it answers."""
    found = importlib.util.find_spec("modalscape.app.main")
    line = [sys.executable, "-m", "streamlit", "run", found.origin, "--server.port", str(port)]
    line += ["--server.headless", "true"] if headless or page else []
    server = subprocess.Popen(line)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    address = f"http://localhost:{port}/{page}"
    if page:
        click.echo(f"The dashboard opens at {address}")
    if page and not headless:
        threading.Thread(target=_open, args=(server, port, address), daemon=True).start()
    while True:
        try:
            code = server.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:  # it was interrupted too, and ends
            continue


def _open(server: subprocess.Popen, port: int, address: str) -> None:
    """Open the address in a browser as soon as the server says that it is well."""
    until = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            webbrowser.open(address)
            return


def main() -> None:
    """Be the program: its own commands, and those of the engine's command line."""
    if not importlib.util.find_spec("fcntl"):
        sys.exit("Modalscape needs the file locks of Linux or macOS; on Windows, use the Windows Subsystem for Linux.")
    from modalscape.engine import cli

    for name, command in cli.main.commands.items():
        dashboard.add_command(command, name)
    cli.begin(dashboard)


if __name__ == "__main__":
    main()
