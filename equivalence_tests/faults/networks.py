"""Faults that test_networks.py must catch."""

from . import Fault

FAULTS = [
    Fault("the published ResNet-17 with its first shortcut a layer later", "accelerated.modules.networks",
          "            target - 2, target, ", "            target - 2 if target > 2 else 1, target, ",
          "test_resnet_17_is_wired_as_published", "wiring"),
]  # fmt: skip
