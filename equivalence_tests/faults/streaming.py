"""Faults that test_streaming.py must catch."""

from . import Fault

FAULTS = [
    Fault("other masks in the second sweep", "accelerated.rules.foton",
          "masked = self.each_layer(self.draw_masks(x, replay))",
          "masked = self.each_layer(self.draw_masks(x, self.generator))",
          "test_recomputed_updates_are_the_same_under_dropout", "same updates"),
    Fault("other masks in the second sweep of a target", "accelerated.rules.recomputing",
          "recomputed(self.each_layer(self.draw_masks(x, replay))",
          "recomputed(self.each_layer(self.draw_masks(x, self.generator))",
          "test_recomputed_updates_are_the_same_under_dropout", "same updates"),
    Fault("clean pass held by the stream", "accelerated.rules.foton",
          "shapes.append((number.expand(z.shape), number.expand(h.shape)))",
          "shapes.append((z, h))",
          "test_memory_does_not_grow_with_depth", "live bytes"),
    Fault("a layer's activations held with the next one's", "accelerated.foton",
          "        del a, delta  # not held with the next layer's\n", "",
          "test_memory_does_not_grow_with_depth", "live bytes"),
    Fault("both streams' activities held with the next layer's", "accelerated.forward_forward",
          "        del layer  # not held with the next one\n", "",
          "test_memory_does_not_grow_with_depth", "live bytes"),
    Fault("recomputed rows held", "accelerated.rules.recomputing",
          "        self.row = row = None\n", "        self.held = [*getattr(self, 'held', []), row]\n",
          "test_memory_does_not_grow_with_depth", "live bytes"),
    Fault("steps forgotten between recomputed layers", "accelerated.rules.recomputing",
          "activity(row.layer.outlet, row.h)", "activity(row.layer.outlet, row.a)",
          "test_recomputed_updates_of_images_are_the_same", "same updates"),
    Fault("micro-batches in full", "accelerated.rules.accumulation",
          "held.grad.add_(gradient, alpha=share)", "held.grad.add_(gradient)",
          "test_accumulated_micro_batches_are_one_batch", "mean gradient"),
]  # fmt: skip
