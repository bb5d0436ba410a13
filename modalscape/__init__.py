"""Modalscape: see, while it happens, what training does to a multimodal network."""

import os

__version__ = "0.2.0"

_beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_beside, "engine", "cli.py")):
    __path__.append(_beside)  # a checkout: engine, app and pages lie beside this folder, not in it
