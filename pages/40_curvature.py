"""Curvature: the Hessian's spectrum, whole and per modality, other matrices and measures beside it, over time."""

from functools import partial

import streamlit as st

from modalscape.app.server import live
from modalscape.app.views import controls, rows, shell

TITLE = "Curvature"
ICON = ":material/ssid_chart:"
EMPTY = "No curvature has been measured yet. Choose an interval above, or press Measure now."
TRACES = {"as it is": "trace", "per parameter": "trace_mean", "per parameter, times ‖w‖²": "trace_scaled"}
ABSENT = "This has not been measured in this run. Choose an interval above, or press Measure now."


row = partial(rows.row, page="curvature", empty=ABSENT)


def scheduled(run, name, **options):
    """Draw how a probe of its own is scheduled, where it is there."""
    probe = shell.probe(name)
    if probe:
        controls.measuring(run, probe, **options)


def spectrum(run):
    """Draw the Hessian's spectrum: sharpness and the edge of stability over time, then one measurement."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        ylog = st.toggle("Log eigenvalue", key="curvature-log", persist_state="session")
        scale = st.segmented_control(
            "Trace",
            list(TRACES),
            default="as it is",
            required=True,
            key="curvature-trace",
            persist_state="session",
            help="The last one stays where all weights are scaled and the loss does not change.",
        )
    options, held = {"empty": EMPTY}, {"empty": EMPTY, "group": "hessian"}
    title = "Sharpness: the largest eigenvalue over time"
    live.chart(run, "sharpness", key=f"sharpness/{run}", title=title, height=330, empty=EMPTY, ylog=ylog)
    live.scrubber(run, ["hessian/spectrum", "hessian/top"], key=f"scrub/{run}", group="hessian")
    density = ["hessian/spectrum", "hessian/*/spectrum"]
    row(
        run,
        ("Spectral density (click a part to add it)", "density", density, held),
        ("Largest eigenvalues, residuals as bars", "top", ["hessian/top", "hessian/*/top"], held),
        height=360,
        columns=[3, 2],
    )
    row(
        run,
        ("Largest eigenvalues over time", "leading", ["hessian/top"], options | {"ylog": ylog}),
        (f"Trace, {scale}", "series", [f"hessian/{TRACES[scale]}", f"hessian/*/{TRACES[scale]}"], options),
    )
    row(
        run,
        ("Smallest eigenvalue", "series", ["hessian/lambda_min", "hessian/*/lambda_min"], options),
        ("Negative mass: Σ|negative λ| / Σ|λ|", "series", ["hessian/negative_mass", "hessian/*/negative_mass"], {}),
    )


def parts(run):
    """Draw how curvature is shared among the modalities and how they are coupled."""
    held = {"group": "parts"}
    live.scrubber(run, ["hessian/shares", "hessian/coupling"], key=f"scrub-parts/{run}", group="parts")
    row(
        run,
        ("Where each top eigenvector lies", "record", ["hessian/shares"], held),
        ("Coupling of the blocks, ‖H_ab‖ / √(‖H_aa‖‖H_bb‖)", "record", ["hessian/coupling"], held),
        height=320,
    )
    row(
        run,
        ("Largest eigenvalues of each block", "top", ["hessian/*/top"], held),
        ("Largest eigenvalue of each block over time", "series", ["hessian/*/lambda_max"], {}),
    )


def others(run):
    """Draw the Gauss-Newton matrix and the empirical Fisher beside the Hessian."""
    scheduled(run, "ggn")
    st.caption(
        "The Gauss–Newton matrix leaves out the curvature of the network itself and is never negative; for softmax and "
        "cross-entropy it is the Fisher matrix. The empirical Fisher takes the labels as they are: another matrix, "
        "which vanishes as the training rows are fitted."
    )
    every = [f"{matrix}/lambda_max" for matrix in ("hessian", "ggn", "ggn/empirical_fisher")]
    live.scrubber(run, ["ggn/spectrum"], key=f"scrub-ggn/{run}", group="ggn")
    row(
        run,
        ("Largest eigenvalue of each matrix", "matrices", every, {"y": "λ<sub>max</sub>"}),
        (
            "Density of Hessian and Gauss–Newton",
            "densities",
            ["hessian/spectrum", "ggn/spectrum"],
            {"group": "ggn"},
        ),
        height=330,
    )
    row(
        run,
        ("Trace of each matrix", "matrices", [name.replace("lambda_max", "trace") for name in every], {"y": "trace"}),
        ("Largest eigenvalues of the Gauss–Newton matrix", "leading", ["ggn/top"], {}),
    )


def edge(run):
    """Draw the Hessian as the optimiser sees it beside what the optimiser can bear."""
    scheduled(run, "stability")
    st.caption(
        "Trained on whole batches, networks climb until the largest eigenvalue meets what the optimiser can bear, and "
        "stay there: 2/η for SGD, for Adam about 38/η in the Hessian divided by Adam's own scale. Mini-batches hold "
        "training below."
    )
    both = ["stability/lambda_max", "stability/edge"]
    row(
        run,
        ("Largest eigenvalue as the optimiser sees it, and its edge", "series", both, {"y": "λ"}),
        ("The eigenvalue over the edge", "series", ["stability/ratio"], {"level": 1.0}),
        height=330,
    )


def measures(run):
    """Draw how far the loss rises around the parameters."""
    scheduled(run, "sharpness")
    st.caption(
        "How far the training loss rises nearby. SAM and average sharpness change when a ReLU network is rescaled "
        "without changing what it computes, ASAM sharpness does not. They describe where training is; none of them by "
        "itself says how well it will generalise."
    )
    sam = ["sharpness/sam", "sharpness/sam_step", "sharpness/sam_curvature", "sharpness/sam_bound"]
    row(
        run,
        ("Worst case in a ball: SAM sharpness", "series", sam, {}),
        ("Average case: random moves", "series", ["sharpness/average", "sharpness/average_trace"], {}),
    )
    row(
        run,
        ("ASAM sharpness, blind to rescaling", "series", ["sharpness/asam", "sharpness/*/asam"], {}),
        ("SAM sharpness of each part", "series", ["sharpness/*/sam"], {}),
    )
    live.scrubber(run, ["sharpness/by_m"], key=f"scrub-m/{run}", group="measures")
    row(
        run,
        (
            "m-sharpness: smaller batches, each in its worst direction",
            "record",
            ["sharpness/by_m"],
            {"group": "measures"},
        ),
        ("SAM sharpness when one part alone may move", "record", ["sharpness/parts"], {"group": "measures"}),
        ("How the highest point was found", "record", ["sharpness/ascent"], {"group": "measures"}),
        height=260,
    )


def opinion(run):
    """Draw what PyHessian says of the same rows at the same step."""
    scheduled(run, "pyhessian", button="Check with PyHessian")
    st.caption(
        "PyHessian 0.1, as published, on the same rows at the same step. It lists eigenvalues by magnitude, stops when "
        "two successive results agree, which is not when they are right, and gives no error; its density fails on the "
        "torch of today and is left out. Ours come with a bound on their error."
    )
    live.scrubber(run, ["pyhessian/top"], key=f"scrub-opinion/{run}", group="opinion")
    held = {"group": "opinion", "empty": "Press Check with PyHessian."}
    row(
        run,
        (
            "Largest eigenvalues by magnitude",
            "opinions",
            ["pyhessian/top", "pyhessian/ours/top"],
            held | {"as": "top"},
        ),
        ("PyHessian minus ours, our bound as bars", "record", ["pyhessian/difference"], held),
        height=320,
    )
    costs = ["pyhessian/top", "pyhessian/trace", "pyhessian/ours/top"]
    row(
        run,
        ("Trace, one standard error", "opinions", ["pyhessian/trace", "pyhessian/ours/trace"], held),
        ("Products with the Hessian", "record", ["pyhessian/products"], held),
        ("Seconds", "opinions", costs, held | {"as": "seconds"}),
        height=260,
    )


def noise(run):
    """Draw whether the noise of batches and methods climbs where the loss is sharp."""
    scheduled(run, "escape")
    nothing = {
        "empty": "Choose an interval above, or press Measure now: noise of batches and methods is set against H."
    }
    row(
        run,
        ("Escape indicator tr(HΣ)", "series", ["escape/indicator/*"], nothing),
        ("Alignment of noise with H (isotropic: 1)", "series", ["escape/alignment/*"], nothing | {"level": 1.0}),
        ("Noise against curvature, a point a layer", "overlay", ["escape/layers/*"], nothing),
    )


run = shell.page(
    TITLE,
    "The Hessian of the loss: sharpness over time beside the edge of stability, density, largest eigenvalues.",
)
scheduled(run, "hessian")
views = {
    "Spectrum": spectrum,
    "Edge of stability": edge,
    "Modalities": parts,
    "Gauss–Newton and Fisher": others,
    "Sharpness measures": measures,
    "Check with PyHessian": opinion,
} | ({"Noise": noise} if shell.probe("escape") else {})
chosen = "Edge of stability" if shell.asked_for(run, "stability") else "Spectrum"
tabs = st.tabs(list(views), key="curvature-view", on_change="rerun", default=chosen)
for tab, (_, draw) in zip(tabs, views.items(), strict=True):
    if tab.open:
        with tab:
            draw(run)
