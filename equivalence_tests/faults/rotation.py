"""Faults that test_rotation.py must catch."""

from . import Fault

FAULTS = [
    Fault("a rotation that stands still", "accelerated.modules.rotation",
          "cos(self.angle) * x + sin(self.angle) * self.activation(a)",
          "cos(self.angle) * x + self.angle * self.activation(a)",
          "test_the_module_is_the_layer_and_autograd_its_oracle", "value"),
    Fault("update of W for that of Q", "accelerated.rules.units",
          "return (skew_orthogonal_vjp(linear.weight, weight), *bias)", "return (weight, *bias)",
          "test_without_activations_foton_gives_every_parameter_the_gradient_of_autograd", "gradient of"),
    Fault("update of a skew kernel for a step of half its size", "accelerated.convolution",
          "return functional.conv2d(turned, gradient - gradient",
          "return functional.conv2d(turned / 2, gradient - gradient",
          "test_the_module_is_the_layer_and_autograd_its_oracle", "update of"),
    Fault("a rotation's Q let go", "accelerated.rules.units",
          "return {name: (linear, \"weight\")}", "return {} if name != self.name else {name: (linear, \"weight\")}",
          "test_training_keeps_w_skew_and_orthogonal", "within the tolerance"),
    Fault("average for maximum pooling in the rule", "accelerated.rules.units",
          "steps = (*steps, *afresh(self.maxima))", "steps = (*steps,)",
          "test_maximum_pooling_trains_and_its_last_layer_has_its_gradient", "gradient of"),
]  # fmt: skip
