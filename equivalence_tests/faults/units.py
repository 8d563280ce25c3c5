"""Faults that test_units.py must catch."""

from . import Fault

FAULTS = [
    Fault("GELU of a mask's scale", "accelerated.rules.units",
          "UNSCALED = (tanh, gelu, silu, maxmin)", "UNSCALED = (tanh, maxmin)",
          "test_how_layers_are_read", "[Linear Dropout GELU]"),
    Fault("half of the padding of a valid convolution", "accelerated.rules.units",
          'if module.padding == "same" else (0, 0)', "",
          "test_convolutions_are_padded_as_their_modules", "The values for attribute 'shape' do not match"),
]  # fmt: skip
