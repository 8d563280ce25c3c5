"""What depends on the device, as far as that shows without an accelerator.

No step waits for its device, and none makes a tensor elsewhere. Rules step on PyTorch's meta device, whose tensors have
no numbers: reading one raises. Every operation of a step is looked at, for tensors of the host among what it takes and
gives. What a rule does in its first step alone, such as trying modules and filling caches, is done before, on the CPU.

And what asks for the device, `BRANCHES`, does on the CPU what it would do elsewhere.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prograde import accelerated
from prograde.accelerated import _arrays, normalisations
from prograde.accelerated.rules import (
    CreditAssignment,
    Foton,
    Ftp,
    Pepita,
    foton,
    ftp,
    module_layer,
    orthogonality,
    stepping,
    units,
)
from prograde.accelerated.rules import rule as rule_module
from prograde.accelerated.rules.accumulation import accumulate
from prograde.accelerated.rules.orthogonality import _Copy as COPY
from prograde.equivalence_tests import local_examples, own_models
from prograde.equivalence_tests.rule_examples import BATCH, EXAMPLES, FLAT, Example, K, dense, refusal

pytestmark = pytest.mark.places_itself

META = torch.device("meta")

WAITING = (
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "bincount", "histc", "linalg_eig", "linalg_matrix_exp",
    "masked_select", "multinomial", "normal.Tensor", "normal.float_Tensor", "repeat_interleave.Tensor", "unique",
)  # fmt: skip
"""Operations for which CUDA waits though the meta device has a form of them, by the beginnings of their names."""

LEFT_OUT = {
    "local classifiers on hardware with images",
    ("Hardware", "ViT"),
    ("Hardware", "character transformer"),
}
"""Where `Hardware` is among products without a matrix of its rule: it knows those by where they lie in memory, of which
the meta device has none."""


class Watch(TorchDispatchMode):
    """Inside, every operation is on the meta device alone, but for tensors that the host keeps for itself."""

    def __init__(self, kept: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.operations = 0
        self._kept = {id(tensor) for tensor in kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        name = str(func).removeprefix("aten.")
        assert not name.startswith(WAITING), f"{name} waits for the device"
        try:
            given = func(*args, **(kwargs or {}))
        except NotImplementedError as error:
            raise AssertionError(f"{name} reads numbers: {error}") from error
        for tensor in tree_leaves((args, kwargs, given)):
            if isinstance(tensor, Tensor) and not self._is_of_the_host(tensor):
                assert tensor.device == META, f"{name} has a tensor of shape {tuple(tensor.shape)} on {tensor.device}"
        return given

    def _is_of_the_host(self, tensor: Tensor) -> bool:
        """Whether it is a count of an optimizer's steps, or the state of a generator, which are bytes."""
        return id(tensor) in self._kept or tensor.dtype == torch.uint8


class FromNumbers(TorchFunctionMode):
    """Inside, no tensor is made from numbers of the host, which a device would have to be sent."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func.__name__}: sent by the host"
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(kept: Iterable[Tensor] = ()) -> Iterator[None]:
    """No waiting inside. Raises AssertionError, too, where nothing is computed."""
    with Watch(kept) as watch, FromNumbers():
        try:
            yield
        except RuntimeError as error:
            if "meta tensors" not in str(error):
                raise
            raise AssertionError(f"reads numbers: {error}") from error
    assert watch.operations, "nothing was computed"


class Unread:
    """A copy of defects on its way to the host, which the meta device has none of: see `test_constraint`."""

    def __init__(self, step: int, names: list[str], defects: Tensor) -> None:
        self.step = step

    def has_arrived(self) -> bool:
        return False


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """What the meta device lacks: autocast, and a way to the host."""
    is_on, region = torch.is_autocast_enabled, torch.autocast
    off = {"meta": nullcontext()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda kind: kind not in off and is_on(kind))
        patch.setattr(torch, "autocast", lambda kind, *a, **given: off.get(kind) or region(kind, *a, **given))
        patch.setattr(orthogonality, "_Copy", Unread)
        yield


@pytest.fixture(autouse=True)
def _as_on_an_accelerator(ours_only: None) -> Iterator[None]:
    with as_on_an_accelerator():
        yield


def sgd(rule: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(rule.parameters(), lr=0.01, momentum=0.9)


def adamw(rule: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(rule.parameters())


OPTIMIZERS = {"SGD": sgd, "AdamW": adamw}


def on_meta(given: Any) -> Any:
    return tree_map(lambda part: part.to(META), given)


def check(rule: CreditAssignment, x: Any, y: Any, make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    """A step on the meta device, after the first one on the CPU."""
    rule.step(x, y, make(rule))
    rule.to(META)
    optimizer = make(rule)
    for parameter in rule.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    rule.constrain(optimizer)
    kept = [part["step"] for part in optimizer.state.values() if "step" in part]  # AdamW counts on the host
    x, y, before = on_meta(x), on_meta(y), counted(rule)
    with watched(kept):
        rule.step(x, y, optimizer)
    assert counted(rule) == before, "counted by the host, which a CUDA graph would not repeat"


COUNTED = {"Foton": {"_uses", "_versions"}, "Orthogonality": {"steps"}}
"""What the host counts of steps, which are refused in a graph where it matters."""


def counted(rule: nn.Module) -> dict[str, str]:
    """The host's numbers in a rule."""
    return {
        f"{name}.{attribute}": repr(value)
        for name, module in rule.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in COUNTED.get(type(module).__name__, ()) and is_plain(value)
    }


def is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def built(example: Example) -> tuple[CreditAssignment, Tensor, Tensor]:
    """Without a generator, of which the meta device has none."""
    torch.manual_seed(0)
    return example.rule(example.model().double(), generator=None), *example.batch("cpu")


def labels() -> Tensor:
    return torch.arange(BATCH) % K


def cases() -> Iterator[Any]:
    """The plainest example of each rule by SGD, and three by AdamW; all by both with the nightly profile."""
    for name in EXAMPLES.keys() - LEFT_OUT:
        for optimizer in OPTIMIZERS:
            now = not re.search(",| on ", name) if optimizer == "SGD" else name in ("foton", "ftp", "mono-forward")
            yield pytest.param(name, optimizer, marks=() if now else pytest.mark.nightly)


@pytest.mark.parametrize(("name", "optimizer"), sorted(cases(), key=str))
def test_no_step_waits(name: str, optimizer: str) -> None:
    check(*built(EXAMPLES[name]), OPTIMIZERS[optimizer])


@pytest.mark.parametrize("name", ["mono-forward", "ftp"])
def test_no_optimizer_of_single_units_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where weights are large."""
    monkeypatch.setattr(stepping, "LARGE", 1)
    check(*built(EXAMPLES[name]), adamw)


def test_no_micro_batch_waits() -> None:
    rule, x, y = built(EXAMPLES["mono-forward"])
    rule.assign_credit(x, y)
    rule.to(META)
    x, y = on_meta((x, y))
    with watched():
        accumulate(rule, x, y, 0.5)


LOSSES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "classes weighted, one ignored": (lambda: nn.CrossEntropyLoss(torch.ones(K).double(), ignore_index=0), labels),
    "samples weighted": (lambda: "cross_entropy", lambda: (labels(), torch.rand(BATCH).double())),
    "smoothed": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), labels),
    "several labels": (lambda: "binary_cross_entropy", lambda: torch.ones(BATCH, K).double()),
    "numbers": (nn.HuberLoss, lambda: torch.randn(BATCH, K).double()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits(name: str) -> None:
    loss, targets = LOSSES[name]
    rule = Ftp(dense().double(), loss=loss())
    check(rule, torch.randn(BATCH, *FLAT).double(), targets(), sgd)


def test_no_dropout_waits() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, K)).double()
    check(Pepita(model), torch.randn(BATCH, *FLAT).double(), labels(), sgd)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*local_examples.RULES, *local_examples.MODELS])
def test_no_step_of_local_classifiers_waits(name: str) -> None:
    if name in local_examples.RULES:
        rule = local_examples.RULES[name]()
        x, y = local_examples.batch(rule)
    else:
        rule, shape = local_examples.MODELS[name]()
        x, y = torch.randn(14, *shape, dtype=torch.float64), torch.arange(14) % local_examples.K
    check(rule, x, y, sgd)


CELLS = set(product(own_models.RULES, own_models.MODELS)) - own_models.REFUSED.keys() - LEFT_OUT


@pytest.mark.nightly
@pytest.mark.parametrize(("rule", "model"), sorted(CELLS))
def test_no_step_on_a_model_of_ones_own_waits(rule: str, model: str) -> None:
    made, x, y = own_models.build(rule, model, 0)
    for part in made.modules():
        if getattr(part, "generator", None) is not None:
            part.generator = None
    check(made, x, y, sgd)


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: bool(x.sum() > 0),
    "a list": lambda x: x.tolist(),
    "a copy": lambda x: x.cpu(),
    "a mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "svd": lambda x: torch.linalg.svd(x),
    "inverse": lambda x: torch.linalg.inv(x),
    "multinomial": lambda x: torch.multinomial(x, 1),
    "made on the host": lambda x: x[torch.arange(2)],
    "a number of the host": lambda x: x + torch.ones(()),
    "numbers of the host": lambda x: x * torch.tensor([1.0, 2.0], device=x.device),
    "numpy": lambda x: x + torch.from_numpy(np.ones(2)).to(x.device),
}


@pytest.mark.parametrize("kind", WAITS)
def test_waiting_is_seen(kind: str) -> None:
    with pytest.raises(AssertionError), watched():
        WAITS[kind](torch.ones(2, 2, device=META))


BRANCHES = {
    "_arrays.few_rows": "test_drift",
    "_arrays.generators": "test_the_devices_own_generator_is_kept_too",
    "_arrays.is_captured": "test_a_graph_is_captured_on_cuda_alone",
    "_arrays.readable": "test_no_step_waits",
    "_autocast.product": "test_a_step_is_near_the_one_outside",
    "normalisations.instance_norm": "test_both_forms_of_an_instance_normalisation",
    "parallel.shared_memory.shared_slots": "elsewhere the process group averages",
    "rules.cutting.channels_first": "maps have PyTorch's default order there",
    "rules.ftp._first_difference": "test_images_in_any_format",
    "rules.held._check_weight": "test_refusals",
    "rules.orthogonality.__init__": "test_defects_on_their_way_are_waited_for_by_an_event",
    "rules.orthogonality._is_multiplied_in_tf32": "test_products_in_tf32_resolve_less",
    "rules.orthogonality._is_of_host": "test_the_tolerance_is_kept_by_looks_at_an_accelerators_wide_weights",
    "rules.units.channels_last": "test_images_in_any_format",
    "training.diagnostics.information.linear_probe": "the same on CPUs and CUDA",
    "training.optimizers.of_recipe": "the same on CPUs and CUDA",
}
"""Every function below the command line that asks for a device's kind, by the test that takes its other branch on the
CPU, or why none is."""
ASKS = re.compile(r"\.is_cuda|device\.type (==|!=|in)|torch\.(cuda|accelerator)\.")
CARD = torch.device("cuda", 0)


def test_every_branch_is_listed() -> None:
    root, found = Path(accelerated.__path__[0]), set()
    for path in set(root.rglob("*.py")) - set((root / "command_line").iterdir()):
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)) if ASKS.search(text) else ():
            if isinstance(node, ast.FunctionDef) and ASKS.search("\n".join(lines[node.lineno - 1 : node.end_lineno])):
                found.add(".".join((*path.relative_to(root).with_suffix("").parts, node.name)))
    assert found == BRANCHES.keys()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name in BRANCHES.values():
        assert " " in name or f"def {name}(" in tests, f"{name}: no such test"


def test_the_devices_own_generator_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", (own,))
    assert _arrays.generators(torch.device("cpu")) == [torch.default_generator]
    assert _arrays.generators(CARD) == [torch.default_generator, own]
    before = [generator.get_state() for generator in (torch.default_generator, own)]
    with _arrays.draws_undone(CARD):
        torch.rand(1)
        torch.rand(1, generator=own)
    after = [generator.get_state() for generator in (torch.default_generator, own)]
    assert all(map(torch.equal, before, after)), "kept"


def test_a_graph_is_captured_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert _arrays.is_captured(CARD)
    assert not _arrays.is_captured(torch.device("cpu"))


def test_a_graph_cannot_draw_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second pass through a module that was seen to draw, in a step on the CPU that is told of a graph."""
    rule, x, y = built(EXAMPLES["ftp, modules"])
    rule.assign_credit(x, y)
    monkeypatch.setattr(module_layer, "is_captured", lambda device: True)
    found = refusal(lambda: rule.assign_credit(x, y))
    assert found == "Block, LayerNorm: draws, and runs twice in a step; a CUDA graph can't draw the same again"
    rule.eval()
    rule.assign_credit(x, y)


@pytest.mark.parametrize("option", ["orthogonality_every", "projection_every"])
def test_a_graph_counts_no_steps(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(BATCH, *FLAT), labels()
    rule = Foton(dense(), **{option: 3})
    rule.constrain()
    for module in (orthogonality, foton):
        monkeypatch.setattr(module, "is_captured", lambda device: True)
    found = refusal(lambda: (rule.assign_credit(x, y), rule.constrain()))
    assert found.endswith("every: 3, expected 1 while a CUDA graph is captured: it counts no steps")


def test_both_forms_of_an_instance_normalisation() -> None:
    """Of maps with channels last, which the CPU computes by itself, and of others."""
    h = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    last = h.to(memory_format=torch.channels_last)
    torch.testing.assert_close(normalisations.instance_norm(last), normalisations.instance_norm(h), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ftp, images", "mono-forward, images"])
def test_images_in_any_format(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With channels last and FTP's differences by parts, as a CPU has them; and as they are, in one."""
    found = []
    for as_they_are in (False, True):
        if as_they_are:
            monkeypatch.setattr(units, "channels_last", lambda x: x)
            monkeypatch.setattr(rule_module, "channels_last", lambda x: x)
            monkeypatch.setattr(ftp, "PART", 10**9)
        rule, x, y = built(EXAMPLES[name])
        rule.assign_credit(x, y)
        found.append([parameter.grad for parameter in rule.parameters()])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_defects_on_their_way_are_waited_for_by_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from a card, as it asks for it."""
    told: list[str] = []

    class Event:
        def __init__(self, device: torch.device) -> None:
            told.append(f"event on {device}")

        def record(self, stream: str) -> None:
            told.append(f"recorded on {stream}")

        def query(self) -> bool:
            return "waited" in told

        def synchronize(self) -> None:
            told.append("waited")

    class Defects:
        device = CARD

        def to(self, device: str, non_blocking: bool) -> Tensor:
            assert (device, non_blocking) == ("cpu", True), "a copy that waits"
            return torch.tensor([0.5, 0.25])

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: f"the stream of {device}")
    copy = COPY(3, ["a", "b"], Defects())
    assert told == ["event on cuda:0", "recorded on the stream of cuda:0"]
    assert not copy.has_arrived()
    assert copy.defects() == [0.5, 0.25]
    assert copy.has_arrived(), "waited for before it is read"
