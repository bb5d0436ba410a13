"""The file convention: one `.npz` with an array a modality, `labels`, and perhaps `split`, `class_names`, `metadata`.

- `labels` (N,): integers 0 … C-1, or floats for regression (whole numbers stored as floats need
  `"task": "regression"` in the metadata).
- `split` (N,): 0 train, 1 val, 2 test. Without it a stratified tenth each becomes val and test, drawn from the seed;
  a part that a split lacks is carved out of its training rows in the same way. Other arrays whose names start with
  `split` can be chosen by name.
- `metadata`: a JSON text. `modalities` lists the modalities; without it every numeric array of two or more axes with
  N rows is one. (Arrays of one axis are notes on the rows, such as ids, unless the metadata lists them.)
- A modality is (N, F) a vector, (N, T, F) a sequence, (N, C, H, W) an image; a row's single number is a vector of one.
- **Token ids**: a modality listed under `tokens` in the metadata; or, where there is no such list, a two-axis array of
  16-bit or wider integers between 0 and 99,999 in which 0 stands only at the ends of rows, as padding does, and which
  is not 0 and 1 alone. Every other integer array is taken as numbers.

Files are read without unpickling.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import PARTS, Dataset
from modalscape.engine.errors import InputError, nearest, shown
from modalscape.engine.store.archive import Archive
from modalscape.engine.store.files import brief, opened, value_of

_KEPT = ("labels", "class_names", "metadata")
_LARGEST_TOKEN = 99_999
_LONGEST_NAME = 100
_REAL = "biuf"
"""Kinds of numpy's types that are real numbers."""


def read(path: str | os.PathLike, rng: Rng, split: str = "split") -> Dataset:
    """Return the data set in a file; `split` names the array that parts the rows.

    A file that breaks the convention is refused with an `InputError`: one sentence says where and what to do.
    """
    path = Path(path)
    archive = _opened(path)
    with archive:
        metadata = _metadata(path, archive)
        y = _labels(path, archive, metadata)
        names = _modalities(path, archive, metadata, len(y))
        arrays = {name: _values(path, name, _member(path, archive, name), len(y)) for name in names}
        parts = _parts(path, archive, split, y, rng)
        class_names = () if y.dtype.kind == "f" else _class_names(path, archive, y)
    tokens = metadata.get("tokens")
    _known_tokens(path, tokens, arrays)
    x, vocabularies = {}, {}
    for name, values in arrays.items():
        if name in tokens if tokens is not None else _looks_like_tokens(values):
            x[name] = values.astype(np.int64)
            vocabularies[name] = int(values.max()) + 1
        else:
            x[name] = _floats(path, name, values)
    return Dataset(path.stem, _title(path, metadata), x, y, parts, class_names, vocabularies)


def _opened(path: Path) -> Archive:
    try:
        file = opened(path)
        start = file.read(6)
        file.seek(0)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the .npz file in it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be opened ({brief(error)}); check the path and its permissions.") from None
    if start.startswith(b"\x93NUMPY"):
        file.close()
        raise InputError(
            f"{path} holds a single array; save modalities and labels together with numpy.savez_compressed."
        )
    try:
        return Archive(file)
    except ValueError as error:
        file.close()
        if start.startswith(b"PK"):
            words = f"{path} is damaged or cut short ({brief(error)}); copy or save it again."
        else:
            what = "is not an .npz archive" if start else "is empty"
            words = f"{path} {what}; save it with numpy.savez_compressed."
        raise InputError(words) from None


def _member(path: Path, archive: Archive, name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        raise InputError(
            f"Array {name!r} of {path} cannot be read ({brief(error)}): it is damaged or neither numbers nor text; "
            "save it again."
        ) from None


def _metadata(path: Path, archive: Archive) -> dict[str, Any]:
    if "metadata" not in archive.files:
        return {}
    stored = _member(path, archive, "metadata")
    try:
        value = stored.item()
        metadata = value_of(value if isinstance(value, bytes) else str(value))
    except ValueError as error:
        raise InputError(f"The metadata of {path} are no JSON text ({brief(error)}); store json.dumps(…).") from None
    if not isinstance(metadata, dict):
        raise InputError(f"The metadata of {path} are a JSON {type(metadata).__name__}; store a JSON object.")
    return metadata


def _title(path: Path, metadata: dict[str, Any]) -> str:
    title = metadata.get("title") or metadata.get("name") or path.stem
    return "".join(sign if sign.isprintable() else " " for sign in str(title)[:_LONGEST_NAME])


def _labels(path: Path, archive: Archive, metadata: dict[str, Any]) -> np.ndarray:
    if "labels" not in archive.files:
        held = ", ".join(archive.files[:8]) or "nothing"
        raise InputError(f"{path} has no array 'labels' (it holds {held}); add one label a row.")
    labels = _member(path, archive, "labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(
            f"The labels of {path} have shape {labels.shape}; store one number a row, not one-hot vectors."
        )
    if not len(labels):
        raise InputError(f"{path} has no rows; store at least ten.")
    if labels.dtype.kind == "f":
        return _targets(path, labels, metadata)
    if labels.dtype.kind not in "biu":
        raise InputError(
            f"The labels of {path} are of type {labels.dtype}; store class numbers 0, 1, 2, … as integers."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise InputError(f"The labels of {path} go down to {low}; number the classes from 0.")
    if low == high:
        raise InputError(f"All labels of {path} are {low}; store at least two classes.")
    if high >= len(labels):
        raise InputError(f"The labels of {path} go up to {high} in {len(labels)} rows; number the classes 0, 1, 2, ….")
    return labels.astype(np.int64)


def _targets(path: Path, labels: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    _finite(path, "labels", labels)
    if metadata.get("task") != "regression" and (labels == np.round(labels)).all():
        raise InputError(
            f"The labels of {path} are whole numbers stored as {labels.dtype}; store classes as integers, or put "
            '"task": "regression" into the metadata.'
        )
    if labels.min() == labels.max():
        raise InputError(f"All labels of {path} are {labels[0]}; store targets that vary.")
    return _floats(path, "labels", labels)


def _modalities(path: Path, archive: Archive, metadata: dict[str, Any], rows: int) -> list[str]:
    if "modalities" in metadata:
        listed = metadata["modalities"]
        if not isinstance(listed, list | dict) or not listed or not all(isinstance(name, str) for name in listed):
            raise InputError(
                f"The metadata of {path} list the modalities as {shown(listed)}; give a list of array names."
            )
        names = list(dict.fromkeys(listed))
        known = [name for name in archive.files if not _reserved(name)]
        for name in names:
            if name not in known:
                raise InputError(
                    f"The metadata of {path} name the modality {name!r}, which it lacks{_hint(name, known)}"
                )
    else:
        names = [n for n in archive.files if not _reserved(n) and _has_rows(_member(path, archive, n), path, n, rows)]
    if not names:
        raise InputError(f"{path} has no modality: add an array of {rows} rows and two to four axes for each.")
    for name in names:
        _usable(path, name)
    return names


def _reserved(name: str) -> bool:
    return name in _KEPT or name.startswith("split")


def _has_rows(values: np.ndarray, path: Path, name: str, rows: int) -> bool:
    if values.dtype.kind not in _REAL or values.ndim < 2:
        return False
    if len(values) != rows:
        raise InputError(
            f"Array {name!r} of {path} has {len(values)} rows, but there are {rows} labels; make them equal, or list "
            "the modalities in the metadata."
        )
    return True


def _usable(path: Path, name: str) -> None:
    """Refuse names that parameters, rows or records could not carry."""
    taken = name in ("shared", "fused", "reg") or hasattr(nn.ModuleDict(), name)
    odd = not name.isprintable() or len(name) > _LONGEST_NAME
    if taken or odd or not name or any(sign in name for sign in "./ <>"):
        raise InputError(
            f"{path} has a modality named {shown(name)}, a name with another meaning here; rename it (no dots, "
            f"slashes, spaces or angle brackets, at most {_LONGEST_NAME} characters)."
        )


def _values(path: Path, name: str, values: np.ndarray, rows: int) -> np.ndarray:
    if values.dtype.kind not in _REAL:
        raise InputError(f"Modality {name!r} of {path} is of type {values.dtype}; store real numbers.")
    if values.ndim == 0 or len(values) != rows:
        count = len(values) if values.ndim else 1
        raise InputError(f"Modality {name!r} of {path} has {count} rows, but there are {rows} labels; make them equal.")
    if values.ndim > 4:
        raise InputError(
            f"Modality {name!r} of {path} has shape {values.shape}; use at most three axes after the rows."
        )
    if not values.size:
        raise InputError(f"Modality {name!r} of {path} has shape {values.shape}, which is empty; leave it out.")
    _finite(path, name, values)
    return values[:, None] if values.ndim == 1 else values


def _finite(path: Path, name: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        row = int(np.argwhere(bad)[0][0])
        raise InputError(
            f"Array {name!r} of {path} has {int(bad.sum())} values that are not finite, the first in row {row}; "
            "fill them in or drop those rows."
        )


def _floats(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise InputError(f"Array {name!r} of {path} has values beyond 3e38, the reach of float32; rescale it.")
    return floats


def _known_tokens(path: Path, tokens: Any, arrays: dict[str, np.ndarray]) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, list) or not all(isinstance(name, str) for name in tokens):
        raise InputError(f"The metadata of {path} give `tokens` as {shown(tokens)}; give a list of modality names.")
    for name in tokens:
        if name not in arrays:
            raise InputError(f"The metadata of {path} list {name!r} under `tokens`, no modality{_hint(name, arrays)}")
        values = arrays[name]
        if values.dtype.kind not in "iu" or values.ndim != 2 or values.min() < 0 or values.max() > _LARGEST_TOKEN:
            raise InputError(
                f"Modality {name!r} of {path} is listed under `tokens` but is {values.dtype} of shape {values.shape}; "
                f"store (rows, length) integers from 0, the padding, to {_LARGEST_TOKEN}."
            )


def _looks_like_tokens(values: np.ndarray) -> bool:
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 2 or values.ndim != 2:
        return False
    if values.min() < 0 or not 1 < values.max() <= _LARGEST_TOKEN:
        return False
    filled = values != 0
    return bool((filled[:, :-1] >= filled[:, 1:]).all())


def _parts(path: Path, archive: Archive, split: str, y: np.ndarray, rng: Rng) -> np.ndarray:
    """Return the split (N,) int8, with the parts it lacks carved out of the training rows."""
    if split in archive.files and split.startswith("split"):
        parts = _member(path, archive, split)
        if parts.shape != y.shape:
            raise InputError(f"Array {split!r} of {path} has shape {parts.shape}, but there are {len(y)} labels.")
        if parts.dtype.kind not in _REAL or not np.isin(parts, (0, 1, 2)).all():
            raise InputError(f"Array {split!r} of {path} may hold 0 (train), 1 (val) and 2 (test) alone; recode it.")
        parts = parts.astype(np.int8)
    elif split == "split":
        parts = np.zeros(len(y), np.int8)
    else:
        known = [name for name in archive.files if name.startswith("split")]
        raise InputError(
            f"{path} has no split named {split!r}{_hint(split, known, 'it has none, leave the choice out')}"
        )
    parts = carved(parts, y, rng)
    for number, part in enumerate(PARTS):
        if not (parts == number).any():
            raise InputError(f"The {part} part of {path} has no rows by {split!r}; give it some, or add more rows.")
    known = y[parts == 0]
    if known.min() == known.max():
        raise InputError(f"The training rows of {path} all have the label {known[0]}; give them at least two.")
    return parts


def carved(parts: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    """Return the split (N,) in which each of val and test, where absent, is a stratified tenth of the training rows.

    `y` (N,) are the labels; each class gives its share to within one row. Regression rows are drawn without strata.
    """
    parts = parts.copy()
    order = np.random.default_rng(rng.key("split")).permutation(np.flatnonzero(parts == 0))
    if y.dtype.kind != "f":
        order = order[np.argsort(y[order], kind="stable")]
    for number, offset in ((1, 3), (2, 8)):
        if not (parts == number).any():
            parts[order[offset::10]] = number
    return parts


def _class_names(path: Path, archive: Archive, y: np.ndarray) -> tuple[str, ...]:
    count = int(y.max()) + 1
    if "class_names" not in archive.files:
        return tuple(str(number) for number in range(count))
    names = _member(path, archive, "class_names")
    if names.ndim != 1 or len(names) < count:
        raise InputError(f"{path} has {names.size} class names for {count} classes; give one for each, in order.")
    return tuple(str(name) for name in names)


def _hint(word: str, known, none: str = "it has none") -> str:
    """Return the end of a sentence that names the known words near `word`, or says what to do where there is none."""
    return nearest(word, known) if known else f"; {none}."
