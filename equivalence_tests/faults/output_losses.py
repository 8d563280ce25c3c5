"""Faults that test_output_losses.py must catch."""

from . import Fault

FAULTS = [
    Fault("a rule's 1/B of samples whose label is ignored", "accelerated.rules.rule",
          "per_label(layer.update(z, delta), len(x), count)", "layer.update(z, delta)",
          "test_rules", "pepita, classes"),
    Fault("FOTON's 1/B of samples whose label is ignored", "accelerated.rules.foton",
          "update = per_label(layer.update(z, delta), len(x), count)", "update = layer.update(z, delta)",
          "test_rules", "foton, classes"),
    Fault("targets of FTP without the labels' weights", "accelerated.rules.output_loss",
          "if weight is not None or self.class_weight is not None:", "if False:",
          "test_rules", "ftp, classes"),
    Fault("labels sent by DRTP without their weights", "accelerated.rules.output_loss",
          "            return losses.times(v, vectors)\n        if", "            return vectors\n        if",
          "test_rules", "direct_random_target_projection, classes"),
    Fault("ignored labels sent by DRTP", "accelerated.rules.output_loss",
          "return vectors.masked_fill((labels == self.ignore_index)[..., None], 0)", "return vectors",
          "test_rules", "direct_random_target_projection, known classes"),
    Fault("a sum of several labels for the module's mean", "accelerated.rules.output_loss",
          "return BinaryCrossEntropy(loss.weight, loss.pos_weight, mean=True)",
          "return BinaryCrossEntropy(loss.weight, loss.pos_weight)",
          "test_rules", "backprop, several labels, the module"),
    Fault("half of the squares for the module's", "accelerated.rules.output_loss",
          "losses.squared_error_gradient, 2.0, mean=True", "losses.squared_error_gradient, 1.0, mean=True",
          "test_rules", "backprop, numbers, the module"),
    Fault("the bend of a smooth loss not divided out", "accelerated.rules.output_loss",
          "1.0 if kind is nn.HuberLoss else 1 / size", "1.0",
          "test_rules", "backprop, smooth"),
    Fault("an own loss not multiplied by its labels", "accelerated.rules.output_loss",
          "return self.count(scores, y) * found", "return found",
          "test_rules", "foton, own"),
]  # fmt: skip
