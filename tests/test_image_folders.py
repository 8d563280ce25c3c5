"""Image files are read as they are, from folders and archives alike; what can't be is refused with the file."""

import gzip
import io
import os
import re
import shutil
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from prograde.accelerated.training import DataError, load
from prograde.accelerated.training.data import archives, reading

CLASSES = "cat", "ant", "bee"
Images = dict[str, NDArray[np.uint8]]


def images(samples: int, seed: int, shape: tuple[int, ...] = (4, 5, 3)) -> Images:
    """By path, of which the folder is the class."""
    random = np.random.default_rng(seed)
    names = (f"{CLASSES[i % 3]}/{i:03}.png" for i in range(samples))
    return {name: random.integers(0, 256, shape).astype(np.uint8) for name in names}


def png(image: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def as_folder(path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def as_archive(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(f"{path}.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{path.name}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


WRITERS = pytest.mark.parametrize("write", [as_folder, as_archive])


def written(folder: Path, write: Callable[..., None], train: Images, test: Images) -> Path:
    for part, content in (("train", train), ("test", test)):
        write(folder / part, {name: png(image) for name, image in content.items()})
    return folder


@WRITERS
def test_images_are_read_as_written(tmp_path: Path, write: Callable[..., None]) -> None:
    train, test = images(36, 0), images(9, 1)
    data = load(written(tmp_path, write, train, test))
    assert data.image_shape == (3, 4, 5)
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [33, 3, 9]
    found = data.as_images().test
    expected = sorted(test.items())  # by class, then by name
    assert found.labels.tolist() == [sorted(CLASSES).index(name.split("/")[0]) for name, _ in expected]
    pixels = np.stack([image.transpose(2, 0, 1) for _, image in expected]).astype(np.float32) / np.float32(255)
    assert torch.equal(found.images, torch.from_numpy(pixels))
    seen = torch.cat([data.train.images, data.validation.images])
    labels = torch.cat([data.train.labels, data.validation.labels]).tolist()
    of_image = {image.transpose(2, 0, 1).tobytes(): name.split("/")[0] for name, image in train.items()}
    names = [of_image.pop((255 * row).round().to(torch.uint8).numpy().tobytes()) for row in seen]
    assert [sorted(CLASSES)[label] for label in labels] == names, "the label is that of the image's folder"
    assert not of_image, "every image once"


def test_validation_holds_all_classes_and_follows_the_seed(tmp_path: Path) -> None:
    folder = written(tmp_path, as_folder, images(36, 0), images(3, 1))
    first, again, other = (load(folder, seed=seed, validation=12) for seed in (0, 0, 1))
    assert first.validation.labels.bincount().tolist() == [4, 4, 4]
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)


@WRITERS
def test_grey_images_have_one_channel_until_one_has_colours(tmp_path: Path, write: Callable[..., None]) -> None:
    grey, test = images(12, 0, (4, 5)), images(3, 1, (4, 5))
    data = load(written(tmp_path / "grey", write, grey, test))
    assert data.image_shape == (4, 5)
    coloured = {**grey, "cat/colour.png": images(1, 2)["cat/000.png"]}
    mixed = load(written(tmp_path / "mixed", write, coloured, images(3, 1)))
    assert mixed.image_shape == (3, 4, 5)
    seen = torch.cat([mixed.train.images, mixed.validation.images]).unflatten(1, (3, 20))
    assert (seen[:, 0] == seen[:, 1]).all(dim=1).sum() == 12


@WRITERS
def test_other_files_are_passed_over(tmp_path: Path, write: Callable[..., None]) -> None:
    files = {name: png(image) for name, image in images(12, 0).items()}
    others = "cat/notes.txt", "cat/._000.png", ".hidden/x.png", "cat/.hidden/x.png", "sheet.png"
    write(tmp_path / "train", files | dict.fromkeys(others, b"?"))
    write(tmp_path / "test", files)
    data = load(tmp_path)
    assert data.num_classes == 3
    assert len(data.train.labels) + len(data.validation.labels) == 12


@WRITERS
def test_a_folder_that_everything_lies_in_is_no_class(tmp_path: Path, write: Callable[..., None]) -> None:
    for part in ("train", "test"):
        files = {f"{part}/more/{name}".upper(): png(image) for name, image in images(12, 0).items()}
        write(tmp_path / part, files)
    data = load(tmp_path)
    assert data.test.labels.bincount().tolist() == [4, 4, 4]
    assert data.classes == ("ANT", "BEE", "CAT")


@WRITERS
def test_a_class_is_the_first_folder_on_the_way_to_an_image(tmp_path: Path, write: Callable[..., None]) -> None:
    """Below it lie days, sessions or `images`, some of which classes share."""
    for part, seed in (("train", 0), ("test", 1)):
        content = images(24, seed)
        places = ("{}/monday/{}", "{}/tuesday/a/{}", "{}/{}")
        files = {places[i % 3 if i < 20 else 0].format(*name.split("/")): png(image)
                 for i, (name, image) in enumerate(content.items())}  # fmt: skip
        write(tmp_path / part, files)
    data = load(tmp_path)
    assert data.classes == ("ant", "bee", "cat")
    assert data.test.labels.bincount().tolist() == [8, 8, 8]
    of_image = {image.transpose(2, 0, 1).tobytes(): name.split("/")[0] for name, image in images(24, 1).items()}
    found = [of_image[(255 * row).round().to(torch.uint8).numpy().tobytes()] for row in data.test.images]
    assert [data.classes[label] for label in data.test.labels] == found


@WRITERS
def test_a_part_of_one_class_to_test_on_keeps_it(tmp_path: Path, write: Callable[..., None]) -> None:
    """Its folder, which everything lies in, is known from training; so are not the folders inside."""
    test = {f"bee/monday/{i}.png": image for i, image in enumerate(images(3, 1).values())}
    assert load(written(tmp_path, write, images(12, 0), test)).test.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("inside", [None, "notes.txt", "photo.heic", "monday/photo.heic"])
def test_a_class_without_images_is_refused_by_name(tmp_path: Path, part: str, inside: str | None) -> None:
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    shutil.rmtree(folder / part / "bee")
    (folder / part / "bee").mkdir()
    if inside is not None:
        as_folder(folder / part / "bee", {inside: b"?"})
    holds = "is empty" if inside is None else f"holds bee/{inside}"
    with pytest.raises(DataError, match=rf"{part}: class 'bee' has no images \(its folder {holds}\).*convert.*remove"):
        load(folder)


def test_leavings_of_systems_are_no_classes(tmp_path: Path) -> None:
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    as_folder(folder / "train", {"__MACOSX/cat/._0.png": b"?", ".ipynb_checkpoints/0.png": b"?", "@eaDir/0.png": b"?"})
    assert load(folder).classes == ("ant", "bee", "cat")


def test_names_are_compared_in_one_normal_form(tmp_path: Path) -> None:
    """A Mac writes é as two characters."""
    for part, form, seed in (("train", "NFC", 0), ("test", "NFD", 1)):
        as_folder(
            tmp_path / part,
            {unicodedata.normalize(form, f"{'café' if i % 2 else 'b'}/{i}.png"): png(image)
             for i, image in enumerate(images(8, seed).values())},
        )  # fmt: skip
    data = load(tmp_path)
    assert data.classes == ("b", unicodedata.normalize("NFC", "café"))
    assert data.test.labels.bincount().tolist() == [4, 4]


def test_a_class_in_another_case_is_refused_with_its_name(tmp_path: Path) -> None:
    bees = {name.replace("bee", "Bee"): image for name, image in images(9, 1).items()}
    with pytest.raises(DataError, match=r"class 'Bee', expected one of training's: ant, bee, cat; rename it to 'bee'"):
        load(written(tmp_path, as_folder, images(12, 0), bees))


LINKS: dict[str, tuple[str, str]] = {  # where, and what it leads to
    "to the part": ("train/cat/loop", "train"),
    "to its own folder": ("train/cat/loop", "train/cat"),
    "to another class": ("train/dog", "train/cat"),
    "to an image of another class": ("train/bee/again.png", "train/cat/000.png"),
    "to what is tested on": ("train/cat/more", "test/cat"),
    "to an image that is tested on": ("train/cat/again.png", "test/cat/000.png"),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_to_what_is_read_anyway_are_refused(tmp_path: Path, case: str) -> None:
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    link, target = LINKS[case]
    (folder / link).symlink_to(folder / target)
    with pytest.raises(DataError, match=r"a link to what is read as .*, expected every image once; remove the link"):
        load(folder)


def test_links_elsewhere_are_followed(tmp_path: Path) -> None:
    """Sets are put together by links to one store, whose files may have several names."""
    store = tmp_path / "store"
    as_folder(store, {name: png(image) for name, image in images(12, 0).items()})
    for name in images(12, 0):
        (tmp_path / "data" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "train" / name).symlink_to(store / name)
    written(tmp_path / "data", as_folder, {}, images(6, 1))
    os.link(tmp_path / "data" / "test" / "cat" / "000.png", tmp_path / "data" / "test" / "cat" / "same.png")
    data = load(tmp_path / "data")
    assert len(data.train.labels) + len(data.validation.labels) == 12
    assert len(data.test.labels) == 7


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    (folder / "test" / "cat" / "x.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"x\.png: can't be opened \(No such file"):
        load(folder)
    (folder / "test" / "cat" / "x.png").unlink()
    os.mkfifo(folder / "test" / "cat" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: a pipe, socket or device, expected an image file"):
        load(folder)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_unreadable_folder_is_refused(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tests run as root, for whom no folder is."""
    folder = written(tmp_path, as_folder, images(12, 0), images(6, 1))
    iterdir = Path.iterdir

    def refusing(path: Path) -> Iterator[Path]:
        if path == folder / part / "bee":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.raises(DataError, match=rf"{part}/bee: can't be opened \(Permission denied\)"):
        load(folder)


TRANSPARENT = {
    "RGBA": lambda strokes: Image.fromarray(np.dstack([np.zeros((4, 5, 3), np.uint8), strokes])),
    "LA": lambda strokes: Image.fromarray(np.dstack([np.zeros((4, 5), np.uint8), strokes])),
    "palette": lambda strokes: Image.fromarray(255 - strokes),
}


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_transparent_images_lie_on_white(tmp_path: Path, mode: str) -> None:
    """Black strokes on nothing would be black on black."""
    drawn = {name: 255 * (image > 127) for name, image in images(12, 0, (4, 5)).items()}
    for part in ("train", "test"):
        for name, strokes in drawn.items():
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            image = TRANSPARENT[mode](strokes.astype(np.uint8))
            options = {}
            if mode == "palette":
                image, options = image.convert("P"), {"transparency": 255}
                image.putpalette([0, 0, 0] * 256)
            image.save(tmp_path / part / name, **options)
    found = load(tmp_path).test.images.unflatten(1, (-1, 20))
    expected = np.stack([1 - strokes.reshape(-1) / 255 for _, strokes in sorted(drawn.items())])
    assert torch.equal(found[:, 0], torch.from_numpy(expected).float())
    assert found.shape[1] == (1 if mode == "LA" else 3)


def test_white_strokes_on_nothing_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    strokes = np.full((4, 5, 4), 255, np.uint8)
    strokes[:2, :, 3] = 0
    (folder / "train" / "cat" / "x.png").write_bytes(png(strokes))
    with pytest.raises(DataError, match=r"cat/x\.png: one colour once laid on white.*save it with its ground"):
        load(folder)


def test_images_are_turned_as_cameras_note(tmp_path: Path) -> None:
    pictures = images(12, 0)
    folder = written(tmp_path, as_folder, pictures, images(3, 1))
    name, image = next(iter(pictures.items()))
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(folder / "train" / name, exif=exif)
    data = load(folder)
    found = torch.cat([data.train.images, data.validation.images])
    expected = torch.from_numpy(image.transpose(2, 0, 1).reshape(-1) / np.float32(255))
    assert (found == expected).all(dim=1).any()


@pytest.mark.parametrize("end", [".tar", ".tgz"])
def test_archives_may_end_otherwise(tmp_path: Path, end: str) -> None:
    folder = written(tmp_path, as_archive, images(12, 0), images(3, 1))
    expected = load(folder)
    for part in ("train", "test"):
        packed = (folder / f"{part}.tar.gz").read_bytes()
        (folder / f"{part}.tar.gz").unlink()
        (folder / f"{part}{end}").write_bytes(gzip.decompress(packed) if end == ".tar" else packed)
    assert torch.equal(load(folder).test.images, expected.test.images)


def test_folders_may_be_links(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", as_folder, images(12, 0), images(3, 1))
    (folder / "train" / "cat").rename(tmp_path / "cat")
    (folder / "train" / "cat").symlink_to(tmp_path / "cat", target_is_directory=True)
    assert load(folder).num_classes == 3


@WRITERS
def test_labels_to_test_on_are_those_of_training(tmp_path: Path, write: Callable[..., None]) -> None:
    bees = {name: image for name, image in images(9, 1).items() if "bee" in name}
    assert load(written(tmp_path, write, images(12, 0), bees)).test.labels.tolist() == [1, 1, 1]


def test_bits_and_transparency_are_taken_off(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in CLASSES for i in range(4)]
    for part in ("train", "test"):
        for i, name in enumerate(names):
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            black_and_white = Image.fromarray(np.eye(4, 5, i % 3, dtype=bool))
            assert black_and_white.mode == "1"
            black_and_white.save(tmp_path / part / name)
    assert load(tmp_path).image_shape == (4, 5)
    Image.fromarray(np.zeros((4, 5, 4), np.uint8), "RGBA").save(tmp_path / "test" / "cat" / "x.png")
    data = load(tmp_path)
    assert data.image_shape == (3, 4, 5), "grey ones have three equal channels where any has colours"
    assert torch.equal(data.train.images[0, :20], data.train.images[0, 20:40])


def test_small_classes_have_their_part_of_validation(tmp_path: Path) -> None:
    few = {name: image for name, image in images(120, 0).items() if "ant" not in name}
    few |= {name: image for name, image in images(9, 2).items() if "ant" in name}
    held = load(written(tmp_path, as_folder, few, images(3, 1)), validation=12).validation
    assert held.labels.bincount(minlength=3).min() >= 1


def test_folders_that_could_mean_two_things_are_refused(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    folder = written(tmp_path / "both", as_folder, images(12, 0), images(3, 1))
    as_archive(folder / "train", {"cat/x.png": png(images(1, 0)["cat/000.png"])})
    with pytest.raises(DataError, match=r"has train\.tar\.gz and train, expected one of them"):
        load(folder)
    mnist = make_folder()
    (mnist / "train").mkdir()
    (mnist / "test").mkdir()
    assert load(mnist).image_shape == (3, 4), "MNIST's files are what they are"


CUT = png(images(1, 0)["cat/000.png"])[:60]
REFUSED: dict[str, tuple[dict[str, bytes], dict[str, bytes], str]] = {
    "a damaged image": ({"cat/x.png": CUT}, {}, r"train.*cat/x\.png: not a whole image"),
    "no image": ({"cat/x.png": b"hello"}, {}, r"train.*cat/x\.png: not a whole image"),
    "too many pixels": (
        {"cat/x.png": png(np.zeros((20_000, 10_000), np.uint8))},
        {},
        r"cat/x\.png: not a whole image \(.*decompression bomb",
    ),
    "another size": (
        {"cat/x.png": png(np.zeros((4, 6, 3), np.uint8))},
        {},
        r"cat/x\.png: 6 x 4 pixels, expected 5 x 4 as in .*\.png",
    ),
    "16 bits": (
        {"cat/x.png": png(np.zeros((4, 5), np.uint16))},
        {},
        r"cat/x\.png: pixels of mode I;16, expected 8 bits a channel",
    ),
    "an unknown class": (
        {},
        {"dog/x.png": png(np.zeros((4, 5, 3), np.uint8))},
        r"test.*: class 'dog', expected one of training's: ant, bee, cat",
    ),
}


@WRITERS
@pytest.mark.parametrize("case", REFUSED)
def test_damaged_images_are_refused(tmp_path: Path, write: Callable[..., None], case: str) -> None:
    train, test, message = REFUSED[case]
    for part, content, more in (("train", images(12, 0), train), ("test", images(3, 1), test)):
        write(tmp_path / part, {name: png(image) for name, image in content.items()} | more)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, as_archive, images(12, 0), images(3, 1))
    whole = (folder / "train.tar.gz").read_bytes()
    plain = gzip.decompress(whole)
    header = next(i for i in range(512, len(plain), 512) if plain[i + 257 : i + 262] == b"ustar" and i > 2048)
    flipped = plain[:header] + b"?" + plain[header + 1 :]
    checksum = bytes([whole[-8] ^ 1])
    for broken in (
        whole[: len(whole) // 2],
        b"hello",
        gzip.compress(flipped),
        gzip.compress(plain[:header]),
        gzip.compress(plain[: header + 100]),
        whole[:-8] + checksum + whole[-7:],
    ):
        (folder / "train.tar.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"train\.tar\.gz: damaged archive .*; expected a whole one"):
            load(folder)
    (folder / "train.tar.gz").unlink()
    (folder / "train").mkdir()
    with pytest.raises(
        DataError, match=re.escape("train: no images in it, expected a folder for each class with files of .bmp")
    ):
        load(folder)
    as_folder(folder / "train", {"cat/x.png": png(images(1, 0)["cat/000.png"])})
    with pytest.raises(
        DataError, match="train: only the class 'cat', expected two or more, each in a folder of its own"
    ):
        load(folder)
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match="expected MNIST's four files, or train and test, each with a folder of images"):
        load(folder)


def test_images_of_another_size_to_test_on_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1, (4, 6, 3)))
    with pytest.raises(DataError, match=r"test: images of shape \(3, 4, 6\), but those of .*train have \(3, 4, 5\)"):
        load(folder)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def archived(path: Path, *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    """Archives of both parts, that of training with more in it."""
    for part, samples in (("train", 12), ("test", 3)):
        with tarfile.open(path / f"{part}.tar.gz", "w:gz") as archive:
            files = [(member(name, len(png(image))), png(image)) for name, image in images(samples, samples).items()]
            for info, content in [*files, *(more if part == "train" else ())]:
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_archives_are_refused(tmp_path: Path, kind: bytes) -> None:
    folder = archived(tmp_path, (member("cat/x.png", 0, kind, "cat/000.png"), b""))
    with pytest.raises(DataError, match=r"train\.tar\.gz, cat/x\.png: a link or device, expected a file; pack what"):
        load(folder)


def test_archives_are_held_to_the_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand times what is packed can come out of gzip."""
    folder = archived(tmp_path, (member("notes.txt", 1 << 24), bytes(1 << 24)))
    assert load(folder).num_classes == 3
    monkeypatch.setattr(archives, "available_memory", lambda: 1 << 23)
    with pytest.raises(DataError, match=r"train\.tar\.gz: .* expected no more than 8388608 bytes to unpack"):
        load(folder)
    many = archived(tmp_path, *((member(f"{number}.txt", 0), b"") for number in range(5000)))
    with pytest.raises(DataError, match=r"train\.tar\.gz: .* to unpack"):  # of nothing, but each takes its place
        load(many)


def test_large_files_of_archives_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE", 1 << 20)
    folder = archived(tmp_path, (member("cat/x.png", (1 << 20) + 1), bytes((1 << 20) + 1)))
    with pytest.raises(DataError, match=r"train\.tar\.gz, cat/x\.png: 1048577 bytes, expected 1048576 or less"):
        load(folder)
    long = member("cat/long.png")
    long.pax_headers = {"comment": "a" * (1 << 21)}
    with pytest.raises(
        DataError, match=r"train\.tar\.gz: damaged archive \(a piece of .* bytes, expected 0\.\.1048576"
    ):
        load(archived(tmp_path, (long, b"")))


@WRITERS
def test_images_are_held_to_the_memory_there_is(
    tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, write, images(12, 0), images(3, 1))
    monkeypatch.setattr(reading, "available_memory", lambda: 12 * 60 * 9 - 1)  # bytes, and two copies of floats
    with pytest.raises(DataError, match=r"train.*\.png: 12 images of 5 x 4 pixels need .* GiB of memory"):
        load(folder)
    monkeypatch.setattr(reading, "available_memory", lambda: 12 * 60 * 9)
    assert load(folder).num_classes == 3


def test_bombs_are_not_decoded(tmp_path: Path) -> None:
    """The first image says the size; 64 million pixels cannot come out of a file of some hundred bytes."""
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    whole = png(np.zeros((1, 1), np.uint8))
    header = b"IHDR" + struct.pack(">II", 8000, 8000) + whole[24:29]
    bomb = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    (folder / "train" / "ant" / "000.png").write_bytes(bomb)
    with pytest.raises(
        DataError, match=r"ant/000\.png: not a whole image \(8000 x 8000 pixels in .* a decompression bomb"
    ):
        load(folder)


@pytest.mark.parametrize("end", [".tar.gz", ".tar"])
def test_an_archive_may_be_packed_otherwise_than_named(tmp_path: Path, end: str) -> None:
    folder = written(tmp_path, as_archive, images(12, 0), images(3, 1))
    expected = load(folder)
    for part in ("train", "test"):
        packed = (folder / f"{part}.tar.gz").read_bytes()
        (folder / f"{part}.tar.gz").unlink()
        (folder / f"{part}{end}").write_bytes(gzip.decompress(packed) if end == ".tar.gz" else packed)
    assert torch.equal(load(folder).test.images, expected.test.images)


def test_other_readers_of_pillow_are_not_tried(tmp_path: Path) -> None:
    """Some start programs."""
    folder = written(tmp_path, as_folder, images(12, 0), images(3, 1))
    (folder / "train" / "cat" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EOF\n")
    with pytest.raises(
        DataError, match=r"cat/x\.png: not a whole image of a kind that Pillow knows; save it anew as PNG"
    ):
        load(folder)
