"""Faults that test_recurrent_rules.py must catch."""

from . import Fault

FAULTS = [
    Fault("rule's truncation one step too long", "accelerated.rules.recurrent",
          "max(x.shape[1] - self.truncation, 0)", "max(x.shape[1] - self.truncation - 1, 0)",
          "test_backprop_through_time", "BackpropThroughTime.weight_ih"),
    Fault("rule's truncation ignored", "accelerated.rules.recurrent",
          "        if start:\n", "        if start:\n            start = 0\n        if False:\n",
          "test_backprop_through_time", "BackpropThroughTime.weight_ih"),
    Fault("rule's correction of every step ignored", "accelerated.rules.recurrent",
          'every=self.inject == "every"', "every=False",
          "test_recurrent_ftp", "RecurrentFtp.weight_"),
    Fault("rule's reduction ignored", "accelerated.rules.recurrent",
          "updates(layers, factors, self.reduction)", "updates(layers, factors)",
          "test_recurrent_ftp", "RecurrentFtp.weight_ih"),
    Fault("Elman's state matrix as PyTorch has it", "accelerated.modules.recurrent",
          "weight.copy_(orthogonal(", "torch.clone(orthogonal(",
          "test_elmans_state_matrix_starts_orthogonal", "assert"),
]  # fmt: skip
