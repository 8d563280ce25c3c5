"""Checkpoints: written whole or not at all, read without running what a file might carry."""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files
from .data import Dataset
from .errors import UserError

FORMAT = "prograde checkpoint 2"


class CheckpointError(UserError):
    """A checkpoint that can't be resumed: which file and why."""


def claim(path: str | Path, *, resume: str | Path | None = None, overwrite: bool = False) -> None:
    """Sees that a training may write its checkpoints to `path`, before it begins.

    What is there already has to be the checkpoint that the training resumes or, with `overwrite`, another checkpoint;
    anything else is never replaced. Raises UserError, or OSError where nothing can be written.
    """
    try:
        files.prepare(Path(path))
    except UserError as error:
        raise CheckpointError(f"checkpoint: {error}") from error
    if not os.path.exists(path) or (resume is not None and os.path.exists(resume) and os.path.samefile(path, resume)):
        return
    try:
        load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it is not replaced, expected another name") from error
    if not overwrite:
        raise CheckpointError(
            f"checkpoint: '{path}' is a checkpoint already; expected resume to go on with it, overwrite to replace it, "
            "or another name"
        )


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Replaces the file; an old one stays whole until the new one is. Raises OSError.

    `content` has tensors, numbers, strings, None and lists, tuples and dicts of these.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    files.write(Path(path), buffer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """What `save` was given, tensors on the CPU. Raises CheckpointError for a damaged or foreign file, else OSError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(f"checkpoint: '{path}' is a folder, a device or a pipe, expected a file")
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


def digest(dataset: Dataset) -> str:
    """The SHA-256 of a data set's samples and labels: the same data under another name have the same."""
    return digest_of((dataset.train, dataset.validation, dataset.test))


def digest_of(parts: Iterable[Iterable[Tensor]]) -> str:
    """The SHA-256 of tensors, their shapes and dtypes."""
    found = hashlib.sha256()
    for part in parts:
        for tensor in part:
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
