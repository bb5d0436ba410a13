"""Gradients: whose gradient says what, how surely, and who contradicts whom."""

import streamlit as st

from app import controls, live, shell

TITLE = "Gradients"
ICON = ":material/call_split:"

run = shell.page(TITLE, "Each loss's gradient as evidence: how sure it is, how it is weighed, and where two disagree.")
probe = shell.probe("evidence")
if probe:
    controls.measuring(run, probe)

empty = "Nothing has been measured here. Choose an interval above, or press Measure now."
heads = "This needs a loss for each modality: start a run with unimodal set to heads or slices, then measure."

rows = [
    (
        ("Gradient norm by loss and part", "record", ["evidence/grad_norm"], {"empty": empty}),
        ("Cosines between the losses' gradients", "record", ["evidence/cosines"], {"empty": heads}),
    ),
    (
        ("Smallest cosine on each encoder", "series", ["evidence/cosine/*"], {"level": 0.0, "empty": heads}),
        ("Share of mini-batches in conflict", "series", ["evidence/conflict_rate/*"], {"empty": heads}),
    ),
    (
        ("Precision of each source, log10", "series", ["evidence/precision/*"], {"empty": heads}),
        ("Weight of each source", "series", ["evidence/weight/*"], {"empty": heads}),
    ),
    (
        ("Uncertainty of each opinion", "series", ["evidence/uncertainty/*"], {"empty": heads}),
        ("Coordinates whose sources differ in sign", "series", ["evidence/sign_disagreement/*"], {"empty": heads}),
    ),
]
for place, row in enumerate(rows):
    for column, (title, chart, names, options) in zip(st.columns(2, gap="medium"), row, strict=True):
        with column:
            key = f"gradients/{names[0]}/{run}"
            live.chart(run, chart, key=key, title=title, names=names, height=300 if place == 0 else 250, **options)

known = sorted(n for n in shell.reader(run).names()["records"] if n.startswith("evidence/"))
maps = [n for n in known if n.split("/")[1].endswith("_map")]
if maps:
    st.markdown("##### Evidence by coordinate of the features")
    shown = st.selectbox("Quantity", sorted({n.split("/")[1] for n in maps}), index=0, key="gradients-map")
    for column, name in zip(st.columns(2, gap="medium"), [n for n in maps if n.split("/")[1] == shown], strict=False):
        with column:
            live.chart(run, "record", key=f"map/{name}/{run}", title=name.split("/")[2], names=[name], height=300)
