"""The loop: what it trains on, its options, and what it calls."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from prograde.accelerated.modules import RecurrentNetwork
from prograde.accelerated.rules import Backprop, BackpropThroughTime, ChannelCompetition, Foton, MonoForward, Rule
from prograde.accelerated.training import (
    Callback,
    Dataset,
    Epoch,
    ForwardOnlyClassifier,
    History,
    Recipe,
    Run,
    TrainingError,
    UserError,
    build,
    default_recipe,
    fit,
    load,
)

SHORT = default_recipe("backprop", "digits", hidden=(16,), epochs=3, batch=500)  # 3 steps an epoch


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def trained(dataset: Dataset, recipe: Recipe = SHORT, **options: Any) -> History:
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


class At(Callback):
    """Does something after that step, or after each."""

    def __init__(self, step: int | None, act: Callable[[Run], Any]) -> None:
        self.step, self.act = step, act

    def on_step(self, run: Run) -> None:
        if self.step in (run.step, None):
            self.act(run)


class Seen(Callback):
    """What was trained on, and the losses."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.losses: list[float] = []

    def on_step(self, run: Run) -> None:
        self.x.append(run.batch[0])
        self.losses.append(run.loss.item())


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
    noting = Noting()
    history = trained(digits, callbacks=[At(4, lambda run: run.stop("enough")), noting])
    assert [epoch.samples for epoch in history.epochs] == [1149, 500]
    assert history.stopped == "enough"
    assert noting.calls[-2:] == [("epoch", 4, 2), ("end", 4, "enough", True)]


def test_callbacks_end_where_training_breaks_down(digits: Dataset) -> None:
    """All of them, where one cannot even end."""

    def fail(run: Run) -> None:
        raise RuntimeError("no disk")

    class Failing(At):
        on_end = staticmethod(fail)  # type: ignore[assignment]

    noting = Noting()
    with pytest.raises(RuntimeError, match="no disk"):
        trained(digits, callbacks=[Failing(1, fail), noting])
    assert noting.calls == [("start", 0, 9, 0), ("end", 1, None, False)]


def test_an_epoch_says_what_it_measured(digits: Dataset) -> None:
    """The validation loss by PyTorch's own function; the accuracy of the same weights."""
    rule = build("backprop", digits, SHORT, seed=0)
    epoch = fit(rule, digits, recipe=SHORT, epochs=1, alignment_every=0).epochs[0]
    prepared = digits.to("cpu", torch.float32, standardise=True).validation
    with torch.no_grad():
        scores = rule.eval()(prepared.images)
    assert epoch.samples == len(digits.train.labels) == 1149
    assert epoch.validation_accuracy == (scores.argmax(dim=1) == prepared.labels).double().mean().item()
    expected = nn.functional.cross_entropy(scores, prepared.labels).item()
    assert epoch.validation_loss == pytest.approx(expected, rel=1e-5)


def interrupt(run: Run) -> None:
    raise KeyboardInterrupt


def test_the_samples_trained_on_are_counted(digits: Dataset) -> None:
    """Of a last group of one batch, too, where two make a step."""
    counts: list[int] = []
    trained(digits, epochs=2, accumulate=2, callbacks=[At(None, lambda run: counts.append(run.samples))])
    assert counts == [1000, 1149, 2149, 2298]


def test_a_validation_loss_without_bounds_is_no_best_epoch(digits: Dataset) -> None:
    x, y = arrays(digits)
    with pytest.raises(TrainingError, match="Backprop, epoch 1: the validation loss is inf"):
        fit(Backprop(model(), loss="squared_error"), (x, y), (1e25 * x, y), epochs=2, alignment_every=0)


def test_ctrl_c_gives_what_was_trained(digits: Dataset) -> None:
    """In the first epoch the weights of the step; later those of the best epoch. Nothing is tested."""
    weights: list[Tensor] = []

    def note(run: Run) -> None:
        weights.append(next(run.rule.parameters()).detach().clone())

    for step, done in ((2, 0), (5, 1)):
        rule, noting = build("backprop", digits, SHORT, seed=0), Noting()
        calls = [At(step, note), At(3, note), At(step, interrupt), noting]
        weights.clear()
        history = fit(rule, digits, recipe=SHORT, callbacks=calls)
        assert history.interrupted
        assert (len(history.epochs), history.stopped, history.test_accuracy) == (done, "interrupted", None)
        assert torch.equal(next(rule.parameters()), weights[0]), "of step 2, and of step 3, the first epoch's last"
        assert noting.calls[-1] == ("end", step, "interrupted", False)


# What it trains on


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).to(dtype)


def arrays(dataset: Dataset, samples: int = 200) -> tuple[Tensor, Tensor]:
    return dataset.train.images[:samples], dataset.train.labels[:samples]


class Stream(IterableDataset[Any]):
    """Without a length."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return zip(self.x, self.y, strict=True)


def as_dict(batch: Any) -> dict[str, Tensor]:
    x, y = torch.utils.data.default_collate(batch)
    return {"image": x, "label": y}


class Array:
    """As a table of pandas: known by what NumPy makes of it."""

    def __init__(self, values: Any) -> None:
        self.values, self.ndim = values, values.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.values


LOADERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair of tensors": lambda x, y: (x, y),
    "pair of arrays": lambda x, y: (x.numpy().astype(np.float64), y.numpy().astype(np.int32)),
    "pair of lists": lambda x, y: (x.tolist(), y.tolist()),
    "TensorDataset": TensorDataset,
    "DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), 50, shuffle=True),
    "DataLoader, workers": lambda x, y: DataLoader(TensorDataset(x, y), 50, shuffle=True, num_workers=2),
    "DataLoader of dicts": lambda x, y: DataLoader(TensorDataset(x, y), 50, shuffle=True, collate_fn=as_dict),
    "IterableDataset": lambda x, y: DataLoader(Stream(x, y), 50),
    "pair of another library's arrays": lambda x, y: (Array(x.numpy()), Array(y.numpy())),
    "list": lambda x, y: list(zip(x.split(50), y.split(50), strict=True)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_gives_batches_is_trained_on(name: str, digits: Dataset) -> None:
    """Every sample once an epoch; the same from the same seed."""
    x, y = arrays(digits)
    options: dict[str, Any] = {"batch": 50} if "pair" in name or name == "TensorDataset" else {}
    if "dicts" in name:
        options["batch_of"] = lambda batch: (batch["image"], batch["label"])
    if name == "IterableDataset":
        options["max_steps"] = 16
    weights = []
    for _ in range(2):
        rule, seen = Foton(model()), Seen()
        data = LOADERS[name](x, y)
        history = fit(rule, data, data, test=data, epochs=4, callbacks=[seen], **options)
        weights.append(next(rule.parameters()).detach().clone())
        for epoch in range(4):
            order = torch.cat(seen.x[4 * epoch : 4 * epoch + 4])
            assert torch.equal(order.sort(dim=0)[0], x.sort(dim=0)[0])
        assert len(seen.x) == 16
        assert [epoch.samples for epoch in history.epochs] == [200] * 4
        assert history.epochs[-1].loss < history.epochs[0].loss
        assert history.best.validation_accuracy == history.test_accuracy
        assert set(history.epochs[0].alignment) == {"0", "2"}
    assert torch.equal(*weights)


def test_a_data_set_is_trained_as_its_tensors_are(digits: Dataset) -> None:
    plain = Recipe(standardise=False, epochs=2)
    first, second = Backprop(model()), Backprop(model())
    of_set = fit(first, digits, recipe=plain)
    of_pairs = fit(second, digits.train, digits.validation, test=digits.test, recipe=plain)
    assert of_set.test_accuracy == of_pairs.test_accuracy
    assert [e.validation_loss for e in of_set.epochs] == [e.validation_loss for e in of_pairs.epochs]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_samplers_are_told_the_epoch(digits: Dataset) -> None:
    told: list[int] = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    data = TensorDataset(*arrays(digits))
    fit(Backprop(model()), DataLoader(data, 100, sampler=Sampler(data)), epochs=3, alignment_every=0)
    assert told == [0, 1, 2]


def test_without_validation_the_last_epoch_stays(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule is told of each epoch's end all the same: there FOTON sees whether its weights were orthogonal."""
    ends: list[list[Any]] = []
    monkeypatch.setattr(Foton, "calibrate", lambda rule, batches: ends.append(list(batches)))
    history = fit(Foton(model()), arrays(digits), epochs=3)
    assert ends == [[]] * 3
    assert history.best.epoch == 3
    assert (history.best.validation_accuracy, history.best.validation_loss, history.test_accuracy) == (None,) * 3


@pytest.mark.parametrize("aggregation", ["range", "validation-loss", "sum"])
def test_what_is_left_unchosen_without_validation_is_said(aggregation: Any, digits: Dataset) -> None:
    rule = MonoForward(model(), aggregation=aggregation)
    before = rule.aggregation.weights.clone()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(rule, arrays(digits), epochs=1)
    assert [str(each.message)[:46] for each in told] == (
        [] if aggregation == "sum" else ["validation: none, on which MonoForward chooses"]
    )
    assert torch.equal(rule.aggregation.weights, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(rule, arrays(digits), arrays(digits), epochs=1)


class TokenScores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_labels_of_positions_are_counted_but_for_ignored_ones() -> None:
    """As counted by hand; the ignored label 0 is a class that scores are given for."""
    torch.manual_seed(0)
    net, x, y = TokenScores(), torch.randn(40, 6, 5), torch.randint(3, (40, 6))
    nn.init.constant_(net.last.bias[:1].detach(), 2.0)
    rule = Backprop(
        net, units=[net.first, net.last], example=x[:2], loss=nn.CrossEntropyLoss(ignore_index=0)
    )  # fmt: skip
    history = fit(rule, (x, y), (x, y), epochs=2, batch=10, alignment_every=0)
    guessed, known = rule.eval()(x).argmax(dim=-1), y != 0
    right = (guessed == y)[known].double().mean().item()
    assert history.best.validation_accuracy == pytest.approx(right, abs=1e-12)
    assert ((guessed == y) & ~known).any(), "else the test says nothing"


def test_regression_is_measured_by_its_loss() -> None:
    """The best epoch is that of the least validation loss, and its weights are those in place."""
    torch.manual_seed(0)
    x = torch.randn(120, 64)
    y = x @ torch.randn(64, 10) / 8
    rule = Backprop(model(), loss=nn.MSELoss())
    history = fit(rule, (x, y), (x[:40], y[:40]), test=(x[40:], y[40:]), epochs=6, batch=40, optimizer=partial(
        torch.optim.SGD, lr=1.0, momentum=0.9))  # fmt: skip
    losses = [epoch.validation_loss for epoch in history.epochs]
    assert history.best.validation_loss == min(losses) != losses[-1]
    with torch.no_grad():
        assert nn.MSELoss()(rule(x[:40]), y[:40]).item() == pytest.approx(min(losses), rel=1e-5)
        assert nn.MSELoss()(rule(x[40:]), y[40:]).item() == pytest.approx(history.test_loss, rel=1e-5)
    assert history.test_accuracy is history.best.validation_accuracy is None


def test_a_rule_without_a_loss_at_the_scores_has_accuracies_alone(digits: Dataset) -> None:
    epoch = fit(MonoForward(model()), arrays(digits), arrays(digits), epochs=1).epochs[0]
    assert epoch.validation_loss is None
    assert 0 < epoch.validation_accuracy < 1


def test_labels_that_have_no_score_are_no_mistakes(digits: Dataset) -> None:
    """Of a rule that asks no loss of them; ignored ones are left out before."""
    x, y = arrays(digits)
    for labels in (y + 1, y - 1):
        with pytest.raises(UserError, match=r"data: labels -?\d+\.\.\d+, expected 0\.\.9"):
            fit(MonoForward(model()), (x, y), (x, labels), epochs=1)
    rule = Backprop(model(), loss=nn.CrossEntropyLoss())
    assert fit(rule, (x, y), (x, y.where(y > 0, -100)), epochs=1).epochs[0].validation_accuracy is not None


def test_labels_are_integers_of_any_kind_or_truth_values(digits: Dataset) -> None:
    x, y = arrays(digits)
    found = []
    for dtype in (torch.int64, torch.uint8, torch.bool):
        data = x, (y % 2).to(dtype)
        history = fit(Backprop(model(), loss=nn.CrossEntropyLoss()), data, data, test=data, epochs=2)
        found.append((history.test_accuracy, history.at_chance))
    assert found == [found[0]] * 3


def test_weights_of_labels_pass_through(digits: Dataset) -> None:
    """By `batch_of`; of weight 0, a sample might as well not be there."""
    x, y = arrays(digits)
    weight = (torch.arange(len(y)) % 2).float()
    losses = []
    for labels in (y, y * weight.long()):
        data = TensorDataset(x, labels, weight)
        history = fit(Backprop(model()), data, batch_of=lambda batch: (batch[0], (batch[1], batch[2])), epochs=1)
        losses.append(history.epochs[0].loss)
    assert losses[0] == losses[1] > 0


WEIGHED: dict[str, tuple[Any, bool]] = {
    "ignored labels": (nn.CrossEntropyLoss(ignore_index=2), False),
    "class weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.0, *[2.0] * 7]), ignore_index=3), False),
    "sample weights": ("cross_entropy", True),
    "sample and class weights": (nn.CrossEntropyLoss(torch.arange(10.0), ignore_index=1), True),
    "sample weights of numbers": ("squared_error", True),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_batches_count_by_the_labels_that_count(name: str) -> None:
    """Batches of one class each, in one step and measured one after another, are as one of all."""
    loss, with_weights = WEIGHED[name]
    torch.manual_seed(0)
    x, y = torch.randn(60, 64), torch.arange(60) // 6
    weight = torch.arange(60.0) ** 2

    def batches(size: int) -> Any:
        labels = zip(y.split(size), weight.split(size), strict=True) if with_weights else y.split(size)
        return list(zip(x.split(size), labels, strict=True))

    found, make = [], partial(torch.optim.SGD, lr=0.5)
    for size in (60, 6):
        rule, data = Backprop(model(), loss=loss), batches(size)
        history = fit(rule, data, data, optimizer=make, epochs=1, accumulate=10, alignment_every=0)
        found.append([history.epochs[0].loss, history.epochs[0].validation_loss, *rule.parameters()])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_of_several_lengths_are_trained_on(packed: bool) -> None:
    """What is behind a sample's end is no label: neither in a mean over batches nor in the accuracy."""
    torch.manual_seed(0)
    lengths = torch.tensor([5, 1, 1, 1, 4, 3])
    x, y = torch.randn(6, 5, 3), torch.randint(4, (6, 5))
    known = torch.arange(5) < lengths[:, None]

    def batches(size: int) -> Any:
        pairs: list[Any] = list(zip(x.split(size), lengths.split(size), strict=True))
        if packed:
            pairs = [pack_padded_sequence(part, ends, batch_first=True, enforce_sorted=False) for part, ends in pairs]
        whole = [y[:, : lengths.max()] for y, lengths in zip(y.split(size), lengths.split(size), strict=True)]
        return list(zip(pairs, whole if packed else y.split(size), strict=True))

    found, make = [], partial(torch.optim.SGD, lr=0.5)
    for size in (6, 2):
        torch.manual_seed(1)
        net = RecurrentNetwork(3, 8, 4, "gru", per_step=True)
        rule, data = BackpropThroughTime(net, loss="cross_entropy"), batches(size)
        history = fit(rule, data, data, optimizer=make, epochs=1, accumulate=3)
        epoch = history.epochs[0]
        found.append([epoch.loss, epoch.validation_loss, epoch.validation_accuracy, *rule.parameters()])
        with torch.no_grad():
            scores = net(x, lengths)[known]
        assert epoch.samples == 6
        assert epoch.validation_accuracy == pytest.approx((scores.argmax(dim=1) == y[known]).double().mean().item())
        assert epoch.validation_loss == pytest.approx(nn.functional.cross_entropy(scores, y[known]).item())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


# Steps


def by_hand(rule: Rule, batches: list[Any], epochs: int, optimizer: Any, scheduler: Any, clip: float | None) -> None:
    for _ in range(epochs):
        for x, y in batches:
            rule.assign_credit(x, y)
            if clip is not None:
                nn.utils.clip_grad_norm_(rule.parameters(), clip)
            optimizer.step()
            rule.constrain(optimizer)
            scheduler.step()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("by_instance", [False, True])
def test_the_steps_are_those_of_a_loop_by_hand(by_instance: bool, clip: float | None, digits: Dataset) -> None:
    x, y = arrays(digits)
    batches = list(zip(x.split(50), y.split(50), strict=True))
    make, plan = partial(torch.optim.AdamW, lr=0.01), partial(OneCycleLR, max_lr=0.02, total_steps=12)
    first, second = Foton(model()), Foton(model())
    optimizer = make(first.parameters())
    by_hand(first, batches, 3, optimizer, plan(optimizer), clip)
    if by_instance:
        own = make(second.parameters())
        fit(second, batches, optimizer=own, scheduler=plan(own), clip_norm=clip, epochs=3)
    else:
        fit(second, batches, optimizer=make, scheduler=plan, clip_norm=clip, epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    if clip is not None:
        third = Foton(model())
        fit(third, batches, optimizer=make, scheduler=plan, epochs=3)
        assert not torch.equal(next(third.parameters()), next(second.parameters()))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_is_what_validation_says(mode: str, digits: Dataset) -> None:
    """The rate falls where a loop by hand, which steps by the same measurement, would have it fall."""
    x, y = arrays(digits)
    options: dict[str, Any] = {"mode": mode, "factor": 0.5, "patience": 0, "threshold": 0.3}
    rates: list[float] = []

    def note(run: Run) -> None:
        rates.append(run.optimizer.param_groups[0]["lr"])

    make = partial(torch.optim.SGD, lr=0.1)
    plan = partial(ReduceLROnPlateau, **options)
    history = fit(
        Backprop(model()),
        (x, y),
        (x, y),
        optimizer=make,
        scheduler=plan,
        epochs=6,
        batch=200,
        callbacks=[At(None, note)],
    )
    own = make(model().parameters())
    scheduler, expected = plan(own), []
    for epoch in history.epochs:
        expected.append(own.param_groups[0]["lr"])
        scheduler.step(epoch.validation_loss if mode == "min" else epoch.validation_accuracy)
    assert rates == expected
    assert rates[-1] < rates[0], "else the test says nothing"
    if mode == "max":
        with pytest.raises(UserError, match="mode 'max', but no validation accuracy"):
            fit(Backprop(model()), (x, y), scheduler=plan, epochs=1)


def test_an_optimizer_of_ones_own_keeps_its_rate(digits: Dataset) -> None:
    rates: list[float] = []
    optimizer = torch.optim.SGD((rule := Backprop(model())).parameters(), lr=0.3)
    optimizer.register_step_post_hook(lambda made, *_: rates.append(made.param_groups[0]["lr"]))
    fit(rule, arrays(digits), optimizer=optimizer, epochs=2, batch=100)
    assert rates == [0.3] * 4


def test_accumulated_batches_are_one() -> None:
    """Of 7 batches, of 10 samples and a last of 5, two and two make a step, and the last alone one."""
    torch.manual_seed(0)
    x, y = torch.randn(65, 64, dtype=torch.float64), torch.randint(10, (65,))
    rules = [Backprop(model(dtype=torch.float64)) for _ in range(2)]
    losses, make = [], partial(torch.optim.SGD, lr=0.5)
    for rule, options in zip(rules, ({"batch": 20}, {"batch": 10, "accumulate": 2}), strict=True):
        history = fit(rule, (x, y), optimizer=make, epochs=2, callbacks=[seen := Seen()], **options)
        losses.append([*seen.losses, history.epochs[-1].loss])
    assert len(losses[0]) == 2 * 4 + 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    for a, b in zip(*(rule.parameters() for rule in rules), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_steps_may_be_limited(digits: Dataset) -> None:
    """The epoch that they end in is measured; a recipe's schedule spans them."""
    noting = Noting()
    history = trained(digits, epochs=5, max_steps=7, callbacks=[noting])
    assert [epoch.samples for epoch in history.epochs] == [1149, 1149, 500]
    assert noting.calls[0] == ("start", 0, 7, 0)
    assert history.stopped is None
    assert len(trained(digits, max_steps=17).epochs) == 6, "more than the recipe's, where none are asked for"
    made = []
    fit(Backprop(model()), digits, max_steps=7, batch=500, callbacks=[At(7, lambda run: made.append(run.optimizer))])
    assert made[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_patience_ends_what_gets_no_better(digits: Dataset) -> None:
    """Of weights that do not move the first epoch is the best."""
    rule = Backprop(model())
    frozen = torch.optim.SGD(rule.parameters(), lr=0.0)
    history = fit(rule, arrays(digits), arrays(digits), optimizer=frozen, epochs=9, patience=3, alignment_every=0)
    assert (len(history.epochs), history.best.epoch) == (4, 1)
    assert history.stopped == "no better validation in 3 epochs"


# Refusals


def singles(x: Tensor, y: Tensor) -> Any:
    class Samples(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: int) -> Any:
            return x[index], y[index]

    return Samples()


def elsewhere(optimizer: torch.optim.Optimizer) -> Any:
    return CosineAnnealingLR(torch.optim.SGD(model().parameters()), 9)


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], dict[str, Any]], str]] = {
    "a tensor": (lambda x, y: {"train": x}, "train: a Tensor, expected a Dataset of load"),
    "a name": (lambda x, y: {"train": "digits"}, "train: a str, expected a Dataset of load"),
    "a number": (lambda x, y: {"train": 3}, "train: a int, expected a Dataset"),
    "single samples": (lambda x, y: {"train": singles(x, y)}, r"train: a Samples, .*DataLoader\(train, batch_size"),
    "a generator": (lambda x, y: {"train": iter([(x, y)])}, "train: a list_iterator, which gives its batches once"),
    "no batches": (lambda x, y: {"train": []}, "train: a list without batches, expected one or more"),
    "no samples": (lambda x, y: {"train": (x[:0], y[:0])}, "train: 0 and 0 samples"),
    "an empty stream": (
        lambda x, y: {"train": Stream(x[:0], y[:0]), "max_steps": 1}, "train: gives no batch in epoch 1"
    ),
    "nothing to validate on": (
        lambda x, y: {"validation": Stream(x[:0], y[:0])}, "data: no batches to evaluate on"
    ),
    "other numbers": (lambda x, y: {"train": (x, y[:-1])}, "train: 200 and 199 samples, expected as many of each"),
    "dicts": (lambda x, y: {"train": [{"x": x, "y": y}]}, r"train: gives a dict, expected \(x, y\); batch_of=lambda"),
    "triples": (lambda x, y: {"train": [(x, y, y)]}, r"train: gives 3 things, expected \(x, y\)"),
    "rows of other lengths": (lambda x, y: {"train": ([[1.0], [2.0, 3.0]], [0, 1])}, "train: a list, expected a"),
    "a list of names": (lambda x, y: {"train": (x.tolist(), ["cat"] * 200)}, "train: a list, expected a"),
    "words": (lambda x, y: {"train": [(x, ["cat"])]}, "train: a list, expected a tensor or an array"),
    "names of classes": (
        lambda x, y: {"train": (x, np.array(["cat"] * 200))}, r"train: an array of <U3, .*load\(\) numbers the names"
    ),
    "holes": (lambda x, y: {"train": (x.where(x < 1, torch.nan), y), "batch": 200}, "samples have NaN.*numbers$"),
    "no dicts to validate on": (
        lambda x, y: {"train": [{"x": x, "y": y}], "validation": (x, y), "batch_of": lambda got: (got["x"], got["y"])},
        r"validation: batch_of does not take a tuple \(TypeError: ",
    ),
    "a callback": (lambda x, y: {"callbacks": Callback()}, "callbacks: a Callback, expected a list of Callback"),
    "a function to call": (lambda x, y: {"callbacks": [print]}, "callbacks: a builtin_function_or_method among them"),
    "no validation": (lambda x, y: {"validation": []}, "validation: a list without batches"),
    "flat labels": (lambda x, y: {"validation": (x, y[:, None])}, r"labels of shape \(200, 1\), expected \(200,\)"),
    "labels that have no score": (
        lambda x, y: {"validation": (x, y + 1)}, r"data: labels 1\.\.10, expected 0\.\.9, the classes that have scores"
    ),
    "patience": (lambda x, y: {"patience": 2}, "patience: 2, but there are no validation data"),
    "accumulate": (lambda x, y: {"accumulate": 0}, "accumulate: 0, expected an integer, 1 or more"),
    "max_steps": (lambda x, y: {"max_steps": 1.5}, "max_steps: 1.5, expected an integer, 1 or more"),
    "clip_norm": (lambda x, y: {"clip_norm": -1.0}, "clip_norm: -1.0, expected a positive number"),
    "checkpoint_every": (lambda x, y: {"checkpoint_every": 5}, "checkpoint_every: 5, but no checkpoint"),
    "batch": (lambda x, y: {"train": [(x, y)], "batch": 5}, "batch: 5, but a list has batches of its own"),
    "moves": (lambda x, y: {"recipe": Recipe(shift=2)}, "shift: 2, but only images of a Dataset"),
    "a scaler": (lambda x, y: {"optimizer": torch.amp.GradScaler("cpu")}, "optimizer: a GradScaler, which scales"),
    "an optimizer": (lambda x, y: {"optimizer": "adam"}, "optimizer: a str, expected one of torch.optim"),
    "other parameters": (
        lambda x, y: {"optimizer": torch.optim.SGD(model().parameters())},
        "optimizer: lacks model.0.weight, model.0.bias, model.2.weight and others",
    ),
    "a scheduler": (lambda x, y: {"scheduler": 0.1}, "scheduler: a float, expected one of torch.optim.lr_scheduler"),
    "a scheduler elsewhere": (lambda x, y: {"scheduler": elsewhere}, "scheduler: of another optimizer"),
    "a loss anew": (
        lambda x, y: {"optimizer": lambda groups: torch.optim.LBFGS(groups[0]["params"])},
        "optimizer: LBFGS, whose step computes the loss anew",
    ),
    "no length": (
        lambda x, y: {"train": DataLoader(Stream(x, y), 50)}, "the recipe's schedule 'cosine' needs to know"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str, digits: Dataset) -> None:
    make, message = REFUSED[name]
    rule = Backprop(model())
    before = [parameter.detach().clone() for parameter in rule.parameters()]
    with pytest.raises(UserError, match=message):
        fit(rule, **{"train": arrays(digits), "epochs": 1, **make(*arrays(digits))})
    if "validation" not in make(*arrays(digits)):
        assert all(torch.equal(a, b) for a, b in zip(before, rule.parameters(), strict=True))


def test_a_data_set_has_its_own_validation(digits: Dataset) -> None:
    for name in ("validation", "test"):
        with pytest.raises(UserError, match="given beside a Dataset, expected none"):
            fit(Backprop(model()), digits, **{name: arrays(digits)})


def test_a_batch_too_small_for_the_rule_is_refused(digits: Dataset) -> None:
    x, y = arrays(digits, 64)
    rule = ChannelCompetition(nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 10)))
    with pytest.raises(UserError, match="batch: 1 samples, expected at least 2"):
        fit(rule, (x, y), batch=1)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str, digits: Dataset) -> None:
    with pytest.raises(UserError, match=f"^device: '{device}' is not available \\(.*; expected one of this machine"):
        trained(digits, device=device)
    learner = ForwardOnlyClassifier(max_iter=1, device=device)
    with pytest.raises(UserError, match=f"^device: '{device}' is not available"):
        learner.fit([[0.0, 1.0], [1.0, 0.0]], [0, 1])
