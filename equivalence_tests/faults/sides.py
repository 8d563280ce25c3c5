"""Faults that test_sides.py must catch."""

from . import Fault

FAULTS = [
    Fault("entries that a test uses are not noted", "equivalence_tests.sides",
          'side.used[f"{of}.{name}"] = None\n        return super()', "return super()",
          "test_what_is_missing_is_skipped_and_ours_may_lack_nothing", "noted"),
    Fault("from_numpy gets float64", "equivalence_tests.sides",
          'array.astype(floats) if array.dtype.kind == "f" else array', "array",
          "test_arrays_of_any_kind_are_given_and_read", "in float32"),
    Fault("the tested computation stands for the expected one", "equivalence_tests.pasting",
          '"computed" if expected is None else program.value(expected)', '"computed"',
          "test_a_comparison_as_code_prints_both_results", "operands = "),
    Fault("what a test draws from a generator is drawn anew", "equivalence_tests.pasting",
          "({self.value(seed)})", "()",
          "test_a_property_as_code_fails_as_the_test_did", "Regex pattern did not match"),
    Fault("an operand is one long line", "equivalence_tests.pasting", "taken + len(whole) < room", "taken < room",
          "test_long_operands_are_wrapped", "wrapped"),
    Fault("each number has a line of its own", "equivalence_tests.pasting",
          "is_filled = not _parts(part)", "is_filled = False",
          "test_long_operands_are_wrapped", "filled lines"),
    Fault("a function that lacks an option is not there", "equivalence_tests.sides",
          'side.lack_option(f"{path}({n}=)")', "side.lack(path)",
          "test_what_is_missing_is_skipped_and_ours_may_lack_nothing", "an option"),
    Fault("an example with an option that is not there counts as wrong", "equivalence_tests.sides",
          "reject()", 'raise AssertionError("option")',
          "test_what_lacks_options_is_held_to_the_examples_without_them", "option"),
]  # fmt: skip
