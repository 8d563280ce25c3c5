"""What can be read is read as it is; what can't is refused with the file, what was found and what was expected."""

import gzip
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_wine

from prograde.accelerated.training import (
    DataError,
    Split,
    accuracy,
    build,
    default_recipe,
    fit,
    load,
    restore,
)
from prograde.accelerated.training.data import reading

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx(array: NDArray[Any], code: int = 8) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(TYPES[code]).tobytes()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("separator", ["-", "."])
def test_folder_is_read_as_written(make_folder: Callable[..., Path], separator: str, packed: bool) -> None:
    folder = make_folder(separator, packed)
    dataset = load(folder)

    assert [len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)] == [110, 10, 30]
    assert dataset.image_shape == (3, 4)
    assert dataset.features == 12
    assert dataset.num_classes == 3
    assert dataset.classes == ("0", "1", "2")

    def written(part: str) -> NDArray[np.float32]:
        path = next(folder.glob(f"{part}-images*"))
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        return np.frombuffer(content[16:], np.uint8).reshape(-1, 12).astype(np.float32) / np.float32(255)

    assert torch.equal(dataset.test.images, torch.from_numpy(written("t10k")))
    label_of = {image.tobytes(): i % 3 for i, image in enumerate(written("train"))}
    for split in (dataset.train, dataset.validation):
        assert [label_of.pop(image.numpy().tobytes()) for image in split.images] == split.labels.tolist()
    assert not label_of, "every sample once, with its label"


def in_classes(path: Path, counts: tuple[int, ...], **arrays: NDArray[Any]) -> Path:
    """An .npz of tables of so many samples of each class, class after class, whose one feature numbers them."""
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.arange(len(y), dtype=np.float32)[:, None]
    np.savez(path, **{"x_train": x, "y_train": y, "x_test": x, "y_test": y} | arrays)
    return path


@pytest.mark.parametrize("counts", [(130, 130, 130), (100, 20, 4), (30, 2, 1), (3, 3, 3), (2, 1, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_validation_is_drawn_evenly_by_class(tmp_path: Path, counts: tuple[int, ...], seed: int) -> None:
    data = load(in_classes(tmp_path / "sorted.npz", counts), seed=seed)
    held = data.validation.labels.bincount(minlength=3).tolist()
    kept = data.train.labels.bincount(minlength=3).tolist()
    assert [a + b for a, b in zip(held, kept, strict=True)] == list(counts)
    assert min(kept) >= 1, "every class is trained on"
    for count, drawn in zip(counts, held, strict=True):
        assert drawn >= (count > 1), "every class of two or more is validated on"
        for other, drawn_there in zip(counts, held, strict=True):
            ahead = (drawn - 1) / count <= drawn_there / other
            assert ahead or drawn_there == other - 1, "no class is more than a sample ahead of another"
    assert torch.cat([data.train.images, data.validation.images]).unique().numel() == sum(counts), "every sample once"


def test_validation_is_a_draw_by_the_seed_and_grows(tmp_path: Path) -> None:
    path = in_classes(tmp_path / "sorted.npz", (60, 60))
    small, large, other = load(path, validation=5), load(path, validation=50), load(path, validation=5, seed=1)
    assert torch.equal(small.validation.images, large.validation.images[:5])
    assert not torch.equal(small.validation.images, other.validation.images)
    assert torch.equal(small.validation.images, load(path, validation=5).validation.images)
    for count in (0, 119):
        with pytest.raises(DataError, match=rf"validation: {count} samples, expected 1\.\.118 of the 120"):
            load(path, validation=count)
    with pytest.raises(DataError, match=r"each of 2 classes keeps one"):
        load(in_classes(tmp_path / "one_each.npz", (1, 1)))


def test_first_training_samples_hold_all_classes(tmp_path: Path) -> None:
    """Alignment and margins are measured on them."""
    data = load(in_classes(tmp_path / "sorted.npz", (60, 60, 60)))
    assert (data.train.labels[:30].bincount(minlength=3) >= 9).all()


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
        (IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], "bytes of data, expected 79228162458924105385300197375"),
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


NAMES: dict[str, Callable[[str], str]] = {
    "EMNIST": lambda name: f"emnist-letters-{name}".replace("t10k", "test"),
    "QMNIST": lambda name: f"qmnist-{name}".replace("t10k", "test").replace("labels-idx1-ubyte", "labels-idx2-int"),
    "in capitals": lambda name: name.removesuffix(".gz").upper() + (".GZ" if name.endswith(".gz") else ""),
    "short": lambda name: name.replace("-idx3-ubyte", ".idx").replace("-idx1-ubyte", ".idx"),
    "gzip under a plain name": lambda name: name.removesuffix(".gz"),
    "plain under gzip's name": lambda name: name if name.endswith(".gz") else f"{name}.gz",
    "in folders of these names": lambda name: f"{name.removesuffix('.gz')}/{name.replace('-idx', '.idx')}",
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("names", NAMES)
def test_files_of_relatives_are_read_under_their_names(
    make_folder: Callable[..., Path], names: str, packed: bool
) -> None:
    folder = make_folder("-", packed)
    expected = load(folder)
    for path in list(folder.iterdir()):
        renamed = path.rename(path.with_name("moved"))
        target = folder / NAMES[names](path.name)
        target.parent.mkdir(exist_ok=True)
        renamed.rename(target)
    assert torch.equal(load(folder).train.images, expected.train.images)


def test_an_unpacked_file_goes_before_its_archive_and_sets_are_not_mixed(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("-", False)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"left behind")
    assert load(folder).num_classes == 3
    (folder / "emnist-digits-train-images-idx3-ubyte").write_bytes(b"?")
    with pytest.raises(
        DataError, match=r"files of several sets, '' and 'emnist-digits-'; expected one set in a folder"
    ):
        load(folder)


@pytest.mark.parametrize("code", [11, 12, 13, 14])
@pytest.mark.parametrize("scale", [1, 255])
def test_types_of_idx_give_the_same_pixels(make_folder: Callable[..., Path], code: int, scale: int) -> None:
    folder = make_folder("-", False)
    expected = load(folder)
    for part in ("train", "t10k"):
        images, labels = folder / f"{part}-images-idx3-ubyte", folder / f"{part}-labels-idx1-ubyte"
        values = np.frombuffer(images.read_bytes()[16:], np.uint8).reshape(-1, 3, 4)
        images.write_bytes(idx(values / scale, code) if code > 12 else idx(values, code))
        labels.write_bytes(idx(np.frombuffer(labels.read_bytes()[8:], np.uint8), 12))
    found = load(folder)
    assert torch.allclose(found.train.images, expected.train.images, rtol=2**-23, atol=0)
    assert torch.equal(found.train.labels, expected.train.labels)


def test_labels_of_qmnist_are_its_first_column(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("-", False)
    expected = load(folder)
    for path in folder.glob("*labels*"):
        labels = np.frombuffer(path.read_bytes()[8:], np.uint8)
        rows = np.arange(8 * len(labels)).reshape(-1, 8) + 7
        rows[:, 0] = labels
        path.write_bytes(idx(rows, 12))
    assert torch.equal(load(folder).train.labels, expected.train.labels)


PIXELS = np.arange(1440).reshape(120, 3, 4) % 256
MENDED: dict[str, tuple[str, bytes, str]] = {
    "a page": ("train-images-idx3-ubyte", b"<!DOCTYPE html><html>403</html>", "a page of text or HTML: download"),
    "a zip": ("train-images-idx3-ubyte", b"PK\3\4" + bytes(30), "a zip archive: unpack it"),
    "packed twice": ("train-images-idx3-ubyte", gzip.compress(gzip.compress(IMAGES)), "packed twice: gunzip it once"),
    "swapped": ("train-images-idx3-ubyte", idx(np.arange(120) % 3), "are images and labels swapped"),
    "little-endian": (
        "train-images-idx3-ubyte", struct.pack("<4I", 0x803, 120, 3, 4) + bytes(1440), "little-endian: write it big-"
    ),
    "little-endian sizes": (
        "train-images-idx3-ubyte", b"\0\0\x08\3" + struct.pack("<3I", 120, 3, 4) + bytes(1440),
        "its header is little-endian: write it big-endian",
    ),
    "CRLF": (
        "train-images-idx3-ubyte", idx(PIXELS).replace(b"\n", b"\r\n"), "line ends were changed to CRLF.*copy it again"
    ),
    "labels from 1": ("train-labels-idx1-ubyte", idx(np.arange(120) % 3 + 1), "labels count from 1: subtract 1"),
    "a gap": ("train-labels-idx1-ubyte", idx(np.arange(120) % 3 * 2), "training has no label 1: .* number both"),
    "a label of no class": ("t10k-labels-idx1-ubyte", idx(np.full(30, 4)), "label 4 .* no class 4 in training: leave"),
    "a header of a tebibyte": (
        "train-images-idx3-ubyte", gzip.compress(struct.pack(">I3I", 0x803, 1 << 20, 1 << 10, 1 << 10)),
        "at most .* bytes of data, expected 1099511627776 for shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MENDED)
def test_messages_about_idx_name_the_fix(make_folder: Callable[..., Path], case: str) -> None:
    folder = make_folder("-", False)
    name, content, message = MENDED[case]
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        load(folder)


INSTEAD: dict[str, tuple[tuple[str, ...], str]] = {
    "val": (("train/", "val/"), "rename 'val' to 'test'"),
    "names of mnist_png": (("training/", "testing/"), "rename 'testing' to 'test' and 'training' to 'train'"),
    "a zip": (("train.zip",), r"unpack train\.zip"),
    "bzip2": (("train.tar.bz2", "test.tar.bz2"), r"unpack test\.tar\.bz2, or pack it as one of \.tar"),
    "an .npz": (("mnist.npz",), r"or name the file: mnist\.npz"),
    "a table": (("iris.csv",), r"or name the file: iris\.csv"),
    "nested": (("MNIST/raw/train/", "MNIST/raw/test/"), "or name the folder inside: .*MNIST/raw"),
    "classes alone": (("cat/0.png", "dog/0.png"), "divide the images of cat and the others into train and test"),
    "nothing": ((), "the folder is empty"),
}


@pytest.mark.parametrize("case", INSTEAD)
def test_messages_about_a_folder_name_the_fix(tmp_path: Path, case: str) -> None:
    names, message = INSTEAD[case]
    for name in names:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"?")
    with pytest.raises(DataError, match=f"expected MNIST's four files, or train and test, .*{message}"):
        load(tmp_path)


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
    assert dataset.validation.labels.sort().values.tolist() == [0, 1]


def pixels(samples: int, seed: int) -> NDArray[np.uint8]:
    """Images of 4 x 5 bytes up to 255."""
    images = np.random.default_rng(seed).integers(0, 256, (samples, 4, 5)).astype(np.uint8)
    images[:, 0, 0] = 255
    return images


BYTES = pixels(24, 0), pixels(6, 1)


@pytest.mark.parametrize("train", ["bytes", "unit", "float bytes", "half"])
@pytest.mark.parametrize("test", ["same", "bytes"])
def test_pixels_are_the_same_in_every_unit(tmp_path: Path, train: str, test: str) -> None:
    """What rules that take raw pixels are given may not depend on how they were stored."""
    convert: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
        "bytes": lambda x: x,
        "unit": lambda x: x.astype(np.float32) / np.float32(255),
        "float bytes": lambda x: x.astype(np.float32),
        "half": lambda x: x.astype(np.float16),
    }
    arrays = convert[train](BYTES[0]), convert[train if test == "same" else "bytes"](BYTES[1])
    data = load(_npz(tmp_path / "data.npz", x_train=arrays[0], x_test=arrays[1]))
    expected = load(_npz(tmp_path / "expected.npz", x_train=BYTES[0], x_test=BYTES[1]))
    assert expected.train.images.max() == 1
    for part, own in zip(data[1:4], expected[1:4], strict=True):
        assert torch.equal(part.images, own.images)


def test_bytes_of_0_and_1_are_whole_pixels(tmp_path: Path) -> None:
    data = load(_npz(tmp_path / "data.npz", x_train=BYTES[0] // 128, x_test=BYTES[1] // 128))
    assert data.train.images.unique().tolist() == [0, 1]


UNITS: dict[str, tuple[NDArray[Any], NDArray[Any], str]] = {
    "one part in bytes": (BYTES[0] / 255, BYTES[1] * 1.0, "x_test: values to 255, but those of .* go to 1; .* divide"),
    "one sample in bytes": (
        np.concatenate([BYTES[0][:23] * 1.0, BYTES[0][23:] / 255]),
        BYTES[1] * 1.0,
        "x_train: sample 23 has values in 0..1, others go to 255; .*divide the others by 255",
    ),
    "one sample in units": (
        np.concatenate([BYTES[0][:1] * 1.0, BYTES[0][1:] / 255]),
        BYTES[1] * 1.0,
        "x_train: sample 1 has values in 0..1, others go to 255",
    ),
    "the digits as they come": (BYTES[0] / 255 * 16, BYTES[1] / 255 * 16, "x_train: values 0 to 16, expected.*divide"),
    "16 bits": (BYTES[0] * 257.0, BYTES[1] * 257.0, "x_train: values .* to 65535, expected 0..1, 0..255.*divide"),
    "a swing about 0": (BYTES[0] - 128.0, BYTES[1] - 128.0, "x_train: values -128 to 127, expected"),
    "all pixels alike": (BYTES[0] * 0, BYTES[1], "x_train: all 24 samples are alike"),
    "all samples alike": (BYTES[0], BYTES[1][[0] * 6], "x_test: all 6 samples are alike"),
}


@pytest.mark.parametrize("case", UNITS)
def test_units_that_could_be_two_are_refused(tmp_path: Path, case: str) -> None:
    train, test, message = UNITS[case]
    with pytest.raises(DataError, match=message):
        load(_npz(tmp_path / "data.npz", x_train=train, x_test=test))


def test_standardised_images_stay_as_they_are(tmp_path: Path) -> None:
    shifted = [(part - np.float32(100)) / 50 for part in BYTES]
    data = load(_npz(tmp_path / "data.npz", x_train=shifted[0], x_test=shifted[1]))
    assert torch.equal(data.test.images, torch.from_numpy(shifted[1]).float().flatten(1))
    assert not data.is_table


def wine(path: Path) -> Path:
    data = load_wine()
    order = np.random.default_rng(0).permutation(len(data.target))
    train, test = order[60:], order[:60]
    np.savez(
        path, x_train=data.data[train], y_train=data.target[train], x_test=data.data[test], y_test=data.target[test]
    )
    return path


def test_features_of_a_table_are_standardised_each(tmp_path: Path) -> None:
    data = load(wine(tmp_path / "wine.npz"))
    assert data.is_table
    features = data.to("cpu", torch.float64, standardise=True).train.images
    assert features.mean(dim=0).abs().max() < 1e-5
    assert (features.std(dim=0, correction=0) - 1).abs().max() < 1e-5
    assert data.train.images.max() > 1000, "as they came"


def test_constant_features_of_a_table_become_0(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(24, 3)) * 1e-3
    x[:, 1] = 0.1
    moved = load(_npz(tmp_path / "data.npz", x_train=x, x_test=x[:6])).to("cpu", torch.float32, standardise=True)
    assert moved.test.images.isfinite().all()
    assert moved.test.images[:, 1].abs().max() < 1e-6
    assert (moved.train.images[:, [0, 2]].std(dim=0, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["backprop", "foton", "pepita", "forward-forward"])
def test_wine_is_learned_whatever_its_units(tmp_path: Path, method: str) -> None:
    """With one mean and deviation for all features, backpropagation reaches .75, and rules on raw pixels .45."""
    data = load(wine(tmp_path / "wine.npz"))
    recipe = default_recipe(method, "digits", hidden=(32,), epochs=30)
    assert fit(build(method, data, recipe, seed=0), data, recipe=recipe, alignment_every=0).test_accuracy >= 0.8


def test_a_table_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    data = load(wine(tmp_path / "wine.npz"))
    recipe = default_recipe("pepita", "digits", hidden=(32,), epochs=3)
    path = tmp_path / "checkpoint"
    history = fit(build("pepita", data, recipe, seed=0), data, recipe=recipe, alignment_every=0, checkpoint=path)
    restored = restore(path)
    test = Split((data.test.images - restored.mean) / restored.std, data.test.labels)
    assert accuracy(restored.rule, test) == history.test_accuracy


def test_only_the_arrays_needed_are_read(tmp_path: Path) -> None:
    path = _npz(tmp_path / "data.npz", meta=np.array([{"a": 1}], dtype=object), ids=np.array(["a" * 9]))
    content = path.read_bytes()
    at = content.index(b"a\0\0\0" * 9)
    path.write_bytes(content[:at] + b"?" + content[at + 1 :])  # against its checksum
    assert load(path).num_classes == 2


def test_labels_may_be_a_column(tmp_path: Path) -> None:
    path = _npz(tmp_path / "data.npz", y_train=np.arange(24)[:, None] % 2, y_test=np.arange(6)[:, None] % 2)
    assert load(path).test.labels.tolist() == [0, 1, 0, 1, 0, 1]


def _doctored_header(path: Path, before: bytes, after: bytes) -> None:
    """Says another thing of x_train, with checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert len(before) == len(after)
    assert before in members["x_train.npy"]
    members["x_train.npy"] = members["x_train.npy"].replace(before, after, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("(24, 2, 3), }          ", "(999999999, 2, 3), }", "1152 bytes of data, expected 47999999952 for shape"),
        ("(24, 2, 3)", "(23, 2, 3)", "1152 bytes of data, expected 1104 for shape"),
        ("(24, 2, 3), }          ", "(-24, 2, -3), }", "1152 bytes of data, expected 1152 for shape (-24, 2, -3)"),
        ("'<f8'", "'|V8'", "dtype |V8, expected uint8 or floating point"),
        ("'<f8'", "'<f9'", "not a whole .npz file of plain arrays"),
        ("(24, 2, 3), }", "(24, 2, 3), ", "not a whole .npz file of plain arrays"),
        ("(24, 2, 3)", "((((((((((", "not a whole .npz file of plain arrays"),
    ],
)
def test_headers_of_npz_are_held_to_its_data(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = _npz(tmp_path / "data.npz")
    _doctored_header(path, before.encode(), after.ljust(len(before)).encode())
    with pytest.raises(DataError, match=f"data.npz.*{re.escape(message)}"):
        load(path)


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npz"])
def test_nothing_is_read_that_memory_does_not_hold(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = _npz(tmp_path / "data.npz") if kind == "npz" else make_folder("-", kind == "idx.gz")
    monkeypatch.setattr(reading, "available_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"of memory, 9\.31e-07 GiB are available; expected fewer or smaller samples"):
        load(path)
    monkeypatch.setattr(reading, "available_memory", lambda: None)
    assert load(path).num_classes > 1, "where it is not known there is no bound"


def test_available_memory_is_known_here() -> None:
    available = reading.available_memory()
    assert available is None or 1 << 20 < available < 1 << 50


def test_causes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"text")
    with pytest.raises(DataError) as raised:
        load(path)
    assert isinstance(raised.value.__cause__, zipfile.BadZipFile)


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
        (
            {"x_train": np.full((24, 2, 3), None)},
            "x_train: an array of Python objects, expected one of numbers; np.stack",
        ),
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
