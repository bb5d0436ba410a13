"""A loss along lines and planes through parameter space, with the error of what is interpolated.

The names below are for other people's programs too and keep their signatures.
"""

from modalscape.engine.maths.landscape.slices import Slice, direction_pair, slice_2d

__all__ = ["Slice", "direction_pair", "slice_2d"]
