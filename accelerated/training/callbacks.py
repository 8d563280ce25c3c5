"""What a training loop calls while it runs."""

from typing import TYPE_CHECKING

from .history import Epoch

if TYPE_CHECKING:
    from .run import Run


class Callback:
    """Called by `fit` at each of these times, with the training as it stands. All methods do nothing.

    What is read of `run` may be copied, not changed; `run.stop(reason)` ends training after the step in hand, whose
    epoch is still measured.

    >>> class Count(Callback):
    ...     steps = 0
    ...     def on_step(self, run):
    ...         self.steps = run.step
    >>> count, rule = Count(), rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2).repeat(4, 1), torch.tensor([0, 1] * 4)), epochs=3, batch=4, callbacks=[count])
    >>> count.steps
    6
    """

    def on_start(self, run: "Run") -> None:
        """Before the first step; of a training that is resumed `run.history` has the epochs done before."""

    def on_step(self, run: "Run") -> None:
        """After each step of the optimizer. `run.loss` is a tensor: reading its number waits for the device.

        `.grad` may be None, see `Rule.step`.
        """

    def on_epoch(self, run: "Run", epoch: Epoch) -> None:
        """After each epoch, measured and with its checkpoint written."""

    def on_end(self, run: "Run") -> None:
        """After the last, with the best weights in place; also where training broke down."""
