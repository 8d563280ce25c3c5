"""Faults that test_left_out.py must catch."""

from . import Fault

FAULTS = [
    Fault("what scores do not depend on, not named", "accelerated.rules.rule",
          "for parameter in self.model.parameters() if parameter not in trained}",
          "for parameter in self.chain.units[-1].parameters if parameter not in trained}",
          "test_it_says_why", "reasons"),
    Fault("the unit with the first target named too", "accelerated.rules.ftp",
          "self.units[: max(self.inject - 1, 0)]", "self.units[: self.inject]",
          "test_it_says_why", "reasons"),
    Fault("a normalisation behind a score, not named", "accelerated.rules.local.classifiers",
          "found |= dict.fromkeys(_parameters(unit.outside), why)", "trained += unit.outside",
          "test_it_names_what_has_no_gradient", "which left_out names"),
    Fault("what comes before the first layer, not named", "accelerated.rules.local.classifiers",
          "_parameters(trained if self.detach else", "_parameters([*trained, *self.local.stem] if self.detach else",
          "test_it_says_why", "reasons"),
    Fault("what later losses reach, named", "accelerated.rules.local.classifiers",
          "trained if self.detach else [*trained, *between]", "trained",
          "test_it_names_what_has_no_gradient", "which left_out names"),
    Fault("the names of the rule inside", "accelerated.rules.hardware",
          "return self.rule.untrained()", "return {}",
          "test_what_a_wrapped_rule_says", "by its own names"),
    Fault("a temperature on crossbars that decays", "accelerated.rules.hardware",
          "return self.rule.no_weight_decay()", "return []",
          "test_what_a_wrapped_rule_says", "what weight decay leaves alone"),
]  # fmt: skip
