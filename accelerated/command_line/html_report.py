"""`prograde report`: one page, with everything in it, of what one run or several have come to."""

import base64
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..training import UserError, files
from ..training.diagnostics.unit_diagnostics import UNIT_DIAGNOSTICS
from ..training.networks import MLP
from .charts import (
    Axis,
    Line,
    axis_of,
    common_axis,
    error_shares,
    matrix,
    panel,
    percent,
    png,
    strip,
    strip_axis,
)
from .report import spread
from .runs import read_log

LABELLED = 9
"""Units of a network up to which each line has its own label."""

BEHIND = 8
"""Jobs up to which each error is seen against all others."""

CONFUSED = 5
"""Pairs of classes that are named beside a confusion matrix."""


SETTINGS = "data", "digest", "samples", "seeds", "command", "dtype", "device", "device_name", "threads", "versions"
EPOCH = "epoch", "loss", "validation_accuracy", "seconds", "samples", "measured"
"""What the page needs of a log's settings and of each of its epochs."""


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders that `prograde train --output` or `prograde compare` wrote.", metavar="RUN..."),
    ],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier page.")] = False,
) -> None:
    """Write a page about one run or several: tables, curves, layers, confusion matrices and first-layer filters.

    The page is one file that needs no other and no network. Runs on the same data are compared with one another. A run
    that was interrupted is shown as far as it came.
    """
    studies = [read(folder) for folder in runs]
    if output.exists() and not overwrite:
        raise UserError(f"--output: '{output}' is there already; expected another name, or --overwrite")
    files.prepare(output)
    try:
        text = page(studies)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of values of other kinds
        raise UserError(f"RUN: a log is none of prograde ({type(error).__name__}: {error})") from error
    files.write(output, text.encode())
    typer.echo(output)


@dataclass
class Trained:
    """One job from one seed as the log has it; `end` is its last record, empty where it was interrupted."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return bool(self.end) and self.end["error"] is None

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch whose weights were kept."""
        return max(self.epochs, key=lambda epoch: epoch["validation_accuracy"], default=None)


@dataclass
class Job:
    """A rule and its network over its seeds; `label` tells it from the others on the page."""

    rule: str
    network: str
    folder: str
    recipe: dict[str, Any]
    seeds: dict[int, Trained] = field(default_factory=dict)
    ratio: float | None = None
    label: str = ""

    @property
    def whole(self) -> list[Trained]:
        return [trained for trained in self.seeds.values() if trained.is_whole]

    @property
    def test(self) -> list[float]:
        """Test accuracies in percent."""
        return [100 * trained.end["test_accuracy"] for trained in self.whole]

    @property
    def epochs(self) -> list[tuple[dict[str, Any], ...]]:
        """Each epoch of all seeds, as far as all have it: of those that have not broken down, or all where none is."""
        sound = [trained.epochs for trained in self.seeds.values() if not trained.end.get("error")]
        return list(zip(*(sound or [trained.epochs for trained in self.seeds.values()]), strict=False))

    def line(self, value: Callable[[dict[str, Any]], float | None], **settings: Any) -> Line:
        """The mean over seeds, and a band from the least to the greatest."""
        of_epochs = [[value(epoch) for epoch in of_seeds] for of_seeds in self.epochs]
        known = [[v for v in of_epoch if v is not None] for of_epoch in of_epochs]
        means = [statistics.fmean(values) if values else None for values in known]
        banded = len(of_epochs) > 1 and all(len(values) > 1 for values in known)
        low, high = ([min(v) for v in known], [max(v) for v in known]) if banded else ([], [])
        return Line(range(1, len(means) + 1), means, **{"low": low, "high": high, **settings})


@dataclass
class Study:
    """A folder of results: what was asked for, and the jobs in the order in which they first ran."""

    folder: str
    settings: dict[str, Any]
    jobs: list[Job]


def read(folder: Path) -> Study:
    """What the log in a folder has. Raises UserError for no log, a damaged one, and one without an epoch."""
    found, records = read_log(folder, "RUN")
    jobs: dict[tuple[str, str], Job] = {}
    try:
        _check_has(found, SETTINGS)
        recipes = {(job["rule"], _network(job)): job for job in found["jobs"]}
        for record in records:
            if record["kind"] == "result":
                job = jobs[record["rule"], _hidden(record["network"])]
                job.ratio = record["ratio"]
                continue
            key = record["rule"], record["hidden"]
            job = jobs.setdefault(key, Job(*key, folder.resolve().name, recipes[key]))
            trained = job.seeds.setdefault(record["seed"], Trained())
            if record["kind"] == "epoch":
                _check_has(record, EPOCH)
                trained.epochs.append(record)
            else:
                trained.end = record
        study = Study(folder.resolve().name, found, list(jobs.values()))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"RUN: the log in '{folder}' is none of prograde ({type(error).__name__}: {error})") from error
    if not any(trained.epochs for job in study.jobs for trained in job.seeds.values()):
        raise UserError(f"RUN: '{folder}' has no finished epoch; expected results of train or compare")
    return study


def _check_has(record: dict[str, Any], names: Sequence[str]) -> None:
    """Raises KeyError for a name that is not in the record, as one of another version may not be."""
    for name in names:
        record[name]


def _network(job: dict[str, Any]) -> str:
    """What epochs and runs call it: its name, of an mlp the widths of its hidden layers."""
    return job["model"] if job["model"] != MLP else "-".join(map(str, job["hidden"])) or "none"


def _hidden(network: str) -> str:
    """The same of a result, which has all widths of an mlp."""
    layers = network.split("-")
    return "-".join(layers[1:-1]) or "none" if all(layer.isdigit() for layer in layers) else network


def _label(jobs: Sequence[Job]) -> None:
    """Gives each job a label: its rule, with its network and folder where these tell it from another."""
    for job in jobs:
        several = len({other.network for other in jobs if other.rule == job.rule}) > 1
        alike = [other for other in jobs if (other.rule, other.network) == (job.rule, job.network)]
        parts = [job.rule, job.network if several else "", job.folder if len(alike) > 1 else ""]
        job.label = " · ".join(filter(None, parts))
    labels = [job.label for job in jobs]
    for index, job in enumerate(jobs):  # folders may be alike too
        before = labels[:index].count(job.label)
        job.label += f" ({before + 1})" if before else ""


def page(studies: Sequence[Study]) -> str:
    """The page, as HTML. Studies of the same data are one part of it."""
    by_data: dict[str, list[Study]] = {}
    for study in studies:
        by_data.setdefault(study.settings["digest"], []).append(study)
    names = list(dict.fromkeys(study.settings["data"] for study in studies))
    rules = list(dict.fromkeys(job.rule for study in studies for job in study.jobs))
    title = f"{', '.join(rules) if len(rules) < 4 else f'{len(rules)} learning rules'} on {' and '.join(names)}"
    body = "".join(_part(group, len(by_data) > 1) for group in by_data.values())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>{body}{_foot(studies)}</main></body></html>\n"
    )


def _part(studies: Sequence[Study], titled: bool) -> str:
    """Everything about one data set."""
    settings = studies[0].settings
    jobs = [job for study in studies for job in study.jobs]
    _label(jobs)
    heading = f"<h2>{escape(settings['data'])}</h2>" if titled else ""
    sections = [_lede(settings, jobs), _results(jobs), _errors(settings, jobs), _losses(jobs), _units(jobs)]
    sections += [_confusions(settings, jobs), _filters(jobs), _recipes(studies)]
    return heading + "".join(sections)


def _section(title: str, remark: str, content: str) -> str:
    note = f'<p class="note">{remark}</p>' if remark else ""
    return f"<section><h3>{title}</h3>{note}{content}</section>\n" if content else ""


def _figure(title: str, value: str, chart: str) -> str:
    said = f" <span>{escape(value)}</span>" if value else ""
    return f"<figure><figcaption>{escape(title)}{said}</figcaption>{chart}</figure>"


def _lede(settings: dict[str, Any], jobs: Sequence[Job]) -> str:
    samples = settings["samples"]
    counts = f"{samples['train']:,} training, {samples['validation']:,} validation and {samples['test']:,} test samples"
    ranked = sorted((job for job in jobs if job.test), key=lambda job: -statistics.fmean(job.test))
    said = ""
    if ranked:
        best, reference = ranked[0], next((job for job in ranked if job.rule == "backprop"), None)
        said = f"<b>{escape(best.label)}</b> has <b>{_spread(best)}\u00a0%</b> of the test samples right"
        if reference is not None and reference is not best:
            said += f", {escape(reference.label)} {_spread(reference)}\u00a0%"
        elif len(ranked) > 1:
            said += f", {escape(ranked[1].label)} {_spread(ranked[1])}\u00a0%"
        said += ". "
    classes = len(settings.get("classes") or ())
    of_classes = f" in {classes} classes" if classes else ""
    return f'<p class="lede">{said}</p><p class="note">{counts}{of_classes}.</p>'


def _spread(job: Job) -> str:
    return spread([value / 100 for value in job.test])


def _results(jobs: Sequence[Job]) -> str:
    """The table, best first."""
    axis = axis_of(value for job in jobs for value in job.test)
    ranked = sorted(jobs, key=lambda job: -statistics.fmean(job.test) if job.test else 1)
    rows = {job.label: _cells(job, axis) for job in ranked}
    heads = [head for head in next(iter(rows.values())) if any(cells[head] for cells in rows.values())]
    body = "".join(
        f'<tr><th scope="row">{escape(job.label)}{_remark(job)}</th>'
        + "".join(f"<td{_right(head)}>{rows[job.label][head] or '–'}</td>" for head in heads)
        + "</tr>"
        for job in ranked
    )
    titles = [strip_axis(axis) if head == DOTS else head for head in heads]
    top = "".join(f'<th scope="col"{_right(head)}>{title}</th>' for head, title in zip(heads, titles, strict=True))
    table = f'<table><thead><tr><th scope="col">rule</th>{top}</tr></thead><tbody>{body}</tbody></table>'
    several = max(len(job.seeds) for job in jobs) > 1
    remark = "Accuracy of the weights of the best validation epoch, measured once on test data"
    remark += "; mean ± sample standard deviation, a dot for each seed." if several else "."
    return _section("Test accuracy", remark, f'<div class="wide">{table}</div>')


DOTS, NETWORK = "dots", "network"
"""Columns of the table that have no numbers."""


def _cells(job: Job, axis: Axis) -> dict[str, str]:
    """A row of the table, by the columns' heads; empty where nothing is known."""
    kept = [trained.best for trained in job.whole if trained.best is not None]
    later = [epoch for trained in job.seeds.values() for epoch in trained.epochs[1:] or trained.epochs]
    rates = [epoch["samples"] / epoch["seconds"] for epoch in later]
    return {
        "test, %": f"<b>{_spread(job)}</b>" if job.test else "",
        DOTS: strip(job.test, axis, f"test accuracy of {job.label}: {_spread(job)} %") if job.test else "",
        NETWORK: escape(job.network),
        "validation, %": spread([epoch["validation_accuracy"] for epoch in kept]) if kept else "",
        "best epoch": f"{statistics.median(epoch['epoch'] for epoch in kept):g} of {len(job.epochs)}" if kept else "",
        "s an epoch": f"{statistics.median(epoch['seconds'] for epoch in later):.3g}" if later else "",
        "samples/s": f"{statistics.median(rates):,.0f}" if rates else "",
        "× backprop": "" if job.ratio is None else f"{job.ratio:.2f}",
    }


def _right(head: str) -> str:
    """Numbers stand at the right of their column."""
    return "" if head in (DOTS, NETWORK) else ' class="n"'


def _remark(job: Job) -> str:
    """What the table has to say of seeds without a result, or at chance."""
    ends = {seed: trained.end for seed, trained in job.seeds.items()}
    kinds = {
        "diverged": [seed for seed, end in ends.items() if end.get("error") is not None],
        "at chance": [seed for seed, end in ends.items() if end.get("at_chance")],
        "interrupted": [seed for seed, end in ends.items() if not end],
    }
    said = [f"{kind}: seed {', '.join(map(str, seeds))}" for kind, seeds in kinds.items() if seeds]
    return f'<span class="warn">{escape("; ".join(said))}</span>' if said else ""


def _errors(settings: dict[str, Any], jobs: Sequence[Job]) -> str:
    """Validation errors, a panel for each job with the others behind it, all on the same axes."""

    def error(epoch: dict[str, Any]) -> float:
        return 100 * (1 - epoch["validation_accuracy"])

    jobs = [job for job in jobs if job.epochs]
    lines = [job.line(error) for job in jobs]
    lowest = {id(line): min(value for value in line.y if value is not None) for line in lines}
    if all(len(line.x) < 2 for line in lines):
        return ""
    least = 50 / settings["samples"]["validation"]  # half a sample
    common = common_axis(lines, logarithmic=True)
    low, high = max(common.low, least), min(common.high, 100.0)
    axis = Axis(low, high if high > low else 2 * low, True)
    figures, few = [], len(jobs) <= BEHIND
    for job, line in zip(jobs, lines, strict=True):
        best = lowest[id(line)]
        behind = lines if few else [min(lines, key=lambda other: lowest[id(other)])]
        aside = [other._replace(aside=True, low=(), high=()) for other in behind if other is not line]
        own = line._replace(label=f"{line.y[-1]:.2f} %")
        name = f"validation error of {job.label} over {len(line.x)} epochs, {best:.2f} % at best"
        chart = panel([*aside, own], axis, name=name, written=percent)
        figures.append(_figure(job.label, f"{best:.2f} % at best", chart))
    grey = ", the others in grey" if few else ", that of the best in grey"
    remark = "On validation data, after each epoch" + (grey if len(jobs) > 1 else "")
    banded = ". Bands reach from the best seed to the worst" if any(line.low for line in lines) else ""
    return _section("Validation error", f"{remark}{banded}.", f'<div class="panels">{"".join(figures)}</div>')


def _losses(jobs: Sequence[Job]) -> str:
    """Training losses, each on an axis of its own, with that on validation data where it was measured."""
    figures = []
    for job in jobs:
        training = job.line(lambda epoch: epoch["loss"])
        held_out = job.line(lambda epoch: epoch.get("validation_loss"), aside=True)
        lines = [training._replace(label="training")]
        if any(value is not None for value in held_out.y):
            lines.append(held_out._replace(label="validation", low=(), high=()))
        if len(training.x) > 1:
            name = f"loss of {job.label} over {len(training.x)} epochs"
            figures.append(_figure(job.label, "", panel(lines, common_axis(lines), name=name)))
    remark = "The mean of each epoch, by the rule's own measure: not to be compared between rules."
    return _section("Loss", remark, f'<div class="panels">{"".join(figures)}</div>' if figures else "")


def _unit_values(job: Job) -> dict[str, dict[str, Line]]:
    """By diagnostic, then by unit."""
    first = next(iter(job.seeds.values())).epochs[:1]
    measured = first[0]["measured"].get("units", {}) if first else {}
    units = list(measured)
    found: dict[str, dict[str, Line]] = {}
    for diagnostic in UNIT_DIAGNOSTICS:
        for index, unit in enumerate(units):
            if diagnostic in measured[unit]:

                def value(epoch: dict[str, Any], unit: str = unit, diagnostic: str = diagnostic) -> float | None:
                    return epoch["measured"].get("units", {}).get(unit, {}).get(diagnostic)

                every = -(-len(units) // LABELLED)
                shown = index % every == 0 or index == len(units) - 1
                label = (str(index + 1) if unit.isdigit() else unit) if shown else ""
                shade = index / max(1, len(units) - 1)
                found.setdefault(diagnostic, {})[unit] = job.line(value, label=label, shade=shade, low=(), high=())
    return found


UNIT_AXES: dict[str, dict[str, Any]] = {
    "alignment": {"most": 1.0, "least": 0.0},
    "update_norm": {"logarithmic": True},
    "defect": {"logarithmic": True},
    "dead": {"most": 0.01, "least": 0.0},
    "class_separation": {"most": 0.5, "least": 0.0},
}
"""How the axes of diagnostics are chosen; others have room for what was measured."""


def _units(jobs: Sequence[Job]) -> str:
    """A row of panels for each job, a panel for each diagnostic, a line for each unit."""
    rows = []
    for job in jobs:
        figures = []
        for diagnostic, by_unit in _unit_values(job).items():
            lines = list(by_unit.values())
            axis = common_axis(lines, **UNIT_AXES.get(diagnostic, {}))
            name = f"{diagnostic.replace('_', ' ')} of the units of {job.label}"
            chart = panel(lines, axis, name=name, width=220, height=150, zero=True)
            figures.append(_figure(diagnostic.replace("_", " "), "", chart))
        if figures:
            rows.append(f'<h4>{escape(job.label)}</h4><div class="panels small">{"".join(figures)}</div>')
    said = "; ".join(f"<i>{name.replace('_', ' ')}</i>, {what}" for name, what in UNIT_DIAGNOSTICS.items())
    remark = f"On training data after each epoch, mean over seeds, layers from the first (dark) to the last: {said}."
    return _section("Layers", remark.replace("|W W^T - I|", "|W Wᵀ − I|"), "".join(rows))


def _confusions(settings: dict[str, Any], jobs: Sequence[Job]) -> str:
    figures, found = [], {}
    for job in jobs:
        counted = [trained.end["confusion"] for trained in job.whole if "confusion" in trained.end]
        if counted:
            found[job.label] = np.sum(counted, axis=0)
    darkest = max((error_shares(counts).max() for counts in found.values()), default=0.0) or 1.0
    for label, counts in found.items():
        classes = settings.get("classes") or [str(index) for index in range(len(counts))]
        wrong = counts.sum() - counts.trace()
        name = f"confusion matrix of {label}, {wrong} of {counts.sum()} wrong"
        chart = matrix(counts, classes, name, darkest) + _confused(counts, classes)
        figures.append(_figure(label, f"{wrong:,} of {counts.sum():,} wrong", chart))
    remark = "On test data, all seeds together. Errors are shaded by their share of the true class."
    return _section("Confusion", remark, f'<div class="panels matrices">{"".join(figures)}</div>' if figures else "")


def _confused(counts: Any, classes: Sequence[str]) -> str:
    """The commonest errors in words."""
    errors = counts * (1 - np.eye(len(counts), dtype=int))
    order = np.argsort(-errors, axis=None, kind="stable")[:CONFUSED]
    pairs = [divmod(int(index), len(counts)) for index in order if errors.flat[index]]
    said = [f"{escape(classes[i])} as {escape(classes[j])} ({errors[i, j]} of {counts[i].sum()})" for i, j in pairs]
    return f'<p class="note">{"; ".join(said)}</p>' if said else ""


def _filters(jobs: Sequence[Job]) -> str:
    figures = []
    for job in jobs:
        seen = [(seed, trained.end["filters"]) for seed, trained in job.seeds.items() if "filters" in trained.end]
        for seed, filters in seen[:1]:
            count = f"{len(filters['values'])} of {filters['of']}, seed {seed}"
            images = f'<div class="filters">{"".join(_images(filters, job.label))}</div>'
            figures.append(_figure(job.label, count, images))
    remark = "Weights of the first layer's units as images, each on a scale of its own: grey is 0, white positive."
    return _section("First-layer filters", remark, f'<div class="panels">{"".join(figures)}</div>' if figures else "")


def _images(filters: dict[str, Any], label: str) -> Iterator[str]:
    channels, height, width = filters["shape"]
    for index, text in enumerate(filters["values"], 1):
        pixels = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(channels, height, width)
        image = base64.b64encode(png(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))).decode()
        yield f'<img src="data:image/png;base64,{image}" alt="filter {index} of {escape(label)}">'


def _recipes(studies: Sequence[Study]) -> str:
    """How each job was trained: what differs in a table, what is common in a line."""
    jobs = [job for study in studies for job in study.jobs]
    rows = {
        name: [_written(job.recipe.get(name)) for job in jobs]
        for name in dict.fromkeys(name for job in jobs for name in job.recipe if name not in ("rule", "hidden"))
    }
    differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
    alike = [f"{name.replace('_', ' ')} {values[0]}" for name, values in rows.items() if name not in differing]
    head = "".join(f'<th scope="col">{escape(job.label)}</th>' for job in jobs)
    body = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, values in differing.items()
    )
    table = f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    content = (
        table if differing else ""
    ) + f'<p class="note">{"In all: " if differing else ""}{escape(", ".join(alike))}.</p>'
    return _section("Settings", "What differs between the trainings." if differing else "", content)


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(of)}" for name, of in value.items()) or "–"
    if isinstance(value, list):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _foot(studies: Sequence[Study]) -> str:
    """Where the numbers come from."""
    lines = []
    for study in studies:
        found = study.settings
        seeds = ", ".join(map(str, found["seeds"]))
        said = f"seed{'s' if len(found['seeds']) > 1 else ''} {seeds}; {found['dtype']} on {found['device']}"
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        lines.append(
            f"<li><b>{escape(study.folder)}</b>: prograde {escape(found['command'])}; {escape(said)} "
            f"({escape(found['device_name'])}, threads {escape(str(found['threads']))}); {escape(versions)}; "
            f"data {escape(found['data'])}, SHA-256 {escape(found['digest'][:12])}</li>"
        )
    return f"<footer><ul>{''.join(lines)}</ul></footer>"


STYLE = """
:root{color-scheme:light dark;--page:#fdfdfc;--ink:#1c2126;--soft:#5d666f;--hair:#e7e7e3;--aside:#cdd1d5;
--accent:#0b63a8;--deep:#0a3560;--pale:#62a8dd;--warm:#c4511a;--ground:#f3f3f0}
@media(prefers-color-scheme:dark){:root{--page:#15181b;--ink:#e4e5e3;--soft:#9aa2a9;--hair:#2b3035;--aside:#4b5258;
--accent:#6db3f2;--deep:#4583c0;--pale:#d3e8fb;--warm:#f08d52;--ground:#1d2124}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 24px}
h1{font-size:1.7rem;font-weight:600;line-height:1.2;letter-spacing:-.01em;margin:0 0 12px}
h2{font-size:1.35rem;font-weight:600;margin:56px 0 8px}
h3{font-size:1.1rem;font-weight:600;margin:44px 0 2px}
h4{font-size:.95rem;font-weight:600;margin:22px 0 4px}
p{margin:0 0 10px;max-width:46rem}
.lede{font-size:1.1rem;margin-bottom:2px}.lede b{font-weight:600}
.note{color:var(--soft);font-size:.87rem}.note i{font-style:normal;color:var(--ink)}
.wide{overflow-x:auto}.wide+.note{margin-top:8px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;font-weight:400;padding:5px 16px 5px 0;border-bottom:1px solid var(--hair);white-space:nowrap}
thead th{color:var(--soft);font-size:.82rem;vertical-align:bottom;padding-bottom:4px}
td.n,th.n{text-align:right}td b{font-weight:600}tbody tr:last-child>*{border-bottom:0}
.warn{display:block;color:var(--warm);font-size:.8rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:22px 32px;margin-top:12px}
.panels.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,190px),1fr));gap:14px 24px;margin-top:2px}
.matrices{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
figure{margin:0;break-inside:avoid;min-width:0}
figcaption{font-size:.9rem;font-weight:600;display:flex;justify-content:space-between;gap:8px}
figcaption span{font-weight:400;white-space:nowrap;color:var(--soft);font-variant-numeric:tabular-nums}
.small figcaption{font-weight:400;color:var(--soft);font-size:.85rem}
svg{display:block;width:100%;height:auto;max-width:380px;overflow:visible}.small svg{max-width:290px}
svg.strip{width:160px;height:18px}
svg text{font-size:10.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}svg .cell{font-size:9px;fill:var(--ink)}
svg .dense{fill:var(--page)}
svg .grid{stroke:var(--hair)}svg .zero{stroke:var(--soft);stroke-width:.8}
svg .line{--tint:color-mix(in oklab,var(--pale) var(--shade,0%),var(--deep))}
polyline.line{fill:none;stroke:var(--accent);stroke-width:1.7;stroke-linejoin:round}
polyline.line[style]{stroke:var(--tint)}circle.line{fill:var(--accent)}circle.line[style]{fill:var(--tint)}
svg text.line{fill:var(--accent)}svg text.line[style]{fill:var(--tint)}
polyline.aside{fill:none;stroke:var(--aside);stroke-width:1.1;stroke-linejoin:round}circle.aside{fill:var(--aside)}
polygon.band{fill:var(--accent);opacity:.16}
circle.seed{fill:var(--accent);opacity:.4}circle.mean{fill:var(--accent)}
rect.field{fill:var(--ground)}
rect.right{fill:color-mix(in oklab,var(--accent) calc(var(--share)*.38),var(--ground))}
rect.wrong{fill:color-mix(in oklab,var(--warm) var(--share),var(--ground))}
.filters{display:grid;grid-template-columns:repeat(8,1fr);gap:3px;margin-top:6px;max-width:380px}
.filters img{width:100%;image-rendering:pixelated;display:block}
footer{margin-top:56px;border-top:1px solid var(--hair);padding-top:10px;color:var(--soft);font-size:.8rem}
footer ul{margin:0;padding:0;list-style:none;overflow-wrap:anywhere}
@media(max-width:600px){main{padding:24px 16px}h1{font-size:1.35rem}}
@media print{main{max-width:none;padding:0}body{font-size:11px}section{break-inside:auto}
h3,h4,h3+.note{break-after:avoid}
.wide{overflow:visible}tr{break-inside:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
