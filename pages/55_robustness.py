"""Robustness: what is left of the score when a modality is missing or noisy."""

import streamlit as st

from modalscape.app.server import live
from modalscape.app.views import controls, shell, start

TITLE = "Robustness"
ICON = ":material/shield:"

run = shell.page(TITLE, "What is left of the held-out score when a modality goes missing or turns to noise.")
shell.several(run, "nothing can go missing beside it; choose a run of several modalities.")
probe = shell.probe("robustness")
if probe:
    controls.measuring(run, probe)
start.heads(run)

empty = "Nothing has been measured here. Choose an interval above, or press Measure now."
lead = "Drawn where the clean score is better than chance."
heads = "Late fusion to compare with needs a run that has a loss for each modality."
crossing = (
    "Nothing has been measured here. Press Measure now; its settings name the two modalities, and how many rates."
)
scrubbed = {"group": "robustness"}

first = "robustness/rates/" + "+".join((shell.reader(run).meta("modalities", []) or [])[:2])
crossed = [name for name in shell.reader(run).names()["records"] if name.startswith("robustness/rates/")]
crossed.sort(key=lambda name: name != first)
pair = crossed[0] if crossed else "robustness/rates/*"
if len(crossed) > 1:
    said = {name: name.rpartition("/")[2].replace("+", " × ") for name in crossed}
    pair = st.selectbox("Missing rates of", crossed, format_func=said.get, key=f"robustness-pair/{run}", width=260)

live.scrubber(run, ["robustness/missing"], key=f"scrub/{run}", group="robustness")

rows = [
    (
        ("Score by the modalities that are present", "record", ["robustness/subsets"], scrubbed),
        ("Score by share of missing modalities", "record", ["robustness/missing"], scrubbed),
    ),
    (
        ("Score by corruption of one modality", "overlay", ["robustness/severity/*"], scrubbed),
        ("Score by the missing rates of two modalities", "record", [pair], scrubbed | {"empty": crossing}),
    ),
    (
        ("Area under each of these curves", "series", ["robustness/area/*"], {}),
        ("Share kept of the lead over chance, mean over each curve", "series", ["robustness/retention/*"], {}),
    ),
]
more = [
    (
        ("Without one modality", "series", ["robustness/without/*"], {}),
        ("Score without one modality / score with all", "series", ["robustness/immunity/*"], {}),
    ),
    (
        (
            "Clean, incomplete and worst",
            "series",
            ["robustness/clean", "robustness/incomplete", "robustness/worst_subset", "robustness/worst"],
            {},
        ),
        ("How unevenly modalities are missed", "series", ["robustness/dominance_gap"], {}),
    ),
    (
        ("Level at which half the lead is gone", "series", ["robustness/half/*"], {}),
        ("Area by missing rate, not divided by its range", "series", ["robustness/raw_area/*"], {}),
    ),
    (
        ("Lead over late fusion beyond the clean one", "series", ["robustness/effective/*"], {"empty": heads}),
        ("Errors beside those of late fusion", "series", ["robustness/corruption_error/*"], {"empty": heads}),
    ),
]
for group in (rows, more):
    if group is more and not st.toggle("More of what was measured", key="robustness-more", persist_state="session"):
        break
    for row in group:
        for column, (title, chart, names, options) in zip(st.columns(2, gap="medium"), row, strict=True):
            with column:
                key, height = f"robustness/{names[0]}/{run}", 300 if row in rows[:2] else 260
                own = {"empty": lead if "lead" in title else empty} | options
                live.chart(run, chart, key=key, title=title, names=names, height=height, **own)

st.caption(
    "A network that ignores a modality is perfectly robust to its corruption: read every curve beside the clean score "
    "and beside the score without that modality. Curves with other fill-ins, corruptions or ranges are other "
    "measurements. Bands and whiskers are one standard error over the rows."
)

collapsed = ["modalimmune/severity_attacked", "robustness/area/missing"]
if collapsed[0] in shell.reader(run).names()["records"]:
    st.markdown("##### Does robustness follow the collapse?")
    live.chart(
        run,
        "against",
        key=f"robustness/collapse/{run}",
        title="Area by missing rate against the severity of ModalImmune's collapse",
        names=collapsed,
        y="area by missing rate",
        height=300,
        **{"as": "severity, 1 - r/r_0"},
    )
    st.caption(
        "Both change while a network learns, so that they go together in one run says little; the lesson *Does the "
        "collapse help?* compares runs that differ in the dose alone."
    )

st.markdown("##### What can be reconstructed from the other modalities")
probe = shell.probe("reconstruction")
if probe:
    controls.measuring(run, probe)
classes = "This comes with a measurement of a classification problem."
reconstructed = [
    (
        ("R² of each modality's features from all others together", "series", ["reconstruction/r2/*"], {}),
        ("R² of each modality's features from each single other", "record", ["reconstruction/matrix"], {}),
    ),
    (("R² from all others together, within the classes", "series", ["reconstruction/within/*"], {"empty": classes}),),
]
for row in reconstructed:
    for column, (title, chart, names, options) in zip(st.columns(2, gap="medium"), row, strict=False):
        with column:
            key, own = f"robustness/{names[0]}/{run}", {"empty": empty} | options
            live.chart(run, chart, key=key, title=title, names=names, height=260, **own)
st.caption(
    "By linear regression, fitted on training rows: 1 is perfect, 0 no better than the mean, and far less a sign that "
    "training rows are known by heart. Features that hold the class and nothing else reconstruct each other perfectly; "
    "within the classes only what goes beyond the class counts."
)
