"""Files and JSON texts from outside the program, read within bounds, and files written whole or not at all.

Whatever is wrong with one is an OSError or a ValueError with a few words; the caller makes the sentence. Free of torch.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 16 * 2**20
"""Bytes of a file that is read as text."""
DEEPEST = 64
"""Brackets within brackets of a JSON text."""
FARTHEST = 2**31
"""Above every step of a run."""
LAST_SECOND = 250_000_000_000
"""Above every time, in seconds since 1970; the calendar ends there."""


def opened(path: Path | str) -> BinaryIO:
    """Return a regular file, open for reading; what is none, such as a pipe on which a reader would wait, is refused.

    Raises:
        OSError: there is no such file, or it is of another kind.
        ValueError: no file has such a name.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _kind(mode), str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def regular(path: Path | str) -> None:
    """Check that a path leads to a regular file.

    Raises:
        OSError: there is no such file, or it is of another kind.
        ValueError: no file has such a name.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, _kind(mode), str(path))


def _kind(mode: int) -> str:
    known = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return f"it is {next((words for is_one, words in known if is_one(mode)), 'a device')}, not a file"


def text_of(path: Path | str, most: int = MOST_BYTES) -> str:
    """Return the text of a file of at most `most` bytes.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is longer, or no text.
    """
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is longer than {most:,} bytes")
    return content.decode()


@contextmanager
def replacement(path: Path, *, durable: bool = False) -> Generator[BinaryIO]:
    """Give a file to write to, which takes the place of `path` once it is complete; until then a reader sees the old.

    Where writing fails nothing is left of it. A `durable` file is on the disk, not only in its cache, before it gets
    its name, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text to a file in UTF-8, whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        ValueError: the text has half a character.
    """
    content = text.encode()
    with replacement(path) as file:
        file.write(content)


def partial_of(path: Path) -> Path:
    """Return a new name beside `path`, under which it is written until it is complete."""
    return path.with_suffix(f".{secrets.token_hex(4)}.partial")


def give_name(new: Path, path: Path) -> bool:
    """Give a complete file the name `path` unless something has it; return whether it got it, of several writers one.

    Where it got it, `new` may or may not be left.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        new.rename(path)
    return True


def value_of(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, has more than DEEPEST brackets within brackets, or a number of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("brackets within brackets without end") from None
    except TypeError:
        raise ValueError("no text") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets within brackets")
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [part for each in inner for part in (each.values() if isinstance(each, dict) else each)]
    return value


def brief(error: BaseException) -> str:
    """Return the reason of an error in a few words, without its path and full stop."""
    words = getattr(error, "strerror", None) or str(error)
    return (words.splitlines() or [""])[0].rstrip(".")[:120] or type(error).__name__


def memory() -> int | None:
    """Return the bytes of memory of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


# The shape of a JSON value: a type; [shape], a list of such; {str: shape}, such by name; {"key": shape, …}, at least
# these; (shape, …), any of them; or what says whether a value fits.

Shape = Any


def fits(value: Any, shape: Shape) -> bool:
    """Return whether a JSON value has a shape.

    >>> fits({"a": [1, 2]}, {str: [whole]}), fits({"a": [1, "2"]}, {str: [whole]}), fits({"a": 1}, {"a": whole})
    (True, False, True)
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(part, shape[0]) for part in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(isinstance(key, str) and fits(part, shape[str]) for key, part in value.items())
        return all(key in value and fits(value[key], part) for key, part in shape.items())
    return isinstance(value, shape) if isinstance(shape, type) else shape(value)


def whole(value: Any) -> bool:
    """Return whether a value is a whole number from 0, such as a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < FARTHEST


def number(value: Any) -> bool:
    """Return whether a value is a number, perhaps not a finite one."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def finite(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return number(value) and math.isfinite(value)


def moment(value: Any) -> bool:
    """Return whether a value is a time in seconds since 1970."""
    return finite(value) and 0 <= value < LAST_SECOND


def anything(value: Any) -> bool:
    """Return true."""
    return True


def misfit(values: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Return the first key whose value is neither absent nor None nor of its shape."""
    wrong: Callable[[str], bool] = lambda key: values.get(key) is not None and not fits(values[key], shapes[key])  # noqa: E731
    return next((key for key in shapes if wrong(key)), None)
