"""Data sets are fetched whole and as published, or not at all, from a server on this machine that behaves badly."""

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prograde.accelerated.command_line.app import app
from prograde.accelerated.training import UserError, load
from prograde.accelerated.training.data import fetching
from prograde.accelerated.training.data.fetching import SOURCES, PublishedFile, Source, fetch
from prograde.accelerated.training.files import PARTIAL


def idx(array: np.ndarray[Any, Any]) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def published() -> dict[str, bytes]:
    """MNIST's four files of few digits, one of which is several pieces long."""
    rng = np.random.default_rng(0)
    found = {}
    for part, samples in (("train", 2000), ("t10k", 40)):
        found[f"{part}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (samples, 10, 10)).astype(np.uint8))
        found[f"{part}-labels-idx1-ubyte.gz"] = idx((np.arange(samples) % 2).astype(np.uint8))
    return found


FILES = published()
LARGE = "train-images-idx3-ubyte.gz"


class Server(ThreadingHTTPServer):
    """Gives FILES; `behaviour` is by file, and `seen` are files and ranges asked for, in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour: dict[str, str] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}/mirror/"

    def ranges(self, name: str) -> list[str | None]:
        return [asked for seen, asked in self.seen if seen == name]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/mirror/")
        asked = self.headers["Range"]
        self.server.seen.append((name, asked))
        behaviour = self.server.behaviour.get(name, "")
        content = FILES[name]
        if behaviour == "missing":
            self.send_error(404, "Not Found")
            return
        if behaviour == "other":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if behaviour == "longer":
            content += b"?" * 500_000
        begun = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and "without parts" not in behaviour else 0
        self.send_response(206 if begun else 200)
        if begun:
            self.send_header("Content-Range", f"bytes {begun}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begun))
        self.end_headers()
        end = len(content)
        if "cut off" in behaviour:
            end = begun + 70_000
        if behaviour == "cut off at once":
            end = begun
        self.wfile.write(content[begun:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    of_files = tuple(
        PublishedFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()
    )
    monkeypatch.setitem(SOURCES, "few", Source("Few digits", (found.address,), of_files, ("even", "odd")))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield found
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def whole(folder: Path) -> bool:
    """Whether all files are there as published, and nothing beside them."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found == FILES | {"classes.txt": b"even\nodd\n"}


def test_a_data_set_is_fetched_and_read(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    folder = fetch("few", tmp_path / "new" / "few", on_progress=lambda *progress: told.append(progress))
    assert whole(folder)
    data = load(folder)
    assert data.classes == ("even", "odd")
    assert len(data.test.labels) == 40
    of_large = [done for name, done, total in told if name == LARGE and total == len(FILES[LARGE])]
    assert len(of_large) > 1
    assert of_large == sorted(of_large)
    assert of_large[-1] == len(FILES[LARGE])
    asked = len(server.seen)
    fetch("few", folder)
    assert len(server.seen) == asked == 4, "what is there is not asked for again"


@pytest.mark.parametrize("behaviour", ["cut off", "cut off, without parts"])
def test_a_cut_connection_is_taken_up_again(server: Server, tmp_path: Path, behaviour: str) -> None:
    server.behaviour[LARGE] = behaviour
    if behaviour == "cut off":
        assert whole(fetch("few", tmp_path))
        assert server.ranges(LARGE) == [None, "bytes=70000-", "bytes=140000-"]
        return
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{LARGE}: cut off after 70000 of \d+ bytes; the same again goes on from"):
            fetch("few", tmp_path)
        assert not (tmp_path / LARGE).exists(), "never under its name"
    server.behaviour[LARGE] = "without parts"
    assert whole(fetch("few", tmp_path))
    assert server.ranges(LARGE)[-1] == "bytes=70000-", "asked for, but given whole"


def test_a_later_call_goes_on_where_the_last_stopped(server: Server, tmp_path: Path) -> None:
    server.behaviour[LARGE] = "missing"
    left = tmp_path / f".{LARGE}.prograde-partial"
    left.write_bytes(FILES[LARGE][:1234])
    with pytest.raises(
        UserError, match=r"as published: http.*: 404 Not Found; the same again goes on from what is here"
    ):
        fetch("few", tmp_path)
    server.behaviour.clear()
    assert whole(fetch("few", tmp_path))
    assert server.ranges(LARGE)[-1] == "bytes=1234-"


@pytest.mark.parametrize("length", [10, len(FILES[LARGE]), len(FILES[LARGE]) + 7])
def test_damaged_remains_are_fetched_anew(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / f".{LARGE}.prograde-partial").write_bytes(b"?" * length)
    assert whole(fetch("few", tmp_path))


BAD = {
    "missing": r"as published: http://127.0.0.1:\d+/mirror/train-images-idx3-ubyte.gz: 404 Not Found$",
    "other": r"SHA-256 [0-9a-f]{64}; expected \d+ bytes, [0-9a-f]{64}$",
    "longer": r"bytes, SHA-256 [0-9a-f]{64}; expected \d+ bytes",
    "cut off at once": r"cut off after 0 of \d+ bytes$",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_a_file_that_is_not_as_published_never_gets_its_name(server: Server, tmp_path: Path, behaviour: str) -> None:
    server.behaviour[LARGE] = behaviour
    with pytest.raises(UserError, match=BAD[behaviour]):
        fetch("few", tmp_path)
    assert not list(tmp_path.iterdir()), "nor is any of it left"
    if behaviour != "other":
        assert sum(name == LARGE for name, _ in server.seen) == 1


def test_the_next_mirror_is_asked_where_one_has_no_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = "http://127.0.0.1:9/"
    monkeypatch.setitem(SOURCES, "few", SOURCES["few"]._replace(mirrors=(dead, server.address)))
    assert whole(fetch("few", tmp_path))
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/train-images-idx3-ubyte\.gz: .*refused"):
        fetch("few", tmp_path / "other", mirror=dead)


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    waiting = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: waiting.wait(10))
    try:
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: timed out"):
            fetch("few", tmp_path)
    finally:
        waiting.set()


def test_nothing_is_overwritten_unasked(server: Server, tmp_path: Path) -> None:
    (tmp_path / LARGE).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{LARGE}' is there and is not the published file; --overwrite replaces it"):
        fetch("few", tmp_path)
    assert (tmp_path / LARGE).read_bytes() == b"mine"
    assert not server.seen
    (tmp_path / "classes.txt").write_bytes(b"a\nb\n")
    fetch("few", tmp_path, overwrite=True)
    assert (tmp_path / LARGE).read_bytes() == FILES[LARGE]
    assert (tmp_path / "classes.txt").read_bytes() == b"a\nb\n"


def test_what_is_planted_in_the_folder_is_not_written_through(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    folder = tmp_path / "few"
    folder.mkdir()
    planted = folder / f".{LARGE}{PARTIAL}"
    planted.symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="prograde-partial' is a link or no file"):
        fetch("few", folder)
    assert (tmp_path / "mine").read_bytes() == b"mine"
    planted.unlink()
    (folder / "classes.txt").symlink_to(tmp_path / "new")
    fetch("few", folder)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_no_fault_of_the_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch("few", tmp_path)


def test_unknown_names_and_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data: 'mnits', did you mean mnist"):
        fetch("mnits", tmp_path)
    with pytest.raises(UserError, match="mirror: 'file:///etc', expected an address that begins with https://"):
        fetch("mnist", tmp_path, mirror="file:///etc")
    assert not list(tmp_path.iterdir())


def test_known_files_are_those_that_lie_here() -> None:
    """Where the project's own copies are: sizes and sums as published."""
    shared = Path(__file__).parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("the shared data are not here")
    for name in ("mnist", "fashion-mnist"):
        for file in SOURCES[name].files:
            content = (shared / name / file.name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)


def test_the_command_fetches_lists_and_shows(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int | None, str, str]:
        code = app(["data", *arguments], standalone_mode=False)
        return code, *capsys.readouterr()

    assert [line.split()[0] for line in run("fetch", "--list")[1].splitlines()] == list(SOURCES)
    server.behaviour[LARGE] = "missing"
    code, _, refused = run("fetch", "mnist", "--mirror", server.address)
    assert code == 2
    assert refused.startswith("prograde: error: data: no mirror has train-images-idx3-ubyte.gz as published: ")
    for arguments in (["fetch"], []):
        code, _, nothing = run(*arguments)
        assert code == 2
        assert nothing.count("\n") == 1
    server.behaviour.clear()
    code, told, _ = run("fetch", "few")
    assert not code
    assert told == "data/few: Few digits; use it as --data data/few\n"
    assert whole(tmp_path / "data" / "few")
    _, shown, _ = run("show", "data/few")
    assert shown.startswith("few: samples of 10 x 10, from 0 to 1, mean ")
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith(("even", "odd", "all"))]
    assert rows == [["even", "917", "83", "20"], ["odd", "917", "83", "20"], ["all", "1834", "166", "40"]]
