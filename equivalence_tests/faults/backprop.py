"""Faults that test_backprop.py must catch."""

from . import Fault

FAULTS = [
    Fault("1/B dropped", "accelerated.layers",
          "scaled = (delta / len(delta)).flatten(0, -2)", "scaled = delta.flatten(0, -2)",
          "test_updates", "backprop.updates[0]"),
    Fault("1/B dropped from the reference", "reference.layers",
          "z.reshape(-1, z.shape[-1]) / len(delta)", "z.reshape(-1, z.shape[-1])",
          "test_the_reference_is_autograd", "weights[0]"),
    Fault("backprop forgets the mask", "accelerated.layers",
          "        return self.mask * d", "        return d",
          "test_updates", "backprop.updates"),
    Fault("the reference's backprop forgets the mask", "reference.layers",
          "        return self.mask * d", "        return d",
          "test_the_reference_is_autograd", "weights"),
    Fault("backprop skips the derivative", "accelerated.backprop",
          "pulled_back(layer.steps, clean.preactivations[index], activities[-1])", "activities[-1]",
          "test_updates", "backprop.updates[0]"),
    Fault("backprop mistakes activities for pre-activations", "reference.backprop",
          "layer.steps, clean.preactivations[index]", "layer.steps, clean.activities[index]",
          "test_the_reference_is_autograd", "weights"),
    Fault("the reference's backprop through minima in place of maxima", "reference.backprop",
          "clean.activities[index - 1], d)", "-clean.activities[index - 1], d)",
          "test_the_reference_is_autograd", "weights[0]"),
    Fault("backprop through minima in place of maxima", "accelerated.backprop",
          "clean.activities[index - 1], d)", "-clean.activities[index - 1], d)",
          "test_updates", "backprop.updates[0]"),
]  # fmt: skip
