"""The examples of CONTRIBUTING.md run, and print what it says they print."""

import doctest
from pathlib import Path

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def test_the_examples_of_contributing_run():
    result = doctest.testfile(str(GUIDE), module_relative=False, encoding="utf-8")
    assert result.attempted > 0, "no example was found"
    assert result.failed == 0
