"""Training: the same from the same seed, exact after an interruption, and measured without disturbing it."""

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prograde.accelerated.cumulative_goodness import compensated
from prograde.accelerated.rules import ForwardForward, Hardware, Rule
from prograde.accelerated.training import (
    METHODS,
    CheckpointError,
    Dataset,
    Epoch,
    History,
    Recipe,
    TrainingError,
    UserError,
    accuracy,
    alignment,
    build,
    checkpoint,
    default_recipe,
    fit,
    load,
)
from prograde.accelerated.training.loop import _optimizer

EXACT = {"pepita": 0, "layer-collaboration": 0, "foton-linear": 2, "dtp": 2}
"""How many last layers' updates are their gradient, where it is not one."""
SHORT: dict[str, Any] = {"hidden": (24, 16), "epochs": 4}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def recipe(method: str, **changes: Any) -> Recipe:
    dropout = 0.0 if method == "dtp" or issubclass(METHODS[method][0], ForwardForward) else 0.2
    return default_recipe(method, "digits", **{**SHORT, "dropout": dropout, **changes})


def trained(method: str, dataset: Dataset, seed: int = 0, **files: Any) -> tuple[Rule, History]:
    rule = build(method, dataset, recipe(method), seed=seed)
    return rule, fit(rule, dataset, recipe(method), seed=seed, **files)


def without_seconds(history: History) -> tuple[list[Epoch], float]:
    return [replace(epoch, seconds=0.0) for epoch in history.epochs], history.test_accuracy


def assert_same(first: tuple[Rule, History], second: tuple[Rule, History]) -> None:
    assert without_seconds(first[1]) == without_seconds(second[1])
    for name, tensor in first[0].named_parameters():
        assert torch.equal(tensor, second[0].get_parameter(name)), name


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_fixes_everything_and_leaves_the_callers_generator_alone(method: str, digits: Dataset) -> None:
    state = torch.get_rng_state()
    first = trained(method, digits)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert_same(first, trained(method, digits))
    other = trained(method, digits, seed=1)
    assert not torch.equal(next(first[0].parameters()), next(other[0].parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_the_default_recipe_learns(method: str, digits: Dataset) -> None:
    chosen = default_recipe(method, "digits")
    history = fit(build(method, digits, chosen, seed=0), digits, chosen, alignment_every=0)
    assert history.test_accuracy > 0.94
    assert all(epoch.alignment == {} for epoch in history.epochs)


class Interrupted(Exception):
    pass


def stop_after(number: int) -> Callable[[Epoch], None]:
    def on_epoch(epoch: Epoch) -> None:
        if epoch.epoch == number:
            raise Interrupted

    return on_epoch


@pytest.mark.parametrize("method", METHODS)
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
        return rule, fit(rule, digits, chosen, **files)

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
        made = _optimizer(rule, chosen)
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
        return chip, fit(chip, digits, recipe("ftp"), **files)

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
            fit(build("foton", digits, changed, seed=0), digits, changed, resume=path)


def test_options_that_a_checkpoint_could_not_give_back_are_refused_before_training(
    digits: Dataset, tmp_path: Path
) -> None:
    own = recipe("cumulative", options={"remedy": compensated(rho=0.5)})
    rule = build("cumulative", digits, own, seed=0)
    with pytest.raises(UserError, match="options: remedy is a partial, expected a name or a number"):
        fit(rule, digits, own, checkpoint=tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"weight": torch.zeros(1000)})
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:-10], whole[:100], b"", b"text", flipped):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint: .*(truncated|damaged)"):
            checkpoint.load(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not written by this version"):
        checkpoint.load(path)


def test_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("harm").touch, ())

    path = tmp_path / "checkpoint"
    torch.save({"format": checkpoint.FORMAT, "weight": Payload()}, path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"number": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"number": 2})
    assert checkpoint.load(path) == {"number": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def aligned(method: str, dataset: Dataset) -> list[float]:
    """The alignment after some training, once everything that it must not touch was compared."""
    rule, _ = trained(method, dataset)
    x, y = dataset.train.images[:100], dataset.train.labels[:100]
    rule.train()
    rule.blocks[0].linear.eval()
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
    assert list(cosines) == [block.name for block in rule.blocks]
    assert cosines == alignment(rule, x, y)
    return list(cosines.values())


@pytest.mark.parametrize("method", METHODS)
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
        fit(build(method, digits, wild, seed=0), digits, wild)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": (31,), "activation": "maxmin"}, "width 31.*even number"),
        ({"hidden": (0,)}, "width 0"),
        ({"activation": "gelu"}, "activation: 'gelu', expected one of identity, relu"),
        ({"batch": 0}, "batch: 0"),
        ({"learning_rate": float("nan")}, "learning rate: nan"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"optimizer": "lion"}, "optimizer: 'lion'"),
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
