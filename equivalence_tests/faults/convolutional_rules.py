"""Faults that test_convolutional_rules.py must catch."""

from . import Fault

FAULTS = [
    Fault("kernel's update before its turn through the parts", "accelerated.rules.units",
          "list(linear.bases), kernel)", "list(linear.bases), kernel.flip(2))",
          "test_gradients_are_the_references_through_the_parts", "mixing"),
    Fault("masks of pooled maps", "accelerated.rules.units",
          "found.append(h.shape[1:])", "found.append(activity(layer.outlet, h).shape[1:])",
          "test_dropout_drops_pixels_of_maps", "shapes of masks"),
    Fault("projection of images left out of the state", "accelerated.rules.foton",
          "None if found is None else", "None if True else",
          "test_a_projection_of_images_is_held_for_some_steps", "Error"),
    Fault("bases of kernels left to drift", "accelerated.rules.units",
          "(module, \"mixing\"), **bases}", "(module, \"mixing\")}",
          "test_training_keeps_every_part_orthogonal", "orthogonal kernel"),
]  # fmt: skip
