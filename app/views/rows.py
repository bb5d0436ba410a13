"""Charts beside each other, as several pages lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from modalscape.app.server import live

EMPTY = "Nothing has been measured here. Choose an interval above, or press Measure now."
"""What a chart says that has nothing to draw, unless its page has more to say."""


def row(
    run: str,
    *charts: tuple[str, str, Sequence[str], Mapping[str, Any]],
    page: str,
    columns: int | Sequence[float] = 0,
    height: int = 280,
    empty: str = EMPTY,
) -> None:
    """Draw charts side by side: title, kind, names of records, options; the option `of` names another run to draw.

    Keys of the charts begin with `page`. `columns` is their number, as in `st.columns`, where they are not as many as
    the charts, or their widths; `height` is in pixels.
    """
    places = st.columns(columns or len(charts), gap="medium")
    for place, (title, chart, names, options) in zip(places[: len(charts)], charts, strict=True):
        with place:
            options = {"height": height, "empty": empty} | options
            of = options.pop("of", run)
            live.chart(of, chart, key=f"{page}/{title}/{of}", title=title, names=names, **options)
