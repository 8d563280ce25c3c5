"""What layers that all guess the label add to one another: the diagnostics of DTG-FF, arXiv 2606.06539.

For any rule that scores by layer: `rule.layer_scores(x)` gives (L, batch, K), `rule.layer_features(x)` the activities
that they are made from, one tensor (batch, ...) a layer. Nothing here depends on what the scores are.
"""

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..rules import Rule
from .alignment import undisturbed
from .data import Split
from .errors import UserError
from .information import information, linear_probe, nearest_neighbours

STUDY_BATCH = 1000


class ScoresByLayer(Protocol):
    """What is asked of a rule."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def layer_scores(self, x: Tensor) -> Tensor: ...

    def layer_features(self, x: Tensor) -> list[Tensor]: ...


def layer_accuracies(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of samples that each layer alone guesses: scores (L, N, K) and labels (N,) to (L,), float64."""
    return (scores.argmax(dim=2) == labels).double().mean(dim=1)


def disagreement(scores: Tensor) -> Tensor:
    """The share of samples on which two layers guess differently: (L, N, K) to (L, L), symmetric, 0 on the diagonal."""
    guesses = scores.argmax(dim=2)
    return torch.stack([(guesses != own).double().mean(dim=1) for own in guesses])


def mean_disagreement(pairs: Tensor) -> Tensor:
    """Over the L (L - 1) / 2 pairs of different layers of `disagreement`, (L, L); 0 for one layer."""
    layers = len(pairs)
    return pairs.sum() / max(1, layers * (layers - 1))


def oracle_accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of samples that any layer guesses: what choosing among the layers could reach at most, a scalar."""
    return (scores.argmax(dim=2) == labels).any(dim=0).double().mean()


def scalar_goodness(features: Tensor) -> Tensor:
    """Mean of the squared activities of a layer, (N, ...) to (N,)."""
    return features.flatten(1).square().mean(dim=1)


def goodness_vector(features: Tensor, side: int) -> Tensor:
    """Squared activities: (N, n) as they are; (N, C, H, W) averaged in side x side parts of the image, flattened.

    The parts are those of `adaptive_avg_pool2d`, at most as many as there are pixels.
    """
    squares = features.square()
    if features.dim() == 2:
        return squares
    height, width = features.shape[2:]
    return functional.adaptive_avg_pool2d(squares, (min(side, height), min(side, width))).flatten(1)


def pooled_features(features: Tensor) -> Tensor:
    """Activities as they are, (N, n), or their mean over positions, (N, C, H, W) to (N, C)."""
    return features if features.dim() == 2 else features.mean(dim=(2, 3))


def together(scores: Tensor, aggregated: Tensor, labels: Tensor) -> dict[str, Any]:
    """What scores (L, N, K) and their aggregation (N, K) come to: plain numbers, by name.

    `accuracy` of the aggregation, `oracle` and its `gap` to it, `disagreement` and `pairwise`, its matrix, and the
    layers' `accuracies`.
    """
    pairs = disagreement(scores)
    accuracy = (aggregated.argmax(dim=1) == labels).double().mean()
    oracle = oracle_accuracy(scores, labels)
    mean = mean_disagreement(pairs)
    values = {"accuracy": accuracy, "oracle": oracle, "gap": oracle - accuracy, "disagreement": mean}
    return {
        **dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)),
        "accuracies": layer_accuracies(scores, labels).tolist(),
        "pairwise": pairs.tolist(),
    }


@torch.no_grad()
def layer_summary(rule: Rule, x: Tensor, y: Tensor) -> dict[str, Any]:
    """A measure for `fit`: what is in `together`, and the bits about the label in each layer's scalar goodness.

    `information` are those by nearest neighbours, `permuted` what they find after a permutation of the labels, which
    tell nothing then: first layer to last. Generators and modes stay as they were. Shapes and errors as for
    `rule.assign_credit`; UserError for a rule that does not score by layer.
    """
    layers = _scoring(rule)
    with undisturbed(rule, x):
        found = together(layers.layer_scores(x), layers(x), y)
        goodness = [scalar_goodness(features).numpy(force=True) for features in layers.layer_features(x)]
    labels = y.numpy(force=True)
    permuted = np.random.default_rng(0).permutation(labels)
    return {
        **found,
        "information": [nearest_neighbours(values, labels) for values in goodness],
        "permuted": [nearest_neighbours(values, permuted) for values in goodness],
    }


@torch.no_grad()
def layer_study(rule: Rule, split: Split, *, seed: int = 0) -> dict[str, Any]:
    """The whole study on a part of the data: plain numbers, for JSON.

    What is in `together`, and `layers`, a dict for each: under `goodness` the bits in its scalar goodness, by every
    estimator of `information`; under `vector` and `features` the `linear_probe` of its goodness vector and of its
    activities, averaged over positions, beside the bits that the same probe finds under permuted labels. A goodness
    vector has as many parts a side as the last layer has times the channels, so that all are about as long: ASGE's
    patches, and DTG-FF's lengths. UserError for a rule that does not score by layer.
    """
    layers = _scoring(rule)
    scores, aggregated, seen = [], [], []
    for x in split.images.split(STUDY_BATCH):
        with undisturbed(rule, x):
            scores.append(layers.layer_scores(x))
            aggregated.append(layers(x))
            features = layers.layer_features(x)
        sides = [max(1, features[-1].shape[1] // layer.shape[1]) for layer in features]
        seen.append(
            [
                (scalar_goodness(layer), goodness_vector(layer, side), pooled_features(layer))
                for layer, side in zip(features, sides, strict=True)
            ]
        )
    labels, num_classes = split.labels, aggregated[0].shape[1]
    generator = np.random.default_rng(seed)
    permuted = labels[torch.from_numpy(generator.permutation(len(labels))).to(labels.device)]
    found = together(torch.cat(scores, dim=1), torch.cat(aggregated), labels)
    found["layers"] = []
    for parts in zip(*seen, strict=True):
        goodness, *vectors = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        estimates = information(goodness.numpy(force=True), labels.numpy(force=True), generator)
        layer: dict[str, Any] = {"goodness": {name: estimate._asdict() for name, estimate in estimates.items()}}
        for name, values in zip(("vector", "features"), vectors, strict=True):
            told, nothing = (
                linear_probe(values, y, num_classes, torch.Generator().manual_seed(seed)) for y in (labels, permuted)
            )
            layer[name] = {**told._asdict(), "permuted": nothing.bits}
        found["layers"].append(layer)
    return found


def _scoring(rule: Rule) -> ScoresByLayer:
    if not (hasattr(rule, "layer_scores") and hasattr(rule, "layer_features")):
        raise UserError(f"rule: a {type(rule).__name__}, whose layers do not guess labels; expected LocalClassifiers")
    return cast(ScoresByLayer, rule)
