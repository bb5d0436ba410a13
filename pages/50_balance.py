"""Balance: which modality leads, since when, and by how much."""

import streamlit as st

from app import controls, live, shell

TITLE = "Balance"
ICON = ":material/balance:"

run = shell.page(TITLE, "Which modality the model leans on, and since when.")
probe = shell.probe("imbalance")

if probe:
    controls.measuring(run, probe)
empty = "Nothing has been measured here. Choose an interval above, or press Measure now."

left, right = st.columns(2, gap="medium")
with left:
    live.chart(
        run,
        "series",
        key=f"uni/{run}",
        title="Accuracy of each modality alone",
        names=["imbalance/accuracy/*", "imbalance/error/*"],
        y="fraction",
        empty=empty,
    )
    live.chart(
        run,
        "series",
        key=f"ratio/{run}",
        title="OGM ratio (above 1: leads)",
        names=["imbalance/ogm_ratio/*"],
        height=260,
        empty=empty,
    )
    live.chart(
        run,
        "series",
        key=f"fisher/{run}",
        title="Fisher trace of each encoder",
        names=["imbalance/fisher_trace/*"],
        height=260,
        ylog=True,
        empty=empty,
    )
with right:
    live.chart(
        run,
        "series",
        key=f"heads/{run}",
        title="Held-out accuracy, joint and by modality",
        names=["accuracy/val", "accuracy/val/*"],
        y="fraction",
        empty="Held-out scores appear here at the first evaluation; per modality when unimodal is heads or slices.",
    )
    live.chart(
        run,
        "series",
        key=f"gap/{run}",
        title="Gap between the best and the worst modality",
        names=["imbalance/gap"],
        height=260,
        empty=empty,
    )
    live.chart(
        run,
        "series",
        key=f"grads/{run}",
        title="Gradient-norm ratio",
        names=["imbalance/grad_norm_ratio*"],
        height=260,
        ylog=True,
        empty=empty,
    )

left, right = st.columns(2, gap="medium")
with left:
    live.chart(
        run,
        "record",
        key=f"shapley/{run}",
        title="Shapley share of held-out accuracy",
        names=["imbalance/shapley"],
        height=240,
        empty=empty,
    )
with right:
    live.chart(
        run,
        "record",
        key=f"share/{run}",
        title="Share of the Fisher trace",
        names=["imbalance/fisher_share"],
        height=240,
        empty=empty,
    )
st.caption(shell.protocol(run))
