"""Faults that test_score_heads.py must catch."""

from . import Fault

FAULTS = [
    Fault("scores and gradient of a head apart", "accelerated.rules.local.score_heads",
          "credit(e / len(h))", "score.credit(h, arrays, e / len(h))",
          "test_what_a_head_makes_of_activities_is_made_once", "aten"),
    Fault("a credit of one's own passed over", "accelerated.scores",
          "isinstance(both, Sharing) and self.credit == both.credit", "isinstance(both, Sharing)",
          "test_a_pullback_is_of_the_scores_own_functions", "credit"),
    Fault("channels that do not cool", "accelerated.rules.local.classifiers",
          "                head.end_epoch()\n", "                pass\n",
          "test_channels_cool_and_are_regularised_with_the_epochs", "epochs counted"),
    Fault("orthogonality at full weight at once", "accelerated.rules.local.score_heads",
          "(epochs / max(1, self.ramp)).clamp(max=1)", "(epochs / max(1, self.ramp)).clamp(min=1, max=1)",
          "test_channels_cool_and_are_regularised_with_the_epochs", "grown"),
    Fault("a gradient written over", "accelerated.rules.local.score_heads",
          "activities = activities.clone()", "activities = activities.detach()",
          "test_gradients_of_ones_own_score_are_not_written_over", "all of the gradient"),
    Fault("cells counted from a dense layer", "accelerated.rules.local.score_heads",
          "[b for b in units if b.has_maps][-1:]", "units[-1:]",
          "test_cells_are_fewer_the_more_channels_a_convolution_has", "cells of convolutions"),
    Fault("a bound of temperatures that stays", "accelerated.rules.local.methods",
          "lowest=lowest, highest=highest, generator", "lowest=lowest, generator",
          "test_what_a_rule_is_given_is_its_heads", "bounds of temperatures"),
    Fault("channels dealt out in turn", "accelerated.rules.local.score_heads",
          "torch.arange(unit.width, device=logits.device) * num_classes // unit.width",
          "torch.arange(unit.width, device=logits.device) % num_classes",
          "test_static_and_frozen_assignments", "contiguous groups"),
    Fault("a penalty that nothing learns from", "accelerated.rules.local.score_heads",
          "tuple(g + p for g, p in zip(gradients, of_penalty, strict=True))", "gradients",
          "test_the_credit_of_a_head_is_its_losses_gradient", "Tensor-likes are not close"),
]  # fmt: skip
