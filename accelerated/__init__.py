"""Forward-only learning on PyTorch tensors: the twins of the reference, and what training needs around them.

The modules at this level mirror `prograde.reference`, file by file and name by name. `rules` has the learning rules as
`torch.nn.Module`s that take the place of `loss.backward()`; `training` has `fit`, data sets, checkpoints and
scikit-learn's estimators; `parallel` several processes; `modules` networks. README.md begins with an example.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        activations,
        adaptive_pooling,
        aggregation,
        attention,
        backprop,
        blocks,
        convolution,
        cumulative_goodness,
        difference_target_propagation,
        direct_feedback_alignment,
        direct_random_target_projection,
        embedding,
        feedback_alignment,
        forward_forward,
        foton,
        ftp,
        goodness,
        hardware,
        hybrid_dynamic_temperature,
        layers,
        learned_scores,
        local_classifiers,
        losses,
        negatives,
        normalisation_layers,
        normalisations,
        orthogonality,
        pair_losses,
        pepita,
        pooling,
        recurrent,
        score_losses,
        scores,
    )

__all__ = [
    "activations",
    "adaptive_pooling",
    "aggregation",
    "attention",
    "backprop",
    "blocks",
    "convolution",
    "cumulative_goodness",
    "difference_target_propagation",
    "direct_feedback_alignment",
    "direct_random_target_projection",
    "embedding",
    "feedback_alignment",
    "forward_forward",
    "foton",
    "ftp",
    "goodness",
    "hardware",
    "hybrid_dynamic_temperature",
    "layers",
    "learned_scores",
    "local_classifiers",
    "losses",
    "negatives",
    "normalisation_layers",
    "normalisations",
    "orthogonality",
    "pair_losses",
    "pepita",
    "pooling",
    "recurrent",
    "score_losses",
    "scores",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a module when it is first asked for, so that a command can answer Ctrl-C while PyTorch loads."""
        if name not in __all__:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
