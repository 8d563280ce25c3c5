"""Faults that test_recurrent_rules.py must catch."""

from . import Fault

FAULTS = [
    Fault("rule's truncation one step too long", "accelerated.rules.recurrent",
          "self._truncated(values, self.truncation)", "self._truncated(values, self.truncation + 1)",
          "test_backprop_through_time", "BackpropThroughTime.weight_ih"),
    Fault("rule's truncation ignored", "accelerated.rules.recurrent",
          "with torch.no_grad():\n            if steps <", "with torch.enable_grad():\n            if steps <",
          "test_backprop_through_time", "BackpropThroughTime.weight_ih"),
    Fault("rule's correction of every step ignored", "accelerated.rules.recurrent",
          "later=() if alone else later)", "later=())",
          "test_recurrent_ftp", "RecurrentFtp.weight_"),
    Fault("rule's reduction ignored", "accelerated.rules.recurrent",
          "updates(layers, factors, self.reduction)", "updates(layers, factors)",
          "test_recurrent_ftp", "RecurrentFtp.weight_ih"),
    Fault("Elman's state matrix as PyTorch has it", "accelerated.modules.recurrent",
          "weight.copy_(orthogonal(", "torch.clone(orthogonal(",
          "test_elmans_state_matrix_starts_orthogonal", "assert"),
    Fault("rule's targets of a step's label carried on in time", "accelerated.rules.recurrent",
          "found = differences_per_step(layers, clean, corrections)",
          "found = differences(layers, clean, corrections[0], later=corrections[1:])",
          "test_a_stack_of_ones_own", "a stack["),
    Fault("rule's first target of tokens at the first step alone", "accelerated.rules.recurrent",
          'alone = self.inject == "first" and not self.takes_tokens', 'alone = self.inject == "first"',
          "test_a_stack_of_ones_own", "first, a stack["),
    Fault("labels behind a sample's end counted", "accelerated.rules.recurrent",
          "if not self.per_step or lengths is None:\n            return scores, y, None",
          "if not self.per_step or lengths is None or not y.is_floating_point():\n"
          "            return scores, y.fmod(10**6), None",
          "test_a_stack_of_ones_own", "a stack["),
    Fault("padding's row of an embedding trained", "accelerated.rules.recurrent",
          "found[self.module.padding_idx] = 0", "pass",
          "test_a_tagger_learns", "padding learns"),
    Fault("random numbers drawn to compare units with their model", "accelerated.rules.recurrent",
          "with untouched(self.model, values):", "with nullcontext():",
          "test_units_that_are_not_the_model_are_refused", "mode the model gives"),
]  # fmt: skip
