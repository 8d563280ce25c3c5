"""What can be read is read as it is; what can't is refused with the file, what was found and what was expected."""

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prograde.accelerated.training import DataError, load


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("separator", ["-", "."])
def test_folder_is_read_as_written(make_folder: Callable[..., Path], separator: str, packed: bool) -> None:
    folder = make_folder(separator, packed)
    dataset = load(folder)

    assert [len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)] == [110, 10, 30]
    assert dataset.image_shape == (3, 4)
    assert dataset.features == 12
    assert dataset.num_classes == 3
    labels = torch.arange(120) % 3
    assert torch.equal(torch.cat([dataset.train.labels, dataset.validation.labels]), labels)
    path = next(folder.glob("t10k-images*"))
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    expected = np.frombuffer(content[16:], np.uint8).reshape(30, 12).astype(np.float32) / np.float32(255)
    assert torch.equal(dataset.test.images, torch.from_numpy(expected))


def test_validation_is_the_end_of_training(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    small, large = load(folder, validation=5), load(folder, validation=50)
    assert torch.equal(small.validation.images, large.validation.images[-5:])
    assert torch.equal(small.train.images[:70], large.train.images)
    with pytest.raises(DataError, match=r"validation: 120 samples, expected 1\.\.119"):
        load(folder, validation=120)


def test_standardised_training_pixels_have_mean_0_and_deviation_1(make_folder: Callable[..., Path]) -> None:
    pixels = load(make_folder()).to("cpu", torch.float64, standardise=True).train.images
    assert pixels.dtype == torch.float64
    assert abs(pixels.mean().item()) < 1e-6
    assert abs(pixels.std(correction=0).item() - 1) < 1e-6


def test_digits_keep_their_test_samples_and_their_classes_in_proportion() -> None:
    first, second = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    for part in (first.train, first.validation, first.test):
        counts = part.labels.bincount(minlength=10) / len(part.labels)
        assert (counts - 0.1).abs().max() < 0.012
    images = torch.cat([first.train.images, first.validation.images, first.test.images])
    assert len(images) == 1797
    assert images.min() == 0
    assert images.max() == 1


def _damage(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


IMAGES = idx(np.zeros((120, 3, 4), np.uint8))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES[:-1], "1439 bytes of data, expected 1440 for shape (120, 3, 4)"),
        (IMAGES + b"\0", "more bytes of data, expected 1440"),
        (IMAGES[:9], "ends after 9 bytes, expected a header of 16"),
        (b"\0\0\x08\x01" + IMAGES[4:], "starts with 0x00000801, expected 0x00000803"),
        (b"", "ends after 0 bytes"),
        (IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], "1440 bytes of data, expected"),
        (idx(np.zeros((0, 3, 4), np.uint8)), "shape (0, 3, 4), expected at least one"),
        (idx(np.zeros((119, 3, 4), np.uint8)), "120 labels, but"),
        (idx(np.zeros((120, 4, 4), np.uint8)), "images of shape (3, 4), but"),
    ],
)
def test_doctored_images_are_refused(
    make_folder: Callable[..., Path], packed: bool, content: bytes, message: str
) -> None:
    folder = make_folder("-", packed)
    _damage(next(folder.glob("train-images*")), content)
    with pytest.raises(DataError, match=f"train-images.*{re.escape(message)}|{re.escape(message)}.*train-images"):
        load(folder)


@pytest.mark.parametrize("cut", [5, 40, -3])
def test_damaged_gzip_is_refused(make_folder: Callable[..., Path], cut: int) -> None:
    folder = make_folder()
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"t10k-images.*damaged gzip"):
        load(folder)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"t10k-images.*damaged gzip"):
        load(folder)


def test_labels_out_of_range_are_refused(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("-", False)
    labels = (np.arange(30) % 3).astype(np.uint8)
    labels[17] = 3
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match=r"t10k-labels.*label 3 at index 17, expected 0\.\.2"):
        load(folder)


def test_missing_things_are_named(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte "):
        load(folder)
    with pytest.raises(DataError, match="data: 'digitz' does not exist"):
        load("digitz")


def _npz(path: Path, **changes: object) -> Path:
    random = np.random.default_rng(0)
    arrays: dict[str, object] = {
        "x_train": random.normal(size=(24, 2, 3)),
        "y_train": np.arange(24) % 2,
        "x_test": random.normal(size=(6, 2, 3)),
        "y_test": np.arange(6) % 2,
    }
    arrays.update(changes)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]
    return path


def test_npz_keeps_floating_point_values(tmp_path: Path) -> None:
    path = _npz(tmp_path / "data.npz")
    dataset = load(path)
    assert torch.equal(dataset.test.images, torch.from_numpy(np.load(path)["x_test"]).float().flatten(1))
    assert dataset.name == "data"
    assert dataset.image_shape == (2, 3)
    assert len(dataset.validation.labels) == 2


NOT_FINITE = np.zeros((24, 2, 3))
NOT_FINITE[5, 1, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": NOT_FINITE}, r"x_train: nan at index \(5, 1, 2\)"),
        ({"x_test": np.full((6, 2, 3), 1e300)}, r"x_test: inf at index \(0, 0, 0\)"),
        ({"y_test": np.array([0, 1, 0, 1, 0, -1])}, r"y_test: label -1 at index 5, expected 0\.\.1"),
        ({"y_test": np.zeros(6)}, "y_test: float64"),
        ({"y_train": np.zeros(24, int)}, "y_train: only the label 0"),
        ({"y_test": None}, "no array y_test"),
        ({"x_test": np.zeros((6, 6))}, r"x_test: images of shape \(6,\), but"),
        ({"x_train": np.zeros((24, 2, 3), int)}, "x_train: dtype int64"),
        ({"x_train": np.full((24, 2, 3), None)}, "not a whole .npz file of plain arrays"),
    ],
)
def test_doctored_npz_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(_npz(tmp_path / "data.npz", **changes))


def test_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "data.npz")
    whole = path.read_bytes()
    for content in (whole[:200], whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a whole \.npz file"):
            load(path)
