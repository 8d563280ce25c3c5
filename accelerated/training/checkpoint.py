"""Checkpoints: written whole or not at all, read without running what a file might carry."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from . import files
from .errors import UserError

FORMAT = "prograde checkpoint 1"


class CheckpointError(UserError):
    """A checkpoint that can't be resumed: which file and why."""


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Replaces the file; an old one stays whole until the new one is. Raises OSError.

    `content` has tensors, numbers, strings, None and lists, tuples and dicts of these.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    files.write(Path(path), buffer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """What `save` was given, tensors on the CPU. Raises CheckpointError for a damaged or foreign file, else OSError."""
    content = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise CheckpointError(f"checkpoint: '{path}' is damaged (checksum of {damaged}); expected a whole one")
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a doctored file can make the readers raise anything
        raise CheckpointError(f"checkpoint: '{path}' is truncated or no checkpoint of prograde") from error
    if not isinstance(loaded, dict) or loaded.pop("format", None) != FORMAT:
        raise CheckpointError(f"checkpoint: '{path}' was not written by this version of prograde ('{FORMAT}')")
    return loaded
