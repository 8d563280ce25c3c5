"""Faults that test_networks.py must catch."""

from . import Fault

FAULTS = [
    Fault("the published ResNet-17 with its first shortcut a layer later", "accelerated.modules.networks",
          "            target - 2, target, ", "            target - 2 if target > 2 else 1, target, ",
          "test_resnet_17_is_wired_as_published", "wiring"),
    Fault("a residual block without its skip", "accelerated.modules.networks",
          "self.bn2(self.conv2(h)) + self.downsample(x)", "self.bn2(self.conv2(h))",
          "test_a_residual_block_adds_what_comes_in", "skip"),
    Fault("a character transformer that sees what it is to guess", "accelerated.modules.transformers",
          "is_causal=self.causal", "is_causal=False",
          "test_scores_of_a_character_come_from_it_and_those_before", "causal"),
]  # fmt: skip
