"""Every block of README.md does what it says: programs run, commands run, targets exist."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_digits

from prograde import accelerated, reference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text and the line of README.md on which it opens."""

    language: str
    text: str
    line: int


def blocks() -> Iterator[Block]:
    """The blocks of README.md in turn."""
    for match in FENCE.finditer(README):
        yield Block(match["language"], match["text"], README.count("\n", 0, match.start()) + 1)


BLOCKS = list(blocks())


def in_language(language: str) -> pytest.MarkDecorator:
    blocks = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", blocks, ids=[f"line {block.line}" for block in blocks])


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
    folder = tmp_path_factory.mktemp("readme")
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


def test_every_block_is_of_a_known_kind() -> None:
    assert README.count("\n```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"python", "sh", "text"}


@in_language("python")
def test_program(block: Block, tmp_path: Path) -> None:
    """A block of text that follows is what the program prints."""
    printed = run([sys.executable, "-W", "error", "-c", block.text], tmp_path)
    following = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    if following and following[0].language == "text":
        assert printed == following[0].text


@in_language("sh")
def test_commands(block: Block, folder: Path) -> None:
    """make's targets have to be there: .ci/run makes them. Everything else is run."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets), line
        elif words and words[0] != "cd" and words[:2] != ["git", "clone"]:
            run(["bash", "-euo", "pipefail", "-c", line], folder)


@pytest.mark.parametrize("name", [name for name in reference.__all__ if hasattr(getattr(reference, name), "updates")])
def test_every_algorithm_is_in_the_table(name: str) -> None:
    assert re.search(rf"^\| \[?`{name}`", README, flags=re.MULTILINE), f"README.md does not list {name}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
