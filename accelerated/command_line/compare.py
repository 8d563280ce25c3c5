"""`prograde compare`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ..training import METHODS, load
from . import options, report, runs


def compare(
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            help="Rules, each with widths of its own if you like, as in pepita:1024 or forward-forward:1000-1000-1000.",
            show_default=" ".join(METHODS),
        ),
    ] = None,
    data: options.Data = "digits",
    hidden: options.Hidden = None,
    activation: options.Activation = None,
    epochs: options.Epochs = None,
    batch: options.Batch = None,
    optimizer: options.Optimizer = None,
    learning_rate: options.LearningRate = None,
    momentum: options.Momentum = None,
    weight_decay: options.WeightDecay = None,
    dropout: options.Dropout = None,
    shift: options.Shift = None,
    flip: options.Flip = None,
    option: options.Option = None,
    seed: options.Seed = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, from --seed on.")] = 3,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    validation: options.Validation = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for log.jsonl, results.json and pictures, replaced there.", show_default="runs/<data>-<time>"
        ),
    ] = None,
) -> None:
    """Train networks with several rules, each with its own best-known settings, and print a table.

    A rule keeps its own settings, network and activation included, except for the options given here. Test accuracy is
    that of the epoch that is best on validation data: mean and sample standard deviation over the seeds. "x backprop"
    is the time of an epoch beside that of backprop with the same network and activation in the same run.
    """
    jobs = options.jobs(
        rules or list(METHODS),
        data,
        hidden,
        option=option,
        activation=activation,
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        dropout=dropout,
        shift=shift,
        flip=flip,
    )
    all_seeds = runs.checked_seeds(seed, seeds)
    where, precision = options.device_and_dtype(device, dtype)
    dataset = load(data, validation=validation)
    runs.try_all(jobs, dataset, where, precision)
    folder = options.output_folder(output, data, time.strftime("%Y%m%d-%H%M%S"))
    settings = report.settings("compare", jobs, dataset, all_seeds, where, precision)
    with runs.log_file(folder) as log:
        log(settings)
        done = runs.train_all(jobs, dataset, all_seeds, where, precision, log)
        report.finish(folder, settings, done, dataset, log)
