"""Ways to train a network, their steps timed in turns, and what these hold and count."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from typing import Annotated, Any, Literal, TypeAlias

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from ..orthogonality import defect
from ..rules import Foton, accumulate
from ..training import Recipe, UserError, load
from ..training.diagnostics.costs import costs
from ..training.diagnostics.memory import alive, live_bytes
from ..training.networks import Made
from ..training.networks import widths as widths_of
from ..training.recipes import OPTIMIZER_RATES, made_by, preset_named
from ..training.recipes import network as made_of
from .versions import version

PLAIN = "PyTorch backprop"
WARM_UP = 3
BATCHES = 8
CLUSTER_NOISE = 1.0
MOMENTUM = 0.9
STREAM = 1 << 26
"""Bytes of an array that is too large for any cache."""

OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], int]] = {
    "sgd": (torch.optim.SGD, 2),
    "momentum": (partial(torch.optim.SGD, momentum=MOMENTUM), 4),
    "adamw": (torch.optim.AdamW, 6),
}
"""What makes each, and how many numbers a step reads and writes of a weight and its state."""


Network: TypeAlias = Annotated[
    str, typer.Option(help="Widths from pixels to classes, or a model as --model of train takes it.", metavar="NETWORK")
]
Sample: TypeAlias = Annotated[
    str, typer.Option(help="Shape of a model's samples; widths say it themselves.", metavar="3x32x32")
]
Classes: TypeAlias = Annotated[int, typer.Option(help="A model's classes; widths say them themselves.", min=2)]


@dataclass(frozen=True)
class Setting:
    """What all contenders share. `network` is widths from inputs to classes, or a model's name.

    `learning_rate` is each rule's own where it is None, `micro_batch` the samples of those that accumulate; `compiles`
    is whether rules are compiled too.
    """

    network: str
    sample: str
    classes: int
    batch: int
    optimizer: str
    learning_rate: float | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    micro_batch: int | None = None
    compiles: bool = False

    def described(self) -> dict[str, Any]:
        """What one would need to know to run it again."""
        cuda = self.device.type == "cuda"
        return {
            "kind": "settings",
            "versions": {"prograde": version(), "torch": torch.__version__, "python": platform.python_version()},
            "device_name": torch.cuda.get_device_name(self.device) if cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            **{name: str(value) if name in ("device", "dtype") else value for name, value in asdict(self).items()},
        }

    @property
    def widths(self) -> tuple[int, ...] | None:
        """Of a network that is given by them. Raises UserError."""
        if not self.network[:1].isdigit():
            return None
        found = widths_of(self.network, "--network")
        if len(found) < 3:
            raise UserError(f"--network: '{self.network}', expected pixels, one hidden width or more, classes")
        return found

    @property
    def recipe(self) -> Recipe:
        widths = self.widths
        return Recipe(model=self.network) if widths is None else Recipe(hidden=widths[1:-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample. Raises UserError."""
        if (widths := self.widths) is not None:
            return widths[:1]
        parts = self.sample.split("x")
        if not all(part.isdigit() and int(part) for part in parts):
            raise UserError(f"--sample: '{self.sample}', expected the shape of a sample, such as 3x32x32")
        return tuple(map(int, parts))

    @property
    def num_classes(self) -> int:
        return self.classes if (widths := self.widths) is None else widths[-1]

    def made(self) -> Made:
        """The network that all train, on the CPU. Raises UserError."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return made_of(self.recipe, self.shape, self.num_classes, self.dtype)


@dataclass
class Contender:
    """A way to train: its step, and what was seen of it. `counted` is the rule that `costs` counts it by.

    A step of somebody's may give no loss, and has no module or learning rate that is known.
    """

    name: str
    step: Callable[[Tensor, Tensor], Tensor | float | None]
    module: nn.Module | None
    learning_rate: float | None
    optimizers: list[Optimizer]
    counted: str = "backprop"
    is_traceable: bool = True
    rounds: list[float] = field(default_factory=list)
    losses: list[Tensor | float | None] = field(default_factory=list)
    defect: float = 0.0

    def held(self) -> list[Tensor]:
        """Parameters, buffers and the state of optimizers: what is there between steps; of somebody's step all."""
        if self.module is None:
            return alive()
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        tensors = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return [*self.module.parameters(), *self.module.buffers(), *tensors]


def batches_for(setting: Setting, data: str | None = None) -> list[tuple[Tensor, Tensor]]:
    """Whole batches, of random clusters where no data are named. Raises UserError where the data do not fit."""
    generator = torch.Generator().manual_seed(setting.seed)
    features, classes, batch = prod(setting.shape), setting.num_classes, setting.batch
    if data is None:
        labels = torch.randint(classes, (BATCHES * batch,), generator=generator)
        centres = torch.randn(classes, features, generator=generator)
        noise = CLUSTER_NOISE * torch.randn(len(labels), features, generator=generator)
        samples = (centres[labels] + noise) / (1 + CLUSTER_NOISE**2) ** 0.5  # (samples, features), unit variance
        samples, labels = samples.to(setting.device, setting.dtype), labels.to(setting.device)
    else:
        dataset = load(data).to(setting.device, setting.dtype, standardise=True)
        if (dataset.features, dataset.num_classes) != (features, classes):
            raise UserError(
                f"--network: {features} pixels and {classes} classes, "
                f"but {dataset.name} has {dataset.features} and {dataset.num_classes}"
            )
        order = torch.randperm(len(dataset.train.labels), generator=generator).to(setting.device)
        samples, labels = dataset.train.images[order], dataset.train.labels[order]
    samples = samples.reshape(-1, *setting.made().example.shape[1:])
    if samples.dim() == 4:
        samples = samples.contiguous(memory_format=torch.channels_last)
    whole = [pair for pair in zip(samples.split(batch), labels.split(batch), strict=True) if len(pair[1]) == batch]
    if not whole:
        raise UserError(f"--batch: {batch}, but there are {len(labels)} training samples")
    return whole


def backprop(
    setting: Setting, name: str = PLAIN, scores: Callable[[Made], Callable[[Tensor], Tensor]] | None = None,
    micro_batch: int | None = None, **kind: bool,
) -> Contender:  # fmt: skip
    """Backpropagation as one writes it in PyTorch, at its own learning rate unless one is given.

    `scores` makes of the network what is called in its place; `kind` goes to the optimizer.
    """
    learning_rate = rate_of(setting, "backprop")
    made = setting.made()
    model = placed(made.model, setting)
    called = model if scores is None else scores(made)
    optimizer = OPTIMIZERS[setting.optimizer][0](model.parameters(), lr=learning_rate, **kind)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(called(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def step_in_parts(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        whole = torch.zeros((), device=x.device)
        for x_part, y_part in parts(x, y, micro_batch):
            loss = functional.cross_entropy(called(x_part), y_part) * (len(y_part) / len(y))
            loss.backward()
            whole += loss.detach()
        optimizer.step()
        return whole

    return Contender(name, step if micro_batch is None else step_in_parts, model, learning_rate, [optimizer])


def placed(module: nn.Module, setting: Setting) -> nn.Module:
    """On the setting's device, images' weights as they are fastest."""
    moved: nn.Module = module.to(setting.device)
    return moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def parts(x: Tensor, y: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches of that size."""
    assert size is not None
    return zip(x.split(size), y.split(size), strict=True)


def stepping(setting: Setting, name: str) -> Contender:
    """Backpropagation that steps each parameter within the backward pass, as soon as its gradient is known."""
    learning_rate = rate_of(setting, "backprop")
    model = placed(setting.made().model, setting)
    optimizers: dict[Tensor, Optimizer] = {}
    if setting.optimizer != "sgd":
        make = OPTIMIZERS[setting.optimizer][0]
        optimizers = {p: make([p], lr=learning_rate, fused=True) for p in model.parameters()}

    @torch.no_grad()
    def descend(parameter: Tensor) -> None:
        if optimizers:
            optimizers[parameter].step()
        else:
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-learning_rate)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return Contender(name, step, model, learning_rate, list(optimizers.values()))


def compiled(setting: Setting, name: str) -> Contender:
    """torch.compile of the model, and the fused optimizer."""
    found = backprop(setting, name, lambda made: torch.compile(made.model), fused=True)
    found.is_traceable = False
    return found


def checkpointed(setting: Setting, name: str) -> Contender:
    """Backpropagation that holds what goes into about the root of so many segments, and computes the rest again."""

    def scores(made: Made) -> Callable[[Tensor], Tensor]:
        model, units = made.model, made.units
        chain = list(model) if isinstance(model, nn.Sequential) else list(units or ())
        if len(chain) < 2 or not all(isinstance(unit, nn.Module) for unit in chain):
            raise UserError(f"--beside: 'checkpointed', but '{setting.network}' does not say what its units are")
        size = round(len(chain) ** 0.5)
        segments = [nn.Sequential(*chain[at : at + size]) for at in range(0, len(chain), size)]

        def through(x: Tensor) -> Tensor:
            for segment in segments:
                x = checkpoint(segment, x, use_reentrant=False)
            return x

        return through

    return backprop(setting, name, scores)


BESIDE: dict[str, Callable[[Setting, str], Contender]] = {
    "foreach": partial(backprop, foreach=True),
    "fused": partial(backprop, fused=True),
    "stepping": stepping,
    "compiled": compiled,
    "checkpointed": checkpointed,
}
"""Further ways of backpropagation."""


def rate_of(setting: Setting, rule: str) -> float:
    """The learning rate that was given; else the rule's own, of an optimizer that is not its own the usual one."""
    if setting.learning_rate is not None:
        return setting.learning_rate
    return OPTIMIZER_RATES["adamw"] if setting.optimizer == "adamw" else preset_named(rule).recipe.learning_rate


def rule_contender(setting: Setting, name: str, how: Literal["", "accumulated", "compiled"] = "") -> Contender:
    """A rule, all of a batch in one step or in micro-batches. Raises UserError where it can't train the network."""
    preset, learning_rate = preset_named(name), rate_of(setting, name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            recipe = replace(setting.recipe, options=preset.recipe.options)
            rule = made_by(preset.rule, recipe, setting.shape, setting.num_classes, setting.dtype)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    placed(rule, setting)
    if how == "compiled":
        rule.generator = None  # the compiler knows PyTorch's own
        rule.compile()
    else:
        rule.generator = torch.Generator(setting.device).manual_seed(setting.seed)
    kind = {"fused": True} if setting.optimizer == "adamw" else {}
    optimizer = OPTIMIZERS[setting.optimizer][0](rule.parameters(), lr=learning_rate, **kind)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return rule.step(x, y, optimizer)

    def step_in_parts(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=x.device)
        for x_part, y_part in parts(x, y, setting.micro_batch):
            loss += accumulate(rule, x_part, y_part, len(y_part) / len(y))
        optimizer.step()
        rule.constrain(optimizer)
        return loss

    label, taken = f"{name}, {how}" if how else name, step_in_parts if how == "accumulated" else step
    return Contender(label, taken, rule, learning_rate, [optimizer], counted=name, is_traceable=how != "compiled")


def contenders_for(setting: Setting, rules: Sequence[str], beside: Sequence[str]) -> list[Contender]:
    """Plain backpropagation first, then its other ways, then the rules; in micro-batches and compiled where asked."""
    found = [backprop(setting), *(BESIDE[name](setting, name) for name in beside)]
    if setting.micro_batch is not None:
        found.append(backprop(setting, "accumulated", micro_batch=setting.micro_batch))
    for name in rules:
        found.append(rule_contender(setting, name))
        if setting.micro_batch is not None:
            found.append(rule_contender(setting, name, "accumulated"))
        if setting.compiles:
            found.append(rule_contender(setting, name, "compiled"))
    return found


def take_turns(
    contenders: list[Contender], batches: list[tuple[Tensor, Tensor]], steps: int, rounds: int, device: torch.device
) -> None:
    """Fills in what is seen of the contenders; they change places from round to round."""
    taken = {contender.name: 0 for contender in contenders}

    def one_step(contender: Contender) -> float:
        x, y = batches[taken[contender.name] % len(batches)]
        taken[contender.name] += 1
        _wait(device)
        start = time.perf_counter()
        try:
            loss = contender.step(x, y)
        except FloatingPointError as error:
            raise UserError(f"{contender.name}: {error}") from error
        _wait(device)
        seconds = time.perf_counter() - start
        contender.losses.append(loss)
        if isinstance(contender.module, Foton):
            weights = contender.module.orthogonality.weights(frozen=True).values()
            contender.defect = max(contender.defect, *(defect(weight.detach()).item() for weight in weights))
        return seconds

    for contender in contenders:
        for _ in range(WARM_UP):
            one_step(contender)
    sizes = [steps * (i + 1) // rounds - steps * i // rounds for i in range(rounds)]
    for i, size in enumerate(sizes):
        shift = i % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            contender.rounds.append(statistics.median(one_step(contender) for _ in range(size)))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak(contender: Contender, x: Tensor, y: Tensor) -> int | None:
    """Bytes of tensors alive at one time in a step, at most, but for what is there between steps.

    Gradients count. By the allocator on CUDA, else by what is dispatched: None for code that is compiled or NumPy's,
    which is not.
    """
    if x.device.type == "cuda":
        for parameter in [] if contender.module is None else contender.module.parameters():
            parameter.grad = None
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        contender.step(x, y)
        return torch.cuda.max_memory_allocated(x.device) - before
    if not contender.is_traceable:
        return None
    with live_bytes([x, y, *contender.held()]) as live:
        contender.step(x, y)
    return live.peak or None


@dataclass(frozen=True)
class Floor:
    """What a step can't be faster than here: its products and its optimizer's numbers, at the rates of this machine.

    `macs_a_second` is that of the network's own forward products, `bytes_a_second` that of a copy, read and written.
    """

    macs: dict[str, int]
    moved: int
    macs_a_second: float
    bytes_a_second: float

    def seconds(self, rule: str) -> float | None:
        """None for a rule that no formula counts."""
        if rule not in self.macs:
            return None
        return self.macs[rule] / self.macs_a_second + self.moved / self.bytes_a_second


def floor(setting: Setting, x: Tensor) -> Floor | None:
    """Of all rules that `costs` counts; None where it can't count the network. Raises nothing else."""
    model = setting.made().model
    try:
        counted = costs(model, tuple(x.shape[1:]))
    except UserError:
        return None
    placed(model, setting)
    numbers = sum(p.numel() for p in model.parameters())
    moved = OPTIMIZERS[setting.optimizer][1] * numbers * x.element_size()
    macs = {name: cost.macs * len(x) for name, cost in counted.items()}
    products, seconds = _forward_products(model, x)
    a = torch.ones(STREAM // 4, device=x.device)
    b = torch.empty_like(a)
    copy = _least(lambda: b.copy_(a), x.device)
    return Floor(macs, moved, products / seconds, 2 * STREAM / copy)


def _forward_products(model: nn.Module, x: Tensor) -> tuple[int, float]:
    """Multiply-accumulates of the Linear and Conv2d, and the seconds that these take, each by itself."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((module, inputs[0], output))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    macs, seconds = 0, 0.0
    with torch.no_grad():
        model(x)
        for hook in hooks:
            hook.remove()
        for module, z, a in seen:
            weight: Any = module.weight
            macs += a.numel() * weight[0].numel()
            seconds += _least(partial(module, z), x.device)
    return macs, seconds


def _least(function: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """The least of several times, after one that warms up."""
    found = []
    for _ in range(times + 1):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def measured(
    setting: Setting, contenders: list[Contender], steps: int, rounds: int, data: str | None = None
) -> list[dict[str, Any]]:
    """What was seen of each contender, times in milliseconds; ratios are to the first one."""
    batches, rounds = batches_for(setting, data), min(rounds, steps)
    take_turns(contenders, batches, steps, rounds, setting.device)
    least = floor(setting, batches[0][0])
    found = []
    for contender in contenders:
        ratios = [a / b for a, b in zip(contender.rounds, contenders[0].rounds, strict=True)]
        alone = None if least is None else least.seconds(contender.counted)
        found.append({
            "kind": "step",
            "name": contender.name,
            "learning_rate": contender.learning_rate,
            "milliseconds": [1000 * value for value in contender.rounds],
            "median": 1000 * statistics.median(contender.rounds),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "floor": None if alone is None else 1000 * alone,
            "rates": None if least is None else [least.macs_a_second, least.bytes_a_second],
            "held": peak(contender, *batches[0]),
            "losses": [None if loss is None else float(loss) for loss in (contender.losses[0], contender.losses[-1])],
            "defect": contender.defect if isinstance(contender.module, Foton) else None,
        })  # fmt: skip
    return found
