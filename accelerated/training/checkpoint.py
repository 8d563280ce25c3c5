"""Checkpoints: safetensors files, written whole or not at all, read without running what a file might carry.

Tensors have the names of their places, such as `best.model.0.weight`; a tied one is stored once, under its first name.
The rest is JSON under "prograde" in the file's metadata, with `tied`: other names, and the names of what they are.
"""

import hashlib
import importlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files
from .data import Dataset
from .errors import UserError

FORMAT = "prograde checkpoint 3"
HEADER, DIGEST = "prograde", "prograde_sha256"
"""What the file's metadata have: everything but the tensors as JSON, and the checksum of both."""


class CheckpointError(UserError):
    """A checkpoint that can't be resumed: which file and why.

    >>> _ = Path("cut.safetensors").write_bytes(b"cut")
    >>> try:
    ...     restore("cut.safetensors")
    ... except CheckpointError as error:
    ...     print(error)
    checkpoint: 'cut.safetensors' is truncated or no checkpoint of prograde
    """


class CheckpointExists(CheckpointError):
    """A checkpoint where another one was to be written."""


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
        raise CheckpointExists(
            f"checkpoint: '{path}' is a checkpoint already; expected resume to go on with it, overwrite to replace it, "
            "or another name"
        )


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Replaces the file; an old one stays whole until the new one is. Raises OSError.

    `content` has tensors, numbers, strings, None and lists, tuples and dicts of these. Raises CheckpointError, with its
    place, for anything else.
    """
    tensors: dict[str, Tensor] = {}
    tree = {"format": FORMAT, **{name: _packed(value, name, tensors) for name, value in content.items()}}
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if tensor.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            held[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    text = json.dumps({**tree, "tied": tied}, allow_nan=False)
    metadata = {"format": "pt", HEADER: text, DIGEST: _digest(text, held)}
    files.write(Path(path), safetensors().save(held, metadata))


def load(path: str | Path) -> dict[str, Any]:
    """What `save` was given, tensors on the CPU. Raises CheckpointError for a damaged or foreign file, else OSError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(f"checkpoint: '{path}' is a folder, a device or a pipe, expected a file")
    content = Path(path).read_bytes()
    try:
        tensors = safetensors().load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        text, digest = metadata[HEADER], metadata[DIGEST]
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a doctored file can make the readers raise anything
        raise CheckpointError(f"checkpoint: '{path}' is truncated or no checkpoint of prograde") from error
    if digest != _digest(text, tensors):
        raise CheckpointError(f"checkpoint: '{path}' is damaged (by its SHA-256); expected a whole one")
    try:
        tree = json.loads(text)
        if tree.pop("format") != FORMAT:
            raise CheckpointError(f"checkpoint: '{path}' was not written by this version of prograde ('{FORMAT}')")
        tensors |= {name: tensors[first] for name, first in tree.pop("tied").items()}
        return {name: _unpacked(value, tensors) for name, value in tree.items()}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"checkpoint: '{path}' is no checkpoint of prograde ({error})") from error


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON has it: a tensor by its name, and what JSON lacks in a dict of one name with a $."""
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        is_dense = not value.is_contiguous() and value.permute(order).is_contiguous()
        return {"$tensor": name, "order": order} if is_dense else {"$tensor": name}
    if isinstance(value, list | tuple):
        items = [_packed(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _packed(item, f"{name}.{key}", tensors) for key, item in value.items()}
        return {
            "$dict": [
                [_packed(key, name, tensors), _packed(item, f"{name}.{key}", tensors)] for key, item in value.items()
            ]
        }
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _packed(value.item(), name, tensors)
    raise CheckpointError(f"checkpoint: {name} is a {type(value).__name__}, expected a tensor, a number or a name")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": name, "order": order}:  # fused optimizers read state and weights in the order of memory
            inverse = [order.index(axis) for axis in range(len(order))]
            return tensors[name].permute(order).contiguous().permute(inverse)
        case {"$tensor": name}:
            return tensors[name]
        case {"$tuple": items}:
            return tuple(_unpacked(item, tensors) for item in items)
        case {"$dict": items}:
            return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in items}
        case {"$float": number}:
            return float(number)
    return {key: _unpacked(item, tensors) for key, item in value.items()}


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of all that a file has to say, since the format itself has no checksum."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        _add(found, tensors[name], name)
    return found.hexdigest()


def _add(found: Any, tensor: Tensor, name: str = "") -> None:
    found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".strip().encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def safetensors() -> Any:
    """The library's functions for PyTorch. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise UserError("checkpoint: needs safetensors; pip install 'prograde[train]'") from error


def digest(dataset: Dataset) -> str:
    """The SHA-256 of a data set's samples and labels: the same data under another name have the same."""
    return digest_of((dataset.train, dataset.validation, dataset.test))


def digest_of(parts: Iterable[Iterable[Tensor]]) -> str:
    """The SHA-256 of tensors, their shapes and dtypes."""
    found = hashlib.sha256()
    for part in parts:
        for tensor in part:
            _add(found, tensor)
    return found.hexdigest()
