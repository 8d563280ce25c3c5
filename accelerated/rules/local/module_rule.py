"""The base of rules that run the modules of a model, which may have normalisation, pooling and shortcuts."""

from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from ..rule import Rule, check_count, one_sample
from ..units import channels_last, check_like, flat_input, without_scores
from .units import LOCAL, LocalUnit, ScoreAfter, check_sizes, read


class ModuleRule(Rule):
    """A rule around an `nn.Sequential` or a `ShortcutNetwork`, read by `units.read` into `local`."""

    kinds: ClassVar[tuple[type[nn.Module], ...]] = LOCAL
    """Layers that it trains."""
    whole: ClassVar[bool] = False
    """Whether a last Linear is among its units."""
    units: Sequence[LocalUnit]

    def __init__(
        self,
        model: nn.Module,
        *,
        score_after: ScoreAfter = "activation",
        num_classes: int | None = None,
        least_classes: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if score_after not in get_args(ScoreAfter):
            raise ValueError(f"score_after: {score_after!r}, expected one of {', '.join(get_args(ScoreAfter))}")
        self.local = read(model, type(self).__name__, score_after, self.kinds, self.whole)
        self.watch(model)
        self.generator = generator
        self.units = self.local.units
        given = self.local.num_classes
        if num_classes is not None:
            check_count("num_classes", num_classes, least=least_classes)
        if given is not None and num_classes not in (None, given):
            raise ValueError(f"num_classes: {num_classes}, but the model's last layer has {given}")
        classes = num_classes if given is None else given
        if classes is None:
            raise without_scores(model, "" if self.whole else ", or num_classes")
        if given is not None and given < least_classes:
            raise ValueError(f"model: its last layer gives {given} class score, expected 2 or more")
        check_count("num_classes", classes, least=least_classes)
        self.num_classes = classes
        self._fitting: set[torch.Size] = set()  # shapes of samples that are known to pass

    @property
    def wants_images(self) -> bool:
        """Whether x is (batch, channels, height, width); not so where the model begins with nn.Unflatten."""
        return self.units[0].has_maps and not any(isinstance(module, nn.Unflatten) for module in self.local.stem)

    @property
    def least_batch(self) -> int:
        """2 while batch normalisation is in training mode."""
        return 2 if any(self.batch_norms()) else 1

    def checked(self, x: Tensor, y: Any) -> Tensor:
        x = super().checked(x, y)
        if len(x) == 1:
            for name, module in self.batch_norms():
                if isinstance(module, nn.BatchNorm1d):
                    raise one_sample(name, module)
            check_sizes(self.local, x.shape[1:], x.dtype, batch=1)  # of BatchNorm2d, a map of one pixel
        return x

    def checked_input(self, x: Tensor) -> Tensor:
        """x as the model takes it. Raises ValueError unless it fits."""
        self.check_unchanged()
        first, stem = self.units[0], self.local.stem
        if not isinstance(x, Tensor):
            raise ValueError(f"x: a {type(x).__name__}, expected a torch.Tensor")
        if not first.has_maps and all(isinstance(module, nn.Flatten | nn.Identity) for module in stem):
            x = flat_input(x, first.weights[0])
        if x.dim() < 2 or len(x) == 0:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...) with at least one sample")
        check_like(x, first.weights[0])
        if x.shape[1:] not in self._fitting:
            check_sizes(self.local, x.shape[1:], x.dtype)
            self._fitting.add(x.shape[1:])
        return channels_last(x)
