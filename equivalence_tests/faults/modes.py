"""Faults that test_modes.py must catch."""

from . import Fault

FAULTS = [
    Fault("steps in inference mode", "accelerated.rules.rule",
          "        if _is_inferring():\n            with torch.inference_mode(False):",
          "        if False:\n            with torch.inference_mode(False):",
          "test_inference_mode", "as outside"),
]  # fmt: skip
