"""Faults that test_freezing.py must catch."""

from . import Fault

FAULTS = [
    Fault("frozen parameters trained", "accelerated.rules.rule",
          "        if held.requires_grad\n", "",
          "test_what_is_frozen_since_stays_as_it_is_and_others_learn_as_before",
          "a gradient of a frozen parameter"),
    Fault("frozen weights retracted", "accelerated.rules.orthogonality",
          "if frozen or weight.requires_grad}", "}",
          "test_what_is_frozen_since_stays_as_it_is_and_others_learn_as_before",
          "frozen, and changed"),
    Fault("a frozen weight's Gram matrix not looked at", "accelerated.rules.orthogonality",
          "found = float(defect(weight))", "found = 0.0",
          "test_a_frozen_weight_that_is_not_orthogonal_is_refused_where_it_should_be", "refused"),
    Fault("frozen thresholds set by the first batch", "accelerated.rules.local.hybrid_dynamic_temperature",
          "or not self.theta.requires_grad:", "or False:",
          "test_frozen_thresholds_are_not_set_by_the_first_batch", "theta"),
    Fault("a frozen start taken for a warm one", "accelerated.rules.local.hybrid_dynamic_temperature",
          "        if self._looked or not self.training or not self.theta.requires_grad:\n"
          "            return\n        self._looked = True\n",
          "        if self._looked or not self.training:\n            return\n        self._looked = True\n"
          "        if not self.theta.requires_grad:\n            return\n",
          "test_thresholds_that_were_frozen_are_set_by_the_first_batch_they_learn_from",
          "set by a batch"),
]  # fmt: skip
