"""A run whose data file, note and events hold text that would be rendered, linked or fetched if a page let it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modalscape.app.runs.supervisor import write_note
from modalscape.engine.errors import InputError
from modalscape.engine.store.commands import Note, Toggle, Tune
from modalscape.engine.store.writer import RunWriter
from tests.homes import small, trained

HOST = "tracker.example"
"""A host that no page may ask anything of."""
TEXTS = (
    f"![pixel](http://{HOST}/p.png)",
    f"[click](http://{HOST}/c)",
    f"<img src='http://{HOST}/i.png'>",
    f"<a href='http://{HOST}/a'>more</a>",
    rf"$\href{{http://{HOST}/k}}{{x}}$",
    ":red[alarm]",
    ":material/delete: :smile: :streamlit:",
    "`code` **bold** ~~gone~~ a_b_c",
    f"http://{HOST}/bare www.{HOST} me@{HOST}",
    "&lt;b&gt; &amp; <!-- gone -->",
    "a -> b -- c",
)
"""Each is Markdown, HTML, mathematics, or one of Streamlit's own signs."""
TITLE = " ".join(TEXTS)
NOTE = "\n\n".join([*TEXTS, "# heading", "- item", "1. first", "> said"])[:500]
MODALITIES = (":red[eye]![p](q)", "`ear`$x$&lt;*y*")
"""Names that a data file may give: no dots, slashes, spaces or angle brackets."""
EVENT = f"{TEXTS[0]} {TEXTS[2]}"[:200]


def data(folder: Path) -> Path:
    """Write the data file and return its path."""
    draw = np.random.default_rng(0)
    about = {"title": TITLE, "modalities": list(MODALITIES)}
    path = folder / "![pixel](x) :red[set].npz"
    np.savez(
        path,
        labels=np.arange(90) % 3,
        class_names=np.array(TEXTS[:3]),
        metadata=np.array(json.dumps(about)),
        **{name: draw.random((90, 5), dtype=np.float32) for name in MODALITIES},
    )
    return path


def write_poisoned(home: Path, folder: Path) -> Path:
    """Train a short run of the data file into `home`, with what most probes measure; return `home`."""
    probes = dict.fromkeys(
        ("hessian", "landscape", "evidence", "spectra", "imbalance", "robustness", "reconstruction"), 10
    )
    settings = {"unimodal": "heads", "probe_rows": 30, "landscape.points": 5} | {"planted.rows": 600}
    config = small(problem=None, data=str(data(folder)), steps=21, probes=probes, settings=settings)
    commands = {4: [Toggle("gani", True), Tune("optimizer", "lr", 0.02), Note(EVENT)]}
    trained(home, config, commands)
    write_note(home, NOTE)
    writer = RunWriter(home)
    error = str(InputError(f"Array {TEXTS[2]!r} is no modality; see {TEXTS[8]}."))
    writer.event(21, "probe failed", {"name": "hessian", "error": error, "traceback": error})
    writer.close()
    return home
