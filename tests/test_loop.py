"""The loop: what it trains on, its options, and what it calls."""

from typing import Any

import pytest
import torch

from prograde.accelerated.training import (
    Callback,
    Dataset,
    Epoch,
    Recipe,
    Run,
    build,
    default_recipe,
    fit,
    load,
)

SHORT = default_recipe("backprop", "digits", hidden=(16,), epochs=3, batch=500)  # 3 steps an epoch


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def trained(dataset: Dataset, recipe: Recipe = SHORT, **options: Any) -> Any:
    return fit(build("backprop", dataset, recipe, seed=0), dataset, recipe=recipe, alignment_every=0, **options)


class Noting(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_start(self, run: Run) -> None:
        self.calls.append(("start", run.step, run.steps, run.epoch_number))

    def on_step(self, run: Run) -> None:
        self.calls.append(("step", run.step, run.epoch_number, len(run.batch[1]), run.loss.shape))

    def on_epoch(self, run: Run, epoch: Epoch) -> None:
        assert run.history.epochs[-1] is epoch
        self.calls.append(("epoch", run.step, epoch.epoch))

    def on_end(self, run: Run) -> None:
        self.calls.append(("end", run.step, run.history.stopped, run.history.test_accuracy is not None))


def test_callbacks_are_called_in_turn(digits: Dataset) -> None:
    noting = Noting()
    trained(digits, callbacks=[Callback(), noting], epochs=2)
    steps = [("step", n, 1 + (n > 3), 500 if n % 3 else 149, torch.Size([])) for n in range(1, 7)]
    expected = [("start", 0, 6, 0), *steps[:3], ("epoch", 3, 1), *steps[3:], ("epoch", 6, 2), ("end", 6, None, True)]
    assert noting.calls == expected


def test_callbacks_change_nothing(digits: Dataset) -> None:
    first, second = trained(digits), trained(digits, callbacks=[Noting()])
    assert [epoch.loss for epoch in first.epochs] == [epoch.loss for epoch in second.epochs]
    assert first.test_accuracy == second.test_accuracy


def test_a_callback_ends_training_after_its_step(digits: Dataset) -> None:
    class Ending(Noting):
        def on_step(self, run: Run) -> None:
            super().on_step(run)
            if run.step == 4:
                run.stop("enough")

    ending = Ending()
    history = trained(digits, callbacks=[ending])
    assert [epoch.samples for epoch in history.epochs] == [1149, 500]
    assert history.stopped == "enough"
    assert ending.calls[-2:] == [("epoch", 4, 2), ("end", 4, "enough", True)]


def test_callbacks_end_where_training_breaks_down(digits: Dataset) -> None:
    class Failing(Noting):
        def on_step(self, run: Run) -> None:
            raise RuntimeError("no disk")

    failing = Failing()
    with pytest.raises(RuntimeError, match="no disk"):
        trained(digits, callbacks=[failing])
    assert failing.calls == [("start", 0, 9, 0), ("end", 1, None, False)]


def test_an_epoch_says_what_it_measured(digits: Dataset) -> None:
    """The validation loss by PyTorch's own function; the accuracy of the same weights."""
    rule = build("backprop", digits, SHORT, seed=0)
    epoch = fit(rule, digits, recipe=SHORT, epochs=1, alignment_every=0).epochs[0]
    prepared = digits.to("cpu", torch.float32, standardise=True).validation
    with torch.no_grad():
        scores = rule.eval()(prepared.images)
    assert epoch.samples == len(digits.train.labels) == 1149
    assert epoch.validation_accuracy == (scores.argmax(dim=1) == prepared.labels).double().mean().item()
    expected = torch.nn.functional.cross_entropy(scores, prepared.labels).item()
    assert epoch.validation_loss == pytest.approx(expected, rel=1e-5)
