"""Rules on the models that people have: which rule trains which model, and what it needs where it refuses one.

    python -m prograde.equivalence_tests.own_models            prints the table of docs/own-model.md
    python -m prograde.equivalence_tests.own_models --runs     runs every cell and prints the loss after it, too

`REFUSED` is what each algorithm needs and a model lacks; runs corrected what was first written down. A rule has
one setting for all models, but in the cells of `OTHERWISE`, where a yes says that some setting trains. It trains a
model if the loss on a batch is below `FALL` of its start in `STEPS` steps, and every parameter moves but frozen ones
and those that the rule says it leaves out, `rule.left_out`.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prograde.accelerated.modules import (
    RecurrentNetwork,
    ResNet,
    char_transformer,
    gru_classifier,
    lenet,
    resnet18,
    vgg8,
    vit,
)
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    BackpropEnsemble,
    BackpropThroughTime,
    ChannelClassAssignment,
    ChannelCompetition,
    CumulativeForwardForward,
    DeeperForward,
    DifferenceTargetPropagation,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    DynamicTemperature,
    FeedbackAlignment,
    ForwardForward,
    Foton,
    Ftp,
    Hardware,
    HybridDynamicTemperature,
    Hyperspherical,
    LayerCollaboration,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
    Pepita,
    RecurrentFtp,
    Rule,
    SymBa,
)
from prograde.accelerated.rules.cutting import NORMALISATIONS

K, BATCH, STEPS, FALL = 4, 16, 50, 0.8
LENGTH, VOCABULARY = 7, 6


class Own(NamedTuple):
    """A model as people have it, and the shape of a sample: of tokens it is the number of them."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    per_token: bool = False

    @property
    def takes_tokens(self) -> bool:
        return len(self.shape) == 1 and self.shape[0] == LENGTH

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """Samples near a pattern of their class, or tokens that tell it; y (batch,), or the next tokens."""
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(BATCH) % K
        if self.takes_tokens:
            text = (torch.arange(LENGTH + 1) + y[:, None]) % K
            return (text[:, :-1], text[:, 1:]) if self.per_token else (text[:, :-1] + 1, y)
        patterns = torch.randn(K, *self.shape, generator=generator)
        noise = torch.randn(BATCH, *self.shape, generator=generator)
        return (2 * patterns[y] + 0.5 * noise).double(), y


def gelu_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, K)
    )


def batch_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, K),
    )  # fmt: skip


MODELS: dict[str, Own] = {
    "MLP, GELU, LayerNorm": Own(gelu_mlp, (12,)),
    "MLP, BatchNorm1d": Own(batch_norm_mlp, (12,)),
    "LeNet": Own(partial(lenet, K, 1, 12, (8, 16), (32, 16)), (1, 12, 12)),
    "VGG, BatchNorm2d": Own(partial(vgg8, K, 1, 0.0, nn.BatchNorm2d, (8, 8, 16, 16, 16, 16, 32)), (1, 16, 16)),
    "ResNet-18": Own(partial(resnet18, K, 1, (8, 8, 16, 16)), (1, 8, 8)),
    "ViT": Own(partial(vit, K, 1, 8, 4, 16, 2, 2), (1, 8, 8)),
    "character transformer": Own(partial(char_transformer, K, LENGTH + 1, 16, 2, 2), (LENGTH,), per_token=True),
    "GRU classifier": Own(partial(gru_classifier, VOCABULARY, K, 16, 16, 2), (LENGTH,)),
}
RECURRENT = Own(partial(RecurrentNetwork, 5, 8, K, "gru"), (9, 5))
"""The GRU classifier of rules through time."""


class Candidate(NamedTuple):
    """How a rule is made of a model, and what trains it: Adam, or SGD with momentum of 0.9."""

    make: Callable[..., Rule]
    rate: float = 0.02
    sgd: bool = False

    def optimizer(self, rule: Rule) -> torch.optim.Optimizer:
        if self.sgd:
            return torch.optim.SGD(rule.parameters(), self.rate, momentum=0.9)
        return torch.optim.Adam(rule.parameters(), self.rate)


def _chain(model: nn.Module, units: Any) -> nn.Module:
    return model if units is None else nn.Sequential(*units)


def _ensemble(model: nn.Module, units: Any, example: Tensor, generator: torch.Generator) -> Rule:
    return BackpropEnsemble([_chain(model, units)], example=example, generator=generator)


def _hybrid(model: nn.Module, units: Any, example: Tensor, generator: torch.Generator) -> Rule:
    return HybridDynamicTemperature(_chain(model, units), generator=generator)


def _hardware(model: nn.Module, **given: Any) -> Rule:
    return Hardware(DirectFeedbackAlignment(model, **given), bits=8, programming_noise=1e-3)


def _through_time(kind: Callable[..., Rule]) -> Callable[..., Rule]:
    """Without units: there is one way through a recurrent model."""

    def build(model: nn.Module, generator: torch.Generator, **given: Any) -> Rule:
        return kind(model, generator=generator)

    return build


RULES: dict[str, Candidate] = {
    "Backprop": Candidate(Backprop),
    "BackpropDeepSupervision": Candidate(BackpropDeepSupervision),
    "BackpropEnsemble": Candidate(_ensemble),
    "Foton": Candidate(Foton),
    "Ftp": Candidate(Ftp),
    "Pepita": Candidate(Pepita),
    "FeedbackAlignment": Candidate(FeedbackAlignment),
    "DirectFeedbackAlignment": Candidate(DirectFeedbackAlignment),
    "DirectRandomTargetProjection": Candidate(DirectRandomTargetProjection),
    "DifferenceTargetPropagation": Candidate(DifferenceTargetPropagation),
    "ForwardForward": Candidate(partial(ForwardForward, goodness="mean-square", negatives="pairs", readout=True)),
    "SymBa": Candidate(SymBa),
    "LayerCollaboration": Candidate(partial(LayerCollaboration, goodness="mean-square")),
    "CumulativeForwardForward": Candidate(CumulativeForwardForward),
    "LocalClassifiers": Candidate(LocalClassifiers),
    "MonoForward": Candidate(MonoForward),
    "Hyperspherical": Candidate(Hyperspherical),
    "DynamicTemperature": Candidate(partial(DynamicTemperature, grid=2)),
    "HybridDynamicTemperature": Candidate(_hybrid),
    "PatchEnergy": Candidate(partial(PatchEnergy, grid=2)),
    "DeeperForward": Candidate(DeeperForward),
    "ChannelCompetition": Candidate(ChannelCompetition),
    "ChannelClassAssignment": Candidate(ChannelClassAssignment),
    "Hardware": Candidate(_hardware),
    "RecurrentFtp": Candidate(_through_time(RecurrentFtp)),
    "BackpropThroughTime": Candidate(_through_time(BackpropThroughTime)),
}

OTHERWISE: dict[tuple[str, str], Candidate] = {
    **{
        ("Ftp", model): Candidate(partial(Ftp, scale=0.02), 0.2, sgd=True)
        for model in ("ResNet-18", "VGG, BatchNorm2d")
    },
    ("Ftp", "character transformer"): Candidate(partial(Ftp, scale=2.0)),
    ("Pepita", "LeNet"): Candidate(partial(Pepita, scale=0.01), 5.0, sgd=True),
    ("Pepita", "GRU classifier"): Candidate(Pepita, 2.0, sgd=True),
    ("Pepita", "ViT"): Candidate(Pepita, 0.6, sgd=True),
    ("Pepita", "ResNet-18"): Candidate(partial(Pepita, scale=0.01), 0.06, sgd=True),
    ("Pepita", "VGG, BatchNorm2d"): Candidate(partial(Pepita, scale=0.002), 2.0, sgd=True),
    ("Pepita", "character transformer"): Candidate(partial(Pepita, scale=0.0005), 0.2, sgd=True),
    **{
        ("DirectRandomTargetProjection", model): Candidate(partial(DirectRandomTargetProjection, centred=True))
        for model in ("ViT", "character transformer", "GRU classifier")
    },
}
"""Where a model asks for another optimizer, scale or option than the rule has with the others, Adam at 0.02.

All were chosen on seeds 10 to 12, frozen in part and not, by the greatest of the six losses, among up to ten settings a
cell; two of `Pepita` then failed with one of the tests' seeds, 0 to 2, and those of LeNet and the ResNet were chosen
again, on seeds 10 to 19.
"""

HELD = {("PatchEnergy", "LeNet")}
"""Where the loss falls, but not to `FALL`, while the first kernel is frozen.

Under `PatchEnergy` the loss of that layer, whose read-out is fixed, is most of the sum.
"""

THROUGH_TIME = ("RecurrentFtp", "BackpropThroughTime")
LABELS_IN_INPUT = ("ForwardForward", "SymBa", "LayerCollaboration", "CumulativeForwardForward")
LOCAL = (
    "LocalClassifiers", "MonoForward", "Hyperspherical", "DynamicTemperature", "PatchEnergy", "DeeperForward",
    "ChannelCompetition", "ChannelClassAssignment", "BackpropDeepSupervision",
)  # fmt: skip

TOKENS = ("character transformer", "GRU classifier")
JOINED = ("ResNet-18", "ViT", *TOKENS)
NORMALISED = ("MLP, GELU, LayerNorm", "MLP, BatchNorm1d", "VGG, BatchNorm2d")

NEEDS: dict[str, str] = {
    "orthogonal": "orthogonal",
    "one weight": "a weight that a random one can stand in for",
    "inverse": "trains an nn.Sequential of Linear",
    "dense": "dense layers",
    "one batch": "three streams, which are no one batch",
    "one label": "the labels of other positions would have to be known",
    "recurrent": "RecurrentNetwork",
}
"""What the refusal says of a need, by the need's name in the table."""

REFUSED: dict[tuple[str, str], str] = {
    **{("Foton", model): "orthogonal" for model in ("LeNet", *NORMALISED, *JOINED)},
    **{("FeedbackAlignment", model): "one weight" for model in (*NORMALISED, *JOINED)},
    **{("DifferenceTargetPropagation", model): "inverse" for model in ("LeNet", *NORMALISED, *JOINED)},
    **{("HybridDynamicTemperature", model): "dense" for model in ("LeNet", "VGG, BatchNorm2d", *JOINED)},
    ("HybridDynamicTemperature", "MLP, BatchNorm1d"): "one batch",
    **{(rule, "character transformer"): "one label" for rule in LABELS_IN_INPUT},
    **{(rule, model): "recurrent" for rule in THROUGH_TIME for model in MODELS if model != "GRU classifier"},
}
"""The only refusals that are allowed, by the need that is missing."""


def may_leave_out(rule: str, made: Rule) -> set[str]:
    """The modules that a rule with scores or goodness of each layer may leave as they are.

    They are the layer that gives the model's scores, under local rules normalisations, which come after a score, and
    where labels are part of the input what makes numbers of tokens.
    """
    if rule not in (*LOCAL, *LABELS_IN_INPUT, "HybridDynamicTemperature"):
        return set()
    named = list(made.model.named_modules())
    first = {name for name, module in named if isinstance(module, nn.Embedding) and rule in LABELS_IN_INPUT}
    norms = {name for name, module in named if isinstance(module, NORMALISATIONS) and rule in LOCAL}
    *_, last = (name for name, module in named if isinstance(module, nn.Linear))
    return {last, *norms, *first}


def own(rule: str, model: str) -> Own:
    return RECURRENT if rule in THROUGH_TIME and model == "GRU classifier" else MODELS[model]


def candidate(rule: str, model: str) -> Candidate:
    return OTHERWISE.get((rule, model), RULES[rule])


def build(rule: str, model: str, seed: int) -> tuple[Rule, Tensor, Tensor]:
    """The rule on a model of its own, and the batch. Raises ValueError where the rule refuses the model."""
    torch.manual_seed(seed)
    kind = own(rule, model)
    network = kind.make().double()
    x, y = kind.batch(seed)
    units = network.units() if isinstance(network, ResNet) else None
    made = candidate(rule, model).make(network, units=units, example=x, generator=torch.Generator().manual_seed(seed))
    return made, x, y


def loss(rule: Rule, x: Tensor, y: Tensor) -> float:
    """What a step gives, with the same draws each time."""
    _seed(rule, 0)
    return float(rule.assign_credit(x, y))


def _seed(rule: Rule, seed: int) -> None:
    torch.manual_seed(seed)
    if rule.generator is not None:
        rule.generator.manual_seed(seed)


class Outcome(NamedTuple):
    """The loss's fall, the parameters that stayed as they were though not frozen, and what moved though it was."""

    fall: float
    stayed: set[str]
    moved: set[str]


def train(
    rule: Rule, x: Tensor, y: Tensor, candidate: Candidate, freeze: bool = False, patient: bool = True
) -> Outcome:
    """Steps on one batch, with the first eighth of the parameters frozen if so asked.

    All `STEPS`, or not `patient` until the loss is below `FALL` of its start, looked at after every tenth.
    """
    parameters = dict(rule.named_parameters())
    if freeze:
        for name in list(parameters)[: len(parameters) // 8]:
            parameters[name].requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    start = loss(rule, x, y)
    optimizer = candidate.optimizer(rule)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for step in range(STEPS):
        _seed(rule, step)
        rule.assign_credit(x, y)
        optimizer.step()
        rule.constrain(optimizer)
        schedule.step()
        if not patient and step % 10 == 9 and loss(rule, x, y) < FALL * start:
            break
    same = {name for name, parameter in parameters.items() if torch.equal(parameter, before[name])}
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    return Outcome(loss(rule, x, y) / start, same - frozen, frozen - same)


def rows() -> Iterator[str]:
    """The table in Markdown: yes, or the need that is missing."""
    yield "| rule | " + " | ".join(MODELS) + " |"
    yield "| --- |" + " --- |" * len(MODELS)
    for rule in RULES:
        yield f"| `{rule}` | " + " | ".join(REFUSED.get((rule, model), "yes") for model in MODELS) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", action="store_true", help="run every cell with seed 0")
    if not parser.parse_args().runs:
        print("\n".join(rows()))
        return
    for rule in RULES:
        for model in MODELS:
            if (rule, model) not in REFUSED:
                outcome = train(*build(rule, model, 0), candidate(rule, model))
                print(f"{rule} | {model} | {outcome.fall:.3f}", flush=True)


if __name__ == "__main__":
    main()
