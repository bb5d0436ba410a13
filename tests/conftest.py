"""What every test file shares: one torch thread, the real data sets where they are, and a clean environment."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip that says why."""
    folder = Path(os.environ.get("MODALSCAPE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set MODALSCAPE_DATA")
    return folder


@pytest.fixture(autouse=True)
def _runs_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MODALSCAPE_RUNS", str(tmp_path / "runs"))
