"""`prograde predict`."""

import csv
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from ..training import UserError, files, load, restore
from ..training.data.dataset import path_and_label
from ..training.data.image_folders import ENDS, find_part, read_images
from ..training.data.reading import reading
from ..training.data.tables import TABLES, read_features
from ..training.evaluation import EVALUATION_BATCH
from ..training.restore import Restored
from . import options


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A file that `prograde train --save` wrote.")],
    data: Annotated[
        str,
        typer.Argument(
            help="An image file, a folder of images, a table with the columns of training, an .npy of samples "
            "(n, ...), or a data set as for train, of which the test part is taken.",
        ),
    ],
    scores: Annotated[bool, typer.Option("--scores", help="Add the score of every class.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write.", metavar="FILE", show_default="standard output")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
    model: options.TrustedModel = None,
    device: options.Device = "cpu",
) -> None:
    """Print the class of each sample, as CSV: the sample, and the class of the highest score.

    The weights are those of the epoch with the best validation accuracy; samples are prepared as for its training.
    Images have to be of its size. Bytes stand for 0..1, as in training; other numbers are taken as they are.
    """
    where, _ = options.device_and_dtype(device, "float32")
    if output is not None and os.path.lexists(output) and not overwrite:
        raise UserError(f"--output: '{output}' is there already; expected another name, or --overwrite to replace it")
    if output is not None:
        files.prepare(output)
    restored = restore(checkpoint, model)
    names, x = _read(data, restored)
    rule = restored.rule.to(where)
    with torch.no_grad():
        found = torch.cat([rule(part.to(where)).cpu() for part in x.split(EVALUATION_BATCH)])
    text = _table(names, found, restored.classes, scores)
    if output is None:
        sys.stdout.write(text)
    else:
        files.write(output, text.encode())


def _read(data: str, restored: Restored) -> tuple[list[str], Tensor]:
    """Names of the samples, and these as the rule takes them. Raises UserError."""
    path = Path(data)
    if path.suffix.lower() == ".npy" and path.is_file():
        with reading(path, "not a whole .npy file"):
            array = np.load(path, allow_pickle=False)
        samples = _numbers(data, array)
    elif path.suffix.lower() in ENDS or (path.is_dir() and _has_images(path)):
        names, images = read_images(path)
        if images.ndim == 3 and len(restored.image_shape) == 3:  # grey ones for a network that was trained on colours
            images = np.repeat(images[:, None], restored.image_shape[0], axis=1)
        x = _prepared(data, torch.from_numpy(images).float() / 255, restored)
        return names, x
    elif (table := path_and_label(data, None)[0]).suffix.lower() in TABLES and table.is_file() and restored.columns:
        samples = torch.from_numpy(read_features(table, restored.columns))
    else:
        dataset = load(data)
        restored.check(dataset)
        samples = dataset.test.images
    return [str(number) for number in range(len(samples))], _prepared(data, samples, restored)


def _has_images(folder: Path) -> bool:
    """Whether it has images, and is no data set in two parts."""
    if find_part(folder, "train") is not None:
        return False
    return any(path.suffix.lower() in ENDS for path in folder.rglob("*"))


def _numbers(data: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """Samples, bytes of them as 0..1. Raises UserError."""
    if array.dtype.kind not in "biuf" or array.ndim < 2 or 0 in array.shape:
        raise UserError(f"{data}: {array.dtype} of shape {array.shape}, expected real numbers (n, ...)")
    values = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    if not np.isfinite(values).all():
        raise UserError(f"{data}: NaN or infinity in it, expected finite numbers")
    return torch.from_numpy(values)


def _prepared(data: str, samples: Tensor, restored: Restored) -> Tensor:
    """Raises UserError, with what was read, for samples that the network was not trained for."""
    shape, expected = tuple(samples.shape[1:]), restored.image_shape
    flat = (torch.Size(expected).numel(),)
    if shape not in (expected, (1, *expected), flat):
        raise UserError(f"{data}: samples of shape {shape}, but the network was trained on {expected}")
    return restored.prepare(samples, data)


def _table(names: list[str], scores: Tensor, classes: tuple[str, ...], with_scores: bool) -> str:
    """CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "class", *(classes if with_scores else ())])
    for name, row in zip(names, scores, strict=True):
        numbers = [f"{score:.6g}" for score in row.tolist()] if with_scores else []
        writer.writerow([name, classes[int(row.argmax())], *numbers])
    return text.getvalue()
