"""Faults that test_oracles.py must catch."""

from . import Fault

FAULTS = [
    Fault("smoothing not shared among the classes in the reference", "reference.losses",
          "+ label_smoothing / targets.shape[-1]", "+ label_smoothing",
          "test_smoothed_targets_are_pytorchs", "not close"),
    Fault("read-out of sums in the reference", "reference.forward_forward",
          "return error.T @ features / len(features)", "return error.T @ features",
          "test_a_read_out_is_softmax_regression", "the read-out"),
    Fault("activities of the wrong layer in the reference's second pass", "reference.pepita",
          "        yield h - h_modulated, z\n", "        yield h_modulated - h, z\n",
          "test_rules_of_a_dense_network_by_their_equations", "pepita"),
]  # fmt: skip
