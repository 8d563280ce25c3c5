"""The picture of a set of runs.

matplotlib is imported where it is used, since importing it writes into the user's cache.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..training import Dataset
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

COLOURS = ("#222222", "#9a9a9a", "#0b6fb8", "#d9611e", "#2a9d57", "#8e5bb5", "#c23b6b", "#a58a1a")
TITLE, LABEL, SMALL = 12, 10, 9
TOP_HEIGHT, LINE_HEIGHT, WIDTH, COLUMNS = 4.4, 2.7, 10, 4  # inches, but for the number of columns


class _Group(NamedTuple):
    """The runs of one job."""

    label: str
    runs: list[Run]


def curves(runs: Sequence[Run], dataset: Dataset) -> bytes:
    """A PNG: validation error over epochs, and below it each layer's cosine with the backpropagated gradient."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _groups(runs)
    measured = [g for g in groups if not g.runs[0].job.method.startswith("backprop") and _layers(g)]
    lines = -(-len(measured) // COLUMNS)
    figure = Figure(figsize=(WIDTH, TOP_HEIGHT + LINE_HEIGHT * lines), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if measured:
        heights = [TOP_HEIGHT, LINE_HEIGHT * lines]
        top, bottom = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flatten()
        _errors(top.subplots(), groups, dataset)
        _alignments(bottom, measured)
    else:
        _errors(figure.subplots(), groups, dataset)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


MEASURED = {
    "separation": "separation (mean margin)",
    "free_riding": "free riding",
    "starved": "starved samples",
    "coverage": "covered by the bound",
}
"""What `margin_summary` gives and a picture shows, and what it is called there."""


def margin_curves(runs: Sequence[Run]) -> bytes | None:
    """A PNG of the layers' margins over epochs, a row for every rule that they were measured of; None for no rule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [group for group in _groups(runs) if _is_measured(group) and not _is_studied(group)]
    if not groups:
        return None
    figure = Figure(figsize=(WIDTH, 0.6 + LINE_HEIGHT * len(groups)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(groups), len(MEASURED), squeeze=False)
    for row, group in zip(rows, groups, strict=True):
        epochs = [epoch.epoch for epoch in group.runs[0].history.epochs]
        layers = list(group.runs[0].history.epochs[0].measured)
        colours = _from_dark_to_light(len(layers))
        for panel, (name, title) in zip(row, MEASURED.items(), strict=True):
            for number, (layer, colour) in enumerate(zip(layers, colours, strict=True), 1):
                seen = np.array([[e.measured[layer][name] for e in run.history.epochs] for run in group.runs])
                _line(panel, epochs, seen, colour, f"layer {number}")
            _plain(panel)
            panel.set_title(title, fontsize=LABEL, loc="left")
            panel.set_xlabel("epoch", fontsize=LABEL)
            if name != "separation":
                panel.set_ylim(-0.03, 1.03)
        row[0].set_ylabel(group.label, fontsize=LABEL)
        row[-1].legend(frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle("Margins of the layers on training data", fontsize=TITLE, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def layer_curves(runs: Sequence[Run]) -> bytes | None:
    """A PNG of what layers that guess labels add to one another, a row for every rule that `layer_summary` was kept of.

    Accuracy over epochs of each layer, of all together and if any is right; the pairs' disagreement after the last
    epoch, mean over seeds; information in the layers' scalar goodness, dashed under permuted labels. None for no rule.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [group for group in _groups(runs) if _is_measured(group) and _is_studied(group)]
    if not groups:
        return None
    figure = Figure(figsize=(WIDTH, 0.6 + LINE_HEIGHT * len(groups)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for row, group in zip(figure.subplots(len(groups), 3, squeeze=False), groups, strict=True):
        _layer_accuracies(row[0], group)
        _disagreements(row[1], group)
        _information(row[2], group)
        row[0].set_ylabel(group.label, fontsize=LABEL)
        lines = row[0].get_legend_handles_labels()
        row[-1].legend(*lines, frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.01, 0.5))
    title = "Layers that guess labels, on training data; disagreement after the last epoch"
    figure.suptitle(title, fontsize=TITLE, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _is_measured(group: _Group) -> bool:
    return bool(group.runs[0].history.epochs[0].measured)


def _is_studied(group: _Group) -> bool:
    """Whether what was measured is a `layer_summary`."""
    return "pairwise" in group.runs[0].history.epochs[0].measured


def _over_epochs(group: _Group, name: str) -> NDArray[np.float64]:
    """What was measured under that name: (seeds, epochs, ...)."""
    return np.array([[epoch.measured[name] for epoch in run.history.epochs] for run in group.runs])


def _layer_accuracies(axes: "Axes", group: _Group) -> None:
    epochs = [epoch.epoch for epoch in group.runs[0].history.epochs]
    layers = _over_epochs(group, "accuracies")
    for number, colour in enumerate(_from_dark_to_light(layers.shape[2])):
        _line(axes, epochs, 100 * layers[:, :, number], colour, f"layer {number + 1}")
    _line(axes, epochs, 100 * _over_epochs(group, "accuracy"), COLOURS[0], "all together")
    oracle = 100 * _over_epochs(group, "oracle").mean(axis=0)
    axes.plot(epochs, oracle, "--", color=COLOURS[0], linewidth=1.2, label="any layer right")
    _plain(axes)
    axes.set_title("accuracy, %", fontsize=LABEL, loc="left")
    axes.set_xlabel("epoch", fontsize=LABEL)


def _disagreements(axes: "Axes", group: _Group) -> None:
    pairs = 100 * _over_epochs(group, "pairwise")[:, -1].mean(axis=0)
    axes.imshow(pairs, cmap="Blues", vmin=0, vmax=max(1, pairs.max()))
    for (i, j), value in np.ndenumerate(pairs):
        if i != j and len(pairs) <= 10:
            colour = "white" if value > 0.5 * pairs.max() else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
    mean = 100 * _over_epochs(group, "disagreement")[:, -1].mean()
    axes.set_title(f"disagreement, %; mean {mean:.1f}", fontsize=LABEL, loc="left")
    ticks = range(len(pairs))
    axes.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=SMALL)
    axes.set_yticks(ticks, [str(i + 1) for i in ticks], fontsize=SMALL)
    axes.set_xlabel("layer", fontsize=LABEL)


def _information(axes: "Axes", group: _Group) -> None:
    epochs = [epoch.epoch for epoch in group.runs[0].history.epochs]
    found, permuted = _over_epochs(group, "information"), _over_epochs(group, "permuted").mean(axis=0)
    for number, colour in enumerate(_from_dark_to_light(found.shape[2])):
        _line(axes, epochs, found[:, :, number], colour, f"layer {number + 1}")
        axes.plot(epochs, permuted[:, number], "--", color=colour, linewidth=1)
    _plain(axes)
    axes.set_title("bits in goodness (dashed: labels permuted)", fontsize=LABEL, loc="left")
    axes.set_xlabel("epoch", fontsize=LABEL)


def _from_dark_to_light(layers: int) -> list[tuple[float, float, float, float]]:
    """A colour for each layer, first to last."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.88 * i / max(1, layers - 1)) for i in range(layers)]


def _groups(runs: Sequence[Run]) -> list[_Group]:
    """The runs by job; a job is called by its rule, and by its widths too where the rule was run with several."""
    by_job: dict[str, list[Run]] = {}
    for run in runs:
        by_job.setdefault(run.job.name, []).append(run)
    methods = [group[0].job.method for group in by_job.values()]
    return [
        _Group(name if methods.count(group[0].job.method) > 1 else group[0].job.method, group)
        for name, group in by_job.items()
    ]


def _layers(group: _Group) -> list[str]:
    return list(group.runs[0].history.epochs[0].alignment)


def _line(axes: "Axes", x: Sequence[int], values: NDArray[np.float64], colour: object, label: str) -> None:
    """The mean over seeds, with a band from the least to the greatest."""
    axes.plot(x, values.mean(axis=0), color=colour, label=label, linewidth=1.7, marker="o" if len(x) == 1 else None)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _plain(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, color="#888888", which="both")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def _errors(axes: "Axes", groups: Sequence[_Group], dataset: Dataset) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    samples = len(dataset.validation.labels)
    seeds = len({run.seed for group in groups for run in group.runs})
    for group, colour in zip(groups, COLOURS * len(groups), strict=False):
        errors = np.array([[1 - e.validation_accuracy for e in run.history.epochs] for run in group.runs])
        # No error at all has no place on a logarithmic axis: it is drawn as half a sample.
        errors = 100 * np.maximum(errors, 0.5 / samples)
        _line(axes, [e.epoch for e in group.runs[0].history.epochs], errors, colour, group.label)
    _plain(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set_xlabel("epoch", fontsize=LABEL)
    axes.set_ylabel("validation error", fontsize=LABEL)
    band = f"; mean of {seeds} seeds, bands from the best to the worst" if seeds > 1 else ""
    axes.set_title(f"Error on {samples} validation samples of {dataset.name}{band}", fontsize=TITLE, loc="left")
    axes.legend(frameon=False, fontsize=LABEL, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _alignments(figure: "SubFigure", groups: Sequence[_Group]) -> None:
    """One small panel a rule; layers from dark (first) to light (last), in the same colours in all panels."""
    deepest = max(len(_layers(group)) for group in groups)
    colours = _from_dark_to_light(deepest)
    lines = -(-len(groups) // COLUMNS)
    panels = figure.subplots(lines, min(COLUMNS, len(groups)), sharey=True, squeeze=False).flatten()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for panel, group in zip(panels, groups, strict=False):
        for number, (layer, colour) in enumerate(zip(_layers(group), colours, strict=False), 1):
            histories = [[e for e in run.history.epochs if e.alignment] for run in group.runs]
            cosines = np.array([[e.alignment[layer] for e in history] for history in histories])
            _line(panel, [e.epoch for e in histories[0]], cosines, colour, f"layer {number}")
        _plain(panel)
        panel.axhline(0, color="#888888", linewidth=0.8)
        panel.set_title(group.label, fontsize=LABEL, loc="left")
        panel.set_xlabel("epoch", fontsize=LABEL)
        low = min(0.0, panel.get_ylim()[0])
        panel.set_ylim(max(-1.05, low - 0.03), 1.05)
    panels[0].set_ylabel("cosine", fontsize=LABEL)
    figure.suptitle("Cosine of each layer's update with the backpropagated gradient", fontsize=TITLE, x=0.01, ha="left")
    handles = next(panel for panel, g in zip(panels, groups, strict=False) if len(_layers(g)) == deepest).get_lines()
    figure.legend(handles=handles[:deepest], loc="outside right center", frameon=False, fontsize=LABEL)
