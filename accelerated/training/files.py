"""Files that are written whole or not at all."""

import contextlib
import glob
import os
import secrets
from pathlib import Path

from .errors import UserError

PARTIAL = ".prograde-partial"
"""What the name of an unfinished file ends in, so that one of a killed run is known as such."""


def write(path: Path, content: bytes) -> None:
    """Replaces the file by one with this content; whatever fails, the old file stays as it was.

    A link stays a link: the file that it leads to is replaced. A new file has the mode that the umask asks for, a
    replaced one keeps its own. Raises UserError for what is no file, else OSError.
    """
    target = _target(path)
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # the name lies in the folder; not every system can sync one
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def prepare(path: Path) -> None:
    """Sees that `path` can be written, before there is anything to write, and removes what killed runs left of it.

    Raises UserError for what is no file or in no folder, OSError for a folder that can't be written.
    """
    target = _target(path)
    if not target.parent.is_dir():
        raise UserError(f"'{path}': folder '{target.parent}' is not there")
    try:
        for left in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}"):
            left.unlink(missing_ok=True)
        temporary = _temporary(target)
        open(temporary, "xb").close()
        temporary.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def _target(path: Path) -> Path:
    """Where links lead to."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"'{path}' is a folder, expected a file")
    if os.path.lexists(target) and not target.is_file():
        raise UserError(f"'{path}' is a device, a pipe or a loop of links, expected a file")
    return target


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
