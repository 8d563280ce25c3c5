"""Faults that test_local_controls.py must catch."""

from . import Fault

FAULTS = [
    Fault("deep supervision cut", "accelerated.rules.local.units",
          "x = self.passed_on(index, h, saved)\n", "x = self.passed_on(index, h.detach(), saved)\n",
          "test_deep_supervision_is_the_gradient_of_the_sum", "detached"),
    Fault("normalisation that backpropagation does not train", "accelerated.rules.backprop",
          "_replace(loss=loss.detach(), own=others)", "_replace(loss=loss.detach())",
          "test_learned_normalisation_learns_under_backpropagation_alone", "Backprop"),
    Fault("an ensemble's mean of scores", "accelerated.rules.local.controls",
          "log_probabilities.logsumexp(dim=0) - math.log(len(self.members))", "log_probabilities.mean(dim=0)",
          "test_an_ensemble_is_its_members_apart", "mean probability"),
]  # fmt: skip
