"""Where the packages lie: `modalscape.engine` in `engine`, and so on; the rest stands in pyproject.toml."""

from setuptools import find_packages, setup

ROOMS = ("engine", "app")

setup(
    packages=[
        "modalscape",
        "modalscape.pages",
        *(f"modalscape.{name}" for room in ROOMS for name in (room, *(f"{room}.{p}" for p in find_packages(room)))),
    ],
    package_dir={"modalscape": "modalscape", **{f"modalscape.{room}": room for room in (*ROOMS, "pages")}},
)
