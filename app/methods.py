"""The parts of the Methods page: choose one, switch and tune it, look at its evidence, read where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import catalog, controls, live, shell
from app.status import ALIVE


def choice(entries: Sequence[Mapping[str, Any]], on: Sequence[str]) -> Mapping[str, Any]:
    """Draw the choice of a method, at first one that is `on`; return its catalogue entry."""
    known = catalog.named(entries)
    first = next((name for name in known if name in on), next(iter(known)))
    name = st.pills(
        "Method",
        list(known),
        format_func=lambda n: known[n]["title"],
        default=first,
        required=True,
        key="method-choice",
        persist_state="session",
        label_visibility="collapsed",
    )
    return known[name or first]


@st.fragment
def card(run: str, name: str) -> None:
    """Draw a method's switch and knobs as the engine has acknowledged them."""
    entry = catalog.named(catalog.methods())[name]
    now = shell.now(run)
    live.watch(run, "control", now.tags["control"], key=f"watch-method/{run}")
    settings = shell.reader(run).meta("settings", {}) or {}
    with st.container(border=True, key="method-card"):
        head, switch = st.columns([3, 1], vertical_alignment="top")
        with head:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.subheader(entry["title"], anchor=False, width="content")
                if entry["reconstructed"]:
                    st.badge(
                        "our reconstruction",
                        color="orange",
                        icon=":material/construction:",
                        help="Only part of the paper is public; what is ours is said below.",
                    )
                st.badge("acts at " + ", ".join(entry["points"]), color="gray")
            st.markdown(_sentence(entry))
        with switch:
            controls.toggle(now, entry, "card", "Switched on")
        if now.refused:
            st.warning(now.refused[1], icon=":material/block:")
        if entry["knobs"]:
            first, more = entry["knobs"][:3], entry["knobs"][3:]
            controls.tuning(now, entry | {"knobs": first}, settings)
            if more:
                with st.expander(f"{len(more)} more knobs"):
                    controls.tuning(now, entry | {"knobs": more}, settings)
            waiting = [k.partition(".")[2] for k in now.asked if k.startswith(f"{name}.")]
            if waiting:
                st.caption("requested: " + ", ".join(waiting))
            elif now.state in ALIVE:
                st.caption("A change takes effect before the next step and is marked on every time axis.")


def _sentence(entry: Mapping[str, Any]) -> str:
    """Return the summary of a method without its name in front."""
    text = entry["summary"].removeprefix(f"{entry['title']}: ")
    return text[:1].upper() + text[1:]


def evidence(run: str, entry: Mapping[str, Any]) -> None:
    """Draw what the method reports about itself: one chart for each group of numbers, each other record by its kind."""
    st.markdown("##### Is it doing what it says?")
    _evidence(run, entry["name"], entry["title"])


@st.fragment
def _evidence(run: str, name: str, title: str) -> None:
    now = shell.now(run)
    live.watch(run, "records", now.tags["records"], key=f"watch-evidence/{run}/{name}")
    known = shell.reader(run).names()
    groups = grouped([n for n in known["scalars"] if n.startswith(f"{name}/")])
    others = [n for n, kind in known["records"].items() if n.startswith(f"{name}/") and kind != "scalar"]
    if not groups and not others:
        st.info(
            f"{title} has reported nothing in this run: switch it on and let a few steps pass.",
            icon=":material/toggle_on:",
        )
        return
    drawn = [(group, "series", [group, f"{group}/*"]) for group in groups] + [
        (n, "record", [n]) for n in sorted(others)
    ]
    for start in range(0, len(drawn), 3):
        for column, (group, chart, names) in zip(st.columns(3, gap="medium"), drawn[start : start + 3], strict=False):
            with column:
                heading = headed(run, names, group)
                live.chart(run, chart, key=f"own/{run}/{group}", title=heading, names=names, height=210)


def headed(run: str, names: Sequence[str], group: str) -> str:
    """Return the title that a method gives to its records, or their name as words."""
    reader = shell.reader(run)
    own = [n for n in reader.names()["records"] if n in names or n.startswith(f"{group}/")]
    latest = reader.latest(own[0]) if own else None
    words = group.partition("/")[2].replace("/", ", ").replace("_", " ")
    return (latest[1].draw.get("title") if latest else None) or words[:1].upper() + words[1:]


def grouped(names: Sequence[str]) -> list[str]:
    """Return the first two segments of the names, each once, sorted.

    >>> grouped(["gani/ratio/audio", "gani/ratio/image", "gani/sigma"])
    ['gani/ratio', 'gani/sigma']
    """
    return sorted({"/".join(name.split("/")[:2]) for name in names})


def about(entry: Mapping[str, Any]) -> None:
    """Draw where the method comes from and everything that its file says."""
    st.markdown("##### Where it comes from")
    if entry["source"]:
        st.markdown(entry["source"])
    if entry["after"]:
        st.caption("Acts after " + ", ".join(catalog.titles().get(n, n) for n in entry["after"]) + " where both act.")
    with st.expander("All that its file says"):
        st.text(entry["doc"])
