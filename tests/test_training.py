"""Training: the same from the same seed, exact after an interruption, and measured without disturbing it."""

import contextlib
import copy
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.cumulative_goodness import compensated
from prograde.accelerated.modules import RecurrentNetwork
from prograde.accelerated.rules import (
    Backprop,
    BackpropThroughTime,
    ChannelCompetition,
    ForwardForward,
    Foton,
    Hardware,
    HybridDynamicTemperature,
    MonoForward,
    RecurrentFtp,
    Rule,
)
from prograde.accelerated.training import (
    PRESETS,
    CheckpointError,
    DataError,
    Dataset,
    Epoch,
    History,
    Recipe,
    Split,
    TrainingError,
    UserError,
    accuracy,
    alignment,
    build,
    checkpoint,
    default_recipe,
    files,
    fit,
    load,
    restore,
)
from prograde.accelerated.training.optimizers import of_recipe

EXACT = {"pepita": 0, "layer-collaboration": 0, "foton-linear": 2, "dtp": 2}
"""How many last layers' updates are their gradient, where it is not one."""
SHORT: dict[str, Any] = {"hidden": (24, 16), "epochs": 4}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def recipe(method: str, **changes: Any) -> Recipe:
    dropout = 0.0 if method == "dtp" or issubclass(PRESETS[method].rule, ForwardForward) else 0.2
    return default_recipe(method, "digits", **{**SHORT, "dropout": dropout, **changes})


def trained(method: str, dataset: Dataset, seed: int = 0, **files: Any) -> tuple[Rule, History]:
    rule = build(method, dataset, recipe(method), seed=seed)
    return rule, fit(rule, dataset, recipe=recipe(method), seed=seed, **files)


def without_seconds(history: History) -> tuple[list[Epoch], float]:
    return [replace(epoch, seconds=0.0) for epoch in history.epochs], history.test_accuracy


def assert_same(first: tuple[Rule, History], second: tuple[Rule, History]) -> None:
    assert without_seconds(first[1]) == without_seconds(second[1])
    for name, tensor in first[0].named_parameters():
        assert torch.equal(tensor, second[0].get_parameter(name)), name


@pytest.mark.parametrize("method", PRESETS)
def test_a_seed_fixes_everything_and_leaves_the_callers_generator_alone(method: str, digits: Dataset) -> None:
    state = torch.get_rng_state()
    first = trained(method, digits)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert_same(first, trained(method, digits))
    other = trained(method, digits, seed=1)
    assert not torch.equal(next(first[0].parameters()), next(other[0].parameters()))


@pytest.mark.parametrize("method", PRESETS)
def test_the_default_recipe_learns(method: str, digits: Dataset) -> None:
    chosen = default_recipe(method, "digits")
    history = fit(build(method, digits, chosen, seed=0), digits, recipe=chosen, alignment_every=0)
    assert history.test_accuracy > 0.94
    assert all(epoch.alignment == {} for epoch in history.epochs)


class Interrupted(Exception):
    pass


def stop_after(number: int) -> Callable[[Epoch], None]:
    def on_epoch(epoch: Epoch) -> None:
        if epoch.epoch == number:
            raise Interrupted

    return on_epoch


@pytest.mark.parametrize("method", PRESETS)
def test_resuming_is_exact(method: str, digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    whole = trained(method, digits)
    with pytest.raises(Interrupted):
        trained(method, digits, checkpoint=path, on_epoch=stop_after(2))
    assert len(checkpoint.load(path)["history"]) == 2
    assert_same(whole, trained(method, digits, resume=path, checkpoint=path))
    assert_same(whole, trained(method, digits, resume=path))  # of a finished training: only the test is repeated


GATED: dict[str, Any] = {"remedy": "hardness-gated", "learn_gate": True}


def test_resuming_with_learned_gates_is_exact(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    chosen = recipe("cumulative", options=GATED, weight_decay=0.1, optimizer="adamw")

    def train(**files: Any) -> tuple[Rule, History]:
        rule = build("cumulative", digits, chosen, seed=0)
        return rule, fit(rule, digits, recipe=chosen, **files)

    whole = train()
    gates = [held.item() for name, held in whole[0].named_parameters() if name.startswith(("raw_tau", "kappa"))]
    assert len(set(gates)) == 2, "the gate has learned"
    with pytest.raises(Interrupted):
        train(checkpoint=path, on_epoch=stop_after(2))
    assert_same(whole, train(resume=path))


def test_weight_decay_is_not_for_gates(digits: Dataset) -> None:
    """Without a gradient weights shrink and gates stay as they are."""
    for optimizer in ("sgd", "adam", "adamw"):
        chosen = recipe("cumulative", options=GATED, weight_decay=0.5, optimizer=optimizer)
        rule = build("cumulative", digits, chosen, seed=0)
        torch.nn.init.ones_(rule.get_parameter("kappa.0"))
        before = {name: held.detach().clone() for name, held in rule.named_parameters()}
        made = of_recipe(rule, chosen)
        assert sum(len(group["params"]) for group in made.param_groups) == len(before)
        for held in rule.parameters():
            held.grad = torch.zeros_like(held)
        made.step()
        kept = {name for name, held in rule.named_parameters() if torch.equal(held, before[name])}
        assert {"raw_tau.0", "kappa.0"} <= kept, optimizer
        assert not any(name.endswith("weight") for name in kept), optimizer


def test_resuming_on_noisy_hardware_is_exact(digits: Dataset, tmp_path: Path) -> None:
    """The rule's generator, which the checkpoint has the state of, is where all noise comes from."""
    path = tmp_path / "checkpoint"

    def train(**files: Any) -> tuple[Rule, History]:
        rule = build("ftp", digits, recipe("ftp"), seed=0)
        chip = Hardware(rule, bits=6, read_noise=0.02, programming_noise=1e-3, weight_range=1.0)
        return chip, fit(chip, digits, recipe=recipe("ftp"), **files)

    whole = train()
    assert whole[1].best.validation_accuracy > 0.5
    with pytest.raises(Interrupted):
        train(checkpoint=path, on_epoch=stop_after(2))
    assert_same(whole, train(resume=path))


def test_another_trainings_checkpoint_is_refused(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    trained("foton", digits, checkpoint=path)
    with pytest.raises(CheckpointError, match="has seed 0, expected 1"):
        trained("foton", digits, seed=1, resume=path)
    with pytest.raises(CheckpointError, match="has rule Foton, expected Pepita"):
        trained("pepita", digits, resume=path)
    for changes, message in (({"flip": True}, "has flip False, expected True"), ({"batch": 64}, "has batch 128, exp")):
        changed = recipe("foton", **changes)
        with pytest.raises(CheckpointError, match=message):
            fit(build("foton", digits, changed, seed=0), digits, recipe=changed, resume=path)


def epochs_of(rule: Rule, dataset: Dataset, chosen: Recipe, **options: Any) -> list[Epoch]:
    return [
        replace(epoch, seconds=0.0) for epoch in fit(rule, dataset, recipe=chosen, alignment_every=0, **options).epochs
    ]


def test_a_resumed_training_is_extended(digits: Dataset, tmp_path: Path) -> None:
    """At a constant rate exactly as if it had been longer from the first; else the schedule spans the new total."""
    path = tmp_path / "checkpoint"
    for schedule in ("constant", "cosine"):
        short, long = (recipe("backprop", schedule=schedule, epochs=epochs) for epochs in (2, 5))
        first = epochs_of(build("backprop", digits, short, seed=0), digits, short, checkpoint=path, overwrite=True)
        extended = epochs_of(build("backprop", digits, long, seed=0), digits, long, resume=path, checkpoint=path)
        assert extended[:2] == first
        whole = epochs_of(build("backprop", digits, long, seed=0), digits, long)
        assert (extended == whole) == (schedule == "constant")
    with pytest.raises(CheckpointError, match="has 5 epochs done, expected at most 2"):
        fit(build("backprop", digits, short, seed=0), digits, recipe=short, resume=path)


def test_an_extended_training_takes_the_rates_of_the_longer_schedule(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rates = tmp_path / "checkpoint", []
    step = torch.optim.SGD.step

    def noting(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    short, long = (recipe("backprop", epochs=epochs, batch=1149) for epochs in (2, 4))  # one step an epoch
    fit(build("backprop", digits, short, seed=0), digits, recipe=short, checkpoint=path)
    fit(build("backprop", digits, long, seed=0), digits, recipe=long, resume=path)
    spans = [short.learning_rate / 2 * (1 + math.cos(math.pi * done)) for done in (0, 1 / 2, 2 / 4, 3 / 4)]
    assert rates == pytest.approx(spans)


def test_data_are_known_by_their_content(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    whole = trained("backprop", digits, checkpoint=path)
    renamed = digits._replace(name="elsewhere")
    assert_same(whole, trained("backprop", renamed, resume=path))
    labels = digits.test.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    other = digits._replace(test=digits.test._replace(labels=labels))
    with pytest.raises(CheckpointError, match=r"data 'digits' of 1149 \+ 288 \+ 360 samples \(SHA-256 \w{8}\), exp"):
        trained("backprop", other, resume=path)


def test_what_no_recipe_made_is_not_said_of_a_model(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    own = Foton(torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.Tanh(), torch.nn.Linear(12, 10)))
    fit(own, digits, recipe=Recipe(epochs=1), checkpoint=path)
    settings = checkpoint.load(path)["settings"]
    assert settings["network"] is None
    assert not set(settings["recipe"]) & {"hidden", "activation", "dropout", "normalisation", "options"}
    with pytest.raises(
        CheckpointError, match=r"no recipe made; .*load_state_dict\(checkpoint\.load\(path\)\['best'\]\)"
    ):
        restore(path)
    with pytest.warns(UserWarning, match="recipe: hidden, dropout of no effect"):
        fit(own, digits, recipe=Recipe(epochs=1, hidden=(20,), dropout=0.1))
    with pytest.raises(UserError, match=r"activation: 'tanh' in the recipe, but the rule was built with 'relu'"):
        fit(build("foton", digits, recipe("foton"), seed=0), digits, recipe=recipe("foton", activation="tanh"))


def test_no_file_is_replaced_unasked(digits: Dataset, tmp_path: Path) -> None:
    """Whatever is no checkpoint never; all before the first epoch."""
    (tmp_path / "data.npz").write_bytes(b"data")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "data").symlink_to("data.npz")
    trained("backprop", digits, checkpoint=tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()
    seen: list[Epoch] = []
    for name, message in {
        "data.npz": "not replaced", "folder": "is a folder", "pipe": "a pipe", "loop": "a loop of links",
        "device": "a device", "data": "not replaced", "nowhere/checkpoint": "is not there",
        "checkpoint": "is a checkpoint already; expected resume to go on with it, overwrite to replace it",
    }.items():  # fmt: skip
        for overwrite in (False, True) if name != "checkpoint" else (False,):
            with pytest.raises(UserError, match=f"checkpoint: .*{name}.*{message}"):
                trained("backprop", digits, checkpoint=tmp_path / name, overwrite=overwrite, on_epoch=seen.append)
    with pytest.raises(OSError, match="checkpoint"):
        trained("backprop", digits, checkpoint="/proc/checkpoint", on_epoch=seen.append)
    assert seen == []
    assert (tmp_path / "data.npz").read_bytes() == b"data"
    assert (tmp_path / "checkpoint").read_bytes() == before
    trained("backprop", digits, seed=1, checkpoint=tmp_path / "checkpoint", overwrite=True)
    assert checkpoint.load(tmp_path / "checkpoint")["settings"]["seed"] == 1


def test_files_keep_links_and_modes(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        files.write(tmp_path / "file", b"1")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        (tmp_path / "file").chmod(0o604)
        (tmp_path / "link").symlink_to("file")
        files.write(tmp_path / "link", b"2")
    finally:
        os.umask(umask)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"2"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o604


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """The temporary file of this path, and of no other."""
    for name in ("run[1]", "run1"):
        files._temporary(tmp_path / name).write_bytes(b"half")
    files.prepare(tmp_path / "run[1]")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".run1.")


def cut(dataset: Dataset, samples: int) -> Dataset:
    return dataset._replace(train=Split(dataset.train.images[:samples], dataset.train.labels[:samples]))


def dense(*, normalised: bool = False) -> torch.nn.Sequential:
    behind = [torch.nn.BatchNorm1d(20)] if normalised else []
    first, second, last = torch.nn.Linear(64, 20), torch.nn.Linear(20, 20), torch.nn.Linear(20, 10)
    return torch.nn.Sequential(first, torch.nn.ReLU(), *behind, second, torch.nn.ReLU(), last)


REMAINDER: dict[str, Callable[[], Rule]] = {
    **{method: (lambda method=method: build(method, load("digits"), recipe(method), seed=0)) for method in PRESETS},
    "mono-forward, read-out": lambda: MonoForward(dense(), aggregation="readout"),
    "forward-forward, pairs": lambda: ForwardForward(dense(), negatives="pairs", readout=True),
    "forward-forward, hybrid": lambda: ForwardForward(dense(), negatives="hybrid", readout=True),
    "channel competition, BatchNorm1d": lambda: ChannelCompetition(dense(normalised=True)),
    "hybrid dynamic temperature": lambda: HybridDynamicTemperature(dense()),
}


@pytest.mark.parametrize("name", REMAINDER)
def test_a_last_batch_of_one_joins_the_one_before(name: str, digits: Dataset, tmp_path: Path) -> None:
    """Every sample is seen once an epoch, none of them alone, and resuming stays exact."""
    few, path = cut(digits, 129), tmp_path / "checkpoint"
    chosen = recipe(name, epochs=2) if name in PRESETS else Recipe(epochs=2, learning_rate=0.01)
    chosen = replace(chosen, batch=64)

    def train(**options: Any) -> tuple[list[int], list[Tensor]]:
        torch.manual_seed(0)
        rule, sizes = REMAINDER[name](), []
        assign = rule.assign_credit
        rule.assign_credit = lambda x, y: (sizes.append(len(y)), assign(x, y))[1]  # type: ignore[method-assign]
        with contextlib.suppress(Interrupted):
            fit(rule, few, recipe=chosen, alignment_every=0, **options)
        return sizes, [parameter.detach().clone() for parameter in rule.parameters()]

    sizes, whole = train()
    assert sizes == [64, 65] * 2
    train(checkpoint=path, on_epoch=stop_after(1))
    sizes, resumed = train(resume=path)
    assert sizes == [64, 65]
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_targets_that_a_loss_does_not_take_are_refused(digits: Dataset) -> None:
    rule = Backprop(nn.Sequential(nn.Linear(digits.features, 10)), loss="huber")
    with pytest.raises(
        ValueError, match=r"y: torch.int64 of shape \(128,\), expected torch.float32 of shape \(128, 10\)"
    ):
        fit(rule, digits)


def test_too_few_samples_for_a_rule_are_refused(digits: Dataset) -> None:
    rule = ChannelCompetition(dense(normalised=True))
    for data, batch in ((digits, 1), (cut(digits, 1), 128)):
        with pytest.raises(UserError, match="batch: 1 samples, expected at least 2, which ChannelCompetition needs"):
            fit(rule, data, recipe=Recipe(batch=batch))


OWN: dict[str, Callable[[], Rule]] = {
    "recurrent ftp": lambda: RecurrentFtp(RecurrentNetwork(8, 24, 10), inject="every", reduction="mean"),
    "recurrent ftp, gru": lambda: RecurrentFtp(RecurrentNetwork(8, 24, 10, "gru"), inject="every"),
    "recurrent ftp, squared error": lambda: RecurrentFtp(RecurrentNetwork(8, 24, 10), loss="squared_error"),
    "backprop through time": lambda: BackpropThroughTime(RecurrentNetwork(8, 24, 10)),
    "backprop through time, truncated": lambda: BackpropThroughTime(RecurrentNetwork(8, 24, 10, "gru"), truncation=2),
    "mono-forward": lambda: MonoForward(dense()),
}


@pytest.mark.parametrize("name", OWN)
def test_a_rule_on_ones_own_model_is_trained_measured_and_resumed(name: str, digits: Dataset, tmp_path: Path) -> None:
    """Recurrent ones on the rows of images."""
    path, few = tmp_path / "checkpoint", cut(digits, 300)

    def train(**options: Any) -> tuple[Rule, History]:
        torch.manual_seed(0)
        rule = OWN[name]()
        return rule, fit(rule, few, recipe=Recipe(epochs=6, learning_rate=0.05, batch=32), **options)

    whole = train()
    assert whole[1].best.validation_accuracy > 0.25
    assert [list(epoch.alignment) for epoch in whole[1].epochs] == [[unit.name for unit in whole[0].units]] * 6
    with pytest.raises(Interrupted):
        train(checkpoint=path, on_epoch=stop_after(2))
    assert_same(whole, train(resume=path))
    if name == "backprop through time":
        assert list(whole[1].epochs[-1].alignment.values()) == pytest.approx([1, 1], abs=1e-4)


def test_what_a_data_set_cannot_mean_to_a_recurrent_rule_is_refused(digits: Dataset) -> None:
    for shape in ((64,), (1, 8, 8)):
        other = digits._replace(image_shape=shape)
        with pytest.raises(
            DataError, match=r"digits: samples of shape \(.*\), expected \(steps, features\), or images"
        ):
            fit(RecurrentFtp(RecurrentNetwork(8, 6, 10)), other, recipe=Recipe())
    with pytest.raises(ValueError, match=r"x: shape \(128, 8, 8\), expected \(batch, steps, 5\)"):
        fit(RecurrentFtp(RecurrentNetwork(5, 6, 10)), digits, recipe=Recipe())


def test_what_is_no_rule_is_refused(digits: Dataset) -> None:
    model: Any = RecurrentNetwork(8, 6, 10)
    for call in (
        lambda: fit(model, digits, recipe=Recipe()),
        lambda: alignment(model, digits.train.images, digits.train.labels),
    ):
        with pytest.raises(TypeError, match=r"rule: a RecurrentNetwork, but \w+ takes a Rule, such as Foton"):
            call()


def test_a_run_at_chance_says_so(digits: Dataset) -> None:
    """The most common class is a tenth of the digits: 10 % + 2 sqrt(.1 .9 / 360) = 13 % are no better."""
    assert not trained("backprop", digits)[1].at_chance
    blank = digits._replace(test=digits.test._replace(images=torch.zeros_like(digits.test.images)))
    history = trained("backprop", blank)[1]
    assert 0.09 < history.test_accuracy < 0.11
    assert history.at_chance


def test_options_that_a_checkpoint_could_not_give_back_are_refused_before_training(
    digits: Dataset, tmp_path: Path
) -> None:
    own = recipe("cumulative", options={"remedy": compensated(rho=0.5)})
    rule = build("cumulative", digits, own, seed=0)
    with pytest.raises(UserError, match="options: remedy is a partial, expected a name or a number"):
        fit(rule, digits, recipe=own, checkpoint=tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def aligned(method: str, dataset: Dataset) -> list[float]:
    """The alignment after some training, once everything that it must not touch was compared."""
    rule, _ = trained(method, dataset)
    x, y = dataset.train.images[:100], dataset.train.labels[:100]
    rule.train()
    rule.units[0].module.eval()
    rule.assign_credit(x, y)
    assert rule.generator is not None

    def state() -> list[Any]:
        assert rule.generator is not None
        gradients = [None if p.grad is None else p.grad.clone() for p in rule.parameters()]
        modes = [module.training for module in rule.modules()]
        return [gradients, modes, torch.get_rng_state(), rule.generator.get_state(), copy.deepcopy(rule.state_dict())]

    before = state()
    cosines = alignment(rule, x, y)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert list(cosines) == [unit.name for unit in rule.units]
    assert cosines == alignment(rule, x, y)
    return list(cosines.values())


@pytest.mark.parametrize("method", PRESETS)
def test_alignment_disturbs_nothing_and_is_1_where_the_update_is_the_gradient(method: str, digits: Dataset) -> None:
    cosines = aligned(method, digits)
    exact = len(cosines) if method.startswith("backprop") else EXACT.get(method, 1)
    assert cosines[len(cosines) - exact :] == pytest.approx([1] * exact, abs=1e-5)
    assert all(abs(cosine) < 0.9999 for cosine in cosines[: len(cosines) - exact])


def test_the_best_epoch_is_chosen_by_validation_and_its_weights_are_kept(digits: Dataset) -> None:
    rule, history = trained("backprop", digits)
    assert accuracy(rule, digits.to("cpu", torch.float32, standardise=True).validation) == max(
        epoch.validation_accuracy for epoch in history.epochs
    )
    assert accuracy(rule, digits.to("cpu", torch.float32, standardise=True).test) == history.test_accuracy


@pytest.mark.parametrize(
    ("method", "options"),
    [("backprop", {}), ("foton", {}), ("forward-forward", {"goodness": "entmax"}),
     ("forward-forward", {"negatives": "hard"})],
)  # fmt: skip
def test_divergence_is_named(method: str, options: dict[str, Any], digits: Dataset) -> None:
    wild = recipe(method, learning_rate=1e20, schedule="constant", options=options)
    with pytest.raises(TrainingError, match=r"(Backprop|Foton|ForwardForward), epoch 1: .*lower the learning rate"):
        fit(build(method, digits, wild, seed=0), digits, recipe=wild)


def test_a_loss_that_grew_is_named_where_it_is_finite(digits: Dataset) -> None:
    wild = recipe("dfa", learning_rate=1e6)
    with pytest.raises(TrainingError, match=r"epoch 1: the loss is .*, over 1000 times the [1-9].* lower the learning"):
        fit(build("dfa", digits, wild, seed=0), digits, recipe=wild)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": (31,), "activation": "maxmin"}, "width 31.*even number"),
        ({"hidden": (0,)}, "width 0"),
        ({"activation": "rely"}, "activation: 'rely', did you mean relu\\? expected one of identity, relu"),
        ({"batch": 0}, "batch: 0"),
        ({"learning_rate": float("nan")}, "learning rate: nan"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"optimizer": "lion"}, "optimizer: 'lion'"),
        ({"optimizer": "adm"}, r"optimizer: 'adm', did you mean adam or adamw\? expected one of sgd, adam, adamw"),
        ({"schedule": "cosin"}, r"schedule: 'cosin', did you mean cosine\?"),
        ({"epochs": -1}, "epochs: -1, expected an integer, 1 or more"),
        ({"epochs": 1.5}, "epochs: 1.5, expected an integer"),
        ({"epochs": True}, "epochs: True, expected an integer"),
        ({"epochs": "3"}, "epochs: '3', expected an integer"),
        ({"batch": 2.0}, "batch: 2.0, expected an integer"),
        ({"learning_rate": "0.1"}, "learning rate: '0.1', expected a positive number"),
        ({"learning_rate": 0}, "learning rate: 0, expected a positive number"),
        ({"weight_decay": float("inf")}, "weight decay: inf, expected a finite number, 0 or more"),
        ({"momentum": -0.1}, "momentum: -0.1, expected a finite number, 0 or more and below 1"),
        ({"standardise": 1}, "standardise: 1, expected True or False"),
        ({"hidden": 64}, "hidden: 64, expected a tuple"),
        ({"hidden": "64"}, "hidden: '64', expected a tuple"),
        ({"hidden": (64.0,)}, "hidden: width 64.0"),
        ({"options": [("activation_gain", 0.9)]}, "options: .*, expected a dict"),
        ({"learning_rat": 0.1}, r"recipe: 'learning_rat', did you mean learning_rate\?"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        default_recipe("foton", "digits", **changes)


@pytest.mark.parametrize(("name", "factors"), [
    ("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0]), ("steps", [1, 1, 0.01]), ("linear-tail", [1, 1, 0]),
])  # fmt: skip
def test_schedules(name: str, factors: list[float]) -> None:
    from prograde.accelerated.training.schedules import SCHEDULES

    assert [SCHEDULES[name](progress) for progress in (0, 0.5, 1)] == pytest.approx(factors)


def test_a_recipe_holds_plain_values(digits: Dataset, tmp_path: Path) -> None:
    """NumPy's numbers, as a search over settings has them, could not be read back from a checkpoint."""
    chosen = recipe("backprop", epochs=np.int64(1), learning_rate=np.float64(0.1), hidden=[8])
    assert [type(value) for value in (chosen.epochs, chosen.learning_rate, chosen.hidden)] == [int, float, tuple]
    fit(build("backprop", digits, chosen, seed=0), digits, recipe=chosen, checkpoint=tmp_path / "checkpoint")
    assert checkpoint.load(tmp_path / "checkpoint")["settings"]["recipe"]["learning_rate"] == 0.1


def test_misspelt_names_are_refused_with_close_ones(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"rule: 'fotn', did you mean foton\?"):
        default_recipe("fotn", "digits")
    misspelt = recipe("foton", options={"activation_gian": 0.9})
    with pytest.raises(
        UserError, match=r"foton: options: 'activation_gian', did you mean activation_gain\? expected one of"
    ):
        build("foton", digits, misspelt, seed=0)
    rule = build("foton", digits, recipe("foton"), seed=0)
    for epochs in (-1, 0, 1.5):
        with pytest.raises(UserError, match=f"epochs: {epochs}, expected an integer, 1 or more"):
            fit(rule, digits, recipe=recipe("foton"), epochs=epochs)  # type: ignore[arg-type]
    for name in ("seed", "alignment_every"):
        options: dict[str, Any] = {name: -1}
        with pytest.raises(UserError, match=f"{name}: -1, expected an integer, 0 or more"):
            fit(rule, digits, recipe=recipe("foton"), **options)
