"""What is promised of every rule, as named checks for anybody's; and the suite for a package, in a suite of one's own.

from prograde.equivalence_tests import parametrize_with_rules, parametrize_with_twins

@parametrize_with_rules([MyRule], expected_failed_checks={"calls hooks": "it runs no module"})
def test_my_rule(rule, check):
    check(rule)

@parametrize_with_twins(["my_package"], modules=["foton"], expected_failed_checks={"foton: test_updates": "in work"})
def test_my_package(twin, check):
    check(twin)
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .placement import Placement
from .results import skip_reckoning
from .rule_examples import Example, refusal
from .sides import MODULES, TwinSide, known_activations
from .strategies import FIXED, KinkDistance
from .tolerance import Comparison

Check = Callable[[Example], None]
Skipped = pytest.skip.Exception
Reasons = Mapping[str, str]


def built(example: Example) -> tuple[Any, Tensor, Tensor]:
    """The rule and a batch, on the device under test."""
    rule = example.build(Placement.device)
    assert isinstance(rule, nn.Module), f"rule: {type(rule).__name__}, expected an nn.Module"
    return rule, *example.batch(Placement.device)


@contextmanager
def on(device: str) -> Iterator[None]:
    """Rules are made and step on that device inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Placement, "device", torch.device(device))
        yield


def draw_from(rule: nn.Module, seed: int) -> None:
    """What the rule draws next is that of the seed."""
    torch.manual_seed(seed)
    for module in rule.modules():
        if isinstance(getattr(module, "generator", None), torch.Generator):
            module.generator.manual_seed(seed)  # type: ignore[union-attr, operator]


def credit(rule: Any, x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor | None]:
    """What assign_credit leaves in `.grad`, with draws that are fixed."""
    draw_from(rule, seed)
    rule.assign_credit(x, y)
    return {name: None if p.grad is None else p.grad.clone() for name, p in rule.named_parameters()}


def close(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def same(found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> str:
    """The first name whose tensors are not equal bit for bit, "" where all are."""
    for name, other in expected.items():
        one = found[name]
        if one is not other and (one is None or other is None or not torch.equal(one, other)):
            return name
    return ""


def fills_every_grad(example: Example) -> None:
    """Of every parameter, of its shape, but for those that `left_out` names."""
    rule, x, y = built(example)
    found = credit(rule, x, y, 0)
    missing = {name for name, gradient in found.items() if gradient is None}
    named = set(getattr(rule, "left_out", ()))
    assert named == missing, f"no gradient: {sorted(missing)}, expected {sorted(named)}, which left_out names"
    for name, parameter in rule.named_parameters():
        if parameter.grad is not None:
            shapes = tuple(parameter.grad.shape), tuple(parameter.shape)
            assert shapes[0] == shapes[1], f"gradient of {name}: shape {shapes[0]}, expected {shapes[1]}"
            assert bool(parameter.grad.isfinite().all()), f"{name}: not finite"


def replaces_gradients(example: Example) -> None:
    """No gradient adds to an older one, and what the rule does not train keeps none from elsewhere."""
    rule, x, y = built(example)
    fresh = credit(copy.deepcopy(rule), x, y, 1)
    for parameter in rule.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert not same(credit(rule, x, y, 1), fresh), f"stale gradient: {same(credit(rule, x, y, 1), fresh)}"


def leaves_no_graph(example: Example) -> None:
    """The loss is a finite number, and parameters stay the tensors that they are."""
    rule, x, y = built(example)
    identities = [id(parameter) for parameter in rule.parameters()]
    loss = rule.assign_credit(x, y)
    assert isinstance(loss, Tensor), f"loss: {loss!r}, expected a tensor of shape ()"
    assert loss.shape == (), f"loss: shape {tuple(loss.shape)}, expected ()"
    assert not loss.requires_grad, "loss: with a graph, expected a detached one"
    assert bool(torch.isfinite(loss)), f"loss: {loss.item()}, expected a finite number"
    graphs = [name for name, p in rule.named_parameters() if p.grad is not None and p.grad.requires_grad]
    assert not graphs, f"gradients with a graph: {graphs}, expected none"
    if hasattr(rule, "constrain"):
        rule.constrain()
    kept = [id(parameter) for parameter in rule.parameters()]
    assert kept == identities, "parameters: other tensors after a step, expected the same ones"


def changes_gradients_alone(example: Example) -> None:
    """Parameters, the batch and the modes of modules stay as they are: an optimizer changes the parameters.

    A rule may set a parameter by the first batch.
    """
    rule, x, y = built(example)
    batch, modes = (x.clone(), y.clone()), {name: module.training for name, module in rule.named_modules()}
    rule.assign_credit(x, y)
    before = {name: parameter.detach().clone() for name, parameter in rule.named_parameters()}
    rule.assign_credit(x, y)
    changed = [name for name, parameter in rule.named_parameters() if not torch.equal(parameter, before[name])]
    assert not changed, f"{changed}: changed by assign_credit, expected gradients alone to change"
    for name, now, given in zip("xy", (x, y), batch, strict=True):
        assert torch.equal(now, given), f"{name}: changed in place, expected the batch to stay as it is"
    moved = [name or "the rule" for name, module in rule.named_modules() if module.training != modes[name]]
    assert not moved, f"{moved}: in another mode after a step, expected train() or eval() to stay"
    assert torch.is_grad_enabled(), "gradients are switched off after a step, expected PyTorch's mode of before"


def streams_as_at_once(example: Example) -> None:
    """Each part is overwritten before the next update is asked for: bit for bit the same updates."""
    rule, x, y = built(example)
    if not hasattr(rule, "stream"):
        pytest.skip("it has no stream")
    names = {parameter: name for name, parameter in rule.named_parameters()}
    at_once = credit(copy.deepcopy(rule), x, y, 1)
    draw_from(rule, 1)
    found: dict[str, Tensor | None] = dict.fromkeys(at_once)
    for update in rule.stream(x, y):
        for parameter, gradient in update.pairs:
            found[names[parameter]] = gradient.clone()
            with torch.no_grad():
                parameter.fill_(float("nan"))
    assert not same(found, at_once), f"{same(found, at_once)}: another update when streamed"


def resumes_bitwise(example: Example) -> None:
    """A copy, and a rule with the state of another loaded, learn the same as it from there on."""
    rule, x, y = built(example)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9)
    step(rule, x, y, optimizer, 0)
    loaded, _, _ = built(example)
    loaded.load_state_dict(copy.deepcopy(rule.state_dict()))
    reference: dict[str, Tensor | None] = {}
    for label, other in {"it": rule, "a copy": copy.deepcopy(rule), "a rule with its state loaded": loaded}.items():
        theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
        theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for seed in (1, 2):
            step(other, x, y, theirs, seed)
        parameters = {name: parameter.detach().clone() for name, parameter in other.named_parameters()}
        reference = reference or dict(parameters)
        differing = same(parameters, reference)
        assert not differing, f"{differing}: {label} learned otherwise in two steps, expected bit for bit the same"


def step(rule: Any, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> None:
    credit(rule, x, y, seed)
    optimizer.step()
    if hasattr(rule, "constrain"):
        rule.constrain(optimizer)


def follows_dtype_and_device(example: Example) -> None:
    """`rule.float()` after construction: all that the rule holds goes along."""
    rule, x, y = built(example)
    rule.float()
    credit(rule, x.float(), y, 0)
    for name, parameter in rule.named_parameters():
        place = parameter.dtype, parameter.device
        assert place == (torch.float32, x.device), f"{name}: {place}, expected {(torch.float32, x.device)}"
        found = place if parameter.grad is None else (parameter.grad.dtype, parameter.grad.device)
        assert found == place, f"gradient of {name}: {found}, expected {place}"


def models(rule: Any) -> list[nn.Module]:
    """Those that the rule was given."""
    rule = getattr(rule, "rule", rule)
    if hasattr(rule, "members"):
        return [member.model for member in rule.members]
    return [rule.model if hasattr(rule, "model") else next(rule.children())]


def calls_hooks(example: Example) -> None:
    """A forward hook sees the module once, with the output that it has in any pass, or is refused by name."""
    rule, x, y = built(example)
    model = models(rule)[0]
    for path, module in model.named_modules():
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda m, inputs, output, seen=seen: seen.append(output))
        with torch.random.fork_rng():
            model(x)
        expected = [part.detach().clone() if isinstance(part, Tensor) else part[0].detach().clone() for part in seen]
        seen.clear()
        message = refusal(lambda: rule.assign_credit(x, y))
        if message == "accepted":
            found = [part if isinstance(part, Tensor) else part[0] for part in seen]
            assert len(found) == 1, f"'{path}': called {len(found)} times"
            is_noisy = type(rule).__name__ == "Hardware"
            assert is_noisy or torch.allclose(found[0], expected[0], rtol=1e-9, atol=1e-12), f"'{path}': another output"
        else:
            where = f"layer '{path}'" if path else "model"
            assert message.startswith(f"{where}: a forward hook, which"), message
            assert message.endswith("; register it for a pass `model(x)` outside training, then remove it"), message
            assert not seen, f"{where}: a forward hook was called, and then refused; expected the refusal first"
        handle.remove()
    message = refusal(lambda: rule.assign_credit(x, y))
    assert message == "accepted", f"with all hooks removed: {message}, expected a step"


def chosen(module: nn.Module) -> Iterator[list[str]]:
    """Names of what is frozen together: each layer, all matrices, all else, and everything."""
    everything = [name for name, _ in module.named_parameters()]
    layers = {name.rpartition(".")[0] for name in everything}
    for layer in sorted(layers):
        yield [name for name in everything if name.rpartition(".")[0] == layer]
    matrices = [name for name, parameter in module.named_parameters() if parameter.dim() > 1]
    yield matrices
    yield [name for name in everything if name not in matrices]
    yield everything


def honours_freezing(example: Example) -> None:
    """What is frozen since stays as it is, under momentum and weight decay, which move a parameter of gradient 0 too.

    The others learn as before. Where nothing is left to learn, a rule of others may raise what autograd does.
    """
    rule, x, y = built(example)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(rule, x, y, optimizer, 0)
    parameters = dict(rule.named_parameters())
    state = {key: value.clone() for key, value in parameters.items()}
    free = credit(rule, x, y, 1)
    for frozen in chosen(rule):
        for key in frozen:
            parameters[key].requires_grad_(False)
        draw_from(rule, 1)
        try:
            streamed = {id(p) for u in rule.stream(x, y) for p, _ in u.pairs} if hasattr(rule, "stream") else ()
            found = credit(rule, x, y, 1)
        except Exception as error:
            if len(frozen) < len(parameters) or is_ours(rule):
                raise AssertionError(f"{error!r} with {frozen} frozen, expected a step") from error
            streamed, found = (), {key: parameter.grad for key, parameter in parameters.items()}
        for key, parameter in parameters.items():
            if key in frozen:
                assert found[key] is None, f"{key}: a gradient of a frozen parameter"
                assert id(parameter) not in streamed, f"{key}: frozen, and in an update's pairs"
            else:
                assert close(found[key], free[key]), f"{key}: another gradient, with {frozen} frozen"
        optimizer.step()
        if hasattr(rule, "constrain"):
            rule.constrain(optimizer)
        for key in frozen:
            assert torch.equal(parameters[key], state[key]), f"{key}: frozen, and changed"
            parameters[key].requires_grad_(True)
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(state[key])
    again = [key for key, gradient in credit(rule, x, y, 1).items() if not close(gradient, free[key])]
    assert not again, f"{again}: another gradient after thawing, expected that of before"


def is_ours(rule: Any) -> bool:
    return type(rule).__module__.startswith("prograde.accelerated.")


def names_a_replaced_layer(example: Example) -> None:
    """A layer that was replaced since the rule was built is refused by its name, in a step and in `rule(x)`.

    A rule of others may train the layer that is there, as it trained the one that was.
    """
    rule, x, y = built(example)
    before = credit(copy.deepcopy(rule), x, y, 1)
    for model in models(rule):
        for key, module in list(model._modules.items()):
            model._modules[key] = copy.deepcopy(module)
            for what, call in {"a step": lambda: rule.assign_credit(x, y), "rule(x)": lambda: rule(x)}.items():
                message = refusal(call)
                if message == "accepted" and not is_ours(rule):
                    found = credit(rule, x, y, 1)
                    wrong = [name for name, gradient in before.items() if not close(found[name], gradient)]
                    said = f"layer '{key}' replaced by its copy: {what} accepted, and another gradient of {wrong}"
                    assert not wrong, f"{said}, expected a refusal that names the layer, or the same gradients"
                    continue
                expected = f"layer '{key}': replaced, added or removed since the "
                said = f"layer '{key}' replaced by its copy: {what}: {message}"
                assert message.startswith(expected), f"{said}, expected '{expected}...'"
            model._modules[key] = module
    message = refusal(lambda: rule.assign_credit(x, y))
    assert message == "accepted", f"with all layers in their places: {message}, expected a step"


def waits_for_no_device(example: Example) -> None:
    """A step on PyTorch's meta device, whose tensors have no numbers, after one on the CPU."""
    devices = tests_of("devices")
    rule, x, y = devices.built(example)
    if not hasattr(rule, "step"):
        pytest.skip("it has no step")
    with devices.as_on_an_accelerator():
        devices.check(rule, x, y, devices.sgd)


CHECKS: dict[str, Check] = {
    "fills every .grad": fills_every_grad,
    "replaces gradients": replaces_gradients,
    "leaves no graph": leaves_no_graph,
    "changes gradients alone": changes_gradients_alone,
    "streams as at once": streams_as_at_once,
    "resumes bitwise": resumes_bitwise,
    "follows dtype and device": follows_dtype_and_device,
    "calls hooks": calls_hooks,
    "honours freezing": honours_freezing,
    "names a replaced layer": names_a_replaced_layer,
    "waits for no device": waits_for_no_device,
}
"""What is promised of every rule."""


def as_example(rule: Any) -> Example:
    """A rule's class, or anything that makes a rule of a model, on a small dense network; an `Example` with its own."""
    example = rule if isinstance(rule, Example) else Example(rule)
    parameters = inspect.signature(example.rule).parameters.values()
    takes = any(p.name == "generator" or p.kind is p.VAR_KEYWORD for p in parameters)
    return example if takes else example._replace(rule=lambda model, generator: example.rule(model))


def _marked(cases: Iterable[tuple[str, Any, str, Any]], expected_failed_checks: Reasons, known: set[str]) -> list[Any]:
    unknown = expected_failed_checks.keys() - known
    if unknown:
        raise ValueError(f"expected_failed_checks: {sorted(unknown)}, expected some of {sorted(known)}")
    return [
        pytest.param(
            subject,
            check,
            id=f"{name}-{label}",
            marks=[pytest.mark.xfail(reason=expected_failed_checks[label], strict=True)]
            if label in expected_failed_checks
            else [],
        )
        for name, subject, label, check in cases
    ]


def parametrize_with_rules(
    rules: Sequence[Any] | Mapping[str, Any],
    checks: Sequence[str] | None = None,
    expected_failed_checks: Reasons | None = None,
) -> pytest.MarkDecorator:
    """Runs a test with the arguments `rule` and `check`, which calls `check(rule)`, for each rule and named check.

    `rules` are classes of rules, or `Example`s with models of their own, or either under names. `checks` are names of
    `CHECKS`, by default all. `expected_failed_checks` has the reasons for those that are known to fail. Raises
    ValueError for an unknown name.

    >>> @parametrize_with_rules([rules.MonoForward], checks=["leaves no graph"])
    ... def test_my_rule(rule, check):
    ...     check(rule)
    >>> [case.id for case in test_my_rule.pytestmark[0].args[1]]  # pytest runs these
    ['MonoForward-leaves no graph']
    """
    named = rules if isinstance(rules, Mapping) else {getattr(rule, "__name__", str(rule)): rule for rule in rules}
    labels = list(CHECKS) if checks is None else list(checks)
    if set(labels) - CHECKS.keys():
        raise ValueError(f"checks: {labels}, expected some of {list(CHECKS)}")
    cases = ((name, as_example(rule), label, CHECKS[label]) for (name, rule), label in product(named.items(), labels))
    return pytest.mark.parametrize(("rule", "check"), _marked(cases, expected_failed_checks or {}, set(labels)))


def parametrize_with_twins(
    packages: Sequence[str],
    modules: Sequence[str],
    dtype: str = "float32",
    device: str = "cpu",
    expected_failed_checks: Reasons | None = None,
) -> pytest.MarkDecorator:
    """Runs a test with the arguments `twin` and `check`, which calls `check(twin)`, for each package and named check.

    Checks are the tests of the `modules`, "foton: test_updates", on the package, with 12 examples for each property.
    What the package lacks is skipped. Raises ValueError for an unknown name.

    >>> @parametrize_with_twins(["prograde.accelerated"], modules=["losses"])
    ... def test_my_package(twin, check):
    ...     check(twin)
    >>> test_my_package.pytestmark[0].args[1][0].id  # pytest runs this, and the others
    'prograde.accelerated-losses: test_cross_entropy'
    """
    known = [name for name in MODULES if find_spec(f"{__package__}.test_{name}") is not None]
    if set(modules) - set(known):
        raise ValueError(f"modules: {list(modules)}, expected some of {known}")
    found = {label: check for module in modules for label, check in checks_of(module)}
    twins = [(package, TwinSide(package, device, dtype)) for package in packages]
    cases = ((*named, label, check) for named, (label, check) in product(twins, found.items()))
    return pytest.mark.parametrize(("twin", "check"), _marked(cases, expected_failed_checks or {}, set(found)))


def tests_of(module: str) -> ModuleType:
    """The file of its tests, in any suite: its marks are for the plugin, and its assertions say what they found."""
    name = f"{__package__}.test_{module}"
    if name not in sys.modules:
        pytest.register_assert_rewrite(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest.mark, "_config", None, raising=False)  # by which pytest refuses marks that it wasn't told
        return import_module(name)


def checks_of(module: str) -> Iterator[tuple[str, Callable[[TwinSide], None]]]:
    """The tests of a module that need a package and no more, under their names, one for each of their parameters."""
    for name, test in vars(tests_of(module)).items():
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        if any(mark.name in ("usefixtures", "nightly") for mark in marks) or not name.startswith("test_"):
            continue
        axes = [_values(*mark.args) for mark in marks if mark.name == "parametrize"]
        wanted = set(inspect.signature(test).parameters).difference(*(axis[0] for axis in axes if axis))
        if wanted & {"twin", "side"} and wanted <= {"twin", "side", "compare"}:
            for chosen_values in product(*axes):
                values = {key: value for part in chosen_values for key, value in part.items()}
                label = f"[{', '.join(map(str, values.values()))}]" if values else ""
                yield f"{module}: {name}{label}", partial(_checked, test, wanted, values)


def _values(names: str | Sequence[str], values: Iterable[Any]) -> list[dict[str, Any]]:
    """The values that a mark gives its parameters, by their names."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    plain = [value.values if hasattr(value, "marks") else (value,) if len(names) == 1 else value for value in values]
    return [dict(zip(names, value, strict=True)) for value in plain]


def _checked(test: Any, wanted: set[str], values: dict[str, Any], twin: TwinSide) -> None:
    given = {"twin": twin, "side": twin, "compare": Comparison(closes=False)}
    KinkDistance.set_for(twin.eps, known_activations(twin.package))
    with pytest.MonkeyPatch.context() as patch, twin.leaving_out(test):
        if hasattr(test, "hypothesis"):
            patch.setattr(test, "_hypothesis_internal_use_settings", FIXED)
        try:
            test(**{name: given[name] for name in wanted}, **values)
        except Exception as error:
            skip_reckoning(error, [twin])
            raise
