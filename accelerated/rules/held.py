"""Weights of any module held orthogonal, without a rule."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # `torch.compiler.disable` imports the compiler at once
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from .orthogonality import KnownStep, Orthogonality, PlainStep
from .rule import check_count
from .units import Held


def orthogonal(
    module: nn.Module | Sequence[nn.Module],
    name: str | Sequence[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    tolerance: float = 5e-3,
    blocks: int = 1,
) -> "HeldOrthogonal":
    """Holds a weight of any module at orthonormal rows (wide) or columns (tall), by `Orthogonality`.

        optimizer = torch.optim.Adam(model.parameters())
        orthogonal(model, ["fc1.weight", "fc2.weight"], optimizer=optimizer)  # the rest is regular PyTorch

    The weight becomes its polar factor, in place. It stays the same parameter under the same name, so that optimizers
    and checkpoints are as before. Given the `optimizer`, it is within `tolerance` after each of its steps. Whatever
    else has changed it, it is restored before the module next runs or is saved by `state_dict`, unless it was changed
    through `.data`. So without the optimizer it is off between a step and the next forward pass. A compiled forward
    pass needs the optimizer: PyTorch does not promise to look at hooks in one. So do an export, and a weight that
    another module, outside of `module`, reads too.

    `name` may be a path, as in `named_parameters`, or several, which then share the work. `module` may be several
    modules, each with weights of these names; errors call them "0.weight", "1.weight", ...

    A weight is (n_out, n_in). A kernel is (c_out, c_in k k): the matrix of its first axis against all others, which
    is not the convolution. `blocks` holds as many groups of rows each by itself: 3 for an attention's
    `in_proj_weight`, 4 for an LSTM's `weight_hh_l0`, its groups for a convolution.

    Raises ValueError, by its name, for what can't be held: a weight that is computed, complex, not initialised, a
    vector, held already, or frozen far from orthogonal; for an optimizer that does not have it; and for a tolerance
    that its precision does not resolve. FloatingPointError as in `Orthogonality`, where it cannot be restored.

    >>> attention = nn.MultiheadAttention(4, 2)
    >>> held = orthogonal(attention, "in_proj_weight", blocks=3)
    >>> query = attention.in_proj_weight[:4]
    >>> torch.allclose(query @ query.T, torch.eye(4), atol=1e-5)
    True
    """
    several = not isinstance(module, nn.Module)
    modules = [module] if isinstance(module, nn.Module) else list(module)
    names = [name] if isinstance(name, str) else list(name)
    check_count("blocks", blocks)
    if not modules or not names:
        raise ValueError(f"{'name' if modules else 'module'}: none given, expected at least one")
    weights: dict[str, Held] = {}
    found: dict[int, str] = {}
    read_by: dict[nn.Module, list[str]] = {}
    for index, given in enumerate(modules):
        _check_runs(given)
        for path in names:
            key = f"{index}.{path}" if several else path
            owner, attribute = _find(given, path)
            weight = _parameter(key, owner, attribute)
            _check_weight(key, weight, blocks)
            if id(weight) in found:
                raise ValueError(f"weight '{key}': the same parameter as '{found[id(weight)]}'; name it once")
            found[id(weight)] = key
            weights[key] = owner, attribute
            for module in {given, owner}:
                read_by.setdefault(module, []).append(key)
    if optimizer is not None:
        _check_optimizer(optimizer, {key: _parameter(key, *held) for key, held in weights.items()})
    return HeldOrthogonal(weights, read_by, optimizer=optimizer, tolerance=tolerance, blocks=blocks)


class HeldOrthogonal(Orthogonality):
    """Weights that `orthogonal` holds. `step()` restores them at once, `remove()` sets them free.

    `state_dict()` has what an exact continuation needs. Load it after the model's.

    >>> layer = nn.Linear(4, 4)
    >>> held = orthogonal(layer, "weight")
    >>> isinstance(held, HeldOrthogonal), list(held.parameters_held())
    (True, ['weight'])
    >>> held.remove()
    """

    def __init__(
        self,
        weights: Mapping[str, Held],
        read_by: Mapping[nn.Module, Sequence[str]],
        *,
        optimizer: torch.optim.Optimizer | None,
        tolerance: float,
        blocks: int,
    ) -> None:
        super().__init__(weights, tolerance=tolerance, blocks=blocks)
        self.initialise()
        self._versions = self._present_versions()
        self._hooks: list[RemovableHandle] = []
        for module, names in read_by.items():
            before = partial(self._before, names)
            self._hooks += [module.register_forward_pre_hook(before), module.register_state_dict_pre_hook(before)]
        self._follows = optimizer is not None
        self._hook_of_steps = None if optimizer is None else optimizer.register_step_post_hook(self._after)
        _HOLDERS.add(self)

    def parameters_held(self) -> dict[str, nn.Parameter]:
        """By their names. Raises ValueError for one that something computes by now, or that is gone."""
        return {name: _parameter(name, *held) for name, held in self._held.items()}

    def step(self, plain_steps: Mapping[str, PlainStep | KnownStep] | None = None) -> None:
        """Restores the weights, whatever has changed them. No line of a training loop is needed for that."""
        with _as_outside(self.parameters_held().values()):
            super().step(plain_steps)
        self._versions = self._present_versions()

    def remove(self) -> None:
        """Leaves the weights as they are, and free from now on."""
        for hook in [*self._hooks, self._hook_of_steps]:
            if hook is not None:
                hook.remove()
        _HOLDERS.discard(self)

    @_disable_dynamo
    def _after(self, *step: Any) -> None:
        """After a step of the optimizer."""
        self.step()

    def _before(self, names: Sequence[str], *call: Any) -> None:
        """Before a module runs or is saved; a compiled forward pass leaves it to the optimizer, if it was given."""
        if torch.compiler.is_exporting() and not self._follows:
            raise ValueError(f"weight '{names[0]}': held without the optimizer; step() and remove() before an export")
        if not (torch.compiler.is_compiling() and self._follows):
            self._restore_changed(names)

    @_disable_dynamo
    def _restore_changed(self, names: Sequence[str]) -> None:
        for name in names:
            if not _is_lent(*self._held[name]) and self._change(name) != self._versions[name]:
                self.step()
                return

    def _change(self, name: str) -> tuple[int, int]:
        """What tells whether the weight was changed in place or replaced."""
        weight = _parameter(name, *self._held[name])
        return id(weight), weight._version

    def _present_versions(self) -> dict[str, tuple[int, int]]:
        return {name: self._change(name) for name in self._held}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._versions = self._present_versions()

    def __getstate__(self) -> dict[str, Any]:
        """Copies follow no optimizer, as a copied optimizer has no hooks."""
        return {**self.__dict__, "_follows": False, "_hook_of_steps": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _HOLDERS.add(self)


_HOLDERS: WeakSet[HeldOrthogonal] = WeakSet()
"""All there are, so that no two hold the same weight."""


@contextmanager
def _as_outside(weights: Iterable[Tensor]) -> Iterator[None]:
    """Without the autocast and the inference mode of a forward pass: products are the weights' own, and lasting."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in {weight.device.type for weight in weights}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _is_lent(module: nn.Module, attribute: str) -> bool:
    """Whether a tensor of the caller's stands in the parameter's place, as in `torch.func.functional_call`."""
    weight = module._parameters.get(attribute)
    return weight is not None and not isinstance(weight, nn.Parameter)


def _check_runs(module: nn.Module) -> None:
    """Raises ValueError for a module that is not called, so that nothing could look at its weights."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"module: a {type(module).__name__}, expected an nn.Module or several")
    if type(module).__name__ == "OptimizedModule":
        raise ValueError("module: compiled; give the module that was compiled")
    if type(module).forward is nn.Module.forward:
        raise ValueError(
            f"module: a {type(module).__name__} is not called itself; give the modules in it, list(module)"
        )
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise ValueError('module: its attention does not call it; give that, with the name "out_proj.weight"')


def _find(module: nn.Module, path: str) -> Held:
    """The module that has the parameter of that path, and its name there."""
    *parts, attribute = path.split(".")
    try:
        return module.get_submodule(".".join(parts)), attribute
    except AttributeError:
        raise _missing(path, module) from None


def _missing(name: str, module: nn.Module) -> ValueError:
    known = [name for name, _ in module.named_parameters()]
    listed = ", ".join([*known[:8], "..."] if len(known) > 8 else known) or "none"
    return ValueError(f"weight '{name}': not a parameter of the {type(module).__name__}, which has {listed}")


def _parameter(name: str, module: nn.Module, attribute: str) -> nn.Parameter:
    """The parameter of that attribute. Raises ValueError, by its name, where there is none."""
    weight = module._parameters.get(attribute)
    if isinstance(weight, nn.Parameter):
        return weight
    if attribute not in module._buffers and isinstance(getattr(module, attribute, None), Tensor):
        raise ValueError(f"weight '{name}': computed from others; hold it without what computes it")
    raise _missing(name, module)


def _check_weight(name: str, weight: nn.Parameter, blocks: int) -> None:
    """Raises ValueError for a parameter that is no matrix of numbers, and for one that is held."""
    if is_lazy(weight):
        raise ValueError(f"weight '{name}': not initialised yet; call the model once before")
    if not weight.is_floating_point() or weight.device.type == "meta":
        raise ValueError(f"weight '{name}': {weight.dtype} on {weight.device}, expected real numbers in memory")
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(f"weight '{name}': shape {tuple(weight.shape)}, expected (n_out, n_in) or (c_out, c_in, ...)")
    if len(weight) % blocks:
        raise ValueError(f"blocks: {blocks}, expected a divisor of the {len(weight)} rows of weight '{name}'")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"weight '{name}': not all finite, expected finite numbers")
    if any(weight is module._parameters.get(key) for other in _HOLDERS for module, key in other._held.values()):
        raise ValueError(f"weight '{name}': held already; remove() what holds it first")


def _check_optimizer(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError for an optimizer that does not step all of the weights that are not frozen."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer: a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in weights.items():
        if weight.requires_grad and id(weight) not in stepped:
            raise ValueError(f"optimizer: does not have weight '{name}'; give the one that steps it")
