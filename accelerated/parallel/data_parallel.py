"""Data-parallel training: each process has a share of the batch, and all make the same step."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import zip_longest
from math import prod
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..cumulative_goodness import _depth_scaled_auxiliary
from ..rules import (
    DifferenceTargetPropagation,
    Hardware,
    HybridDynamicTemperature,
    LocalClassifiers,
    RecurrentRule,
    Rule,
    UnitUpdate,
)
from ..rules.output_loss import Loss
from ..rules.rule import Share
from ..rules.stepping import Factors, in_factors
from .batch_norm import synchronised
from .processes import Processes
from .shared_memory import Slots, shared_slots

SMALL = 2**14
"""Arrays of fewer numbers are averaged together: by itself each would cost a message."""


class DataParallel(Rule):
    """Any rule in several processes, each with its share of the batch.

        rule = DataParallel(Foton(model))                  # after torch.distributed.init_process_group()
        for x, y in loader:                                # of this process, as by a DistributedSampler
            loss = rule.assign_credit(x, y)
            optimizer.step()
            rule.constrain(optimizer)

    A step is that of one process on the joined batch, but for rounding: each unit's update is averaged, by the number
    of labels in each share, while the next unit is computed. Built, the rule of every process becomes that of rank 0:
    parameters, buffers, state and generator; a rule without a generator gets one. Draws are made for the joined batch,
    of which each process takes its rows; negatives made of two samples take the other from any share. Batch
    normalisation in training is over all shares. The loss is that of the joined batch. `constrain` makes the same of
    the same weights in every process. `calibrate` wants the same data in each.

    Not in step are draws of one's own modules, as nn.Dropout's, from PyTorch's generator, and what one's own modules
    keep in buffers; nor is a loss of one's own that is no mean over samples. All processes call in the same order.
    Raises ValueError for what can't be shared out: `Hardware`, whose converters measure the batch in hand,
    `HybridDynamicTemperature`, nn.InstanceNorm that tracks statistics; and in every process where one of them is given
    a batch that its rule does not take. RuntimeError where a process is lost.

    Processes on CPUs of one machine add updates through memory that they share, as large as the parameters in each;
    others, and those that get no such memory, send them by all-reduce. The sum is the same in all.

    The rule itself is `rule.rule`: save its `state_dict()`, which one process can go on with.

    A group of one process shows how it is used:

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model, x, y = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.eye(2), torch.tensor([0, 1])
    >>> rule = DataParallel(rules.Backprop(model))
    >>> torch.equal(rule.assign_credit(x, y), rule.rule.assign_credit(x, y))
    True
    >>> dist.destroy_process_group()
    """

    connects_processes = True

    def __init__(self, rule: Rule, *, group: dist.ProcessGroup | None = None) -> None:
        if isinstance(rule, DataParallel) or not isinstance(rule, Rule):
            raise ValueError(f"rule: a {type(rule).__name__}, expected a learning rule")
        _check_shareable(rule)
        nn.Module.__init__(self)
        self.rule = rule
        self.processes = Processes(group)
        self.__dict__["model"] = getattr(rule, "model", None)  # not as a module: it is one of the rule's
        self.units, self.num_classes = rule.units, rule.num_classes
        self.wants_sequences = rule.wants_sequences
        self._take_first()
        self._slots = shared_slots([p for p in rule.parameters() if p.numel() >= SMALL], self.processes)

    def _take_first(self) -> None:
        """Makes the rule that of rank 0. Raises ValueError, in every process, where one has another model or rule."""
        rule, processes = self.rule, self.processes
        if rule.generator is None:
            seed = processes.first(int(torch.randint(2**62, ()).item()))
            rule.generator = torch.Generator(next(rule.parameters()).device).manual_seed(seed)
        own = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in rule.state_dict().items()}
        told = (_described(rule), own, rule.generator.get_state()) if processes.rank == 0 else None
        described, state, drawn = processes.first(told)
        problem = ""
        if processes.rank > 0:
            try:
                for expected, found in zip_longest(described, _described(rule)):
                    if found != expected:
                        raise ValueError(f"{found}, expected {expected}")
                rule.load_state_dict(state)
                rule.generator.set_state(drawn)
            except (RuntimeError, ValueError) as error:
                problem = f" ({error})"
        other = [rank for rank, (is_same,) in enumerate(processes.all_told(not problem)) if not is_same]
        if other:
            raise ValueError(f"rule: of process {other[0]} another one than that of process 0{problem}")

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which shares no memory with those of other processes."""
        return {**super().__getstate__(), "_slots": {}}

    @property
    def generator(self) -> torch.Generator | None:
        """The rule's own, in step in all processes."""
        return self.rule.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        self.rule.generator = generator

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

    def no_weight_decay(self) -> list[nn.Parameter]:
        return self.rule.no_weight_decay()

    def inference(self) -> nn.Module:
        return self.rule.inference()

    def activities(self, x: Tensor, y: Any) -> Iterator[Tensor]:
        """Of this process's x alone."""
        return self.rule.activities(x, y)

    def checked_input(self, x: Tensor) -> Tensor:
        return self.rule.checked_input(x)

    def positions(self, x: Tensor) -> tuple[int, ...]:
        return self.rule.positions(x)

    def forward(self, x: Tensor) -> Tensor:
        """Of this process's x alone."""
        scores: Tensor = self.rule(x)
        return scores

    def objective(self, x: Tensor, y: Any) -> Tensor:
        """Of this process's share alone."""
        return self.rule.objective(x, y)

    def stream(self, x: Tensor, y: Any) -> Iterator[UnitUpdate]:
        """Updates of the joined batch, each asked for while the next unit's is computed: two are held at a time."""
        share, part, scale = self._shared(x, y)
        each: Iterable[_Averaged] = self._updates(x, y, share, part, scale)
        if self.rule.differentiates:  # all are there at once, and one array may be the gradient of several parameters
            each = list(each)
        pending: _Averaged | None = None
        for averaged in each:
            averaged.begin(part)
            if pending is not None:
                yield pending.update()
            pending = averaged
        if pending is not None:
            yield pending.update()

    def _updates(self, x: Any, y: Any, share: Share, part: float, scale: float) -> Iterator["_Averaged"]:
        """Of this process's share, of which nothing is on its way yet."""
        updates = self.rule.stream(x, y)
        memory: set[int] = set()
        while True:
            with (
                self._as_share(share, part, scale),
                in_factors(),
            ):  # not around the yield: how an update is used is not its business
                update = next(updates, None)
            if update is None:
                return
            if not self.rule.differentiates:
                memory.clear()
            yield _Averaged(update, self.processes, memory, self._slots, part)

    def _shared(self, x: Any, y: Any) -> tuple[Share, float, float]:
        """Where this process's batch is in the joined one, its part in the labels, and what scales their weights.

        Raises ValueError, in every process, where one of them has a batch that its rule does not take.
        """
        problem: Exception | None = None
        samples, labels, weight = 0, 0, 0.0
        try:
            samples, labels, weight = self._counted(x, y)
        except Exception as error:  # whatever it is, the others wait to be told
            problem = error
        trained = crc32(bytes(parameter.requires_grad for parameter in self.rule.parameters()))
        told = self.processes.all_told(problem is None, samples, trained, labels, weight)
        if problem is not None:
            raise problem
        taken, samples_of, trained_in, labels_of, weights_of = zip(*told, strict=True)
        if not all(taken):
            raise ValueError(f"x, y: of process {taken.index(0)} refused, which says why; no process has made the step")
        if len(set(trained_in)) > 1:
            raise ValueError("rule: other parameters are frozen in one process than in another")
        counts = [int(count) for count in samples_of]
        before = sum(counts[: self.processes.rank])
        gathered = partial(self.processes.gathered, counts=counts)
        whole = Share(slice(before, before + samples), sum(counts), gathered)
        in_all, weight_in_all = sum(labels_of), sum(weights_of)
        scale = (weight / labels) / (weight_in_all / in_all) if weight else 1.0  # the mean weight over that of all
        return whole, labels / max(1, in_all), scale

    def _counted(self, x: Any, y: Any) -> tuple[int, int, float]:
        """Samples, labels that count, and their weight in all. Raises ValueError unless the rule takes them."""
        rule, loss, lengths = self.rule, getattr(self.rule, "loss", None), None
        ignored = getattr(loss, "ignore_index", None)
        if self.processes.size > 1:  # each of which has one sample at least, or none makes the step
            rule.shared = Share(slice(0), self.processes.size, torch.clone)
        try:
            if isinstance(rule, RecurrentRule):
                x, lengths = rule.checked_sequences(x, y)
            else:
                rule.checked(x, y)
        finally:
            rule.shared = None
        each = y if isinstance(y, tuple) else (y,)
        samples = len(each[0])
        labels = samples * prod(rule.positions(x))
        if lengths is not None and rule.positions(x):
            known = torch.arange(x.shape[1], device=each[0].device) < lengths.to(each[0].device)[:, None]
            each = tuple(part[known] for part in each)
            labels = len(each[0])
        if ignored is not None and not each[0].is_floating_point():
            labels = int((each[0] != ignored).sum())
            if labels != samples and isinstance(rule, DifferenceTargetPropagation):
                raise ValueError("y: ignored labels, whose samples the inverses learn from; leave these out")
        if not labels and any(self.rule.batch_norms()):
            raise ValueError("y: every label is ignored, but batch normalisation counts the samples; leave them out")
        weight = float(loss.total_weight(each if len(each) == 2 else each[0])) if isinstance(loss, Loss) else labels
        return samples, labels, weight

    @contextmanager
    def _as_share(self, share: Share, part: float, scale: float) -> Iterator[None]:
        with ExitStack() as stack:
            if isinstance(loss := getattr(self.rule, "loss", None), Loss):
                loss.share = scale
                stack.callback(setattr, loss, "share", 1.0)
            norms = [norm for _, norm in self.rule.batch_norms()]
            stack.enter_context(synchronised(norms, self.processes, part))
            self.rule.shared = share
            stack.callback(setattr, self.rule, "shared", None)
            yield

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.rule.constrain(optimizer)

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        if isinstance(self.rule, LocalClassifiers) and self.rule.aggregation.kind == "training-loss":
            self.processes.sum(self.rule.aggregation.loss_total, self.rule.aggregation.loss_count)
        self.rule.calibrate(batches)
        if isinstance(self.rule, LocalClassifiers):
            weights = self.rule.aggregation.weights.tolist()
            if any(others != weights for others in self.processes.every(weights)):
                raise ValueError(
                    "batches: not the same in all processes, but layers are chosen by them; expected the same"
                )


class _Averaged:
    """A unit's update on its way to that of the joined batch, of which this process's is that part.

    Arrays that have slots are put there, where all processes add them up; of a dense weight's the factors come, whose
    product is. Other large arrays are averaged where they lie, unless they lie in `memory` that an earlier one is in,
    to which they are added. All others are averaged in one copy, with the loss, which tells that the slots are filled.
    """

    def __init__(self, update: UnitUpdate, processes: Processes, memory: set[int], slots: Slots, part: float) -> None:
        self._update, self._processes = update, processes
        self._found: dict[Tensor, Tensor] = {}
        self._in_place: list[Tensor] = []
        self._added: Slots = {}
        self._works: list[dist.Work] = []
        copied = [] if update.loss is None else [update.loss]
        for parameter, gradient in update.pairs:
            of_all = slots.get(parameter)
            if of_all is not None and (of_all[0].dtype, of_all[0].device) == (parameter.dtype, parameter.device):
                self._added[parameter] = of_all
                own = of_all[processes.rank]
                if isinstance(gradient, Factors):
                    (part * gradient).product(out=own)
                else:
                    torch.mul(gradient, part, out=own)
                continue
            gradient = _multiplied(gradient)
            place = gradient.untyped_storage().data_ptr()
            if gradient.numel() < SMALL or not gradient.is_contiguous() or place in memory:
                gradient = torch.empty_like(parameter).copy_(gradient)
                copied.append(gradient)
            else:
                memory.add(place)
                self._in_place.append(gradient)
            self._found[parameter] = gradient
        if self._added and not copied:
            copied = [torch.zeros(())]
        kinds = {array.dtype: [other for other in copied if other.dtype == array.dtype] for array in copied}
        self._copied = [(arrays, torch.cat([array.flatten() for array in arrays])) for arrays in kinds.values()]

    def begin(self, part: float) -> None:
        """Sends what is this process's part of it."""
        with self._processes.lost():
            for array in (*self._in_place, *(joined for _, joined in self._copied)):
                if part != 1:
                    array.mul_(part)
                work = dist.all_reduce(array, group=self._processes.group, async_op=True)
                assert work is not None
                self._works.append(work)

    def update(self) -> UnitUpdate:
        """The update, waited for."""
        with self._processes.lost():
            for work in self._works:
                work.wait()
        for parameter, (first, second, *others) in self._added.items():
            total = first + second
            for other in others:
                total += other
            self._found[parameter] = total
        for arrays, joined in self._copied:
            for array, part in zip(arrays, joined.split([array.numel() for array in arrays]), strict=True):
                array.copy_(part.view_as(array))
        unit, gradients, loss, own = self._update
        if gradients is not None:
            gradients = [self._of(p, g) for p, g in zip(unit.parameters, gradients, strict=True)]
        return UnitUpdate(unit, gradients, loss, tuple((p, self._of(p, g)) for p, g in own))

    def _of(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """What was averaged, of a frozen parameter this process's own."""
        return self._found[parameter] if parameter in self._found else _multiplied(gradient)


def _multiplied(gradient: Tensor | Factors) -> Tensor:
    return gradient.product() if isinstance(gradient, Factors) else gradient


def _described(rule: Rule) -> list[Any]:
    """Names and kinds of its modules, their options as far as they are known, and what its parameters are."""
    found: list[Any] = []
    for name, module in rule.named_modules():
        kind = type(module)
        known = vars(module) if kind.__module__.startswith(("torch.nn.", "prograde.")) else {}
        options = {k: v for k, v in known.items() if type(v) in (bool, int, float, str) and not k.startswith("_")}
        found.append((name, kind.__name__, options))
    return [*found, *((name, p.dtype, tuple(p.shape), p.requires_grad) for name, p in rule.named_parameters())]


def _check_shareable(rule: Rule) -> None:
    """Raises ValueError for what measures the batch in hand, so that its parts are not those of one."""
    name = type(rule).__name__
    if isinstance(rule, Hardware):
        raise ValueError(f"rule: {name}, whose converters take their range from the batch in hand; expected another")
    if isinstance(rule, HybridDynamicTemperature):
        raise ValueError(f"rule: {name}, whose classifier normalises over the batch in hand; expected another")
    if getattr(getattr(rule, "loss", None), "func", None) is _depth_scaled_auxiliary:
        raise ValueError("loss: depth-scaled, whose weights of samples are shares of the batch in hand; use another")
    own_loss = getattr(getattr(rule, "loss", None), "function", None)
    if hasattr(own_loss, "ignore_index"):
        name = type(own_loss).__name__
        raise ValueError(f"loss: a {name}, whose mean is over the labels that it counts; expected nn.CrossEntropyLoss")
    for path, module in rule.named_modules():
        where, kind = f"layer '{path.removeprefix('model.')}'", type(module)
        if isinstance(module, _BatchNorm) and kind.forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ValueError(f"{where}: a {kind.__name__}, which normalises in its own way; expected one of torch.nn")
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise ValueError(f"{where}: track_running_stats of the batch in hand; expected False")
