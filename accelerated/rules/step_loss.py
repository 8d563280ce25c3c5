"""The loss that a step returns, which nothing is to be backpropagated from."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

KEPT = {"mul", "__mul__", "__rmul__", "div", "__truediv__"}
"""What still gives such a loss: a GradScaler multiplies by its scale, a loop that accumulates divides."""


class StepLoss(Tensor):
    """A tensor without graph. `backward`, scaled or not, raises RuntimeError and says what to do instead."""

    def backward(self, *options: Any, **named: Any) -> NoReturn:
        raise RuntimeError(
            "loss.backward(): the loss of a step has no graph, since assign_credit has filled .grad; leave the line "
            "out, and a GradScaler with it, which would divide gradients by a scale that they do not have"
        )

    def __format__(self, spec: str) -> str:
        return self.as_subclass(Tensor).__format__(spec)

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self.as_subclass(Tensor))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # saved as any tensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
            is_one = func.__name__ in KEPT and isinstance(found, Tensor) and not found.requires_grad
            return found.as_subclass(cls) if is_one else found
