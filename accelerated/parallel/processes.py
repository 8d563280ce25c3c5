"""The processes of a group, and what they tell each other besides tensors on their way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """A group of processes, by default all of them; `rank` is this one's number in it, `size` how many there are.

    Numbers that the host reads go through a group for the CPU, so that no step waits for a GPU.

    Groups are held weakly: the threads of one end with it, in `destroy_process_group`, and one that still runs as
    Python ends brings the process down.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "group: torch.distributed is not initialised; call torch.distributed.init_process_group() in processes "
                "that torchrun has started"
            )
        group = group or dist.distributed_c10d._get_default_group()
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: this process is not in it")
        self._group = ref(group)
        self._of_host = ref(group if "cpu" in _devices(group) else _of_cpu(self.ranks))

    @property
    def group(self) -> dist.ProcessGroup:
        """Raises ValueError after `destroy_process_group`."""
        return _living(self._group)

    @property
    def of_host(self) -> dist.ProcessGroup:
        """The same processes, for tensors on the CPU."""
        return _living(self._of_host)

    @property
    def ranks(self) -> list[int]:
        """The numbers of its processes among all."""
        return dist.get_process_group_ranks(self.group)

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Inside, a failure to reach the other processes is told as what it is. Raises RuntimeError."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.size} lost another one, which has ended or did not answer in time; "
                f"start all of them again from the last checkpoint ({error})"
            ) from error

    def all_told(self, *numbers: float) -> list[list[float]]:
        """What each process tells, in order of rank; as many numbers of each."""
        told = torch.tensor(numbers, dtype=torch.float64)
        every = [torch.empty_like(told) for _ in range(self.size)]
        with self.lost():
            dist.all_gather(every, told, group=self.of_host)
        return [part.tolist() for part in every]

    def every(self, told: Any) -> list[Any]:
        """What each process tells, of any kind, in order of rank."""
        found = [None] * self.size
        with self.lost():
            dist.all_gather_object(found, told, group=self.of_host)
        return found

    def first(self, told: Any) -> Any:
        """What the process of rank 0 tells, of any kind."""
        box = [told]
        with self.lost():
            dist.broadcast_object_list(box, src=self.ranks[0], group=self.of_host)
        return box[0]

    def sum(self, *arrays: Tensor) -> None:
        """Each becomes its sum over all processes, in place."""
        with self.lost():
            for array in arrays:
                dist.all_reduce(array, group=self.group)

    def gathered(self, rows: Tensor, counts: list[int]) -> Tensor:
        """The rows of all processes, of which each has so many, in order of rank."""
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in counts]
        with self.lost():
            dist.all_gather(every, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])


def _living(group: "ref[dist.ProcessGroup]") -> dist.ProcessGroup:
    found = group()
    if found is None:
        raise ValueError("group: it was destroyed, as by torch.distributed.destroy_process_group()")
    return found


def _of_cpu(ranks: list[int]) -> dist.ProcessGroup:
    """A group of these processes, for the CPU, which no other process has to call."""
    found = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return found  # pyright: ignore[reportReturnType]  # a number only where this process is none of them


def _devices(group: dist.ProcessGroup) -> set[str]:
    """Kinds of devices whose tensors it takes."""
    return {device.type for device in group._device_types}
