"""The specification: forward-only learning rules as explicit math on NumPy arrays.

One module per subject; each opens with its source, its equations and a table of symbols, and its functions follow in
the order of the equations. Nothing here imports torch.
"""

from . import (
    activations,
    backprop,
    backprop_through_time,
    convolution,
    convolutional_foton,
    convolutional_ftp,
    convolutional_network,
    cumulative_goodness,
    difference_target_propagation,
    direct_feedback_alignment,
    direct_random_target_projection,
    feedback_alignment,
    forward_forward,
    foton,
    ftp,
    goodness,
    hardware,
    losses,
    network,
    orthogonality,
    pepita,
    recurrent,
    recurrent_ftp,
    stream_losses,
)

__all__ = [
    "activations",
    "backprop",
    "backprop_through_time",
    "convolution",
    "convolutional_foton",
    "convolutional_ftp",
    "convolutional_network",
    "cumulative_goodness",
    "difference_target_propagation",
    "direct_feedback_alignment",
    "direct_random_target_projection",
    "feedback_alignment",
    "forward_forward",
    "foton",
    "ftp",
    "goodness",
    "hardware",
    "losses",
    "network",
    "orthogonality",
    "pepita",
    "recurrent",
    "recurrent_ftp",
    "stream_losses",
]
