"""FOTON: two forward passes through orthogonal layers, the second with the error taken off the input.

Caillon, Colagrande, Fagnou, Delattre and Allauzen, "Forward Only Learning for Orthogonal Neural Networks of any Depth",
arXiv 2512.20668. For layers of any affine kind; A_l, s_l, p_l and z_l are those of `layers`.

The paper's; of its own numbers 8 and 9, those of the update, are known to us.

    (1)  clean pass:      z_1 = x,             a_l = A_l(z_l),  h_l = s_l(a_l),  z_(l+1) = p_l(h_l),  e = dLoss/dscores
    (2)  projection:      F = W_1^T p_1^T W_2^T p_2^T ... W_L^T,    W_l the linear part of A_l
    (3)  modulated pass:  (1) from z~_1 = x - F e
    (4)  hidden layers:   G_l = 1/B sum_samples (h_l - h~_l) z_l^T    (8 and 9; of a convolution over positions too)
    (5)  output layer:    G_L = 1/B sum_samples e z_L^T
    (6)  scale, l < L:    h_l - h~_l = lambda^(2l-L+1) dLoss/dh_l,  hence G_l = lambda^(2l-L) G_l of backpropagation,
                          exactly where s_l(a) = lambda a and W_l W_l^T = p_l p_l^T = I

Ours.

    (a)  linear pass:     u_0 = F e,  u_l = W_l p_(l-1) u_(l-1),  and s_l'(a_l)^T u_l in place of h_l - h~_l in (4)
    (b)  scale of (a):    G_l = lambda^(l+1-L) G_l of backpropagation,  where (6) is exact
    (c)  linear network:  h_l - h~_l = M_l dLoss/dh_l,    M_l = W_l p_(l-1) M_(l-1) p_(l-1)^T W_l^T,    M_0 = I
    (d)  rotation:        h_l = cos(t) z_l + sin(t) sigma(V z_l),    W_l = cos(t) I + sin(t) V in (2) and (a);
                          W_l W_l^T = I where V = -V^T and V V^T = I
    (e)  max pooling:     p_l is the scaled average of n x n pixels, and s_l ends with n times their maxima, else 0

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| F^T | projection | (K, ...), a row as a sample of x | error projection, rebuilt from the weights |
| e | error | (batch, K) | output error |
| h_l - h~_l | differences[l-1] | (batch, ...), as a_l | stands for dLoss/dh_l |
| M_l | operators[l-1] | (n_l, n_l) | what stands between a linear network's FOTON and backpropagation |
| lambda | activation_gain | | by what activations multiply norms: about 1 for tanh, 0.7 for relu, 1 for maxmin |

In a linear network FOTON is backpropagation for layer l where M_l = I, for any W_L: where every map up to A_l has
orthonormal rows, W_k W_k^T = I and p_k p_k^T = I. Dense layers have in widths that do not grow from the input on,
kernels of `convolution.orthogonal_kernel` in channels that do not. Unshuffling is a permutation, and
`pooling.scaled_average_pool` is scaled for it. M_l is positive semidefinite, so the update of a hidden layer of a
linear network never has a negative inner product with its gradient. The available summary of the paper asks for W^T W =
I, which is not sufficient for a layer that widens; a test shows it. Outlets have to be linear: max pooling is not, and
a convolution padded with zeros is not orthogonal.

In other networks FOTON approximates: it applies the derivatives of the layers below a layer, and backpropagation those
of the layers above. (6) describes the norms of the updates that follow from this; `activation_gain` corrects them, the
paper does not. Equal norms are not enough. Maxmin permutes units and keeps every norm, but the permutation depends on
the sample, and F has the weights alone. The equivalence does not extend to maxmin, which the summary claims: a test
shows an error of more than half the gradient. With the transposed Jacobian of each sample in the place of F the test
finds the gradient, for a small step. The paper has no biases: here they get the update without z. The output layer need
not be orthogonal. Both passes share dropout's masks, which F leaves out.

(a) is a modulated pass without the activations (`linear`). For W W^T = I, u_l is what backpropagation through the
linear maps alone gives. The layer's own derivative is then where backpropagation has it, and only those of the layers
above are missing. The update of the last hidden layer is exact for any activation.

(d) is a shortcut that stays orthogonal while V learns. The derivative of its sigma is inside the layer, so that the
update has it in either pass.

(e) is max pooling. Given its places, a sample's maximum is a selection S with S S^T = I, but S differs by sample, and F
is shared. The adjoint of the average, A^T, puts the same value on all pixels of a square, so that n S A^T = I for every
sample. In a linear network (a) hence finds the gradient of a pooled layer and of those above it. A layer below a max
pooling gets A^T d where it should get S^T d: of the same norm, with a cosine of 1/n between them. The modulated pass
finds the same, but of 1/n the size above each max pooling.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from . import layers as chains
from ._arrays import Array, Labels, check_count, check_positive, check_shape
from .layers import Layer, Pass, Update, activity, forward, linear_part, pulled_back, pushed
from .losses import cross_entropy_gradient

__all__ = [
    "credit_operators",
    "depth_correction",
    "differences",
    "error_projection",
    "linear_errors",
    "recomputed_factors",
    "update_factors",
    "updates",
]


def error_projection(layers: Sequence[Layer], clean: Pass) -> Array:
    """F^T of equation (2), one row a class: (K, ...), each shaped as a sample of x.

    Biases, activations and masks do not enter, and of the clean pass the shapes alone. Raises ValueError for an outlet
    that is not linear.

    >>> layers = Dense(np.array([[2.0]]), None, (relu,)), Dense(np.array([[1.0], [3.0]]), None)
    >>> error_projection(layers, forward(layers, np.array([[-1.0]]))).tolist()  # relu is off, and does not enter
    [[2.0], [6.0]]
    """
    rows = np.eye(clean.scores.shape[1], dtype=clean.scores.dtype)
    for index in reversed(range(len(layers))):
        rows = linear_part(layers[index]).adjoint(clean.inputs[index], rows)  # of z_(index+1)
        if index > 0:
            rows = pulled_back(layers[index - 1].outlet, clean.activities[index - 1][:1], rows)  # of h_index
    return rows


def differences(layers: Sequence[Layer], clean: Pass, error: Array, projection: Array) -> Iterator[Array]:
    """h_l - h~_l of the hidden layers l = 1..L-1 in turn, by the modulated pass (3): each shaped as a_l.

    The error is (batch, K), the projection (K, ...), a row shaped as a sample of x.

    >>> layers = Dense(np.array([[2.0]]), None, (relu,)), Dense(np.array([[1.0]]), None)
    >>> clean, error, projection = forward(layers, np.array([[1.0]])), np.array([[1.0]]), np.array([[2.0]])
    >>> [d.tolist() for d in differences(layers, clean, error, projection)]  # x~ = -1: relu(2) - relu(-2)
    [[[2.0]]]
    """
    modulated = forward(layers, clean.inputs[0] - np.tensordot(error, projection, axes=1))
    for h, h_modulated in zip(clean.activities[:-1], modulated.activities[:-1], strict=True):
        yield h - h_modulated


def linear_errors(layers: Sequence[Layer], clean: Pass, error: Array, projection: Array) -> Iterator[Array]:
    """s_l'(a_l)^T u_l of equation (a) for the hidden layers l = 1..L-1 in turn: each shaped as a_l.

    Arguments as `differences`.

    >>> layers = Dense(np.array([[2.0]]), None, (relu,)), Dense(np.array([[1.0]]), None)
    >>> clean, error, projection = forward(layers, np.array([[1.0]])), np.array([[1.0]]), np.array([[2.0]])
    >>> [d.tolist() for d in linear_errors(layers, clean, error, projection)]  # W_1 F e, all of it: a_1 = 2 is on
    [[[4.0]]]
    """
    u = np.tensordot(error, projection, axes=1)
    for layer, z, a, h in zip(layers[:-1], clean.inputs, clean.preactivations, clean.activities, strict=False):
        u = linear_part(layer).difference(z, u)
        yield pulled_back(layer.steps, a, u)
        u = pushed(layer.outlet, h, u)


def depth_correction(activation_gain: float, depth: int, linear: bool = False) -> list[float]:
    """lambda^(L-2l), which undoes (6), or with `linear` lambda^(L-1-l), which undoes (b), for l < L; 1 for l = L.

    A list of L numbers, L being `depth`. Raises ValueError unless the gain is positive.

    >>> depth_correction(0.5, 3), depth_correction(0.5, 3, linear=True)
    ([0.5, 2.0, 1.0], [0.5, 1.0, 1.0])
    """
    check_positive("activation_gain", activation_gain)
    check_count("depth", depth)
    if linear:
        return [activation_gain ** (depth - 1 - layer) for layer in range(1, depth)] + [1.0]
    return [activation_gain ** (depth - 2 * layer) for layer in range(1, depth)] + [1.0]


def update_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Array,
    projection: Array,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e at the output), as a_l, and z_l of every layer, first layer first: the factors of (4) and (5).

    With `linear` the first of them is that of equation (a). With `activation_gain`, the lambda of (6), it is multiplied
    by its `depth_correction`. Raises ValueError for an error or a projection of another shape.

    >>> layers = Dense(np.array([[2.0]]), None), Dense(np.array([[1.0]]), None)
    >>> clean, error, projection = forward(layers, np.array([[1.0]])), np.array([[1.0]]), np.array([[2.0]])
    >>> [(delta.item(), z.item()) for delta, z in update_factors(layers, clean, error, projection)]  # W_1 W_1^T = 4
    [(4.0, 1.0), (1.0, 2.0)]
    """
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (error.shape[1], *clean.inputs[0].shape[1:]))
    found = (linear_errors if linear else differences)(layers, clean, error, projection)
    correction = depth_correction(activation_gain, len(layers), linear)
    for factor, delta, z in zip(correction, chain(found, [error]), clean.inputs, strict=True):
        yield factor * delta, z


def recomputed_factors(
    layers: Iterable[Layer],
    depth: int,
    x: Array,
    error: Array,
    projection: Array,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """`update_factors` from x in place of the clean pass: both passes side by side, one layer alive at a time.

    Shapes are those of `update_factors`. Each of the `depth` layers is taken when its turn comes, so that its mask or
    kernel need not be there before. Raises ValueError for another number of layers, and as `update_factors` does.

    >>> layers = Dense(np.array([[2.0]]), None), Dense(np.array([[1.0]]), None)
    >>> found = recomputed_factors(iter(layers), 2, np.array([[1.0]]), np.array([[1.0]]), np.array([[2.0]]))
    >>> [(delta.item(), z.item()) for delta, z in found]
    [(4.0, 1.0), (1.0, 2.0)]
    """
    check_shape("error", error, (len(x), len(projection)))
    check_shape("projection", projection, (len(projection), *x.shape[1:]))
    u = np.tensordot(error, projection, axes=1)
    z, z_modulated = x, x - u
    for factor, (index, layer) in zip(depth_correction(activation_gain, depth, linear), enumerate(layers), strict=True):
        if index == depth - 1:
            yield error, z
            continue
        a = layer.value(z)
        h = activity(layer.steps, a)
        if linear:
            u = linear_part(layer).difference(z, u)
            yield factor * pulled_back(layer.steps, a, u), z
            u = pushed(layer.outlet, h, u)
        else:
            h_modulated = activity(layer.steps, layer.value(z_modulated))
            yield factor * (h - h_modulated), z
            z_modulated = activity(layer.outlet, h_modulated)
        z = activity(layer.outlet, h)


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> tuple[Update, ...]:
    """G_l of equations (4) and (5), or with `linear` of (a), divided for a gain by the scale of (6) or (b).

    For every layer a tuple in the order of its parameters, shaped as they are. `projection` is F^T, (K, ...), where it
    is not built from the present weights: every few steps, say. Raises ValueError where layers, x and labels do not
    fit, as `update_factors` and the gradient do.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[3.0]]), None)  # W_1 is orthogonal: backpropagation
    >>> found = updates(layers, np.array([[2.0]]), np.array([[5.0]]), losses.squared_error_gradient)  # e = 6 - 5
    >>> [g.item() for (g,) in found]  # W_2 e x, e h_1
    [6.0, 2.0]
    """
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    if projection is None:
        projection = error_projection(layers, clean)
    return chains.updates(layers, update_factors(layers, clean, error, projection, activation_gain, linear))


def credit_operators(weights: Sequence[Array]) -> tuple[Array, ...]:
    """M_l of equation (c) for the hidden layers l = 1..L-1 of dense layers without outlets: (n_l, n_l) each.

    The weights are (n_l, n_(l-1)) each.

    >>> [m.item() for m in credit_operators([np.array([[2.0]]), np.array([[3.0]]), np.array([[7.0]])])]  # 4, 3 * 4 * 3
    [4.0, 36.0]
    """
    operators: list[Array] = []
    for weight in weights[:-1]:
        through = weight if not operators else weight @ operators[-1]
        operators.append(through @ weight.T)
    return tuple(operators)
