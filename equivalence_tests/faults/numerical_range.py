"""Faults that test_numerical_range.py must catch."""

from . import Fault

FAULTS = [
    Fault("zeros divided by their largest in the reference", "reference.hardware",
          "    if largest == 0:\n        return v\n", "",
          "test_results", "quantised zeros"),
    Fault("one position of a thin network dropped", "accelerated.pepita",
          "        yield difference, z if", "        yield difference * (difference.shape[1] > 1), z if",
          "test_networks_of_extreme_sizes", "pepita"),
]  # fmt: skip
