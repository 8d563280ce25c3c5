"""The processes of one training: what they tell each other, and what the first of them does alone."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..rules import Rule
from .errors import UserError

if TYPE_CHECKING:
    from ..parallel.processes import Processes

T = TypeVar("T")
_END = object()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C of which all processes know."""


class Together:
    """This process and those that the rule connects it to, if it does; `rank` is its number among `size`.

    `steps_by` makes the steps; `rule` is what is trained, measured and saved, the same in all of them. Every method is
    called by all in the same order. Raises UserError for a rule whose processes hold parts of it.
    """

    def __init__(self, steps_by: Rule) -> None:
        self.steps_by, self.rule = steps_by, steps_by
        self.rank, self.size = 0, 1
        self._processes: Processes | None = None
        self._is_interrupted = False
        if steps_by.connects_processes:
            from ..parallel import DataParallel  # late: its import takes long, and whoever has such a rule has it

            if not isinstance(steps_by, DataParallel):
                raise UserError(
                    f"rule: a {type(steps_by).__name__}, each process of which has other units; expected DataParallel, "
                    "or a loop of one's own, as in docs/parallel.md"
                )
            self.rule, self._processes = steps_by.rule, steps_by.processes
            self.rank, self.size = self._processes.rank, self._processes.size

    def alone(self, call: Callable[[], T]) -> T:
        """What it gives in process 0, which alone calls it, told to all; an error there is raised in all."""
        if self._processes is None:
            return call()
        found, error = None, None
        if self.rank == 0:
            try:
                found = call()
            except Exception as raised:  # whatever it is, the others wait to be told
                error = raised
        found, said = self._processes.first((found, None if error is None else str(error)))
        if error is not None:
            raise error
        if said is not None:
            raise UserError(f"process 0: {said}")
        return found

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, Ctrl-C in one of several processes waits for `agreed`, or for the end; a second one does not."""
        is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._processes is None or not is_usual or threading.current_thread() is not threading.main_thread():
            yield
            return

        def hear(number: int, frame: Any) -> None:
            if self._is_interrupted:
                raise KeyboardInterrupt
            self._is_interrupted = True

        signal.signal(signal.SIGINT, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._is_interrupted:
            raise KeyboardInterrupt

    def agreed(self, told: T) -> T:
        """What process 0 tells. Raises Interrupted, in all, where one has heard Ctrl-C."""
        if self._processes is None:
            return told
        every = self._processes.every((told, self._is_interrupted))
        if any(heard for _, heard in every):
            self._is_interrupted = False
            raise Interrupted
        first: T = every[0][0]
        return first

    def every(self, told: T) -> list[T]:
        """What each tells, in order of rank."""
        return [told] if self._processes is None else self._processes.every(told)

    def check_same(self, **told: Any) -> None:
        """Raises UserError, by its name, for what is not the same in all."""
        first, *others = self.every(told)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise UserError(f"{name}: {other[name]} in process {rank}, expected {value} as in process 0")

    def check_shares(self, batch: str) -> None:
        """Raises UserError where two have been given the same batch, told by its digest."""
        if len(set(self.every(batch))) < self.size:
            raise UserError(
                "train: gives the same batch in two processes, expected a share of the data in each, as by "
                "DataLoader(sampler=DistributedSampler(...))"
            )

    def share(self, batch: Any) -> Any:
        """This process's rows of what all of them have: of a tensor, or of each in a tuple."""
        if isinstance(batch, tuple):
            return tuple(map(self.share, batch))
        return batch[len(batch) * self.rank // self.size : len(batch) * (self.rank + 1) // self.size]

    def even(self, items: Iterator[T]) -> Iterator[T]:
        """The items, as long as all have one. Raises UserError where some have fewer than others, or one fails."""
        if self._processes is None:
            yield from items
            return
        done = 0
        while True:
            try:
                item = next(items, _END)
            except Exception:
                self._processes.all_told(-1)
                raise
            told = [state for (state,) in self._processes.all_told(item is not _END)]
            if -1 in told:
                raise UserError(f"train: process {told.index(-1)} has failed to give a batch, and says why")
            if any(told) != all(told):
                raise UserError(
                    f"train: process {told.index(0)} has {done} batches, another one more; expected as many in each, "
                    "as by a DistributedSampler"
                )
            if item is _END:
                return
            yield item  # type: ignore[misc]
            done += 1

    def summed(self, *numbers: float) -> list[float]:
        """Each over all."""
        if self._processes is None:
            return [*numbers]
        return [sum(told) for told in zip(*self._processes.all_told(*numbers), strict=True)]
