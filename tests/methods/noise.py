"""Exact knobs for the tests of the two noise methods, GANI and isotropic noise."""

from modalscape.engine.methods.gani import Gani


def knobs(method=Gani, **values):
    """Exact knobs: no warm-up, no clip, no floor, `second` and `fixed` unless told otherwise."""
    plain = {"mode": "second", "sizing": "fixed", "warmup": 0, "clip": 0.0, "eps": 0.0, "anneal": "none"}
    plain |= {"level": "all"} if "level" in method.Params.__dataclass_fields__ else {}
    return method.Params(**(plain | values))
