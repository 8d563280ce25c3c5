"""Faults that test_modes.py must catch."""

from . import Fault

FAULTS = [
    Fault("steps in inference mode", "accelerated.rules.rule",
          "        if _is_inferring():\n            with torch.inference_mode(False):",
          "        if False:\n            with torch.inference_mode(False):",
          "test_inference_mode", "lasting gradients"),
    Fault("a scaled loss that is any tensor", "accelerated.rules.step_loss",
          "found.as_subclass(cls) if is_one else found", "found",
          "test_the_loss_is_not_backpropagated", "what to do instead"),
]  # fmt: skip
