"""Faults that test_pepita.py must catch."""

from . import Fault

FAULTS = [
    Fault("difference of the wrong sign", "accelerated.pepita",
          "differences(layers, clean, -error, projection)", "differences(layers, clean, error, projection)",
          "test_updates", "pepita.updates[0]"),
    Fault("clean for modulated presynaptic factor", "accelerated.pepita",
          "yield difference, z if presynaptic == \"modulated\" else clean", "yield difference, clean",
          "test_updates", "pepita.updates[0]"),
    Fault("presynaptic forms mixed up in the reference", "reference.pepita",
          "inputs = modulated.inputs if presynaptic == \"modulated\" else clean.inputs", "inputs = clean.inputs",
          "test_modulated_and_clean_forms_differ", "presynaptic forms"),
    Fault("output error of the wrong pass", "accelerated.pepita",
          "    if output_gradient is not None:\n", "    if output_gradient is None and False:\n",
          "test_updates", "pepita.updates"),
    Fault("sign of F in the reference's modulated input", "reference.pepita",
          "clean.inputs[0] + np.tensordot", "clean.inputs[0] - np.tensordot",
          "test_small_modulation_is_feedback_alignment_with_a_moving_matrix", "feedback alignment"),
    Fault("modulated activation not carried to the next layer", "accelerated.pepita",
          "clean.activities[index] - difference)", "clean.activities[index])",
          "test_updates", "pepita.updates[1]"),
]  # fmt: skip
