"""The words that engine, dashboard and scripts have in common: states of a run, kinds of event. Free of torch."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """How a run stands, as its engine says or as the traces of one that is gone show."""

    QUEUED = "queued"
    """Prepared, and its engine not yet started."""
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STALLED = "stalled"
    """Its process holds the lock and has said nothing for long."""
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    """Its engine gave up and said why."""
    CRASHED = "crashed"
    """Nobody holds the lock, and its last word is not one of an end."""
    UNREADABLE = "unreadable"


class EventKind(StrEnum):
    """What happened to a run at a step."""

    STARTED = "started"
    RESUMED = "resumed"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    DIVERGED = "diverged"
    """A loss or a gradient is no longer finite."""
    LOST = "lost"
    """Its folder is gone."""
    APPLIED = "applied"
    """A command was obeyed."""
    REFUSED = "refused"
    NOTE = "note"
    IDLE = "idle"
    """A method leaves training as it is, or does so no more."""
    CHECKPOINT = "checkpoint"
    UNSAVED = "unsaved"
    """The disk refuses what is recorded."""
    TROUBLE = "trouble"
    MENDED = "mended"
    PROBE = "probe"
    """Something was measured."""
    PROBE_FAILED = "probe failed"
