"""Damaged files of every format: a valid data set or a DataError, in bounded memory and time.

    pytest tests/test_damaged_files.py --mutations 20000 [--mutation-seed 1]

Each file is damaged in one of a few hundred places, or has its fields exchanged and its checksums made right again. A
failure names format, seed and number, which give the same file again, and keeps the file.
"""

import csv
import gzip
import io
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, features

from prograde.accelerated.training import DataError, load

SECONDS = 20  # for one file, a thousand times what one takes
MEMORY = 1 << 19  # KiB above that of a whole data set; the largest image that its file can hold takes a third

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = 0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1


class Hang(BaseException):
    """No Exception, lest it be taken for one of the file's."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes cut off, left out, put in, repeated, or exchanged for numbers, most often near an end."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        size = len(data)
        place = rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(64, size) + 1), size - rng.randrange(min(96, size) + 1))
        )
        kind, length = rng.randrange(7), rng.choice((1, 2, 4, 16, 100))
        if kind == 0:
            data[place : place + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[place : place + 1])
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = rng.randbytes(length)
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            data[place : place + width] = number.to_bytes(width, order)
        else:
            data[place : place + length] = rng.randbytes(length)
    return bytes(data)


def gzipped(inside: Mutation) -> Mutation:
    """What is inside, or the gzip file itself."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return damaged(content, rng)
        return gzip.compress(inside(gzip.decompress(content), rng), 1)

    return mutate


def in_zip(content: bytes, rng: random.Random) -> bytes:
    """A member, its header most often, with right checksums, or the archive itself."""
    if rng.random() < 0.4:
        return damaged(content, rng)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(written, "w") as copy:
        chosen = rng.choice(archive.namelist())
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename == chosen:
                data = header_changed(data, rng) if rng.random() < 0.7 else damaged(data, rng)
            copy.writestr(info, data)
    return written.getvalue()


def header_changed(data: bytes, rng: random.Random) -> bytes:
    """An .npy file whose header says something else, such as another shape or type."""
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode("latin-1")
    before = rng.choice(("|u1", "False", "(", ",", "}", "'descr'", "6", "1", "2", "'fortran_order'"))
    after = rng.choice(
        ("<f8", "|O", "<M8[ns]", "|V4", "<U1", "True", "-1", "9" * 18, "(" * 200, "", "None", "0", "1e9", "'", "\\",
         "[('a', '<i4')]", "1" * 5000, "lambda", "[" * 3000, "\n")
    )  # fmt: skip
    header = header.replace(before, after, 1)[: (1 << 16) - 1]
    version = rng.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\4\0"))
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return data[:6] + version + size + header.encode("latin-1") + data[10 + length :]


def in_png(content: bytes, rng: random.Random) -> bytes:
    """A chunk with its checksum right, its place changed, or the file itself."""
    if rng.random() < 0.4:
        return damaged(content, rng)
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    chosen = rng.choice(chunks)
    kind = rng.randrange(4)
    if kind == 0:
        chosen[1] = damaged(chosen[1], rng)
    elif kind == 1:
        chosen[0] = rng.choice(
            (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"cHRM")
        )
    elif kind == 2 and chosen[0] == b"IDAT":
        chosen[1] = zlib.compress(damaged(zlib.decompress(chosen[1]), rng))
    else:
        chunks.insert(rng.randrange(len(chunks) + 1), [chosen[0], chosen[1]])
    written = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return content[:8] + b"".join(written)


def in_tar(content: bytes, rng: random.Random) -> bytes:
    """A member's header with its checksum right, or the archive itself."""
    if rng.random() < 0.3:
        return damaged(content, rng)
    data = bytearray(content)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(headers)
        start, length = rng.choice(
            ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1), (157, 100), (345, 155))
        )
        field = rng.choice((
            rng.randbytes(length), bytes(length), b"\x80" + rng.randbytes(length), b"\xff" * length, b"7" * length,
            rng.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"S", b"L", b"K", b"x", b"g", b"V")).ljust(length, b"\0"),
            rng.choice((b"../x.png", b"/cat/x.png", b"cat/x.png", b"cat", b".", b"train/dog")).ljust(length, b"\0"),
        ))  # fmt: skip
        data[at + start : at + start + length] = field[:length]
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def arrays() -> dict[str, NDArray[np.uint8]]:
    """Twelve samples to train on and six to test on, of 5 x 6 pixels in two classes."""
    rng = np.random.default_rng(0)
    found = {}
    for part, samples in (("train", 12), ("test", 6)):
        found[f"x_{part}"] = rng.integers(0, 256, (samples, 5, 6)).astype(np.uint8)
        found[f"y_{part}"] = (np.arange(samples) % 2).astype(np.uint8)
    return found


def idx_files(end: str, pack: Callable[[bytes], bytes]) -> dict[str, bytes]:
    names = {"x": "images-idx3-ubyte", "y": "labels-idx1-ubyte"}
    parts = {"train": "train", "test": "t10k"}
    keys = {key: key.split("_") for key in arrays()}
    return {f"{parts[part]}-{names[kind]}{end}": pack(idx(arrays()[key])) for key, (kind, part) in keys.items()}


def npz(save: Callable[..., None]) -> dict[str, bytes]:
    written = io.BytesIO()
    save(written, **arrays())
    return {"data.npz": written.getvalue()}


def images(name: str, mode: str, **options: object) -> dict[str, bytes]:
    """Two images of each class to train on, and one to test on."""
    rng = np.random.default_rng(1)
    files = {}
    for part, count in (("train", 2), ("test", 1)):
        for kind in ("cat", "dog"):
            for i in range(count):
                written = io.BytesIO()
                pixels = rng.integers(0, 256, (5, 6, len(Image.new(mode, (1, 1)).getbands()))).astype(np.uint8)
                image = Image.fromarray(
                    pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, mode if mode != "P" else "L"
                )
                (image.convert("P") if mode == "P" else image).save(written, name, **options)
                files[f"{part}/{kind}/{i}.png"] = written.getvalue()
    return files


def archives(end: str, mode: str) -> dict[str, bytes]:
    whole = images("png", "L")
    return {
        f"{part}{end}": packed({name: content for name, content in whole.items() if name.startswith(part)}, mode)
        for part in ("train", "test")
    }


def packed(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def cifar(pack: Callable[[NDArray[np.uint8], NDArray[np.uint8]], bytes], end: str) -> dict[str, bytes]:
    """The files of CIFAR-10, with two images in each, of two classes."""
    rng = np.random.default_rng(2)
    names = [*(f"data_batch_{i}{end}" for i in range(1, 6)), f"test_batch{end}"]
    return {
        name: pack(np.arange(2, dtype=np.uint8), rng.integers(0, 256, (2, 3072)).astype(np.uint8)) for name in names
    }


def records(labels: NDArray[np.uint8], images: NDArray[np.uint8]) -> bytes:
    return np.hstack([labels[:, None], images]).tobytes()


def pickles(protocol: int) -> dict[str, bytes]:
    def pack(labels: NDArray[np.uint8], images: NDArray[np.uint8]) -> bytes:
        return pickle.dumps({"labels": labels.tolist(), "data": images, "filenames": ["0.png", "1.png"]}, protocol)

    return cifar(pack, "") | {"batches.meta": pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol)}


def in_pickle(content: bytes, rng: random.Random) -> bytes:
    """An instruction put in, left out or repeated, or the file itself."""
    if rng.random() < 0.4:
        return damaged(content, rng)
    places = [place for _, _, place in pickletools.genops(content)] + [len(content)]
    first, last = (rng.randrange(len(places) - 1) for _ in range(2))
    at, end = places[first], places[first + 1]
    if rng.random() < 0.3:
        return content[:at] + content[places[last] : places[last + 1]] + content[end:]
    put_in = rng.choice((
        b"", content[at:end] * rng.choice((2, 100)), b"0",
        b"2" * rng.choice((1, 1000)), b"(", b"t", b"l", b"d", b"R", b"b",
        b"r\xff\xff\xff\xff", b"j\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"cos\nsystem\n", b"cnumpy\nndarray\n",
        b"X\x02\0\0\0u1", b"K\x07", b"N", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"\x94", b"\x85",
    ))  # fmt: skip
    return content[:at] + put_in + content[rng.choice((at, end)) :]


def table(rows: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(rows)
    return {
        "width": rng.normal(size=rows).tolist(),
        "count": rng.integers(0, 9, rows).tolist(),
        "class": ["cat", "dog, small"] * (rows // 2),
    }


def csv_files() -> dict[str, bytes]:
    found = {}
    for part, rows in (("train", 12), ("test", 6)):
        written = io.StringIO()
        csv.writer(written).writerows([table(rows), *zip(*table(rows).values(), strict=True)])
        found[f"{part}.csv"] = written.getvalue().encode()
    return found


def parquet_files(**options: object) -> dict[str, bytes]:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    found = {}
    for part, rows in (("train", 12), ("test", 6)):
        written = io.BytesIO()
        parquet.write_table(pyarrow.table(table(rows)), written, **options)
        found[f"{part}.parquet"] = written.getvalue()
    return found


class Format(NamedTuple):
    """Whole files by name, and what becomes of one of them."""

    files: Callable[[], dict[str, bytes]]
    mutate: Mutation = damaged


FORMATS = {
    "idx": Format(lambda: idx_files("", bytes) | {"classes.txt": b"cat\ndog\n"}),
    "idx.gz": Format(lambda: idx_files(".gz", gzip.compress), gzipped(damaged)),
    "npz": Format(lambda: npz(np.savez), in_zip),
    "npz, deflated": Format(lambda: npz(np.savez_compressed), in_zip),
    "png": Format(lambda: images("png", "L"), in_png),
    "png, transparent": Format(lambda: images("png", "RGBA"), in_png),
    "jpeg": Format(lambda: images("jpeg", "RGB")),
    "gif": Format(lambda: images("gif", "P")),
    "bmp": Format(lambda: images("bmp", "RGB")),
    "ppm": Format(lambda: images("ppm", "RGB")),
    "tiff": Format(lambda: images("tiff", "RGB")),
    "tiff, deflated": Format(lambda: images("tiff", "L", compression="tiff_adobe_deflate")),
    "webp": Format(lambda: images("webp", "RGB")),
    "tar": Format(lambda: archives(".tar", "w:"), in_tar),
    "tar.gz": Format(lambda: archives(".tar.gz", "w:gz"), gzipped(in_tar)),
    "cifar": Format(lambda: cifar(records, ".bin") | {"batches.meta.txt": b"cat\ndog\n\n"}),
    "cifar, packed": Format(lambda: {"cifar-10.tar.gz": packed(pickles(2))}, gzipped(in_tar)),
    "cifar, pickled": Format(lambda: pickles(2), in_pickle),
    "cifar, pickled anew": Format(lambda: pickles(5), in_pickle),
    "csv": Format(csv_files),
    "parquet": Format(lambda: parquet_files(compression="snappy")),
    "parquet, plain": Format(lambda: parquet_files(compression="none", use_dictionary=False)),
}


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(path: Path) -> bool:
    """Whether it is a data set, which then is a valid one; False where it is refused as it should be."""
    try:
        data = load(path)
    except DataError:
        return False
    for split in (data.train, data.validation, data.test):
        assert len(split.images) == len(split.labels) > 0
        assert split.images.shape[1:].numel() == data.features == torch.Size(data.image_shape).numel()
        assert split.images.isfinite().all()
        assert split.labels.min() >= 0
        assert split.labels.max() < data.num_classes == len(data.classes)
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_valid(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if name == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    count, seed = (request.config.getoption(option) for option in ("--mutations", "--mutation-seed"))
    whole = FORMATS[name].files()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as place:
        for file, content in whole.items():
            (Path(place) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / file).write_bytes(content)
        path = Path(place) / "data.npz" if "data.npz" in whole else Path(place)
        assert check(path), "the whole files are a data set"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        valid = 0
        for number in range(count):
            rng = random.Random(f"{name} {seed} {number}")
            file = rng.choice(list(whole))
            content = FORMATS[name].mutate(whole[file], rng)
            (Path(place) / file).write_bytes(content)
            kept = tmp_path / Path(file).name
            failure = f"{name}, --mutation-seed {seed}, number {number}: {kept}"
            try:
                with in_time(SECONDS):
                    valid += check(path)
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown < MEMORY, f"{grown} KiB"
            except BaseException as error:
                shutil.copy(Path(place) / file, kept)
                error.add_note(failure)
                raise
            (Path(place) / file).write_bytes(whole[file])
    print(f"{name}: {valid} of {count} damaged files are data sets, the others are refused; seed {seed}")
