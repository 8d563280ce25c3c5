"""Forward-only learning on PyTorch tensors: the twins of the reference, and what training needs around them.

The modules at this level mirror `prograde.reference`, file by file and name by name. `rules` has the learning rules as
`torch.nn.Module`s that take the place of `loss.backward()`.
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
