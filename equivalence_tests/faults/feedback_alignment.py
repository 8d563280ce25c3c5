"""Faults that test_feedback_alignment.py must catch."""

from . import Fault

FAULTS = [
    Fault("B_1 kept", "accelerated.rules.feedback_alignment",
          "self._register(drawn[1:], first=1)", "self._register(drawn)",
          "test_feedback_alignment_keeps_no_matrix_that_nothing_goes_through", "matrices"),
    Fault("weights for random matrices", "accelerated.feedback_alignment",
          "return type(layer)(matrix, *others)", "return layer",
          "test_feedback_alignment", "feedback_alignment.updates"),
    Fault("signs where the error was asked for", "accelerated.direct_feedback_alignment",
          "torch.sign(error) if signs else error", "torch.sign(error)",
          "test_direct_feedback_alignment", "direct_feedback_alignment.updates"),
    Fault("error sent in place of the label", "accelerated.direct_random_target_projection",
          "feedback, targets)", "feedback, error)",
          "test_direct_random_target_projection", "target_projection.updates"),
    Fault("error sent in place of the label by both", "reference.direct_random_target_projection",
          "feedback, targets)", "feedback, error)",
          "test_target_projection_does_not_look_at_the_output", "looked at"),
    Fault("a centred label as it is", "accelerated.direct_random_target_projection",
          "return targets - targets.mean(dim=-1, keepdim=True)", "return targets",
          "test_direct_random_target_projection", "target_projection.updates"),
    Fault("less than the mean taken off by both", "reference.direct_random_target_projection",
          "targets - np.mean(targets, axis=1, keepdims=True)", "targets - np.mean(targets, axis=1, keepdims=True) / 2",
          "test_a_centred_label_is_minus_the_error_of_equal_scores", "updates from zeros"),
    Fault("a channel's row for some of its positions", "accelerated.direct_feedback_alignment",
          ".expand(h.shape)", ".expand(h.shape).triu()",
          "test_direct_feedback_alignment", "direct_feedback_alignment.updates"),
]  # fmt: skip
