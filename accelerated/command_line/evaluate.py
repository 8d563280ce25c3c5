"""`prograde evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..training import Split, UserError, accuracy, load, restore
from ..training import checkpoint as checkpoints
from ..training.data.parts import listed
from . import options


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A file that `prograde train --save` wrote.")],
    data: options.DataOrDigits = None,
    model: options.TrustedModel = None,
    device: options.Device = "cpu",
) -> None:
    """Measure a trained network on test data.

    The weights are those of the epoch with the best validation accuracy; images are prepared as for its training.
    """
    where, _ = options.device_and_dtype(device, "float32")
    restored = restore(checkpoint, model)
    trained_on = checkpoints.load(checkpoint)["settings"]["data"]
    if data is None and trained_on != "digits":
        raise UserError(f"--data: '{checkpoint}' was trained on '{trained_on}'; say what to measure on, as --data PATH")
    dataset = load("digits" if data is None else data)
    restored.check(dataset)
    if dataset.classes != restored.classes:
        raise UserError(
            f"--data: {dataset.name} has classes {listed(dataset.classes)}, but '{checkpoint}' was trained on "
            f"{listed(restored.classes)}"
        )
    test = Split(restored.prepare(dataset.test.images).to(where), dataset.test.labels.to(where))
    share = accuracy(restored.rule.to(where), test)
    typer.echo(f"{100 * share:.2f} % of {len(test.labels)} test images of {dataset.name}")
