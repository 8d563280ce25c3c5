"""Forward Target Propagation: targets that run forward through the network's own weights.

As-Saquib, Abeer, Chien, Yoon, Kumar and Yi, "Forward Target Propagation: A Forward-Only Approach to Global Error Credit
Assignment via Local Losses", arXiv 2506.11030.

    (1)  clean pass:       equation (1) of `layers`,    e = dLoss/dscores
    (2)  first target:     tau_j = h_j + gamma (phi(G y) - phi(G p)),    p = y + T e
    (3)  its way forward:  zeta_(l+1) = p_l'(h_l) tau_l,    tau_(l+1) = s_(l+1)(A_(l+1)(zeta_(l+1))),    j <= l < L-1
         where that is corrected too, ours, plus a correction kappa_(l+1) = gamma (phi(G_(l+1) y) - phi(G_(l+1) p))
    (4)  hidden layers:    1/2 |h_l - tau_l|^2, tau_l held fixed:    delta_l = s_l'(a_l)^T (h_l - tau_l)
    (5)  output layer:     delta_L = e
    (6)  updates:          equation (2) of `layers`, from delta_l and the clean z_l

In a chain of dense layers (3) is tau_(l+1) = sigma_(l+1)(W_(l+1) tau_l + b_(l+1)).

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| y | targets | (batch, K) | the label, one-hot, smoothed if asked; numbers of a regression; in any other case p - e |
| p | outputs | (batch, K) | softmax(scores / T), so that e = (p - y) / T; without an index, which the outlet p_l has |
| T | temperature | | of the scores; 1 for squared error, where p are the scores |
| G | feedback | (n_j, K), or its factors | random and fixed; a row for each unit of the flattened h_j |
| phi | phi | | what the projections go through |
| gamma | gain | | of the correction |
| j | inject | | the layer that is given the first target: 1 in the paper; 0 is the input, h_0 = x |
| zeta_l | target | as z_l | what the target makes of a layer's input |
| h_l - tau_l | differences[l-j] | as h_l | how far a layer's activity lies from its target |
| -kappa_l | later | as h_l | of the layers behind the j-th in turn, or None; `every`: the first one, for all |

**What is known.** The paper's body and code are not public, and this is put together from what is. Seen in reviews of
it: the form of (2), one random frozen G, two projections through a nonlinearity, targets carried forward by the
ordinary weights, a local loss for each layer.

**Deduced**, from its published counts of multiplications: G has a row for each unit of the first layer (of the whole
feature map of a first convolution, before it is pooled), there are two products with it, and the second pass leaves the
first layer out.

**Inferred.** The local losses are squares, so that s_l' is in (4); the other factor of an update is the clean z_l; the
output layer follows its own loss; gamma (a number of that name is called crucial, not what it multiplies), phi, and the
law of G.

**Ours.** Layers before the j-th have no target and are not trained. A dropped unit has none either: with a mask m_j
among the steps of layer j the correction in (2) is multiplied by [m_j > 0]. With label smoothing y in (2) is the
smoothed label, with a temperature p is the softmax of the divided scores, so that (2) is 0 where the loss is smallest.

Outlets, in (3): p_l' is the derivative at the clean activity, which for max pooling takes of each square of tau_l the
unit that is largest in h_l. Every outlet is homogeneous, p_l(h_l) = p_l'(h_l) h_l, and where layers are linear
<dLoss/dh_l, h_l - tau_l> is the same for all of them. Maxima of tau_l itself lie above those of h_l by about the size
of the correction wherever pixels are alike, whatever the label is: the next kernel then grows without end. Pooled units
have no loss of their own, and a unit that is not the largest of its square has one: it is drawn to a target as well.

Feedback of images: a full G outgrows the network; for 25,088 units and 100 classes it has four times the numbers of
the paper's network. `low_rank_feedback` has fewer, and so has `feedback_by_channel`, the same at all positions of a
channel. A kernel's update sums over the P positions of a map. The sum of P corrections is P times as large as one if
they are equal, and sqrt(P) times if they are independent, where patches are alike. Drawn at scale / P with one row a
channel, or at scale / sqrt(P) with one a position, G makes a kernel's update as large as a dense layer's at that scale.

Recurrent networks: the chain of `recurrent`, whose first hidden layer is the first step. Seen in reviews: the method
extends to them "with minimal changes", and was tried on forecasting; cell, equations and sizes were not found.
Inferred: one correction, the most direct reading, in which a step is a layer; a sum over steps, as the weights are
shared. Ours: the GRU, whose target goes through its gates and its kept state alike; corrections at every step, since
what a step displaces dies out or explodes through many steps unless W_h is near orthogonal, and then early steps alone
or late ones alone would learn; a mean over steps. In a linear Elman network with one correction tau_t - h_t =
W_h^(t-1) (tau_1 - h_1), and its inner product with dLoss/dh_t is the same at every step. Where W_h is orthogonal, too,
and gamma G = (W_o W_h^(T-1))^T, T here the steps, h_t - tau_t is dLoss/dh_t, through any number of them.

Ours, too: the LSTM, whose correction is of h, while c has the target that the cell makes of both; its local loss is of
(h, c), the state. Of a stack the lowest cell's first step is the first hidden layer. A cell's target is what it makes
of the targets of its own last state and of the cell below, so that the order in which cells run is of no account: the
targets are the network's own second run. Where every step is corrected, each layer of the stack has rows of G of its
own. Of tokens the embedding is the first hidden layer, at all of its steps, since no state comes to it: each has the
correction, the embedding learns by it, and it runs forward through W_x. In the local loss of a cell both of its inputs
are held fixed: no error goes from a cell to the one below it, nor back in time.

Where every step has a label, each correction is of its own label's y and p, 0 where there is none, and runs up through
the stack's cells alone, from the state as it was before the step. Carried on in time it would be what another label
said. Of tokens that are like the one before or not, 8 of them, 24 units, every cell corrected, cross-entropies after
200 batches were .01 to .03 (LSTM), .01 to .12 (GRU) and .01 to .04 (Elman) so, and .44, .06 to .37 and .16 to .48 with
the targets carried on; with the output alone trained .47 to .55.

With phi = identity and one hidden layer, (4) is direct feedback alignment. No layer's target needs a weight that an
earlier layer's update changes, tau_l being made of A_l and zeta_l: whether a layer is updated as soon as its target is
there or all are after the pass is one and the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Literal, TypeAlias

import numpy as np

from ._arrays import Array, Labels, check_batch, check_count, check_finite, check_option, check_positive, check_shape
from .activations import Activation, identity
from .layers import Layer, Pass, Update, activity, forward, pulled_back, pushed, without_dropped
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient, one_hot
from .orthogonality import orthogonal

__all__ = [
    "Feedback",
    "FeedbackLaw",
    "differences",
    "feedback_by_channel",
    "first_difference",
    "local_factors",
    "low_rank_feedback",
    "output_error",
    "project",
    "random_feedback",
    "update_factors",
    "updates",
]

Feedback: TypeAlias = Array | tuple[Array, Array]
"""G, shape (n, K), or the factors of one that has rank r: (n, r) and (r, K)."""

FeedbackLaw: TypeAlias = Literal["uniform", "normal", "orthogonal"]
"""How G is drawn; its entries have the same mean square under each."""


def random_feedback(
    n: int, num_classes: int, rng: np.random.Generator, scale: float = 0.5, law: FeedbackLaw = "uniform"
) -> Array:
    """G, shape (n, num_classes): uniform on +-scale sqrt(6 / num_classes), or another law of its mean square.

    Raises ValueError for a size below 1, a scale that is not positive, and an unknown law.

    >>> np.shape(random_feedback(3, 2, np.random.default_rng(0)))
    (3, 2)
    """
    check_count("n", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    check_option("law", law, FeedbackLaw)
    bound = scale * np.sqrt(6 / num_classes)
    match law:
        case "uniform":
            return rng.uniform(-bound, bound, (n, num_classes))
        case "normal":
            return rng.normal(0, bound / np.sqrt(3), (n, num_classes))
        case _:
            return orthogonal((n, num_classes), rng, gain=bound / np.sqrt(3) * np.sqrt(max(n, num_classes)))


def low_rank_feedback(
    n: int, num_classes: int, rank: int, rng: np.random.Generator, scale: float = 0.5
) -> tuple[Array, Array]:
    """Factors (n, rank) and (rank, num_classes) of a G whose entries have the mean square of `random_feedback`'s.

    Ours: r (n + K) numbers in place of n K. Raises ValueError unless 1 <= rank <= num_classes.

    >>> [np.shape(factor) for factor in low_rank_feedback(9, 4, 2, np.random.default_rng(0))]  # 26 numbers for 36
    [(9, 2), (2, 4)]
    """
    check_count("n", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    check_count("rank", rank, 1, num_classes)
    left = rng.normal(0, scale * np.sqrt(2 / num_classes), (n, rank))
    return left, rng.normal(0, 1 / np.sqrt(rank), (rank, num_classes))


def feedback_by_channel(feedback: Array, positions: int) -> Array:
    """G of a map with so many positions, (channels positions, K), from one row for each channel: (channels, K).

    Raises ValueError unless there is a position or more.

    >>> feedback_by_channel(np.array([[1.0, 2.0], [3.0, 4.0]]), 2).tolist()  # a channel's positions are side by side
    [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]
    """
    check_batch("feedback", feedback, "K")
    check_count("positions", positions)
    return feedback.repeat(positions, axis=0)


def project(feedback: Feedback, v: Array) -> Array:
    """G v for every sample of v, (batch, K): (batch, n). G is (n, K), or its factors, (n, r) and (r, K).

    >>> project(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])).tolist()
    [[11.0]]
    >>> project((np.array([[2.0]]), np.array([[1.0, 0.0]])), np.array([[3.0, 4.0]])).tolist()
    [[6.0]]
    """
    if isinstance(feedback, tuple):
        left, right = feedback
        return v @ right.T @ left.T
    return v @ feedback.T


def first_difference(
    feedback: Feedback, targets: Array, error: Array, phi: Activation = identity, gain: float = 1.0
) -> Array:
    """h_j - tau_j of equation (2), one row a sample, but for the mask, from y and p - y, both (batch, K): (batch, n_j).

    Raises ValueError for targets of another shape than the error's, and for a gain that is not finite.

    >>> first_difference(np.array([[1.0, -1.0]]), np.array([[1.0, 0.0]]), np.array([[-0.5, 0.5]])).tolist()  # G e
    [[-1.0]]
    """
    check_batch("error", error, "K")
    check_shape("targets", targets, error.shape)
    check_finite("gain", gain)
    outputs = targets + error
    return gain * (phi.value(project(feedback, outputs)) - phi.value(project(feedback, targets)))


def output_error(
    scores: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    outputs: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """y and e of equations (1) and (2), (batch, K) each: the targets that e is taken to, smoothed if asked.

    `labels` are (batch,), or targets (batch, K), as `output_gradient` takes them; it takes `label_smoothing` and
    `temperature` where these are not 0 and 1, as for cross-entropy. With `outputs`, p of the scores, y is p - e,
    whatever the loss: for labels that have weights, for several labels (the sigmoid), for Huber's loss (the scores).
    Raises ValueError for label smoothing or a temperature with targets or `outputs`.

    >>> [found.tolist() for found in output_error(np.zeros((1, 2)), np.array([0]))]
    [[[1.0, 0.0]], [[-0.5, 0.5]]]
    """
    if (labels.ndim == 2 or outputs is not None) and (label_smoothing or temperature != 1):
        raise ValueError(
            f"label_smoothing: {label_smoothing}, temperature: {temperature}, expected 0 and 1 without labels or with "
            "outputs"
        )
    asked = {"label_smoothing": label_smoothing} if label_smoothing else {}
    if temperature != 1:
        asked["temperature"] = temperature
    error = output_gradient(scores, labels, **asked)
    if outputs is not None:
        return outputs(scores) - error, error
    if labels.ndim == 2:
        return labels, error
    return one_hot(labels, error.shape[1], label_smoothing).astype(error.dtype), error


def _first_reached(layers: Sequence[Layer], clean: Pass, inject: int) -> Array:
    """h_j, x for j = 0. Raises ValueError where `inject` is no layer before the output."""
    check_count("inject", inject, 0, len(layers) - 1)
    return clean.activities[inject - 1] if inject else clean.inputs[0]


def differences(
    layers: Sequence[Layer], clean: Pass, first: Array, inject: int = 1, later: Iterable[Array | None] = ()
) -> Iterator[Array]:
    """h_l - tau_l of the layers l = j..L-1 in turn, each as h_l: equation (3), from h_j - tau_j but for the mask.

    `later` are the corrections of the layers behind the j-th, in turn: None, or h_l less what they make of it.
    Raises ValueError where `inject` is no layer before the output, and for a correction of another shape than h_l.

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (1.0, 2.0, 7.0)]
    >>> clean = forward(layers, np.array([[1.0]]))  # h_1 = 1, tau_1 = 0: the second layer doubles both
    >>> [d.item() for d in differences(layers, clean, np.array([[1.0]]))]
    [1.0, 2.0]
    """
    h = _first_reached(layers, clean, inject)
    check_shape("first", first, h.shape)
    steps, outlet = (layers[inject - 1].steps, layers[inject - 1].outlet) if inject > 0 else ((), ())
    difference = without_dropped(steps, first)
    yield difference
    tau, corrections = h - difference, iter(later)
    for layer, following in zip(layers[inject:-1], clean.activities[inject:-1], strict=True):
        target = pushed(outlet, h, tau)
        tau = activity(layer.steps, layer.value(target))
        correction = next(corrections, None)
        if correction is not None:
            check_shape("later", correction, following.shape)
            tau = tau - without_dropped(layer.steps, correction)
        h, outlet = following, layer.outlet
        yield h - tau


def local_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, found: Iterator[Array], inject: int = 1
) -> Iterator[tuple[Array, Array]]:
    """delta_l of equations (4) and (5), as a_l, and z_l of every layer, first layer first; 0 before the j-th.

    `found` are the `differences`, the error is (batch, K).

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (1.0, 2.0, 7.0)]
    >>> clean = forward(layers, np.array([[1.0]]))
    >>> found = local_factors(layers, clean, np.array([[5.0]]), iter([np.array([[4.0]])]), inject=2)
    >>> [(delta.item(), z.item()) for delta, z in found]
    [(0.0, 1.0), (4.0, 1.0), (5.0, 2.0)]
    """
    if inject == 0:
        next(found)  # the input has a target, and nothing to be trained
    for number, (layer, a) in enumerate(zip(layers[:-1], clean.preactivations[:-1], strict=True), 1):
        delta = pulled_back(layer.steps, a, next(found)) if number >= inject else np.zeros_like(a)
        yield delta, clean.inputs[number - 1]
    yield error, clean.inputs[-1]


def update_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Array,
    first: Array,
    inject: int = 1,
    later: Iterable[Array | None] = (),
) -> Iterator[tuple[Array, Array]]:
    """The factors delta_l and z_l of every layer, first layer first, from the `first_difference`, shaped as h_j.

    delta_l is shaped as a_l, the error is (batch, K). Raises ValueError as `differences`, and for an error of another
    shape than the scores.

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (1.0, 2.0, 7.0)]
    >>> found = update_factors(layers, forward(layers, np.array([[1.0]])), np.array([[5.0]]), np.array([[1.0]]))
    >>> [(delta.item(), z.item()) for delta, z in found]  # z_l of the clean pass
    [(1.0, 1.0), (2.0, 1.0), (5.0, 2.0)]
    """
    check_shape("error", error, clean.scores.shape)
    return local_factors(layers, clean, error, differences(layers, clean, first, inject, later), inject)


def updates(
    layers: Sequence[Layer],
    feedback: Feedback,
    x: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    phi: Activation = identity,
    gain: float = 1.0,
    inject: int = 1,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    every: bool = False,
    outputs: Callable[[Array], Array] | None = None,
) -> tuple[Update, ...]:
    """The updates of equation (6); `labels`, or targets, and what follows from the loss are `output_error`'s.

    For every layer a tuple, shaped as its parameters. Raises ValueError as `output_error` and `differences`, and for a
    G without a row for each unit of h_j.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)  # scores 0: e = -1/2, 1/2
    >>> found = updates(layers, np.array([[1.0, -1.0]]), np.array([[2.0]]), np.array([0]))
    >>> [g.tolist() for (g,) in found]  # one hidden layer and no phi: direct feedback alignment, G e = -1
    [[[-2.0]], [[-1.0], [1.0]]]
    """
    clean = forward(layers, x)
    targets, error = output_error(clean.scores, labels, output_gradient, label_smoothing, temperature, outputs)
    h = _first_reached(layers, clean, inject)
    first = first_difference(feedback, targets, temperature * error, phi, gain)
    check_shape("first", first, (len(h), h[0].size))
    first = first.reshape(h.shape)
    later = repeat(first) if every else ()
    return layer_updates(layers, update_factors(layers, clean, error, first, inject, later))
