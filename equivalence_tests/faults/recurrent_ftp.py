"""Faults that test_recurrent_ftp.py must catch."""

from . import Fault

FAULTS = [
    Fault("correction of every step subtracted", "accelerated.ftp",
          "difference = difference + without_dropped(layer.steps, first)",
          "difference = difference - without_dropped(layer.steps, first)",
          "test_differences", "differences[1]"),
    Fault("first correction subtracted in the reference", "reference.ftp",
          "tau = h - difference", "tau = h + difference",
          "test_targets_of_a_linear_cell_are_displaced_by_powers_of_its_weights", "step 2"),
    Fault("correction of every step subtracted in the reference", "reference.ftp",
          "tau = tau - without_dropped(layer.steps, first)", "tau = tau + without_dropped(layer.steps, first)",
          "test_targets_of_a_linear_cell_are_displaced_by_powers_of_its_weights", "every: True"),
    Fault("target not carried", "accelerated.ftp",
          "pushed(outlet, h, difference)", "pushed(outlet, h, first)",
          "test_differences", "differences[2]"),
    Fault("target not carried in the reference", "reference.ftp",
          "pushed(outlet, h, tau)", "pushed(outlet, h, clean.activities[inject - 1] - first)",
          "test_every_step_of_a_linear_cell_has_the_same_inner_product_with_backprop",
          "inner products"),
    Fault("targets go through the transpose", "accelerated.recurrent",
          "self.of_state.difference(z, u), u)", "u @ self.of_state.weight, u)",
          "test_an_orthogonal_linear_cell_with_matching_feedback_gives_backprop",
          "backpropagation's gradients"),
    Fault("local losses without the cell's derivative", "reference.recurrent",
          "for_p, for_q, _ = self.cell.vjp(self.p, self.of_state.value(z), z, delta)",
          "for_p, for_q, _ = self.cell.vjp(0 * self.p, 0 * self.of_state.value(z), z, delta)",
          "test_the_local_losses_are_descended", "local slope"),
    Fault("targets of a regression lost from the correction", "accelerated.ftp",
          "        return labels, error\n", "        return 0 * labels, error\n",
          "test_updates", "updates.weight_ih"),
]  # fmt: skip
