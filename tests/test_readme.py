"""Every page does what it says: programs run, commands run, targets exist, links lead somewhere."""

import contextlib
import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from prograde import accelerated, reference
from prograde.equivalence_tests.own_models import rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RUN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""The pages whose blocks are run."""
PAGES = [*RUN, *(ROOT / f"{name}.md" for name in ("RESULTS", "CONTRIBUTING", "CHANGELOG", "SECURITY"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]*)(?:#(?P<heading>[^)]*))?\)")


class Block(NamedTuple):
    """A fenced block: its page, its language, its text and the line of the page on which it opens."""

    page: Path
    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in turn."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield Block(page, match["language"], match["text"], text.count("\n", 0, match.start()) + 1)


BLOCKS = [block for page in RUN for block in blocks(page)]


def in_language(language: str) -> pytest.MarkDecorator:
    blocks = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", blocks, ids=[f"{block.page.name}, line {block.line}" for block in blocks])


def write_idx(file: Path, values: np.ndarray) -> None:
    """The format of MNIST: two zeros, 8 for uint8, the number of axes, their lengths, the values; gzipped."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(length.to_bytes(4, "big") for length in values.shape)
    file.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_mnist(folder: Path) -> None:
    """The four files of MNIST with scikit-learn's digits in them: 200 and 100 images, enlarged to 28 x 28."""
    folder.mkdir(parents=True)
    digits = load_digits()
    images = np.pad(np.kron(digits.images * 255 / 16, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    for name, part in {"train": slice(0, 200), "t10k": slice(200, 300)}.items():
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[part])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", digits.target[part])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: data/mnist, and a package of somebody else's that mirrors the reference."""
    folder = tmp_path_factory.mktemp("pages")
    write_mnist(folder / "data" / "mnist")
    (folder / "my_package").mkdir()
    for file in Path(accelerated.__path__[0]).glob("*.py"):
        shutil.copy(file, folder / "my_package")
    return folder


def run(command: list[str], folder: Path) -> str:
    """What the command prints. Its programs are those beside this Python."""
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": os.pathsep.join([programs, os.environ["PATH"]])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    found = [block for block in BLOCKS if block.page == page]
    assert page.read_text().count("\n```") == 2 * len(found)
    assert {block.language for block in found} <= {"python", "sh", "text"}


def test_readme_is_short() -> None:
    assert README.count("\n") <= 200


@in_language("python")
def test_program(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of text that follows is what the program prints."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(block.text, f"{block.page.name}, line {block.line}", "exec"), {"__name__": "__main__"})
    following = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    if following and following[0].page == block.page and following[0].language == "text":
        assert printed.getvalue() == following[0].text


@in_language("sh")
def test_commands(block: Block, folder: Path) -> None:
    """make's targets have to be there: .ci/run makes them. Few tests of `prograde check` run; no data are fetched."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets), line
        elif words[:2] == ["prograde", "check"]:
            run([*words, "-k", "test_pepita"], folder)
        elif words[:3] == ["prograde", "data", "fetch"]:
            run(["prograde", "data", "fetch", "--list"], folder)
        elif words and words[0] not in ("cd", "pip") and words[:2] != ["git", "clone"]:
            run(["bash", "-euo", "pipefail", "-c", line], folder)


ALGORITHMS = [name for name in reference.__all__ if hasattr(getattr(reference, name), "updates") and name != "layers"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_in_the_table(name: str) -> None:
    assert re.search(rf"^\|.*\[`{name}`\]\(reference/{name}\.py\)", README, flags=re.MULTILINE), name


def headings(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text()):
        target = page.parent / match["target"] if match["target"] else page
        assert target.exists(), match["target"]
        assert not match["heading"] or match["heading"] in headings(target), match[0]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_readme_links_to_every_page(page: Path) -> None:
    assert f"(docs/{page.name}" in README


def test_the_table_of_rules_and_models_is_the_one_that_tests_run() -> None:
    assert "\n".join(rows()) in (ROOT / "docs" / "own-model.md").read_text()
