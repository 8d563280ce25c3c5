"""Bytes of tensors that are alive at one time."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made inside and are still referred to; `peak` is their maximum."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.holders: dict[int, int] = {}
        self.bytes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> Tensor:
        """Counts the tensor's storage for as long as the tensor lives."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key != 0 and key not in self.known:
            self.holders[key] = self.holders.get(key, 0) + 1
            self.bytes[key] = storage.nbytes()
            weakref.finalize(tensor, self._let_go, key)
            self.peak = max(self.peak, sum(self.bytes.values()))
        return tensor

    def _let_go(self, key: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            del self.holders[key], self.bytes[key]


@contextmanager
def live_bytes(known: Iterable[Tensor] = ()) -> Iterator[LiveBytes]:
    """Counts what is made inside, also what autograd saves; `known` are tensors that are not to be counted."""
    with LiveBytes(known) as live, torch.autograd.graph.saved_tensors_hooks(live.hold, lambda tensor: tensor):
        yield live


def alive() -> list[Tensor]:
    """The tensors that Python refers to, but for those that share memory with a gradient of another."""
    kinds = (Tensor, torch.nn.Parameter)  # others may have no memory of their own
    found = [tensor for tensor in gc.get_objects() if type(tensor) in kinds and tensor.layout is torch.strided]
    gradients = [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]
    theirs = {gradient.untyped_storage().data_ptr() for gradient in gradients if gradient.layout is torch.strided}
    return [tensor for tensor in found if tensor.untyped_storage().data_ptr() not in theirs]
