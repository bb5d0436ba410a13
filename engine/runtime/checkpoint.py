"""Checkpoints: everything a run is at one step, written so that a reader finds a whole file or none, and verified.

Each file carries the SHA-256 of its content, which is compared when it is read; one of an older version has none and is
held against the checksums of its archive. A file that does not pass is passed over, for the one before it.
"""

from __future__ import annotations

import errno
import hashlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.store.files import replacement

_MOST = 40
_STEP = re.compile(r"[0-9]{8,18}")
_DIGEST = "sha256"
KEYS = frozenset({"step", "theta", "moments", "methods", "settings"})
"""What is in every checkpoint."""


class Damaged(Exception):
    """A checkpoint that is not what was written; says in a few words why."""


def sha256(theta: Tensor) -> str:
    """Return the SHA-256 of the bytes of theta (P,), in hexadecimal."""
    return hashlib.sha256(theta.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def digest(content: Any) -> str:
    """Return the SHA-256 of nested dicts and lists of tensors, numbers and text, in hexadecimal.

    It covers names, types, shapes and every bit of every value; the order in which a dict was filled does not count.

    >>> digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
    True
    >>> digest({"a": 1}) == digest({"a": 1.0})
    False
    """
    found = hashlib.sha256()
    _feed(found.update, content)
    return found.hexdigest()


def _feed(add: Callable[[bytes], object], value: Any) -> None:
    if isinstance(value, Tensor):
        add(f"tensor {value.dtype} {list(value.shape)};".encode())
        add(memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    elif isinstance(value, dict):
        add(f"dict {len(value)};".encode())
        for key in sorted(value, key=repr):
            _feed(add, key)
            _feed(add, value[key])
    elif isinstance(value, list | tuple):
        add(f"list {len(value)};".encode())
        for entry in value:
            _feed(add, entry)
    else:
        text = repr(value).encode()
        add(f"{type(value).__name__} {len(text)};".encode() + text)


def save(home: Path, content: dict[str, Any]) -> Path:
    """Write `content` (tensors, numbers, strings, nested dicts) as the checkpoint of its step; return the file.

    The file is complete on disk before it gets its name. Older ones are thinned to about forty, first and last kept.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(home) / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = _path(home, content["step"])
    content = {key: value for key, value in content.items() if key != _DIGEST}
    with replacement(path, durable=True) as raw:
        file = _Remembering(raw)
        try:
            torch.save(content | {_DIGEST: digest(content)}, file)
        except RuntimeError as error:  # torch's own words for whatever the file said
            raise file.refusal or OSError(errno.EIO, str(error).splitlines()[0]) from None
    _thin(home)
    return path


class _Remembering:
    """A file for torch to write to, which remembers why it could not."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.refusal = self.refusal or error
            raise

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self.refusal = self.refusal or error
            raise


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return step to file, of the files in a folder that are named after a step; what else lies there is none."""
    found = (path for path in folder.glob(f"*{suffix}") if _STEP.fullmatch(path.stem) and path.is_file())
    return {int(path.stem): path for path in found if f"{int(path.stem):08d}" == path.stem}


def steps(home: Path) -> list[int]:
    """Return the steps that have a checkpoint, in order."""
    return sorted(numbered(Path(home) / "checkpoints", ".pt"))


def said(words: str) -> None:
    """Say it to whoever started the engine."""
    print(words, file=sys.stderr)


def load(home: Path, step: int | None = None, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the newest intact checkpoint, or the newest at or before `step`; None when there is none."""
    return next(newest_first(home, step, device), None)


def newest_first(
    home: Path, step: int | None = None, device: torch.device | str = "cpu", *, say: Callable[[str], None] = said
) -> Iterator[dict[str, Any]]:
    """Yield the intact checkpoints at or before `step`, the newest first; `say` is told of each one that is damaged."""
    for found in reversed(steps(home)):
        if step is not None and found > step:
            continue
        path = _path(home, found)
        try:
            content = _verified(path, device)
            if content["step"] != found:
                raise Damaged(f"it is one of step {content['step']}")
        except FileNotFoundError:  # thinned meanwhile by the engine that trains
            continue
        except OSError as error:
            say(f"The checkpoint {path.name} cannot be read ({error.strerror or error}); the one before is used.")
        except Damaged as error:
            say(f"The checkpoint {path.name} is damaged ({error}); the one before is used.")
        else:
            yield content


def set_aside(home: Path, after: int) -> list[str]:
    """Take the checkpoints after step `after` out of the way, under other names; return the names they had.

    A run goes on from `after`, so these are damaged, or of a past that its records do not know.
    """
    found = [_path(home, step) for step in steps(home) if step > after]
    for path in found:
        path.replace(path.with_suffix(".pt.aside"))
    return [path.name for path in found]


def named(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"{step:08d}.pt"


def _path(home: Path, step: int) -> Path:
    return Path(home) / "checkpoints" / named(step)


def _verified(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Raises:
        Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:
        raise Damaged("it is empty")
    with path.open("rb") as file:
        _checked_archive(file)
        file.seek(0)
        try:
            content = torch.load(file, map_location=device, weights_only=True)
        except (OSError, torch.OutOfMemoryError):
            raise
        except Exception:  # the unpickler raises whatever broken bytes lead it to; torch's advice is not for here
            raise Damaged("its content cannot be decoded") from None
    if not isinstance(content, dict):
        raise Damaged("it does not hold a run")
    said = content.pop(_DIGEST, None)
    if said is not None and said != digest(content):
        raise Damaged("its content does not match its checksum")
    missing = KEYS - set(content)
    if missing:
        raise Damaged(f"it lacks {', '.join(sorted(missing))}")
    return content


def _checked_archive(file: Any) -> None:
    """Compare the checksums of the archive, before anything in it is decoded."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except OSError:
        raise
    except Exception:  # zipfile raises errors of many kinds for broken headers
        raise Damaged("it is cut short or no checkpoint at all") from None
    if bad is not None:
        raise Damaged("its bytes do not match their checksums")


def _thin(home: Path) -> None:
    """Delete every second of the older checkpoints once there are too many; the last ten always stay."""
    kept = steps(home)
    if len(kept) > _MOST:
        for step in kept[1:-10:2]:
            _path(home, step).unlink(missing_ok=True)
