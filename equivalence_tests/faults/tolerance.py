"""Faults that test_tolerance.py must catch."""

from . import Fault

FAULTS = [
    Fault("limits wider than they need be", "equivalence_tests.tolerance",
          "seen = not self.closes or self.blind", "seen = self.blind",
          "test_a_comparison_that_is_not_closed_has_no_wider_limit_than_it_needs", "a wider limit"),
    Fault("a limit that nothing reaches", "equivalence_tests.tolerance",
          "assert error <= limit, f", "assert error <= 1e9 * limit, f",
          "test_an_error_of_the_precision_passes_and_one_well_beyond_fails", "Failed: DID NOT RAISE"),
]  # fmt: skip
