"""Docstrings of the reference: what functions refuse is said, and what they cite stands in the head of their module."""

import inspect
import re
from types import ModuleType

import pytest

from prograde import reference
from prograde.equivalence_tests.test_arguments import ROWS

CITED = re.compile(r"[Ee]quations? ((?:\(\w+\)(?:, | and | to | or )?)+)")


def missing_equations(module: ModuleType) -> set[str]:
    """Numbers that docstrings cite and the head of the module does not have."""
    head = set(re.findall(r"\((\d+|[a-z])\)", module.__doc__ or ""))
    named = [getattr(module, name) for name in module.__all__]
    documented = [item for item in named if inspect.isfunction(item) or inspect.isclass(item)]
    documented += [part for item in documented for part in vars(item).values() if inspect.isfunction(part)]
    texts = [item.__doc__ or "" for item in documented]
    return {number for text in texts for group in CITED.findall(text) for number in re.findall(r"\w+", group)} - {
        *head, "and", "or", "to",
    }  # fmt: skip


@pytest.mark.parametrize("name", reference.__all__)
def test_equations_that_are_cited_are_in_the_head_of_their_module(name: str) -> None:
    assert not missing_equations(getattr(reference, name))


def test_a_missing_equation_is_seen() -> None:
    def updates() -> None:
        """G_l of equations (2) and (c)."""

    module = ModuleType("made", "(1) and (2)")
    vars(module).update(updates=updates, __all__=["updates"])
    assert missing_equations(module) == {"c"}


@pytest.mark.parametrize("name", sorted({row.name for row in ROWS}))
def test_what_is_refused_is_said(name: str) -> None:
    module, function = name.split(".")
    said = getattr(getattr(reference, module), function).__doc__
    assert re.search(r"[Rr]aises?\b|errors as for", said), said
