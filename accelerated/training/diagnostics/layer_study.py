"""How much local classifiers add to one another: the diagnostics of DTG-FF, arXiv 2606.06539.

For any rule that scores by layer: `rule.layer_outputs(x)` gives, of one pass, the activities that layers score, one
tensor (batch, ...) a layer, their scores (L, batch, K) and the aggregated ones (batch, K). Nothing here depends on what
the scores are. What is measured is computed in float32 at least.
"""

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..._arrays import widened
from ...rules import Rule
from ..data import Split
from ..errors import UserError
from .alignment import undisturbed
from .information import information, linear_probe, nearest_neighbours

STUDY_BATCH = 1000


class ScoresByLayer(Protocol):
    """What is asked of a rule."""

    def layer_outputs(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]: ...


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

    `accuracy` of the aggregation; `oracle`, the share of samples that any layer has right, and its `gap` to that;
    `accuracies` of each layer alone; `pairwise`, on what share two layers disagree, and the mean of it, `disagreement`.
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
    """A measure for `fit`: accuracies as in `layer_study`, and bits about the label in each layer's scalar goodness.

    `information` is by nearest neighbours. `permuted` is the same estimate after a permutation of the labels, where the
    truth is 0. First layer to last. Generators and modes stay as they were. Shapes and errors as for
    `rule.assign_credit`; UserError for a rule that does not score by layer.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> x, y = torch.eye(2).repeat(5, 1), torch.tensor([0, 1] * 5)
    >>> history = fit(rule, (x, y), epochs=1, measure=layer_summary)
    >>> [len(history.epochs[0].measured[name]) for name in ("accuracies", "information")]  # one number a layer
    [2, 2]
    """
    features, scores, aggregated = _outputs(rule, x)
    found = together(scores, aggregated, y)
    goodness = [scalar_goodness(layer).numpy(force=True) for layer in features]
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

    `accuracy` of the rule; `oracle`, the share of samples that any layer has right, and its `gap` to that; `accuracies`
    of each layer alone; `pairwise`, on what share two layers disagree, and the mean of it, `disagreement`; and
    `layers`, a dict for each: under `goodness` the bits in its scalar goodness, by every estimator of `information`;
    under `vector` and `features` the `linear_probe` of its goodness vector and of its
    activities, averaged over positions; its bound is on samples that it has not seen, and says itself how sure it is.
    A goodness vector has as many parts a side as the last layer has times the channels, so that all are about as long:
    ASGE's patches, and DTG-FF's lengths. Raises UserError for a rule that does not score by layer, ValueError for fewer
    than ten samples.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> study = layer_study(rule, Split(torch.eye(2).repeat(5, 1), torch.tensor([0, 1] * 5)))
    >>> list(study["layers"][0]), len(study["accuracies"])
    (['goodness', 'vector', 'features'], 2)
    """
    scores, aggregated, seen = [], [], []
    for x in split.images.split(STUDY_BATCH):
        features, by_layer, whole = _outputs(rule, x)
        scores.append(by_layer)
        aggregated.append(whole)
        sides = [max(1, features[-1].shape[1] // layer.shape[1]) for layer in features]
        seen.append(
            [
                (scalar_goodness(layer), goodness_vector(layer, side), pooled_features(layer))
                for layer, side in zip(features, sides, strict=True)
            ]
        )
    labels, num_classes = split.labels, aggregated[0].shape[1]
    generator = np.random.default_rng(seed)
    found = together(torch.cat(scores, dim=1), torch.cat(aggregated), labels)
    found["layers"] = []
    for parts in zip(*seen, strict=True):
        goodness, *vectors = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        estimates = information(goodness.numpy(force=True), labels.numpy(force=True), generator)
        layer: dict[str, Any] = {"goodness": {name: estimate._asdict() for name, estimate in estimates.items()}}
        for name, values in zip(("vector", "features"), vectors, strict=True):
            layer[name] = linear_probe(values, labels, num_classes, torch.Generator().manual_seed(seed))._asdict()
        found["layers"].append(layer)
    return found


def _outputs(rule: Rule, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of one pass, in evaluation mode: activities, in float32 at least, scores by layer, and the aggregated ones."""
    if not hasattr(rule, "layer_outputs"):
        raise UserError(f"rule: a {type(rule).__name__}, whose layers do not guess labels; expected LocalClassifiers")
    with undisturbed(rule):
        features, scores, aggregated = cast(ScoresByLayer, rule).layer_outputs(x)
    return [widened(layer) for layer in features], scores, aggregated
