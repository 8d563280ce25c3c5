"""Planted faults: each is put into the code, and a named assertion of the suite must catch it.

    python -m prograde.equivalence_tests.faults [--list] [--seed N] [--jobs N] [NAME ...]

The faults that `test_foton.py` must catch stand in `foton.py`, and so on.
"""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple


class Fault(NamedTuple):
    """`before`, found once in `module`, becomes `after`; `test` must then fail with `assertion` in its message."""

    name: str
    module: str
    before: str
    after: str
    test: str
    assertion: str


def _found() -> Iterator[Fault]:
    """Those of all modules here, each with the file of its test."""
    for module in iter_modules(__path__):
        if module.name != "__main__":
            for fault in import_module(f"{__name__}.{module.name}").FAULTS:
                yield fault._replace(test=f"test_{module.name}.py::{fault.test}")


FAULTS = list(_found())
