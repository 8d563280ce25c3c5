"""Training images changed at random, each by a draw of its own, drawn anew for every batch."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .dataset import Dataset

LUMA = 0.299, 0.587, 0.114
"""What red, green and blue give to grey (ITU-R BT.601, as in PyTorch's and Pillow's conversions)."""


class Augmentation(NamedTuple):
    """What may become of images of `image_shape`, in this order.

    Every second one on average is mirrored left to right if `flip`. It is moved by up to `shift` pixels down or up and
    as many right or left, all equally likely, where its border is repeated. Its colours change by factors from
    1 - jitter to 1 + jitter, each a draw: the brightness, about `black`; the contrast, about the image's mean grey; and
    in three channels the saturation, about each pixel's grey. A square of `cutout` pixels, whose centre may be any
    pixel, becomes `mean` where it lies in the image (DeVries and Taylor, 2017).
    """

    image_shape: tuple[int, ...]
    shift: int = 0
    flip: bool = False
    cutout: int = 0
    jitter: float = 0.0
    black: float = 0.0
    mean: float = 0.0

    @classmethod
    def of(
        cls, dataset: Dataset, standardised: bool, *, shift: int, flip: bool, cutout: int, jitter: float
    ) -> "Augmentation":
        """For training images of a data set, which may be standardised.

        Raises UserError where samples are no images, or too small to be moved or cut out so far.
        """
        if shift or flip or cutout or jitter:
            side = min(dataset.channels_first[1:])
            if shift >= side:
                raise UserError(f"shift: {shift}, expected less than the {side} pixels of a side")
            if cutout > side:
                raise UserError(f"cutout: {cutout}, expected no more than the {side} pixels of a side")
        black, mean = (-dataset.mean / (dataset.std or 1.0), 0.0) if standardised else (0.0, dataset.mean)
        return cls(dataset.image_shape, shift, flip, cutout, jitter, black, mean)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x, (batch, ...) of any shape with as many elements, changed; x itself where nothing may be.

        Draws are made on the generator's device, the CPU, so that they are the same whichever device x is on. They
        alone are copied to it: what they mean for each pixel is worked out there.
        """
        if not (self.shift or self.flip or self.cutout or self.jitter):
            return x
        height, width = self.image_shape[-2:]
        images = x.reshape(len(x), -1, height * width)
        if self.shift or self.flip:
            images = self._moved(images, generator)
        if self.jitter:
            images = self._jittered(images, generator)
        if self.cutout:
            images = images.masked_fill(self._cut(len(x), generator, x.device), self.mean)
        return images.view(x.shape)

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = self.image_shape[-2:]
        moves = torch.randint(-self.shift, self.shift + 1, (2, len(images), 1), generator=generator)
        down, right = moves.to(images.device, non_blocking=True)
        rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
        if self.flip:
            mirrored = torch.randint(2, (len(images), 1), generator=generator).bool()
            columns = torch.where(mirrored.to(images.device, non_blocking=True), width - 1 - columns, columns)
        source = (width * rows[:, :, None] + columns[:, None, :]).reshape(len(images), 1, -1)
        return images.gather(2, source.expand_as(images))

    def _jittered(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(3, len(images), 1, 1, generator=generator, dtype=torch.float64)
        brightness, contrast, saturation = ((1 - self.jitter) + 2 * self.jitter * draws).to(images, non_blocking=True)
        images = self.black + brightness * (images - self.black)
        grey = _grey(images).mean(dim=2, keepdim=True)
        images = grey + contrast * (images - grey)
        if images.shape[1] == 3:
            grey = _grey(images)
            images = grey + saturation * (images - grey)
        return images

    def _cut(self, samples: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Where squares are, (samples, 1, height * width)."""

        def inside() -> Iterator[Tensor]:
            for size in self.image_shape[-2:]:
                centre = torch.randint(size, (samples, 1), generator=generator).to(device, non_blocking=True)
                place = torch.arange(size, device=device) - (centre - self.cutout // 2)
                yield (place >= 0) & (place < self.cutout)

        rows, columns = inside()
        return (rows[:, :, None] & columns[:, None, :]).view(samples, 1, -1)


def _grey(images: Tensor) -> Tensor:
    """(batch, 1, pixels) of (batch, channels, pixels): luma of three channels, else the channels' mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
