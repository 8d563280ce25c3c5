"""Faults that test_own_models.py must catch."""

from . import Fault

FAULTS = [
    Fault("DTG-FF's dense hybrid on any model", "accelerated.rules.local.hybrid_dynamic_temperature",
          "if not isinstance(unit.module, nn.Linear):", "if False:",
          "test_what_is_refused_is_refused_by_the_need_that_is_missing", "assert"),
    Fault("an ensemble's scores over tokens in place of classes", "accelerated.rules.local.controls",
          "log_softmax(dim=-1) for _, member", "log_softmax(dim=1) for _, member",
          "test_an_ensemble_gives_scores_of_every_token", "Tensor-likes"),
]  # fmt: skip
