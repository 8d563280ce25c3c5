"""Forward Target Propagation as a rule."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..activations import ACTIVATIONS, Activation
from ..ftp import (
    Feedback,
    FeedbackLaw,
    differences,
    first_difference,
    local_factors,
    low_rank_feedback,
    random_feedback,
)
from ..layers import Layer, Pass
from .output_loss import Targets
from .recomputing import RecomputingRule
from .rule import check_place, has_shared_positions, over_positions
from .second_pass import SecondPass, check_second_pass, full_differences, full_first_difference

PART = 2**17
"""How many numbers of a feature map's first target are computed at once on a CPU: all of theirs stays in its cache."""


class Ftp(RecomputingRule):
    """Forward Target Propagation (arXiv 2506.11030): projections of the label and the output make the first target.

    A reconstruction, see `prograde.reference.ftp`: what is not known of the paper is an option. `feedback`, G, is drawn
    once, (n_j, K), by `law` and `scale`, and held as a buffer. `phi` is the name of the activation that projections go
    through; None takes tanh where the model has tanh and the identity elsewhere (ReLU on G leaves tanh layers
    untrained). `gain` multiplies the correction. `inject` is j, the layer with the first target, 1 for the first one
    and 0 for the input; layers before it are not trained. `second_pass="full"` runs the targets themselves through
    the layers, in place of their differences to the activities: equal but for rounding, as on `Hardware`.
    With ReLU a rate that suits backpropagation may be too large: training then ends at chance or in NaN. A `scale` of
    0.1, or a rate that is smaller by that much, is the remedy.

    Models for images may begin with Conv2d and pooling; `image_size`, (height, width) of the images, gives the sizes
    of their feature maps. Where the first target is that of a map (or of the images), `by_channel`, the default there,
    gives all positions of a channel one row of G (ours, as positions share a kernel); False gives each position its
    own, as in the paper, and diverged with ReLU through two convolutions. G is drawn at `scale` / positions, or
    / sqrt(positions) without `by_channel`; see `prograde.reference.ftp`. Where G is too large to be held, `rank` makes
    it a product of two factors, and `seeded` keeps a seed in its place, from which it is drawn anew at each step, on
    the CPU, the same on every device and in every precision.

    Raises ValueError for options that are not known or do not go together, such as `law` beside `rank`, and unless
    `gain` and `scale` are positive.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    >>> rule = Ftp(model, inject=2)
    >>> tuple(rule.feedback.shape), sorted(rule.left_out)  # the first target is the second layer's
    ((5, 3), ['model.0.bias', 'model.0.weight'])
    """

    convolution_kinds = (nn.Conv2d,)
    runs_twice = True
    feedback: Tensor
    feedback_right: Tensor
    takes_positions = "with an example"

    def __init__(
        self,
        model: nn.Module,
        *,
        phi: str | None = None,
        gain: float = 1.0,
        scale: float = 0.5,
        law: FeedbackLaw = "uniform",
        inject: int = 1,
        second_pass: SecondPass = "difference",
        image_size: tuple[int, int] | None = None,
        rank: int | None = None,
        by_channel: bool | None = None,
        seeded: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if phi is None:
            phi = "tanh" if any(isinstance(module, nn.Tanh) for module in self.modules_run()) else "identity"
        if phi not in ACTIVATIONS:
            raise ValueError(f"phi: {phi!r}, expected one of {', '.join(ACTIVATIONS)}")
        for name, value in {"gain": gain, "scale": scale}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        self.phi: Activation = ACTIVATIONS[phi]
        self.gain, self.scale, self.inject, self.rank = gain, scale, inject, rank
        self.law: FeedbackLaw = law
        self.second_pass: SecondPass = second_pass
        check_second_pass(second_pass, self.recompute)
        if law not in get_args(FeedbackLaw):
            raise ValueError(f"law: {law!r}, expected one of {', '.join(get_args(FeedbackLaw))}")
        if rank is not None and (type(rank) is not int or not 1 <= rank <= self.num_classes):
            raise ValueError(f"rank: {rank!r}, expected 1..{self.num_classes}, the number of classes, or None")
        if rank is not None and law != "uniform":
            raise ValueError(f"law: {law!r}, with rank, whose factors are normal")
        self.target_shape = self._target_shape(image_size)
        self._channels_first = self.units[inject - 1].gives_channels_first if inject else self.wants_images
        has_positions = has_shared_positions(self.target_shape, self._channels_first)
        if by_channel and not has_positions:
            lacking = f"layer {inject} gives no feature map" if self.wants_images else "the model has no convolutions"
            raise ValueError(f"by_channel: True, but {lacking}")
        self.by_channel = self._by_channel(by_channel, has_positions)
        units = math.prod(self.target_shape)
        if phi == "maxmin" and self.by_channel:
            raise ValueError("phi: 'maxmin' pairs units, expected an elementwise one where a channel has one row of G")
        if phi == "maxmin" and units % 2:
            raise ValueError(f"phi: 'maxmin' pairs units, but the first target has {units}")
        self.seed: int | None = None
        if seeded:
            place = None if self.generator is None else self.generator.device
            self.seed = int(torch.randint(2**62, (), generator=self.generator, device=place).item())
            return
        weight = self.units[0].weights[0]
        drawn = self._drawn(self.generator, device=weight.device, dtype=weight.dtype)
        if isinstance(drawn, tuple):
            self.register_buffer("feedback", drawn[0])
            self.register_buffer("feedback_right", drawn[1])
        else:
            self.register_buffer("feedback", drawn)

    def _target_shape(self, image_size: tuple[int, int] | None) -> tuple[int, ...]:
        """A sample's shape in h_j. Raises ValueError where no layer has that number, and without a size that fits."""
        depth = len(self.units)
        if depth == 1:
            raise ValueError("model: no hidden layer; Ftp needs one to have a target")
        if type(self.inject) is not int or not 0 <= self.inject < depth:
            raise ValueError(f"inject: {self.inject}, expected 0..{depth - 1}, the input or a hidden layer")
        return self.sample_shapes(image_size)[self.inject]

    def _drawn(
        self, generator: torch.Generator | None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Feedback:
        """G or its factors, with one row a channel if positions share it."""
        rows, scale = self.rows_and_scale(self.target_shape, self._channels_first, self.scale, self.by_channel)
        if self.rank is not None:
            return low_rank_feedback(rows, self.num_classes, self.rank, generator, scale, device=device, dtype=dtype)
        return random_feedback(rows, self.num_classes, generator, scale, self.law, device=device, dtype=dtype)

    def _feedback(self, x: Tensor) -> Feedback:
        if self.seed is not None:
            drawn = self._drawn(torch.Generator().manual_seed(self.seed), dtype=torch.float32)
            return tuple(part.to(x) for part in drawn) if isinstance(drawn, tuple) else drawn.to(x)  # type: ignore[return-value]
        check_place("feedback", self.feedback, self.units[0].weights[0])
        return self.feedback if self.rank is None else (self.feedback, self.feedback_right)

    def untrained(self) -> dict[Tensor, str]:
        before = [p for unit in self.units[: max(self.inject - 1, 0)] for p in unit.parameters]
        return {**super().untrained(), **dict.fromkeys(before, f"before unit {self.inject}, the first with a target")}

    def get_extra_state(self) -> int | None:
        return self.seed

    def set_extra_state(self, state: int | None) -> None:
        if (state is None) != (self.seed is None):
            raise ValueError(
                f"seeded: {self.seed is not None}, but the state was saved by a rule with {state is not None}"
            )
        self.seed = state

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Targets
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        targets = self.loss.pursued(clean.scores, y, error)
        carried = full_differences if self.second_pass == "full" else differences

        def found() -> Iterator[Tensor]:  # from h_j on, when its turn comes
            yield from carried(layers, clean, self._first_difference(self._reached(clean), error, targets), self.inject)

        factors = local_factors(layers, clean, error, found(), self.inject)
        yield from ((None, z) for _, z in islice(factors, max(self.inject - 1, 0)))
        yield from factors

    def _reached(self, clean: Pass) -> Tensor:
        """a_j, shaped as h_j, which need not be there yet; x for j = 0."""
        return clean.preactivations[self.inject - 1] if self.inject else clean.inputs[0]

    def _first_difference(self, h: Tensor, error: Tensor, targets: Tensor) -> Tensor:
        """h_j - tau_j, shaped as h_j, and strided as it where that costs no copy."""
        targets = targets.flatten(0, -2)  # a row a label
        feedback = self._feedback(h)
        difference = full_first_difference if self.second_pass == "full" else first_difference
        if self.by_channel:
            found = difference(feedback, targets, error.flatten(0, -2), self.phi, self.gain)  # a row a label
            return over_positions(found, error, h)
        is_channels_last = h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last)
        as_they_are = self.on_crossbars or self.phi == ACTIVATIONS["maxmin"]  # which pairs rows
        if not is_channels_last or as_they_are:
            return difference(feedback, targets, error, self.phi, self.gain).reshape(h.shape)
        # The rows of G in the order of memory: they are permuted, (n_j, K), not what they give, (batch, n_j).
        left = feedback[0] if isinstance(feedback, tuple) else feedback
        left = left.T.unflatten(1, h.shape[1:]).movedim(1, -1).flatten(1).T
        permuted = (left, feedback[1]) if isinstance(feedback, tuple) else left
        found = torch.empty_like(h)
        flat = found.movedim(1, -1).view(len(h), -1)
        rows = len(h) if h.device.type != "cpu" else PART // flat.shape[1] + 1
        for part in (slice(row, row + rows) for row in range(0, len(h), rows)):
            flat[part] = difference(permuted, targets[part], error[part], self.phi, self.gain)
        return found
