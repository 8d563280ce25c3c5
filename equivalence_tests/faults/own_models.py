"""Faults that test_own_models.py must catch."""

from . import Fault

FAULTS = [
    Fault("DTG-FF's dense hybrid on any model", "accelerated.rules.local.hybrid_dynamic_temperature",
          "if not isinstance(unit.module, nn.Linear):", "if False:",
          "test_what_is_refused_is_refused_by_the_need_that_is_missing", "assert"),
    Fault("an ensemble's scores over tokens in place of classes", "accelerated.rules.local.controls",
          "log_softmax(dim=-1) for _, member", "log_softmax(dim=1) for _, member",
          "test_an_ensemble_gives_scores_of_every_token", "Tensor-likes"),
    Fault("sizes read in training mode", "accelerated.rules.rule",
          "with torch.no_grad(), evaluating(self.model):\n                z = self.begin(torch.zeros(1,",
          "with torch.no_grad():\n                z = self.begin(torch.zeros(2,",
          "test_what_comes_before_the_units_is_at_rest_while_sizes_are_read", "zeros have been counted"),
]  # fmt: skip
