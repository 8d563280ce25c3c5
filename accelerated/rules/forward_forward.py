"""Forward-Forward as a rule."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import isfinite, isqrt, prod
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..forward_forward import (
    Place,
    Prior,
    features,
    label_scores,
    local_updates,
    neutral_features,
    overlay,
    readout_update,
    stream_goodness,
    stream_updates,
    wrong_labels,
)
from ..goodness import GOODNESS, Goodness
from ..layers import activity
from ..losses import cross_entropy
from ..negatives import hard_wrong_labels, hybrid_images, random_masks, random_partners
from ..normalisations import rms_norm
from ..pair_losses import LayerCredit, LayerGoodness, LayerLoss
from ..pair_losses import threshold as threshold_loss
from .cutting import Units, untouched
from .module_layer import ModuleStep
from .rule import LayeredRule, UnitUpdate, check_count, evaluating
from .stepping import factored
from .units import Unit, check_dense, without_scores

HardLaw: TypeAlias = Literal["root", "softmax"]
"""How likely a wrong label is by its score."""

Negatives: TypeAlias = Literal["wrong", "hard", "hybrid", "pairs"]
"""What the negative data are."""


EMBEDDING = "of tokens: labels are written over what it gives, so that its goodness would be the same in both streams"
"""Why it is left out."""


class ForwardForward(LayeredRule):
    """Hinton's Forward-Forward (arXiv 2212.13345): positive samples carry their label, negative ones a wrong label.

    The first K pixels of the input are overwritten by the label. A last Linear without an activation gives K and is
    otherwise left out: neither trained nor used, since every hidden layer is trained by its own goodness. A model
    that ends with an activation needs `num_classes`. Dropout is not part of the rule and is refused.

    `goodness` is one of `prograde.accelerated.goodness`, or its name there. `loss` is one of `pair_losses` or
    `cumulative_goodness`, by default the threshold loss, whose theta per unit is `threshold`. `prior` chooses the other
    layers whose goodness the loss uses. `amplitude` is the brightness of a label pixel, by default 4, or 1 of a plane.
    Scores are the goodness of the layers from `first_layer` on (0: all) for each candidate label, K passes in one
    batch. With `readout=True` scores come from a linear map of one neutral pass, `rule.readout`, which its own
    cross-entropy trains beside the layers.

    `negatives` are "wrong" labels, drawn evenly, or "hard" ones, drawn by their scores. `hard_law` is "root" of their
    goodness, or "softmax", which a goodness that may be negative (kurtosis, a negated one) and a read-out need. Two
    kinds of negatives need no labels; x itself is then positive, and the labels train the read-out alone. "hybrid"
    negatives are two samples joined by a mask of large regions, random bits blurred `mask_passes` times (6: regions of
    about 8 pixels). `image_shape` is the shape of images in a model that takes them flat, by default one square
    channel. "pairs" are SCFF's [x_i, x_i] against [x_i, x_j] through the same first weights: x_i and (x_i + x_j) / 2.
    They are normalised before they are added and not again, since the length of the sum separates it from a sample.

    Models for images may begin with Conv2d, each with an activation and pooling. Use `SymBa` there, or the threshold
    loss with `goodness="mean-square"`. A goodness that is summed over all positions puts both streams of nearly every
    sample far on the same side of theta, where the loss moves them together. With `labels="planes"` the label does not
    overwrite pixels: the first convolution takes K more channels than the images have, one for each class.

    Tokens need an `example`, and a first unit that makes numbers of them, (batch, T, n). It stays as it is, and with
    `labels="tokens"`, the default there, the label overwrites the first K of the n at every position. Each sequence has
    one label: candidates are scored one by one, for which the labels of other positions would have to be known.

    >>> model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> rule = ForwardForward(model)  # puts the label into the first 3 of the 5 inputs
    >>> rule(torch.ones(2, 5)).shape, sorted(rule.left_out)
    (torch.Size([2, 3]), ['model.4.bias', 'model.4.weight'])
    """

    convolution_kinds = (nn.Conv2d,)

    takes_dropout = False
    begins_with_x = True

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Units | None = None,
        example: Tensor | None = None,
        num_classes: int | None = None,
        goodness: str | Goodness = "sum-of-squares",
        loss: LayerLoss | None = None,
        threshold: float | None = None,
        prior: Prior = "before",
        negatives: Negatives = "wrong",
        hard_law: HardLaw | None = None,
        mask_passes: int = 6,
        image_shape: tuple[int, int, int] | None = None,
        labels: Place | None = None,
        amplitude: float | None = None,
        first_layer: int = 0,
        readout: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, units=units, example=example, generator=generator)
        self.embedding: list[Tensor] = []
        """The parameters of what makes numbers of tokens."""
        self.takes_tokens = example is not None and not example.is_floating_point()
        if self.takes_tokens:
            self._begin_behind_embedding()
        if labels is None:
            labels = "tokens" if self.takes_tokens else "pixels"
        last = self.units[-1]
        if num_classes is not None:
            check_count("num_classes", num_classes)
        check_count("first_layer", first_layer, least=0)
        if threshold is not None and not isfinite(threshold):
            raise ValueError(f"threshold: {threshold}, expected a finite number")
        if last.gives_scores:
            if num_classes not in (None, last.width):
                raise ValueError(f"num_classes: {num_classes}, but layer '{last.name}' has {last.width}")
            num_classes = last.width
            self.units = self.units[:-1]
        if num_classes is None:
            raise without_scores(model, ", or num_classes")
        if not self.units:
            raise ValueError(
                f"model: no hidden layer; {type(self).__name__} trains Linear layers that an activation follows"
            )
        if not 0 <= first_layer < len(self.units):
            raise ValueError(f"first_layer: {first_layer}, expected 0..{len(self.units) - 1}")
        self.num_classes = num_classes
        self.goodness = named_goodness(goodness)
        if loss is not None and threshold is not None:
            raise ValueError(f"threshold: {threshold}, but a loss is given, which has its own if any")
        self.loss = threshold_loss(1.0 if threshold is None else threshold) if loss is None else loss
        if not callable(self.loss) or isinstance(loss, nn.modules.loss._Loss | type):
            raise ValueError(f"loss: {loss!r}, expected a loss, as pair_losses and cumulative_goodness make them")
        for name, value, kind in (
            ("prior", prior, Prior),
            ("labels", labels, Place),
            ("negatives", negatives, Negatives),
            ("hard_law", hard_law or "root", HardLaw),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{name}: {value!r}, expected one of {', '.join(get_args(kind))}")
        self.prior: Prior = prior
        self.negatives: Negatives = negatives
        self.hard_law: HardLaw = ("softmax" if readout else "root") if hard_law is None else hard_law
        if readout and self.hard_law == "root":
            raise ValueError("hard_law: 'root', expected 'softmax' with readout, whose scores may be negative")
        check_count("mask_passes", mask_passes)
        self.mask_passes = mask_passes
        self.image_shape = self._flat_shape(image_shape)
        self.amplitude = {"pixels": 4.0, "planes": 1.0, "tokens": 4.0}[labels] if amplitude is None else amplitude
        if not 0 < self.amplitude < float("inf"):
            raise ValueError(f"amplitude: {amplitude}, expected a positive number, without which streams are equal")
        self.first_layer = first_layer
        self.labels: Place = labels
        if self.unlabelled and (not readout or labels == "planes"):
            came = "labels: 'planes'" if readout else "readout: False"
            raise ValueError(f"{came}, but negatives {negatives!r} have no labels; expected readout=True and no planes")
        self._check_room()
        if self.takes_tokens:
            self._check_tokens(example)
        self.readout: nn.Linear | None = None
        if readout:
            weight = self.units[0].weights[0]
            self.readout = nn.Linear(
                self._width(example), num_classes, bias=False, device=weight.device, dtype=weight.dtype
            )
            nn.init.zeros_(self.readout.weight)

    def _begin_behind_embedding(self) -> None:
        """Makes what takes tokens the stem, whose numbers the next unit has as its input."""
        first, *units = self.chain.units
        steps = () if first.is_linear else (first.activation,)
        stem = (ModuleStep(nn.Sequential(*first.inside)), *steps, *first.outlet)
        self.embedding = first.parameters
        self.chain = self.chain._replace(stem=stem, units=units)
        self.units = units
        if not units:
            raise ValueError(f"units: '{first.name}' of tokens alone, expected others behind it")

    def _check_tokens(self, example: Tensor | None) -> None:
        """Raises ValueError where tokens become no numbers over which labels can be written."""
        assert example is not None
        if self.negatives == "hybrid":
            raise ValueError("negatives: 'hybrid' joins images, expected another kind for tokens")
        with torch.no_grad(), evaluating(self.model), untouched(self.model, example):
            z = self.begin(example)
        if self.labels == "tokens" and not self.unlabelled and (z.dim() != 3 or z.shape[2] < self.num_classes):
            raise ValueError(
                f"units: the first makes {tuple(z.shape[1:])} of a sample of tokens, expected (T, n) with n of "
                f"{self.num_classes} or more, one for each label"
            )

    def _numbers(self, x: Tensor) -> Tensor:
        """x as the first layer takes it, or what becomes of tokens."""
        return x if self.takes_tokens and x.is_floating_point() else self.begin(x)

    def untrained(self) -> dict[Tensor, str]:
        return {**super().untrained(), **dict.fromkeys(self.embedding, EMBEDDING)}

    def _flat_shape(self, given: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        """Channels, height and width of flat images, where negatives ask for them. Raises ValueError."""
        if self.wants_images or self.takes_tokens:
            if given is not None:
                what = "the model takes tokens" if self.takes_tokens else "convolutions are given images"
                raise ValueError(f"image_shape: {given}, expected None, since {what}")
            return None
        first = self.units[0]
        if not first.inside:
            pixels = first.weights[0].shape[1]
        elif given is not None:
            pixels = prod(given)
        elif self.example_of is not None and len(self.example_of[0]) == 1:
            pixels = self.example_of[0][0]
        else:
            return None
        if given is not None:
            if len(given) != 3 or any(type(n) is not int or n < 1 for n in given) or prod(given) != pixels:
                raise ValueError(
                    f"image_shape: {given}, expected channels, height and width of the {pixels} pixels that layer "
                    f"'{first.name}' takes"
                )
            return given
        side = isqrt(pixels)
        if self.negatives == "hybrid" and side**2 != pixels:
            raise ValueError(
                f"image_shape: None, expected (channels, height, width) for negatives 'hybrid', since {pixels}, the "
                f"pixels that layer '{first.name}' takes, is no square number"
            )
        return 1, side, side

    def _check_room(self) -> None:
        """Raises ValueError where there is no wrong label, or the input has no room for K labels."""
        if self.num_classes < 2 and not self.unlabelled:
            raise ValueError(f"num_classes: {self.num_classes}, expected 2 or more, since negatives have a wrong label")
        if self.labels == "planes":
            if not self.wants_images or self.units[0].inside:
                raise ValueError("labels: 'planes', but the model does not begin with a Conv2d")
            channels = self.chain.image_channels
            if not 2 <= self.num_classes < channels:
                raise ValueError(
                    f"layer '{self.units[0].name}': takes {channels} channels, expected those of the images "
                    f"and {self.num_classes} more, a plane for each label"
                )
            self.label_planes = self.num_classes
        elif not self.wants_images and not self.unlabelled and not self._run:
            pixels = self.units[0].weights[0].shape[1]
            if self.num_classes > pixels:
                raise ValueError(f"num_classes: {self.num_classes}, expected 2..{pixels}, the pixels of the input")

    def _width(self, example: Tensor | None) -> int:
        """Features of the read-out. Raises ValueError where they depend on the size of images, and without example."""
        if example is not None:
            with torch.no_grad(), evaluating(self.model):
                return self._features(self._numbers(self.checked_input(example[:1]))).shape[1]
        maps = sum(unit.has_maps for unit in self.units)
        if self.first_layer < maps - 1:
            raise ValueError(
                f"first_layer: {self.first_layer}, expected {maps - 1} or more with readout, since the size of earlier "
                "feature maps is not known"
            )
        width = sum(unit.width for unit in self.units[self.first_layer :] if not unit.has_maps)
        of_last_map = self.chain.units[maps].weights[0].shape[1]  # of the first dense layer, all that it takes
        return width + (of_last_map if self.first_layer < maps else 0)

    def calls(self, module: nn.Module) -> bool:
        return False  # but once with the samples of both streams

    def checked_input(self, x: Tensor) -> Tensor:
        self.check_hooks()
        check_dense(x)
        if isinstance(x, Tensor) and not x.is_floating_point() and not self.takes_tokens:
            raise ValueError(
                f"x: {x.dtype}, expected numbers, over which labels can be written; of tokens give the rule an example"
            )
        x = super().checked_input(x)
        if self.labels == "pixels" and not self.unlabelled and x[0].numel() < self.num_classes:
            raise ValueError(f"x: {x[0].numel()} pixels, expected at least {self.num_classes}, one for each label")
        return x

    def checked(self, x: Tensor, y: Tensor) -> Tensor:
        x = super().checked(x, y)
        if self.samples(x) < self.least_batch:
            raise ValueError(f"x: a batch of 1, expected 2 or more: negatives {self.negatives!r} mix two samples")
        return self._numbers(x)

    def check_y(self, x: Tensor, y: Tensor) -> None:
        per_position = isinstance(y, Tensor) and y.dim() == 2 and y.shape == x.shape[:2]
        if per_position and (self.takes_tokens or x.dim() == 3):
            raise ValueError(
                f"y: a label of each position, {tuple(y.shape)}; {type(self).__name__} expects one of each sample: it "
                "scores candidates one by one, for which the labels of other positions would have to be known"
            )
        super().check_y(x, y)

    def scores(self, x: Tensor) -> Tensor:
        x = self._numbers(x)
        if self.readout is not None:
            return functional.linear(self._features(x), self.readout.weight)
        return label_scores(
            self.layers(), x, self.num_classes, self.goodness, self.amplitude, self.first_layer, self.labels
        )

    @property
    def least_batch(self) -> int:
        """2 where negatives are made of two samples."""
        return 2 if self.unlabelled else 1

    @property
    def unlabelled(self) -> bool:
        """Whether the layers learn without labels."""
        return self.negatives in ("hybrid", "pairs")

    def _aside(self, x: Tensor) -> AbstractContextManager[None]:
        """A pass beside the streams, which leaves modules that are run as they were."""
        return untouched(self.model, x) if self._run else nullcontext()

    def _features(self, x: Tensor) -> Tensor:
        if self.unlabelled:
            return features(self.layers(), x, self.first_layer)
        return neutral_features(self.layers(), x, self.num_classes, self.amplitude, self.first_layer, self.labels)

    def negative_labels(self, x: Tensor, y: Tensor) -> Tensor:
        """One draw of a wrong label for each sample: (batch,)."""
        y = self.gathered(y)
        if self.negatives == "wrong":
            return self.own(wrong_labels(y, self.num_classes, self.generator))
        with self._aside(x):
            scores = self.gathered(self.scores(x))
        return self.own(hard_wrong_labels(scores, y, self.generator, self.hard_law))

    def positive_images(self, x: Tensor) -> Tensor:
        """x as the positive stream without labels."""
        return rms_norm(x) if self.negatives == "pairs" else x

    def negative_images(self, x: Tensor) -> Tensor:
        """One draw of negatives without labels: shaped like x. Raises ValueError for a batch of one sample."""
        whole = self.gathered(rms_norm(x) if self.negatives == "pairs" else x)
        other = self.own(whole[random_partners(len(whole), self.generator, device=x.device)])
        if self.negatives == "pairs":
            return (self.own(whole) + other) / 2
        images = x if self.image_shape is None else x.unflatten(1, self.image_shape)
        size = (len(whole), images.shape[2], images.shape[3])
        mask = random_masks(size, self.mask_passes, self.generator, device=x.device, dtype=x.dtype)
        return hybrid_images(images, other.view_as(images), self.own(mask)[:, None]).view_as(x)

    def layer_loss(self, layer: LayerGoodness) -> LayerCredit:
        """The loss of a layer and its derivatives by that layer's goodness."""
        return self.loss(layer)

    def own_updates(self, layer: LayerGoodness) -> tuple[tuple[Tensor, Tensor], ...]:
        """What is to be subtracted from parameters that the loss itself has."""
        return ()

    def stream(self, x: Tensor, y: Tensor) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        first, *others = self.layers()
        layers = [first, *map(factored, others)]  # the first one's input may be of labels and images apart
        with self._aside(x):
            seen = self._features(x) if self.readout is not None else None
        own: list[tuple[tuple[Tensor, Tensor], ...]] = []

        def credit(layer: LayerGoodness) -> LayerCredit:
            own.append(self.own_updates(layer))
            return self.layer_loss(layer)

        if self.unlabelled:
            updates = stream_updates(
                layers, self.positive_images(x), self.negative_images(x), self.goodness, credit, self.prior,
                normalised=self.negatives == "pairs",
            )  # fmt: skip
        else:
            updates = local_updates(
                layers, x, y, self.negative_labels(x, y), self.num_classes,
                self.goodness, credit, self.prior, self.amplitude, self.labels,
            )  # fmt: skip
        for unit, (update, loss) in zip(self.units, updates, strict=True):
            yield UnitUpdate(unit, unit.gradients(update), loss, own.pop())
        if self.readout is not None and seen is not None:
            loss = cross_entropy(functional.linear(seen, self.readout.weight), y).mean()
            gradient = readout_update(self.readout.weight, seen, y)
            yield UnitUpdate(Unit("readout", self.readout), [gradient], loss)

    @torch.no_grad()
    def activities(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Of the positive stream."""
        positive = self._positive(self.checked(x, y), y)
        z = positive if self.negatives == "pairs" else rms_norm(positive)
        for layer in self.layers():
            h = activity(layer.steps, layer.value(z))
            yield h
            z = rms_norm(activity(layer.outlet, h))

    def _positive(self, x: Tensor, y: Tensor) -> Tensor:
        """x as the positive stream."""
        if self.unlabelled:
            return self.positive_images(x)
        return overlay(x, y, self.num_classes, self.amplitude, self.labels)

    def layer_goodness(self, x: Tensor, y: Tensor, prior: Prior | None = None) -> list[LayerGoodness]:
        """What the loss of every layer is computed from, for one draw of negatives; with another prior if given."""
        x = self.checked(x, y)
        positive = self._positive(x, y)
        if self.unlabelled:
            negative = self.negative_images(x)
        else:
            labels = self.negative_labels(x, y)
            negative = overlay(x, labels, self.num_classes, self.amplitude, self.labels)
        return stream_goodness(
            self.layers(), positive, negative, self.goodness, prior or self.prior, self.negatives == "pairs"
        )

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the layers' losses, where later losses reach earlier layers: what locality leaves out.

        Without the read-out's loss, which reaches no layer.
        """
        losses = [self.layer_loss(layer).loss.mean() for layer in self.layer_goodness(x, y)]
        return torch.stack(losses).sum()


def named_goodness(goodness: str | Goodness) -> Goodness:
    """One of GOODNESS by its name, or the goodness itself. Raises ValueError for another name."""
    if isinstance(goodness, Goodness):
        return goodness
    if goodness not in GOODNESS:
        raise ValueError(f"goodness: {goodness!r}, expected one of {', '.join(GOODNESS)}")
    return GOODNESS[goodness]
