"""Makes forks: recreates the state at which one leaves its parent, and begins it there."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from modalscape.engine.config import RunConfig
from modalscape.engine.errors import InputError
from modalscape.engine.runtime.loop import Run
from modalscape.engine.runtime.replay import branch
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.files import brief
from modalscape.engine.store.home import founded, is_locked, lock, rewritten
from modalscape.engine.store.words import State

_STAGE = ".fork-"
_STALE = 60.0
"""Seconds after which what a killed process left of a fork is removed."""


def first_training(config: RunConfig, home: Path) -> Training:
    """Return the training of a run that has not begun yet: at step 0, a fork's where it leaves its parent.

    The configuration in `home` of a fork that was only prepared is completed by the SHA-256 of its first parameters.

    Raises:
        InputError: the data, or what a fork comes from, cannot be used.
    """
    training = Training(config)
    training.home = Path(home)
    if config.fork:
        _branched(training, home)
        if not config.fork["theta"]:
            rewritten(home, training.config.to_json())
    return training


def made(config: RunConfig, home: Path) -> None:
    """Make the home of a fork, begun at its first step: whole, or not at all, whatever happens meanwhile.

    Raises:
        InputError: what it comes from cannot be recreated, or `home` holds something or cannot be written.
    """
    vacant(home)
    training = Training(config)
    _branched(training, home)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _cleaned(home.parent)
        with tempfile.TemporaryDirectory(prefix=_STAGE, dir=home.parent, ignore_cleanup_errors=True) as stage:
            place = Path(stage) / home.name
            founded(place, training.config.to_json())
            with lock(stage), lock(place):
                run = Run(training, place)
                with closing(run.mailbox):
                    run.begin()
                    run.keeping.close(State.STOPPED)
                if run.keeping.unwritten:
                    raise InputError(f"{run.keeping.unwritten} So no fork was made.")
                vacant(home)
                place.rename(home)
    except (OSError, UnicodeError) as error:
        raise InputError(f"The home {home} cannot be written ({brief(error)}); give another --home.") from None


def vacant(home: Path) -> None:
    """Check that a fork may be made at a path.

    Raises:
        InputError: something lies there.
    """
    with suppress(FileNotFoundError):
        if not home.is_symlink() and not os.listdir(home):
            return
        raise InputError(f"{home} already holds something; give another --home.")


def _branched(training: Training, home: Path) -> None:
    theta = branch(training, home)
    training.config = replace(training.config, fork=training.config.fork | {"theta": theta})


def _cleaned(folder: Path) -> None:
    """Remove what killed processes left of forks that they were making in a folder."""
    for stage in folder.glob(f"{_STAGE}*"):
        with suppress(OSError, InputError):  # another process was faster, or it is nobody's
            if time.time() - stage.stat().st_mtime > _STALE and not is_locked(stage):
                shutil.rmtree(stage)
