"""CIFAR's files, tables, and data sets in memory or of other libraries are read as they are, with names of classes."""

import builtins
import codecs
import io
import os
import pickle
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_iris
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from prograde.accelerated.training import DataError, Dataset, UserError, load
from prograde.accelerated.training.data import pickles, reading
from prograde.accelerated.training.data.objects import read_objects
from prograde.accelerated.training.data.pickles import unpickled
from prograde.accelerated.training.data.tables import read_features


def samples_of(data: Dataset) -> dict[bytes, str]:
    """The class of each sample of training and validation."""
    return {
        image.numpy().tobytes(): data.classes[label]
        for part in (data.train, data.validation)
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    }


PER_FILE = 8
NAMES = tuple(f"kind {i}" for i in range(4))

Batch = tuple[NDArray[np.uint8], list[int], list[int]]
"""Images (n, 3, 32, 32), labels, and coarse labels."""


def batches() -> list[Batch]:
    """Five of training and one of test."""
    rng = np.random.default_rng(0)
    labels = [i % 4 for i in range(PER_FILE)]
    return [
        (rng.integers(0, 256, (PER_FILE, 3, 32, 32)).astype(np.uint8), labels, [1 - label // 2 for label in labels])
        for _ in range(6)
    ]


def entry(batch: Batch, hundred: bool, python2: bool) -> bytes:
    """As published: by Python 2, whose strings are bytes; or as Python 3 writes it."""
    images, labels, coarse = batch
    found: dict[Any, Any] = {"batch_label": "a batch", "data": images.reshape(len(images), -1)}
    found |= {"fine_labels": labels, "coarse_labels": coarse} if hundred else {"labels": labels}
    found["filenames"] = [f"{i}.png" for i in range(len(images))]
    return as_python2(found) if python2 else pickle.dumps(found, 4)


def as_python2(value: Any) -> bytes:
    """Protocol 2 with Python 2's instructions for strings, which no pickler of Python 3 writes."""

    def string(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content if len(content) < 256 else b"T" + int32(len(content)) + content

    def int32(number: int) -> bytes:
        return number.to_bytes(4, "little", signed=True)

    def write(value: Any) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(string(key.encode()) + write(each) for key, each in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, str):
            return string(value.encode())
        if isinstance(value, int):
            return b"K" + bytes([value])
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
        shape = b"(" + b"".join(b"J" + int32(size) for size in value.shape) + b"t"
        return made + b"(K\1" + shape + dtype + b"\x89" + string(value.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def cifar_files(form: str) -> dict[str, bytes]:
    ten, binary = "10 " in form, "binary" in form
    found = {}
    if ten:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        groups = [[batch] for batch in batches()]
    else:
        names, groups = ["train", "test"], [batches()[:5], batches()[5:]]
    for name, group in zip(names, groups, strict=True):
        images = np.concatenate([batch[0] for batch in group])
        labels = [label for batch in group for label in batch[1]]
        coarse = [label for batch in group for label in batch[2]]
        if binary:
            columns = [labels] if ten else [coarse, labels]
            rows = np.hstack([np.array(columns, np.uint8).T, images.reshape(len(images), -1)])
            found[f"{name}.bin"] = rows.tobytes()
        else:
            found[name] = entry((images, labels, coarse), not ten, "python 2" in form)
    if binary:
        listed = "\n".join(NAMES).encode() + b"\n\n"
        found |= (
            {"batches.meta.txt": listed} if ten else {"fine_label_names.txt": listed, "coarse_label_names.txt": b"x"}
        )
    else:
        meta = {"label_names" if ten else "fine_label_names": list(NAMES)}
        found["batches.meta" if ten else "meta"] = as_python2(meta) if "python 2" in form else pickle.dumps(meta)
    return found


FORMS = "10 binary", "10 python 2", "10 python 3", "100 binary", "100 python 2", "100 python 3"


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PLACES: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": lambda path, files: put(path, files),
    "folder that it unpacks to": lambda path, files: put(path / "cifar-10-batches-py", files).parent,
    "archive": lambda path, files: packed(path / "cifar-10-binary.tar.gz", files),
    "archive in a folder": lambda path, files: packed(path / "cifar-100-python.tar.gz", files).parent,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_cifar_is_read_as_published(tmp_path: Path, form: str, place: str) -> None:
    data = load(PLACES[place](tmp_path / "set", cifar_files(form)))
    assert data.classes == NAMES
    assert data.image_shape == (3, 32, 32)
    expected = {
        (image.astype(np.float32) / np.float32(255)).tobytes(): NAMES[label]
        for images, labels, _ in batches()[:5]
        for image, label in zip(images, labels, strict=True)
    }
    assert samples_of(data) == expected
    images, labels, _ = batches()[5]
    assert torch.equal(data.test.images, torch.from_numpy(images.reshape(PER_FILE, -1).astype(np.float32) / 255))
    assert data.test.labels.tolist() == labels


def laughs() -> list[Any]:
    """A list that holds one list twice, and so on: few bytes, of which the text is of 25 MB."""
    found: list[Any] = []
    for _ in range(22):
        found = [found, found]
    return found


LAUGHS = laughs()


def doctored(form: str, name: str, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    files = cifar_files(form)
    return files | {name: change(files[name])}


def without(form: str, name: str) -> dict[str, bytes]:
    return {other: content for other, content in cifar_files(form).items() if other != name}


DOCTORED: dict[str, tuple[dict[str, bytes], str]] = {
    "cut": (
        doctored("10 binary", "data_batch_3.bin", lambda content: content[:-1]),
        r"data_batch_3\.bin: 24583 bytes, expected records of 3073; copy or download",
    ),
    "empty": (doctored("100 binary", "test.bin", lambda _: b""), r"test\.bin: 0 bytes, expected records of 3074"),
    "missing": (without("10 python 3", "data_batch_2"), "no data_batch_2, expected data_batch_1, data_batch_2"),
    "a name too few": (
        doctored("10 binary", "batches.meta.txt", lambda _: b"one\ntwo\nthree"),
        "4 classes, but 3 names: one, two, three; expected one name for each",
    ),
    "other pixels": (
        doctored("10 python 3", "test_batch", lambda _: pickle.dumps({"data": np.zeros((2, 9)), "labels": [0, 1]})),
        r"test_batch: its data are float64 of shape \(2, 9\), expected uint8 \(samples, 3072\)",
    ),
    "no data": (
        doctored("10 python 3", "test_batch", lambda _: pickle.dumps({"labels": [0, 1]})),
        r"test_batch: its data are NoneType, expected uint8",
    ),
    "no labels": (
        doctored("10 python 3", "test_batch", lambda _: pickle.dumps({"data": np.zeros((2, 3072), np.uint8)})),
        r"test_batch: no samples with labels or fine_labels",
    ),
    "labels of text": (
        doctored(
            "10 python 3",
            "test_batch",
            lambda _: pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}),
        ),
        r"test_batch: its labels are no whole numbers",
    ),
    "a list": (doctored("100 python 3", "train", lambda _: pickle.dumps([1])), "train: holds a list, expected a dict"),
    "names that are lists of lists": (
        doctored("100 python 3", "meta", lambda _: pickle.dumps({"fine_label_names": LAUGHS})),
        "meta: no label_names or fine_label_names, expected a list of names",
    ),
    "names that a terminal obeys": (
        doctored("10 binary", "batches.meta.txt", lambda _: b"one\ntwo\n\x1b[2Jthree\nfour"),
        r"class '.x1b\[2Jthree', expected names without control characters",
    ),
    "a page": (doctored("100 python 3", "meta", lambda _: b"<html>"), "meta: not a whole pickle of plain values"),
}


@pytest.mark.parametrize("case", DOCTORED)
def test_doctored_cifar_is_refused(tmp_path: Path, case: str) -> None:
    files, message = DOCTORED[case]
    with pytest.raises(DataError, match=message):
        load(put(tmp_path / "set", files))
    with pytest.raises(DataError, match=message):
        load(packed(tmp_path / "cifar-10.tar.gz", files))


def test_cifar_without_names_has_numbers_and_one_set_is_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", without("10 binary", "batches.meta.txt"))
    assert load(folder).classes == ("0", "1", "2", "3")
    put(folder / "cifar-100-python", cifar_files("100 python 3"))
    with pytest.raises(DataError, match="has set and cifar-100-python; expected one; name it"):
        load(folder)


PLAIN: list[Any] = [
    None, True, False, 0, 255, 256, -1, 2**31, -(2**63), 2**100, 0.5, "", "café", b"", b"\xff\0",
    [], [1, [2, [3]]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {b"b": {3: None}}}, list(range(3000)),
]  # fmt: skip
ARRAYS: list[NDArray[Any]] = [
    np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.arange(3, dtype=">i2"),
    np.ones((2, 0), np.float16), np.array(7.5), np.array([True, False]),
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read_as_python_reads_them(protocol: int) -> None:
    for value in PLAIN:
        content = pickle.dumps(value, protocol)
        assert unpickled("file", content) == pickle.loads(content) == value
    same = np.arange(4)
    first, second = unpickled("file", pickle.dumps([same, same], protocol))
    assert first is second
    for value in ARRAYS:
        found = unpickled("file", pickle.dumps({"a": value}, protocol))["a"]
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert np.array_equal(found, value)


class Calls:
    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.made


class State:
    pass


HARMFUL: dict[str, bytes] = {
    "a command": pickle.dumps(Calls(os.system, "touch pwned")),
    "a command, by its instruction": b"cos\nsystem\n(Vtouch pwned\ntR.",
    "a command, as an instance": b"(Vtouch pwned\nios\nsystem\n.",
    "a command, as an object": b"(cos\nsystem\nVtouch pwned\no.",
    "a name alone": b"cos\nsystem\n.",
    "evaluated text": pickle.dumps(Calls(builtins.eval, "1")),
    "an attribute": pickle.dumps(Calls(getattr, "text", "upper")),
    "another function of NumPy": pickle.dumps(Calls(np.load, "x.npy")),
    "a user's class": pickle.dumps(State()),
    "an array's class, called": b"cnumpy\nndarray\n(I3\ntR.",
    "a name put together": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pname\n.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a state for a function": b"cnumpy\ndtype\n}(Vx\nI1\nub.",
    "an array of objects": pickle.dumps(np.array([None])),
    "a set": pickle.dumps({1}),
    "a deep key": pickle.dumps({(1,): 2}),
}


@pytest.mark.parametrize("case", HARMFUL)
def test_pickles_that_ask_for_more_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^file: (asks for|not a whole pickle of plain values)"):
        unpickled("file", HARMFUL[case])
    assert not list(tmp_path.iterdir())


BOMBS: dict[str, bytes] = {
    "a place far away": b"]r\xff\xff\xff\xff.",
    "a length": b"\x8e" + b"\xff" * 8 + b".",
    "a long number": b"\x8b\xff\xff\xff\x7f.",
    "a shape": pickle.dumps(np.zeros(3, np.uint8)).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
    "a text again and again": (
        b"\x80\x02c_codecs\nencode\nX\0\0\x10\0" + b"a" * (1 << 20) + b"q\0X\6\0\0\0latin1\x86q\1R"
        + b"c_codecs\nencode\nh\1R" * 1000 + b"."
    ),
    "instructions": b"N" * 100 + b".",
    "lists of lists as a byte order": pickle.dumps(Calls(np.dtype, "u1", state=(3, LAUGHS, None, None, None, -1, -1))),
    "lists of lists as a type": pickle.dumps(Calls(_frombuffer, b"", Calls(np.dtype, LAUGHS), (0,), "C")),
    "lists of lists as a shape": pickle.dumps(Calls(_frombuffer, b"", np.dtype("u1"), (LAUGHS,), "C")),
    "lists of lists as an encoding": pickle.dumps(Calls(codecs.encode, "a", LAUGHS)),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_pickles_take_no_more_memory_than_they_have_bytes(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 50 if case == "instructions" else 4000)
    tracemalloc.start()
    try:
        if case == "a place far away":
            assert unpickled("file", BOMBS[case]) == []
        else:
            with pytest.raises(DataError, match=r"^file: not a whole pickle of plain values"):
                unpickled("file", BOMBS[case])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def flowers() -> tuple[list[list[str]], list[str]]:
    """Rows of scikit-learn's iris, and their header."""
    iris = load_iris()
    rows = [
        [f"{value:g}" for value in x] + [str(iris.target_names[y])] for x, y in zip(iris.data, iris.target, strict=True)
    ]
    return rows, ["sepal length", "sepal width", "petal length", "petal width", "species"]


def written(path: Path, rows: list[list[str]], header: list[str], delimiter: str = ",") -> Path:
    text = "\n".join(delimiter.join(cells) for cells in [header, *rows]) + "\n"
    path.write_text(
        text, encoding="utf-8-sig" if delimiter == ";" else "utf-8", newline="\r\n" if delimiter == ";" else None
    )
    return path


def parquet(path: Path, rows: list[list[str]], header: list[str], **kinds: Any) -> Path:
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    made = {name: kinds.get(name, float if name != header[-1] else str) for name in header}
    writer.write_table(pyarrow.table({name: [made[name](cell) for cell in columns[name]] for name in header}), path)
    return path


@pytest.mark.parametrize("end", [".csv", ".tsv", ".CSV", ".parquet"])
def test_a_table_is_read_with_its_classes(tmp_path: Path, end: str) -> None:
    rows, header = flowers()
    path = tmp_path / f"iris{end}"
    if end == ".parquet":
        parquet(path, rows, header)
    else:
        written(path, rows, header, {".csv": ",", ".tsv": "\t", ".CSV": ";"}[end])
    data = load(path, label="species")
    assert data.name == "iris"
    assert data.classes == ("setosa", "versicolor", "virginica")
    assert data.is_table
    assert data.features == 4
    expected = {np.array(row[:4], np.float32).tobytes(): row[4] for row in rows}
    tested = {
        image.numpy().tobytes(): data.classes[k] for image, k in zip(data.test.images, data.test.labels, strict=True)
    }
    assert samples_of(data) | tested == expected
    counts = [part.labels.bincount().sort().values.tolist() for part in (data.train, data.validation, data.test)]
    assert counts == [[36, 37, 37], [3, 3, 4], [10, 10, 10]]
    other = load(f"{path}:species", seed=1)
    assert torch.equal(other.test.images, data.test.images), "whatever the seed"
    assert not torch.equal(other.validation.images, data.validation.images)
    moved = data.to("cpu", torch.float64, standardise=True).train.images
    assert moved.mean(dim=0).abs().max() < 1e-5
    assert (moved.std(dim=0, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("end", [".csv", ".parquet"])
def test_two_tables_are_a_data_set_whatever_the_order_of_columns(tmp_path: Path, end: str) -> None:
    rows, header = flowers()
    header[-1] = "Class"
    write = parquet if end == ".parquet" else written
    write(tmp_path / f"train{end}", rows[::2], header)
    other = [[row[2], row[0], row[1], row[3], row[4]] for row in rows[1::2]]
    write(tmp_path / f"test{end}", other, [header[i] for i in (2, 0, 1, 3, 4)])
    data = load(tmp_path)
    assert data.classes == ("setosa", "versicolor", "virginica")
    assert torch.equal(data.test.images, torch.tensor([list(map(float, row[:4])) for row in rows[1::2]]))


LABELS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "numbers": (["10", "9", "-1"], ("-1", "9", "10")),
    "numbers written as floats": (["1.0", "0.0", "2.0"], ("0", "1", "2")),
    "text": (["b", "a", "10"], ("10", "a", "b")),
    "quoted": (['"a, b"', '"say ""hi"""', " plain"], ("a, b", "plain", 'say "hi"')),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_a_table_are_named_classes(tmp_path: Path, case: str) -> None:
    names, classes = LABELS[case]
    rows = [[str(i), "0", names[i % 3]] for i in range(12)]
    data = load(written(tmp_path / "table.csv", rows, ["a", "b", "label"]))
    assert data.classes == classes
    plain = ["a, b", 'say "hi"', "plain"] if case == "quoted" else [name.removesuffix(".0") for name in names]
    assert all(name == plain[int(np.frombuffer(x, np.float32)[0]) % 3] for x, name in samples_of(data).items())


def test_numbers_and_truths_of_parquet_are_features(tmp_path: Path) -> None:
    rows = [[str(i), str(i % 5), str(i % 3), str(i % 2)] for i in range(20)]
    path = parquet(tmp_path / "t.parquet", rows, ["a", "b", "c", "y"], b=int, c=lambda cell: cell == "1", y=int)
    data = load(path)
    assert data.classes == ("0", "1")
    assert {tuple(row) for row in data.train.images.tolist()} <= {(i, i % 5, i % 3 == 1) for i in range(20)}


@pytest.mark.parametrize("end", [".csv", ".parquet"])
def test_a_column_of_names_is_one_of_0_and_1_for_each(tmp_path: Path, end: str) -> None:
    """In their order, of training's names; a table to test on, or to predict, may have its columns in another."""
    colours = "red", "a=b", "blue"
    rows = [[f"{i}", colours[i % 3], f"{i % 5}", f"{i % 2}"] for i in range(24)]
    header = ["size", "colour", "b", "y"]

    def write(name: str, order: list[int], some: list[list[str]]) -> Path:
        cells, names = [[row[i] for i in order] for row in some], [header[i] for i in order]
        if end == ".csv":
            return written(tmp_path / f"{name}{end}", cells, names)
        return parquet(tmp_path / f"{name}{end}", cells, names, y=int, colour=str)

    write("train", [0, 1, 2, 3], rows)
    test = write("test", [2, 1, 0, 3], rows[:2])
    data = load(tmp_path)
    assert data.columns == ("size", "colour=a=b", "colour=blue", "colour=red", "b")
    expected = {(i, i % 3 == 1, i % 3 == 2, i % 3 == 0, i % 5) for i in range(24)}
    assert {tuple(row) for part in (data.train, data.validation) for row in part.images.tolist()} == expected
    assert data.test.images.tolist() == [[0, 0, 0, 1, 0], [1, 1, 0, 0, 1]]
    assert read_features(test, data.columns).tolist() == data.test.images.tolist(), "the names are training's"
    green = [["1", "green", "1", "0"]]
    other = write("test", [0, 1, 2, 3], green)
    for read in (lambda: load(tmp_path), lambda: read_features(other, data.columns)):
        with pytest.raises(DataError, match="column 'colour': 'green' in row 0, expected one of training's: a=b, blue"):
            read()


TABLES: dict[str, tuple[str, str]] = {
    "no label": (
        "a,b\n1,2\n",
        r"no column for the label, expected the names of columns; it has a, b; name .* label='b'",
    ),
    "two labels": ("y,class,b\n1,2,3\n", "y and class for the label, expected the names"),
    "no header": ("1,1,2\n1,1,2\n", "two columns '1', expected the names of columns; .* has it a header"),
    "an index": (",a,y\n0,1,2\n", r"column 1 has no name, .* to_csv\(path, index=False\)"),
    "label alone": ("y\n1\n", "no column beside 'y', expected features"),
    "nothing": ("", "empty, expected the names of columns and rows"),
    "no rows": ("a,y\n", "no rows, expected samples"),
    "a cell too many": ("a,y\n1,0\n\n1,2,3\n", "line 4: 3 cells, expected 2 as in its header"),
    "a missing value": ("a,b,y\n1,2,0\n1,,0\n", "line 3, column 'b': empty, expected a number; fill in missing"),
    "a missing label": ("a,y\n1,\n", "line 2, column 'y': empty, expected a label"),
    "not a number": ("a,b,y\n1,nan,0\n", "column 'b': nan in row 0, expected finite float32 numbers; fill in"),
    "too large": ("a,b,y\n1,1e99,0\n", "column 'b': inf in row 0, expected finite float32"),
    "text among numbers": ("a,b,y\n1,2,0\n1,red,0\n", "line 3, column 'b': 'red', expected a number; a column has"),
    "numbers among names": ("a,b,y\n1,red,0\n1,2,0\n", "column 'b': '2' in row 1 among names, expected all numbers"),
    "sums of money": ("a,b,y\n1,$ 2.50,0\n", "line 2, column 'b': '. 2.50', expected a number; a column has"),
    "a missing name": ("a,b,y\n1,red,0\n1,,0\n", "line 3, column 'b': empty, expected a name; fill in missing"),
    "names of samples": (
        "a,b,y\n1,ann,0\n1,bob,0\n1,cid,1\n2,dan,1\n2,eve,1\n",
        "column 'b': 5 different names in 5 rows, expected numbers, or names of two rows and more, 256 at most; leave",
    ),
    "columns alike": ("b,b=red,y\nred,1,0\nred,2,0\nblue,2,1\nblue,2,1\n", "columns called as those of names will"),
    "decimal commas": ("a;b;y\n1;2,5;0\n", "line 2, column 'b': '2,5', expected a number; write decimal points"),
    "a regression": ("a,y\n1,0.5\n2,1.5\n", "column 'y': 0.5, expected classes: names or whole numbers; numbers are"),
    "whole numbers of a regression": (
        "a,y\n1,301\n2,178\n3,301\n4,17\n5,2\n",
        "column 'y': 4 different numbers in 5 rows, expected classes .*; numbers are learned in Python, by fit",
    ),
    "one class": ("a,y\n1,0\n2,0\n3,0\n", "only the label 0, expected two classes"),
    "an open quote": ('a,y\n1,"0\n2,0\n', "damaged table"),
    "no text": ("a,y\n1,\udcff\n", "damaged table .*utf-8"),
}


@pytest.mark.parametrize("case", TABLES)
def test_messages_about_a_table_name_the_fix(tmp_path: Path, case: str) -> None:
    text, message = TABLES[case]
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"table\.csv.*{message}"):
        load(path)


def test_tables_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, header = flowers()
    header[-1] = "class"
    written(tmp_path / "train.csv", rows, header)
    written(tmp_path / "test.csv", [[*rows[0][:4], "rose"]], header)
    with pytest.raises(
        DataError, match=r"test\.csv, column 'class': class 'rose' of sample 0, expected one of training's"
    ):
        load(tmp_path)
    written(tmp_path / "test.csv", rows, ["petals", *header[1:]])
    with pytest.raises(DataError, match=r"test\.csv: column 'petals' is in one of train\.csv and test\.csv alone"):
        load(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"has train\.csv and train, expected one of them"):
        load(tmp_path)
    written(tmp_path / "test.tsv", rows, header, "\t")
    with pytest.raises(DataError, match=r"has test\.csv and test\.tsv, expected one of them"):
        load(tmp_path)
    with pytest.raises(DataError, match="no column 'colour', expected the names of columns"):
        load(tmp_path / "train.csv", label="colour")
    with pytest.raises(DataError, match="label: 'class' of 'digits', expected none but of a table"):
        load("digits", label="class")
    monkeypatch.setattr(reading, "available_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"bytes of text need .* GiB of memory"):
        load(tmp_path / "train.csv")


def test_a_text_that_parquet_has_once_is_read_once(tmp_path: Path) -> None:
    """A file of a few kilobytes whose labels would fill 200 MB, each written out."""
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    places = pyarrow.array(np.arange(2000) % 2)
    texts = pyarrow.DictionaryArray.from_arrays(places, pyarrow.array(["a" * 100_000, "b" * 100_000]))
    path = tmp_path / "t.parquet"
    writer.write_table(pyarrow.table({"x": np.arange(2000) % 7, "y": texts}), path, store_schema=False)
    assert path.stat().st_size < 50_000
    before = pyarrow.default_memory_pool().max_memory()
    data = load(path)
    assert [len(name) for name in data.classes] == [100_000, 100_000]
    assert pyarrow.default_memory_pool().max_memory() - before < 50 << 20


def test_parquet_needs_pyarrow_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, header = flowers()
    path = parquet(tmp_path / "iris.parquet", rows, header, **{"sepal width": str})
    with pytest.raises(DataError, match=r"column 'sepal width': '3.5' in row 0 among names, expected all"):
        load(path, label="species")
    parquet(path, rows, header, **{"sepal width": lambda cell: None if cell == "3" else float(cell)})
    with pytest.raises(DataError, match=r"column 'sepal width': 26 missing values, expected none; fill them in"):
        load(path, label="species")
    parquet(path, rows, header, species=lambda cell: [cell])
    with pytest.raises(DataError, match=r"column 'species': list<.*>, expected names or whole numbers"):
        load(path, label="species")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"Parquet files need pyarrow; pip install"):
        load(path, label="species")


def colours(samples: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (samples, 5, 6, 3)).astype(np.uint8)


class Vision:
    """As torchvision's: an item is an image of Pillow, or what a transform makes of it, and its label."""

    def __init__(self, images: NDArray[np.uint8], transform: Callable[[Any], Any] | None = None) -> None:
        self.images, self.transform = images, transform
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[place])
        return (image if self.transform is None else self.transform(image)), place % 2


class Kind:
    def __init__(self, names: list[str] | None = None) -> None:
        if names is not None:
            self.names = names


class Rows:
    """As Hugging Face's: rows by column; kinds of columns, of which one of classes has names."""

    def __init__(self, features: dict[str, Kind], rows: list[dict[str, Any]]) -> None:
        self.features, self.rows = features, rows
        self.column_names = list(features)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class Stream(Rows):
    """As Hugging Face's: what it holds may not be known."""

    __len__ = property()  # type: ignore[assignment]

    def __init__(self) -> None:
        self.features = self.column_names = None  # type: ignore[assignment]


def vision_rows(images: NDArray[np.uint8], **more: Any) -> Rows:
    features = {"image": Kind(), "fine": Kind(["cat", "dog"]), **more}
    return Rows(
        features, [{"image": Image.fromarray(x), "fine": i % 2} | dict.fromkeys(more, 0) for i, x in enumerate(images)]
    )


TRAIN, TEST = colours(24, 0), colours(6, 1)


def tensors(images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.arange(len(images)) % 2


LIBRARIES: dict[str, Callable[[], Dataset]] = {
    "arrays": lambda: load(tuple(t.numpy() for t in tensors(TRAIN)), tuple(t.numpy() for t in tensors(TEST))),
    "tensors": lambda: load(tensors(TRAIN), tensors(TEST)),
    "TensorDataset": lambda: load(TensorDataset(*tensors(TRAIN)), TensorDataset(*tensors(TEST))),
    "torchvision": lambda: load(Vision(TRAIN), Vision(TEST)),
    "torchvision, a part": lambda: load(Subset(Vision(np.concatenate([TEST, TRAIN])), range(6, 30)), Vision(TEST)),
    "torchvision, transformed": lambda: load(
        *(
            Vision(part, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
            for part in (TRAIN, TEST)
        )
    ),
    "Hugging Face": lambda: load({"train": vision_rows(TRAIN), "test": vision_rows(TEST), "unsupervised": None}),
    "Hugging Face, two columns of classes": lambda: load(
        vision_rows(TRAIN, coarse=Kind(["animal"])), vision_rows(TEST, coarse=Kind(["animal"])), label="fine"
    ),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_data_sets_of_libraries_are_read_as_they_are(library: str) -> None:
    data = LIBRARIES[library]()
    named = not any(word in library for word in ("arrays", "ensor"))
    assert data.classes == (("cat", "dog") if named else ("0", "1"))
    assert data.image_shape == (3, 5, 6)
    expected = {(x.transpose(2, 0, 1) / np.float32(255)).tobytes(): data.classes[i % 2] for i, x in enumerate(TRAIN)}
    assert samples_of(data) == expected
    assert torch.equal(data.test.images, tensors(TEST)[0].flatten(1).float() / 255)


def test_hugging_face_itself_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    made = {
        part: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(x) for x in images], "label": [i % 2 for i in range(len(images))]}, features
        )
        for part, images in (("train", TRAIN), ("test", TEST))
    }
    data = load(datasets.DatasetDict(made))
    assert samples_of(data) == samples_of(LIBRARIES["Hugging Face"]())
    assert torch.equal(data.test.images, tensors(TEST)[0].flatten(1).float() / 255)
    assert data.classes == ("cat", "dog")
    iris = load_iris()
    columns = {f"x{i}": iris.data[:, i] for i in range(4)} | {"species": iris.target_names[iris.target].tolist()}
    table = load(datasets.Dataset.from_dict(columns), label="species")
    assert table.classes == ("setosa", "versicolor", "virginica")
    assert table.is_table
    assert len(table.test.labels) == 30


def test_torchvision_itself_is_read() -> None:
    try:
        from torchvision.datasets import FakeData
        from torchvision.transforms import ToTensor
    except (ImportError, RuntimeError):  # the latter of a build for another PyTorch
        pytest.skip("no torchvision that this PyTorch runs with")
    sets = [FakeData(30, (3, 4, 5), 2), FakeData(10, (3, 4, 5), 2, random_offset=30)]
    data = load(*sets)
    assert data.name == "FakeData"
    assert data.image_shape == (3, 4, 5)
    expected = torch.stack([ToTensor()(image) for image, _ in sets[1]]).flatten(1)
    assert torch.equal(data.test.images, expected)
    assert data.test.labels.tolist() == [int(label) for _, label in sets[1]]


def test_grey_images_beside_coloured_ones_have_three_channels() -> None:
    data = load(Vision(TRAIN), Vision(TEST[..., 0]))
    assert data.image_shape == (3, 5, 6)
    grey = torch.from_numpy(TEST[..., 0]).float() / 255
    assert torch.equal(data.test.images, grey[:, None].expand(-1, 3, -1, -1).flatten(1))
    assert load(Vision(TRAIN[..., 0]), Vision(TEST[..., 0])).image_shape == (5, 6)


def test_names_that_numpy_holds_as_objects_are_text() -> None:
    """As a column of pandas gives them."""
    rows = np.random.default_rng(0).normal(size=(24, 3))
    names = np.array(["cat", "dog"] * 12, dtype=object)
    assert load((rows, names)).classes == ("cat", "dog")


def test_a_pair_of_lists_is_read_as_one_of_arrays() -> None:
    """And two pairs of a sample and its label, of any kind, are two samples."""
    rows = [[float(place), 1.0 / (place + 1)] for place in range(24)]
    labels = [0, 1] * 12
    data, same = load((rows, labels)), load((np.array(rows), np.array(labels)))
    assert torch.equal(data.train.images, same.train.images)
    assert data.train.labels.tolist() == same.train.labels.tolist()
    assert load((rows, ["cat", "dog"] * 12)).classes == ("cat", "dog")
    for pairs in ([([0.0, 1.0], 0), ([1.0, 3.0], 1)], ((np.zeros(2), 0), (np.ones(2), 1))):
        assert len(read_objects(pairs, None, None).train.labels) == 2


def test_one_data_set_gives_a_test_part_too() -> None:
    data = load(Vision(TRAIN))
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [18, 2, 4]
    assert data.test.labels.bincount().tolist() == [2, 2]
    assert data.name == "Vision"


UNFIT: dict[str, tuple[Callable[[], Dataset], str]] = {
    "a number": (lambda: load(3), "train: of type int, expected a pair of arrays, a data set of torchvision"),
    "a generator": (lambda: load(iter(())), "expected a pair of arrays"),
    "x alone": (lambda: load(np.zeros((4, 2)), np.zeros(4)), r"train: a ndarray alone, .*load\(\(x, y\)\)"),
    "a path and a test part": (lambda: load("digits", tensors(TEST)), "test: a tuple beside 'digits', expected a path"),
    "a dict without test": (lambda: load({"train": vision_rows(TRAIN)}), "data: has train, expected train and test"),
    "no pairs": (lambda: load([{"x": 1}]), "train: item 0 is a dict, expected a pair of a sample and its label"),
    "no items": (lambda: load([]), "train: 0 samples, expected some"),
    "sizes": (
        lambda: load([(Image.new("L", (3, 3 + i)), i) for i in range(2)]),
        r"sample 1 is uint8 of shape \(4, 3\), expected uint8 of shape \(3, 3\) as the first; a transform may",
    ),
    "boxes for labels": (
        lambda: load([(Image.new("L", (3, 3)), {"boxes": []})]),
        "train: a dict among them, expected num",
    ),
    "several labels": (
        lambda: load([(np.zeros((2, 2)), [0] * i) for i in range(3)]),
        "train, labels: numbers in no one shape, expected an array",
    ),
    "lists beside numbers": (
        lambda: load(Rows({"a": Kind(), "b": Kind(), "label": Kind()}, [{"a": 1.0, "b": [1, 2], "label": 0}])),
        "train: row 0: numbers in no one shape",
    ),
    "a stream": (lambda: load(Stream()), "train: of type Stream, expected a pair of arrays"),
    "16 bits": (lambda: load([(Image.new("I;16", (3, 3)), 0)]), "sample 0: pixels of mode I;16, expected 8 bits"),
    "integers": (lambda: load((np.zeros((3, 4), int), np.arange(3))), "train: dtype int64, expected uint8"),
    "numbers for labels": (
        lambda: load((TRAIN, np.zeros(24))),
        r"labels: float64 of shape \(24,\), expected int",
    ),
    "fewer labels": (lambda: load((TRAIN, np.arange(23) % 2)), "train, labels: 23 labels, but train has 24 images"),
    "text": (
        lambda: load(Rows({"text": Kind(), "label": Kind()}, [{"text": "good", "label": 0}])),
        r"train: column text of row 0 is 'good', expected numbers or an image; data\.remove_columns\('text'\)",
    ),
    "missing values": (
        lambda: load(Rows({"a": Kind(), "b": Kind(), "label": Kind()}, [{"a": 1.0, "b": None, "label": 0}])),
        "column b of row 0 is None",
    ),
    "two columns of classes": (
        lambda: load(vision_rows(TRAIN, coarse=Kind(["animal"]))),
        r"fine and coarse for the label, expected one of image, fine, coarse; name it as in .*label='coarse'\)",
    ),
    "another column": (lambda: load(vision_rows(TRAIN), label="no"), "no for the label, expected one of image, fine"),
    "a column of pairs": (lambda: load(Vision(TRAIN), label="x"), "label 'x' of a Vision, which has no columns"),
    "other classes": (
        lambda: load(vision_rows(TRAIN), Rows({"image": Kind(), "fine": Kind(["a", "b"])}, vision_rows(TEST).rows)),
        "test: classes a, b, expected those of train: cat, dog",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_data_set_is_refused(case: str) -> None:
    make, message = UNFIT[case]
    with pytest.raises(DataError, match=message):
        make()


def test_memory_is_held_to_before_items_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "available_memory", lambda: 24 * 90 * 9 - 1)
    with pytest.raises(DataError, match=r"train: 24 samples of shape \(3, 5, 6\) need"):
        load(Vision(TRAIN))


def test_names_beside_idx_files_and_in_an_npz_are_kept(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "classes.txt").write_text("shirt\ncoat\nankle boot\n")
    assert load(folder).classes == ("shirt", "coat", "ankle boot")
    (folder / "classes.txt").write_text("shirt\ncoat\ncoat\n")
    with pytest.raises(
        DataError, match=r"train-labels.*: 3 classes, but 3 names: shirt, coat, coat; expected one name"
    ):
        load(folder)
    x, y = TRAIN[..., 0], np.arange(24) % 2
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes=["cat", "dog"])
    assert load(tmp_path / "set.npz").classes == ("cat", "dog")
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes=[1, 2])
    with pytest.raises(DataError, match=r"array classes: int64 of shape .*, expected names"):
        load(tmp_path / "set.npz")
