"""Faults that test_autocast.py must catch."""

from . import Fault

FAULTS = [
    Fault("second values lowered", "accelerated._autocast",
          "return _NO_CONTEXT if _STEP.region is None else _in_full()", "return _NO_CONTEXT",
          "test_small_differences_do_not_cancel", "digits of a small difference"),
    Fault("first values of a module lowered", "accelerated.rules.module_layer",
          "is_lowered() or wide is not z", "wide is not z",
          "test_differences_of_modules_are_taken_outside", "where the module ran"),
    Fault("products in the parameters' dtype", "accelerated._autocast",
          "operand.to(region.dtype)", "operand",
          "test_a_step_is_near_the_one_outside", "products in the region's dtype"),
    Fault("casts of weights kept for scores", "accelerated._autocast",
          "            torch.clear_autocast_cache()", "            pass",
          "test_scores_in_a_region_are_of_the_weights_as_they_are", "scores of the weights before the step"),
    Fault("autocast off where an update is used", "accelerated.rules.rule",
          "        if update is None:\n            return\n        yield update\n",
          "            if update is None:\n                return\n            yield update\n",
          "test_a_unit_that_is_stepped_in_the_region_counts_at_once", "autocast where an update is used"),
    Fault("weights constrained in the region", "accelerated._autocast",
          "return torch.autocast(device.type, enabled=False)", "return nullcontext()",
          "test_the_constraint_keeps_the_weights_own_precision", "weights constrained in a region"),
    Fault("crossbars passed by in a region", "accelerated.rules.hardware",
          "        if region is not None:\n            raise", "        if False:\n            raise",
          "test_crossbars_are_refused", "autocast is on"),
]  # fmt: skip
