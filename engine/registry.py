"""The folder is the registry: every class of a kind that lies in a package, by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from modalscape.engine.errors import InputError, nearest


@cache
def discover(package: str, base: type) -> dict[str, type]:
    """Return name to subclass of `base`, one for each module or package in `package`, sorted by name.

    Raises:
        TypeError: a module holds no such class, or one whose `name` is not the module's.
    """
    found = {}
    folder = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package}.{info.name}")
        own = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, base) and f"{c.__module__}.".startswith(f"{module.__name__}.")
        ]
        if len(own) != 1 or own[0].name != info.name:
            raise TypeError(f"{module.__name__} must hold one {base.__name__} whose name is {info.name!r}.")
        found[info.name] = own[0]
    return found


def named(package: str, base: type, name: str) -> type:
    """Return the class of that name.

    Raises:
        InputError: there is none; names the nearest known ones.
    """
    known = discover(package, base)
    if name not in known:
        raise InputError(f"There is no {base.__name__.lower()} {name!r}{nearest(name, known)}")
    return known[name]
