"""Robustness: what is left of the score when a modality is missing or noisy."""

import streamlit as st

from app import controls, live, shell

TITLE = "Robustness"
ICON = ":material/shield:"

run = shell.page(TITLE, "What is left of the held-out score when a modality goes missing or turns to noise.")
probe = shell.probe("robustness")
if probe:
    controls.measuring(run, probe)

empty = "Nothing has been measured here. Choose an interval above, or press Measure now."

rows = [
    (
        ("Score by the modalities that are present", "record", ["robustness/subsets"], {}),
        ("Score by share of missing modalities", "record", ["robustness/missing"], {}),
    ),
    (
        ("Score by noise on one modality", "overlay", ["robustness/severity/*"], {}),
        ("Area under the noise curve", "series", ["robustness/area/*"], {}),
    ),
    (
        ("Without one modality", "series", ["robustness/without/*"], {}),
        ("Clean, worst and chance", "series", ["robustness/clean", "robustness/worst", "robustness/chance"], {}),
    ),
]
for place, row in enumerate(rows):
    for column, (title, chart, names, options) in zip(st.columns(2, gap="medium"), row, strict=True):
        with column:
            key = f"robustness/{names[0]}/{run}"
            height = 300 if place == 0 else 260
            live.chart(run, chart, key=key, title=title, names=names, height=height, empty=empty, **options)
