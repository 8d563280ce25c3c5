"""The picture of a set of runs.

matplotlib is imported where it is used, since importing it writes into the user's cache.
"""

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..training import PRESETS, Dataset
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's, for the colour-blind
DARK, GREY = "#222222", "#8c8c8c"
TITLE, LABEL, SMALL = 12, 10, 9
LINE_HEIGHT, WIDTH, COLUMNS = 2.4, 12.0, 5  # inches, but for the number of columns
PANEL_HEIGHT, PANELS_A_LINE = 3.0, 2
FEW = 5  # jobs that one panel shows clearly
LABEL_PLACE = 1.07, 0.5
LEADER = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}


class _Group(NamedTuple):
    """The runs of one job."""

    label: str
    runs: list[Run]


def curves(runs: Sequence[Run], dataset: Dataset) -> bytes:
    """A PNG of validation errors over training, a panel for each family of rules, and of test accuracies."""
    groups = _groups(runs)
    if len(groups) <= FEW:
        families = {"": groups}
    else:
        families = {
            family: [g for g in groups if _family(g) == family] for family in dict.fromkeys(map(_family, groups))
        }
    panels = len(families) + (len(groups) > FEW)
    columns = min(PANELS_A_LINE, panels)
    lines = -(-panels // columns)
    figure = _figure(WIDTH * (1 if columns > 1 else 0.7), 0.5 + PANEL_HEIGHT * (lines if columns > 1 else 1.4))
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid[panels:]:
        axes.set_visible(False)
    longest = {len(group.runs[0].history.epochs) for group in groups}
    reference = next((group for group in groups if group.runs[0].job.method == "backprop"), None)
    labelled = []
    for axes, (family, members) in zip(grid, families.items(), strict=False):
        labelled.append((axes, _errors(axes, members, reference, dataset, same_length=len(longest) == 1)))
        length = f"{', ' * bool(family)}{_usual_epochs(members)} epochs"
        axes.set_title(family + length, fontsize=LABEL, loc="left", fontweight="bold")
    shown = [axes for axes, _ in labelled]
    _share_heights(shown)
    for number, axes in enumerate(shown):
        if number % columns == 0:
            axes.set_ylabel("validation error", fontsize=LABEL)
        if number + columns >= panels:
            axes.set_xlabel("epoch" if len(longest) == 1 else "share of the training", fontsize=LABEL)
    if len(groups) > FEW:
        _test_accuracies(grid[panels - 1], groups, reference)
    seeds = len({run.seed for run in runs})
    band = f", mean of {seeds} seeds with bands from best to worst" if seeds > 1 else ""
    samples = len(dataset.validation.labels)
    title = f"Error on {samples} validation samples of {_as_text(dataset.name)}{band}"
    figure.suptitle(title, fontsize=TITLE, x=0.01, ha="left")
    figure.draw_without_rendering()  # lays the panels out, so that their heights are known
    for axes, labels in labelled:
        _keep_apart(axes, labels)
    return _png(figure)


def alignment_curves(runs: Sequence[Run]) -> bytes | None:
    """A PNG of each layer's cosine with the backpropagated gradient over epochs, a panel a rule; None for no rule.

    Layers go from dark (first) to light (last), in the same colours in all panels.
    """
    groups = [g for g in _groups(runs) if not g.runs[0].job.method.startswith("backprop") and _layers(g)]
    if not groups:
        return None
    groups.sort(key=lambda group: list(PRESETS).index(group.runs[0].job.method))
    columns = min(COLUMNS, len(groups))
    lines = -(-len(groups) // columns)
    figure = _figure(WIDTH * max(columns, 3) / COLUMNS, 0.6 + LINE_HEIGHT * lines)
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    deepest = max(len(_layers(group)) for group in groups)
    colours = _from_dark_to_light(deepest)
    for number, (panel, group) in enumerate(zip(panels, groups, strict=False)):
        for layer, colour in zip(_layers(group), colours, strict=False):
            epochs = [epoch.epoch for epoch in group.runs[0].history.epochs]
            units = [[epoch.measured["units"] for epoch in run.history.epochs] for run in group.runs]
            cosines = np.array([[of_epoch[layer]["alignment"] for of_epoch in of_run] for of_run in units])
            _line(panel, epochs, cosines, colour, layer)
        _plain(panel)
        panel.axhline(0, color=GREY, linewidth=0.8)
        panel.set_title(group.label, fontsize=LABEL, loc="left")
        if number + columns >= len(groups):
            panel.set_xlabel("epoch", fontsize=LABEL)
        if number % columns == 0:
            panel.set_ylabel("cosine", fontsize=LABEL)
    panels[0].set_ylim(max(-1.05, min(-0.05, panels[0].get_ylim()[0])), 1.05)
    title = "Cosine of each layer's update with the backpropagated gradient"
    figure.suptitle(title, fontsize=TITLE, x=0.01, ha="left")
    handles = next(p for p, g in zip(panels, groups, strict=False) if len(_layers(g)) == deepest).get_lines()[:deepest]
    names = [f"layer {number}" for number in range(1, deepest + 1)]
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=LABEL)
    return _png(figure)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: "Figure") -> bytes:
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
    groups = [group for group in _groups(runs) if _has(group, "margins")]
    if not groups:
        return None
    figure = _figure(10, 0.6 + 2.7 * len(groups))
    rows = figure.subplots(len(groups), len(MEASURED), squeeze=False)
    for row, group in zip(rows, groups, strict=True):
        epochs = [epoch.epoch for epoch in group.runs[0].history.epochs]
        layers = list(group.runs[0].history.epochs[0].measured["margins"])
        colours = _from_dark_to_light(len(layers))
        for panel, (name, title) in zip(row, MEASURED.items(), strict=True):
            for number, (layer, colour) in enumerate(zip(layers, colours, strict=True), 1):
                seen = np.array(
                    [[e.measured["margins"][layer][name] for e in run.history.epochs] for run in group.runs]
                )
                _line(panel, epochs, seen, colour, f"layer {number}")
            _plain(panel)
            panel.set_title(title, fontsize=LABEL, loc="left")
            panel.set_xlabel("epoch", fontsize=LABEL)
            if name != "separation":
                panel.set_ylim(-0.03, 1.03)
        row[0].set_ylabel(group.label, fontsize=LABEL)
        row[-1].legend(frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle("Margins of the layers on training data", fontsize=TITLE, x=0.01, ha="left")
    return _png(figure)


def layer_curves(runs: Sequence[Run]) -> bytes | None:
    """A PNG of what layers that guess labels add to one another, a row for every rule that `layer_summary` was kept of.

    Accuracy over epochs of each layer, of all together and if any is right; the pairs' disagreement after the last
    epoch, mean over seeds; information in the layers' scalar goodness, dashed under permuted labels. None for no rule.
    """
    groups = [group for group in _groups(runs) if _has(group, "layers")]
    if not groups:
        return None
    figure = _figure(10, 0.6 + 2.7 * len(groups))
    rows = figure.subplots(len(groups), 3, squeeze=False)
    most = max(1.0, max(100 * _over_epochs(group, "pairwise")[:, -1].mean(axis=0).max() for group in groups))
    for row, group in zip(rows, groups, strict=True):
        _layer_accuracies(row[0], group)
        _disagreements(row[1], group, most)
        _information(row[2], group)
        row[0].set_ylabel(group.label, fontsize=LABEL)
        lines = row[0].get_legend_handles_labels()
        row[-1].legend(*lines, frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for column in (rows[:, 0], rows[:, 2]):
        _share_heights(column)
    title = "Layers that guess labels, on training data; disagreement after the last epoch"
    figure.suptitle(title, fontsize=TITLE, x=0.01, ha="left")
    return _png(figure)


def sweep_curves(records: Sequence[dict[str, Any]], sweep: str) -> bytes:
    """A PNG of what `prograde benchmark --sweep` saw: milliseconds of a step, from the least to the greatest round, and
    megabytes held, against what was varied.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == "step":
            by_name.setdefault(record["name"], []).append(record)
    figure = _figure(WIDTH, PANEL_HEIGHT * 1.3)
    panels = figure.subplots(1, 2)
    x: list[float] = []
    for number, (name, steps) in enumerate(by_name.items()):
        colour = GREY if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
        look: dict[str, Any] = {"color": colour, "linewidth": 1.7, "linestyle": "--" if number == 0 else "-"}
        if number > len(COLOURS):
            look["linestyle"] = ":"
        x = [step["value"] for step in steps]
        rounds = np.array([step["milliseconds"] for step in steps])
        panels[0].plot(x, np.median(rounds, axis=1), label=name, **look)
        panels[0].fill_between(x, rounds.min(axis=1), rounds.max(axis=1), color=colour, alpha=0.13, linewidth=0)
        held = [step["held"] for step in steps]
        if None not in held:
            panels[1].plot(x, np.array(held) / 1e6, **look)
    for panel, title in zip(panels, ("ms a step", "MB held in a step"), strict=True):
        _plain(panel)
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(x, [str(value) for value in x])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_title(title, fontsize=LABEL, loc="left", fontweight="bold")
        panel.set_xlabel(sweep, fontsize=LABEL)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=SMALL)
    return _png(figure)


def _has(group: _Group, kind: str) -> bool:
    """Whether that was measured."""
    return kind in group.runs[0].history.epochs[0].measured


def _over_epochs(group: _Group, name: str) -> NDArray[np.float64]:
    """What `layer_summary` has under that name: (seeds, epochs, ...)."""
    return np.array([[epoch.measured["layers"][name] for epoch in run.history.epochs] for run in group.runs])


def _layer_accuracies(axes: "Axes", group: _Group) -> None:
    epochs = [epoch.epoch for epoch in group.runs[0].history.epochs]
    layers = _over_epochs(group, "accuracies")
    for number, colour in enumerate(_from_dark_to_light(layers.shape[2])):
        _line(axes, epochs, 100 * layers[:, :, number], colour, f"layer {number + 1}")
    _line(axes, epochs, 100 * _over_epochs(group, "accuracy"), DARK, "all together")
    oracle = 100 * _over_epochs(group, "oracle").mean(axis=0)
    axes.plot(epochs, oracle, "--", color=DARK, linewidth=1.2, label="any layer right")
    _plain(axes)
    axes.set_title("accuracy, %", fontsize=LABEL, loc="left")
    axes.set_xlabel("epoch", fontsize=LABEL)


def _share_heights(panels: Iterable["Axes"]) -> None:
    limits = [panel.get_ylim() for panel in panels]
    for panel in panels:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _disagreements(axes: "Axes", group: _Group, most: float) -> None:
    pairs = 100 * _over_epochs(group, "pairwise")[:, -1].mean(axis=0)
    axes.imshow(pairs, cmap="Blues", vmin=0, vmax=most)
    for (i, j), value in np.ndenumerate(pairs):
        if i != j and len(pairs) <= 10:
            colour = "white" if value > 0.5 * most else "black"
            axes.text(
                j, i, f"{value:.{int(pairs.max() < 10)}f}", ha="center", va="center", fontsize=SMALL, color=colour
            )
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
        _Group(_as_text(name) if methods.count(group[0].job.method) > 1 else group[0].job.method, group)
        for name, group in by_job.items()
    ]


def _as_text(name: str) -> str:
    """A name of somebody's, in which matplotlib is to see no mathematics."""
    return name.replace("$", r"\$")


def _layers(group: _Group) -> list[str]:
    """Those whose alignment was measured."""
    units = group.runs[0].history.epochs[0].measured.get("units", {})
    return [name for name, values in units.items() if "alignment" in values]


def _line(
    axes: "Axes", x: Sequence[float], values: NDArray[np.float64], colour: object, label: str, style: str = "-"
) -> None:
    """The mean over seeds, with a band from the least to the greatest."""
    marker = "o" if len(x) == 1 else None
    axes.plot(x, values.mean(axis=0), style, color=colour, label=label, linewidth=1.7, marker=marker)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.13, linewidth=0)


def _plain(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, color="#888888", which="both")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def _usual_epochs(groups: Sequence[_Group]) -> int:
    return statistics.mode(len(group.runs[0].history.epochs) for group in groups)


def _family(group: _Group) -> str:
    return PRESETS[group.runs[0].job.method].family


def _errors(
    axes: "Axes", groups: Sequence[_Group], reference: _Group | None, dataset: Dataset, *, same_length: bool
) -> list["Annotation"]:
    """Draws the reference in grey and the groups in colours; gives the labels at the lines' ends."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

    half_a_sample = 0.5 / len(dataset.validation.labels)  # no error at all has no place on a logarithmic axis
    others = [group for group in groups if group is not reference]
    usual = _usual_epochs(groups)
    drawn = [(group, colour, "-") for group, colour in zip(others, COLOURS * len(others), strict=False)]
    labels = []
    for group, colour, style in [(reference, GREY, "--"), *drawn] if reference is not None else drawn:
        shares = np.array([[e.validation_accuracy for e in run.history.epochs] for run in group.runs], float)
        errors = 100 * np.maximum(1 - shares, half_a_sample)
        epochs = [e.epoch for e in group.runs[0].history.epochs]
        x = epochs if same_length else [epoch / epochs[-1] for epoch in epochs]
        _line(axes, x, errors, colour, group.label, style)
        text = group.label if len(epochs) == usual else f"{group.label} ({len(epochs)} epochs)"
        labels.append(
            axes.annotate(
                text, (x[-1], errors[:, -1].mean()), LABEL_PLACE, textcoords="axes fraction", color=colour,
                fontsize=SMALL, va="center", arrowprops=LEADER | {"color": colour},
            )
        )  # fmt: skip
    _plain(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if not same_length:
        axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    return labels


def _keep_apart(axes: "Axes", labels: Sequence["Annotation"]) -> None:
    """Moves each label to the height of its line's end, or as near as leaves room for the others."""
    low, high = np.log(axes.get_ylim())
    wanted = np.array([(np.log(label.xy[1]) - low) / (high - low) for label in labels])
    gap = 1.35 * SMALL / 72 * axes.figure.dpi / axes.get_window_extent().height
    order = np.argsort(wanted)
    found = spread_apart(wanted[order], gap)
    for index, height in zip(order, found, strict=True):
        labels[index].set_position((LABEL_PLACE[0], height))


def spread_apart(sorted_heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """The heights nearest to these, in least squares, that stand `gap` apart."""
    pools: list[list[float]] = []  # neighbours that touch move as one: the sum of what they want, and how many
    for number, height in enumerate(sorted_heights):
        pools.append([height - gap * number, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    means = [total / count for total, count in pools for _ in range(int(count))]
    return np.array([mean + gap * number for number, mean in enumerate(means)])


def _test_accuracies(axes: "Axes", groups: Sequence[_Group], reference: _Group | None) -> None:
    """A line a rule, from the best to the worst: the mean over seeds, and a bar from the least to the greatest."""
    from matplotlib.ticker import MaxNLocator

    def percents(group: _Group) -> NDArray[np.float64]:
        return 100 * np.array([run.history.test_accuracy for run in group.runs], float)

    ranked = sorted(groups, key=lambda group: percents(group).mean())
    for height, group in enumerate(ranked):
        shares = percents(group)
        colour = GREY if group is reference else DARK
        axes.plot([min(shares), max(shares)], [height, height], color=colour, linewidth=1.7, alpha=0.4)
        axes.plot(np.mean(shares), height, "o", color=colour, markersize=4)
    _plain(axes)
    axes.yaxis.tick_right()  # where the other panels have their names
    axes.set_yticks(range(len(ranked)), [group.label for group in ranked], fontsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(ranked) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title("Test accuracy, %", fontsize=LABEL, loc="left", fontweight="bold")
