"""Data sets in MNIST's layout, small enough to be made for a test."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutations", type=int, default=100, help="Damaged files of each format.")
    parser.addoption("--mutation-seed", type=int, default=0, help="What they are drawn from.")
    parser.addoption("--kills", type=int, default=5, help="How often a training is killed.")


def _idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes the four files: 120 training and 30 test images of 3 x 4 pixels in 3 classes, which can be told apart."""

    def make(separator: str = "-", packed: bool = True) -> Path:
        random = np.random.default_rng(0)
        folder = tmp_path / "images"
        folder.mkdir()
        for part, samples in (("train", 120), ("t10k", 30)):
            labels = (np.arange(samples) % 3).astype(np.uint8)
            images = random.integers(0, 60, (samples, 3, 4)).astype(np.uint8)
            images[np.arange(samples), labels] += 180
            for kind, array in (("images", images), ("labels", labels)):
                name = f"{part}-{kind}{separator}idx{array.ndim}-ubyte"
                if packed:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
                else:
                    (folder / name).write_bytes(_idx(array))
        return folder

    return make
