"""Methods: switch them, turn their knobs, and see whether each does what it says."""

import streamlit as st

from modalscape.app.server import live
from modalscape.app.views import methods, shell

TITLE = "Methods"
ICON = ":material/tune:"

run = shell.page(
    TITLE,
    "Everything that can change training, while it trains: where each method acts, its knobs, and its own evidence.",
)
catalogue = shell.catalogue()

live.chart(run, "pipeline", key=f"pipeline/{run}", title="One training step, point by point", height=185)

if not catalogue["methods"]:
    st.info("No methods are installed: put one into engine/methods.")
    st.stop()

chosen = methods.choice(catalogue["methods"], shell.switched_on(run))
methods.card(run, chosen["name"])
methods.evidence(run, chosen)
methods.measured(run, chosen)
methods.about(chosen)
