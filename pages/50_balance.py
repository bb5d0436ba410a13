"""Balance: which modality leads, since when, and by how much."""

import streamlit as st

from app import controls, live, shell

TITLE = "Balance"
ICON = ":material/balance:"

run = shell.page(TITLE, "Which modality the model leans on, since when, and by how much.")
probe = shell.probe("imbalance")
if probe:
    controls.measuring(run, probe)

empty = "Nothing has been measured here. Choose an interval above, or press Measure now."
heads = "This needs unimodal scores: start a run with unimodal set to heads or slices, then measure."
held_out = "Held-out scores appear here at the first evaluation; those of one modality with unimodal heads or slices."
shapley = "Shapley shares come with a measurement of a classification problem of up to five modalities."

rows = [
    (
        ("Each modality alone", "series", ["imbalance/accuracy/*", "imbalance/error/*"], {"empty": heads}),
        ("Held out, joint and by modality", "series", ["accuracy/val", "accuracy/val/*"], {"empty": held_out}),
    ),
    (
        ("OGM ratio (above 1: leads)", "series", ["imbalance/ogm_ratio/*"], {"level": 1.0}),
        ("Lead of the strongest over the weakest", "series", ["imbalance/gap"], {"empty": heads}),
    ),
    (
        ("Fisher trace of each encoder", "series", ["imbalance/fisher_trace/*"], {"ylog": True}),
        ("Log ratio of gradient norms (0: balance)", "series", ["imbalance/grad_norm_ratio"], {"level": 0.0}),
    ),
    (
        ("Share of the Fisher trace", "record", ["imbalance/fisher_share"], {}),
        ("Shapley share of the held-out score", "record", ["imbalance/shapley"], {"empty": shapley}),
    ),
]
for place, row in enumerate(rows):
    for column, (title, chart, names, options) in zip(st.columns(2, gap="medium"), row, strict=True):
        with column:
            key, height = f"{names[0]}/{run}", 300 if place == 0 else 250
            live.chart(run, chart, key=key, title=title, names=names, height=height, **({"empty": empty} | options))

st.caption(shell.protocol(run))
