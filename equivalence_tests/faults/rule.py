"""Faults that test_rule.py must catch."""

from . import Fault

FAULTS = [
    Fault("masks of whichever rows a share has", "accelerated.rules.rule",
          "torch.empty(self.samples(x), *shape,", "torch.empty(len(x), *shape,",
          "test_masks_have_the_mean_1_or_drop_all", "rows of its own"),
    Fault("code made for one rule taken along by its copy", "accelerated.rules.rule",
          '**super().__getstate__(), "_compiled": None, "_memory": {}', '**super().__getstate__(), "_memory": {}',
          "test_code_is_made_once_and_not_taken_along", "of a copy"),
    Fault("a difference beside 1 in place of what a unit gives", "accelerated.rules.rule",
          "if not apart <= torch.finfo(a.dtype).eps ** 0.5 * a.abs().max():",
          "if not apart <= torch.finfo(a.dtype).eps ** 0.5:",
          "test_units_repeat_themselves_but_for_rounding", "1e-"),
]  # fmt: skip
