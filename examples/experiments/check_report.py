"""What `prograde check` says of a package with two mistakes, and the picture of it that README.md has.

The package is ours but for FOTON's differences, of the other sign, and its projection of the error, twice as large. A
run writes it beside its results and checks it in one process: half a minute.
"""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from resumable import Result, Run, run_all, stored

from prograde.accelerated.command_line.verdicts import AGREED, HEADS, REFUSED, Verdict, Verdicts

NAME = "mine"
PACKAGE = """from types import SimpleNamespace

from prograde.accelerated import activations as right, foton as ours

NAMES = "identity", "leaky_relu", "relu", "tanh", "gelu", "silu", "maxmin"
ACTIVATIONS = {name: right.ACTIVATIONS[name] for name in NAMES}
activations = SimpleNamespace(**ACTIVATIONS, ACTIVATIONS=ACTIVATIONS)
foton = SimpleNamespace(
    differences=lambda *operands: (-difference for difference in ours.differences(*operands)),
    error_projection=lambda *operands: 2 * ours.error_projection(*operands),
    recomputed_factors=ours.recomputed_factors,
    updates=ours.updates,
)
"""
RUN: Run = {"dtype": "float32", "tier": "smoke", "tests": "activations or foton", "seed": 0}


def check(run: Run, folder: Path) -> Result:
    """The report, as `--report FILE.json` has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.py").write_text(PACKAGE)
    command = [sys.executable, "-P", "-m", "prograde.accelerated.command_line", "check", "--twin", NAME]
    command += ["--dtype", run["dtype"], "--tier", run["tier"], "-k", run["tests"]]
    subprocess.run([*command, "--report", "report.json", "--overwrite"], cwd=folder, stdout=subprocess.DEVNULL)
    return {"accuracy": None, "report": json.loads((folder / "report.json").read_text())}


def read(result: Result) -> Verdicts:
    report: dict[str, Any] = {key: value for key, value in result["report"].items() if key != "exit_code"}
    return Verdicts(**{**report, "functions": [Verdict(**function) for function in report["functions"]]})


def kept() -> Result:
    """The stored run."""
    (result,) = stored("check-report/check_report", **RUN)
    return result


PLACES = 0.0, 0.163, 0.292, 0.372, 0.44, 0.455
"""Of the columns, in shares of the width: numbers end there."""


def draw(result: Result, path: Path) -> None:
    """The table of `prograde check`, in 16 colours, which is all that text needs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    found = read(result)
    rows = [verdict for verdict in found.functions if verdict.outcome in (AGREED, REFUSED)]
    lines = [found.summary, *[""] * (len(rows) + 1), *found.remarks[:2]]
    figure = Figure(figsize=(12.1, 0.25 * (len(lines) + 1)), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def write(line: int, text: str, x: float = 0.0, **look: Any) -> None:
        figure.text(0.015 + 0.97 * x, 1 - (line + 1) / (len(lines) + 1), text, fontsize=9, va="center", **look)

    for number, line in enumerate(lines):
        write(number, line, weight="bold" if number == 0 else "normal")
    for number, cells in enumerate([HEADS, *(verdict.cells for verdict in rows)], 1):
        colour = "#8c8c8c" if number == 1 else "#d55e00" if cells[1] == REFUSED else "#222222"
        for index, (place, cell) in enumerate(zip(PLACES, cells, strict=True)):
            write(number, cell, place, color=colour, ha="right" if index in (2, 3, 4) else "left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(16).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    options = parser.parse_args()
    log = options.folder / "check_report.jsonl"
    for result in run_all([RUN], lambda run: check(run, options.folder), log):
        print(read(result).summary)
