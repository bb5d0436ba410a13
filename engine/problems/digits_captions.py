"""Digits with captions: real images of digits and short texts about them, in which noise can be mixed.

*Source*: the images are of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, CC BY 4.0, as held by scikit-learn; the captions are made here.
"""

from __future__ import annotations

from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset, Source
from modalscape.engine.data.digits_captions import Params, digits_captions


class DigitsCaptions(Source):
    """Vision and text on 1,797 real images, with wrong-caption, missing-caption and label-noise rates as knobs."""

    name = "digits_captions"
    title = "Digits with captions"
    modalities = ("image", "text")
    Params = Params

    def load(self, rng: Rng) -> Dataset:
        """Return the data set for the knobs and the seed."""
        return digits_captions(self.params, rng)
