"""Wrong arguments: each public function of both sides refuses them with the same words.

A row is a call that is wrong in one argument, and the beginning of what is said of it. NaN in arrays is passed on,
unless a comparison would turn it into a number.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from prograde import reference
from prograde.equivalence_tests.sides import MODULES, REFUSALS, Convolution, Dense, Images, Padded, Side, TwinSide

pytestmark = pytest.mark.smoke


class Lazy(NamedTuple):
    """What only a side can make: a network, a forward pass, a generator."""

    make: Callable[[Side], Any]


class Row(NamedTuple):
    """A call of `module.function`, or of what it makes (or of that one's attribute) with `then`; and what is said."""

    name: str
    said: str
    arguments: tuple[Any, ...]
    settings: dict[str, Any]
    attribute: str
    then: tuple[Any, ...] | None


def row(
    name: str, said: str, *arguments: Any, attribute: str = "", then: tuple[Any, ...] | None = None, **settings: Any
) -> Row:
    return Row(name, said, arguments, settings, attribute, then)


NAN = math.nan
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3))
LABELS = np.array([0, 1, 1, 0])
SCORES = RNG.standard_normal((4, 2))
IMAGES = RNG.standard_normal((4, 2, 4, 4))
STREAM = np.ones(4)
SEQUENCES = RNG.standard_normal((4, 3, 2))
TOKENS = np.array([[0, 1, 1]] * 4)
MIXING = np.eye(4)
BASES = (np.eye(4)[:, :2], np.eye(4)[:, :2])
KERNEL = RNG.standard_normal((4, 2, 3, 3))
LAYER_SCORES = RNG.standard_normal((3, 4, 2))
FEEDBACK = (np.ones((5, 2)), np.ones((4, 2)))
DENSE = Dense(
    (RNG.standard_normal((5, 3)), RNG.standard_normal((4, 5)), RNG.standard_normal((2, 4))),
    (np.zeros(5), np.zeros(4), np.zeros(2)),
    ("relu", "tanh", "identity"),
)
INVERSE = Dense((np.ones((5, 4)),), (np.zeros(5),), ("tanh",))
HEAD = Dense((RNG.standard_normal((2, 16)),), (np.zeros(2),), ("identity",))


def chain_of(dense: Dense) -> Lazy:
    return Lazy(lambda s: s.chain(s.operands(dense)))


def first_weight(weight: Any) -> Lazy:
    return chain_of(DENSE._replace(weights=(weight, *DENSE.weights[1:])))


def first_bias(bias: Any) -> Lazy:
    return chain_of(DENSE._replace(biases=(bias, None, None)))


def masked_chain(mask: Any) -> Lazy:
    return Lazy(lambda s: s.chain(s.operands(DENSE), [s.operands(mask), None, None]))


def rnn(rows: int = 3, bias: Any = None, layers: int = 1) -> Lazy:
    """A stack of Elman's layers of 3 units on 2 inputs, W_x with that bias, W_h with so many rows."""

    def stack(side: Side) -> Any:
        of_input, of_state = (
            side.layers.Dense(*side.operands(p)) for p in ((np.eye(3)[:, :2], bias), (np.eye(3)[:rows], None))
        )
        return [side.recurrent.RecurrentLayer(side.recurrent.elman(), of_input, of_state)] * layers

    return Lazy(stack)


def steps(side: Side) -> Any:
    return side.recurrent.unrolled(rnn().make(side), side.operands(SEQUENCES))


def unrolled(side: Side) -> Any:
    return (*steps(side), side.layers.Dense(side.operands(np.ones((2, 3))), None))


def of_tokens(side: Side) -> Any:
    """A stack on tokens: an embedding in 2 numbers, and the cell of 3 units."""
    return [side.embedding.Embedding(side.operands(np.ones((2, 2)))), *rnn().make(side)]


def wide_tokens(side: Side) -> Any:
    return [side.embedding.Embedding(side.operands(np.ones((2, 4)))), *rnn().make(side)]


def per_step(side: Side) -> Any:
    layers = (*side.recurrent.unrolled(of_tokens(side), side.operands(TOKENS)), unrolled(side)[-1])
    return layers, side.recurrent.forward_per_step(layers, side.operands(np.zeros((4, 5))))


def circular(bias: Any) -> Lazy:
    images = Images((Convolution(KERNEL, bias, "tanh", 1, 2),), HEAD)
    return Lazy(lambda s: s.chain(s.operands(images)))


def rotation(weight: Any) -> Lazy:
    """A rotation whose branch has that weight."""
    return Lazy(lambda s: (s.layers.Rotation(s.layers.Dense(s.operands(weight), None), 0.1),))


def padded(bias: Any) -> Lazy:
    images = Images((Padded(KERNEL, bias, "tanh", (1, 1), (1, 1), 2),), HEAD)
    return Lazy(lambda s: s.chain(s.operands(images)))


def goodness(**changed: Any) -> Lazy:
    names = ("positive", "negative", "prior_positive", "prior_negative")
    arrays = {name: changed.get(name, STREAM) for name in names}
    return Lazy(lambda s: s.pair_losses.LayerGoodness(1, 3, 1.0, **s.operands(arrays)))


def local_layers(side: Side) -> Any:
    module = side.local_classifiers
    layer = side.layers.Dense(*side.operands((np.eye(4)[:, :3], np.zeros(4))), (side.activations.relu,))
    return (module.LocalLayer(layer, side.scores.group_mean(2)),)


def hybrid(theta: int = 2, read: int = 1) -> Lazy:
    """Parameters of the hybrid of two layers, with so many thresholds and scales."""
    ones = np.ones(5)
    arrays = (np.ones(2), np.ones(theta), (ones,) * read, (ones,), np.ones((2, 5)), np.ones(2))
    return Lazy(lambda s: s.hybrid_dynamic_temperature.Parameters(*s.operands(arrays)))


def normalised(step: str, gain: Any, bias: Any = None, **settings: Any) -> Lazy:
    """A chain of one normalisation."""

    def make(side: Side) -> Any:
        module = side.normalisation_layers
        found = getattr(module, step)(**side.operands(settings))
        return (module.NormalisationLayer(found, *side.operands((gain, bias))),)

    return Lazy(make)


def residual(rows: int, columns: int = 3) -> Lazy:
    """A chain of one dense layer with a shortcut around it."""
    return Lazy(lambda s: (s.blocks.Residual((s.layers.Dense(s.operands(np.ones((rows, columns))), None),)),))


def attending(*shapes: tuple[int, ...], heads: int = 1) -> Lazy:
    """A chain of one attention, of parameters of these shapes."""
    parameters = tuple(np.ones(shape) for shape in shapes)
    return Lazy(lambda s: (s.attention.Attention(*s.operands(parameters), heads=heads),))


def embedding(positions: Any = None, rows: int = 4) -> Lazy:
    """A chain of one embedding of so many tokens in three units."""
    return Lazy(lambda s: (s.embedding.Embedding(*s.operands((np.ones((rows, 3)), positions))),))


CHAIN, INVERSE_CHAIN = chain_of(DENSE), chain_of(INVERSE)
CHAIN_PASS = Lazy(lambda s: s.layers.forward(CHAIN.make(s), s.operands(X)))
MAPS = padded(None)
MAPS_PASS = Lazy(lambda s: s.layers.forward(MAPS.make(s), s.operands(IMAGES)))
FIRST, HIDDEN = Lazy(lambda s: CHAIN.make(s)[:1]), Lazy(lambda s: CHAIN.make(s)[:2])
GOODNESS, LOCAL, STEPS = goodness(), Lazy(local_layers), Lazy(unrolled)
PER_STEP, PASS_PER_STEP = Lazy(lambda s: per_step(s)[0]), Lazy(lambda s: per_step(s)[1])
SUM_OF_SQUARES = Lazy(lambda s: s.goodness.sum_of_squares)
CROSS_ENTROPY = Lazy(lambda s: s.score_losses.cross_entropy())
CROSSBAR = Lazy(lambda s: s.hardware.Crossbar())
GENERATOR = Lazy(lambda s: None if isinstance(s, TwinSide) and s.takes_tensors else np.random.default_rng(0))
LABEL = Lazy(lambda s: None)
"""Where `of_labels` puts its labels."""

TEXT = np.ones((2, 3, 4))
ATTENTION = ((12, 4), (12,), (4, 4), (4,))
NORMS = ("instance_norm", "channel_norm", "layer_norm", "batch_norm", "rms_norm", "unit_sphere")
COLUMN = "labels: shape (4, 1), expected (batch,); labels.squeeze(1) has it"
FEW = "labels: 3, expected 4, one for each sample"
OUTSIDE = "labels: found -100..1, expected 0..1"
EMPTY = "x: shape (0, 3), expected (batch, n_0), at least one of each"
WRONG_LABELS = {COLUMN: LABELS[:, None], FEW: LABELS[:3], OUTSIDE: np.array([0, 1, -100, 1])}
BAD = {
    "positive": ((NAN, 0.0, -1.0, math.inf), "expected a positive number"),
    "not negative": ((NAN, -1.0, math.inf), "expected 0 or more, a finite number"),
    "finite": ((NAN, math.inf), "expected a finite number"),
    "rate": ((NAN, -0.1, 1.0), "expected 0 or more and less than 1"),
    "count": ((0, 1.5), "expected 1 or more, a whole number"),
}
"""Values out of range, by what a setting has to be."""


def of_labels(name: str, *arguments: Any, then: tuple[Any, ...] | None = None) -> Iterator[Row]:
    """Labels of another shape, too few, and out of range, in the place of LABEL."""

    def put(operands: tuple[Any, ...], labels: Any) -> tuple[Any, ...]:
        return tuple(labels if operand is LABEL else operand for operand in operands)

    for said, labels in WRONG_LABELS.items():
        yield row(name, said, *put(arguments, labels), then=then and put(then, labels))


def of_updates(name: str, *arguments: Any) -> Iterator[Row]:
    """The same through all of an algorithm for dense networks, and batches of no samples or of no axis."""
    yield from of_labels(name, *arguments, X, LABEL)
    yield row(name, EMPTY, *arguments, X[:0], LABELS[:0])
    yield row(name, "x: shape (4,), expected (batch, n_0)", *arguments, X[:, 0], LABELS)


def of_chains(name: str, *arguments: Any) -> Iterator[Row]:
    """The same through all of an algorithm over layers."""
    yield from of_labels(name, *arguments, X, LABEL)
    yield row(name, "layers[0]: z: shape (0, 3), expected (batch, ..., n)", *arguments, X[:0], LABELS[:0])
    yield row(name, "layers[0]: z: shape (4,), expected (batch, ..., n)", *arguments, X[:, 0], LABELS)


def of_numbers(name: str, **kinds: str) -> Iterator[Row]:
    """Each setting that is named out of range."""
    for setting, kind in kinds.items():
        values, expected = BAD[kind]
        for value in values:
            yield row(name, f"{setting}: {value}, {expected}", **{setting: value})


ROWS: list[Row] = [
    *of_numbers("activations.leaky_relu", negative_slope="finite"),
    # Losses on scores
    row("losses.one_hot", COLUMN, LABELS[:, None], 2),
    row("losses.one_hot", OUTSIDE, WRONG_LABELS[OUTSIDE], 2),
    row("losses.one_hot", "num_classes: 3.0, expected 1 or more, a whole", LABELS, 3.0),
    row("losses.one_hot", "num_classes: ", LABELS, np.float32(2.5)),
    row("losses.one_hot", "num_classes: True, expected 1 or more, a whole", LABELS, True),
    row("losses.one_hot", "labels: dtype ", LABELS + 0.0, 3),
    row("losses.one_hot", "label_smoothing: 1.0, expected 0 or more and", LABELS, 3, 1.0),
    *of_labels("losses.cross_entropy", SCORES, LABEL),
    row("losses.cross_entropy", "scores: shape (0, 2), expected (batch, K)", SCORES[:0], LABELS[:0]),
    row("losses.cross_entropy", "temperature: 0.0, expected a positive", SCORES, LABELS, 0.0),
    *of_labels("losses.cross_entropy_gradient", SCORES, LABEL),
    row("losses.cross_entropy_gradient", "temperature: nan, expected a positive", SCORES, LABELS, NAN),
    row("losses.cross_entropy_gradient", "label_smoothing: nan", SCORES, LABELS, 1.0, NAN),
    *of_labels("losses.squared_error", SCORES, LABEL),
    *of_labels("losses.squared_error_gradient", SCORES, LABEL),
    row("losses.squared_error_gradient", "targets: shape (4, 1), expected (4, 2)", SCORES, SCORES[:, :1]),
    row("losses.squared_error_gradient", "scores: shape (4,), expected (batch, K)", STREAM, SCORES),
    row("losses.cross_entropy", "class_weight: shape (3,), expected (2,)", SCORES, LABELS, class_weight=np.ones(3)),
    row("losses.cross_entropy", "class_weight: -1.0 among them", SCORES, LABELS, class_weight=np.array([1.0, -1.0])),
    row("losses.cross_entropy_gradient", "sample_weight: -1.0 among", SCORES, LABELS, sample_weight=-STREAM),
    row("losses.cross_entropy_gradient", "sample_weight: shape (1,)", SCORES, LABELS, sample_weight=STREAM[:1]),
    row("losses.cross_entropy", OUTSIDE, SCORES, WRONG_LABELS[OUTSIDE], ignore_index=-1),
    row("losses.cross_entropy", "targets: shape (4, 3), expected (4, 2)", SCORES, X),
    row("losses.cross_entropy_gradient", "labels: shape (4,), expected (4, 1)", SCORES[:, None], LABELS),
    *of_labels("losses.counted", SCORES, LABEL),
    row("losses.counted", "targets: shape (4, 1), expected (4, 2)", SCORES, SCORES[:, :1]),
    *(
        wrong
        for name in ("absolute_error", "binary_cross_entropy", "huber")
        for function in (f"losses.{name}", f"losses.{name}_gradient")
        for wrong in (
            row(function, "targets: shape (4,), expected (4, 2)", SCORES, STREAM),
            row(function, "targets: dtype ", SCORES, LABELS),
            row(function, "scores: shape (0, 2), expected (batch, K)", SCORES[:0], SCORES[:0]),
            row(function, "sample_weight: shape (4, 1), expected (4,)", SCORES, SCORES, sample_weight=SCORES[:, :1]),
        )
    ),
    *(
        wrong
        for function in ("losses.binary_cross_entropy", "losses.binary_cross_entropy_gradient")
        for wrong in (
            row(function, "class_weight: shape (3,), expected (2,)", SCORES, SCORES, class_weight=np.ones(3)),
            row(function, "positive_weight: -1.0 among them", SCORES, SCORES, positive_weight=-np.ones(2)),
        )
    ),
    row("losses.huber", "delta: 0.0, expected a positive number", SCORES, SCORES, 0.0),
    row("losses.huber_gradient", "delta: nan, expected a positive number", SCORES, SCORES, NAN),
    row("losses.squared_error", "sample_weight: shape (1,)", SCORES, LABELS, sample_weight=STREAM[:1]),
    *of_labels("score_losses.cross_entropy", then=(SCORES, LABEL)),
    *of_numbers("score_losses.cross_entropy", label_smoothing="rate", temperature="positive"),
    *of_labels("score_losses.positive_versus_negative", then=(SCORES, LABEL)),
    *of_numbers("score_losses.positive_versus_negative", threshold="finite"),
    *of_labels("score_losses.mixed", then=(SCORES, LABEL)),
    *of_numbers("score_losses.mixed", threshold="finite"),
    row("score_losses.mixed", "share: 1.5, expected 0..1", 1.5),
    row("score_losses.mixed", "share: nan, expected 0..1", NAN),
    *of_labels("score_losses.cosine_margin", then=(SCORES, LABEL)),
    *of_numbers("score_losses.cosine_margin", scale="positive", margin="finite"),
    *of_labels("score_losses.smooth_margin", then=(SCORES, LABEL)),
    *of_numbers("score_losses.smooth_margin", beta="positive", margin="finite"),
    # Losses on two streams
    *of_numbers("pair_losses.threshold", threshold="finite"),
    row("pair_losses.threshold", "negative: shape (4, 1), expected (4,)", then=(goodness(negative=STREAM[:, None]),)),
    row("pair_losses.threshold", "positive: shape (0,), expected (batch", then=(goodness(positive=STREAM[:0]),)),
    *of_numbers("pair_losses.symba", alpha="positive"),
    row("pair_losses.symba", "negative: shape (1,), expected (4,)", then=(goodness(negative=STREAM[:1]),)),
    *of_numbers("pair_losses.smoothed_triplet", beta="positive", margin="finite"),
    row("pair_losses.smoothed_triplet", "negative: shape (1,)", then=(goodness(negative=STREAM[:1]),)),
    row("pair_losses.two_thresholds", "positive: nan, expected a finite", NAN, 1.0),
    row("pair_losses.two_thresholds", "negative: nan, expected a finite", 1.0, NAN),
    row("pair_losses.two_thresholds", "penalty: -1.0, expected 0 or more", 1.0, 1.0, -1.0),
    row("pair_losses.two_thresholds", "negative: shape (1,)", 1.0, 1.0, then=(goodness(negative=STREAM[:1]),)),
    *of_numbers("pair_losses.collaboration", threshold="finite"),
    row("pair_losses.collaboration", "prior_positive: shape (1,)", then=(goodness(prior_positive=STREAM[:1]),)),
    # Cumulative goodness
    row("cumulative_goodness.log_attenuation", "prior: shape (4, 1), expected (4,)", STREAM, STREAM[:, None], 4.0, 1.0),
    row(
        "cumulative_goodness.log_attenuation", "margin: shape (4, 1), expected (4,)", STREAM[:, None], STREAM, 4.0, 1.0
    ),
    row("cumulative_goodness.log_attenuation", "beta: 0.0, expected a positive", STREAM, STREAM, 0.0, 1.0),
    row("cumulative_goodness.attenuation", "gamma: nan, expected a finite", STREAM, STREAM, 4.0, NAN),
    row("cumulative_goodness.attenuation_bounds", "beta: nan, expected a positive", STREAM, NAN, 1.0),
    row("cumulative_goodness.decay_bound", "gamma: nan, expected a finite", STREAM, 4.0, NAN),
    row("cumulative_goodness.gradient_bound", "beta: -1.0, expected a positive", STREAM, -1.0),
    row("cumulative_goodness.free_riding_fraction", "attenuation: 1 samples, expected 2", STREAM[:1]),
    row("cumulative_goodness.starved_fraction", "limit: nan, expected 0 or more", STREAM, NAN),
    row("cumulative_goodness.coverage", "prior: shape (1,), expected (4,)", STREAM, STREAM[:1]),
    row("cumulative_goodness.layer_separation", "negative: shape (4, 1), expected (4,)", STREAM, STREAM[:, None]),
    *of_numbers("cumulative_goodness.cumulative", gamma="finite", beta="positive"),
    row("cumulative_goodness.cumulative", "prior_negative: shape (1,)", then=(goodness(prior_negative=STREAM[:1]),)),
    row("cumulative_goodness.per_block", "alpha: 0.0, expected a positive", 0.0),
    *of_numbers("cumulative_goodness.hardness_gated", gamma="finite", tau="finite", kappa="finite", beta="positive"),
    row("cumulative_goodness.hardness_gated", "negative: shape (1,)", then=(goodness(negative=STREAM[:1]),)),
    row("cumulative_goodness.gate_gradient", "gamma: nan", GOODNESS, *(np.ones(()), np.ones(())), NAN),
    *of_numbers(
        "cumulative_goodness.depth_scaled_auxiliary", gamma="finite", beta="positive", weight="finite", growth="finite"
    ),
    *of_numbers(
        "cumulative_goodness.compensated",
        gamma="finite",
        beta="positive",
        c="positive",
        rho="finite",
        eps="not negative",
    ),
    *of_numbers("cumulative_goodness.squared_hinge", target="finite", gamma="finite"),
    # Goodness
    row("goodness.top_k", "share: nan, expected more than 0 and at most 1", NAN),
    row("goodness.top_k", "h: shape (4,), expected (batch, ...)", attribute="value", then=(STREAM,)),
    row("goodness.top_k", "h: shape (4,), expected (batch, ...)", attribute="gradient", then=(STREAM,)),
    row("goodness.entmax_weighted", "h: shape (4,), expected (batch", attribute="value", then=(STREAM,)),
    *of_numbers("goodness.excess_kurtosis", eps="not negative"),
    row("goodness.negated", "h: shape (4,), expected (batch", SUM_OF_SQUARES, attribute="value", then=(STREAM,)),
    # Grids, scores and normalisations
    row("adaptive_pooling.grid_pool", "grid: 0, expected 1 or more", IMAGES, (0, 2)),
    row("adaptive_pooling.grid_pool", "grid: 1.5, expected 1 or more, a whole", IMAGES, (2, 1.5)),
    row("adaptive_pooling.grid_pool", "pooling: 'max', expected 'mean' or 'sum'", IMAGES, (2, 2), "max"),
    row("adaptive_pooling.grid_pool", "h: shape (4, 3), expected (batch, channels", X, (2, 2)),
    row("adaptive_pooling.grid_pool_adjoint", "y: shape (4, 3), expected (batch, channels", X, (2, 2)),
    row("adaptive_pooling.grid_pool_adjoint", "size: 0, expected 1 or more", IMAGES, (0, 2)),
    row("adaptive_pooling.grid_pool_adjoint", "pooling: 'max'", IMAGES, (2, 2), "max"),
    row("scores.features", "h: shape (4, 3), expected (batch, channels", X, (2, 2)),
    *of_numbers("scores.group_mean", num_classes="count"),
    row("scores.group_mean", "h: shape (4,), expected (batch, C, ...)", 2, attribute="value", then=(STREAM, ())),
    *of_numbers("scores.group_mean_square", num_classes="count"),
    row("scores.linear_map", "h: shape (4, 3), expected (batch, ch", (2, 2), attribute="value", then=(X, (MIXING,))),
    row("scores.random_projection", "num_classes: 0, expected 1 or more", 3, 0, None),
    row("scores.random_projection", "num_features: 2.5, expected 1 or more", 2.5, 3, None),
    row("scores.random_readout", "offset: shape (1,), expected (2,)", np.ones((3, 2)), np.ones(1)),
    row(
        "scores.random_readout",
        "lowest, highest: 2.0, 1.0, expected 0 < lowest <= highest",
        np.ones((3, 2)),
        np.ones(2),
        None,
        2.0,
        1.0,
    ),
    row("scores.random_readout", "lowest, highest: nan", np.ones((3, 2)), np.ones(2), None, NAN),
    row("scores.patch_energy", "offset: shape (1,), expected (2,)", np.ones((3, 2)), np.ones(1)),
    row("learned_scores.random_logits", "channels: 0, expected 1 or more", 0, 2, None),
    row("learned_scores.random_logits", "num_classes: 2.0, expected 1 or more", 3, 2.0, None),
    row("learned_scores.random_logits", "deviation: nan, expected a positive", 3, 2, None, NAN),
    row("learned_scores.assignment", "cooling: 0.0, expected a positive", *(np.eye(2), np.ones(())), 0.0),
    *of_numbers(
        "learned_scores.channel_class", entropy="not negative", orthogonality="not negative", cooling="positive"
    ),
    row("learned_scores.channel_class", "pooling: nan, expected a finite", (1.0, NAN, 0.0)),
    row("learned_scores.channel_class", "pooling: (1.0, 0.5), expected the weights", (1.0, 0.5)),
    row("learned_scores.random_prototypes", "per_class: 0, expected 1 or more", 2, 0, 3, None),
    *of_numbers("learned_scores.prototype_cosine", sharpness="positive"),
    *(row(f"normalisations.{name}", "h: shape (4,), expected (batch, C, ...)", STREAM) for name in NORMS),
    *(row(f"normalisations.{name}", "eps: nan, expected 0 or more", IMAGES, eps=NAN) for name in NORMS),
    row("normalisations.group_norm", "groups: 0, expected 1 or more", IMAGES, 0),
    row("normalisations.group_norm", "eps: -1.0, expected 0 or more", IMAGES, 2, -1.0),
    row("normalisations.batch_norm", "mean: shape (1,), expected (2,)", IMAGES, *(np.ones(1), np.ones(2))),
    row("normalisations.group_norm_vjp", "groups: 0, expected 1 or more", IMAGES, IMAGES, 0),
    *(
        row(f"normalisations.{name}", "gradient: shape (1, 2, 4, 4), expected (4, 2, 4, 4)", IMAGES, IMAGES[:1])
        for name in (f"{kind}_vjp" for kind in NORMS)
    ),
    row("normalisations.direction", "eps: 0.0, expected a positive", X, 0.0),
    row("normalisations.direction_vjp", "gradient: shape (4, 1), expected (4, 3)", X, X[:, :1]),
    # Aggregation
    row("aggregation.last", "scores: shape (4, 2), expected (layers, batch, K)", SCORES),
    row("aggregation.total", "scores: shape (4, 2), expected (layers, batch, K)", SCORES),
    row("aggregation.range_total", "first: 0.5, expected 0 or more", LAYER_SCORES, 0.5, 1),
    *of_labels("aggregation.range_hits", LAYER_SCORES, LABEL),
    row("aggregation.range_hits", "scores: NaN among them", NAN * LAYER_SCORES, LABELS),
    *of_labels("aggregation.best_range", LAYER_SCORES, LABEL),
    row("aggregation.loss_weights", "losses: shape (4, 3), expected (4,)", X),
    row("aggregation.weighted", "weights: shape (1,), expected (3,)", LAYER_SCORES, np.ones(1)),
    # Negatives
    *of_labels("negatives.wrong_label_probabilities", SCORES, LABEL),
    row("negatives.wrong_label_probabilities", "scores: NaN among them", NAN * SCORES, LABELS),
    *of_labels("negatives.hard_wrong_labels", SCORES, LABEL, None),
    row("negatives.hybrid_images", "x2: shape (1, 2, 4, 4), expected (4, 2, 4, 4)", IMAGES, IMAGES[:1], IMAGES),
    row("negatives.hybrid_images", "mask: shape (4, 2, 4, 4), expected (1, 2, 4, 4)", IMAGES[:1], IMAGES[:1], IMAGES),
    row("negatives.blurred_masks", "passes: -1, expected 0 or more", np.ones((2, 3, 3)), -1),
    row("negatives.blurred_masks", "passes: 1.5, expected 0 or more", np.ones((2, 3, 3)), 1.5),
    row("negatives.blurred_masks", "noise: shape (3, 3), expected (batch, height, width)", np.ones((3, 3)), 1),
    row("negatives.blurred_masks", "noise: NaN among them", np.full((2, 3, 3), NAN), 1),
    row("negatives.random_masks", "passes: -1, expected 0 or more", (2, 3, 3), -1, GENERATOR),
    row("negatives.self_supervised_pairs", "partner: found 1..4, expected 0..3", X, np.array([1, 2, 3, 4])),
    row("negatives.self_supervised_pairs", "partner: shape (2,), expected (4,)", X, np.array([1, 2])),
    row("negatives.random_partners", "batch: 2.5, expected 2 or more", 2.5, None),
    # Hardware
    *(row("hardware.quantise", f"bits: {bits}, expected 2 or more, a whole", X, bits) for bits in (1, 2.5, NAN)),
    row(
        "hardware.read", "read_noise: -1.0, expected 0 or more", Lazy(lambda s: s.hardware.Crossbar(read_noise=-1.0)), X
    ),
    row("hardware.read", "noise: shape (1, 3), expected (4, 3)", CROSSBAR, X, X[:1]),
    row("hardware.product", "x: shape (4,), expected (batch, n_in)", CROSSBAR, STREAM, X),
    row("hardware.convolve", "z: shape (0, 2, 4, 4), expected (batch, channels", CROSSBAR, IMAGES[:0], KERNEL),
    row("hardware.convolve", "z: 2 channels, but the kernel takes 3", CROSSBAR, IMAGES, np.ones((4, 3, 1, 1))),
    row("hardware.convolve", "noise: shape (4, 18), expected (4, 2, 3, 3)", CROSSBAR, IMAGES, KERNEL, np.ones((4, 18))),
    row(
        "hardware.convolve_adjoint",
        "y: shape (4, 2, 4, 4), expected (4, 4, 2, 2)",
        CROSSBAR,
        IMAGES,
        KERNEL,
        (4, 4),
    ),
    row(
        "hardware.convolve_adjoint",
        "noise: shape (4, 18), expected (4, 2, 3, 3)",
        CROSSBAR,
        np.ones((1, 4, 2, 2)),
        KERNEL,
        (4, 4),
        np.ones((4, 18)),
    ),
    row("hardware.clipped", "weight_range: nan, expected a positive", X, NAN),
    row("hardware.programmed", "deviation: nan, expected 0 or more", X, X, NAN),
    row("hardware.programmed", "noise: shape (4, 1), expected (4, 3)", X, X[:, :1]),
    # Layers
    row("layers.per_label", "batch: 0, expected 1 or more", (X,), 0, 3),
    row("layers.per_label", "count: -1, expected 0 or more", (X,), 4, -1),
    row("layers.forward", "layers[0]: z: shape (0, 3), expected (batch, ..., n)", CHAIN, X[:0]),
    row("layers.forward", "layers[0]: z: shape (3,), expected (batch, ..., n)", CHAIN, X[0]),
    row("layers.forward", "layers[0]: weight: shape (0, 3), expected (n_out, n_in)", first_weight(np.ones((0, 3))), X),
    row("layers.forward", "layers[0]: bias: shape (1,), expected (5,)", first_bias(np.zeros(1)), X),
    row("layers.forward", "layers[0]: mask: shape (4, 1), expected (4, 5)", masked_chain(np.ones((4, 1))), X),
    row("layers.forward", "layers[0]: z: shape (0, 2, 4, 4), expected (batch, channels", MAPS, IMAGES[:0]),
    row("layers.forward", "layers[0]: bias: shape (1,), expected (4,)", padded(np.zeros(1)), IMAGES),
    row("layers.forward", "layers[0]: x: shape (0, 2, 4, 4), expected (batch, channels", circular(None), IMAGES[:0]),
    row("layers.forward", "layers[0]: bias: shape (1,), expected (4,)", circular(np.zeros(1)), IMAGES),
    row("layers.forward", "layers[0]: branch: shape (4, 5), expected (4, 3)", rotation(np.ones((5, 3))), X),
    row("layers.scores", "z: shape (3,), expected (batch, ..., n)", CHAIN, X[0]),
    row("layers.scores", "z: 2 units, but the weight has 3 columns", CHAIN, X[:, :2]),
    row("layers.updates", "delta: shape (0, 3), expected (batch, ..., n)", CHAIN, [(X[:0], X[:0])] * 3),
    row("layers.updates", "z: shape (1, 3), expected (4, 3)", CHAIN, [(X, X[:1])] * 3),
    row("layers.updates", "delta: shape (0, 2, 4, 4)", MAPS, [(IMAGES[:0], IMAGES[:0]), (X, X)]),
    row("layers.forward", "layers[0]: gain: shape (1,), expected (3,)", normalised("LayerNorm", np.ones(1)), X),
    row(
        "layers.forward",
        "layers[0]: bias: shape (1,), expected (2,)",
        normalised("BatchNorm", *(np.ones(2), np.ones(1))),
        IMAGES,
    ),
    row(
        "layers.forward",
        "layers[0]: mean, variance: one without",
        normalised("BatchNorm", None, mean=np.ones(2)),
        IMAGES,
    ),
    row("layers.forward", "layers[0]: axes: 2, expected 1..1, a whole", normalised("LayerNorm", None, axes=2), X),
    row("layers.forward", "layers[0]: axes: 2, expected 1..1, a whole", normalised("RMSNorm", None, axes=2), X),
    row("layers.forward", "layers[0]: eps: -1.0, expected 0 or more", normalised("RMSNorm", None, eps=-1.0), X),
    row("layers.forward", "layers[0]: groups: 0, expected 1 or more", normalised("GroupNorm", None, groups=0), X),
    row("layers.forward", "layers[0]: h: shape (0, 3), expected (batch, ..., n)", normalised("RMSNorm", None), X[:0]),
    row("layers.updates", "delta: shape (4, 2), expected (4, 3)", normalised("LayerNorm", None), [(X[:, :2], X)]),
    row("layers.forward", "layers[0]: what passes by the shortcut: shape (4, 3), expected (4, 5)", residual(5), X),
    row("layers.forward", "layers[0]: inside, layers[0]: z: 3 units, but the weight has 2", residual(3, 2), X),
    row("layers.forward", "layers[0]: z: shape (4, 3), expected (batch, T, n)", attending(*ATTENTION), X),
    row(
        "layers.forward", "layers[0]: z: 4 units, expected a multiple of 3 heads", attending(*ATTENTION, heads=3), TEXT
    ),
    row("layers.forward", "layers[0]: heads: 0, expected 1 or more", attending(*ATTENTION, heads=0), TEXT),
    *(
        row(
            "layers.forward",
            f"layers[0]: {name}: shape (2,), expected",
            attending(*ATTENTION[:i], (2,), *ATTENTION[i + 1 :]),
            TEXT,
        )
        for i, name in enumerate(("in_weight", "in_bias", "out_weight", "out_bias"))
    ),
    row(
        "layers.updates", "delta: shape (2, 3, 3), expected (2, 3, 4)", attending(*ATTENTION), [(TEXT[:, :, :3], TEXT)]
    ),
    row("layers.forward", "layers[0]: z: dtype ", embedding(), X),
    row("layers.forward", "layers[0]: z: shape (4,), expected (batch, T)", embedding(), LABELS),
    row("layers.forward", "layers[0]: z: found 0..4, expected 0..3", embedding(), np.array([[0, 4]])),
    row("layers.forward", "layers[0]: z: 4 positions, expected at most 2", embedding(np.ones((2, 3))), LABELS[None]),
    row(
        "layers.forward",
        "layers[0]: positions: shape (4, 1), expected (4, 3)",
        embedding(np.ones((4, 1))),
        LABELS[None],
    ),
    row("layers.forward", "layers[0]: table: shape (0, 3), expected (V, n)", embedding(rows=0), LABELS[None]),
    row(
        "layers.updates",
        "delta: shape (1, 4, 2), expected (1, 4, 3)",
        embedding(),
        [(np.ones((1, 4, 2)), LABELS[None])],
    ),
    row("layers.dense_chain", "masks: 1, expected 3, a mask or None for each layer", *DENSE[:2], (), [None]),
    row("layers.he_uniform", "shape: 0, expected 1 or more", (0, 3), None),
    *(
        row("layers.dropout_masks", f"rate: {rate}, expected 0 or more and less than 1", (3, 2), 4, rate, None)
        for rate in (NAN, -0.1, 1.0)
    ),
    row("layers.dropout_masks", "widths, batch: 0, expected 1 or more", (0, 2), 4, 0.5, None),
    # Rules of the output's error
    *of_chains("backprop.updates", CHAIN),
    row("backprop.activity_gradients", "error: shape (4, 1), expected (4, 2)", CHAIN, CHAIN_PASS, SCORES[:, :1]),
    row("backprop.update_factors", "error: shape (4, 1), expected (4, 2)", CHAIN, CHAIN_PASS, SCORES[:, :1]),
    *of_chains("foton.updates", CHAIN),
    row("foton.updates", "projection: shape (3, 2), expected (2, 3)", CHAIN, X, LABELS, projection=np.ones((3, 2))),
    row("foton.updates", "activation_gain: 0.0, expected a positive", CHAIN, X, LABELS, activation_gain=0.0),
    row("foton.depth_correction", "activation_gain: nan, expected a positive", NAN, 3),
    row("foton.depth_correction", "depth: 0, expected 1 or more", 0.7, 0),
    row("foton.error_projection", "d: shape (2, 4, 2, 2), expected (1, 4, 2, 2)", MAPS, MAPS_PASS),
    row("foton.update_factors", "error: shape (1, 2), expected (4, 2)", CHAIN, CHAIN_PASS, SCORES[:1], np.ones((2, 3))),
    row("foton.recomputed_factors", "error: shape (1, 2), expected (4, 2)", CHAIN, 3, X, SCORES[:1], np.ones((2, 3))),
    row("foton.recomputed_factors", "projection: shape (2, 1), expected (2, 3)", CHAIN, 3, X, SCORES, np.ones((2, 1))),
    row("foton.recomputed_factors", "zip() argument 2 is shorter than", CHAIN, 4, X, SCORES, np.ones((2, 3))),
    row("foton.recomputed_factors", "zip() argument 2 is longer than", CHAIN, 2, X, SCORES, np.ones((2, 3))),
    *of_chains("pepita.updates", CHAIN, np.ones((2, 3))),
    row(
        "pepita.updates",
        "output_error: 'modulate', expected 'clean' or 'modulated'",
        CHAIN,
        np.ones((2, 3)),
        X,
        LABELS,
        output_error="modulate",
    ),
    row(
        "pepita.updates",
        "presynaptic: 'Clean', expected 'clean' or 'modulated'",
        CHAIN,
        np.ones((2, 3)),
        X,
        LABELS,
        presynaptic="Clean",
    ),
    row(
        "pepita.update_factors", "projection: shape (2, 1), expected (2, 3)", CHAIN, CHAIN_PASS, SCORES, np.ones((2, 1))
    ),
    row("pepita.error_projection", "scale: 0.0, expected a positive", (3,), 2, None, 0.0),
    row("pepita.error_projection", "scale: nan, expected a positive", (3,), 2, None, NAN),
    row("pepita.error_projection", "sample: 0, expected 1 or more", (3, 0), 2, None),
    *of_chains("ftp.updates", CHAIN, FEEDBACK[0]),
    *of_labels("ftp.output_error", SCORES, LABEL),
    row("ftp.output_error", "label_smoothing: 1.0, expected 0 or more and", SCORES, LABELS, label_smoothing=1.0),
    row("ftp.output_error", "temperature: 0.0, expected a positive", SCORES, LABELS, temperature=0.0),
    *(
        row("ftp.output_error", f"{said}, expected 0 and 1 without labels or", SCORES, SCORES, **given)
        for said, given in (
            ("label_smoothing: 0.1, temperature: 1.0", {"label_smoothing": 0.1}),
            ("label_smoothing: 0.0, temperature: 2.0", {"temperature": 2.0}),
        )
    ),
    row(
        "ftp.output_error",
        "label_smoothing: 0.1, temperature: 1.0, expected 0 and 1 without labels or with outputs",
        SCORES,
        LABELS,
        label_smoothing=0.1,
        outputs=np.tanh,
    ),
    row("ftp.updates", "first: shape (4, 1), expected (4, 5)", CHAIN, np.ones((1, 2)), X, LABELS),
    row("ftp.updates", "gain: nan, expected a finite", CHAIN, FEEDBACK[0], X, LABELS, gain=NAN),
    row("ftp.first_difference", "targets: shape (1, 2), expected (4, 2)", FEEDBACK[0], SCORES[:1], SCORES),
    row("ftp.differences", "first: shape (4, 1), expected (4, 5)", CHAIN, CHAIN_PASS, np.ones((4, 1))),
    row("ftp.differences", "later: shape (4, 3), expected (4, 4)", CHAIN, CHAIN_PASS, np.ones((4, 5)), later=[X]),
    row(
        "ftp.differences",
        "first: shape (4, 4, 1, 1), expected (4, 4, 4, 4)",
        MAPS,
        MAPS_PASS,
        np.ones((4, 4, 1, 1)),
    ),
    row("ftp.updates", "first: shape (4, 4), expected (4, 64)", MAPS, np.ones((4, 2)), IMAGES, LABELS),
    row("ftp.feedback_by_channel", "positions: 0, expected 1 or more", FEEDBACK[0], 0),
    row(
        "ftp.update_factors",
        "inject: 1.5, expected 0..2, a whole",
        CHAIN,
        CHAIN_PASS,
        SCORES,
        np.ones((4, 5)),
        inject=1.5,
    ),
    row("ftp.update_factors", "error: shape (1, 2), expected (4, 2)", CHAIN, CHAIN_PASS, SCORES[:1], np.ones((4, 5))),
    row("ftp.random_feedback", "scale: 0.0, expected a positive", 5, 2, None, 0.0),
    row("ftp.random_feedback", "scale: nan, expected a positive", 5, 2, None, NAN),
    row("ftp.random_feedback", "law: 'cauchy', expected 'uniform', 'normal' or 'orthogonal'", 5, 2, None, law="cauchy"),
    row("ftp.random_feedback", "n: 0, expected 1 or more", 0, 2, None),
    row("ftp.low_rank_feedback", "rank: 1.5, expected 1..3, a whole", 5, 3, 1.5, None),
    *of_chains("feedback_alignment.updates", CHAIN, DENSE.weights[1:]),
    row("feedback_alignment.updates", "feedback: 1 arrays, expected 2", CHAIN, DENSE.weights[1:2], X, LABELS),
    row(
        "feedback_alignment.update_factors",
        "feedback[1]: shape (1, 4), expected (2, 4)",
        CHAIN,
        CHAIN_PASS,
        SCORES,
        (DENSE.weights[1], np.ones((1, 4))),
    ),
    row("feedback_alignment.random_feedback", "shape: 0, expected 1 or more", [(3, 0)], None),
    *of_chains("direct_feedback_alignment.updates", CHAIN, FEEDBACK),
    row(
        "direct_feedback_alignment.updates",
        "feedback[0]: shape (1, 2), expected (5, 2)",
        CHAIN,
        (np.ones((1, 2)), FEEDBACK[1]),
        X,
        LABELS,
    ),
    row(
        "direct_feedback_alignment.update_factors",
        "feedback: 1 matrices, expected 2",
        CHAIN,
        CHAIN_PASS,
        SCORES,
        FEEDBACK[:1],
    ),
    row(
        "direct_feedback_alignment.update_factors",
        "signal: shape (1, 2), expected (4, 2)",
        CHAIN,
        CHAIN_PASS,
        SCORES,
        FEEDBACK,
        signal=SCORES[:1],
    ),
    row("direct_feedback_alignment.random_feedback", "scale: nan, expected a positive", (5,), 2, None, NAN),
    *of_chains("direct_random_target_projection.updates", CHAIN, FEEDBACK),
    *of_chains("difference_target_propagation.updates", CHAIN, INVERSE_CHAIN, (np.ones((4, 5)),)),
    row(
        "difference_target_propagation.differences",
        "inverses[0].weight: shape (1, 4), expected (5, 4)",
        CHAIN,
        chain_of(INVERSE._replace(weights=(np.ones((1, 4)),))),
        CHAIN_PASS,
        SCORES,
    ),
    row(
        "difference_target_propagation.update_factors",
        "step: nan, expected a finite",
        CHAIN,
        INVERSE_CHAIN,
        CHAIN_PASS,
        SCORES,
        NAN,
    ),
    row(
        "difference_target_propagation.inverse_factors",
        "noise[0]: shape (1, 5), expected (4, 5)",
        CHAIN,
        INVERSE_CHAIN,
        CHAIN_PASS,
        (np.ones((1, 5)),),
    ),
    row("difference_target_propagation.random_inverses", "widths: 0, expected 1 or more", (3, 0), None),
    row("difference_target_propagation.inverse_noise", "scale: nan, expected a positive", (3, 2), 4, None, NAN),
    # Recurrent networks
    row("recurrent.unrolled", "x: shape (0, 3, 2), expected (batch, steps, 2)", rnn(), SEQUENCES[:0]),
    row("recurrent.unrolled", "of_input, of_state: 3 and 2 rows, expected 3, 1 for each of", rnn(2), SEQUENCES),
    row("recurrent.unrolled", "bias: shape (1,), expected (3,)", rnn(bias=np.zeros(1)), SEQUENCES),
    row("recurrent.unrolled", "stack[1]: takes 2 numbers, but gets 3", rnn(layers=2), SEQUENCES),
    row("recurrent.unrolled", "stack: 0 of 0 are recurrent, expected all but an embedding at first", (), SEQUENCES),
    row("recurrent.unrolled", "lengths: shape (3,), expected (4,)", rnn(), SEQUENCES, LABELS[:3]),
    row("recurrent.unrolled", "lengths: found 0..", rnn(), SEQUENCES, LABELS),
    row("recurrent.unrolled", "lengths: found 1..4, expected 1..3", rnn(), SEQUENCES, np.arange(1, 5)),
    row("recurrent.unrolled", "x: shape (4, 3, 4), expected (batch, steps, 2)", Lazy(wide_tokens), TOKENS),
    row("recurrent.unrolled", "z: found 0..2, expected 0..1", Lazy(of_tokens), TOKENS + TOKENS),
    row("recurrent.unrolled", "stack: 1 of 2 are recurrent", Lazy(lambda s: of_tokens(s)[::-1]), SEQUENCES),
    row("recurrent.forward_per_step", "layers[0]: z: shape (4, 3), expected (4, 5)", PER_STEP, np.zeros((4, 3))),
    row("recurrent.factors_per_step", "error: shape (4, 2), expected (4, 3, 2)", PER_STEP, PASS_PER_STEP, SCORES),
    row("recurrent.differences_per_step", "corrections: None for layers[0]", PER_STEP, PASS_PER_STEP, [None] * 6),
    row(
        "recurrent.differences_per_step", "first: shape (4, 2), expected (4, 5)", PER_STEP, PASS_PER_STEP, [SCORES] * 6
    ),
    row("recurrent.at_steps", "parts: 0, expected 1, one for each layer", Lazy(steps), ()),
    row("recurrent.at_steps", "parts[0]: shape (4, 3, 2), expected (4, 3, 3)", Lazy(steps), (SEQUENCES,)),
    row("recurrent.updates", "reduction: 'max', expected 'sum' or 'mean'", STEPS, (), "max"),
    row("layers.forward", "layers[0]: z: shape (4, 2), expected (4, 3)", STEPS, np.ones((4, 2))),
    *of_labels("backprop.updates", STEPS, np.zeros((4, 3)), LABEL),
    *of_labels("ftp.updates", STEPS, np.ones((3, 2)), np.zeros((4, 3)), LABEL),
    row("ftp.updates", "first: shape (4, 1), expected (4, 3)", STEPS, np.ones((1, 2)), np.zeros((4, 3)), LABELS),
    # Convolutions
    row(
        "convolution.circular_convolve",
        "kernel: shape (4, 2, 3, 1), expected (c_out, c_in, size, size)",
        np.ones((4, 2, 3, 1)),
        IMAGES,
    ),
    row("convolution.circular_convolve", "x: shape (0, 2, 4, 4), expected (batch, channels", KERNEL, IMAGES[:0]),
    row("convolution.circular_convolve_adjoint", "kernel: shape (4, 2, 3, 1)", np.ones((4, 2, 3, 1)), IMAGES),
    row("convolution.circular_convolve_adjoint", "y: 2 channels, but the kernel gives 4", KERNEL, IMAGES),
    row("convolution.circular_kernel_update", "z: shape (1, 2, 4, 4), expected (4, 2, 4, 4)", IMAGES, IMAGES[:1], 3),
    row("convolution.circular_kernel_update", "size: 0, expected 1 or more", IMAGES, IMAGES, 0),
    row("convolution.circular_kernel_update", "delta: shape (0, 2, 4, 4)", IMAGES[:0], IMAGES[:0], 3),
    row("pooling.unshuffle", "factor: 0, expected 1 or more", IMAGES, 0),
    row("pooling.shuffle", "y: 2 channels, expected a multiple of 4", IMAGES, 2),
    row("pooling.scaled_average_pool", "size: 1.5, expected 1 or more, a whole", IMAGES, 1.5),
    row("pooling.scaled_average_pool_adjoint", "size: 0, expected 1 or more", IMAGES, 0),
    row("convolution.orthogonal_kernel", "bases: 1, expected two for each step", MIXING, BASES[:1]),
    row("convolution.orthogonal_kernel", "bases[0]: shape (3, 2), expected (4, 2)", MIXING, [np.eye(3)[:, :2]] * 2),
    row(
        "convolution.orthogonal_kernel_vjp",
        "gradient: shape (4, 4, 1, 1), expected (4, 4, 2, 2)",
        MIXING,
        BASES,
        np.ones((4, 4, 1, 1)),
    ),
    row("convolution.skew_kernel", "kernel: shape (4, 2, 3, 3), expected (4, 4, 3, 3)", KERNEL),
    row("convolution.skew_kernel", "kernel: shape (4, 4), expected (c_out, c_in, size, size)", MIXING),
    row("convolution.skew_kernel", "rows: 3, expected an even number", np.ones((3, 3, 1, 1))),
    row("convolution.skew_kernel_vjp", "kernel: shape (4, 4, 3, 1), expected (c_out", np.ones((4, 4, 3, 1)), MIXING),
    row("convolution.skew_kernel_vjp", "kernel: shape (4, 2, 3, 3), expected (4, 4, 3, 3)", KERNEL, MIXING),
    row("convolution.skew_kernel_vjp", "rows: 3, expected an even number", np.ones((3, 3, 1, 1)), MIXING),
    row("convolution.skew_kernel_vjp", "gradient: shape (4, 4), expected (4, 4, 5, 5)", np.ones((4, 4, 3, 3)), MIXING),
    row("convolution.convolve", "z: shape (0, 2, 4, 4), expected (batch, channels", KERNEL, IMAGES[:0]),
    row("convolution.convolve", "stride: 0, expected 1 or more", KERNEL, IMAGES, (0, 1)),
    row("convolution.convolve", "padding: -1, expected 0 or more", KERNEL, IMAGES, (1, 1), (-1, 0)),
    row(
        "convolution.convolve",
        "groups: 2, expected a divisor of the kernel's 3 outputs",
        np.ones((3, 1, 3, 3)),
        IMAGES,
        groups=2,
    ),
    row("pooling.max_pool", "size: 5, expected 1..4", IMAGES, 5),
    row("pooling.max_pool", "size: 7, expected 1..6", IMAGES, 7, 1, 1),
    row("pooling.max_pool", "stride: 0, expected 1 or more", IMAGES, 2, 0),
    row("pooling.max_pool", "padding: 2, expected 0..1, a whole number", IMAGES, 2, 1, 2),
    row("pooling.average_pool", "padding: 1, expected 0..0, a whole number", IMAGES, 1, 1, 1),
    row("pooling.average_pool_adjoint", "d: shape (4, 2, 4, 4), expected (4, 2, 3, 3)", IMAGES, IMAGES, 2, 1),
    row("pooling.lp_pool", "size: 5, expected 1..4", IMAGES, 2, 5),
    row("pooling.lp_pool", "power: 0.5, expected 1 or more, a finite number", IMAGES, 0.5, 2),
    row("pooling.lp_pool_jvp", "u: shape (1, 2, 4, 4), expected (4, 2, 4, 4)", IMAGES, IMAGES[:1], 2, 2),
    row("pooling.lp_pool_jvp", "power: nan, expected 1 or more", IMAGES, IMAGES, NAN, 2),
    row("pooling.lp_pool_vjp", "d: shape (4, 2, 4, 4), expected (4, 2, 2, 2)", IMAGES, IMAGES, 2, 2),
    row("pooling.lp_pool_vjp", "power: inf, expected 1 or more", IMAGES, IMAGES[:, :, :2, :2], math.inf, 2),
    row("pooling.average_pool", "size: 5, expected 1..4", IMAGES, 5),
    row("pooling.at_maxima", "values: shape (1, 2, 4, 4), expected (4, 2, 4, 4)", IMAGES, IMAGES[:1], 2),
    row("pooling.max_pool_vjp", "d: shape (4, 2, 4, 4), expected (4, 2, 2, 2)", IMAGES, IMAGES, 2),
    row("pooling.average_pool_adjoint", "d: shape (4, 2, 4, 4), expected (4, 2, 2, 2)", IMAGES, IMAGES, 2),
    row("convolution.convolve_adjoint", "y: shape (4, 2, 4, 4), expected (4, 4, 3, 3)", KERNEL, IMAGES, (5, 5)),
    row("pooling.max_pool", "size: 0, expected 1..4", IMAGES, 0),
    row(
        "convolution.kernel_update",
        "z: shape (1, 2, 4, 4), expected (4, 2, 4, 4)",
        IMAGES,
        IMAGES[:1],
        (3, 3),
        (1, 1),
        (1, 1),
    ),
    # Forward-Forward
    *of_labels("forward_forward.overlay", X, LABEL, 2),
    *of_labels("forward_forward.overlay", IMAGES, LABEL, 2),
    row("forward_forward.overlay", "x: shape (4,), expected (batch, ...)", STREAM, LABELS, 2),
    row("forward_forward.overlay", "num_classes: 2.0, expected 2..3, a whole", X, LABELS, 2.0),
    row("forward_forward.overlay", "num_classes: 4, expected 2..3", X, LABELS, 4),
    row("forward_forward.overlay", "num_classes: 1, expected 2 or more", X, LABELS, 1, 1.0, "planes"),
    row("forward_forward.overlay", "amplitude: nan, expected a positive", X, LABELS, 2, NAN),
    row("forward_forward.overlay", "amplitude: 0.0, expected a positive", X, LABELS, 2, 0.0),
    row(
        "forward_forward.overlay",
        "place: 'border', expected 'pixels', 'planes' or 'tokens'",
        IMAGES,
        LABELS,
        2,
        1.0,
        "border",
    ),
    row("forward_forward.overlay", "x: shape (4, 3), expected (batch, T, n)", X, LABELS, 2, 1.0, "tokens"),
    row("forward_forward.overlay", "num_classes: 4, expected 2..3", X[:, None], LABELS, 4, 1.0, "tokens"),
    row("forward_forward.overlay_neutral", "num_classes: 2.0, expected 2..3, a whole", X, 2.0),
    row("forward_forward.overlay_neutral", "num_classes: 4, expected 2..3", X, 4),
    row("forward_forward.overlay_neutral", "num_classes: 33, expected 2..32", IMAGES, 33),
    row("forward_forward.overlay_neutral", "amplitude: nan, expected a positive", X, 2, NAN),
    row("forward_forward.overlay_neutral", "amplitude: 0.0, expected a positive", X, 2, 0.0),
    row("forward_forward.wrong_labels", "num_classes: 1, expected 2 or more", LABELS, 1, None),
    row("forward_forward.wrong_labels", COLUMN, LABELS[:, None], 2, None),
    row("forward_forward.wrong_labels", "labels: found 1..2, expected 0..1", LABELS + 1, 2, None),
    *of_labels("forward_forward.updates", CHAIN, X, LABEL, 1 - LABELS, 2),
    *of_labels("forward_forward.updates", MAPS, IMAGES, LABEL, 1 - LABELS, 2),
    *of_labels("forward_forward.local_updates", CHAIN, X, LABELS, LABEL, 2),
    *of_labels("forward_forward.local_updates", MAPS, IMAGES, LABELS, LABEL, 2),
    row("forward_forward.updates", "x: shape (0, 3), expected (batch, ...)", CHAIN, X[:0], LABELS[:0], LABELS[:0], 2),
    row("forward_forward.updates", "z: 2 units, but the weight has 3", CHAIN, X[:, :2], LABELS, LABELS, 2),
    row(
        "forward_forward.updates",
        "z: 4 channels, but the kernel takes 2",
        MAPS,
        IMAGES,
        LABELS,
        LABELS,
        2,
        place="planes",
    ),
    row("forward_forward.stream_updates", "negative: shape (1, 3), expected (4, 3)", CHAIN, X, X[:1]),
    row("forward_forward.stream_goodness", "negative: shape (1, 3), expected (4, 3)", CHAIN, X, X[:1]),
    row("forward_forward.stream_goodness", "negative: shape (1, 2, 4, 4)", MAPS, IMAGES, IMAGES[:1]),
    row("forward_forward.label_scores", "first_layer: 1.5, expected 0..2", CHAIN, X, 2, first_layer=1.5),
    row("forward_forward.label_scores", "first_layer: 2, expected 0..1", MAPS, IMAGES, 2, first_layer=2),
    row("forward_forward.label_scores", "num_classes: 3.0, expected 2..3", CHAIN, X, 3.0),
    row("forward_forward.features", "first_layer: 3, expected 0..2", CHAIN, X, 3),
    row("forward_forward.features", "h: shape (3,), expected (batch, C, ...)", CHAIN, X[0]),
    row("forward_forward.neutral_features", "amplitude: -1.0, expected a positive", CHAIN, X, 2, -1.0),
    row("forward_forward.neutral_features", "place: 'border', expected", CHAIN, X, 2, place="border"),
    *of_labels("forward_forward.readout_update", np.ones((2, 3)), X, LABEL),
    row("forward_forward.readout_update", "readout: shape (2, 1), expected (2, 3)", np.ones((2, 1)), X, LABELS),
    # Local classifiers
    row(
        "local_classifiers.joined",
        "Shortcut(",
        IMAGES,
        IMAGES[:1],
        Lazy(lambda s: s.local_classifiers.Shortcut(0, 1, "add")),
    ),
    *of_labels("local_classifiers.updates", LOCAL, X, LABEL, CROSS_ENTROPY),
    *of_labels("local_classifiers.local_updates", LOCAL, X, LABEL, CROSS_ENTROPY),
    row("local_classifiers.layer_passes", "layers[0]: z: 2 units, but the weight has 3", LOCAL, X[:, :2]),
    row("local_classifiers.layer_scores", "layers[0]: z: shape (0, 3), expected (batch, ..., n)", LOCAL, X[:0]),
    # The hybrid
    row("hybrid_dynamic_temperature.goodness", "theta: shape (1,), expected (2,)", HIDDEN, hybrid(theta=1), X, LABELS),
    row("hybrid_dynamic_temperature.warm_start", "negative: shape (1, 3), expected (4, 3)", X, X[:1]),
    row("hybrid_dynamic_temperature.scores", "scales: 2, expected 1, one for each read", HIDDEN, hybrid(read=2), X),
    row(
        "hybrid_dynamic_temperature.scores",
        "layers: 1, expected two or more",
        Lazy(lambda s: HIDDEN.make(s)[:1]),
        hybrid(),
        X,
    ),
    *of_labels("hybrid_dynamic_temperature.losses", HIDDEN, hybrid(), X, LABEL, 1 - LABELS),
    *of_labels("hybrid_dynamic_temperature.updates", HIDDEN, hybrid(), X, LABELS, LABEL),
    row(
        "hybrid_dynamic_temperature.updates",
        "share: -1.0, expected 0 or more",
        HIDDEN,
        hybrid(),
        X,
        LABELS,
        LABELS,
        -1.0,
    ),
    # Orthogonality
    row("orthogonality.bjorck", "order: 1.5, expected a positive integer", MIXING, 1.5),
    row("orthogonality.bjorck_factor", "order: 1.5, expected a positive integer", MIXING, 1.5),
    row("orthogonality.convergence_limit", "order: 1.5, expected a positive integer", 1.5),
    row("orthogonality.quarter_turns", "rows: 3, expected an even number", np.eye(3)),
    row("orthogonality.skew_orthogonal", "rows: 3, expected an even number", np.eye(3)),
    row("orthogonality.skew_orthogonal_vjp", "rows: 3, expected an even number", np.eye(3), np.eye(3)),
]

FREE = {
    "layers.activity": "steps that say themselves what they refuse",
    "layers.changed": "as `activity`",
    "layers.linear_part": "a layer as it is",
    "layers.pulled_back": "as `activity`",
    "layers.pushed": "as `activity`",
    "layers.without_dropped": "as `activity`",
    "foton.credit_operators": "weights of a network that `forward` takes",
    "foton.differences": "part of `update_factors`",
    "foton.linear_errors": "part of `update_factors`",
    "ftp.local_factors": "part of `update_factors`",
    "ftp.project": "part of `first_difference`",
    "hardware.random_noise": "any shape",
    "local_classifiers.concatenated": "activities of layers that have run",
    "recurrent.elman": "any activation",
    "recurrent.state_size": "any layers",
    "scores.features_adjoint": "part of a score's credit",
    "scores.no_penalty": "any parameters",
    "orthogonality": "any matrix",
}
"""What has no row, and why: functions, and modules of which only some functions have one."""


def made(side: Side, operands: Any) -> Any:
    """Operands of a side; what is lazy is made."""
    return tuple(o.make(side) if isinstance(o, Lazy) else side.operands(o) for o in operands)


def refusal(side: Side, wrong: Row) -> str:
    """What the call is refused with, or that it is accepted."""
    module, function = wrong.name.split(".")
    called = getattr(side.module(module), function)
    try:
        found = called(*made(side, wrong.arguments), **side.operands(wrong.settings))
        if wrong.then is not None:
            found = (getattr(found, wrong.attribute) if wrong.attribute else found)(*made(side, wrong.then))
        if isinstance(found, Iterator):
            list(found)
    except ValueError as error:
        return str(error)
    except REFUSALS as error:
        return repr(error)
    return "accepted"


@pytest.mark.parametrize("wrong", ROWS, ids=[f"{i}-{wrong.name}-{wrong.said[:40]}" for i, wrong in enumerate(ROWS)])
def test_refused(side: Side, wrong: Row) -> None:
    if not side.looks_for(wrong.said):
        pytest.skip("numbers of a tensor are looked at on a CPU alone")
    said = refusal(side, wrong)
    if isinstance(side, TwinSide) and not side.is_ours:
        if said == "accepted":
            pytest.skip(f"accepts what is refused: {wrong.said}")
        return  # words, and the kind of error, are its own
    assert said.startswith(wrong.said), f"{wrong.name}: {said}"


def test_nan_is_passed_on(side: Side) -> None:
    """A comparison that chooses 0 would hide it: of a sample's norm, of a unit's share."""
    h = X.copy()
    h[1, 2] = NAN
    h = side.operands(h)
    for name, found in (
        ("scores", side.layers.forward(CHAIN.make(side), h).scores),
        ("updates", side.backprop.updates(CHAIN.make(side), h, side.operands(LABELS))[0][0]),
        ("direction", side.normalisations.direction(h)),
        ("direction_vjp", side.normalisations.direction_vjp(h, side.operands(X))),
        ("unit_sphere", side.normalisations.unit_sphere(h)),
        ("top_k", side.goodness.top_k(0.5).value(h)),
        ("entmax", side.goodness.entmax_weighted().value(h)),
        ("cosines", side.learned_scores.prototype_cosine().value(h, (side.operands(np.ones((2, 1, 3))),))),
    ):
        assert np.isnan(side.results(found)).any(), f"{name}: NaN hidden"


def test_every_public_function_has_a_row() -> None:
    """A function that is added says what it refuses, or here why it refuses nothing."""
    rows = {wrong.name for wrong in ROWS}
    public = {
        f"{name}.{function}"
        for name in MODULES
        for function in getattr(reference, name).__all__
        if inspect.isfunction(getattr(getattr(reference, name), function))
    }
    missing = {name for name in public - rows if name not in FREE and name.split(".")[0] not in FREE}
    assert not missing, f"no row for {', '.join(sorted(missing))}"
    assert not rows - public, f"no such function: {', '.join(sorted(rows - public))}"
