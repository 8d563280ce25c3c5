"""Charts as inline SVG, coloured by the style sheet of the page that they stand in."""

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import ceil, floor, inf, isfinite, log10
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .pictures import spread_apart

LETTER, TEXT = 5.6, 10.5
"""The mean width of a letter and the height of text in a chart, in its units."""

LABEL_GAP = 12.0


class Line(NamedTuple):
    """Values over x, None for one that is not known; `low` and `high` are a band around them.

    `label` stands at the line's end. `shade` is from 0, a first layer, to 1, a last one; None for a line that is the
    panel's subject, or with `aside` one that it is seen against.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    label: str = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    shade: float | None = None
    aside: bool = False


class Axis(NamedTuple):
    """From `low` to `high`, with a place in 0..1 for every value, those outside at its ends."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high, value = (log10(v) if self.logarithmic else v for v in (self.low, self.high, self._within(value)))
        return (value - low) / (high - low)

    def _within(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def ticks(self, most: int) -> list[float]:
        """At most so many round numbers in it, two at least where it has them."""
        if self.logarithmic:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                found = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
                found = [value for value in found if self.low <= value <= self.high]
                if 2 <= len(found) <= most:
                    return found
            if len(found) > most:
                return found[:: ceil(len(found) / most)]
        unit = 10.0 ** floor(log10((self.high - self.low) / most))
        for factor in (1, 2, 5, 10, 20):
            step = factor * unit
            first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
            if last - first < most:
                return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
        return []


def axis_of(values: Iterable[float | None], logarithmic: bool = False) -> Axis:
    """An axis with room for all of these; of a logarithmic one 0 is below its end."""
    known = [value for value in values if value is not None and isfinite(value)]
    if logarithmic:
        known = [value for value in known if value > 0] or [1.0]
        low, high = min(known), max(known)
        return Axis(low / 1.15, high * 1.15, True) if high > 1.5 * low else Axis(low / 1.6, high * 1.6, True)
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return Axis(low - room, high + room)


def number(value: float) -> str:
    """As it stands at an axis, with a true minus and powers of ten."""
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, _, power = f"{value:e}".partition("e")
        mantissa = f"{float(digits):g}"
        factor = {"1": "", "-1": "-"}.get(mantissa, f"{mantissa}·")
        text = f"{factor}10{str(int(power)).translate(RAISED)}"
    else:
        text = f"{value:g}"
    return text.replace("-", "−")


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(value: float) -> str:
    """A number of percent, as text."""
    return f"{number(value)} %"


def panel(
    lines: Sequence[Line],
    y_axis: Axis,
    *,
    name: str,
    width: int = 280,
    height: int = 170,
    written: Callable[[float], str] = number,
    x_label: str = "epoch",
    zero: bool = False,
) -> str:
    """A chart of the lines. `name` says what is seen to whoever hears the page; `zero` marks the value 0."""
    longest = max((len(line.label) for line in lines), default=0)
    ticks = y_axis.ticks(5)
    left = 8 + LETTER * max((len(written(tick)) for tick in ticks), default=0)
    right, top, bottom = width - (10 + LETTER * longest if longest else 8), 8.0, height - 30.0
    steps = [x for line in lines for x in line.x] or [1.0]
    x_axis = Axis(min(steps), max(steps)) if max(steps) > min(steps) else Axis(min(steps) - 1, max(steps) + 1)

    def across(x: float) -> float:
        return left + 4 + (right - left - 4) * x_axis.place(x)

    def down(y: float) -> float:
        return bottom - (bottom - top) * y_axis.place(y)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">']
    for tick in ticks:
        y = down(tick)
        kind = "zero" if zero and tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{left - 5:.1f}" y="{y + 3.5:.1f}">{escape(written(tick))}</text>')
    whole = [tick for tick in x_axis.ticks(5) if tick == int(tick) and min(steps) <= tick <= max(steps)]
    for tick in whole:
        parts.append(f'<text class="mid" x="{across(tick):.1f}" y="{bottom + 14:.1f}">{number(tick)}</text>')
    middle = (left + right) / 2
    parts.append(f'<text class="mid" x="{middle:.1f}" y="{bottom + 27:.1f}">{escape(x_label)}</text>')
    for line in sorted(lines, key=lambda line: not line.aside):
        if line.low:
            ends = [*zip(line.x, line.high, strict=True), *reversed([*zip(line.x, line.low, strict=True)])]
            corners = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in ends)
            parts.append(f'<polygon class="band" points="{corners}"/>')
        parts += _strokes(line, across, down)
    parts += _labels([line for line in lines if line.label], right, down, top, bottom)
    return "".join([*parts, "</svg>"])


def _paint(line: Line) -> str:
    """What gives the line its colour."""
    if line.shade is None:
        return f'class="{"aside" if line.aside else "line"}"'
    return f'class="line" style="--shade:{100 * line.shade:.0f}%"'


def _strokes(line: Line, across: Callable[[float], float], down: Callable[[float], float]) -> list[str]:
    """The line, broken where values are missing; a value between missing ones is a dot."""
    pieces: list[list[str]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not isfinite(y):
            pieces.append([])
        else:
            pieces[-1].append(f"{across(x):.1f},{down(y):.1f}")
    found = []
    for piece in filter(None, pieces):
        if len(piece) > 1:
            found.append(f'<polyline {_paint(line)} points="{" ".join(piece)}"/>')
        else:
            left, _, height = piece[0].partition(",")
            found.append(f'<circle {_paint(line)} r="2" cx="{left}" cy="{height}"/>')
    return found


def _labels(
    lines: Sequence[Line], right: float, down: Callable[[float], float], top: float, bottom: float
) -> list[str]:
    """Each at its line's end, or as near as leaves room for the others."""
    ends = [next((y for y in reversed(line.y) if y is not None and isfinite(y)), None) for line in lines]
    known = [(down(end), line) for end, line in zip(ends, lines, strict=True) if end is not None]
    known.sort(key=lambda pair: pair[0])
    room = LABEL_GAP * np.arange(len(known))
    places = spread_apart(np.array([place for place, _ in known]), LABEL_GAP)
    places = np.maximum(np.minimum(places, bottom - room[::-1]), top + room)  # the last labels give way, not the first
    return [
        f'<text {_paint(line)} x="{right + 5:.1f}" y="{place + 3.5:.1f}">{escape(line.label)}</text>'
        for place, (_, line) in zip(places, known, strict=True)
    ]


STRIP = 160, 18


def strip(values: Sequence[float], axis: Axis, name: str) -> str:
    """The values of one row of a table as dots on an axis that all rows share, their mean larger."""
    width, height = STRIP
    places = [6 + (width - 12) * axis.place(value) for value in values]
    middle = sum(places) / len(places)
    dots = "".join(f'<circle class="seed" r="2" cx="{place:.1f}" cy="{height / 2}"/>' for place in places)
    return (
        f'<svg class="strip" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'
        f'<line class="grid" x1="0" x2="{width}" y1="{height / 2}" y2="{height / 2}"/>{dots}'
        f'<circle class="mean" r="4" cx="{middle:.1f}" cy="{height / 2}"/></svg>'
    )


def strip_axis(axis: Axis, written: Callable[[float], str] = number) -> str:
    """The numbers above a column of strips."""
    width, height = STRIP
    texts = "".join(
        f'<text class="mid" x="{6 + (width - 12) * axis.place(tick):.1f}" y="{height - 5}">{written(tick)}</text>'
        for tick in axis.ticks(6)
        if 0.04 <= axis.place(tick) <= 0.96
    )
    return f'<svg class="strip" viewBox="0 0 {width} {height}" aria-hidden="true">{texts}</svg>'


NUMBERED = 20
"""Classes up to which a confusion matrix has numbers and names."""


def error_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of a confusion matrix, the errors as shares of their true class."""
    return counts * (1 - np.eye(len(counts))) / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def matrix(counts: NDArray[np.int64], classes: Sequence[str], name: str, darkest: float) -> str:
    """A confusion matrix: a row for each true class, a column for each guess. A share of `darkest` is the darkest."""
    errors = error_shares(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = 23.0 if len(counts) <= NUMBERED else max(2.0, 240 / len(counts))
    names = [label if len(label) <= 14 else f"{label[:13]}…" for label in classes] if len(counts) <= NUMBERED else []
    upright = max(map(len, names), default=0) > 3
    room = 8 + LETTER * max(map(len, names), default=0)
    below = room + 14 if upright else 30.0 if names else 16.0
    left, top, side = room + 14, 2.0, cell * len(counts)
    width, height = left + side + 2, top + side + below
    parts = [
        f'<svg class="matrix" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape(name)}">'
        f'<rect class="field" x="{left:.1f}" y="{top}" width="{side:.1f}" height="{side:.1f}"/>'
    ]
    for (row, column), count in np.ndenumerate(counts):
        if not count:
            continue
        x, y = left + cell * column, top + cell * row
        kind = "right" if row == column else "wrong"
        strength = shares[row, column] if row == column else (errors[row, column] / darkest) ** 0.5
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" height="{cell - 1}" '
            f'style="--share:{100 * strength:.0f}%"/>'
        )
        if names:
            dense = " dense" if strength > 0.6 and row != column else ""
            middle, base = x + cell / 2 - 0.5, y + cell / 2 + 3
            parts.append(f'<text class="mid cell{dense}" x="{middle:.1f}" y="{base:.1f}">{count}</text>')
    for index, label in enumerate(names):
        place = cell * (index + 0.5)
        parts.append(f'<text class="end" x="{left - 5:.1f}" y="{top + place + 3.5:.1f}">{escape(label)}</text>')
        x, y = left + place, top + side + 12
        turned = f' transform="rotate(-90 {x + 3.5:.1f} {y - 6:.1f})"' if upright else ""
        kind, at = ("end", (x + 3.5, y - 6)) if upright else ("mid", (x, y))
        parts.append(f'<text class="{kind}" x="{at[0]:.1f}" y="{at[1]:.1f}"{turned}>{escape(label)}</text>')
    parts.append(f'<text class="mid axis" x="{left + side / 2:.1f}" y="{height - 4:.1f}">guessed</text>')
    x, y = 9.0, top + side / 2
    parts.append(f'<text class="mid axis" x="{x}" y="{y:.1f}" transform="rotate(-90 {x} {y:.1f})">true class</text>')
    return "".join([*parts, "</svg>"])


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An image of bytes, (height, width) grey or (height, width, 3), as PNG."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # a filter, none, before each row
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def common_axis(lines: Iterable[Line], logarithmic: bool = False, least: float = inf, most: float = -inf) -> Axis:
    """One for all of these lines and bands, and for values from `least` to `most`."""
    values = [value for line in lines for part in (line.y, line.low, line.high) for value in part]
    return axis_of([*values, *(value for value in (least, most) if isfinite(value))], logarithmic)
