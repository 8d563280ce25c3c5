"""Training one job after another, with a log and with progress for whoever watches."""

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arrays import widened
from ..rules import CumulativeForwardForward, Rule, SymBa
from ..training import (
    Callback,
    Dataset,
    Epoch,
    History,
    Progress,
    TrainingError,
    UserError,
    build,
    confusion,
    files,
    first_filters,
    fit,
    layer_summary,
    margin_summary,
    unit_diagnostics,
)
from ..training.data.augmentation import Augmentation
from ..training.run import Run as Training
from ..training.watching import progress_bar
from .options import Job

Log = Callable[[dict[str, Any]], None]


class Run(NamedTuple):
    """One job trained from one seed; `error` says why training broke down, where it did, and there is no history."""

    job: Job
    seed: int
    history: History
    error: str | None = None


OURS = ("log.jsonl", "log.jsonl.partial", "results.json", "curves.png", "alignment.png", "margins.png", "layers.png")
"""What is written to a folder of results."""


def claim(folder: Path | None, *, overwrite: bool, resume: bool) -> list[Path]:
    """Makes the folder and sees that it can be written, before training begins. The files to `overwrite`.

    Earlier results are refused unless they are to be overwritten or resumed. Raises UserError, and OSError where the
    folder can't be written.
    """
    if folder is None:
        return []
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--output: '{folder}' is a file, expected a folder")
    there = [name for name in OURS if os.path.lexists(folder / name)]
    if there and not (overwrite or resume):
        raise UserError(
            f"--output: '{folder}' has results already ({there[0]}); expected another folder, --overwrite to replace "
            "them, or --resume to go on"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        files.prepare(folder / name)
    return [folder / name for name in there] if overwrite else []


@contextmanager
def log_file(folder: Path | None, records: Sequence[dict[str, Any]], replaced: Sequence[Path] = ()) -> Iterator[Log]:
    """A function that adds a line to `log.jsonl`, which is called `log.jsonl.partial` until it is complete.

    Begins with these records. The files that are `replaced` stay until the first line is added: a training that is
    refused loses nothing. Raises OSError where it can't be written.
    """
    if folder is None:
        yield lambda record: None
        return
    partial = folder / "log.jsonl.partial"
    begun = False

    def log(*added: dict[str, Any]) -> None:
        nonlocal begun
        if not begun:
            for path in replaced:
                path.unlink()
            files.write(partial, "".join(map(line, records)).encode())
            begun = True
        with open(partial, "a", encoding="utf-8") as file:
            file.writelines(map(line, added))

    yield log
    log()
    partial.replace(folder / "log.jsonl")


def line(record: dict[str, Any]) -> str:
    """A record as the log has it."""
    return json.dumps(record, allow_nan=False) + "\n"


def logged(folder: Path, settings: dict[str, Any], jobs: Sequence[Job]) -> tuple[list[Run], list[dict[str, Any]]]:
    """The runs that the log in a folder has whole, and their records.

    Raises UserError for no log, and for one of other settings than these.
    """
    path = _log_in(folder)
    if path is None:
        raise UserError(
            f"--resume: '{folder}' has no log to go on from; expected the --output of an interrupted compare"
        )
    by_name = {job.name: job for job in jobs}
    epochs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    runs: list[Run] = []
    records: list[dict[str, Any]] = []
    try:
        for record in check_log(folder, settings):
            if record["kind"] not in ("epoch", "run"):
                continue
            key = f"{record['rule']}:{record['hidden']}", record["seed"]
            own = epochs.setdefault(key, [])
            own.append(record)
            if record["kind"] == "run":
                if key[0] not in by_name or key[1] not in settings["seeds"]:
                    raise UserError(
                        f"--resume: '{path}' has a run of {key[0]}, seed {key[1]}, expected those asked for"
                    )
                history = History(
                    [Epoch(**{name: one[name] for name in Epoch.__dataclass_fields__}) for one in own[:-1]],
                    *((record["test_accuracy"], record["at_chance"]) if record["error"] is None else ()),
                )
                runs.append(Run(by_name[key[0]], key[1], history, record["error"]))
                records += own
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--resume: '{path}' is no log of prograde ({type(error).__name__}: {error})") from error
    return runs, records


def _log_in(folder: Path) -> Path | None:
    return next((folder / name for name in ("log.jsonl.partial", "log.jsonl") if (folder / name).is_file()), None)


def read_log(folder: Path, argument: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings in the log of a folder, and its records but for a last line that was cut off.

    Raises UserError, which begins with the argument that gave the folder, for no log and one of another kind.
    """
    path = _log_in(folder)
    if path is None:
        raise UserError(f"{argument}: '{folder}' has no log.jsonl; expected the --output of train or compare")
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        settings, *records = [json.loads(line) for line in lines if line.endswith("\n")]
        if settings["kind"] != "settings":
            raise ValueError(f"kind is {settings['kind']!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{argument}: '{path}' is no log of prograde ({type(error).__name__}: {error})") from error
    return settings, records


def check_log(folder: Path, settings: dict[str, Any], changed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records of the log in a folder, if there is one, but for its settings and a last line that was cut off.

    Raises UserError for settings of which a run would be another: of the rules in both, those `changed` apart.
    """
    path = _log_in(folder)
    if path is None:
        return []
    found, records = read_log(folder, "--output")
    try:
        asked = json.loads(json.dumps(settings))
        pairs = [(name, found[name], asked[name]) for name in ("command", "device", "dtype", "digest")]
        if settings["command"] == "train":
            old_rules, new_rules = ([job["rule"] for job in one["jobs"]] for one in (found, asked))
            pairs += [("rules", old_rules, new_rules), ("seeds", found["seeds"], asked["seeds"])]
        old_jobs = {(job["rule"], job["model"], *job["hidden"]): job for job in found["jobs"]}
        for job in asked["jobs"]:
            old = old_jobs.get((job["rule"], job["model"], *job["hidden"]), job)
            pairs += [(f"{job['rule']}'s {name}", old[name], job[name]) for name in job if name not in changed]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--output: '{path}' is no log of prograde ({type(error).__name__}: {error})") from error
    for name, old, new in pairs:
        if name == "digest" and old != new:
            raise UserError(
                f"--output: '{folder}' has results of data '{found.get('data')}' (SHA-256 {str(old)[:8]}), this "
                f"command uses '{asked['data']}' ({new[:8]}); expected the same --data, or another folder"
            )
        if old != new:
            raise UserError(f"--output: '{path}' has {name} {old}, expected {new} as asked for, or another folder")
    return records


def train_all(
    jobs: Sequence[Job],
    dataset: Dataset,
    seeds: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    log: Log,
    *,
    done: Sequence[Run] = (),
    on_run: Callable[[list[Run]], None] | None = None,
    **saving: Any,
) -> list[Run]:
    """Every job from every seed, but for those `done`. Raises UserError.

    With `on_run`, which is called after each run with all runs so far, training that breaks down is a run with an
    error; without, a TrainingError. `saving` is for `fit`.
    """
    runs: list[Run] = []
    known = {(run.job.name, run.seed): run for run in done}
    trainings = [(seed, job) for seed in seeds for job in jobs]
    with progress_bar(transient=True) as bar:
        epochs = sum(job.recipe.epochs for _, job in trainings)
        whole = bar.add_task("all, in epochs", total=epochs, visible=len(trainings) > 1, rate="", said="")
        for seed, job in trainings:
            if (job.name, seed) in known:
                runs.append(known[job.name, seed])
                bar.advance(whole, job.recipe.epochs)
                continue
            left = job.recipe.epochs

            def on_epoch(epoch: Epoch, job: Job = job, seed: int = seed) -> None:
                nonlocal left
                left -= 1
                log({"kind": "epoch", "rule": job.method, "hidden": job.hidden, "seed": seed, **asdict(epoch)})
                bar.advance(whole)

            rule = build(job.method, dataset, job.recipe, seed=seed, device=device, dtype=dtype)
            run, seen = Run(job, seed, History()), Seen(dataset, with_filters=seed == seeds[0])
            try:
                history = fit(
                    rule,
                    dataset,
                    recipe=job.recipe,
                    seed=seed,
                    device=device,
                    on_epoch=on_epoch,
                    callbacks=[seen, Progress(f"{job.method}, seed {seed}", bar=bar)],
                    alignment_every=0,
                    measure=measured,
                    **saving,
                )
                if history.interrupted is not None:
                    raise history.interrupted
                run = run._replace(history=history)
            except TrainingError as error:
                if on_run is None:
                    raise
                run = run._replace(error=str(error))
                bar.advance(whole, left)
            runs.append(run)
            log(_record(run) | seen.found)
            if on_run is not None:
                on_run(runs)
    return runs


def _record(run: Run) -> dict[str, Any]:
    """A run's end as the log has it."""
    found = {"kind": "run", "rule": run.job.method, "hidden": run.job.hidden, "seed": run.seed, "error": run.error}
    if run.error is None:
        found |= {"test_accuracy": run.history.test_accuracy, "at_chance": run.history.at_chance}
    return found


def measured(rule: Rule, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What is kept of each epoch: diagnostics of `units`, and `layers` of rules that score by layer.

    Also `margins` of rules whose goodness is a mean square, for which their summary is meant.
    """
    found: dict[str, Any] = {"units": unit_diagnostics(rule, x, y)}
    if hasattr(rule, "layer_outputs"):
        found["layers"] = layer_summary(rule, x, y)
    elif isinstance(rule, CumulativeForwardForward | SymBa):
        found["margins"] = margin_summary(rule, x, y)
    return found


FILTERS, CLASSES = 24, 100
"""How many of the first layer's filters are logged, and up to how many classes a confusion matrix is."""


class Seen(Callback):
    """What the log has of a finished run besides its accuracy: `confusion` on test data and first-layer `filters`."""

    def __init__(self, dataset: Dataset, with_filters: bool) -> None:
        self.dataset, self.with_filters = dataset, with_filters
        self.found: dict[str, Any] = {}

    def on_end(self, run: Training) -> None:
        if run.history.test_accuracy is None:
            return
        if run.rule.num_classes <= CLASSES and run.test is not None:
            self.found["confusion"] = confusion(run.rule, run.test.in_order()).tolist()
        if self.with_filters and len(self.dataset.image_shape) in (2, 3):
            filters = first_filters(run.rule, *self.dataset.channels_first)
            if filters is not None:
                self.found["filters"] = _encoded(filters)


def _encoded(filters: Tensor) -> dict[str, Any]:
    """The first of the filters (n, c, h, w) as bytes, each on a scale of its own: 0 is 128."""
    shown = widened(filters[:FILTERS])
    largest = shown.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
    pixels = (128 + 127 * shown / largest).round().byte().numpy(force=True)
    values = [base64.b64encode(image.tobytes()).decode() for image in pixels]
    return {"of": len(filters), "shape": list(filters.shape[1:]), "values": values}


def try_all(jobs: Sequence[Job], dataset: Dataset, device: torch.device, dtype: torch.dtype) -> None:
    """Builds every job once: what a rule can't train is to be refused first of all. Raises UserError."""
    for job in jobs:
        Augmentation.of(dataset, job.recipe.standardise, **job.recipe.augmentation)
        build(job.method, dataset, job.recipe, seed=0, device=device, dtype=dtype)


def checked_seeds(first: int, count: int) -> list[int]:
    """That many seeds from the first on. Raises UserError for none."""
    if count < 1:
        raise UserError(f"--seeds: {count}, expected at least 1")
    return list(range(first, first + count))
