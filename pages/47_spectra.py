"""Spectra: how many directions the features fill, which of them noise hides, and what the weights look like."""

from functools import partial
from itertools import combinations

import streamlit as st

from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views import controls, rows, shell

TITLE = "Spectra"
ICON = ":material/equalizer:"
QUIET = "No method changed these features where they were measured. Switch on FANoise or ModDrop, then measure."
SHOWN = {
    "clean and changed": ("singular", "changed/singular", "expected", "instead", "noise", "random"),
    "clean": ("singular", "random"),
    "changed": ("changed/singular", "expected", "instead", "noise"),
}
SCRUBBED = {"group": "spectra"}
"""Options of charts that show one step, which they share."""
SIZES = {
    "effective rank": "exp of the entropy of the energy shares",
    "participation": "one over the sum of the squared energy shares",
    "stable rank": "energy over that of the largest direction",
    "condition": "largest over smallest singular value",
}


row = partial(rows.row, page="spectra", columns=2, height=250)


def asked(run, modalities):
    """Draw the choices above the spectra; return the modalities, which features, the number to rank by, and whether
    without the mean row."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="spectra-choices"):
        chosen = st.pills(
            "Modalities",
            modalities,
            format_func=literal,
            default=modalities[:2],
            selection_mode="multi",
            key=f"spectra-modalities/{run}",
            persist_state="session",
        )
        which = st.segmented_control(
            "Features",
            list(SHOWN),
            default="clean and changed",
            required=True,
            key="spectra-which",
            persist_state="session",
        )
        size = st.selectbox("Rank by", list(SIZES), key="spectra-size", persist_state="session", width=170)
        centred = st.toggle(
            "Without the mean row",
            key="spectra-centred",
            persist_state="session",
            help="The mean of all rows is often the largest direction by far; taken away, the others can be compared.",
        )
    return [m for m in modalities if m in (chosen or modalities)], which, size, centred


def features(run, modalities):
    """Draw the spectra of the features, with and without noise, and how they go over time."""
    chosen, which, size, centred = asked(run, modalities)
    base = {m: f"spectra/{m}/centred" if centred else f"spectra/{m}" for m in modalities}
    live.scrubber(run, ["spectra/*/singular"], key=f"scrub/{run}", group="spectra")
    spectra = [
        (
            f"Singular values of the features: {m}",
            "spectrum",
            [f"{base[m]}/{end}" for end in SHOWN[which]],
            {"empty": QUIET if which == "changed" else rows.EMPTY} | SCRUBBED,
        )
        for m in chosen
    ]
    for start in range(0, len(spectra), 2):
        row(run, *spectra[start : start + 2], height=340)

    def named(*ends):
        return [f"{base[m]}/{end}" for m in chosen for end in ends]

    kept, key = "How much of the leading directions is kept", size.replace(" ", "_")
    row(
        run,
        ("Signal to noise of each direction", "spectrum", named("snr"), {"empty": QUIET} | SCRUBBED),
        (kept, "spectrum", named("kept", "kept_by_chance"), {"empty": QUIET} | SCRUBBED),
    )
    row(
        run,
        (f"{size.capitalize()}: {SIZES[size]}", "series", named(key, f"changed/{key}"), {"ylog": size == "condition"}),
        ("Largest singular value", "series", named("sigma_1", "changed/sigma_1"), {}),
    )
    row(
        run,
        ("Share of the energy in the mean row", "series", [f"spectra/{m}/mean_share" for m in chosen], {}),
        ("Share of directions that i.i.d. noise would hide", "series", named("hidden"), {"empty": QUIET}),
    )
    return chosen


def between(run, chosen):
    """Draw how the features of two modalities lie to each other."""
    pairs = [f"{a}-{b}" for a, b in combinations(chosen, 2)]
    if not pairs:
        return
    st.markdown("##### Between the modalities")
    distances = [f"spectra/{k}/{p}" for k in ("alignment", "uniformity") for p in pairs]
    cosines = [f"spectra/cosine/{k}/{p}" for k in ("pairs", "others") for p in pairs]
    row(
        run,
        ("Canonical correlations of the features", "spectrum", [f"spectra/canonical/{p}" for p in pairs], SCRUBBED),
        ("Modality gap: distance of the centroids", "series", [f"spectra/gap/{p}" for p in pairs], {}),
    )
    row(
        run,
        ("Alignment (0: rows of a pair coincide) and uniformity", "series", distances, {}),
        ("Mean cosine of rows that belong together, and of others", "series", cosines, {}),
    )


def weights(run, layers):
    """Draw the spectrum of one layer's weights, and of all layers what lies beyond chance."""
    st.markdown("##### Weights")
    layer = st.selectbox("Layer", layers, key=f"spectra-layer/{run}", persist_state="session", width=320)
    own = [f"spectra/{kind}/{layer}" for kind in ("weights", "weights_random")]
    part = layer.partition("/")[0]
    alike = [name for name in layers if name.partition("/")[0] == part][:24]
    row(
        run,
        ("Singular values of the weights (of no Hessian)", "spectrum", own, SCRUBBED),
        (
            f"Singular values beyond the edge, layers of {part} (0 or 1: chance)",
            "series",
            [f"spectra/weights_beyond/{name}" for name in alike],
            {},
        ),
        height=300,
    )
    row(
        run,
        (f"Stable rank, layers of {part}", "series", [f"spectra/weights_stable_rank/{name}" for name in alike], {}),
        (f"Largest singular value, layers of {part}", "series", [f"spectra/weights_largest/{n}" for n in alike], {}),
    )


@st.fragment
def body(run):
    """Draw what has been measured, and again when a measurement brings something of another name."""
    live.watch(run, "records", shell.now(run).tags["records"], key=f"watch-spectra/{run}")
    reader = shell.reader(run)
    modalities = list(reader.meta("modalities", []) or [])
    measured = reader.names()["records"]
    if not modalities or not any(name.startswith("spectra/") for name in measured):
        live.chart(
            run, "spectrum", key=f"spectra/{run}", title="Singular values", names=["spectra/*"], empty=rows.EMPTY
        )
        return
    between(run, features(run, modalities))
    layers = [name.removeprefix("spectra/weights/") for name in measured if name.startswith("spectra/weights/")]
    if layers:
        weights(run, layers)


run = shell.page(
    TITLE,
    "Singular values of each modality's features and of the weights, beside what chance alone would give.",
)
probe = shell.probe("spectra")
if probe:
    controls.measuring(run, probe)
body(run)
