"""What each of two connected processes checks, or of four: run by test_parallel.py, with RANK, WORLD_SIZE and paths.

Every process makes the same checks in the same order, and writes what failed to a file of its own.
"""

import copy
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prograde.accelerated.cumulative_goodness import REMEDIES
from prograde.accelerated.local_classifiers import Shortcut
from prograde.accelerated.modules import ChannelNorm, RecurrentNetwork, ShortcutNetwork
from prograde.accelerated.parallel import DataParallel, LayerParallel, data_parallel, processes, shared_memory
from prograde.accelerated.rules import (
    RULES,
    Backprop,
    BackpropEnsemble,
    BackpropThroughTime,
    ChannelClassAssignment,
    ChannelCompetition,
    CumulativeForwardForward,
    DeeperForward,
    DifferenceTargetPropagation,
    DirectFeedbackAlignment,
    DynamicTemperature,
    ForwardForward,
    Foton,
    Ftp,
    Hardware,
    HybridDynamicTemperature,
    MonoForward,
    PatchEnergy,
    Pepita,
    RecurrentFtp,
    Rule,
)
from prograde.accelerated.training import Callback, CsvTable, History, Run, TensorBoard, UserError, checkpoint, fit

K = 4
SECONDS = 30
"""After which a process that waits for another gives up."""

RANK, SIZE = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
FOLDER = Path(os.environ["PARALLEL_FOLDER"])
CUTS = (0, 3, 8) if SIZE == 2 else (0, 2, 5, 9, 11)
BATCH, SHARE = CUTS[-1], slice(CUTS[RANK], CUTS[RANK + 1])
"""This process's samples: shares differ in size."""


class Case(NamedTuple):
    """A rule with its options on a model, for samples of a shape."""

    rule: Callable[..., Rule]
    model: Callable[[], nn.Module]
    sample: tuple[int, ...]
    options: dict[str, Any]


def dense(*after: Callable[[], nn.Module], activation: Callable[[], nn.Module] = nn.Tanh) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise((16, 8, 8)):
            layers += [nn.Linear(n_in, n_out), activation(), *(make() for make in after)]
        return nn.Sequential(*layers, nn.Linear(8, K))

    return build


def dropout() -> nn.Module:
    return nn.Dropout(0.4)


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(8, momentum=None)


def maps() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Tanh(),
        nn.BatchNorm2d(8, affine=False), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(),
    ]  # fmt: skip


def images() -> nn.Module:
    return nn.Sequential(*maps(), nn.Linear(8, K))


class OwnNorm(nn.BatchNorm1d):
    """A batch normalisation that does something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def plain_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, K),
    )  # fmt: skip


class TwoWeights(nn.Linear):
    """A layer whose weight is the sum of two, which autograd gives one gradient, in one array."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.other = nn.Parameter(torch.zeros(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.other, self.bias)


def case(
    rule: Callable[..., Rule],
    model: Callable[[], nn.Module] | None = None,
    sample: tuple[int, ...] = (16,),
    **options: Any,
) -> Case:
    return Case(rule, model or dense(), sample, options)


def frozen(model: nn.Module, **options: Any) -> Rule:
    rule = Foton(model, **options)
    rule.units[1].parameters[0].requires_grad_(False)
    return rule


def ensemble(model: nn.Module, **options: Any) -> Rule:
    return BackpropEnsemble([model, dense()().to(next(model.parameters()))], **options)


def weighted(**options: Any) -> nn.Module:
    return nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5, 4.0]), **options)


IMAGES, SEQUENCES = (3, 8, 8), (5, 6)
CASES: dict[str, Case] = {
    **{name: case(rule) for name, rule in RULES.items()},
    "backprop, images": case(Backprop, images, IMAGES),
    "backprop, ignored labels": case(Backprop, loss=nn.CrossEntropyLoss(ignore_index=0)),
    "backprop, numbers": case(Backprop, loss="squared_error"),
    "backprop, several labels, weights": case(Backprop, loss=nn.BCEWithLogitsLoss()),
    "backprop, class weights": case(Backprop, dense(lambda: nn.BatchNorm1d(8)), loss=weighted()),
    "foton, class weights": case(Foton, loss=weighted(ignore_index=0)),
    "ftp, weights": case(Ftp, loss=weighted()),
    "drtp, weights": case(RULES["drtp"], loss="squared_error"),
    "dtp, weights": case(DifferenceTargetPropagation),
    "mono-forward, weights": case(MonoForward, loss=weighted()),
    "backprop, one gradient of two weights": case(
        Backprop, lambda: nn.Sequential(TwoWeights(16, 8), nn.Tanh(), nn.Linear(8, K))
    ),
    "ensemble": case(ensemble),
    "foton, momentum and dropout": case(Foton, dense(dropout)),
    "foton, clean pass twice": case(Foton, dense(dropout), recompute=True),
    "foton, a frozen weight": case(frozen),
    "ftp, dropout": case(Ftp, dense(dropout)),
    "ftp, images": case(Ftp, images, IMAGES, example=torch.zeros(2, *IMAGES)),
    "ftp, batch norm": case(Ftp, dense(batch_norm), units=["0", "3", "6"], example=torch.zeros(2, 16)),
    "pepita, batch norm": case(Pepita, dense(batch_norm), example=torch.zeros(2, 16)),
    "dfa, signs and dropout": case(DirectFeedbackAlignment, dense(dropout), signs=True),
    "forward-forward, hard negatives": case(ForwardForward, negatives="hard", readout=True, hard_law="softmax"),
    "forward-forward, pairs": case(ForwardForward, negatives="pairs", readout=True),
    "forward-forward, hybrid": case(
        ForwardForward, plain_images, IMAGES, negatives="hybrid", readout=True, first_layer=1
    ),
    "cumulative, learned gate": case(CumulativeForwardForward, remedy="hardness-gated", learn_gate=True),
    **{
        f"cumulative, {remedy}": case(CumulativeForwardForward, remedy=remedy)
        for remedy in REMEDIES
        if remedy != "depth-scaled"
    },
    "mono-forward, images": case(MonoForward, images, IMAGES),
    "mono-forward, read-out": case(MonoForward, aggregation="readout"),
    "patch-energy": case(PatchEnergy, images, IMAGES, grid=2),
    "deeper-forward": case(DeeperForward, images, IMAGES),
    "channel-competition": case(ChannelCompetition, images, IMAGES),
    "channel-class-assignment": case(ChannelClassAssignment, images, IMAGES),
    "recurrent ftp": case(RecurrentFtp, lambda: RecurrentNetwork(6, 7, K, "gru"), SEQUENCES, inject="every"),
    "backprop through time": case(BackpropThroughTime, lambda: RecurrentNetwork(6, 7, K), SEQUENCES),
    "steps": case(BackpropThroughTime, lambda: RecurrentNetwork(6, 7, K, per_step=True), SEQUENCES),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def batches(case: Case, name: str) -> list[tuple[Any, Any]]:
    """Two, in float64."""
    drawn = torch.Generator().manual_seed(5)
    found: list[tuple[Any, Any]] = []
    for _ in range(2):
        x = torch.randn(BATCH, *case.sample, generator=drawn, dtype=torch.float64)
        y: Any = torch.randint(K, (BATCH,), generator=drawn)
        if name == "steps":
            x, y = (x, torch.tensor([5, 2, 4, 1, 3, 5, 2, 4])), torch.randint(K, (BATCH, 5), generator=drawn)
        if name == "backprop, numbers":
            y = torch.randn(BATCH, K, generator=drawn, dtype=torch.float64)
        if name == "backprop, several labels, weights":
            y = torch.rand(BATCH, K, generator=drawn, dtype=torch.float64)
        if name.endswith(", weights"):
            y = y, torch.rand(len(y), generator=drawn, dtype=torch.float64)
        found.append((x, y))
    return found


def converted(part: Any, dtype: torch.dtype, rows: slice) -> Any:
    """In that precision, where it is numbers; those rows."""
    if isinstance(part, tuple):
        return tuple(converted(one, dtype, rows) for one in part)
    return (part.to(dtype) if part.is_floating_point() else part)[rows]


def trained(name: str, dtype: torch.dtype, together: bool) -> dict[str, Tensor]:
    """The loss and every gradient of two steps with momentum, and the state afterwards, in float64."""
    case = CASES[name]
    with default_dtype(dtype):
        options = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in case.options.items()}
        torch.manual_seed(0 if not together else RANK)  # built together, it is what the first process has
        model = case.model()
        with default_dtype(torch.float64):
            torch.manual_seed(0 if not together else RANK)
            model = case.model().to(dtype)
        generator = torch.Generator().manual_seed(1 if not together else 1 + RANK)
        rule = case.rule(model, generator=generator, **options)
        whole: Rule = DataParallel(rule) if together else rule
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9)
        found = {}
        for step, (x, y) in enumerate(batches(case, name)):
            rows = SHARE if together else slice(None)
            loss = whole.assign_credit(converted(x, dtype, rows), converted(y, dtype, rows))
            found[f"{step}: loss"] = loss
            found |= {f"{step}: {n}": p.grad.clone() for n, p in rule.named_parameters() if p.grad is not None}
            optimizer.step()
            whole.constrain(optimizer)
        state = {n: v.clone() for n, v in rule.state_dict().items() if isinstance(v, Tensor)}
    return {key: value.detach().double() for key, value in (found | state).items()}


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt()) if x.numel() else 0.0


def check_case(name: str) -> None:
    """A step of two processes is within rounding of one's, by how far rounding to float32 moves one process.

    In float64 by as much less as it is finer. Where the draws of the two precisions differ, that is no yardstick in
    float32, and still a narrow one in float64.
    """
    truth, single = trained(name, torch.float64, together=False), trained(name, torch.float32, together=False)
    fine, coarse = (torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32))
    problems = []
    in_place = list(CASES).index(name) % 2
    for dtype, share, small, folder in (
        (torch.float64, fine / coarse, 1, FOLDERS[0]),
        (torch.float32, 1.0, 1 if in_place else 2**14, FOLDERS[1]),
    ):
        data_parallel.SMALL = small  # arrays of two numbers go their own way, or all in one copy
        shared_memory.FOLDER = folder
        found = trained(name, dtype, together=True)
        shared_memory.FOLDER = FOLDERS[0]
        data_parallel.SMALL = 2**14
        if found.keys() != truth.keys():
            problems.append(f"{dtype}: {sorted(found.keys() ^ truth.keys())} on one side alone")
            continue
        for key, value in truth.items():
            limit = share * (4 * rms(single[key] - value) + 4 * coarse * rms(value) + 1e-3 * coarse)
            apart = rms(found[key] - value)
            if not apart <= limit:
                problems.append(f"{dtype}, {key}: {apart:.2e} apart, limit {limit:.2e}")
    assert not problems, "\n".join(problems)


FOLDERS = shared_memory.FOLDER, Path("nowhere")


def check_shared_memory() -> None:
    """It has no name left; where one process has none it is used by none, nor by a copy, nor in another dtype."""
    data_parallel.SMALL = 1
    x, y = data()

    def stepped(rule: DataParallel) -> list[Tensor]:
        rule.assign_credit(x[SHARE].to(next(rule.parameters()).dtype), y[SHARE])
        return [p.grad for p in rule.parameters() if p.grad is not None]

    rule = DataParallel(Backprop(dense()()))
    assert len(rule._slots) == len(list(rule.parameters()))
    dist.barrier()
    assert not list(FOLDERS[0].glob("prograde-*"))
    shared_memory.FOLDER = FOLDERS[RANK]
    other = DataParallel(Backprop(dense()()))
    shared_memory.FOLDER = FOLDERS[0]
    data_parallel.SMALL = 2**14
    other.rule.load_state_dict(rule.rule.state_dict())
    copied = copy.deepcopy(rule)
    assert other._slots == copied._slots == {}
    expected = stepped(rule)
    for found in (stepped(other), stepped(copied), stepped(rule.double())):
        assert all(rms(a - b) < 1e-6 for a, b in zip(found, expected, strict=True))
    assert same_everywhere(rule)


def same_everywhere(rule: nn.Module) -> bool:
    """Whether all parameters and buffers are bit for bit those of the other processes."""
    mine = torch.cat([value.detach().double().flatten() for value in (*rule.parameters(), *rule.buffers())])
    every = [torch.empty_like(mine) for _ in range(SIZE)]
    dist.all_gather(every, mine)
    return all(torch.equal(mine, other) for other in every)


def refusal(kind: type[Exception], call: Callable[[], object]) -> str:
    """The words of the error that the call raises."""
    try:
        call()
    except kind as error:
        return str(error)
    return "nothing was raised"


def expect(said: str, *words: str) -> None:
    for word in words:
        assert word in said, f"expected '{word}' in: {said}"


def data(seed: int = 0, samples: int = BATCH) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 16, generator=drawn), torch.randint(K, (samples,), generator=drawn)


def check_in_step() -> None:
    """Draws without a generator, and weights that are held orthogonal, are the same in both processes."""
    for make in (lambda: Foton(dense(dropout)()), lambda: ForwardForward(dense()(), negatives="hard")):
        torch.manual_seed(10 + RANK)
        rule = DataParallel(make())
        optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
        for step in range(3):
            x, y = data(step)
            rule.assign_credit(x[SHARE], y[SHARE])
            optimizer.step()
            rule.constrain(optimizer)
        assert same_everywhere(rule)


def check_what_is_not_shared_out() -> None:
    def plain() -> nn.Module:
        return dense()()

    tracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.InstanceNorm2d(4, track_running_stats=True))
    of_maps = nn.Sequential(*tracked, nn.Flatten(), nn.Linear(144, K))
    for make, words in (
        (lambda: Hardware(Ftp(plain()), bits=8), ("Hardware", "batch in hand")),
        (lambda: HybridDynamicTemperature(plain()), ("HybridDynamicTemperature", "batch in hand")),
        (lambda: CumulativeForwardForward(plain(), remedy="depth-scaled"), ("loss", "depth-scaled")),
        (lambda: MonoForward(of_maps), ("layer '2'", "track_running_stats")),
        (lambda: Backprop(plain(), loss=nn.NLLLoss()), ("loss: a NLLLoss",)),
        (lambda: Backprop(dense(lambda: OwnNorm(8))()), ("layer '2': a OwnNorm", "in its own way")),
        (plain, ("rule: a Sequential",)),
        (lambda: DataParallel(Backprop(plain())), ("rule: a DataParallel",)),
    ):
        expect(refusal(ValueError, lambda make=make: DataParallel(make())), *words)
    expect(refusal(ValueError, lambda: Hardware(DataParallel(Ftp(plain())))), "rule: a DataParallel")
    x, y = data()
    rule = DataParallel(DifferenceTargetPropagation(plain(), loss=nn.CrossEntropyLoss(ignore_index=1)))
    expect(refusal(ValueError, lambda: rule.assign_credit(x, y.fill_(1))), "y: ignored labels")
    rule = DataParallel(Backprop(dense(lambda: nn.BatchNorm1d(8))(), loss=nn.CrossEntropyLoss(ignore_index=1)))
    y = data()[1] if RANK == 0 else y
    expect(refusal(ValueError, lambda: rule.assign_credit(x, y)), "of process 1" if RANK == 0 else "every label")


def check_another_rule() -> None:
    said = refusal(
        ValueError, lambda: DataParallel(Backprop(nn.Sequential(nn.Linear(4, 5 + RANK), nn.Linear(5 + RANK, 3))))
    )
    expect(said, "rule: of process 1", "process 0")

    def frozen_there() -> nn.Module:
        model = dense()()
        model[0].weight.requires_grad_(RANK == 0)
        return model

    for make, word in (
        (lambda: Backprop(dense()().to(torch.float64 if RANK else torch.float32)), "torch.float64"),
        (lambda: Backprop(dense()(), loss="squared_error" if RANK else "cross_entropy"), "SquaredError"),
        (lambda: Foton(dense()(), activation_gain=0.7 + RANK), "'activation_gain': 1.7"),
        (lambda: MonoForward(dense(lambda: nn.Dropout(0.5 * RANK))()), "'p': 0.5"),
        (lambda: Backprop(frozen_there()), "False"),
    ):
        said = refusal(ValueError, lambda make=make: DataParallel(make()))
        expect(said, "rule: of process 1", *([word] if RANK else []))


def check_a_refused_batch() -> None:
    """A batch that one process refuses is trained on by none, and training goes on."""
    rule = DataParallel(MonoForward(dense()()))
    x, y = data()
    mine = (x[SHARE], y[SHARE])
    bad = mine[0].clone()
    bad[0, 0] = float("nan")
    said = refusal(ValueError, lambda: rule.assign_credit(bad if RANK == 1 else mine[0], mine[1]))
    expect(said, "NaN" if RANK == 1 else "of process 1")
    sparse = mine[1].to_sparse() if RANK == 1 else mine[1]  # which no rule expects
    said = refusal(Exception, lambda: rule.assign_credit(mine[0], sparse))
    expect(said, "Sparse" if RANK == 1 else "of process 1")
    frozen = next(rule.parameters()).requires_grad_(RANK == 0)
    expect(refusal(ValueError, lambda: rule.assign_credit(*mine)), "frozen in one process")
    frozen.requires_grad_()
    first, *_, last = rule.parameters()  # as many in each, but not the same
    (last if RANK else first).requires_grad_(False)
    expect(refusal(ValueError, lambda: rule.assign_credit(*mine)), "frozen in one process")
    rule.requires_grad_()
    rule.assign_credit(*mine)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    optimizer.step()
    assert same_everywhere(rule)


def check_a_group_of_some() -> None:
    """A process that is in a group alone makes one for the CPU without the other."""
    group, devices = dist.new_group([1]), processes._devices
    if RANK == 1:
        processes._devices = lambda group: {"cuda"}
        alone = DataParallel(Backprop(dense()()), group=group)
        processes._devices = devices
        alone.assign_credit(*data())
    dist.barrier(dist.new_group())


def check_what_is_exported() -> None:
    """It is the rule's own, of whole rules alone."""
    x, y = data()
    for wrap in (DataParallel, LayerParallel):
        rule = wrap(MonoForward(dense()()))
        rule.assign_credit(x, y)
        if wrap is LayerParallel:
            expect(refusal(ValueError, rule.export), "synchronise")
            rule.synchronise()
        assert torch.equal(rule.export()(x), rule.rule.eval()(x))
        assert len(list(rule.activities(x, y))) == 2


def check_wrappers_of_pytorch() -> None:
    """DDP and FSDP, around the rule, its model, or a layer, before and after: refused by name, never silent."""
    from torch.distributed.device_mesh import init_device_mesh  # late: their import takes seconds
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (2,))
    x, y = data()

    def sharded(module: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)

    def whole(rule: Rule) -> nn.Module:
        return rule

    def model(rule: Rule) -> nn.Module:
        return rule.model

    def layer(rule: Rule) -> nn.Module:
        return rule.model[0]

    def resharded(module: nn.Module) -> nn.Module:
        return fully_shard(module, mesh=mesh)

    def built(kind: type[Rule], wrapper: Callable[[nn.Module], nn.Module]) -> None:
        kind(wrapper(dense()()))

    def stepped(kind: type[Rule], wrapper: Callable[[nn.Module], nn.Module], part: Callable[[Rule], nn.Module]) -> None:
        rule = kind(dense()())
        wrapper(part(rule))
        rule.assign_credit(x, y)

    for kind in (Foton, Backprop, MonoForward):
        said = refusal(ValueError, partial(stepped, kind, DistributedDataParallel, whole))
        expect(said, "in DDP", "DataParallel around")
        for wrapper in (DistributedDataParallel, sharded, resharded):
            expect(refusal(ValueError, partial(built, kind, wrapper)), "DataParallel around")
        for wrapper, part in itertools.product((sharded, resharded), (whole, model, layer)):
            expect(refusal(ValueError, partial(stepped, kind, wrapper, part)), "in FSDP", "DataParallel around")


def check_alone() -> None:
    """A rule that nothing connects says so once."""
    rule = Backprop(dense()())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            rule.assign_credit(*data())
    assert [str(one.message)[:40] for one in told] == ["Backprop: 2 processes, each of which tra"]
    assert told[0].filename == __file__


def check_noted_losses() -> None:
    """Layers are weighted by the losses of all shares."""

    def build(seed: int) -> MonoForward:
        torch.manual_seed(seed)
        return MonoForward(dense()(), aggregation="training-loss", loss=weighted(ignore_index=0))

    single, rule = build(0), DataParallel(build(RANK))
    for step in range(2):
        x, y = data(step)
        single.assign_credit(x, y)
        rule.assign_credit(x[SHARE], y[SHARE])
    single.calibrate([])
    rule.calibrate([])
    assert rms(rule.rule.aggregation.weights - single.aggregation.weights) < 1e-6
    assert same_everywhere(rule)


def check_a_share_of_one() -> None:
    """One sample, where the joined batch is normalised, or its samples mixed."""
    x, y = data()
    mine = slice(0, 1) if RANK == 0 else slice(1, None)
    for make in (
        lambda: Backprop(dense(batch_norm)()),
        lambda: MonoForward(dense(batch_norm)()),
        lambda: ForwardForward(dense()(), negatives="pairs", readout=True),
    ):
        torch.manual_seed(0)
        single = make()
        torch.manual_seed(0)
        rule = DataParallel(make())
        single.generator = torch.Generator()
        single.generator.set_state(rule.generator.get_state())
        loss, joined = single.assign_credit(x, y), rule.assign_credit(x[mine], y[mine])
        assert abs(loss - joined) < 1e-5
        for name, p in single.named_parameters():
            if p.grad is not None:
                assert rms(rule.rule.get_parameter(name).grad - p.grad) < 1e-5, name


def layered(seed: int, aggregation: str = "sum") -> MonoForward:
    torch.manual_seed(seed)
    model = nn.Sequential(*maps(), nn.Linear(8, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, K))
    return MonoForward(model, aggregation=aggregation)


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(6, *IMAGES, generator=drawn), torch.randint(K, (6,), generator=drawn)


def check_layers() -> None:
    """Bit for bit one process's parameters, buffers, losses, scores and choices; a part saved and read goes on so."""
    for aggregation in ("sum", "last", "range", "training-loss", "validation-loss"):
        single, rule = layered(0, aggregation), LayerParallel(layered(RANK, aggregation))
        alone, own = (torch.optim.Adam(part.parameters(), lr=0.01) for part in (single, rule))
        assert len(own.param_groups[0]["params"]) < len(alone.param_groups[0]["params"])
        for step in range(6):
            x, y = pictures(step)
            loss, part = single.assign_credit(x, y), rule.assign_credit(x if RANK == 0 else torch.empty(0), y)
            alone.step()
            own.step()
            total = part.clone()
            dist.all_reduce(total)
            assert abs(float(total - loss)) < 1e-5
            if step == 2:
                single.calibrate([(x, y)])
                rule.calibrate([(x, y)])
                folder = FOLDER / f"part-{aggregation}"
                rule.save(folder, own)
                expect(refusal(ValueError, lambda folder=folder, rule=rule: rule.save(folder)), "exists")
                rule = LayerParallel(layered(5, aggregation))
                own = torch.optim.Adam(rule.parameters(), lr=0.5)
                rule.load(folder, own)
        expect(refusal(ValueError, lambda rule=rule, x=x: rule(x)), "synchronise")
        single.calibrate([(x, y)])
        rule.calibrate([(x, y)])
        for (name, expected), found in zip(single.state_dict().items(), rule.rule.state_dict().values(), strict=True):
            assert torch.equal(expected, found), f"{aggregation}: {name}"
        assert torch.equal(single.eval()(x), rule.eval()(x))


def check_layers_refused() -> None:
    blocks = [nn.Sequential(nn.Conv2d(n, 8, 3, padding=1), nn.ReLU(), ChannelNorm()) for n in (3, 8)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))
    shortcuts = ShortcutNetwork(nn.Identity(), blocks, [Shortcut(0, 1, "add")], head)
    for make, words in (
        (lambda: Foton(dense()()), ("rule: a Foton", "local")),
        (lambda: MonoForward(dense()(), detach=False), ("MonoForward", "detach=False")),
        (lambda: MonoForward(dense()(), aggregation="readout"), ("read-out",)),
        (lambda: MonoForward(shortcuts), ("shortcuts",)),
        (lambda: MonoForward(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, K))), ("1 units",)),
        (lambda: MonoForward(nn.Sequential(nn.Linear(4, 4 + RANK), nn.ReLU(), *dense()())), ("not the same",)),
    ):
        expect(refusal(ValueError, lambda make=make: LayerParallel(make())), *words)
    for split in ([2], [1, 2], [2, 0], [1.0, 1.0]):
        expect(refusal(ValueError, lambda split=split: LayerParallel(MonoForward(dense()()), split=split)), "split")
    rule = LayerParallel(MonoForward(dense()()), split=[1, 1])
    expect(refusal(ValueError, lambda: rule.load_state_dict({})), "state_dict")
    x, y = data()
    bad = x.clone()
    bad[0, 0] = float("nan")
    expect(refusal(ValueError, lambda: rule.assign_credit(bad, y)), "NaN" if RANK == 0 else "refused by process 0")
    rule.assign_credit(x, y)
    said = refusal(ValueError, lambda: rule.assign_credit(x, (y + RANK) % K))
    expect(said, "y: not that of" if RANK == 1 else "nothing was raised")
    rule.synchronise()


def check_groups_of_two() -> None:
    """Of four processes, of which one group does not begin with process 0: each makes a training of its own."""
    number, place = RANK % 2, RANK // 2
    group = [dist.new_group([0, 2]), dist.new_group([1, 3])][number]

    def build(seed: int) -> Rule:
        torch.manual_seed(seed)
        return Ftp(dense(dropout)(), generator=torch.Generator().manual_seed(seed))

    x, y = data(number)
    single, rule = build(number), DataParallel(build(RANK), group=group)
    share = slice(None, 5) if place == 0 else slice(5, None)
    single.assign_credit(x, y)
    rule.assign_credit(x[share], y[share])
    for name, parameter in single.named_parameters():
        assert rms(rule.rule.get_parameter(name).grad - parameter.grad) < 1e-6, name
    whole, layers = layered(number), LayerParallel(layered(RANK), group=group)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9) for part in (whole, layers)]
    for step in range(3):
        for part, optimizer in zip((whole, layers), optimizers, strict=True):
            part.assign_credit(*pictures(step))
            optimizer.step()
    layers.save(FOLDER / f"group-{number}", optimizers[1])
    again = LayerParallel(layered(9), group=group)
    again.load(FOLDER / f"group-{number}")
    for part in (layers, again):
        part.synchronise()
        for (name, expected), found in zip(whole.state_dict().items(), part.rule.state_dict().values(), strict=True):
            assert torch.equal(expected, found), name


def check_temperatures() -> None:
    """A head with a learned scalar, which an optimizer leaves out of weight decay."""
    rule = LayerParallel(DynamicTemperature(dense(activation=nn.ReLU)()))
    assert len(rule.no_weight_decay()) == 1


def samples() -> tuple[Tensor, Tensor]:
    x = torch.randn(47, 16, generator=torch.Generator().manual_seed(8))
    return x, x[:, :K].argmax(dim=1)


def fitted(rule: Rule, train: Any, validation: Any, **options: Any) -> History:
    options = {"epochs": 3, "batch": 10, "alignment_every": 2} | options
    return fit(rule, train, validation, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), **options)


def check_fit() -> None:
    """Tensors: the training of one process, what it writes written once; it goes on amid an epoch, bit for bit."""

    def build(seed: int) -> Rule:
        torch.manual_seed(seed)
        return Ftp(dense(dropout)(), generator=torch.Generator().manual_seed(seed))

    class Kept(Callback):
        def on_step(self, run: Run) -> None:
            if run.step == 6:  # in the second epoch
                shutil.copy(FOLDER / "fit", FOLDER / "amid")

    x, y = samples()
    train, validation = (x[:33], y[:33]), (x[33:], y[33:])
    single, rule = build(0), DataParallel(build(RANK))
    alone = fitted(single, train, validation, test=validation, measure=lambda *batch: {"seen": len(batch[1])})
    options = {"checkpoint": FOLDER / "fit", "checkpoint_every": 3, "accumulate": 1}
    found = fitted(
        rule, train, validation, test=validation, measure=lambda *batch: {"seen": len(batch[1])},
        callbacks=[CsvTable(FOLDER / "table.csv", units_every=2), TensorBoard(FOLDER / "events"), Kept()], **options,
    )  # fmt: skip
    assert found.test_accuracy == alone.test_accuracy
    for one, other in zip(alone.epochs, found.epochs, strict=True):
        assert (one.samples, one.validation_accuracy) == (other.samples, other.validation_accuracy)
        assert one.measured == other.measured == {"seen": 33}
        assert one.alignment.keys() == other.alignment.keys()
        assert abs(one.loss - other.loss) + abs(one.validation_loss - other.validation_loss) < 1e-5
    for name, value in single.named_parameters():
        assert rms(rule.rule.get_parameter(name) - value) < 1e-5, name
    assert same_everywhere(rule)
    dist.barrier()
    assert len((FOLDER / "table.csv").read_text().splitlines()) == 1 + 6 + 3, "a header, rows of units and of epochs"
    assert len(list((FOLDER / "events").iterdir())) == 1
    assert checkpoint.load(FOLDER / "fit")["settings"]["rule"] == "Ftp"
    again = DataParallel(build(7 + RANK))
    resumed = fitted(again, train, validation, test=validation, resume=FOLDER / "amid", **options, overwrite=True)
    assert [e.loss for e in resumed.epochs] == [e.loss for e in found.epochs]
    for name, value in rule.rule.named_parameters():
        assert torch.equal(again.rule.get_parameter(name), value), name
    said = refusal(UserError, lambda: fitted(build(0), train, validation, test=validation, resume=FOLDER / "fit"))
    expect(said, "processes 2, expected 1")


def check_fit_of_loaders() -> None:
    """Each process has its loader, whose shares differ in size; two batches make a step."""

    def build(seed: int) -> Rule:
        torch.manual_seed(seed)
        return Backprop(dense()())

    def parts(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(x.split(8), y.split(8), strict=True))

    x, y = samples()
    whole, held = parts(x[:40], y[:40]), (x[40:], y[40:])
    mine = [(a[SHARE], b[SHARE]) for a, b in whole]
    single, rule = build(0), DataParallel(build(RANK))
    alone = fitted(single, whole, [held], batch=None, accumulate=2)
    found = fitted(rule, mine, [(held[0][SHARE], held[1][SHARE])], batch=None, accumulate=2)
    for one, other in zip(alone.epochs, found.epochs, strict=True):
        assert (one.samples, one.validation_accuracy) == (other.samples, other.validation_accuracy)
        assert abs(one.loss - other.loss) + abs(one.validation_loss - other.validation_loss) < 1e-5
    for name, value in single.named_parameters():
        assert rms(rule.rule.get_parameter(name) - value) < 1e-5, name


class Stop(Callback):
    """Stops in one process what all end."""

    def on_step(self, run: Run) -> None:
        if run.step == 2:
            run.stop("enough")


class Stream:
    """Batches without a number."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class Broken(Callback):
    def on_start(self, run: Run) -> None:
        raise UserError("no table here")


def check_fit_ends_together() -> None:
    """A stop, an error of a callback, and what differs in one process, end the training in all."""
    x, y = samples()
    rule = DataParallel(Backprop(dense()()))
    found = fitted(rule, (x, y), None, callbacks=[Stop()] if RANK == 0 else [])
    assert (len(found.epochs), found.epochs[0].samples, found.stopped) == (1, 20, "enough")
    batches = list(zip(x[RANK::2].split(6), y[RANK::2].split(6), strict=True))
    layers = LayerParallel(MonoForward(dense()()))
    chosen = DataParallel(MonoForward(dense()(), aggregation="validation-loss"))
    for train, validation, options, word in (
        (batches[: 3 - RANK], None, {"batch": None}, "batches: 2 in process 1"),
        (Stream(batches[: 3 - RANK]), None, {"batch": None}, "train: process 1 has 2 batches"),
        (list(zip(x.split(6), y.split(6), strict=True)), None, {"batch": None}, "train: gives the same batch in two"),
        ((x[RANK:], y[RANK:]), None, {}, "samples: ["),
        ((x + RANK, y), None, {}, "train, validation, test: SHA-256 "),
        ((x, y), None, {"epochs": 1 + RANK}, "epochs: 2 in process 1"),
        ((x, y), None, {"callbacks": [Broken()]}, "no table here"),
        ((x, y), None, {"batch": 1}, "batch: 1 samples, expected at least 2"),
        ((x, y), None, {"checkpoint": FOLDER / "no folder" / "file"}, "checkpoint: "),
        ((x, y), None, {"rule": layers}, "rule: a LayerParallel"),
        (batches, batches, {"rule": chosen, "batch": None}, "batches: not the same"),
    ):
        options = {"rule": rule} | options
        said = refusal(ValueError, lambda a=(train, validation), o=options: fitted(o.pop("rule"), *a, **o))
        expect(said, word)


class Draws(nn.Module):
    """As nn.Dropout, from PyTorch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append(torch.rand(()).item())
        return x


def check_fit_interrupted() -> None:
    """Ctrl-C in one process: all have the epochs that are done, and know of it. Masks of modules are each its own."""

    class Interrupt(Callback):
        def on_step(self, run: Run) -> None:
            if run.step == 6:  # in the second epoch
                signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background has off
    draws = Draws()
    rule = DataParallel(Backprop(nn.Sequential(nn.Linear(16, 8), draws, nn.ReLU(), nn.Linear(8, K))))
    found = fitted(rule, samples(), None, callbacks=[Interrupt()])
    assert (len(found.epochs), found.stopped) == (1, "interrupted")
    assert isinstance(found.interrupted, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same_everywhere(rule)
    drawn = rule.processes.every(draws.drawn[:5])
    assert drawn[0] != drawn[1]


CHECKS: dict[str, Callable[[], None]] = {
    **{f"as one process: {name}": lambda name=name: check_case(name) for name in CASES},
    "processes stay in step": check_in_step,
    "what can't be shared out is refused": check_what_is_not_shared_out,
    "another rule in each process is refused": check_another_rule,
    "a batch that one refuses": check_a_refused_batch,
    "a group of some": check_a_group_of_some,
    "what is exported": check_what_is_exported,
    "fit, of tensors": check_fit,
    "fit, of loaders": check_fit_of_loaders,
    "fit ends in all processes": check_fit_ends_together,
    "DDP and FSDP are refused": check_wrappers_of_pytorch,
    "a rule that nothing connects says so": check_alone,
    "losses noted in each process": check_noted_losses,
    "a share of one sample": check_a_share_of_one,
    "shared memory": check_shared_memory,
    "fit, interrupted": check_fit_interrupted,
    "layers in two processes as in one": check_layers,
    "layers that can't be in several processes are refused": check_layers_refused,
    "temperatures of layers": check_temperatures,
}


OF_FOUR: dict[str, Callable[[], None]] = {"groups of two": check_groups_of_two}


def connect() -> None:
    torch.set_num_threads(1)
    store = f"file://{os.environ['PARALLEL_STORE']}"
    dist.init_process_group("gloo", init_method=store, rank=RANK, world_size=SIZE, timeout=timedelta(seconds=SECONDS))


def run_checks(names: list[str]) -> None:
    connect()
    results = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*each of which trains alone")
        for name in names or list(CHECKS):
            try:
                (CHECKS | OF_FOUR)[name]()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc(limit=-3)
            (FOLDER / f"results-{RANK}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def lose_one(kind: str) -> None:
    """Process 1 ends in the fifth step; the other says what it was told. Layers were saved after the third."""
    connect()
    wrap: Any = {"data": DataParallel, "layers": LayerParallel}[kind]
    rule = wrap(layered(0))
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.05, momentum=0.9)
    said = "nothing"
    try:
        for step in range(50):
            if step == 3 and kind == "layers":
                rule.save(FOLDER / "saved", optimizer)
            if step == 4 and RANK == 1:
                os._exit(3)
            rule.assign_credit(*pictures(step))
            optimizer.step()
    except RuntimeError as error:
        said = str(error)
    (FOLDER / f"lost-{kind}.txt").write_text(said)
    os._exit(0)


if __name__ == "__main__":
    several, *names = sys.argv[1:]
    for what in several.split(","):  # each in a fork, which has all that is imported
        if not os.fork():
            os.environ["PARALLEL_STORE"] += f"-{what}"
            run_checks(names) if what == "checks" else lose_one(what)
            sys.exit()
    for _ in several.split(","):
        os.wait()
