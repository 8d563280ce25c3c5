"""What a training gave, epoch by epoch."""

from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_origin, get_type_hints


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: `loss`, the mean over the `samples` trained on, and what validation data said after it.

    `validation_accuracy` is the share of labels that score highest, `validation_loss` the loss at the scores; None
    where there are no labels, or no such loss. `alignment` has a cosine by unit, `measured` what else was asked for.
    Raises TypeError for a field that is not of its type.

    >>> Epoch(1, loss=0.5, validation_accuracy=None, seconds=0.1, alignment={}).samples
    0
    """

    epoch: int
    loss: float
    validation_accuracy: float | None
    seconds: float
    alignment: dict[str, float]
    measured: dict[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None
    samples: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(record: Any) -> None:
    """Raises TypeError for a field of a dataclass that is not of its type: what a file says may be anything."""
    for name, kind in get_type_hints(type(record)).items():
        known = kind if isinstance(kind, UnionType) else get_origin(kind) or kind
        if not isinstance(value := getattr(record, name), known):
            raise TypeError(f"{name}: a {type(value).__name__}, expected {kind}")


@dataclass
class History:
    """The epochs, and what the weights of the best of them give on test data; None where that was not measured.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2), torch.tensor([0, 1])), epochs=3)
    >>> [epoch.epoch for epoch in history.epochs], history.stopped
    ([1, 2, 3], None)
    """

    epochs: list[Epoch] = field(default_factory=list)
    test_accuracy: float | None = None
    at_chance: bool = False
    """Whether the test accuracy is within two standard deviations of always guessing the most common class."""
    test_loss: float | None = None
    stopped: str | None = None
    """Why training ended before its last epoch, if it did."""
    interrupted: KeyboardInterrupt | None = None
    """The Ctrl-C that ended it, if one did."""

    @property
    def best(self) -> Epoch:
        """By validation accuracy, else by validation loss, the earliest of equals; without either the last epoch."""
        return max(self.epochs, key=_merit)


def _merit(epoch: Epoch) -> float:
    if epoch.validation_accuracy is not None:
        return epoch.validation_accuracy
    return epoch.epoch if epoch.validation_loss is None else -epoch.validation_loss
