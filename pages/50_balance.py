"""Balance: which modality leads, since when, and by how much."""

import streamlit as st

from modalscape.app.charts import unimodal_gap
from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views import controls, shell, start
from modalscape.app.views.rows import EMPTY

TITLE = "Balance"
ICON = ":material/balance:"
PROTOCOLS = {
    "own": "its own head or slice",
    "inputs": "others' inputs at zero",
    "zeros": "others' features at zero",
    "means": "others' features at their mean",
    "linear": "linear probe on its features",
    "prototypes": "nearest class mean",
}
FISHER = {
    "fisher_trace": "the data's labels",
    "fisher_model_trace": "labels drawn from the network",
    "fisher_batches": "gradients of mini-batches",
}
CLASSES = "This comes with a measurement of a classification problem."
MANY = "This comes with a measurement of a classification problem of up to eight modalities."
HELD_OUT = "Held-out scores appear here at the first evaluation; those of one modality where each has a loss."

run = shell.page(TITLE, "Which modality the model leans on, since when, and by how much.")
shell.several(
    run, "there is nothing to balance; choose a run of several modalities, which is also compared with this one."
)
probe = shell.probe("imbalance")
if probe:
    controls.measuring(run, probe)
start.heads(run)
reader = shell.reader(run)
chance = reader.latest("imbalance/chance")

with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="balance-choices"):
    scored = st.selectbox(
        "One modality by itself, by",
        list(PROTOCOLS),
        format_func=PROTOCOLS.get,
        key="balance-protocol",
        persist_state="session",
        width=260,
        help="Protocols give different numbers, by tens of points; the one of a run's own evaluation is named below.",
    )
    labelled = st.selectbox(
        "Fisher trace, by",
        list(FISHER),
        format_func=FISHER.get,
        key="balance-fisher",
        persist_state="session",
        width=240,
    )
    shaded = st.toggle(
        "Shade the prime learning window",
        True,
        key="balance-window",
        persist_state="session",
        help="When an encoder takes in information fastest: as InfoReg has it where it is on, else where the "
        "measured Fisher trace grows.",
    )
single = [f"imbalance/unimodal/{scored}/*"]
if scored == "own":
    heads = "This needs a loss for each modality; choose another way of scoring one modality alone."
else:
    heads = CLASSES

sections = {
    "Scores": [
        (
            ("Each modality by itself", "series", single, {"empty": heads, "y": "accuracy"}),
            (
                "Held out, joint and by modality",
                "series",
                ["accuracy/val", "accuracy/val/*", "error/val", "error/val/*"],
                {"empty": HELD_OUT, "level": chance[1].value if chance else None},
            ),
        ),
        (
            ("One modality by itself, by every protocol", "record", ["imbalance/protocols"], {"empty": CLASSES}),
            ("Lead of the strongest over the weakest", "series", ["imbalance/gap"], {"level": 0.0}),
        ),
    ],
    "How fast they learn": [
        (
            ("Fisher trace of each modality's parameters", "series", [f"imbalance/{labelled}/*"], {"ylog": True}),
            ("Distance from the first weights", "series", ["imbalance/drift/*"], {}),
        ),
        (
            (
                "Log ratio of gradient norms (0: balance)",
                "series",
                ["imbalance/grad_norm_ratio", "imbalance/grad_rms_ratio"],
                {"level": 0.0},
            ),
            ("Last step, relative to the weights", "series", ["imbalance/relative_update/*"], {"ylog": True}),
        ),
        (
            ("Learning speed ‖g‖²/‖w‖²", "series", ["imbalance/learning_speed/*"], {"ylog": True}),
            ("Validation minus training loss", "series", ["imbalance/overfitting/*"], {"level": 0.0}),
        ),
    ],
    "Who leads": [
        (
            (
                "OGM ratio of true-class probability (above 1: leads)",
                "series",
                ["imbalance/ogm_ratio/*"],
                {"level": 1.0, "ylog": True, "empty": CLASSES},
            ),
            (
                "The same by class prototypes, without any head",
                "series",
                ["imbalance/prototype_ratio/*"],
                {"level": 1.0, "ylog": True, "empty": CLASSES},
            ),
        ),
        (
            ("Lead over the weaker modalities", "series", ["imbalance/lead/*"], {"empty": CLASSES}),
            (
                "Overfitting to generalisation, since the first weights",
                "series",
                ["imbalance/overfitting_ratio/*"],
                {"ylog": True},
            ),
        ),
    ],
    "What each contributes": [
        (
            (
                "AGM's strength r, by shares of the logits",
                "series",
                ["imbalance/agm_ratio/*"],
                {"level": 1.0, "empty": MANY},
            ),
            ("Unevenness of the Shapley shares", "series", ["imbalance/shapley_imbalance"], {"empty": MANY}),
        ),
        (
            ("Shapley share of the held-out accuracy", "series", ["imbalance/shapley_share/*"], {"empty": MANY}),
            (
                "Utilisation: share of the accuracy lost without it",
                "series",
                ["imbalance/utilisation/*"],
                {"empty": MANY},
            ),
        ),
        (
            ("Valuation of a row, on average", "series", ["imbalance/valuation/*"], {"empty": MANY}),
            (
                "Rows by what a modality contributes",
                "record",
                ["imbalance/valuations"],
                {"empty": "This comes with a measurement of a classification problem of two modalities."},
            ),
        ),
    ],
}


def beside_alone():
    """Draw how much better each modality does when it is trained alone, and how to get the runs that tell."""
    if reader.meta("score", "") not in ("accuracy", "error"):
        return
    found = unimodal_gap.companions(run, shell.catalogue())
    missing = [name for name in reader.meta("modalities", []) or [] if name not in found]
    st.markdown("##### Trained alone, against in company")
    if found:
        names, title = list(found.values()), "What each modality reaches when trained alone, minus in company"
        live.chart(run, "alone", key=f"{title}/{run}", title=title, names=names, height=280)
        with st.container(horizontal=True, gap="medium", key="balance-alone-runs"):
            for name, other in found.items():
                st.page_link(
                    shell.page_path("live"),
                    label=f"The run of {literal(name)} alone",
                    icon=":material/arrow_forward:",
                    query_params={"run": other},
                )
    if not missing:
        return
    st.caption(
        f"To see what {' and '.join(map(literal, missing))} would reach alone, train a run like this one on that "
        "modality: press the button, run the line beside it, or give the Start page the data, seed, steps and settings "
        "of this run and, under More settings, that name as Modalities."
    )
    for name in missing:
        config = unimodal_gap.config_of(run, name, shell.catalogue())
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"balance-alone-{name}"):
            if st.button(f"Train {literal(name)} alone", key=f"alone/{run}/{name}", icon=":material/play_arrow:"):
                start.begin(config, shell.catalogue(), note=f"{name} alone, beside {shell.words(run)}")
            st.code(unimodal_gap.command(config), language="bash", wrap_lines=True)


for section, rows in sections.items():
    st.markdown(f"##### {section}")
    for row in rows:
        for column, (title, chart, names, options) in zip(st.columns(2, gap="medium"), row, strict=True):
            with column:
                options = {"empty": EMPTY} | options
                if chart == "series" and shaded:
                    options["shade"] = ["inforeg/traces/*", "imbalance/fisher_trace/*"]
                live.chart(run, chart, key=f"{title}/{run}", title=title, names=names, height=260, **options)
    if section == "Scores":
        beside_alone()

st.caption(shell.protocol(run))
