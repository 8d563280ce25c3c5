"""`prograde train`."""

from pathlib import Path
from typing import Annotated

import typer

from ..training import UserError, checkpoint, load
from ..training.recipes import ALL_PRESETS, preset_of
from ..training.restore import check_model, recipe_of
from . import options, report, runs
from .configuration import Config


def train(
    rule: Annotated[
        str | None,
        typer.Argument(
            help=f"One of {', '.join(ALL_PRESETS)}.",
            show_default="that of the training that is resumed",
            autocompletion=lambda: list(ALL_PRESETS),
        ),
    ] = None,
    data: options.DataOrDigits = None,
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
    seed: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=options.RUNS,
            help="Fixes initial weights, batches, moves of images, masks and negatives.",
            min=0,
            max=2**63 - 1,
            show_default="0",
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(rich_help_panel=options.RUNS, help="float32 or float64.", metavar="DTYPE", show_default="float32"),
    ] = None,
    validation: options.Validation = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for log.jsonl, results.json and pictures; none of these may be there already, but for "
            "those of the training that is resumed.",
            show_default="none written",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint file, written after every epoch. What is there already is refused, unless it is resumed.",
            show_default="none written, or the one that is resumed",
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=options.RUNS,
            help="Write the checkpoint every so many steps too.",
            metavar="STEPS",
            min=1,
            show_default="after epochs",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to go on from; options not given are those that it has. More --epochs extend the "
            "training: its schedule then runs over the new total, from where it stands.",
            show_default="none",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier checkpoint and earlier results.")
    ] = False,
) -> None:
    """Train a network with one rule, by its own settings but for those given: `prograde rules RULE` shows them.

    The epoch with the best validation accuracy is chosen, and its weights are measured on the test data, once.
    """
    base = None
    if resume is not None:
        state = checkpoint.load(resume)
        base = recipe_of(state, resume)
        begun = state["settings"]
        check_model(base, model, resume)
        own = preset_of(begun["rule"], base.options)
        if rule in ALL_PRESETS and ALL_PRESETS[rule].rule.__name__ != begun["rule"]:
            raise UserError(f"rule: '{rule}', but '{resume}' is of {own}; expected that, or none")
        rule = own if rule is None else rule
        if data is None and begun["data"] != "digits":
            raise UserError(
                f"--data: '{resume}' was trained on '{begun['data']}'; give these data again, as in --data PATH"
            )
        save = resume if save is None else save
        seed = begun["seed"] if seed is None else seed
        dtype = begun["dtype"].removeprefix("torch.") if dtype is None else dtype
        validation = begun["samples"][1] if validation is None else validation
    if rule is None:
        raise UserError(f"rule: none given, expected one of {', '.join(ALL_PRESETS)}, or --resume")
    seed, dtype, data = seed or 0, dtype or "float32", "digits" if data is None else data
    jobs = options.jobs(
        [rule],
        data,
        hidden,
        base,
        option,
        settings,
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
    if checkpoint_every is not None and save is None:
        raise UserError(f"--checkpoint-every: {checkpoint_every}, but there is no checkpoint; expected --save FILE too")
    where, precision = options.device_and_dtype(device, dtype)
    dataset = load(data, validation=validation)
    runs.try_all(jobs, dataset, where, precision)
    if save is not None:
        try:
            checkpoint.claim(save, resume=resume, overwrite=overwrite)
        except checkpoint.CheckpointExists as error:
            raise UserError(
                f"--save: '{save}' is a checkpoint already; expected --resume {save} to go on with it, --overwrite to "
                "replace it, or another name"
            ) from error
    made_with = report.settings("train", jobs, dataset, [seed], where, precision)
    if output is not None and resume is not None and not overwrite:
        runs.check_log(output, made_with, changed=["epochs"])
    replaced = runs.claim(output, overwrite=overwrite, resume=resume is not None)
    with runs.log_file(output, [made_with], replaced) as log:
        try:
            done = runs.train_all(
                jobs, dataset, [seed], where, precision, log,
                checkpoint=save, checkpoint_every=checkpoint_every, resume=resume, overwrite=overwrite,
            )  # fmt: skip
        except KeyboardInterrupt as stop:
            if save is not None and save.exists():
                stop.add_note(f"the same command with --resume {save} goes on")
            raise
        report.finish(output, made_with, done, dataset, log)
