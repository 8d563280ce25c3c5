"""`prograde compare`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ..training import UserError, load
from ..training.recipes import ALL_PRESETS, FURTHER_PRESETS, PRESETS
from . import options, report, runs
from .configuration import Config


def compare(
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            help="Rules, each with widths or a network of its own if you like, as in pepita:1024 or "
            f"mono-forward:lenet. Beside those that are compared unless named: {', '.join(FURTHER_PRESETS)}.",
            show_default=" ".join(PRESETS),
            autocompletion=lambda: list(ALL_PRESETS),
        ),
    ] = None,
    data: options.Data = "digits",
    model: options.Model = None,
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
    cutout: options.Cutout = None,
    jitter: options.Jitter = None,
    option: options.Option = None,
    settings: options.Set = None,
    config: Config = None,
    seed: options.Seed = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, from --seed on.")] = 3,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    validation: options.Validation = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for log.jsonl, results.json and pictures; none of these may be there already.",
            show_default="runs/<data>-<time>",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what is in --output: runs that it has are not repeated.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results in --output.")] = False,
) -> None:
    """Train networks with several rules, each with its own best-known settings, and print a table.

    A rule keeps its own settings, network and activation included, except for the options given here: `prograde rules
    RULE` shows them. Test accuracy is that of the epoch that is best on validation data: mean and sample standard
    deviation over the seeds. "x backprop" is the time of an epoch beside that of backprop with the same network and
    activation in the same run. A rule that diverges is a row that says so, and the exit code is 3. results.json is
    written after each run: an interruption keeps the finished ones.
    """
    if resume and (overwrite or output is None):
        raise UserError("--resume: expected with --output, the folder to go on with, and without --overwrite")
    jobs = options.jobs(
        rules or list(PRESETS),
        data,
        hidden,
        option=option,
        settings=settings,
        model=model,
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
        cutout=cutout,
        jitter=jitter,
    )
    all_seeds = runs.checked_seeds(seed, seeds)
    where, precision = options.device_and_dtype(device, dtype)
    dataset = load(data, validation=validation)
    runs.try_all(jobs, dataset, where, precision)
    folder = options.output_folder(output, data, time.strftime("%Y%m%d-%H%M%S"))
    made_with = report.settings("compare", jobs, dataset, all_seeds, where, precision)
    done, records = runs.logged(folder, made_with, jobs) if resume else ([], [])
    replaced = runs.claim(folder, overwrite=overwrite, resume=resume)

    def on_run(so_far: list[runs.Run]) -> None:
        report.write_results(folder, made_with, so_far, dataset)

    with runs.log_file(folder, [made_with, *records], replaced) as log:
        try:
            found = runs.train_all(jobs, dataset, all_seeds, where, precision, log, done=done, on_run=on_run)
        except KeyboardInterrupt as stop:
            if (folder / "log.jsonl.partial").exists():
                stop.add_note(f"the same command with --output {folder} --resume goes on after the last finished run")
            raise
        report.finish(folder, made_with, found, dataset, log)
    if any(run.error is not None for run in found):
        raise typer.Exit(3)
