"""Estimators: scikit-learn's own checks, and that what a user asks for reaches the rule and the batches."""

import pickle
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.datasets import load_digits, make_friedman1
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from prograde.accelerated.rules import Backprop, Foton, LocalClassifiers
from prograde.accelerated.training import (
    ForwardOnlyClassifier,
    ForwardOnlyRegressor,
    TrainingError,
    UserError,
)
from prograde.accelerated.training.recipes import preset_named

QUICK: dict[str, Any] = {"hidden_layer_sizes": (16,), "batch_size": 64, "max_iter": 20, "random_state": 0}
NUMBERS = ["backprop", "foton", "foton-linear", "pepita", "ftp", "fa", "dfa", "dtp", "mono-forward"]
LABELS_ALONE = [
    "forward-forward", "symba", "layer-collaboration", "cumulative", "hyperspherical", "deeper-forward",
    "channel-competition", "channel-class-assignment",
]  # fmt: skip

Arrays = tuple[NDArray[Any], NDArray[Any]]


@pytest.fixture(scope="module")
def digits() -> Arrays:
    x, y = load_digits(return_X_y=True)
    return x[:400], y[:400]


@pytest.fixture(scope="module")
def numbers() -> Arrays:
    x, y = make_friedman1(300, n_features=6, noise=0.5, random_state=0)
    return x, y


def expected_to_fail(estimator: Any) -> dict[str, str]:
    reason = "a sample of weight 2 is in one batch, a sample that is there twice may be in two"
    return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks(
    [ForwardOnlyClassifier(**QUICK), ForwardOnlyRegressor(**QUICK)], expected_failed_checks=expected_to_fail
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore:validation. none")  # said to whoever trains such a rule without
@pytest.mark.parametrize("rule", [*NUMBERS, "drtp", "dynamic-temperature", "patch-energy", *LABELS_ALONE])
def test_rules_learn_classes(rule: str, digits: Arrays) -> None:
    """Labels are the user's own. What is unpickled goes on exactly as the first."""
    x, y = digits[0], np.array(list("abcdefghij"))[digits[1]]
    rate = None if preset_named(rule).recipe.optimizer == "sgd" else 0.01
    learned = ForwardOnlyClassifier(rule, max_iter=20, learning_rate=rate, random_state=0).fit(x[:300], y[:300])
    assert learned.score(x[300:], y[300:]) > 0.65
    assert learned.n_iter_ == len(learned.loss_curve_) == 20
    assert learned.loss_curve_[-1] < learned.loss_curve_[0]
    again = pickle.loads(pickle.dumps(learned))
    for one in (learned, again):
        one.partial_fit(x, y)
    assert np.array_equal(learned.decision_function(x), again.decision_function(x))
    assert hasattr(learned, "predict_proba") == (rule not in LABELS_ALONE)


@pytest.mark.parametrize("rule", NUMBERS)
def test_rules_learn_numbers(rule: str, numbers: Arrays) -> None:
    x, y = numbers
    rate = None if preset_named(rule).recipe.optimizer == "sgd" else 0.01
    learned = ForwardOnlyRegressor(rule, max_iter=60, learning_rate=rate, random_state=0).fit(x[:200], y[:200])
    assert learned.score(x[200:], y[200:]) > 0.5


@pytest.mark.parametrize("rule", LABELS_ALONE)
def test_rules_of_labels_alone_learn_no_numbers_and_give_no_probabilities(rule: str, numbers: Arrays) -> None:
    with pytest.raises(UserError, match=f"rule: '{rule}', which learns classes alone; expected a rule with a loss of"):
        ForwardOnlyRegressor(rule).fit(*numbers)
    assert not hasattr(ForwardOnlyClassifier(rule), "predict_proba")


def test_a_rule_that_takes_labels_alone_refuses_numbers_itself(numbers: Arrays) -> None:
    with pytest.raises(ValueError, match="expected a loss of labels"):
        ForwardOnlyRegressor("drtp").fit(*numbers)


def test_a_read_out_gives_probabilities(digits: Arrays) -> None:
    learned = ForwardOnlyClassifier("forward-forward", options={"readout": True}, **QUICK).fit(*digits)
    scores = learned.decision_function(digits[0])
    assert np.allclose(learned.predict_log_proba(digits[0]), log_softmax(scores, axis=1))
    assert not hasattr(ForwardOnlyClassifier("backprop", options={"loss": "squared_error"}), "predict_proba")


@pytest.mark.parametrize(("rule", "options"), [("backprop", {}), ("foton", {"temperature": 3.0})])
def test_probabilities_are_those_whose_cross_entropy_was_trained(
    rule: str, options: dict[str, Any], digits: Arrays
) -> None:
    x, y = digits
    learned = ForwardOnlyClassifier(rule, options=options, **QUICK).fit(x, y)
    inputs = torch.tensor((x - learned.feature_mean_) / learned.feature_scale_)
    with torch.no_grad():
        loss = learned.rule_.eval().objective(inputs, torch.tensor(y)).item()
    assert -learned.predict_log_proba(x)[np.arange(len(x)), y].mean() == pytest.approx(loss)
    assert np.allclose(learned.predict_proba(x), np.exp(learned.predict_log_proba(x)))


def test_probabilities_of_added_layers_are_their_geometric_mean(digits: Arrays) -> None:
    x, y = digits
    learned = ForwardOnlyClassifier("mono-forward", **{**QUICK, "hidden_layer_sizes": (16, 12)}).fit(x, y)
    rule = learned.rule_
    assert isinstance(rule, LocalClassifiers)
    layers = rule.eval().layer_scores(torch.tensor((x - learned.feature_mean_) / learned.feature_scale_))
    mean = layers.log_softmax(dim=-1).mean(dim=0).softmax(dim=-1).numpy()
    assert len(layers) == 2
    assert np.allclose(learned.predict_proba(x), mean)


def test_units_of_features_and_targets_do_not_matter(numbers: Arrays) -> None:
    """Powers of two: exact in binary. Two outputs are learned as one is, each in its own units."""
    x, y = numbers
    both = np.stack([y, y[::-1]], axis=1)
    learned = ForwardOnlyRegressor(**QUICK).fit(x, both)
    assert learned.predict(x).shape == both.shape
    scaled = ForwardOnlyRegressor(**QUICK).fit(x * 1024, both * [2.0**20, 0.125])
    assert np.allclose(scaled.predict(x * 1024), learned.predict(x) * [2.0**20, 0.125], rtol=1e-9)
    with pytest.raises(ValueError, match="y: 1 outputs, expected 2 as before"):
        learned.partial_fit(x, y)


def test_numbers_are_in_the_precision_of_x(digits: Arrays) -> None:
    for dtype in (np.float32, np.float64):
        learned = ForwardOnlyClassifier(**QUICK).fit(digits[0].astype(dtype), digits[1])
        assert next(learned.rule_.parameters()).dtype == getattr(torch, np.dtype(dtype).name)


def same(first: Any, second: Any) -> bool:
    """Whether two estimators have the same weights and draws, to the last bit."""
    held = [[*one.rule_.parameters(), *one.rule_.buffers()] for one in (first, second)]
    return all(torch.equal(a, b) for a, b in zip(*held, strict=True))


def test_random_state_fixes_weights_batches_and_draws(digits: Arrays) -> None:
    first = ForwardOnlyClassifier("ftp", **QUICK)
    state = torch.get_rng_state()
    first.fit(*digits)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    torch.rand(7)
    assert same(first, clone(first).fit(*digits))
    assert same(first, clone(first).set_params(random_state=np.random.RandomState(0)).fit(*digits))
    assert not same(first, clone(first).set_params(random_state=1).fit(*digits))


def test_random_state_fixes_batches_alone_where_weights_are_given(digits: Arrays) -> None:
    def zeros(n_features: int, n_outputs: int) -> nn.Module:
        linear = nn.Linear(n_features, n_outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(linear)

    first, again, other = (
        ForwardOnlyClassifier("backprop", module=zeros, **{**QUICK, "random_state": seed}).fit(*digits)
        for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


def test_weights_of_zero_leave_samples_out(digits: Arrays) -> None:
    x, y = digits
    weight = np.where(np.arange(len(x)) % 4 == 0, 0.0, 2.0)
    for learner, targets in ((ForwardOnlyClassifier(**QUICK), y), (ForwardOnlyRegressor(**QUICK), x[:, 20])):
        left_out = clone(learner).fit(x, targets, sample_weight=weight)
        assert same(left_out, clone(learner).fit(x[weight > 0], targets[weight > 0], sample_weight=weight[weight > 0]))


def test_weights_draw_the_predictions_to_their_samples(digits: Arrays) -> None:
    """Labels that contradict each other, and numbers: a hundred times the weight decides."""
    x, y = digits
    twice, other = np.concatenate([x, x]), (y + 1) % 10
    for heavy, light in ((y, other), (other, y)):
        weight = np.repeat([100.0, 1.0], len(x))
        learned = ForwardOnlyClassifier(**QUICK).fit(twice, np.concatenate([heavy, light]), sample_weight=weight)
        assert learned.score(x, heavy) > 0.9
    levels = np.repeat([1.0, -1.0], len(x))
    learned = ForwardOnlyRegressor(**QUICK).fit(twice, levels, sample_weight=np.repeat([3.0, 1.0], len(x)))
    assert learned.predict(x).mean() == pytest.approx(0.5, abs=0.1)


def test_class_weights_are_weights_of_samples(digits: Arrays) -> None:
    x, y = digits
    by_class = {label: 1.0 + label for label in range(10)}
    learned = ForwardOnlyClassifier(class_weight=by_class, **QUICK).fit(x, y)
    assert same(learned, ForwardOnlyClassifier(**QUICK).fit(x, y, sample_weight=1.0 + y))
    assert not same(learned, ForwardOnlyClassifier(**QUICK).fit(x, y))
    counts = np.bincount(y)
    balanced = ForwardOnlyClassifier(class_weight="balanced", **QUICK).fit(x, y, sample_weight=1.0 + y)
    product = (1.0 + y) * (len(y) / (10 * counts[y]))
    assert same(balanced, ForwardOnlyClassifier(**QUICK).fit(x, y, sample_weight=product))


@pytest.mark.parametrize("rule", ["forward-forward", "hyperspherical"])
def test_weights_that_a_rule_does_not_take_are_refused(rule: str, digits: Arrays) -> None:
    x, y = digits
    with pytest.raises(UserError, match=f"sample_weight, class_weight: not for rule '{rule}'"):
        ForwardOnlyClassifier(rule, **QUICK).fit(x, y, sample_weight=np.ones(len(x)))
    with pytest.raises(UserError, match=f"sample_weight, class_weight: not for rule '{rule}'"):
        ForwardOnlyClassifier(rule, class_weight="balanced", **QUICK).fit(x, y)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", ["foton", "mono-forward"])
def test_early_stopping_ends_at_the_best_of_held_out_samples(rule: str, weighted: bool, digits: Arrays) -> None:
    x, y = digits
    asked = {**QUICK, "max_iter": 300, "early_stopping": True, "n_iter_no_change": 5}
    weight = np.linspace(1, 2, len(x)) if weighted else None
    for learner, targets in (
        (ForwardOnlyClassifier(rule, **asked), y),
        (ForwardOnlyRegressor(rule, **asked), x[:, 20]),
    ):
        learner.set_params(learning_rate=0.01).fit(x, targets, sample_weight=weight)
        scores = learner.validation_scores_
        assert learner.n_iter_ == len(scores) == 1 + int(np.argmax(scores)) + 5 < 300
        assert learner.feature_mean_ == pytest.approx(x.mean(axis=0), abs=1), "of the samples trained on"
        assert not np.array_equal(learner.feature_mean_, x.mean(axis=0))


def test_early_stopping_leaves_the_best_weights(digits: Arrays) -> None:
    """Of labels that are partly wrong: on the samples held out, evenly by class, as many as the best epoch had."""
    x, y = digits
    y = np.where(np.random.RandomState(1).rand(len(y)) < 0.3, (y + 1) % 10, y)
    learner = ForwardOnlyClassifier(early_stopping=True, n_iter_no_change=3, **QUICK).fit(x, y)
    _, held, _, labels = train_test_split(x, y, test_size=0.1, stratify=y, random_state=0)
    assert learner.score(held, labels) == max(learner.validation_scores_) < 0.9


def test_partial_fit_goes_on_where_it_was(digits: Arrays) -> None:
    """Ten calls learn what one call does not; the optimizer's momentum outlives a call."""
    x, y = digits
    learner = ForwardOnlyClassifier(**QUICK).partial_fit(x[:50], y[:50] % 3, classes=range(10))
    assert learner.feature_mean_ == pytest.approx(x[:50].mean(axis=0))
    assert list(learner.classes_) == list(range(10))
    optimizer = learner._optimizer
    first = learner.score(x, y)
    for _call in range(10):
        learner.partial_fit(x, y)
    assert learner._optimizer is optimizer
    assert learner.n_iter_ == len(learner.loss_curve_) == 11
    assert learner.score(x, y) > 0.9 > first
    with pytest.raises(ValueError, match=r"y: labels \[77\], expected some of"):
        learner.partial_fit(x, np.full(len(x), 77))
    with pytest.raises(ValueError, match=r"classes: \[0 1\], expected \[0 1 .* 9\] as in the first call"):
        learner.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="classes: None, expected all labels in the first call of partial_fit"):
        clone(learner).partial_fit(x, y)
    with pytest.raises(ValueError, match="class_weight: 'balanced', expected a dict"):
        clone(learner).set_params(class_weight="balanced").partial_fit(x, y, classes=range(10))


@pytest.mark.parametrize("name", ["rule", "hidden_layer_sizes", "activation", "module", "options", "device"])
def test_what_goes_on_is_what_was_begun(name: str, digits: Arrays) -> None:
    """A parameter that would be of no effect is refused by name; the number of epochs is none of these."""
    x, y = (part[:60] for part in digits)
    other: dict[str, Any] = {
        "rule": "ftp", "hidden_layer_sizes": (8,), "activation": "tanh", "module": nn.Linear,
        "options": {"linear": True}, "device": "meta",
    }  # fmt: skip
    learner = ForwardOnlyClassifier(warm_start=True, **{**QUICK, "max_iter": 1}).fit(x, y)
    learner.set_params(max_iter=2).fit(x, y)
    learner.set_params(**{name: other[name]})
    for goes_on, again in (("warm_start", learner.fit), ("partial_fit", learner.partial_fit)):
        with pytest.raises(UserError, match=f"{name}: .*, but {goes_on} goes on with the network that was begun with"):
            again(x, y)


def test_partial_fit_takes_another_learning_rate(digits: Arrays) -> None:
    """With a rate of almost 0 weights stay, and another optimizer, whose state is not there, is refused."""
    x, y = (part[:60] for part in digits)
    learner = ForwardOnlyClassifier("backprop", **QUICK).partial_fit(x, y, classes=range(10))
    before = learner.decision_function(x)
    learner.set_params(learning_rate=1e-30).partial_fit(x, y)
    np.testing.assert_allclose(learner.decision_function(x), before, rtol=1e-9)
    with pytest.raises(UserError, match=r"optimizer: 'adam', but partial_fit goes on with .* begun with None"):
        learner.set_params(optimizer="adam").partial_fit(x, y)


@pytest.mark.parametrize(("dtype", "unit"), [
    (np.float32, 2.0**66), (np.float32, 2.0**-80), (np.float64, 2.0**700), (np.float64, 2.0**-600)
])  # fmt: skip
def test_units_of_features_change_nothing(dtype: Any, unit: float, digits: Arrays) -> None:
    """Though their squares are not to be represented."""
    x, y = digits[0][:60].astype(dtype), digits[1][:60]
    plain, scaled = (ForwardOnlyClassifier(**{**QUICK, "max_iter": 2}).fit(x * dtype(k), y) for k in (1, unit))
    np.testing.assert_array_equal(plain.decision_function(x), scaled.decision_function(x * dtype(unit)))


def test_units_of_targets_change_nothing(numbers: Arrays) -> None:
    x, y = (part[:60] for part in numbers)
    plain, scaled = (ForwardOnlyRegressor(**{**QUICK, "max_iter": 2}).fit(x, y * k) for k in (1, 2.0**900))
    np.testing.assert_array_equal(plain.predict(x) * 2.0**900, scaled.predict(x))


def test_warm_start_goes_on_and_fit_begins_anew(digits: Arrays) -> None:
    x, y = digits
    learner = ForwardOnlyClassifier(warm_start=True, **QUICK).fit(x, y)
    rule, first = learner.rule_, learner.loss_curve_[0]
    learner.fit(x, y)
    assert learner.rule_ is rule
    assert learner.n_iter_ == len(learner.loss_curve_) == 40
    assert learner.loss_curve_[20] < first / 2
    learner.set_params(warm_start=False).fit(x, y)
    assert learner.rule_ is not rule
    assert learner.loss_curve_[0] == first


class Counted(nn.Sequential):
    """A network of one's own, which says what it was asked for."""

    def __init__(self, n_features: int, n_outputs: int) -> None:
        self.asked = n_features, n_outputs
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, n_outputs)
        )


@pytest.mark.parametrize("rule", ["dfa", "mono-forward"])
def test_a_network_of_ones_own(rule: str, digits: Arrays) -> None:
    x, y = digits
    learned = ForwardOnlyClassifier(rule, module=Counted, learning_rate=0.01, **QUICK).fit(x, y)
    assert isinstance(learned.rule_.model, Counted)
    assert learned.rule_.model.asked == (64, 10)
    assert learned.score(x, y) > 0.8
    numbers = ForwardOnlyRegressor(rule, module=Counted, **QUICK).fit(x, x[:, 20])
    assert numbers.rule_.model.asked == (64, 1)


def test_a_rule_without_an_example_and_a_loss_to_choose(digits: Arrays) -> None:
    def dense(n_features: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(n_features, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, n_outputs)
        )

    learned = ForwardOnlyClassifier("hybrid-dynamic-temperature", module=dense, **QUICK).fit(*digits)
    assert np.allclose(learned.predict_log_proba(digits[0]), log_softmax(learned.decision_function(digits[0]), axis=1))
    with pytest.raises(UserError, match="learns classes alone"):
        ForwardOnlyRegressor("hybrid-dynamic-temperature", module=dense).fit(*digits)


def test_parameters_reach_the_rule(digits: Arrays) -> None:
    learned = ForwardOnlyClassifier(
        "foton", hidden_layer_sizes=[12, 8], activation="tanh", options={"linear": True}, max_iter=1
    ).fit(*digits)
    kinds = [type(part) for part in learned.rule_.model]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [part.out_features for part in learned.rule_.model if isinstance(part, nn.Linear)] == [12, 8, 10]
    assert learned.rule_.linear
    assert ForwardOnlyClassifier(hidden_layer_sizes=7).fit(*digits).rule_.units[0].width == 7


def test_parameters_may_be_of_numpy(digits: Arrays) -> None:
    """As a grid of values has them; of Python's they are the same training."""
    x, y = (part[:60] for part in digits)
    given: dict[str, Any] = {
        "hidden_layer_sizes": np.array([6, 5]), "learning_rate": np.float32(0.5), "batch_size": np.int64(16),
        "max_iter": np.int64(2), "early_stopping": np.True_, "validation_fraction": np.float32(0.25),
        "n_iter_no_change": np.int64(2), "random_state": np.int64(0), "options": {"inject": np.int64(2)},
    }  # fmt: skip
    plain = {name: value.tolist() for name, value in given.items() if name != "options"}
    ours = ForwardOnlyClassifier("ftp", **given).fit(x, y)
    assert [unit.width for unit in ours.rule_.units] == [6, 5, 10]
    theirs = ForwardOnlyClassifier("ftp", **plain, options={"inject": 2}).fit(x, y)
    assert ours.loss_curve_ == theirs.loss_curve_
    for sizes in (np.array(6), np.int64(6), range(6, 7)):
        assert ForwardOnlyClassifier(hidden_layer_sizes=sizes, max_iter=1).fit(x, y).rule_.units[0].width == 6
    for refused in (np.array([6.0]), np.array([[6]]), "6"):
        with pytest.raises(TypeError, match="hidden_layer_sizes must be an instance of int"):
            ForwardOnlyClassifier(hidden_layer_sizes=refused).fit(x, y)


def test_what_is_changed_in_place_is_seen(digits: Arrays) -> None:
    """Equal arrays go on, others do not, though it is the same object."""
    x, y = (part[:60] for part in digits)
    begun: dict[str, Any] = {
        "hidden_layer_sizes": np.array([6, 5]),
        "options": {"example": torch.zeros(2, 64).double()},
    }
    learner = ForwardOnlyClassifier("mono-forward", **begun, max_iter=1, warm_start=True).fit(x, y)
    learner.set_params(**deepcopy(begun)).fit(x, y)
    learner.options["aggregation"] = "last"
    with pytest.raises(UserError, match=r"(?s)options: .*, but warm_start goes on with the network that was begun"):
        learner.fit(x, y)
    del learner.options["aggregation"]
    learner.hidden_layer_sizes[1] = 7
    with pytest.raises(UserError, match=r"hidden_layer_sizes: array\(\[6, 7\]\), but warm_start .* array\(\[6, 5\]\)"):
        learner.fit(x, y)


def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches of backpropagation from now on."""
    sizes: list[int] = []
    stream = Backprop.stream

    def counted(self: Backprop, x: Tensor, y: Any) -> Iterator[Any]:
        sizes.append(len(x))
        return stream(self, x, y)

    monkeypatch.setattr(Backprop, "stream", counted)
    return sizes


def test_batches_and_epochs_are_those_asked_for(digits: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = steps(monkeypatch)
    ForwardOnlyClassifier("backprop", batch_size=150, max_iter=2).fit(*digits)
    assert sizes == [150, 150, 100] * 2


def test_silent_unless_asked(digits: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    learner = ForwardOnlyClassifier(**{**QUICK, "max_iter": 2}).fit(*digits)
    assert capsys.readouterr().out == ""
    learner.set_params(verbose=True, early_stopping=True).fit(*digits)
    assert capsys.readouterr().out.splitlines()[1] == (
        f"epoch 2: loss {learner.loss_curve_[1]:.4g}, validation accuracy {learner.validation_scores_[1]:.4g}"
    )


def test_in_a_pipeline_and_a_grid_search(digits: Arrays) -> None:
    x, y = digits
    line = make_pipeline(MinMaxScaler(), ForwardOnlyClassifier(**QUICK))
    grid = {"forwardonlyclassifier__rule": ["foton", "dfa"], "forwardonlyclassifier__learning_rate": [1e-6, 0.05]}
    search = GridSearchCV(line, grid, cv=2, error_score="raise").fit(x, y)
    assert search.best_params_["forwardonlyclassifier__learning_rate"] == 0.05
    assert search.score(x, y) > 0.9


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "fotom"}, "rule: 'fotom', did you mean foton"),
        ({"rule": Foton}, "rule: 'Foton', did you mean foton"),
        ({"activation": "rel"}, "activation: 'rel', did you mean relu"),
        ({"optimizer": "sdg"}, "optimizer: 'sdg', did you mean sgd"),
        ({"learning_rate": -1.0}, "learning rate: -1.0, expected a positive number"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes == 0, must be >= 1"),
        ({"batch_size": 0}, "batch_size == 0, must be >= 1"),
        ({"max_iter": 0}, "max_iter == 0, must be >= 1"),
        ({"n_iter_no_change": 0}, "n_iter_no_change == 0, must be >= 1"),
        ({"validation_fraction": 1.0}, "validation_fraction == 1.0, must be < 1"),
        ({"options": {"lineal": True}}, "Foton: unknown option 'lineal', expected one of"),
        ({"options": {"temperature": 0.0}}, "rule 'foton': temperature: 0.0"),
        ({"learning_rate": 1e30, "rule": "backprop"}, "lower the learning rate"),
    ],
)
def test_what_can_not_be_trained_is_refused_by_name(parameters: dict[str, Any], message: str, digits: Arrays) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ForwardOnlyClassifier(**{**QUICK, **parameters}).fit(*digits)


def test_training_that_breaks_down_says_so(numbers: Arrays) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        ForwardOnlyRegressor("backprop", learning_rate=1e3, **QUICK).fit(*numbers)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(3), "inconsistent numbers of samples"),
        (np.ones((400, 2)), r"sample_weight: shape \(400, 2\), expected \(400,\), a weight for each sample"),
        (np.full(400, -1.0), "sample_weight: negative, or zero for all samples"),
        (np.full(400, np.nan), "sample_weight contains NaN"),
    ],
)
def test_impossible_weights_are_refused(weight: NDArray[Any], message: str, digits: Arrays) -> None:
    with pytest.raises(ValueError, match=message):
        ForwardOnlyClassifier(**QUICK).fit(*digits, sample_weight=weight)


def test_one_class_is_refused(digits: Arrays) -> None:
    x, y = digits
    with pytest.raises(ValueError, match="y: one class, of samples whose weight is not 0; expected 2 classes or more"):
        ForwardOnlyClassifier(**QUICK).fit(x, np.zeros(len(y)))
    with pytest.raises(ValueError, match="y: one class, of samples whose weight is not 0"):
        ForwardOnlyClassifier(**QUICK).fit(x, y, sample_weight=y == 3)
