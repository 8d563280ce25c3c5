"""`prograde evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..training import Split, UserError, accuracy, load, restore
from . import options


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A file that `prograde train --save` wrote.")],
    data: options.Data = "digits",
    model: options.TrustedModel = None,
    device: options.Device = "cpu",
) -> None:
    """Measure a trained network on test data.

    The weights are those of the epoch with the best validation accuracy; images are prepared as for its training.
    """
    where, _ = options.device_and_dtype(device, "float32")
    restored = restore(checkpoint, model)
    dataset = load(data)
    classes = restored.rule.num_classes
    if (dataset.image_shape, dataset.num_classes) != (restored.image_shape, classes):
        raise UserError(
            f"--data: {dataset.name} has images of {dataset.image_shape} and {dataset.num_classes} classes, "
            f"but '{checkpoint}' was trained on {restored.image_shape} and {classes}"
        )
    test = Split(restored.prepare(dataset.test.images).to(where), dataset.test.labels.to(where))
    share = accuracy(restored.rule.to(where), test)
    typer.echo(f"{100 * share:.2f} % of {len(test.labels)} test images of {dataset.name}")
