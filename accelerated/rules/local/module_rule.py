"""The base of rules that run the modules of a model, of any kind."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from ..cutting import (
    Part,
    Units,
    channels_first,
    check_same,
    is_plain,
    model_output,
    needs_default_order,
    parts,
    untouched,
)
from ..rule import Rule, check_count, one_sample
from ..units import (
    channels_last,
    check_batch,
    check_like,
    flat_input,
    has_positions,
    without_scores,
)
from .units import LocalUnit, ScoreAfter, check_sizes, read


class ModuleRule(Rule):
    """A rule around an `nn.Sequential`, a `ShortcutNetwork`, or any model with its `units`; `local` is what it reads.

    That the units are the model is checked on the `example`, or else on the first batch.
    """

    steps_by_unit = True

    whole: ClassVar[bool] = False
    """Whether the rule differentiates the whole model, a last Linear too."""
    units: Sequence[LocalUnit]

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Units | None = None,
        example: Tensor | None = None,
        score_after: ScoreAfter = "activation",
        num_classes: int | None = None,
        least_classes: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if score_after not in get_args(ScoreAfter):
            raise ValueError(f"score_after: {score_after!r}, expected one of {', '.join(get_args(ScoreAfter))}")
        rule = type(self).__name__
        found = None if units is None else parts(model, units, example, rule)
        self._unchecked: Sequence[Part] = () if found is None or example is not None else found
        self.local = read(model, rule, score_after, self.whole, found)
        self.watch(model)
        self.generator = generator
        self._needs_default_order = needs_default_order([model])
        self.units = self.local.units
        self.sample_shape: torch.Size | None = None
        self.tokens = 0
        given = self.local.num_classes
        if example is not None:
            given = self._take_sizes(example)
        if num_classes is not None:
            check_count("num_classes", num_classes, least=least_classes)
        if given is not None and num_classes not in (None, given):
            raise ValueError(f"num_classes: {num_classes}, but the model's last layer has {given}")
        classes = num_classes if given is None else given
        if classes is None:
            otherwise = f", or an example, a batch as the model takes it{'' if self.whole else ', or num_classes'}"
            if is_plain(model, nn.Sequential) and found is None:
                raise without_scores(model, otherwise)
            raise ValueError(
                f"model: {type(model).__name__}; how many scores it gives is not known, "
                f"expected a Linear at its end{otherwise}"
            )
        if given is not None and given < least_classes:
            raise ValueError(f"model: its last layer gives {given} class score, expected 2 or more")
        check_count("num_classes", classes, least=least_classes)
        self.num_classes = classes
        self._fitting: set[torch.Size] = set()  # shapes of samples that are known to pass

    def _take_sizes(self, example: Tensor) -> int:
        """Of a sample, of what the units give, and of the scores, whose number it returns. The batch leaves no trace.

        Raises ValueError for a batch that does not pass.
        """
        self.sample_shape = example.shape[1:]
        with untouched(self.model, example), torch.no_grad():
            self.model.eval()
            x = self._flattened(example)
            scores = model_output(self.model, x)
            if scores.ndim < 2:
                raise ValueError(
                    f"model: gives {tuple(scores.shape)}, expected scores (batch, K), of one without squeeze"
                )
            if not self.whole:
                pairs = zip(self.units, self.local.passes(x), strict=True)
                self.units = [replace(unit, shape=h.shape[1:]) for unit, h in pairs]
                self.local = self.local._replace(units=self.units)
        self.tokens = scores.shape[1] if scores.dim() == 3 else 0
        return scores.shape[-1]

    @property
    def per_token(self) -> bool:
        """Whether the model gives scores of each token, (batch, tokens, K), as an example has shown."""
        return self.tokens > 0

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """(tokens,) where each has a label: as many as in x, unless the example showed otherwise."""
        if not self.per_token or self.sample_shape is None:
            return ()
        return tuple(x.shape[1:2]) if self.tokens == self.sample_shape[0] else (self.tokens,)

    @property
    def wants_images(self) -> bool:
        """Whether x is (batch, channels, height, width); not so where the model begins with nn.Unflatten."""
        if self.sample_shape is not None:
            return len(self.sample_shape) == 3
        return self.units[0].has_maps and not any(isinstance(module, nn.Unflatten) for module in self.local.stem)

    @property
    def least_batch(self) -> int:
        """2 while batch normalisation is in training mode."""
        return 2 if any(self.batch_norms()) else 1

    def checked(self, x: Tensor, y: Any) -> Tensor:
        x = super().checked(x, y)
        if self._unchecked and not self.whole:
            check_same(self.model, self._unchecked, x)
            self._unchecked = ()
        if self.samples(x) == 1:
            for name, module in self.batch_norms():
                if isinstance(module, nn.BatchNorm1d):
                    raise one_sample(name, module)
            if self.local.is_known:
                check_sizes(self.local, x.shape[1:], x.dtype, batch=1)  # of BatchNorm2d, a map of one pixel
        return x

    @torch.no_grad()
    def activities(self, x: Tensor, y: Any) -> Iterator[Tensor]:
        yield from self.local.passes(self.checked(x, y))

    def checked_input(self, x: Tensor) -> Tensor:
        """x as the model takes it. Raises ValueError unless it fits."""
        self.check_unchanged()
        first = self.units[0]
        if not isinstance(x, Tensor):
            raise ValueError(f"x: a {type(x).__name__}, expected a torch.Tensor")
        check_batch(x)
        x = self._flattened(x)
        if x.is_floating_point() or first.is_layer:
            check_like(x, first.weights[0])
        if not torch.compiler.is_compiling() and x.shape[1:] not in self._fitting:
            if self.local.is_known:
                check_sizes(self.local, x.shape[1:], x.dtype)
            self._fitting.add(x.shape[1:])
        return channels_first(x) if self._needs_default_order else channels_last(x)

    def _flattened(self, x: Tensor) -> Tensor:
        """x with a sample's numbers in one row where a Linear takes them so, and not position by position."""
        module, stem = self.units[0].module, self.local.stem
        if not isinstance(module, nn.Linear) or not all(isinstance(m, nn.Flatten | nn.Identity) for m in stem):
            return x
        by_position = has_positions(x, module.in_features, self.sample_shape)
        return x if by_position and not stem else flat_input(x, module.weight)
