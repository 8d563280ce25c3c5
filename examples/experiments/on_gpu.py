"""The tables of what `make gpu` wrote on a GPU."""

import re

from resumable import RESULTS, markdown

FOLDER = RESULTS / "gpu"
STEP = re.compile(r"  (?P<rule>.+?) +eager +(?P<eager>[\d.]+) ms .* captured +(?P<captured>[\d.]+)$")
DEFECT = re.compile(r"width (?P<width>\d+), (?P<kind>\w+) \{(?P<options>.*)\}: (?P<defect>\S+)")


def steps() -> dict[str, dict[str, tuple[float, float]]]:
    """By network and precision, of every rule: milliseconds of a step, eager and replayed."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    _, *lines = (FOLDER / "steps.txt").read_text().splitlines()
    for line in lines:
        step = STEP.match(line)
        if step is None:
            network = line.rpartition(", ")[0]
            found[network] = {}
        else:
            found[network][step["rule"]] = float(step["eager"]), float(step["captured"])
    return found


def in_float32() -> str:
    return table({name: name.removesuffix(", float32") for name in steps() if name.endswith(", float32")})


def of_the_largest() -> str:
    return table({name: name.split(", ")[-1] for name in steps() if name.startswith("784-4096-")})


def table(columns: dict[str, str]) -> str:
    """A row a rule; the columns' heads by their names in `steps`."""
    by_network = steps()
    rows = [["rule, ms: eager, captured", *columns.values()]]
    for rule in next(iter(by_network.values())):
        times = (by_network[network][rule] for network in columns)
        name = rule if rule == "PyTorch backprop" else f"`{rule}`"
        rows.append([name, *(f"{eager:.2f}, {captured:.2f}" for eager, captured in times)])
    return markdown(rows)


def constraint() -> str:
    """The largest defect after any of 100 steps: a row a width, a column an optimizer."""
    cells: dict[str, dict[str, str]] = {}
    for match in DEFECT.finditer((FOLDER / "constraint.txt").read_text()):
        name = f"{match['kind']}, {match['options']}".replace("'", "").replace(": ", " ")
        cells.setdefault(match["width"], {})[name] = match["defect"]
    optimizers = list(next(iter(cells.values())))
    return markdown([["width", *optimizers], *([width, *row.values()] for width, row in cells.items())])
