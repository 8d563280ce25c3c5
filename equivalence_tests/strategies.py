"""Everything that the tests draw. Sizes are awkward on purpose; arrays come from a drawn seed."""

from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from prograde.reference import forward_forward, layers, orthogonality, pair_losses

from .sides import Dense, Images, Padded, ReferenceSide

WIDTHS = [2, 3, 5, 8, 13, 16, 17, 24, 33]
BATCHES = [1, 2, 3, 7, 16, 33]
SMOOTH = ("identity", "gelu", "silu", "tanh")
KINKED = ("relu", "leaky_relu", "maxmin")
NETWORK_ACTIVATIONS = [*SMOOTH, *KINKED]
POOLS = [1, 2, 3]
"""Sizes of the squares whose maxima networks take."""


FIXED = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
"""The same few examples of a property in every run."""


class KinkDistance:
    """How far pre-activations stay from a kink: far beyond any rounding, and rare enough to be met by chance."""

    size = 1e-3

    @classmethod
    def set_for(cls, eps: float, known: Container[str] | None = None) -> None:
        """Wider for precisions as coarse as bfloat16, where no network keeps clear by chance: smooth ones only.

        Nor of squares with two pixels that are nearly the largest: none takes maxima. Networks have the `known`
        activations, by default all.
        """
        coarse = eps > 1e-4
        cls.size = 8 * eps if coarse else 1e-3
        names = SMOOTH if coarse else (*SMOOTH, *KINKED)
        NETWORK_ACTIVATIONS[:] = [name for name in names if known is None or name in known] or names
        POOLS[:] = [1] if coarse else [1, 2, 3]


def take_few_shapes() -> None:
    """Widths and batches are few, for frameworks that compile code for each shape."""
    WIDTHS[:], BATCHES[:] = [3, 8], [7]


class Case(NamedTuple):
    """A network with a batch: x (batch, n_0), labels (batch,), masks one per layer or None."""

    dense: Dense
    x: Any
    labels: Any
    masks: Any

    @property
    def depth(self) -> int:
        return len(self.dense.weights)

    @property
    def num_classes(self) -> int:
        return len(self.dense.weights[-1])


@st.composite
def seeds(draw: st.DrawFn) -> np.random.Generator:
    """A generator from a drawn seed."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))


@st.composite
def arrays(draw: st.DrawFn, scale: float = 1.0, even: bool = False) -> Any:
    """(batch, n) of normal numbers; n even if asked."""
    batch = draw(st.sampled_from(BATCHES), label="batch")
    width = draw(st.sampled_from(WIDTHS), label="width")
    return scale * draw(seeds()).standard_normal((batch, 2 * width if even else width))


@st.composite
def matrices(draw: st.DrawFn) -> Any:
    """Rectangular matrices of normal numbers with spectral norm about 2, wide, tall and square."""
    n_out, n_in = (draw(st.sampled_from(WIDTHS), label=label) for label in ("n_out", "n_in"))
    return draw(seeds()).standard_normal((n_out, n_in)) / np.sqrt(max(n_out, n_in))


@st.composite
def near_orthogonal(draw: st.DrawFn, largest: float = 1.3, smallest: float = 0.6) -> Any:
    """Matrices whose singular values lie between the two numbers."""
    n_out, n_in = (draw(st.sampled_from(WIDTHS), label=label) for label in ("n_out", "n_in"))
    rng = draw(seeds())
    u, _, vt = np.linalg.svd(rng.standard_normal((n_out, n_in)), full_matrices=False)
    return (u * rng.uniform(smallest, largest, min(n_out, n_in))) @ vt


@st.composite
def scored(draw: st.DrawFn) -> tuple[Any, Any]:
    """Scores (batch, K) and labels (batch,)."""
    batch = draw(st.sampled_from(BATCHES), label="batch")
    num_classes = draw(st.integers(2, 12), label="num_classes")
    rng = draw(seeds())
    return 3 * rng.standard_normal((batch, num_classes)), rng.integers(0, num_classes, batch)


def kink_distance(name: str, a: Any) -> Any:
    """Distance of each sample's pre-activations from the activation's kinks: (batch,), infinite without kinks."""
    if name in ("relu", "leaky_relu"):
        return np.abs(a).min(axis=1)
    if name == "maxmin":
        return np.abs(a[:, 0::2] - a[:, 1::2]).min(axis=1)
    return np.full(len(a), np.inf)


def clear_of_kinks(dense: Dense, batch: int, masks: Any, rng: np.random.Generator) -> Any:
    """A batch x, (batch, n_0), with pre-activations `KinkDistance.size` away from every kink that silence no layer."""
    x = rng.standard_normal((batch, dense.weights[0].shape[1]))
    for _ in range(300):
        clean = layers.forward(ReferenceSide().chain(dense, masks), x)
        distances = [kink_distance(name, a) for name, a in zip(dense.activations, clean.preactivations, strict=True)]
        alive = [np.any(h != 0, axis=1) for h in clean.inputs]
        redraw = (np.min(distances, axis=0) < KinkDistance.size) | ~np.all(alive, axis=0)
        if not redraw.any():
            return x
        x[redraw] = rng.standard_normal((redraw.sum(), x.shape[1]))
    raise RuntimeError("no batch clear of kinks in 300 draws: the network is too large for that distance, or silent")


@st.composite
def cases(
    draw: st.DrawFn,
    activations: tuple[str, ...] | None = None,
    orthogonal: bool | None = None,
    growing: bool = True,
    max_hidden: int = 3,
    biases: bool | None = None,
    dropout: bool | None = None,
) -> Case:
    """A classifier with 1..max_hidden hidden layers, its last layer linear; None leaves a property to chance.

    Orthogonal hidden layers have orthonormal rows, or columns where they grow; `growing=False` draws widths that do
    not.
    """
    name = draw(st.sampled_from(activations or NETWORK_ACTIVATIONS), label="activation")
    hidden = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=max_hidden), label="hidden")
    n_in = draw(st.sampled_from(WIDTHS), label="n_in")
    if name == "maxmin":
        hidden = [2 * ((width + 1) // 2) for width in hidden]
        n_in += n_in % 2
    if not growing:
        hidden = sorted(hidden, reverse=True)
        n_in = max(n_in, *hidden)
    num_classes = draw(st.integers(2, 10), label="num_classes")
    batch = draw(st.sampled_from(BATCHES), label="batch")
    with_orthogonal = draw(st.booleans(), label="orthogonal") if orthogonal is None else orthogonal
    with_bias = draw(st.booleans(), label="biases") if biases is None else biases
    with_dropout = draw(st.booleans(), label="dropout") if dropout is None else dropout
    rng = draw(seeds())

    shapes = list(zip([*hidden, num_classes], [n_in, *hidden], strict=True))
    for _ in range(50):  # some weights silence a layer whatever the input is: they are drawn anew
        if with_orthogonal:
            weights = [orthogonality.orthogonal(shape, rng) for shape in shapes[:-1]]
        else:
            weights = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes[:-1]]
        weights.append(rng.standard_normal(shapes[-1]) / np.sqrt(shapes[-1][1]))
        offsets = [0.3 * rng.standard_normal(shape[0]) if with_bias else None for shape in shapes]
        dense = Dense(tuple(weights), tuple(offsets), (name,) * len(hidden) + ("identity",))
        masks = keeping_masks([*hidden, num_classes], batch, rng) if with_dropout else None
        try:
            x = clear_of_kinks(dense, batch, masks, rng)
        except RuntimeError:
            continue
        return Case(dense, x, rng.integers(0, num_classes, batch), masks)
    raise RuntimeError("no network clear of kinks in 50 draws")


def keeping_masks(widths: list[int], batch: int, rng: np.random.Generator) -> Any:
    """Dropout masks that keep at least one unit of every sample, so that no update is zero by chance."""
    masks = layers.dropout_masks(widths, batch, 0.3, rng)
    for mask in masks:
        if mask is not None:
            mask[:, rng.integers(mask.shape[1])] = 1 / 0.7
    return masks


class PaddedCase(NamedTuple):
    """A convolutional network with a batch: x (batch, c_0, height, width), labels (batch,)."""

    images: Images
    x: Any
    labels: Any

    @property
    def depth(self) -> int:
        return len(self.images.layers) + len(self.images.dense.weights)

    @property
    def num_classes(self) -> int:
        return len(self.images.dense.weights[-1])

    def feature_map(self) -> tuple[int, ...]:
        """The shape of the first convolution's output."""
        return tuple(ReferenceSide().chain(self.images)[0].value(self.x).shape[1:])


@st.composite
def padded_cases(
    draw: st.DrawFn, activations: tuple[str, ...] = SMOOTH, max_convolutions: int = 2, groups: bool = False
) -> PaddedCase:
    """One or two convolutions of any stride, padding and shape of kernel, and at most one dense hidden layer.

    With `groups` each convolution has as many as divide its channels, one among them.
    """
    rng = draw(seeds())
    activation = draw(st.sampled_from(activations), label="activation")
    biases = draw(st.booleans(), label="biases")
    channels = draw(st.integers(1, 3), label="channels")
    size = [draw(st.integers(7, 10), label="pixels") for _ in range(2)]
    x = rng.standard_normal((draw(st.sampled_from([1, 3, 5]), label="batch"), channels, *size))
    layers = []
    for _ in range(draw(st.integers(1, max_convolutions), label="convolutions")):
        kernel = [draw(st.integers(1, 3), label="kernel") for _ in range(2)]
        stride = (draw(st.integers(1, 2), label="stride"), 1)
        padding = (draw(st.integers(0, 1), label="padding"), draw(st.integers(0, 1), label="padding"))
        c_out = draw(st.integers(2, 4), label="channels")
        divisors = [n for n in range(1, c_out + 1) if groups and channels % n == c_out % n == 0]
        parts = draw(st.sampled_from(divisors or [1]), label="groups")
        seen = channels // parts
        weights = rng.standard_normal((c_out, seen, *kernel)) / np.sqrt(seen * np.prod(kernel))
        sides = zip(size, kernel, stride, padding, strict=True)
        size = [(n + 2 * around - k) // step + 1 for n, k, step, around in sides]
        pool = draw(st.sampled_from([n for n in POOLS if n <= min(size)]), label="pool")
        size = [n // pool for n in size]
        bias = 0.3 * rng.standard_normal(c_out) if biases else None
        layers.append(Padded(weights, bias, activation, stride, padding, pool, parts))
        channels = c_out
        if min(size) < 3:
            break
    widths = [channels * size[0] * size[1], *draw(st.sampled_from([(), (5,)]), label="hidden"), 4]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    dense = Dense(
        tuple(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes),
        tuple(0.3 * rng.standard_normal(n) if biases else None for n in widths[1:]),
        (activation,) * (len(shapes) - 1) + ("identity",),
    )
    return PaddedCase(Images(tuple(layers), dense), x, rng.integers(0, 4, len(x)))


class Streams(NamedTuple):
    """Hidden layers with a labelled batch and wrong labels for it."""

    dense: Dense
    x: Any
    labels: Any
    negative_labels: Any

    @property
    def depth(self) -> int:
        return len(self.dense.weights)


@st.composite
def streams(draw: st.DrawFn, num_classes: int = 5, min_layers: int = 1) -> Streams:
    """1 to 3 hidden layers, or no fewer than told, on inputs of 11 to 24 pixels, the first five of them for the label.

    Units come in pairs of opposite weights, so that no sample silences a layer; goodness has no kinks.
    """
    name = draw(st.sampled_from([n for n in NETWORK_ACTIVATIONS if n != "identity"]), label="activation")
    hidden = draw(st.lists(st.sampled_from([4, 6, 16, 22]), min_size=min_layers, max_size=3), label="hidden")
    n_in = draw(st.sampled_from([11, 16, 24]), label="n_in")
    batch = draw(st.sampled_from(BATCHES), label="batch")
    with_bias = draw(st.booleans(), label="biases")
    rng = draw(seeds())
    shapes = list(zip(hidden, [n_in, *hidden[:-1]], strict=True))
    dense = Dense(
        tuple(opposite_pairs(shape, rng) for shape in shapes),
        tuple(0.3 + 0.2 * rng.standard_normal(shape[0]) if with_bias else None for shape in shapes),
        (name,) * len(hidden),
    )
    labels = rng.integers(0, num_classes, batch)
    x = rng.standard_normal((batch, n_in))
    return Streams(dense, x, labels, forward_forward.wrong_labels(labels, num_classes, rng))


def opposite_pairs(shape: tuple[int, int], rng: np.random.Generator) -> Any:
    """Weights (n_out, n_in) whose second half of rows is the negative of the first."""
    half = rng.standard_normal((shape[0] // 2, shape[1])) * np.sqrt(1.5 / shape[1])
    return np.concatenate([half, -half])


@st.composite
def layer_goodness(draw: st.DrawFn) -> pair_losses.LayerGoodness:
    """A layer's goodness on two streams; the first sample is told wrongly, by this layer and by the others."""
    layer = draw(st.integers(0, 3), label="layer")
    depth = layer + draw(st.integers(1, 3), label="layers from this one on")
    batch = draw(st.sampled_from(BATCHES), label="batch")
    scale = draw(st.sampled_from([1.0, 3.0, -2.0]), label="scale")
    spread = draw(st.sampled_from([0.3, 2.0, 20.0]), label="spread")
    rng = draw(seeds())
    positive, negative, prior_positive, prior_negative = scale + spread * rng.standard_normal((4, batch))
    positive[0], negative[0] = scale - 1 - spread, scale + 1 + spread
    prior_positive[0], prior_negative[0] = -0.2 * spread, 0.3 * spread
    return pair_losses.LayerGoodness(layer, depth, scale, positive, negative, prior_positive, prior_negative)


def size_of(layer: pair_losses.LayerGoodness) -> float:
    """How large the numbers of a layer's goodness are, at least 1: what rounding errors are a share of."""
    return max(1.0, *(float(np.abs(array).max()) for array in layer[3:]), abs(layer.scale))
