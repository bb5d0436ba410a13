"""Data files that claim what they do not hold: refused in a sentence before memory is taken."""

import io
import json
import resource
import zipfile

import numpy as np
import pytest

from modalscape.engine.core.rng import Rng
from modalscape.engine.data import npz
from modalscape.engine.errors import InputError

ROWS = 30
GOOD = {"a": np.linspace(-1, 1, ROWS * 4, dtype=np.float32).reshape(ROWS, 4), "labels": np.arange(ROWS) % 3}


def saved(path, members=(), **arrays):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, values in (GOOD | arrays).items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(values))
            bundle.writestr(f"{name}.npy", content.getvalue())
        for name, content in members:
            bundle.writestr(name, content)
    return path


def headed(text, body=b""):
    header = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def shaped(shape, descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        (headed(shaped("(1000000000000,)")), "claims 4,000,000,000,000 bytes"),
        (headed(shaped("(-1, 4)")), "shape"),
        (headed(shaped("(30, 4)"), bytes(479)), "claims 480 bytes"),
        (headed(shaped("(30,)", "'|O'")), "Python objects"),
        (headed("(" * 3000), "cannot be read"),
        (headed("  \n   x\n y"), "cannot be read"),
        (headed("[" * 9000), "cannot be read"),
        (b"", "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
    ],
)
def test_a_damaged_header_is_one_sentence(tmp_path, content, mention):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=mention) as refused:
        npz.read(saved(tmp_path / "x.npz", [("b.npy", content)]), Rng(0))
    assert "'b'" in str(refused.value) and len(str(refused.value)) <= 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_a_file_that_unfolds_beyond_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("modalscape.engine.store.archive.memory", lambda: 10**6)
    with pytest.raises(InputError, match="bytes of memory"):
        npz.read(saved(tmp_path / "x.npz", b=np.zeros((ROWS, 10**5), np.float32)), Rng(0))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    for name in ("a.npy", "a"):
        with pytest.raises(InputError, match="two arrays named 'a'"):
            npz.read(saved(tmp_path / "x.npz", [(name, headed(shaped("(1,)"), bytes(4)))]), Rng(0))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"tokens": [[1]]}),
        json.dumps({"tokens": [{}]}),
        "[" * 5000,
        '{"a": ' + "9" * 5000 + "}",
        '{"modalities": [[]]}',
    ],
)
def test_odd_metadata_are_one_sentence(tmp_path, text):
    with pytest.raises(InputError, match="metadata"):
        npz.read(saved(tmp_path / "x.npz", metadata=np.array(text)), Rng(0))


def test_names_and_titles_are_kept_to_what_prints(tmp_path):
    with pytest.raises(InputError, match="modality named"):
        npz.read(saved(tmp_path / "x.npz", **{"b\u202ec": GOOD["a"]}), Rng(0))
    found = npz.read(
        saved(tmp_path / "y.npz", **{"é🙂": GOOD["a"]}, metadata=np.array('{"title": "a\\ud800b"}')), Rng(0)
    )
    assert found.title == "a b" and set(found.modalities) == {"a", "é🙂"}


def test_targets_beyond_float32_are_refused(tmp_path):
    with pytest.raises(InputError, match="beyond 3e38"):
        npz.read(saved(tmp_path / "x.npz", labels=np.linspace(0.5, 1e300, ROWS)), Rng(0))
