"""Faults that test_losses.py must catch."""

from . import Fault

FAULTS = [
    Fault("temperature lost from the error", "accelerated.losses",
          "error if temperature == 1 else error / temperature", "error",
          "test_cross_entropy", "cross_entropy_gradient"),
    Fault("temperature lost from the reference's error", "reference.losses",
          "(softmax(scores / temperature, axis=1) - targets) / temperature",
          "softmax(scores / temperature, axis=1) - targets",
          "test_error_is_the_gradient_of_the_loss", "class 0"),
    Fault("label smoothing forgotten in the error", "accelerated.losses",
          "    if label_smoothing:\n", "    if False:\n",
          "test_cross_entropy", "cross_entropy_gradient"),
    Fault("squared error without its half", "accelerated.losses",
          "0.5 * squared_error_gradient", "squared_error_gradient",
          "test_squared_error", "squared_error"),
]  # fmt: skip
