"""Faults that test_modes.py must catch."""

from . import Fault

FAULTS = [
    Fault("steps in inference mode", "accelerated.rules.rule",
          "if is_inferring():\n            with torch.inference_mode(False):\n                return self.assign",
          "if False:\n            with torch.inference_mode(False):\n                return self.assign",
          "test_inference_mode", "lasting gradients"),
    Fault("an optimizer that steps in inference mode", "accelerated.rules.rule",
          "if is_inferring():\n            with torch.inference_mode(False):  # the optimizer's",
          "if False:\n            with torch.inference_mode(False):  # the optimizer's",
          "test_whole_steps_in_inference_mode", "lasting state"),
    Fault("gradients added up in inference mode", "accelerated.rules.accumulation",
          "if is_inferring():", "if False:",
          "test_whole_steps_in_inference_mode", "lasting sums"),
    Fault("a scaled loss that is any tensor", "accelerated.rules.step_loss",
          "found.as_subclass(cls) if is_one else found", "found",
          "test_the_loss_is_not_backpropagated", "what to do instead"),
]  # fmt: skip
