"""Curvature: the Hessian's spectrum, whole and per modality, and sharpness over time."""

import streamlit as st

from app import controls, live, shell

TITLE = "Curvature"
ICON = ":material/ssid_chart:"

run = shell.page(
    TITLE,
    "The Hessian of the loss: sharpness over time beside the edge of stability, density, largest eigenvalues.",
)
probe = shell.probe("hessian")

if probe:
    controls.measuring(run, probe)
empty = "No curvature has been measured. Choose an interval above, or press Measure now."

ylog = st.toggle("Log eigenvalue", key="curvature-log", persist_state="session")
live.chart(
    run,
    "sharpness",
    key=f"sharpness/{run}",
    title="Sharpness: the largest eigenvalue over time",
    height=330,
    empty=empty,
    ylog=ylog,
)

live.scrubber(run, ["hessian/spectrum", "hessian/top"], key=f"scrub/{run}", group="hessian")
left, right = st.columns([3, 2], gap="medium")
with left:
    live.chart(
        run,
        "density",
        key=f"density/{run}",
        title="Spectral density (click a part to add it)",
        names=["hessian/spectrum", "hessian/*/spectrum"],
        height=360,
        group="hessian",
        empty=empty,
    )
with right:
    live.chart(
        run,
        "top",
        key=f"top/{run}",
        title="Largest eigenvalues, residuals as bars",
        names=["hessian/top", "hessian/*/top"],
        height=360,
        group="hessian",
        empty=empty,
    )

left, right = st.columns(2, gap="medium")
with left:
    live.chart(
        run,
        "series",
        key=f"trace/{run}",
        title="Trace",
        names=["hessian/trace", "hessian/*/trace"],
        height=260,
        empty=empty,
    )
with right:
    live.chart(
        run,
        "series",
        key=f"least/{run}",
        title="Smallest eigenvalue",
        names=["hessian/lambda_min", "hessian/*/lambda_min"],
        height=260,
        empty=empty,
    )

escape = shell.probe("escape")
if escape:
    st.markdown("##### Does noise climb where the loss is sharp?")
    controls.measuring(run, escape)
    nothing = "Choose an interval above, or press Measure now: noise of batches and of methods is then set against H."
    left, middle, right = st.columns(3, gap="medium")
    with left:
        live.chart(
            run,
            "series",
            key=f"escape/{run}",
            title="Escape indicator tr(HΣ)",
            names=["escape/indicator/*"],
            height=280,
            empty=nothing,
            ylog=ylog,
        )
    with middle:
        live.chart(
            run,
            "series",
            key=f"alignment/{run}",
            title="Alignment of noise with H (isotropic: 1)",
            names=["escape/alignment/*"],
            height=280,
            empty=nothing,
            level=1.0,
            ylog=ylog,
        )
    with right:
        live.chart(
            run,
            "overlay",
            key=f"layers/{run}",
            title="Noise against curvature, a point a layer",
            names=["escape/layers/*"],
            height=280,
            empty=nothing,
        )
