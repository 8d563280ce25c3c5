"""The tables and pictures of figures on the pages, printed and drawn from the stored runs.

    python examples/experiments/pages.py            prints every table, and draws every picture into runs/pages
    python examples/experiments/pages.py --write    puts both into the pages

A table of figures, or a picture of them, stands below a comment. `<!-- runs: NAME -->` is an entry of TABLES or
PICTURES, made from files in `results`. A figure is a cell that begins with a number, but for the defaults of options.
Any picture wants a comment; `<!-- no figures -->` is that of one without, and of a table of other numbers.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import any_model
import attention
import beside_peers
import check_report
import claims
import controls
import convolutions
import depth
import free_riding
import ftp
import hardware
import local_classifiers
import local_costs
import mnist
import not_run
import on_gpu
import processes
import published
import recurrent
import rotations
import scaling
import step_times
import synthetic_teacher
import two_streams
import which_rule
from resumable import Result, cell, chosen, longest, markdown, stored

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples" / "experiments").glob("*.md"))
SHOWN = re.compile(r"(?:^<!-- (?P<marker>.*) -->\n)?(?P<shown>(?:^\|.*\n)+|^!\[.*\n(?:.+\n)*)", flags=re.MULTILINE)
FIGURE = re.compile(r"^!\[|\| *[+-]?\d+(?:\.\d+)?\b(?! million)")


class Shown(NamedTuple):
    """A table or picture of figures: its page, its first line there, what its comment says, if any, and its text."""

    page: Path
    line: int
    marker: str
    text: str


def shown() -> Iterator[Shown]:
    for page in PAGES:
        text = page.read_text()
        for match in SHOWN.finditer(text):
            if match["marker"] == "no figures":
                continue
            if match["marker"] or (FIGURE.search(match["shown"]) and "| default |" not in match["shown"]):
                line = text.count("\n", 0, match.start("shown")) + 1
                yield Shown(page, line, match["marker"] or "", match["shown"])


def defects() -> list[str]:
    """Figures on the pages that name no run, or are not what their runs say."""
    found = []
    for page, line, marker, text in shown():
        name = marker.removeprefix("runs: ")
        known = name in TABLES or (name in PICTURES and f"({name})" in text)
        if not (marker.startswith("runs: ") and known):
            found.append(f"{page.name}:{line}: figures without a comment that names their runs: {marker or text[:60]}")
        elif name in TABLES and text.rstrip("\n") != TABLES[name]():
            found.append(f"{page.name}:{line}: not the table {name} that the stored runs give")
    return found


def of_local_classifiers(data: str) -> list[Result]:
    epochs = 8 if data == "cifar10-jpeg" else 7
    settings = {"data": data, "epochs": epochs}
    return chosen(local_classifiers.of_settings(stored(f"{data}/local_classifiers"), settings), network="convolutional")


def local_rules() -> str:
    """Test accuracy by data set, of as many seeds as stand in brackets, and what was published."""
    known = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10-jpeg": "CIFAR-10 (JPEG copy)"}
    results = {data: of_local_classifiers(data) for data in known}
    rows = [["rule", *(head for name in known.values() for head in (f"{name}, %", "published"))]]
    for rule, setting in local_classifiers.RULES.items():
        row = [f"`{rule}`"]
        for data in known:
            found = chosen(results[data], rule=rule)
            published = setting.published.get(local_classifiers.PUBLISHED_ON[data.replace("-", "")], "")
            row += [f"{cell(found, 2)} ({len(found)})" if found else "", published]
        if any(chosen(found, rule=rule) for found in results.values()):
            rows.append(row)
    return markdown(rows)


def layers(data: str) -> str:
    """Of each rule: validation accuracy, all layers, the best range, layers alone, and what layers have in common."""
    table = [line.split(" | ") for line in local_classifiers.summary(of_local_classifiers(data), data).splitlines()]
    columns = [0, 2, 3, 5, 6, *range(9, 15)]
    rows = [[row[column].strip("| ") for column in columns] for row in (table[0], *table[2:])]
    return markdown([["rule", *rows[0][1:]], *rows[1:]])


FTP = {"hidden": [1024, 128], "activation": "tanh", "epochs": 8}


def compared(data: str, **settings: object) -> list[Result]:
    """Runs of `prograde compare` with those settings, and no others."""
    return mnist.of_settings(stored("mnist/mnist", data=data), settings)


def digits() -> str:
    """Three rules a row."""
    results = compared("digits")
    cells = [[f"`{rule}`", cell(chosen(results, rule=rule), seeds=3)] for rule in mnist.PRESETS]
    rows = [[text for pair in cells[row :: len(cells) // 3] for text in pair] for row in range(len(cells) // 3)]
    return markdown([["rule", "accuracy, %"] * 3, *rows])


def on_mnist() -> str:
    """Each rule on its own network: no comparison."""
    of_ftp, depths = compared("mnist", **FTP), stored("ftp/ftp", data="mnist", epochs=5)
    streams, images = stored("two-streams/two_streams", data="mnist"), stored("convolutions/convolutions", data="mnist")
    streams, images = longest(result for result in streams if "shift" not in result["run"]), longest(images)
    riding = stored("free-riding/free_riding", data="mnist", width=200, epochs=5, depth=4)
    rows = stored("recurrent/recurrent", problem="mnist", cell="elman")
    found = {
        "`Backprop`": (chosen(compared("mnist"), rule="backprop"), "mnist"),
        "`Foton`": (chosen(compared("mnist"), rule="foton"), "mnist"),
        "`Foton`, orthogonal convolutions": (chosen(images, rule="foton"), "convolutions"),
        "`Pepita`": (chosen(compared("mnist"), rule="pepita"), "mnist"),
        "`Ftp`": (chosen(of_ftp, rule="ftp"), "ftp"),
        "`Ftp`, a convolution": (chosen(images, rule="ftp"), "convolutions"),
        "`DirectFeedbackAlignment`": (chosen(of_ftp, rule="dfa"), "ftp"),
        "`FeedbackAlignment`": (ftp.of_depth(depths, 2, "fa"), "ftp"),
        "`DirectRandomTargetProjection`": (ftp.of_depth(depths, 2, "drtp"), "ftp"),
        "`DifferenceTargetPropagation`": (ftp.of_depth(depths, 2, "dtp"), "ftp"),
        "`ForwardForward`": (chosen(streams, rule="forward-forward"), "two_streams"),
        "`SymBa`": (chosen(streams, rule="symba"), "two_streams"),
        "`LayerCollaboration`": (chosen(streams, rule="layer-collaboration"), "two_streams"),
        "`CumulativeForwardForward`": (chosen(riding, loss="cumulative, gamma 1"), "free_riding"),
        "`BackpropThroughTime`, row by row": (chosen(rows, rule="bptt"), "recurrent"),
        "`RecurrentFtp`, row by row": (chosen(rows, rule="ftp-every"), "recurrent"),
    }
    cells = [
        [rule, cell(results, seeds=3), f"[{page}.md](examples/experiments/{page}.md)"]
        for rule, (results, page) in found.items()
        if results
    ]
    return markdown([["rule", "test accuracy on MNIST, %", "settings"], *cells])


def turned(name: str, table: Callable[[list[Result], Iterable[int]], str]) -> str:
    angles = rotations.ANGLES if name == "rotations" else rotations.CONVOLUTIONAL_ANGLES
    return table(stored(f"rotations/{name}", data="mnist"), angles)


def which_rules(networks: list[str]) -> str:
    return which_rule.summary(
        stored("which-rule/which_rule", epochs=which_rule.EPOCHS), list(which_rule.RULES), networks
    )


SHORT = ["MLP, ReLU", "20 layers, Tanh", "CNN", "CNN, BatchNorm", "residual block", "transformer", "RecurrentNetwork"]
"""Of the networks of `which_rule`, those on README.md."""

TABLES: dict[str, Callable[[], str]] = {
    "claims": claims.table,
    "which-rule": partial(which_rules, list(which_rule.NETWORKS)),
    "which-rule-short": partial(which_rules, SHORT),
    "any-model": lambda: any_model.summary(stored("any-model/any_model")),
    "any-model-less": lambda: any_model.differences(stored("any-model/any_model"), "backprop"),
    "any-model-cosines": lambda: any_model.cosines(stored("any-model/any_model")),
    "any-model-in-full": lambda: any_model.summary(stored("any-model/in_full")),
    "any-model-in-full-less": lambda: any_model.differences(stored("any-model/in_full"), "backprop"),
    "convolutional-rotations": partial(turned, "convolutional_rotations", rotations.summary),
    "convolutional-rotations-less": partial(turned, "convolutional_rotations", rotations.differences),
    "local-classifiers": local_rules,
    "layers-mnist": partial(layers, "mnist"),
    "layers-cifar10": partial(layers, "cifar10-jpeg"),
    "digits": digits,
    "on-mnist": on_mnist,
    "mnist": lambda: mnist.summary(compared("mnist")),
    "fashion-mnist": lambda: mnist.summary(compared("fashion-mnist")),
    "ftp-mnist": lambda: mnist.summary(compared("mnist", **FTP)),
    "ftp-fashion-mnist": lambda: mnist.summary(compared("fashion-mnist", **FTP)),
    "ftp-depth": lambda: ftp.by_depth(stored("ftp/ftp", data="mnist", epochs=5)),
    "ftp-cosines": lambda: ftp.cosines(stored("ftp/ftp", data="mnist", epochs=5)),
    "ftp-laws": lambda: ftp.by_law(stored("ftp/ftp", data="mnist")),
    "free-riding": lambda: free_riding.table_of_all(
        stored("free-riding/free_riding", width=200, epochs=5), ["separation", "free_riding", "starved"]
    ),
    "hardware": lambda: hardware.accuracy(hardware.kept(), "bits"),
    "hardware-less": lambda: hardware.less_backprop(hardware.kept(), "bits"),
    "hardware-lost": lambda: hardware.lost(hardware.kept(), "bits"),
    "hardware-cosines": lambda: hardware.cosines(hardware.kept(), "bits"),
    "depth": lambda: depth.by_depth(stored("depth/depth", data="mnist", epochs=3)),
    "depth-tanh": lambda: depth.by_depth(stored("depth/depth", data="mnist", epochs=3), ["tanh"]),
    "depth-less-frozen": lambda: depth.less(stored("depth/depth", data="mnist", epochs=3), "frozen"),
    "depth-less-backprop": lambda: depth.less(stored("depth/depth", data="mnist", epochs=3), "backprop-orthogonal"),
    "depth-renewed": lambda: depth.by_interval(stored("depth/depth", data="mnist", epochs=3)),
    "attention": lambda: attention.accuracies(stored("attention/attention", data="mnist")),
    "attention-cosines": lambda: attention.alignment(stored("attention/attention", data="mnist")),
    "convolutions": lambda: convolutions.summary(stored("convolutions/convolutions", data="mnist")),
    "pooling": lambda: convolutions.summary(stored("convolutions/convolutions", data="digits")),
    "rotations": partial(turned, "rotations", rotations.summary),
    "rotations-less": partial(turned, "rotations", rotations.differences),
    "recurrent-order": lambda: recurrent.table(stored("recurrent/recurrent"), "order"),
    "recurrent-adding": lambda: recurrent.table(stored("recurrent/recurrent"), "adding"),
    "recurrent-rows": lambda: recurrent.table(stored("recurrent/recurrent"), "mnist"),
    "two-streams": lambda: two_streams.summary(stored("two-streams/two_streams", data="mnist")),
    "synthetic": lambda: synthetic_teacher.compared(stored("synthetic/synthetic_teacher", **claims.TEACHER_SETTINGS)),
    "synthetic-normalisation": lambda: synthetic_teacher.by_normalisation(
        stored("synthetic/synthetic_teacher", teacher="he", steps=8000)
    ),
    "scaling": lambda: scaling.exponents(scaling.of(*scaling.VALUES)),
    "scaling-ends": lambda: scaling.ends(scaling.of(*scaling.VALUES)),
    "audit": lambda: scaling.audit(scaling.of(*scaling.AUDITED)),
    "wires": scaling.wires,
    "step-times": lambda: step_times.table(step_times.kept()),
    "beside-peers": lambda: beside_peers.table(beside_peers.kept()),
    "local-costs": lambda: local_costs.step_table(local_costs.kept()),
    "local-scores": lambda: local_costs.score_table(local_costs.kept()),
    "processes": lambda: processes.table(processes.kept()),
    "initial-weights": lambda: controls.weights_table(controls.kept()),
    "kernels": lambda: controls.kernels_table(controls.kept()),
    "pretrained": lambda: controls.pretrained_table(controls.kept()),
    "published": lambda: published.summary(stored("published/published")),
    "gpu-steps": on_gpu.in_float32,
    "gpu-largest": on_gpu.of_the_largest,
    "gpu-constraint": on_gpu.constraint,
    "not-run": not_run.table,
}
PICTURES: dict[str, Callable[[Path], None]] = {
    "synthetic_teacher.png": lambda path: synthetic_teacher.draw(
        stored("synthetic/synthetic_teacher", **claims.TEACHER_SETTINGS), path
    ),
    "local_classifiers.png": lambda path: local_classifiers.draw(of_local_classifiers("mnist"), path),
    "mnist.png": lambda path: mnist.draw(compared("mnist"), 5000, path),
    "mnist_cosines.png": lambda path: mnist.draw_cosines(compared("mnist"), path),
    "free_riding.png": lambda path: free_riding.draw(
        stored("free-riding/free_riding", data="mnist", width=200, epochs=5), [4], path
    ),
    "depth.png": lambda path: depth.draw(stored("depth/depth", data="mnist", epochs=3), path),
    "docs/digits.png": lambda path: mnist.draw(compared("digits"), 288, path),
    "docs/check.png": lambda path: check_report.draw(check_report.kept(), path),
}
"""By the name of the file: beside this one, or its path from the root."""


def place(picture: str) -> Path:
    return ROOT / picture if "/" in picture else Path(__file__).with_name(picture)


def write() -> None:
    """Puts every table and picture that has runs into the pages; lists of these last."""
    for page in PAGES:
        text = page.read_text()
        for name, table in TABLES.items():
            marker = f"<!-- runs: {name} -->\n"
            before, found, after = text.partition(marker)
            if found:
                text = f"{before}{marker}{table()}\n" + re.sub(r"^([|].*\n)*", "", after)
        page.write_text(text)
    for name, draw in PICTURES.items():
        draw(place(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put tables and pictures into the pages")
    if parser.parse_args().write:
        write()
    else:
        for name, table in TABLES.items():
            print(f"{name}\n\n{table()}\n")
        folder = Path("runs") / "pages"
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in PICTURES.items():
            drawn = folder / Path(name).name
            draw(drawn)
            print(drawn)
