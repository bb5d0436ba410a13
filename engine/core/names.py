"""Names that the engine and the dashboard have in common. Free of torch."""

from __future__ import annotations

OBJECTIVES = ("auto", "cross_entropy", "squared_error", "info_nce")
"""What a run may minimise; `auto` is cross-entropy for classes and squared error for real targets."""
