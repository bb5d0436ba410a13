"""Landscape: the loss around the parameters, along the way they came, and between runs."""

from functools import partial
from itertools import combinations

import streamlit as st

from modalscape.app.server import live
from modalscape.app.views import controls, rows, shell

TITLE = "Landscape"
ICON = ":material/landscape:"
EMPTY = (
    "No landscape here yet. Press Measure now; at its interval, the run cuts the plane of its settings, mostly Random."
)
PATH = "No path has been measured. Press Measure now once the run has taken some steps."
BETWEEN = "Nothing between these runs has been measured. Press Measure now."
KINDS = {"random": "Random", "eigen": "Most curved", "gradient": "Downhill"}
EXPLAINED = {
    "random": "Random directions, filter-normalised: 1 on an axis moves every row of every weight matrix by its own "
    "length. The average case. Rescaling whole layers of a ReLU network changes nothing, rescaling neurons does.",
    "eigen": "The two eigenvectors of largest curvature, of unit length: the worst case. Each keeps to one side of a "
    "fixed direction, so that measurements at different steps are no mirror images.",
    "gradient": "Steepest descent to the right, a random direction across it, both of unit length.",
}


row = partial(rows.row, page="landscape", empty=EMPTY)


def flat_and_space(run, what, names, **options):
    """Draw one surface as contours and in space."""
    row(
        run,
        (what, "record", names, options),
        ("The same plane in space", "record", names, options | {"as": "surface"}),
        height=450,
    )


def several(run, chart, names, options):
    """Draw every loss on one plane, loss to record; nothing where there is but the joint one."""
    if len(names) < 2:
        return
    st.markdown("##### Every loss on the same plane")
    charts = [
        ("Training loss" if o == "joint" else f"Loss of {o}", chart, [name], options) for o, name in names.items()
    ]
    for start in range(0, len(charts), 3):
        row(run, *charts[start : start + 3], height=300)


def modalities_of(run):
    """Return the modalities that have a loss of their own."""
    known = shell.reader(run)
    return [m for m in known.meta("modalities", []) or [] if f"loss/{m}" in known.names()["scalars"]]


def each(name, parts):
    """Return the name of a record and that of each part's own."""
    return [name, *(f"{name}/{part}" for part in parts)]


def log_height():
    """Draw the choice of logarithmic heights."""
    words = "Colour and height by the logarithm of the loss."
    return st.toggle("Log height", key="landscape-log", persist_state="session", help=words)


def parts_of(run):
    """Return what may move, in words, to the setting that says so."""
    modalities = list(shell.reader(run).meta("modalities", []) or [])
    parts = [p for p in shell.reader(run).meta("parts", []) or [] if p not in modalities]
    alone = {f"{m} alone": m for m in [*modalities, *parts]}
    return {"all parameters": ""} | alone | {f"{a} × {b}": f"{a},{b}" for a, b in combinations(modalities, 2)}


def around(run):
    """Draw the planes through the present parameters, joint and of each modality."""
    own, moves = ["joint", *modalities_of(run)], parts_of(run)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="landscape-choices"):
        plane = st.segmented_control(
            "Directions",
            list(KINDS),
            default="random",
            required=True,
            key="landscape-plane",
            format_func=KINDS.get,
            persist_state="session",
        )
        part = moves[st.selectbox("What moves", list(moves), key=f"landscape-part/{run}", width=190)]
        loss = st.selectbox("Loss", own, key=f"landscape-loss/{run}", width=140) if len(own) > 1 else "joint"
        log = log_height()
    probe = shell.probe("landscape")
    if probe:
        controls.measuring(run, probe, given={"plane": plane, "part": part})
    st.caption(EXPLAINED[plane])
    cut = f"{plane}@{part.replace(',', '+')}" if part else plane
    base = "landscape" if cut == "random" else f"landscape/{cut}"
    options = {"group": "landscape", "log": log}
    title = {o: "Training loss" if o == "joint" else f"Loss of {o}" for o in own}
    plain = {o: [f"{base}/2d" if o == "joint" else f"{base}/2d/{o}"] for o in own}
    live.scrubber(run, plain["joint"], key=f"scrub/{run}/{base}", group="landscape")
    flat_and_space(run, f"{title[loss]} on a plane", plain[loss], **options)
    lines = "Along the first direction: training loss and each modality's own"
    row(run, (lines, "along", each(f"{base}/1d", own[1:]), options), height=330)
    several(run, "record", {o: plain[o][0] for o in own}, options)


def trajectory(run):
    """Draw the way the run came, in its principal plane, with what that picture leaves out."""
    log = log_height()
    probe = shell.probe("landscape")
    if probe:
        controls.measuring(run, probe, given={"plane": "trajectory", "part": ""})
    st.caption(
        "Each point is filled with its true loss: where it differs from the ground, the point lies off the plane, the "
        "farther the larger it is drawn. That a plane holds most of a path proves nothing: it does of a random walk."
    )
    own, parts = modalities_of(run), shell.reader(run).meta("parts", []) or []
    names, options = ["landscape/trajectory/2d"], {"group": "path", "empty": PATH}
    live.scrubber(run, [*names, "trajectory/path"], key=f"scrub-path/{run}", group="path")
    flat_and_space(run, "Training loss in the plane of the path", names, **options, log=log)
    probe = shell.probe("trajectory")
    if probe:
        st.markdown("##### Along the path")
        controls.measuring(run, probe)
    row(
        run,
        ("True losses along the path", "along", each("trajectory/loss", own), options),
        ("Share of each point's distance off the plane", "record", ["trajectory/off_plane"], options),
    )
    row(
        run,
        ("Distance from the start", "along", each("trajectory/distance", parts), options),
        ("Length of the net update, a step", "along", each("trajectory/update", parts), options),
        ("Explained share, which proves nothing", "record", ["trajectory/shares"], options),
    )


def between(run):
    """Draw the line to another run with its barrier, and the plane through two or three runs."""
    measured = shell.reader(run).names()["records"]
    known = sorted(shell.neighbours(run), key=lambda other: f"between/{other}/line" not in measured)
    if not known:
        st.info("No other run of this network lies beside this one. Start one with the same data and sizes.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="between-choices"):
        other = st.selectbox("Other run", known, key=f"between-other/{run}", format_func=shell.words, width=320)
        rest = ["", *(k for k in known if k != other)]
        third = st.selectbox(
            "Third run, in the plane",
            rest,
            key=f"between-third/{run}",
            format_func=lambda r: shell.words(r) or "none",
            width=320,
        )
        log = log_height()
    probe = shell.probe("between")
    if probe:
        controls.measuring(run, probe, given={"other": other, "third": third})
    st.caption(
        "The barrier is how far the loss on the straight line rises above the chord: near 0, both runs lie in one "
        "basin. A high one need not mean two: permuted hidden units are the same function elsewhere, and curved ways "
        "often avoid it. Losses are those of this run's rows; the others stand at their last checkpoints."
    )
    base, own, options = f"between/{other}", modalities_of(run), {"group": "between", "empty": BETWEEN}
    live.scrubber(run, [f"{base}/line"], key=f"scrub-between/{run}/{other}", group="between")
    row(
        run,
        ("On the straight line, above the chord", "barrier", each(f"{base}/line", own), options),
        ("Barrier over time", "barriers", each(f"{base}/barrier", own), options),
        height=340,
    )
    options["log"] = log
    row(
        run,
        ("Training loss on the plane through the runs", "between", [f"{base}/plane"], options),
        ("The same plane in space", "between", [f"{base}/plane"], options | {"as": "surface"}),
        height=450,
    )
    several(run, "between", {o: f"{base}/plane" + (f"/{o}" if o in own else "") for o in ["joint", *own]}, options)


def beside(run):
    """Draw the surfaces of two runs side by side, on one scale and turned together."""
    known = shell.neighbours(run, "landscape/")
    if not known:
        st.info("No other run of this network has measured its landscape. Measure one there, then come back.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="beside-choices"):
        other = st.selectbox("Other run", known, key=f"beside-other/{run}", format_func=shell.words, width=320)
        records = [shell.reader(r).names()["records"] for r in (run, other)]
        both = sorted(
            n for n, kind in records[0].items() if kind == "surface" and n.startswith("landscape/") and n in records[1]
        )
        name = st.selectbox("Surface", both or ["landscape/2d"], key=f"beside-which/{run}", width=260)
        log = log_height()
    st.caption(
        "Turn one and the other follows; heights and colours share one scale. Runs of one seed are cut along the same "
        "random draw, each normalised to its own weights."
    )
    live.scrubber(run, [name], key=f"scrub-beside/{run}/{name}", group="beside")
    options = {"group": "beside", "link": "beside", "log": log}
    pair = [(run, "This run"), (other, shell.words(other))]
    space = [(f"{words}, in space", "record", [name], options | {"as": "surface", "of": r}) for r, words in pair]
    row(run, *space, height=480)
    row(run, *[(words, "record", [name], options | {"of": r}) for r, words in pair], height=400)


run = shell.page(TITLE, "The loss around the parameters, along the way they came, and on the way to other runs.")
views = {
    "Around the parameters": around,
    "The way it came": trajectory,
    "Between runs": between,
    "Beside another run": beside,
}
for tab, (_, draw) in zip(st.tabs(list(views), key="landscape-view", on_change="rerun"), views.items(), strict=True):
    if tab.open:
        with tab:
            draw(run)
