"""Faults that test_streaming.py must catch."""

from . import Fault

FAULTS = [
    Fault("other masks in the second sweep", "accelerated.rules.foton",
          "masked = self.each_layer(self.draw_masks(x, replay))",
          "masked = self.each_layer(self.draw_masks(x, self.generator))",
          "test_recomputed_updates_are_the_same_under_dropout", "same updates"),
    Fault("clean pass held by the stream", "accelerated.rules.foton",
          "shapes.append((number.expand(1, *z.shape[1:]), number.expand(1, *h.shape[1:])))",
          "shapes.append((z, h))",
          "test_memory_does_not_grow_with_depth", "live bytes"),
]  # fmt: skip
