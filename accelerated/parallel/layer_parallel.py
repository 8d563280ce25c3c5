"""Layer-parallel training of local rules: each process trains some of the units, as batches stream through."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from .._arrays import readable
from ..rules import LocalClassifiers, Rule, UnitUpdate
from ..rules.rule import check_count
from .processes import Processes

AHEAD = 2
"""How many batches may be on their way to the next process."""

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
HEAD, AXES = 5, 5
"""How many numbers tell of a batch on its way, before its shape; the most axes that activities have."""


class LayerParallel(Rule):
    """A local rule in several processes, each of which trains some of its units: no step waits for a later unit.

        rule = LayerParallel(MonoForward(model))           # after torch.distributed.init_process_group()
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
        for x, y in loader:                                # the same in every process
            loss = rule.assign_credit(x, y)                # the sum of those of this process's units
            optimizer.step()
        rule.synchronise()

    A batch goes through the processes in turn, which go on to the next one as soon as they have sent it on: they wait
    for filling and draining alone. Parameters are bit for bit those of one process, unless modules draw from PyTorch's
    generator, as nn.Dropout does: each process has its own. `split` is the number of units of each process; without it
    the one with the most parameters has as few as can be.

    Every process holds the whole rule, `rule.rule`. `parameters` and `state_dict` are those of its own units, and of
    what belongs to none. `synchronise` brings each unit to all processes: all of them call it before `rule(x)`, before
    one saves the whole, and at the end. `calibrate` does so, and wants the same data in each. `save` and `load` are of
    each process's own part, by torch.distributed.checkpoint.

    Raises ValueError for rules other than `LocalClassifiers` and its kin, for `detach=False` and a read-out, which
    more than one unit trains, for shortcuts, and for fewer units than processes; and for a batch that a process before
    did not take, which none after it trains on. RuntimeError where a process is lost.

    A group of one process shows how it is used:

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> rule = LayerParallel(rules.MonoForward(model), split=[2])
    >>> loss, owned = rule.assign_credit(torch.eye(2), torch.tensor([0, 1])), rule.owned
    >>> rule.synchronise()
    >>> dist.destroy_process_group()
    >>> loss.shape, owned
    (torch.Size([]), [range(0, 2)])
    """

    connects_processes = True

    def __init__(
        self, rule: LocalClassifiers, *, split: Sequence[int] | None = None, group: dist.ProcessGroup | None = None
    ) -> None:
        name = type(rule).__name__
        if not isinstance(rule, LocalClassifiers):
            raise ValueError(f"rule: a {name}, expected a local one, as MonoForward")
        if not rule.detach:
            raise ValueError(f"rule: {name} with detach=False, which is not local; expected detach=True")
        if rule.aggregation.readout is not None:
            raise ValueError(f"rule: {name} with a read-out of all units; expected another aggregation")
        if rule.local.shortcuts:
            raise ValueError(f"rule: {name} of a model with shortcuts, which would go from process to process")
        nn.Module.__init__(self)
        self.rule = rule
        self.processes = Processes(group)
        self.owned = _owned(split, rule, self.processes.size)
        """The numbers of the units of each process."""
        self.__dict__["model"] = rule.model  # not as a module: it is one of the rule's
        self.units = [rule.units[index] for index in self.owned[self.processes.rank]]
        self.num_classes, self.generator = rule.num_classes, rule.generator
        self._owners = self._found_owners()
        self._sent: deque[tuple[list[dist.Work], list[Tensor]]] = deque()
        self._steps = 0
        self._is_whole = True
        named = [(name, value.shape, value.dtype) for name, value in rule.named_parameters()]
        is_same = named == self.processes.first(named)
        if not all(same for (same,) in self.processes.all_told(is_same)):
            raise ValueError("rule: not the same in all processes, by the names and shapes of its parameters")
        self._bring(dict.fromkeys(rule.state_dict(), 0))

    def _found_owners(self) -> dict[str, int]:
        """The process that trains it, of every name in the rule's state that belongs to a unit."""
        rule = self.rule
        of_module: dict[nn.Module, int] = {part: 0 for module in rule.local.stem for part in module.modules()}
        for rank, owned in enumerate(self.owned):
            for index in owned:
                unit = rule.units[index]
                for module in (unit.module, *unit.inside, *unit.outside, rule.heads[index]):
                    of_module.update(dict.fromkeys(module.modules(), rank))
        found = {}
        for name in rule.state_dict():
            rank = of_module.get(rule.get_submodule(name.rpartition(".")[0]), -1)
            if rank >= 0:
                found[name] = rank
        return found

    def _is_own(self, name: str) -> bool:
        return self._owners.get(name, self.processes.rank) == self.processes.rank

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """By their names in the rule; those of other processes' units are left out."""
        for name, parameter in self.rule.named_parameters("", recurse, remove_duplicate):
            if self._is_own(name):
                yield f"{prefix}.{name}" if prefix else name, parameter

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The rule's own, without what belongs to other processes' units."""
        state = self.rule.state_dict(*args, **options)
        return {name: value for name, value in state.items() if self._is_own(name)}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Of this process's units, or of more. Raises ValueError, by its name, for one that is missing."""
        missing = [name for name in self.state_dict() if name not in state_dict]
        if missing:
            raise ValueError(f"state_dict: no '{missing[0]}', which a unit of this process has")
        return self.rule.load_state_dict({**self.rule.state_dict(), **state_dict}, *args, **options)

    @property
    def least_batch(self) -> int:
        """The rule's own."""
        return self.rule.least_batch

    @property
    def wants_images(self) -> bool:
        """As the rule has it."""
        return self.rule.wants_images

    def untrained(self) -> dict[Tensor, str]:
        return self.rule.untrained()

    def inference(self) -> nn.Module:
        """Raises ValueError as `rule(x)`."""
        self._check_whole()
        return self.rule.inference()

    def activities(self, x: Tensor, y: Any) -> Iterator[Tensor]:
        """Of all units, of this process's x. Raises ValueError as `rule(x)`."""
        self._check_whole()
        return self.rule.activities(x, y)

    def no_weight_decay(self) -> list[nn.Parameter]:
        own = set(self.parameters())
        return [parameter for parameter in self.rule.no_weight_decay() if parameter in own]

    def checked_input(self, x: Tensor) -> Tensor:
        return self.rule.checked_input(x)

    def forward(self, x: Tensor) -> Tensor:
        """Of this process's x, through all units. Raises ValueError where others have been trained elsewhere since."""
        self._check_whole()
        scores: Tensor = self.rule(x)
        return scores

    def _check_whole(self) -> None:
        if not self._is_whole:
            raise ValueError("rule: units of other processes are not here as they are; all call synchronise() before")

    @torch.no_grad()
    def stream(self, x: Tensor, y: Any) -> Iterator[UnitUpdate]:
        """The updates of this process's units; x is that of rank 0, whatever it is in others."""
        rule, rank = self.rule, self.processes.rank
        self._steps += 1
        self._is_whole = False
        labels = 0
        try:
            labels = _checksum(y)
            if rank == 0:
                x = rule.checked(x, y)
            else:
                x = self._received(labels)
                rule.check_y(x, y)
        except Exception:  # whatever it is, the next process waits to be told
            self._send(None, labels)
            raise
        y = rule._rows(y)
        if rank == 0:
            x = rule.local.begin(x)
        for index in self.owned[rank]:
            h, update = rule._local_update(index, x, y)
            x = rule.local.passed_on(index, h, {})
            if index == self.owned[rank][-1]:
                self._send(x, labels)
            yield update

    def _send(self, x: Tensor | None, labels: int) -> None:
        """To the next process, with the checksum of labels; None for a batch that is not trained on."""
        if self.processes.rank + 1 == self.processes.size:
            return
        head = torch.zeros(HEAD + 2 * AXES, dtype=torch.int64)
        head[0], head[1], head[2] = self._steps, x is not None, labels
        sent = [head]
        if x is not None:
            x = x if _is_dense(x) else x.contiguous()
            head[3], head[4] = DTYPES.index(x.dtype), x.dim()
            head[HEAD : HEAD + x.dim()] = torch.tensor(x.shape)
            head[HEAD + AXES : HEAD + AXES + x.dim()] = torch.tensor(x.stride())
            sent.append(_in_memory(x))
        while len(self._sent) >= AHEAD:
            self._arrived()
        following, groups = (
            self.processes.ranks[self.processes.rank + 1],
            (self.processes.of_host, self.processes.group),
        )
        with self.processes.lost():
            works = [dist.isend(part, following, group) for part, group in zip(sent, groups, strict=False)]
        self._sent.append(([work for work in works if work is not None], sent))

    def wait(self) -> None:
        """Returns when all that was sent on has arrived. `synchronise` and `save` wait too."""
        while self._sent:
            self._arrived()

    def _arrived(self) -> None:
        """Waits for the oldest batch on its way to have arrived."""
        works, _ = self._sent.popleft()
        with self.processes.lost():
            for work in works:
                work.wait()

    def _received(self, labels: int) -> Tensor:
        """What the process before has sent on. Raises ValueError where it has not taken the batch, or has another."""
        before = self.processes.ranks[self.processes.rank - 1]
        head = torch.empty(HEAD + 2 * AXES, dtype=torch.int64)
        with self.processes.lost():
            dist.recv(head, before, self.processes.of_host)
            step, is_taken, sums, kind, axes = head[:HEAD].tolist()
            if step != self._steps:
                raise RuntimeError(f"it is at step {step}, this process at {self._steps}")
            if not is_taken:
                raise ValueError(f"x, y: refused by process {self.processes.rank - 1}, or before it, which says why")
            shape, stride = head[HEAD : HEAD + axes].tolist(), head[HEAD + AXES : HEAD + AXES + axes].tolist()
            device = next(self.rule.parameters()).device
            x = torch.empty_strided(shape, stride, dtype=DTYPES[kind], device=device)
            dist.recv(_in_memory(x), before, self.processes.group)
        if sums != labels:
            raise ValueError("y: not that of the process before, which trains on it; expected one batch in all of them")
        return x

    @torch.no_grad()
    def synchronise(self) -> None:
        """Brings each unit, as the process has it that trains it, to all processes, which call this together."""
        self.wait()
        self._bring(self._owners)
        self._is_whole = True

    def _bring(self, sources: Mapping[str, int]) -> None:
        """Each of these parts of the state from that process to all others."""
        state = self.rule.state_dict()
        for name, rank in sources.items():
            value = state[name]
            if isinstance(value, Tensor):
                sent = value.contiguous()
                with self.processes.lost():
                    dist.broadcast(sent, self.processes.ranks[rank], self.processes.group)
                if sent is not value:
                    value.copy_(sent)

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.synchronise()
        if self.rule.aggregation.kind == "training-loss":
            self.processes.sum(self.rule.aggregation.loss_total, self.rule.aggregation.loss_count)
        self.rule.calibrate(batches)

    def objective(self, x: Tensor, y: Any) -> Tensor:
        """Of all units, of this process's x."""
        return self.rule.objective(x, y)

    def save(self, folder: str | PathLike[str], optimizer: torch.optim.Optimizer | None = None) -> None:
        """Writes each process's part of the state, and of the optimizer's, into a new folder that all can reach.

        Raises ValueError where there is something already.
        """
        if self.processes.first(Path(folder).exists()):
            raise ValueError(f"folder: {folder} exists, expected a new one")
        self.wait()
        state = {f"rule.{name}": value for name, value in self.state_dict().items()}
        if optimizer is not None:
            for name, parameter in self.named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    if value is not None:
                        state[f"optimizer.{name}.{key}"] = value
            for number, group in enumerate(optimizer.param_groups):
                options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
                state.update({f"group.{number}.{key}": value for key, value in options.items()})
        save(state, checkpoint_id=folder, process_group=self.processes.group)

    def load(self, folder: str | PathLike[str], optimizer: torch.optim.Optimizer | None = None) -> None:
        """Reads this process's part of what as many processes, or another number of them, have saved."""
        state: dict[str, Any] = {f"rule.{name}": value for name, value in self.state_dict().items()}
        own = dict(self.named_parameters())
        of_optimizer: list[tuple[str, dict[str, Any], str]] = []  # what is read, where it belongs, and its name there
        if optimizer is not None:
            kept = FileSystemReader(folder).read_metadata().state_dict_metadata
            for key, found in kept.items():
                kind, _, rest = key.partition(".")
                name, _, part = rest.rpartition(".")
                if kind == "group":
                    of_optimizer.append((key, optimizer.param_groups[int(name)], part))
                elif kind == "optimizer" and name in own:
                    of_optimizer.append((key, optimizer.state[own[name]], part))
                else:
                    continue
                state[key] = None
                if isinstance(found, TensorStorageMetadata):
                    device = own[name].device if found.size else "cpu"  # where optimizers count their steps
                    state[key] = torch.empty(found.size, dtype=found.properties.dtype, device=device)
        load(state, checkpoint_id=folder, process_group=self.processes.group)
        prefix = "rule."
        self.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
        for key, place, part in of_optimizer:
            place[part] = state[key]
        self._is_whole = False


def _checksum(y: Any) -> int:
    """Of labels or targets on the CPU; 0 of those elsewhere, which would be waited for."""
    found = 0
    for part in y if isinstance(y, tuple) else (y,):
        if isinstance(part, Tensor) and part.numel() and readable(part):
            found = crc32(part.detach().contiguous().flatten().view(torch.uint8).numpy().data, found)
    return found


def _is_dense(x: Tensor) -> bool:
    """Whether its numbers lie side by side."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _in_memory(x: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order of memory: (n,), of which the tensor is a view."""
    return x.as_strided((x.numel(),), (1,))


def _owned(split: Sequence[int] | None, rule: LocalClassifiers, processes: int) -> list[range]:
    """The numbers of the units of each process. Raises ValueError for a split that does not fit."""
    units = len(rule.units)
    if processes > units:
        raise ValueError(f"rule: {units} units, expected one or more for each of {processes} processes")
    if split is None:
        heads = zip(rule.units, rule.heads, strict=True)
        split = _evenly(
            [sum(p.numel() for p in [*unit.trained, *head.parameters()]) for unit, head in heads], processes
        )
    for share in split:
        check_count("split", share)
    if len(split) != processes or sum(split) != units:
        raise ValueError(f"split: {list(split)}, expected {processes} numbers, whose sum is {units}, the units")
    ends = [sum(split[: rank + 1]) for rank in range(processes)]
    return [range(end - share, end) for end, share in zip(ends, split, strict=True)]


def _evenly(costs: Sequence[int], parts: int) -> Sequence[int]:
    """How many of the costs, in their order, are in each part, so that the largest part is as small as can be."""

    @cache
    def best(start: int, parts: int) -> tuple[int, tuple[int, ...]]:
        if parts == 1:
            return sum(costs[start:]), (len(costs) - start,)
        found = []
        for number in range(1, len(costs) - start - parts + 2):
            rest, split = best(start + number, parts - 1)
            found.append((max(sum(costs[start : start + number]), rest), (number, *split)))
        return min(found)

    return best(0, parts)[1]
