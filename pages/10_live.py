"""Live: losses, scores and norms while the run trains."""

import streamlit as st

from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views import controls, shell

TITLE = "Live"
ICON = ":material/monitoring:"

run = shell.page(
    TITLE, "What the run is doing now: losses, scores and the size of its steps, with every intervention marked."
)

st.caption(literal(shell.facts(run)))
scale = controls.scales("live")
waiting = "Nothing yet: the first steps appear here as soon as the engine trains."

left, right = st.columns(2, gap="medium")
with left:
    live.chart(run, "series", key=f"loss/{run}", title="Loss", names=["loss/*"], empty=waiting, parent=True, **scale)
with right:
    live.chart(
        run,
        "series",
        key=f"score/{run}",
        title="Score",
        names=["accuracy/train", "accuracy/val", "accuracy/val/*", "error/train", "error/val*", "recall@*/val"],
        empty="Held-out scores appear here at the first evaluation.",
        parent=True,
        **(scale | {"ylog": False}),
    )

left, right = st.columns(2, gap="medium")
with left:
    live.chart(
        run,
        "series",
        key=f"grad/{run}",
        title="Gradient norm by part",
        names=["grad_norm/*"],
        height=260,
        empty=waiting,
        **scale,
    )
with right:
    live.chart(
        run,
        "series",
        key=f"update/{run}",
        title="Step length by part",
        names=["update_norm/*"],
        height=260,
        empty=waiting,
        **scale,
    )

gap = shell.probe("generalization")
if gap:
    with st.expander("Generalization gap"):
        controls.measuring(run, gap)
        live.chart(
            run,
            "series",
            key=f"gap/{run}",
            title="How much worse on held-out than on training rows",
            names=["generalization/gap/*"],
            height=260,
            empty="Choose an interval above: both parts are then evaluated at the same parameters.",
            xlog=scale["xlog"],
        )

with st.expander("Learning rate and other numbers"):
    known = shell.others(run)
    live.chart(
        run,
        "series",
        key=f"lr/{run}",
        title="Learning rate",
        names=["lr"],
        height=200,
        empty=waiting,
        xlog=scale["xlog"],
    )
    names = st.multiselect(
        "Any number of this run", known, key="live-any", persist_state="session", placeholder="Choose numbers to draw"
    )
    if names:
        live.chart(run, "series", key=f"any/{run}", title="Chosen numbers", names=names, **scale)

controls.noting(run)
