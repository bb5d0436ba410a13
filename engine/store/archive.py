"""The arrays of an `.npz` archive, read one at a time and within bounds, whatever the file claims. Free of torch.

An array's header may claim any size and a small file may unfold into a large one; both are compared with what is there
before memory is taken. Nothing is unpickled.
"""

from __future__ import annotations

import math
import sys
import zipfile
from types import TracebackType
from typing import BinaryIO

import numpy as np

from modalscape.engine.store.files import MOST_BYTES, brief, memory

UNFOLDED = 1100
"""Times its compressed size that a deflated member can have at most; the format allows 1,032."""
SHARE = 0.5
"""Share of the machine's memory that the arrays of one archive may take."""


class Archive:
    """The arrays of an open `.npz` file by name."""

    def __init__(self, file: BinaryIO) -> None:
        """Read what the archive lists.

        Raises:
            ValueError: it is no archive, is damaged, or has two arrays of one name.
        """
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # a damaged archive makes the standard library fail in a dozen ways
            raise ValueError(brief(error)) from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._taken: dict[str, int] = {}
        for member in self._zip.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"it has two arrays named {name[:60]!r}")
            self._members[name] = member

    @property
    def files(self) -> list[str]:
        """Names of the arrays."""
        return list(self._members)

    @property
    def unpacked(self) -> int:
        """Bytes of all members when unpacked, as the archive claims."""
        return sum(member.file_size for member in self._zip.infolist())

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return an array's shape and type; nothing else of it is read.

        Raises:
            ValueError: it is damaged, holds Python objects, or is none.
        """
        member = self._members[name]
        if not member.filename.endswith(".npy"):
            raise Refused("it is no array")
        try:
            with self._zip.open(member) as file:
                shape, _, dtype = _header(file)
        except Refused:
            raise
        except Exception as error:  # as above, and numpy's reader of headers fails in as many
            raise ValueError(brief(error)) from None
        return shape, dtype

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()

    def __getitem__(self, name: str) -> np.ndarray:
        """Return an array; a member that is none, such as a text, as an array of its bytes.

        Raises:
            ValueError: it is damaged, claims more than it has, holds Python objects, or would not fit into memory.
        """
        member = self._members[name]
        if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            most = UNFOLDED * member.compress_size + 1024
            if member.file_size > most:
                raise ValueError(
                    f"it claims {member.file_size:,} bytes, more than its {member.compress_size:,} can hold"
                )
        try:
            with self._zip.open(member) as file:
                return self._read(name, member, file)
        except Refused:
            raise
        except Exception as error:
            raise ValueError(brief(error)) from None

    def _read(self, name: str, member: zipfile.ZipInfo, file: BinaryIO) -> np.ndarray:
        if not member.filename.endswith(".npy"):
            if member.file_size > MOST_BYTES:
                raise Refused(f"it is no array and has {member.file_size:,} bytes")
            return np.asarray(file.read())
        shape, by_columns, dtype = _header(file)
        size, rest = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if size != rest:
            raise Refused(f"its header claims {size:,} bytes, and it has {max(rest, 0):,}")
        self._taken[name] = size
        most = int(SHARE * (memory() or sys.maxsize))
        if sum(self._taken.values()) > most:
            raise Refused(
                f"it would take {sum(self._taken.values()):,} bytes of memory, and at most {most:,} may be taken"
            )
        values = np.empty(math.prod(shape), dtype)
        _fill(values, file)
        return values.reshape(shape, order="F" if by_columns else "C")


class Refused(ValueError):
    """An array that is not read, with the reason."""


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape of the array that begins here, whether it lies by columns, and its type."""
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise Refused(f"its format {version[0]}.{version[1]} is not known")
    shape, by_columns, dtype = reader(file)
    if dtype.hasobject:
        raise Refused("it holds Python objects")
    if not all(isinstance(length, int) and 0 <= length < 2**62 for length in shape):
        raise Refused(f"its shape is {str(shape)[:60]}")
    return shape, by_columns, dtype


def _fill(values: np.ndarray, file: BinaryIO) -> None:
    """Read `values` (N,) from a file that must end with them, so that its checksum is compared."""
    place = memoryview(values.view(np.uint8)) if values.nbytes else memoryview(b"")
    done = 0
    while done < len(place):
        count = file.readinto(place[done:])
        if not count:
            raise Refused(f"it ends after {done:,} of {len(place):,} bytes")
        done += count
    if file.read(1):
        raise Refused("it is longer than it says")


def arrays_of(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return all arrays of an `.npz` file by name.

    Raises:
        ValueError: it is damaged, holds Python objects, or would not fit into memory.
    """
    with Archive(file) as archive:
        return {name: archive[name] for name in archive.files}
