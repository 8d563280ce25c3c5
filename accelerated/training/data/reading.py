"""Files of unknown origin: reading is bounded by the memory there is, and every failure names the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, UserError

MEMORY = Path("/proc/meminfo")
DEFLATE_RATIO = 1032
"""The most bytes that one byte of deflate can stand for (zlib's technical details)."""


@contextmanager
def reading(name: str | Path, failure: str) -> Iterator[None]:
    """Around the reading of one file: whatever the file causes there becomes a DataError that begins with its name.

    Parsers of damaged files raise nearly anything, from struct.error to RecursionError. `failure` says what the file is
    then, such as "damaged archive".
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{name}: {failure}, or larger than the memory at hand; expected a smaller one") from error
    except (PermissionError, FileNotFoundError) as error:
        raise DataError(f"{name}: can't be opened ({error.strerror}); expected one that may be read") from error
    except Exception as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: {failure} ({found}); expected a whole one, copied or downloaded again") from error


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order. Raises DataError where that may not be seen."""
    with reading(folder, "unreadable folder"):
        return sorted(folder.iterdir())


def available_memory() -> int | None:
    """Bytes that can be had without swapping; of systems without /proc the whole memory, None where unknown."""
    try:
        if MEMORY.exists():
            fields = dict(line.split(":") for line in MEMORY.read_text().splitlines())
            return 1024 * int(fields["MemAvailable"].split()[0])
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, KeyError, OSError, ValueError):
        return None


def check_memory(name: str | Path, what: str, needed: int) -> None:
    """Raises DataError where so many bytes exceed the memory there is. Nothing is reserved before."""
    available = available_memory()
    if available is not None and needed > available:
        raise DataError(
            f"{name}: {what} need {needed / 2**30:.3g} GiB of memory, {available / 2**30:.3g} GiB are available; "
            "expected fewer or smaller samples, or a whole file if its header is damaged"
        )
