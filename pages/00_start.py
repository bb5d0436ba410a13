"""Start: open a lesson, start a run of your own, or go on with an earlier one."""

import streamlit as st

from modalscape.app.views import shell, start

TITLE = "Start"
ICON = ":material/rocket_launch:"

st.title("Modalscape", anchor=False)
st.caption(
    "A laboratory for multimodal training: watch the loss landscape, the curvature and the balance of modalities "
    "while a model trains, and change the method mid-run."
)

catalogue = shell.catalogue()
start.lessons(catalogue)
left, right = st.columns([2, 3], gap="large")
with left:
    start.form(catalogue)
with right:
    start.runs()
