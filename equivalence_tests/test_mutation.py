"""Mutants are what is said of them, a seed draws them again, and what is argued of one is argued of one that exists."""

import ast
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from prograde.equivalence_tests import mutation
from prograde.equivalence_tests.equivalent_mutants import EQUIVALENT
from prograde.equivalence_tests.planting import in_forks, lines_of, source_of

MUTATIONS = {
    "a + b": {"a - b", "a", "b"},
    "a / b": {"a * b", "a"},
    "a @ b": {"b @ a"},
    "-a": {"a"},
    "not a": {"a"},
    "a and b": {"a or b"},
    "a < b": {"a <= b", "a > b"},
    "a is None": {"a is not None"},
    "0": {"1"},
    "2": {"1", "3"},
    "0.5": {"1.0"},
    "True": {"False"},
    "a if b else c": {"c if b else a"},
    "a.mT": {"a"},
    "x.mean(dim=1)": {"x.sum(dim=1)", "x"},
    "np.maximum(a, b)": {"np.minimum(a, b)", "a"},
    "np.clip(a, b, c)": {"a"},
    "f(a, b, c)": {"f(b, a, c)"},
    "isinstance(a, b)": set(),
    "'text'": set(),
}


@pytest.mark.parametrize("text", MUTATIONS)
def test_mutations_of_an_expression(text: str) -> None:
    found = mutation.mutations(ast.parse(text, mode="eval").body)
    assert {ast.unparse(ast.fix_missing_locations(node)) for node in found} == MUTATIONS[text]


def test_messages_assertions_annotations_and_decorators_are_left_alone() -> None:
    tree = ast.parse(
        """
@cache(1)
def f(x: Literal[1], y=2) -> Array[3]:
    if x > 4:
        raise ValueError(5)
    assert x, 6
    zip(x, y, strict=True)
    print(f"{7}")
    return x
"""
    )
    constants = [place.node.value for place in mutation.places(tree) if isinstance(place.node, ast.Constant)]
    assert constants == [2, 4], "a default and a condition"


def test_a_seed_draws_the_same_mutants_again() -> None:
    """Each of a function of the modules named, with another statement."""
    once, again, other = (mutation.drawn(["reference.foton"], 20, seed) for seed in (1, 1, 2))
    assert once == again != other
    assert all(made.module == "reference.foton" and made.before != made.after for made in once)
    made = once[0]
    original = ast.unparse(mutation.parsed(made.module)[0])
    assert made.after not in original.splitlines() or made.before == made.after, "the module is as it was"


def test_a_mutant_meets_the_tests_of_its_lines() -> None:
    """First those that run the fewest lines; none that fails without it, and none beyond the time allowed."""
    file = source_of("reference.foton")[0]
    mutator = mutation.Mutator([], 0.0, {}, 1, lambda *_: None)
    called = {(file, "f")}
    for name, seconds, passed, functions, numbers in (
        ("test_rules.py", 2.0, True, called, {7, 8, 9}),
        ("test_rules.py", 1.0, True, called, {8, 9}),
        ("test_foton.py", 3.0, True, called, {7}),
        ("test_foton.py", 0.5, False, called, {10}),
        ("test_foton.py", 0.1, True, {(file, "g")}, {20}),
        ("test_rules.py", 0.1, True, {("another", "f")}, {7}),
        ("test_rules.py", mutation.SECONDS, True, called, {7, 9}),
        ("test_rules.py", 1.0, True, called, {7, 9, 11, 12}),
    ):
        lines = {(place, number) for place, _ in functions for number in numbers}
        mutator.observed[len(mutator.items)] = mutation.Observed(seconds, passed, functions, lines)
        mutator.items.append(SimpleNamespace(path=Path(name), name=f"test_{len(mutator.items)}"))
    mutator.observed[len(mutator.items)] = mutation.Observed(9.0, True, set(), set())
    mutator.items.append(SimpleNamespace(path=Path("test_parity.py"), name="test_same_parameters[float64-foton]"))
    assert mutator.tests_of("reference.foton", called, range(7, 8)) == [2, 0, 7], "the longest does not fit"
    assert mutator.tests_of("reference.foton", called, range(8, 9)) == [1, 0], "the line alone"
    own = [8, 4, 2, 1, 0, 7]
    assert mutator.tests_of("reference.foton", called, range(10, 11)) == own, "no test that passes runs it"
    assert mutator.tests_of("reference.foton", {(file, "h")}, range(30, 31)) == own, "a function that ran at import"
    assert mutator.tests_of("reference.foton", set()) == own, "at import: every test of the module"
    mutator.observed[4] = mutator.observed[4]._replace(seconds=mutation.SECONDS - 13)
    assert mutator.tests_of("reference.foton", set()) == [8, 2, 4, 1, 0, 7], "the others have as many seconds again"
    for item in mutator.items[:2]:
        item.name = "test_of_several[0]"
    assert mutator.tests_of("reference.foton", called, range(8, 10)) == [1, 7, 0], "a long one of each function first"


def test_a_mutant_meets_all_rows_of_a_table_in_one_turn() -> None:
    """And a second test that takes long comes after them."""
    file = source_of("reference.foton")[0]
    mutator = mutation.Mutator([], 0.0, {}, 1, lambda *_: None)
    for name, seconds, number_of_lines in (
        *((f"test_rows[{row}]", mutation.TURN / 10, 2) for row in range(8)),
        *((f"test_long[{size}]", mutation.TURN, 1 + 2 * size) for size in range(2)),
    ):
        lines = {(file, number) for number in range(7, 7 + number_of_lines)}
        mutator.observed[len(mutator.items)] = mutation.Observed(seconds, True, set(), lines)
        mutator.items.append(SimpleNamespace(path=Path("test_rules.py"), name=name))
    assert mutator.tests_of("reference.foton", set(), range(7, 8)) == [8, *range(8), 9]


def _branches(chosen: bool) -> int:
    if chosen:
        return 1
    return 2


def test_lines_that_run_are_seen() -> None:
    """Of a branch the one that is taken."""
    first = _branches.__code__.co_firstlineno
    for chosen, last in ((True, 2), (False, 3)):
        with lines_of({__file__}) as lines:
            _branches(chosen)
        assert lines == {(__file__, first + 1), (__file__, first + last)}


def test_lines_that_run_at_import_are_not_seen() -> None:
    """A test that imports a copy of a module is none of its defaults."""
    code = compile("A = 1\nclass B:\n    C = 2\ndef f(x=A):\n    return x\nf()\n", __file__, "exec")
    with lines_of({__file__}) as lines:
        exec(code, {})
    assert lines == {(__file__, 5)}


def test_forks_take_items_as_they_are_free() -> None:
    drawn: list[int] = []
    answers = in_forks(lambda n: n * n, (drawn.append(n) or n for n in count()), jobs=2)
    assert all(answer == n * n for n, answer in islice(answers, 2))
    assert drawn[-1] <= 3, "endless items are not listed"
    answers.close()


def test_arguments_of_equivalence_are_of_mutants_that_exist() -> None:
    """Each key is a mutant of its function still: where code changes, its argument is made again."""
    for function, after in EQUIVALENT:
        module = next(name for side in mutation.SIDES for name in mutation.modules(side) if _within(function, name))
        found = [
            number
            for number, (place, _) in enumerate(mutation.parsed(module)[1])
            if f"{module}.{place.function}".removesuffix(".") == function
        ]
        assert any(mutation.mutant(module, number).after == after for number in found), (function, after)


def _within(function: str, module: str) -> bool:
    return function == module or function.startswith(f"{module}.")
