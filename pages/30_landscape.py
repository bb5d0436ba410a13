"""Landscape: the loss around the parameters, along one and two directions."""

import streamlit as st

from app import controls, live, shell

TITLE = "Landscape"
ICON = ":material/landscape:"

run = shell.page(
    TITLE,
    "The loss around the present parameters along filter-normalised random directions, joint and unimodal.",
)

with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="landscape-choices"):
    probe = shell.probe("landscape")
    if probe:
        controls.measuring(run, probe)
    log = st.toggle(
        "Log height",
        key="landscape-log",
        persist_state="session",
        help="Colour and height by the logarithm of the loss.",
    )
    which = shell.surface_choice(run)
empty = "No landscape has been measured. Choose an interval above, or press Measure now."
live.scrubber(run, ["landscape/2d*", "landscape/1d*"], key=f"scrub/{run}", group="landscape")

left, right = st.columns(2, gap="medium")
with left:
    live.chart(
        run,
        "record",
        key=f"plane/{run}",
        title="Training loss on a plane",
        names=[which],
        height=450,
        group="landscape",
        empty=empty,
        log=log,
    )
with right:
    live.chart(
        run,
        "record",
        key=f"space/{run}",
        title="The same plane in space",
        names=[which],
        height=450,
        group="landscape",
        empty=empty,
        log=log,
        **{"as": "surface"},
    )
live.chart(
    run,
    "overlay",
    key=f"line/{run}",
    title="Training loss and each unimodal loss along a line",
    names=["landscape/1d", "landscape/1d/*"],
    height=330,
    group="landscape",
    empty=empty,
)
