"""A model as a line of parts: its leaves in the order in which they run, and where units begin.

The parts, run one after another, are the model. An `nn.Sequential` is read as it stands. Of any other model the units
are given: as modules, in the order in which they run; or by their names, between which `torch.fx` finds what else the
model computes.
"""

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from .._arrays import draws_undone
from ..modules import ChannelNorm

Units: TypeAlias = Sequence[nn.Module] | Sequence[str]
"""The units of a model, in the order in which they run: modules, or their names in it."""

NORMALISATIONS = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
    nn.LocalResponseNorm, ChannelNorm,
)  # fmt: skip
"""What belongs to the unit before it."""

FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    function: (kind, settings)
    for kind, settings, functions in (
        (nn.ReLU, ("inplace",), (functional.relu, torch.relu, "relu")),
        (nn.LeakyReLU, ("negative_slope", "inplace"), (functional.leaky_relu,)),
        (nn.GELU, (), (functional.gelu,)),
        (nn.SiLU, ("inplace",), (functional.silu,)),
        (nn.Tanh, (), (torch.tanh, "tanh")),
        (nn.Sigmoid, (), (torch.sigmoid, "sigmoid")),
        (nn.Flatten, ("start_dim", "end_dim"), (torch.flatten, "flatten")),
        (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
         (functional.max_pool2d,)),
        (nn.AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
         (functional.avg_pool2d,)),
        (nn.AdaptiveAvgPool2d, ("output_size",), (functional.adaptive_avg_pool2d,)),
        (nn.AdaptiveMaxPool2d, ("output_size", "return_indices"), (functional.adaptive_max_pool2d,)),
    )
    for function in functions
}  # fmt: skip
"""The module that a function or method is, and its further arguments in the function's order."""

AS_MODULES = "give the units as modules, units=[model.a, model.b, ...], in the order in which they run"


class Part(NamedTuple):
    """A leaf of the model, its path there, and whether a unit begins with it. Part of none: before the first unit."""

    name: str
    module: nn.Module
    begins: bool


def parts(model: nn.Module, units: Units | None = None, example: Tensor | None = None, rule: str = "") -> list[Part]:
    """The parts of the model. Run one after another they are the model, which is checked on the `example`, if given.

    Without `units`, of an `nn.Sequential` (nested ones included): a unit begins at each leaf with parameters that is no
    normalisation and no activation. With modules: each is a unit, with all in it if it is an `nn.Sequential`, which may
    be made for this, nn.Sequential(model.conv, nn.ReLU()); it begins at the first leaf with parameters. With names:
    what the model computes between two of them follows the first, parameters included.

    Raises ValueError, with names, for what cannot be read so.
    """
    if units is None:
        if not is_plain(model, nn.Sequential):
            raise ValueError(
                f"model: {type(model).__name__}; of a model that is no nn.Sequential {rule or 'a rule'} needs to know "
                "the units: units=[model.a, model.b, ...] in the order in which they run, or their names"
            )
        found = line(model)
    else:
        given = _checked(model, units, rule)
        found = _between(model, given) if isinstance(units[0], str) else list(_listed(model, given))
        _check_parameters(model, found, rule)
    if example is not None and not any(is_lazy(p) for p in model.parameters()):  # which a reader refuses by name
        check_same(model, found, example)
    return found


def line(module: nn.Module, name: str = "") -> list[Part]:
    """The parts of an `nn.Sequential`, or a module by itself, with that path in the model."""
    found = leaves(module, f"{name}.".lstrip(".")) if is_plain(module, nn.Sequential) else [(name, module)]
    return [Part(path, leaf, _begins(leaf)) for path, leaf in found]


def leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of an `nn.Sequential` and of those in it, with their paths in the model."""
    for name, module in model._modules.items():  # unlike named_children, repeats what stands in the model twice
        if module is None:
            continue
        if is_plain(module, nn.Sequential):
            yield from leaves(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module is of that kind and computes as it does."""
    if not isinstance(module, kind) or "forward" in vars(module):
        return False
    return type(module).forward is kind.forward and type(module).__call__ is nn.Module.__call__


def channels_first(x: Tensor) -> Tensor:
    """Feature maps in PyTorch's default order where x is on a CPU and has them in another."""
    if x.dim() != 4 or x.device.type != "cpu" or x.stride(1) != 1:
        return x
    return torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)


def has_strided_pixels(model: nn.Module) -> bool:
    """Whether a kernel of one pixel moves in strides, as in the shortcuts of a ResNet.

    With channels last in memory PyTorch 2.13's own gradient by such a kernel writes beyond its memory on a CPU.
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(tuple(layer.kernel_size) == (1, 1) and max(layer.stride) > 1 for layer in convolutions)


def needs_default_order(modules: Iterable[nn.Module]) -> bool:
    """Whether maps must not have channels last in memory on a CPU, where PyTorch 2.13's own gradients may crash.

    So those by strided pixels do, and those by a GroupNorm's weights where none by its input is asked for.
    """
    parts = [part for module in modules for part in module.modules()]
    return any(isinstance(part, nn.GroupNorm) and part.affine for part in parts) or any(map(has_strided_pixels, parts))


def default_strides(model: nn.Module, x: Tensor) -> Tensor:
    """x as a forward pass of the model's own expects it, which may `view` what it convolves: not channels last."""
    return x if is_plain(model, nn.Sequential) else channels_first(x)


def _begins(module: nn.Module) -> bool:
    return not isinstance(module, (*NORMALISATIONS, nn.PReLU)) and any(True for _ in module.parameters())


def _unit(name: str, module: nn.Module) -> Iterator[Part]:
    """The leaves of a unit, which begins at the first with parameters."""
    begun = False
    for path, leaf, _ in line(module, name):
        begins = not begun and any(True for _ in leaf.parameters())
        begun = begun or begins
        yield Part(path, leaf, begins)


def _checked(model: nn.Module, units: Units, rule: str) -> dict[str, nn.Module]:
    """The units by their names in the model, or by their places in the list."""
    if isinstance(units, str) or not isinstance(units, Sequence | nn.ModuleList | nn.Sequential) or not len(units):
        raise ValueError(f"units: {units!r}, expected a list of modules, or of their names in the model")
    if not (all(isinstance(u, str) for u in units) or all(isinstance(u, nn.Module) for u in units)):
        kinds = ", ".join(dict.fromkeys(type(u).__name__ for u in units))
        raise ValueError(f"units: {kinds}, expected modules alone, or names alone")
    if type(model).__name__ == "OptimizedModule":
        raise ValueError(f"model: compiled; {rule or 'a rule'} runs its units apart, pass the uncompiled model")
    for name, p in model.named_parameters():
        if is_lazy(p):
            raise ValueError(f"model: its {name} is not there yet; call the model once, then build {rule or 'a rule'}")
    known = dict(model.named_modules(remove_duplicate=False))
    paths = {module: name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for index, unit in enumerate(units):
        if isinstance(unit, str):
            name = unit
            if name not in known or not name:
                near = get_close_matches(name, filter(None, known))
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ", expected names of its modules"
                raise ValueError(f"units: '{name}' is no module of the model{hint}")
            module = known[name]
        else:
            module = unit
            name = paths.get(module, f"units[{index}]") or "model"
        for other, earlier in found.items():
            if module is earlier:
                raise ValueError(f"units: '{name}' is named twice, expected each unit once")
            if any(True for part in set(module.modules()) & set(earlier.modules()) for _ in part.parameters()):
                raise ValueError(f"units: '{name}' and '{other}' overlap, expected units apart from one another")
        found[name] = module
    return found


def _listed(model: nn.Module, units: dict[str, nn.Module]) -> Iterator[Part]:
    """The parts of units that are given as modules, which have nothing of their own that is not the model's."""
    held = {*model.parameters(), *model.buffers()}
    paths = {module: name for name, module in model.named_modules()}
    for unit, module in units.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor not in held:
                raise ValueError(f"units: '{unit}' is no part of the model, which has not its {name}")
        for name, leaf, begins in _unit(unit, module):
            yield Part(paths.get(leaf) or name, leaf, begins)


def _check_parameters(model: nn.Module, found: Sequence[Part], rule: str) -> None:
    """Raises ValueError for a parameter of two units, and for one of none that is not frozen."""
    owners: dict[Tensor, tuple[int, str]] = {}
    unit = 0
    for name, module, begins in found:
        unit += begins
        for p in module.parameters():
            other, owner = owners.setdefault(p, (unit, name))
            if other != unit and p.numel():
                raise ValueError(
                    f"layer '{name}': shares a parameter with layer '{owner}'; {rule or 'a rule'} needs each unit's own"
                )
    left = [name for name, p in model.named_parameters() if p.requires_grad and not owners.get(p, (0, ""))[0]]
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise ValueError(
            f"units: {', '.join(left[:4])}{more} of the model in none of them, expected units that hold all parameters "
            "but frozen ones; add the module to the units"
        )
    if not unit:
        raise ValueError("units: no parameters in them, expected one unit at least that can learn")


# What is between units given by their names.


class _Whole(nn.Module):
    """The model as a child, so that options of its forward pass have their defaults in a trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Looks into a module only where a unit is in it."""

    def __init__(self, units: Iterable[nn.Module]) -> None:
        super().__init__()
        self.units = set(units)
        self.without_gradients: set[nn.Module] = set()

    def call_module(self, m: nn.Module, *call: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            self.without_gradients.add(m)
        return super().call_module(m, *call, **options)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.units or self.units.isdisjoint(m.modules())


class FunctionalDropout(nn.Dropout):
    """The dropout of a function's call, in the mode of the module that calls it."""

    def __init__(self, p: float, inplace: bool, caller: nn.Module) -> None:
        super().__init__(p, inplace)
        self._caller = (caller,)  # no child of this module

    @property
    def training(self) -> bool:
        return self._caller[0].training

    @training.setter
    def training(self, mode: bool) -> None:
        """The caller's."""


class Computed(nn.Module):
    """What a model computes between two values, by its own modules, parameters and buffers."""

    def __init__(self, graph: fx.GraphModule, buffers: list[tuple[str, nn.Module, str]]) -> None:
        super().__init__()
        self.graph = graph
        self._owners = buffers  # their places in the graph, the modules that have them, and their names there

    def forward(self, x: Tensor) -> Any:
        for place, owner, name in self._owners:  # which gets others when it is moved or converted
            self.graph.get_submodule(place)._buffers[name] = owner._buffers[name]
        return self.graph(x)


def _between(model: nn.Module, units: dict[str, nn.Module]) -> list[Part]:
    """The parts of units that are given by their names, with all that is computed between them."""
    whole = _Whole(model)
    graph, dropouts = _traced(whole, units)
    output = graph.output_node().args[0]
    nodes = _depending(graph)
    place = {node: index for index, node in enumerate(nodes)}
    if not isinstance(output, fx.Node):
        raise no_tensor(output)
    if output not in place:
        raise ValueError(f"model: gives {output!r}, expected a tensor that is computed from its input")
    last = [max([place.get(user, len(nodes)) for user in node.users], default=place[node]) for node in nodes]

    def crossing(index: int) -> list[fx.Node]:
        """What is computed before that node, and used by it or after it."""
        return [node for node, end in zip(nodes[:index], last, strict=False) if end >= index]

    starts = _starts(whole, units, nodes)
    for index, name in starts.items():
        values = crossing(index)
        if len(values) > 1:
            told = ", ".join(f"'{_name(node)}'" for node in values)
            raise ValueError(
                f"units: {told} all go into what begins with '{name}', expected one tensor; name a module around them "
                "as one unit, or cut elsewhere"
            )
    cuts = [1, *(k for k in range(2, len(nodes)) if k in starts or _may_cut(nodes[k], crossing(k)))]
    found: list[Part] = []
    unit = "model"
    for begin, end in zip(cuts, [*cuts[1:], len(nodes)], strict=True):
        (x,), (y,) = crossing(begin), crossing(end)
        piece = nodes[begin:end]
        module = _alone(whole, x, y, dropouts)
        made = module if module is not None else _piece(whole, piece, x, y, dropouts)
        unit = starts.get(begin, unit)
        name = _name(y) if module is not None and y.op == "call_module" else f"{unit}:{y.name}"
        if begin not in starts:
            found += [Part(path, leaf, False) for path, leaf, _ in _unit(name, made)]
        elif module is not None:
            found += _unit(unit, made)
        else:
            found.append(Part(unit, made, any(True for _ in units[unit].parameters())))
    return found


def _name(node: fx.Node) -> str:
    """As a reader of the model knows it."""
    return str(node.target).removeprefix("model.") if node.op == "call_module" else node.name


def _traced(whole: _Whole, units: dict[str, nn.Module]) -> tuple[fx.Graph, dict[fx.Node, nn.Module]]:
    """The graph, and the calls of functional dropout that follow a module's mode.

    Raises ValueError for a forward pass that depends on data or, in another way, on the mode, for one that draws
    random numbers, which a trace would make constants, and for a unit that it runs without gradients unless frozen.
    """
    graphs = []
    tracer = _Tracer(units.values())
    with untouched(whole), torch.enable_grad():
        drawn = torch.get_rng_state()
        for root, training in ((whole, True), (_Whole(whole.model), False)):  # each gets the constants of its trace
            root.train(training)
            try:
                graphs.append(tracer.trace(root))
            except Exception as error:  # whatever a forward pass raises that gets no numbers
                raise ValueError(f"model: its forward pass cannot be traced ({error}); {AS_MODULES}") from error
        if not drawn.equal(torch.get_rng_state()):
            raise ValueError(f"model: its forward pass draws random numbers itself; {AS_MODULES}")
    for name, module in units.items():
        if module in tracer.without_gradients and any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"units: '{name}' runs under no_grad in the model, expected a unit that learns; freeze it, "
                "requires_grad_(False), or run it with gradients"
            )
    dropouts: dict[fx.Node, nn.Module] = {}
    graph, evaluating = graphs
    for node, other in zip(graph.nodes, evaluating.nodes, strict=False):
        if node.target is functional.dropout is other.target and node.kwargs["training"] != other.kwargs["training"]:
            caller, _ = list(node.meta["nn_module_stack"].values())[-1]
            settings = node.kwargs["p"], node.kwargs["inplace"], whole.get_submodule(caller)
            dropouts[node] = FunctionalDropout(*settings)
            other.kwargs = node.kwargs
    if str(graph) != str(evaluating):
        raise ValueError(
            f"model: its forward pass computes by other functions in evaluation than in training mode; {AS_MODULES}"
        )
    return graph, dropouts


def _depending(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that depend on the input, itself first; the output left out."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or (node.op != "output" and any(n in found for n in node.all_input_nodes)):
            found[node] = None
    return list(found)


def _starts(whole: _Whole, units: dict[str, nn.Module], nodes: Sequence[fx.Node]) -> dict[int, str]:
    """The names of the units, by the places of their calls."""
    called = [
        (index, whole.get_submodule(str(node.target))) for index, node in enumerate(nodes) if node.op == "call_module"
    ]
    found: dict[int, str] = {}
    for name, module in units.items():
        places = [index for index, other in called if other is module]
        if len(places) > 1:
            raise ValueError(
                f"units: '{name}' runs {len(places)} times, expected units that run once; put all of its calls into "
                "one module, and name that"
            )
        if not places:
            raise ValueError(
                f"units: '{name}' is not called on what comes from the input, expected units that run once; "
                f"{AS_MODULES}"
            )
        found[places[0]] = name
        last = found[max(found)]
        if last != name:
            raise ValueError(f"units: '{name}' runs before '{last}', expected the order in which they run")
    return found


def _may_cut(node: fx.Node, crossing: Sequence[fx.Node]) -> bool:
    """Whether the one value that crosses before that node is a tensor, as far as a graph tells."""
    takes_item = node.target is operator.getitem and isinstance(node.args[1], int)  # of several outputs
    return len(crossing) == 1 and not takes_item


def _alone(whole: _Whole, x: fx.Node, y: fx.Node, dropouts: dict[fx.Node, nn.Module]) -> nn.Module | None:
    """The module that gives y of x by itself, or None."""
    if _is_flattening(y, x):
        return nn.Flatten()
    if y.args[:1] != (x,) or y.all_input_nodes != [x]:
        return None
    if y in dropouts:
        return dropouts[y]
    if y.op == "call_module":
        return whole.get_submodule(str(y.target)) if len(y.args) == 1 and not y.kwargs else None
    if y.target not in FUNCTIONS:
        return None
    kind, names = FUNCTIONS[y.target]
    settings: dict[str, Any] = {**dict(zip(names, y.args[1:], strict=False)), **y.kwargs}
    return None if kind is nn.Flatten and "start_dim" not in settings else kind(**settings)


def _is_flattening(y: fx.Node, x: fx.Node) -> bool:
    """Whether y is x.view(x.size(0), -1), by any of its names."""
    if y.target not in ("view", "reshape", torch.reshape):
        return False
    sizes = ("size", (x,)), (getattr, (x, "shape"))
    batches = ("size", (x, 0)), *((operator.getitem, (size, 0)) for size in sizes)
    given = _formula(y.args, x)
    return any(given in ((x, batch, -1), (x, (batch, -1))) for batch in batches)


def _formula(value: Any, x: fx.Node) -> Any:
    """What a node computes of x, as the function and the formulas of its arguments."""
    if isinstance(value, tuple | list):
        return tuple(_formula(part, x) for part in value)
    return (value.target, _formula(value.args, x)) if isinstance(value, fx.Node) and value is not x else value


def _piece(
    whole: _Whole, piece: Sequence[fx.Node], x: fx.Node, y: fx.Node, dropouts: dict[fx.Node, nn.Module]
) -> "Computed":
    """The nodes as a module from x to y, with the modules, parameters and buffers of the model itself."""
    graph = fx.Graph()
    root: dict[str, Any] = {}
    made = {x: graph.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in made:
            inputs = [copied(before) for before in node.all_input_nodes]
            if node in dropouts:
                root[node.name] = dropouts[node]
                made[node] = graph.call_module(node.name, tuple(inputs))
            else:
                made[node] = graph.node_copy(node, made.__getitem__)
                if node.op in ("get_attr", "call_module"):
                    root[str(node.target)] = attrgetter(str(node.target))(whole)
        return made[node]

    for node in piece:
        copied(node)
    graph.output(made[y])
    targets = [str(node.target).rpartition(".") for node in graph.find_nodes(op="get_attr")]
    owners = [(owner, whole.get_submodule(owner), name) for owner, _, name in targets]
    return Computed(fx.GraphModule(root, graph), [of for of in owners if of[2] in of[1]._buffers])


# Whether the parts are the model.


def check_same(model: nn.Module, found: Sequence[Part], example: Tensor) -> None:
    """Raises ValueError where the parts give something else than the model, in evaluation or in training mode.

    Modes, buffers and the state of PyTorch's generators are afterwards as they were. Hooks are not called. Parameters
    that are 0 throughout, as a residual branch's last gain, have other values meanwhile: they would hide differences.
    """
    if not isinstance(example, Tensor) or example.dim() < 1 or len(example) == 0:
        kind = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise ValueError(f"example: {kind}, expected a batch as the model takes it")
    whole = nn.ModuleList([model, *(part.module for part in found)])
    for mode, training in (("evaluation", False), ("training", True)):
        with untouched(whole, example), torch.no_grad(), _filled(model):
            model.train(training)
            expected = model_output(model, default_strides(model, example))
        with untouched(whole, example), torch.no_grad(), _filled(model):
            model.train(training)
            given = _run(found, example)
        if given.shape != expected.shape:
            difference = f"{tuple(given.shape)}, not {tuple(expected.shape)}"
        else:
            apart, size = ((t.double().abs().max()) for t in (given - expected, expected))
            if apart <= torch.finfo(expected.dtype).eps ** 0.5 * size:
                continue
            difference = f"another result than the model, {apart:.3g} apart where it gives {size:.3g} at most"
        raise ValueError(
            f"units: one after another they give {difference}, in {mode} mode; expected all that the model computes, "
            "in the order in which it does"
        )


@contextmanager
def _filled(model: nn.Module) -> Iterator[None]:
    """Parameters that are 0 throughout are drawn inside: within `untouched` the same each time."""
    zeros = [p for p in model.parameters() if p.is_floating_point() and not p.any()]
    with torch.no_grad():
        for p in zeros:
            p.normal_()
    try:
        yield
    finally:
        with torch.no_grad():
            for p in zeros:
                p.zero_()


def model_output(model: nn.Module, example: Tensor) -> Tensor:
    """What it gives. Raises ValueError unless that is a tensor."""
    try:
        given = model(example.clone())
    except Exception as error:  # whatever a forward pass raises
        raise ValueError(f"example: shape {tuple(example.shape)} does not pass the model ({error})") from error
    if not isinstance(given, Tensor):
        raise no_tensor(given)
    return given


def no_tensor(given: Any) -> ValueError:
    """The error for a model that gives something else."""
    kind = next((kind for kind in (dict, tuple, list) if isinstance(given, kind)), type(given))
    return ValueError(
        f"model: gives a {kind.__name__}, expected a tensor; put the model into a module that gives its scores alone"
    )


def _run(found: Iterable[Part], example: Tensor) -> Tensor:
    x = example.clone()
    for name, module, _ in found:
        try:
            given = module(x)
        except Exception as error:  # whatever a forward pass raises
            raise ValueError(f"units: '{name}' does not take what comes before it ({error})") from error
        if not isinstance(given, Tensor):
            raise ValueError(f"layer '{name}': gives a {type(given).__name__}, expected one tensor")
        x = given
    return x


@contextmanager
def untouched(whole: nn.Module, example: Tensor | None = None) -> Iterator[None]:
    """No hooks inside; afterwards modes, buffers and the state of PyTorch's generators are as they were."""
    modules = list(whole.modules())
    kept = [(m, m.training, m._forward_hooks, m._forward_pre_hooks, dict(m._buffers)) for m in modules]
    values = [(buffer, buffer.clone()) for buffer in whole.buffers()]
    for module in modules:
        module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        with draws_undone(torch.device("cpu") if example is None else example.device):
            yield
    finally:
        for module, mode, hooks, pre_hooks, buffers in kept:
            module.training, module._forward_hooks, module._forward_pre_hooks = mode, hooks, pre_hooks
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
