"""Faults that test_aggregation.py must catch."""

from . import Fault

FAULTS = [
    Fault("ranges that all begin at the first layer", "accelerated.aggregation",
          "scores[first:].cumsum(dim=0, dtype=wide(scores.dtype))",
          "scores.cumsum(dim=0, dtype=wide(scores.dtype))[first:]",
          "test_best_range_is_that_of_a_double_loop", "hits of a range"),
    Fault("ranges without their last layer", "reference.aggregation",
          "scores[first : last + 1].sum(axis=0)", "scores[first:last].sum(axis=0)",
          "test_special_cases", "all layers"),
    Fault("the last of equal ranges", "accelerated.aggregation",
          "int(range_hits(scores, labels).argmax())",
          "len(scores) ** 2 - 1 - int(range_hits(scores, labels).flatten().flip(0).argmax())",
          "test_ties_by_hand", "== (0, 2)"),
    Fault("the earliest end of equal ranges", "reference.aggregation",
          "np.unravel_index(found.argmax(), found.shape)", "np.unravel_index(found.T.argmax(), found.shape)[::-1]",
          "test_ties_by_hand", "== (0, 2)"),
    Fault("weights that prefer large losses", "accelerated.aggregation",
          "(-losses).softmax(dim=0)", "losses.softmax(dim=0)",
          "test_twin", "loss_weights"),
    Fault("weights of the reference that prefer large losses", "reference.aggregation",
          "return softmax(-losses)", "return softmax(losses)",
          "test_weights_prefer_small_losses", "weights"),
]  # fmt: skip
