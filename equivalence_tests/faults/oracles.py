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
    Fault("layers without their steps on the way to the scores in the reference", "reference.layers",
          "        h = activity(layer.steps, layer.value(z))\n        z = activity(layer.outlet, h)\n    return h",
          "        h = layer.value(z)\n        z = activity(layer.outlet, h)\n    return h",
          "test_scores_are_a_sequence_of_modules", "scores"),
    Fault("scores of a label without the layers that have learned least in the reference", "reference.forward_forward",
          "        found = list(layer_passes(layers, candidate))[first_layer:]\n        scores.append(sum(",
          "        found = list(layer_passes(layers, candidate))[first_layer + 1 :]\n        scores.append(sum(",
          "test_goodness_of_a_stack_of_pytorchs", "labels"),
    Fault("a shortcut of sums in the reference", "reference.local_classifiers",
          "return x + pooled if", "return x + shortcut.pool**2 * pooled if",
          "test_shortcuts_between_modules_of_pytorchs", "joined"),
    Fault("scores of what came before in the reference", "reference.local_classifiers",
          "local.score.value(p.h, local.parameters)", "local.score.value(p.a, local.parameters)",
          "test_shortcuts_between_modules_of_pytorchs", "layer_scores"),
    Fault("a state without the LSTM's c in the reference", "reference.recurrent",
          "else layer.cell.parts * layer.n for", "else layer.n for",
          "test_a_state_is_what_modules_of_pytorch_hand_on", "state_size"),
]  # fmt: skip
