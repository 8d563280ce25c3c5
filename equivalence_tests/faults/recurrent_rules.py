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
          'corrections[1:] if self.inject == "every" else ()', "()",
          "test_recurrent_ftp", "RecurrentFtp.weight_"),
    Fault("rule's reduction ignored", "accelerated.rules.recurrent",
          "updates(layers, factors, self.reduction)", "updates(layers, factors)",
          "test_recurrent_ftp", "RecurrentFtp.weight_ih"),
    Fault("Elman's state matrix as PyTorch has it", "accelerated.modules.recurrent",
          "weight.copy_(orthogonal(", "torch.clone(orthogonal(",
          "test_elmans_state_matrix_starts_orthogonal", "assert"),
]  # fmt: skip
