"""Which rule trains which model: the table of docs/own-model.md, cell by cell; see `own_models`."""

from collections import OrderedDict
from typing import Any

import pytest
import torch

from prograde.accelerated import rules
from prograde.accelerated.rules import CreditAssignment, RecurrentRule, Rule
from prograde.equivalence_tests.own_models import (
    FALL,
    HELD,
    MODELS,
    NEEDS,
    REFUSED,
    RULES,
    build,
    candidate,
    may_leave_out,
    rows,
    train,
)
from prograde.equivalence_tests.rule_examples import refusal

pytestmark = pytest.mark.usefixtures("ours_only")

TAUGHT = [(rule, model) for rule in RULES for model in MODELS if (rule, model) not in REFUSED]


def test_the_table_has_every_rule() -> None:
    kinds = {name for name in rules.__all__ if isinstance(getattr(rules, name), type)}
    kinds = {name for name in kinds if issubclass(getattr(rules, name), CreditAssignment)}
    assert set(RULES) == kinds - {kind.__name__ for kind in (CreditAssignment, Rule, RecurrentRule)}
    assert len(list(rows())) == len(RULES) + 2


@pytest.mark.parametrize(("rule", "model"), REFUSED)
def test_what_is_refused_is_refused_by_the_need_that_is_missing(rule: str, model: str) -> None:
    def first_step() -> None:
        made, x, y = build(rule, model, 0)
        made.assign_credit(x, y)

    message = refusal(first_step)
    assert NEEDS[REFUSED[rule, model]] in message, message


def check(rule: str, model: str, seed: int, freeze: bool, patient: bool) -> None:
    made, x, y = build(rule, model, seed)
    outcome = train(made, x, y, candidate(rule, model), freeze, patient)
    least = 1 if freeze and (rule, model) in HELD else FALL
    assert outcome.fall < least, f"{model}: the loss is {outcome.fall:.2f} of its start"
    assert not outcome.moved, f"{model}: frozen, and moved"
    left_out = {name for name in made.left_out if made.get_parameter(name).requires_grad}
    assert outcome.stayed == left_out, f"{model}: {outcome.stayed} not trained"
    modules = {name.removeprefix("model.").rpartition(".")[0] for name in left_out}
    assert modules <= may_leave_out(rule, made), f"{model}: {modules} left out"


@pytest.mark.parametrize(("rule", "model"), TAUGHT)
def test_rules_train_the_models_that_people_have(rule: str, model: str) -> None:
    check(rule, model, 0, freeze=False, patient=False)


@pytest.mark.parametrize(("rule", "model"), TAUGHT)
def test_rules_train_models_that_are_frozen_in_part(rule: str, model: str) -> None:
    check(rule, model, 0, freeze=True, patient=False)


@pytest.mark.nightly
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rule", "model"), TAUGHT)
def test_rules_train_them_for_fifty_steps_with_three_seeds(rule: str, model: str, seed: int, freeze: bool) -> None:
    check(rule, model, seed, freeze, patient=True)


def test_an_ensemble_gives_scores_of_every_token() -> None:
    made, x, _ = build("BackpropEnsemble", "character transformer", 0)
    scores = made(x)
    torch.testing.assert_close(scores.exp().sum(dim=2), torch.ones(x.shape, dtype=torch.float64))


def test_hardware_reads_one_matrix_for_all_sequences() -> None:
    """Whatever product PyTorch makes of it: another one where nothing before it is trained."""
    gradients = []
    for frozen in (False, True):
        made, x, y = build("Hardware", "GRU classifier", 0)
        parameters = dict(made.named_parameters())
        for name in list(parameters)[:3]:
            parameters[name].requires_grad_(not frozen)
        made.assign_credit(x, y)
        gradients.append({name: p.grad for name, p in parameters.items() if p.grad is not None})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], msg=name)


@pytest.mark.parametrize("rule", [rules.Ftp, rules.Pepita, rules.DirectFeedbackAlignment])
def test_what_comes_before_the_units_is_at_rest_while_sizes_are_read(rule: Any) -> None:
    """Batch normalisation that learns nothing: it asks for no second sample, and its statistics stay."""
    norm = torch.nn.BatchNorm1d(6, affine=False)
    model = torch.nn.Sequential(
        OrderedDict(norm=norm, a=torch.nn.Linear(6, 5), tanh=torch.nn.Tanh(), b=torch.nn.Linear(5, 3))
    )
    norm.running_mean.fill_(2)
    x = torch.randn(7, 6)
    built = rule(model, units=["a", "b"], example=x)
    assert norm.training
    assert norm.running_mean.tolist() == [2.0] * 6, "zeros have been counted"
    built.assign_credit(x, torch.arange(7) % 3)
    assert norm.num_batches_tracked == 1, "one step"
