"""Faults that test_difference_target_propagation.py must catch."""

from . import Fault

FAULTS = [
    Fault("the inverses of another layer's activation", "accelerated.rules.difference_target_propagation",
          "for unit in self.units[: len(self.inverse_weights)]", "for unit in self.units[1:-1]",
          "test_target_propagation_through_two_activations",
          "tanh(0.3) is recovered"),
    Fault("target without its difference", "reference.difference_target_propagation",
          "_invert(inverse, h) - _invert(inverse, h - found[-1])", "-_invert(inverse, h - found[-1])",
          "test_updates", "dtp.updates"),
    Fault("inverses learned without noise", "accelerated.difference_target_propagation",
          "z = clean_z + eps", "z = clean_z",
          "test_updates", "dtp.updates.inverses"),
    Fault("inverses learned by another loss", "reference.difference_target_propagation",
          "pulled_back(inverse.steps, a, activity(inverse.steps, a) - z)", "activity(inverse.steps, a) - z",
          "test_inverses_learn_by_their_gradient", "reconstruction"),
    Fault("step taken twice", "accelerated.difference_target_propagation",
          "step * layers[-1].adjoint", "step**2 * layers[-1].adjoint",
          "test_updates", "dtp.updates.network"),
    Fault("inverses not trained by the rule", "accelerated.rules.rule",
          "[*of_unit, *self.own]", "of_unit",
          "test_rule", "DifferenceTargetPropagation"),
]  # fmt: skip
