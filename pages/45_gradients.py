"""Gradients: whose gradient says what, how surely, and who contradicts whom."""

import streamlit as st

from modalscape.app.server import live
from modalscape.app.views import controls, shell, start
from modalscape.app.views.rows import EMPTY

TITLE = "Gradients"
ICON = ":material/call_split:"

run = shell.page(TITLE, "Each loss's gradient as evidence: how sure it is, how it is weighed, and where two disagree.")
probe = shell.probe("evidence")
if probe:
    controls.measuring(run, probe)
start.heads(run)

HEADS = "This comes with a measurement of a run that has a loss for each modality."
MAPS = {
    "precision_map": "precision, log10",
    "evidence_map": "evidence",
    "weight_map": "weight",
    "uncertainty_map": "uncertainty",
    "mean_map": "mean gradient",
    "variance_map": "variance, log10",
    "conflict_map": "conflict",
}

sections = {
    "Whose gradient goes where": [
        (
            ("Gradient norm by loss and part", "record", ["evidence/grad_norm"], {"empty": EMPTY}),
            ("Cosines between the losses' gradients", "record", ["evidence/cosines"], {"empty": HEADS}),
        ),
        (
            ("Smallest cosine on each encoder", "series", ["evidence/cosine/*"], {"level": 0.0, "empty": HEADS}),
            ("Share of mini-batches in conflict", "series", ["evidence/conflict_rate/*"], {"empty": HEADS}),
        ),
    ],
    "Layer by layer": [
        (
            ("Gradient norm by layer and loss", "record", ["evidence/layer_norm"], {"empty": EMPTY}),
            ("Cosines between the losses by layer", "record", ["evidence/layer_cosine"], {"empty": HEADS}),
        ),
    ],
    "Signal and noise": [
        (
            ("Noise scale: rows at which noise equals signal", "series", ["evidence/noise_scale/*"], {"empty": EMPTY}),
            (
                "Do mini-batches agree? Mean cosine",
                "series",
                ["evidence/batch_cosine/*"],
                {"level": 0.0, "empty": EMPTY},
            ),
        ),
        (("Noise scale by layer", "record", ["evidence/noise_by_layer"], {"empty": EMPTY}),),
    ],
    "Evidence at the features, as BOGC-MML weighs it": [
        (
            ("Precision of each source, log10", "series", ["evidence/precision/*"], {"empty": HEADS}),
            ("Weight of each source", "series", ["evidence/weight/*"], {"empty": HEADS}),
        ),
        (
            ("Uncertainty of each opinion", "series", ["evidence/uncertainty/*"], {"empty": HEADS}),
            ("Coordinates whose sources differ in sign", "series", ["evidence/sign_disagreement/*"], {"empty": HEADS}),
        ),
    ],
}
TALL = ("evidence/layer_norm", "evidence/layer_cosine", "evidence/noise_by_layer")

for section, rows in sections.items():
    st.markdown(f"##### {section}")
    for row in rows:
        for column, (title, chart, names, options) in zip(st.columns(len(row), gap="medium"), row, strict=True):
            with column:
                height = 420 if any(name in TALL for _, _, own, _ in row for name in own) else 260
                key = f"gradients/{names[0]}/{run}"
                live.chart(run, chart, key=key, title=title, names=names, height=height, **options)


@st.fragment
def by_coordinate(run):
    """Draw the evidence of every coordinate, and again when a measurement brings something of another name."""
    live.watch(run, "records", shell.now(run).tags["records"], key=f"watch-gradients/{run}")
    reader = shell.reader(run)
    maps = [n for n in reader.names()["records"] if n.startswith("evidence/") and n.split("/")[1] in MAPS]
    if not maps:
        return
    known = [key for key in MAPS if any(n.split("/")[1] == key for n in maps)]
    shown = st.selectbox(
        "By coordinate of the features",
        known,
        format_func=MAPS.get,
        key="gradients-map",
        persist_state="session",
        width=260,
    )
    modalities = [m for m in reader.meta("modalities", []) or [] if f"evidence/{shown}/{m}" in maps]
    for first in range(0, len(modalities), 2):
        for column, m in zip(st.columns(2, gap="medium"), modalities[first : first + 2], strict=False):
            with column:
                name = f"evidence/{shown}/{m}"
                live.chart(
                    run, "record", key=f"map/{name}/{run}", title=f"{MAPS[shown].capitalize()}: {m}", names=[name]
                )


by_coordinate(run)
