"""Training images moved and mirrored at random, drawn anew for every batch."""

import torch
from torch import Tensor

from ..errors import UserError
from .dataset import Dataset


def check_moves(shift: int, flip: bool, dataset: Dataset) -> None:
    """Raises UserError where samples are no images, or too small to be moved so far."""
    if shift or flip:
        side = min(dataset.channels_first[1:])
        if shift >= side:
            raise UserError(f"shift: {shift}, expected less than the {side} pixels of a side")


def augmented(x: Tensor, image_shape: tuple[int, ...], shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """x, (batch, ...) of any shape with as many elements, each image by a draw of its own.

    First every second image on average is mirrored left to right if `flip`; then each is moved by up to `shift` pixels
    down or up and as many right or left, all equally likely, where its border is repeated. Draws are made on the
    generator's device, the CPU, so that they are the same whichever device x is on.
    """
    if not shift and not flip:
        return x
    height, width = image_shape[-2:]
    images = x.reshape(len(x), -1, height * width)
    down, right = torch.randint(-shift, shift + 1, (2, len(x), 1), generator=generator)
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    if flip:
        mirrored = torch.randint(2, (len(x), 1), generator=generator).bool()
        columns = torch.where(mirrored, width - 1 - columns, columns)
    source = (width * rows[:, :, None] + columns[:, None, :]).reshape(len(x), 1, -1).to(x.device)
    return images.gather(2, source.expand_as(images)).view(x.shape)
