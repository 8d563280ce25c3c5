"""Rules as estimators of scikit-learn."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_consistent_length, check_random_state, check_scalar, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from ..rules import ForwardForward, LocalClassifiers, Rule
from ..rules.output_loss import CrossEntropy, read_loss
from ..rules.rule import check_options, evaluating
from .errors import UserError, available
from .evaluation import EVALUATION_BATCH
from .history import Epoch
from .loop import fit
from .optimizers import of_recipe
from .recipes import Recipe, default_recipe, mlp, preset_named

PRECISIONS = (np.float64, np.float32)

BUILT_BY = "rule", "hidden_layer_sizes", "activation", "module", "options", "device"
"""The parameters that say what the network and its rule are."""

Floats = NDArray[np.floating[Any]]

# Scikit-learn gives its functions no types; those that pyright infers from defaults are other than what they take.
_checked: Callable[..., Floats] = check_array
_split: Callable[..., Any] = train_test_split
_validated: Callable[..., Any] = validate_data


class Samples(NamedTuple):
    """Features, (n, features); targets, (n,) labels 0..K-1 or (n, outputs) numbers; and a weight of each, if any."""

    x: Floats
    targets: NDArray[Any]
    weight: Floats | None

    def part(self, rows: NDArray[Any]) -> "Samples":
        """The samples of these rows, indices or a mask."""
        return Samples(self.x[rows], self.targets[rows], None if self.weight is None else self.weight[rows])


class _ForwardOnly(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: a network, its rule, and the standardisation of what they see."""

    rule_: Rule
    _random: np.random.RandomState
    _optimizer: Optimizer | None
    """Of `partial_fit`: its momentum outlives a call."""
    _begun_with: dict[str, Any]
    """The parameters that the present network was made with."""

    def __init__(
        self,
        rule: str = "foton",
        *,
        hidden_layer_sizes: int | ArrayLike = (100,),
        activation: str = "relu",
        optimizer: str | None = None,
        learning_rate: float | None = None,
        batch_size: int = 32,
        max_iter: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        warm_start: bool = False,
        device: str = "cpu",
        module: Callable[[int, int], nn.Module] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.rule = rule
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start
        self.device = device
        self.module = module
        self.options = options

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Trains for `max_iter` epochs, from new weights unless `warm_start`.

        X is (samples, features), `sample_weight` (samples,), 0 or more: the loss of a batch is its weighted mean.
        Raises ValueError for other shapes, for parameters that make no training, and for weights where the rule takes
        none.
        """
        recipe, is_new = self._recipe(), not (self.warm_start and hasattr(self, "rule_"))
        if not is_new:
            self._check_goes_on("warm_start", BUILT_BY)
        samples, held = self._samples(X, y, sample_weight, is_new), None
        if is_new:
            self._random = check_random_state(self.random_state)
        if self.early_stopping:
            kept, apart = _split(
                np.arange(len(samples.x)),
                test_size=float(self.validation_fraction),
                random_state=self._random,
                stratify=samples.targets if isinstance(self, ClassifierMixin) else None,
            )
            samples, held = samples.part(kept), samples.part(apart)
        if is_new:
            self._begin(recipe, samples)
        self._train(recipe, samples, held)
        return self

    def _fit_once(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, **classes: Any) -> Self:
        recipe, is_new = replace(self._recipe(), epochs=1), not hasattr(self, "rule_")
        if not is_new:
            self._check_goes_on("partial_fit", (*BUILT_BY, "optimizer"))
        samples = self._samples(X, y, sample_weight, is_new, **classes)
        if is_new:
            self._random = check_random_state(self.random_state)
            self._begin(recipe, samples)
        if self._optimizer is None:
            self._optimizer = of_recipe(self.rule_, recipe)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate  # which may be another than at the last call
        self._train(recipe, samples, optimizer=self._optimizer)
        return self

    def _check_goes_on(self, what: str, names: Sequence[str]) -> None:
        """Raises UserError for a parameter that was changed since and would be of no effect."""
        for name in names:
            value, before = getattr(self, name), self._begun_with[name]
            if not _same(value, before):
                raise UserError(
                    f"{name}: {value!r}, but {what} goes on with the network that was begun with {before!r}; "
                    "fit a clone anew"
                )

    def _recipe(self) -> Recipe:
        """What the parameters ask for. Raises ValueError or TypeError, with the parameter's name."""
        preset = preset_named(self.rule)
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            check_scalar(getattr(self, name), name, Integral, min_val=1)
        check_scalar(
            self.validation_fraction, "validation_fraction", Real, min_val=0, max_val=1, include_boundaries="neither"
        )
        widths = _widths(self.hidden_layer_sizes)
        for width in widths:
            check_scalar(width, "hidden_layer_sizes", Integral, min_val=1)
        recipe = default_recipe(
            self.rule,
            "table",
            hidden=tuple(map(int, widths)),
            activation=self.activation,
            epochs=self.max_iter,
            batch=self.batch_size,
            options={**preset.recipe.options, **self._loss_options(preset.rule), **_plain(self.options or {})},
            **({} if self.optimizer is None else {"optimizer": self.optimizer}),
        )
        check_options(preset.rule, recipe.options)
        rate = self._usual_rate(recipe) if self.learning_rate is None else self.learning_rate
        return replace(recipe, learning_rate=rate)

    def _loss_options(self, rule: type[Rule]) -> dict[str, Any]:
        """Options of the rule that the targets need. Raises UserError for a rule that can't take them."""
        return {}

    def _usual_rate(self, recipe: Recipe) -> float:
        """The learning rate where none is given."""
        return recipe.learning_rate

    def _samples(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        is_new: bool,
        classes: ArrayLike | None = None,
    ) -> Samples:
        """Those whose weight is not 0, checked; a new training learns the classes from them."""
        raise NotImplementedError

    def _begin_targets(self, samples: Samples) -> int:
        """Learns how targets are standardised, if they are. The number of outputs."""
        raise NotImplementedError

    def _targets(self, targets: NDArray[Any]) -> NDArray[Any]:
        """As the rule takes them."""
        return targets

    def _begin(self, recipe: Recipe, samples: Samples) -> None:
        """Forgets what was trained: new weights, and a standardisation by these samples."""
        device = available(self.device)
        self.feature_mean_, self.feature_scale_ = _mean_and_scale(samples.x, samples.weight)
        n_features, n_outputs = samples.x.shape[1], self._begin_targets(samples)
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] = []
        self._optimizer = None
        self._begun_with = {name: _kept(getattr(self, name)) for name in (*BUILT_BY, "optimizer")}
        dtype = torch.float32 if samples.x.dtype == np.float32 else torch.float64
        options, seed = recipe.options, self._seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.module is None:
                shape = recipe.activation, recipe.dropout, recipe.normalisation
                model: nn.Module = mlp(n_features, recipe.hidden, n_outputs, *shape)
            else:
                model = self.module(n_features, n_outputs)
                if _takes("example", preset_named(self.rule).rule):
                    options = {"example": torch.zeros(2, n_features, dtype=dtype), **options}
            try:
                rule = preset_named(self.rule).rule(model.to(dtype), **options)
            except ValueError as error:
                raise UserError(f"rule {self.rule!r}: {error}") from error
        rule.generator = torch.Generator(device).manual_seed(seed)
        self.rule_ = rule.to(device)

    def _seed(self) -> int:
        return int(self._random.randint(2**31 - 1))

    def _train(
        self, recipe: Recipe, samples: Samples, held: Samples | None = None, optimizer: Optimizer | None = None
    ) -> None:
        data = self._data(samples)
        if samples.weight is not None:
            try:
                self.rule_.check_y(data.tensors[0], data.tensors[1:])
            except ValueError as error:
                raise UserError(f"sample_weight, class_weight: not for rule {self.rule!r} ({error})") from error
        fit(
            self.rule_,
            data,
            None if held is None else self._data(held),
            recipe=replace(recipe, **Recipe().network),  # the rule is made already
            optimizer=optimizer,
            patience=None if held is None else int(self.n_iter_no_change),
            batch_of=None if samples.weight is None else _weighted,
            seed=self._seed(),
            on_epoch=self._note,
            alignment_every=0,
        )

    def _note(self, epoch: Epoch) -> None:
        self.loss_curve_.append(epoch.loss)
        self.n_iter_ = len(self.loss_curve_)
        said = f"epoch {self.n_iter_}: loss {epoch.loss:.4g}"
        if epoch.validation_accuracy is not None:
            self.validation_scores_.append(epoch.validation_accuracy)
            said += f", validation accuracy {epoch.validation_accuracy:.4g}"
        elif epoch.validation_loss is not None:
            self.validation_scores_.append(-epoch.validation_loss)
            said += f", validation loss {epoch.validation_loss:.4g}"
        if self.verbose:
            print(said)

    def _inputs(self, x: Floats) -> Tensor:
        return self._tensor((x - self.feature_mean_) / self.feature_scale_)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """Where the rule is; numbers in its precision."""
        weight = next(self.rule_.parameters())
        return torch.tensor(array, dtype=weight.dtype if array.dtype.kind == "f" else None, device=weight.device)

    def _data(self, samples: Samples) -> TensorDataset:
        x, y = self._inputs(samples.x), self._tensor(self._targets(samples.targets))
        return TensorDataset(x, y, *([] if samples.weight is None else [self._tensor(samples.weight)]))

    def _scores(self, X: ArrayLike) -> Floats:
        """The rule's, in float64: (samples, outputs)."""
        check_is_fitted(self)
        x = _validated(self, X, dtype=PRECISIONS, reset=False)
        with torch.no_grad(), evaluating(self.rule_):
            found = [self.rule_(batch) for batch in self._inputs(x).split(EVALUATION_BATCH)]
        return torch.cat(found).double().cpu().numpy()


def _widths(sizes: Any) -> tuple[Any, ...]:
    """Of the hidden layers, from a number or an array-like."""
    if isinstance(sizes, np.ndarray):
        sizes = sizes.tolist()
    return tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """With Python's numbers for NumPy's, as a grid of values has them."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}


def _kept(value: Any) -> Any:
    """The value as it is now, where it may be changed in place."""
    return copy(value) if isinstance(value, dict | list | np.ndarray) else value


def _same(value: Any, before: Any) -> bool:
    """Whether they are equal, arrays and dicts of them too."""
    if value is before:
        return True
    if any(isinstance(one, np.ndarray | Tensor) for one in (value, before)):
        return type(value) is type(before) and value.shape == before.shape and bool((value == before).all())
    if isinstance(value, dict) and isinstance(before, dict):
        return value.keys() == before.keys() and all(_same(value[key], before[key]) for key in value)
    return bool(value == before)


def _weighted(batch: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As a rule takes weights: beside y."""
    return batch[0], batch[1:]


def _mean_and_scale(values: Floats, weight: Floats | None) -> tuple[Floats, Floats]:
    """Of each column, weighted; the scale of a constant one is 1.

    Squares are of float64, and of numbers near 1: those of the column over a power of two that is near its largest.
    """
    exponent = np.frexp(np.abs(values).max(axis=0))[1]
    near = np.ldexp(values, -exponent, dtype=np.float64)
    mean = np.average(near, axis=0, weights=weight)
    scale = np.average((near - mean) ** 2, axis=0, weights=weight) ** 0.5
    scale = np.where(values.min(axis=0) == values.max(axis=0), 1, np.ldexp(scale, exponent))
    return np.ldexp(mean, exponent).astype(values.dtype), scale.astype(values.dtype)


def _weights(sample_weight: ArrayLike | None, x: Floats) -> Floats | None:
    """Checked. Raises ValueError unless they are numbers of 0 or more, one for each sample, and not all 0."""
    if sample_weight is None:
        return None
    weight = _checked(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weight.ndim != 1:
        raise ValueError(f"sample_weight: shape {weight.shape}, expected ({len(x)},), a weight for each sample")
    check_consistent_length(x, weight)
    if (weight < 0).any() or not weight.any():
        raise ValueError("sample_weight: negative, or zero for all samples; expected 0 or more, and some above zero")
    return weight


def _takes(option: str, rule: type[Rule]) -> bool:
    return option in inspect.signature(rule).parameters


def _learns_labels_alone(rule: type[Rule]) -> bool:
    """Whether it scores classes by something else than what a loss compares with targets."""
    return issubclass(rule, ForwardForward) or (issubclass(rule, LocalClassifiers) and bool(rule.scores_are))


def _has_probabilities(estimator: "ForwardOnlyClassifier") -> bool:
    """Whether a cross-entropy makes the scores logits; goodness, cosines and other measures are none."""
    rule, options = preset_named(estimator.rule).rule, estimator.options or {}
    if _learns_labels_alone(rule):
        return issubclass(rule, ForwardForward) and bool(options.get("readout"))
    return isinstance(read_loss(options.get("loss", "cross_entropy")), CrossEntropy)


class ForwardOnlyClassifier(ClassifierMixin, _ForwardOnly):  # type: ignore[misc]
    """A classifier that a learning rule trains: a network of dense layers, or one's own.

    `rule` is a name of `PRESETS`, whose recipe has the optimizer, learning rate and schedule; `optimizer` ("sgd",
    "adam" or "adamw") and `learning_rate` replace these. `options` go to the rule. `module` is a function of the
    numbers of features and outputs that makes a network in place of `hidden_layer_sizes` and `activation`.

    Features are standardised by the samples that training began with. Numbers are float32 where X is, else float64.
    `max_iter` are epochs, in batches of `batch_size`. With `early_stopping`, `validation_fraction` of the samples are
    held out, evenly by class; training ends where their accuracy is no better in `n_iter_no_change` epochs, with the
    weights of the best. `class_weight` is a weight of each class by its label, or "balanced"; like sample weights it
    needs a rule whose loss takes them. `random_state` fixes weights, batches and draws.

    `predict_proba` is there where a cross-entropy of the scores is what was trained: not for goodness and cosines. Of
    layers whose scores are added up it is the geometric mean of their probabilities.

    Attributes: `rule_`, the trained rule; `classes_`; `n_features_in_`; `n_iter_`, `loss_curve_` and
    `validation_scores_` of the epochs; `feature_mean_`, `feature_scale_`.

    >>> x, y = [[0.0], [0.1], [0.9], [1.0]], ["low", "low", "high", "high"]
    >>> ForwardOnlyClassifier("mono-forward", max_iter=40, random_state=0).fit(x, y).predict([[0.2], [0.8]]).tolist()
    ['low', 'high']
    """

    def __init__(
        self,
        rule: str = "foton",
        *,
        hidden_layer_sizes: int | ArrayLike = (100,),
        activation: str = "relu",
        optimizer: str | None = None,
        learning_rate: float | None = None,
        batch_size: int = 32,
        max_iter: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
        class_weight: dict[Any, float] | str | None = None,
        verbose: bool = False,
        warm_start: bool = False,
        device: str = "cpu",
        module: Callable[[int, int], nn.Module] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            rule, hidden_layer_sizes=hidden_layer_sizes, activation=activation, optimizer=optimizer,
            learning_rate=learning_rate, batch_size=batch_size, max_iter=max_iter, early_stopping=early_stopping,
            validation_fraction=validation_fraction, n_iter_no_change=n_iter_no_change, random_state=random_state,
            verbose=verbose, warm_start=warm_start, device=device, module=module, options=options,
        )  # fmt: skip
        self.class_weight = class_weight

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """One more epoch, on these samples, at a constant learning rate. The first call needs all `classes`."""
        if self.class_weight == "balanced":
            raise ValueError("class_weight: 'balanced', expected a dict: partial_fit does not see all samples")
        if classes is None and not hasattr(self, "rule_"):
            raise ValueError("classes: None, expected all labels in the first call of partial_fit")
        return self._fit_once(X, y, sample_weight, classes=classes)

    def _samples(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        is_new: bool,
        classes: ArrayLike | None = None,
    ) -> Samples:
        x, y = _validated(self, X, y, dtype=PRECISIONS, reset=is_new)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        weight = _weights(sample_weight, x)
        if self.class_weight is not None:
            of_class = compute_sample_weight(self.class_weight, y)
            weight = of_class if weight is None else of_class * weight
        found = np.unique(y if classes is None else classes)
        if is_new:
            self.classes_ = found
        elif classes is not None and not np.array_equal(found, self.classes_):
            raise ValueError(f"classes: {found}, expected {self.classes_} as in the first call")
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y: labels {unknown}, expected some of {self.classes_}, the classes of the first samples")
        samples = Samples(x, np.searchsorted(self.classes_, y), weight)
        if weight is not None:
            samples = samples.part(weight > 0)
        if len(self.classes_) < 2 or (is_new and classes is None and len(np.unique(samples.targets)) < 2):
            raise ValueError("y: one class, of samples whose weight is not 0; expected 2 classes or more")
        return samples

    def _begin_targets(self, samples: Samples) -> int:
        return len(self.classes_)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The classes of highest score: (samples,)."""
        chosen = self._scores(X).argmax(axis=1)
        return self.classes_[chosen]

    def decision_function(self, X: ArrayLike) -> Floats:
        """The rule's scores, (samples, K), of two classes that of the second less that of the first, (samples,)."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> Floats:
        """(samples, K)."""
        return softmax(self._logits(X), axis=1)

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """(samples, K)."""
        return log_softmax(self._logits(X), axis=1)

    def _logits(self, X: ArrayLike) -> Floats:
        scores = self._scores(X)
        if isinstance(self.rule_, LocalClassifiers) and self.rule_.aggregation.readout is None:
            return scores / self.rule_.aggregation.weights.sum().item()  # a mean over layers in place of a sum
        return scores * getattr(self.rule_, "temperature", 1.0)


class ForwardOnlyRegressor(MultiOutputMixin, RegressorMixin, _ForwardOnly):  # type: ignore[misc]
    """A regressor that a learning rule trains by the squared error: a network of dense layers, or one's own.

    y is (samples,) or (samples, outputs). Targets are standardised as features are. Parameters and attributes are those
    of `ForwardOnlyClassifier`, without classes, and with `target_mean_` and `target_scale_`. The learning rate of SGD
    is a tenth of the recipe's unless given, since a squared error has no bounded gradient. `options` may have another
    `loss`. `validation_scores_`, and the best epoch of `early_stopping`, are of the negative loss.

    >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 7.0]
    >>> ForwardOnlyRegressor("mono-forward", max_iter=40, random_state=0).fit(x, y).predict([[1.5]]).round().tolist()
    [4.0]
    """

    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """One more epoch, on these samples, at a constant learning rate."""
        return self._fit_once(X, y, sample_weight)

    def _loss_options(self, rule: type[Rule]) -> dict[str, Any]:
        if _learns_labels_alone(rule) or not _takes("loss", rule):
            raise UserError(
                f"rule: {self.rule!r}, which learns classes alone; expected a rule with a loss of numbers, such as "
                "foton, ftp or mono-forward"
            )
        return {"loss": "squared_error", **({"aggregation": "last"} if issubclass(rule, LocalClassifiers) else {})}

    def _usual_rate(self, recipe: Recipe) -> float:
        return recipe.learning_rate / 10 if recipe.optimizer == "sgd" else recipe.learning_rate

    def _samples(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        is_new: bool,
        classes: ArrayLike | None = None,
    ) -> Samples:
        x, y = _validated(self, X, y, dtype=PRECISIONS, reset=is_new, multi_output=True, y_numeric=True)
        samples = Samples(x, np.asarray(y, dtype=np.float64).reshape(len(x), -1), _weights(sample_weight, x))
        if not is_new and samples.targets.shape[1] != len(self.target_mean_):
            raise ValueError(f"y: {samples.targets.shape[1]} outputs, expected {len(self.target_mean_)} as before")
        return samples if samples.weight is None else samples.part(samples.weight > 0)

    def _begin_targets(self, samples: Samples) -> int:
        self.target_mean_, self.target_scale_ = _mean_and_scale(samples.targets, samples.weight)
        return samples.targets.shape[1]

    def _targets(self, targets: NDArray[Any]) -> NDArray[Any]:
        return (targets - self.target_mean_) / self.target_scale_

    def predict(self, X: ArrayLike) -> Floats:
        """(samples,) or (samples, outputs)."""
        predicted = self._scores(X) * self.target_scale_ + self.target_mean_
        return predicted.ravel() if predicted.shape[1] == 1 else predicted
