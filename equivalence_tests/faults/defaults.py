"""Faults that test_defaults.py must catch."""

from . import Fault

FAULTS = [
    Fault("a rule's default of another size", "accelerated.rules.pepita",
          "scale: float = 0.05,", "scale: float = 0.5,",
          "test_defaults", "defaults of pepita"),
    Fault("a switch that is on unless told otherwise", "accelerated.rules.feedback_alignment",
          "centred: bool = False,", "centred: bool = True,",
          "test_defaults", "defaults of feedback_alignment"),
    Fault("a function's default of another size", "accelerated.rules.accumulation",
          "share: float = 1.0)", "share: float = 0.5)",
          "test_defaults", "defaults of accumulation"),
    Fault("an option that has lost its default", "accelerated.rules.accumulation",
          "share: float = 1.0)", "share: float)",
          "test_every_rule_with_defaults_is_listed", "files of rules"),
]  # fmt: skip
