"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import modalscape.app
import modalscape.engine

MODULES = [
    info.name
    for package in (modalscape.engine, modalscape.app)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if info.name.rpartition(".")[2] not in ("__main__", "main", "ui")  # programs, not modules to import
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_are_found():
    finder = doctest.DocTestFinder()
    found = [len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(found) > 100
