"""`prograde compare`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..training import UserError, files, load
from ..training.recipes import ALL_PRESETS, FURTHER_PRESETS, PRESETS
from . import options, report, runs
from . import search as searching
from .configuration import Config


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Adds to an interruption how to go on, where there is something to go on with."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if (folder / "log.jsonl.partial").exists():
            stop.add_note(f"the same command with --output {folder} --resume goes on after the last finished run")
        raise


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
    search: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Learning rates to try first, as many for every rule: a run of the first seed at each; the best on "
            "validation data takes the place of the rule's own.",
        ),
    ] = None,
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
    activation in the same run. With --search every rule has the same budget for its learning rate; its other settings
    stay its own. A rule that diverges is a row that says so, and the exit code is 3. results.json is written after each
    run: an interruption keeps the finished ones.
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
    if search is not None and (learning_rate is not None or "learning_rate" in options.recipe_settings(settings or ())):
        raise UserError(f"--search: {search}, but a learning rate is given too; expected one of them")
    all_seeds = runs.checked_seeds(seed, seeds)
    where, precision = options.device_and_dtype(device, dtype)
    dataset = load(data, validation=validation)
    runs.try_all(jobs, dataset, where, precision)
    folder = options.output_folder(output, data, time.strftime("%Y%m%d-%H%M%S"))
    candidates = searching.candidates(jobs, search or 0)
    made_with = report.settings("compare", jobs, dataset, all_seeds, where, precision)
    tried = searching.logged(folder, made_with, candidates) if resume else []
    replaced = [] if resume else runs.claim(folder, overwrite=overwrite, resume=False)

    def on_trial(so_far: list[searching.Trial]) -> None:
        if len(so_far) < len(candidates):
            files.write(folder / "log.jsonl.partial", runs.line(made_with | searching.record(so_far)).encode())

    with going_on(folder):
        found = searching.trials(candidates, dataset, seed, where, precision, tried, on_trial)
    if found:
        jobs = searching.settled(jobs, found)
        print("\n".join(searching.lines(jobs, found, seed)))
        made_with = report.settings("compare", jobs, dataset, all_seeds, where, precision) | searching.record(found)
    done, records = runs.logged(folder, made_with, jobs) if resume and len(tried) == len(found) else ([], [])
    if resume:
        runs.claim(folder, overwrite=False, resume=True)

    def on_run(so_far: list[runs.Run]) -> None:
        report.write_results(folder, made_with, so_far, dataset)

    with runs.log_file(folder, [made_with, *records], replaced) as log:
        with going_on(folder):
            trained = runs.train_all(jobs, dataset, all_seeds, where, precision, log, done=done, on_run=on_run)
        report.finish(folder, made_with, trained, dataset, log)
    if any(run.error is not None for run in trained):
        raise typer.Exit(3)
