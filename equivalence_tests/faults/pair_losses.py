"""Faults that test_pair_losses.py must catch."""

from . import Fault

FAULTS = [
    Fault("positive stream pushed down", "accelerated.pair_losses",
          "-torch.sigmoid(-above)", "torch.sigmoid(-above)",
          "test_twin", "threshold.positive"),
    Fault("alpha lost from the slope", "reference.pair_losses",
          "-alpha * expit(u), alpha * expit(u)", "-expit(u), expit(u)",
          "test_slopes_are_those_of_the_equation", "slope of the positive stream"),
    Fault("softplus by its letter", "reference.pair_losses",
          "np.logaddexp(0, u), -alpha", "np.log(1 + np.exp(u)), -alpha",
          "test_far_tails", "softplus"),
    Fault("softplus with its tail cut off", "accelerated.pair_losses",
          "-logsigmoid(-u), -slope", "torch.nn.functional.softplus(u), -slope",
          "test_far_tails", "softplus"),
    Fault("triplet beta times too steep", "accelerated.pair_losses",
          "-logsigmoid(-u) / beta", "-logsigmoid(-u)",
          "test_twin", "smoothed_triplet.loss"),
    Fault("collaboration on one stream alone", "reference.pair_losses",
          "layer.negative + layer.prior_negative", "layer.negative",
          "test_collaboration_is_the_threshold_loss_of_a_sum", "loss"),
    Fault("penalty's slope without its sign", "accelerated.pair_losses",
          "penalty * layer.positive.sign()", "penalty",
          "test_twin", "two_thresholds with a penalty.positive"),
]  # fmt: skip
