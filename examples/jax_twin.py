"""FOTON in JAX, held to the reference: `prograde check --twin jax_twin --few-shapes` in this folder."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from prograde.reference.activations import Activation

from_numpy = jnp.asarray


def updates(layers, x, labels):  # equations (1) to (5), of dense layers and cross-entropy
    def activities(z):
        found = [z]
        for weight, bias, activation, mask in layers:
            h = activation.value(found[-1] @ weight.T + (0 if bias is None else bias))
            found.append(h if mask is None else h * mask)
        return found

    h = activities(x)
    projected = error = jax.nn.softmax(h[-1]) - jax.nn.one_hot(labels, h[-1].shape[1], dtype=x.dtype)
    for weight, *_ in reversed(layers):
        projected = projected @ weight
    deltas = [*(a - b for a, b in zip(h[1:-1], activities(x - projected)[1:-1], strict=True)), error]
    factors = zip(layers, deltas, h, strict=False)
    return [(d.T @ z / len(x), *([] if layer[1] is None else [d.mean(0)])) for layer, d, z in factors]


def slope(a, d):  # 1 - tanh(a)^2 keeps no digits of large a
    return 4 * jax.nn.sigmoid(2 * a) * jax.nn.sigmoid(-2 * a) * d


tanh = Activation(jnp.tanh, slope, slope, lambda a, u: jnp.tanh(u) * (1 - jnp.tanh(a) * jnp.tanh(a - u)))
identity = Activation(lambda a: a, lambda a, u: u, lambda a, d: d, lambda a, u: u)
activations = SimpleNamespace(ACTIVATIONS={"tanh": tanh, "identity": identity})
layers = SimpleNamespace(dense_chain=lambda *parts: list(zip(*parts, strict=True)))
foton = SimpleNamespace(updates=updates)
