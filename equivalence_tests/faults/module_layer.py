"""Faults that test_module_layer.py must catch."""

from . import Fault

FAULTS = [
    Fault("the graph of another input", "accelerated.rules.module_layer",
          "if run.z is z:", "if run.z.shape == z.shape:",
          "test_the_four_methods_are_those_of_the_closed_form", "update at another z"),
    Fault("statistics of its own in a second pass", "accelerated.rules.module_layer",
          "x = next(seen)", "x = inputs[0]",
          "test_a_second_pass_is_through_the_same_function", "statistics lent"),
    Fault("draws of its own in a second pass", "accelerated.rules.module_layer",
          "self._drawn = before", "self._drawn = _states(x.device)",
          "test_a_second_pass_is_through_the_same_function", "no change"),
    Fault("draws of its own in a step's second pass", "accelerated.rules.module_layer",
          "if self._drawn is not None:", "if self._drawn is None:",
          "test_a_step_draws_once", "of the same mask"),
    Fault("sum in place of the mean over samples", "accelerated.rules.module_layer",
          "learned, delta / len(delta), allow_unused", "learned, delta, allow_unused",
          "test_the_four_methods_are_those_of_the_closed_form", "update"),
    Fault("a normalisation begins a unit", "accelerated.rules.units",
          "elif own or isinstance(module, NORMALISATIONS) or", "elif isinstance(module, NORMALISATIONS) or",
          "test_what_a_unit_is", "assert"),
    Fault("a hook sees the second pass", "accelerated.rules.module_layer",
          "stack.enter_context(unhooked(self._parts))", "stack.enter_context(unhooked([]))",
          "test_hooks_of_modules_that_are_run_are_called", "called once"),
]  # fmt: skip
