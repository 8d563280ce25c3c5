"""Faults that test_layer_aggregation.py must catch."""

from . import Fault

FAULTS = [
    Fault("modules left in evaluation mode", "accelerated.rules.rule",
          "for part, training in modes:", "for part, training in modes[:1]:",
          "test_choosing_on_held_out_data_leaves_each_modules_mode_alone", "modes"),
    Fault("the range that held-out data like least", "accelerated.rules.local.layer_aggregation",
          "divmod(int(hits.argmax()), len(self.weights))", "divmod(int(hits.argmin()), len(self.weights))",
          "test_a_range_is_chosen_on_held_out_data", "range"),
    Fault("only the last batch of held-out data counts", "accelerated.rules.local.layer_aggregation",
          "self.loss_total += torch.stack(", "self.loss_total = torch.stack(",
          "test_layers_are_weighted_by_their_losses", "softmax(-loss)"),
    Fault("losses that are looked at taken down", "accelerated.rules.local.layer_aggregation",
          "if self.kind == \"training-loss\" and self.training:", "if self.kind == \"training-loss\":",
          "test_layers_are_weighted_by_their_losses", "softmax(-loss)"),
    Fault("losses of past epochs in the weights", "accelerated.rules.local.layer_aggregation",
          "        self.loss_total.zero_()\n", "",
          "test_layers_are_weighted_by_their_losses", "begun anew"),
    Fault("held-out data seen through dropout", "accelerated.rules.local.classifiers",
          "with evaluating(self):", "with torch.no_grad():",
          "test_calibration_is_in_evaluation_mode_and_leaves_modes_alone",
          "nothing is dropped"),
    Fault("a read-out of the layers from the last on", "accelerated.rules.local.layer_aggregation",
          "torch.cat(features[self.first_layer :], dim=1)", "torch.cat(features[self.first_layer :][::-1], dim=1)",
          "test_the_read_out_learns_from_all_layers_beside_them", "read-out"),
    Fault("infinity by a weight of 0", "accelerated.rules.local.layer_aggregation",
          "weighted(torch.where(taken, scores, 0), self.weights)", "weighted(scores, self.weights)",
          "test_layers_left_out_may_score_what_they_will", "the last layer's"),
    Fault("sums of losses in half precision", "accelerated.rules.local.layer_aggregation",
          "self.loss_total = widened(self.loss_total)", "self.loss_total = self.loss_total.to(self.weights.dtype)",
          "test_sums_of_losses_outlast_half_precision", "means of losses"),
]  # fmt: skip
