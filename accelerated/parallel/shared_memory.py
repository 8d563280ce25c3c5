"""Memory that the processes of one machine share, through which they add arrays without sending them."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from .processes import Processes

FOLDER = Path("/dev/shm")
"""Where Linux has files in memory."""
ALIGNED = 64  # bytes

Slots: TypeAlias = dict[Tensor, list[Tensor]]
"""By parameter, an array shaped as it for each process, in order of rank."""


def shared_slots(parameters: Iterable[Tensor], processes: Processes) -> Slots:
    """Slots for the parameters of a CPU; none where the processes do not see each other's memory, or it is too small.

    All processes call this together. The files of the memory have no name any more when it returns, so that they end
    with the processes.
    """
    held = [p for p in parameters if p.device.type == "cpu" and p.is_contiguous()]
    sizes = [-(-p.numel() * p.element_size() // ALIGNED) * ALIGNED for p in held]
    if not held or processes.size == 1:
        return {}
    token = processes.first(secrets.token_hex(8))
    paths = [FOLDER / f"prograde-{token}-{rank}" for rank in range(processes.size)]
    own, memory = paths[processes.rank], []
    try:
        is_made = _made(own, sum(sizes))
        if all(made for (made,) in processes.all_told(is_made)):
            memory = _opened(paths, sum(sizes))
        is_seen = all(seen for (seen,) in processes.all_told(bool(memory)))
    finally:
        own.unlink(missing_ok=True)
    if not is_seen:
        return {}
    parts = zip(*(each.split(sizes) for each in memory), strict=True)
    return {
        p: [part[: p.numel() * p.element_size()].view(p.dtype).view(p.shape) for part in of_all]
        for p, of_all in zip(held, parts, strict=True)
    }


def _made(path: Path, size: int) -> bool:
    """Whether there is a file of that size, whose memory is reserved: else writing would end the process."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)
    except OSError:
        return False
    return True


def _opened(paths: list[Path], size: int) -> list[Tensor]:
    """The bytes of each file; nothing where one is not there, as on another machine."""
    try:
        return [torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8) for path in paths]
    except (OSError, RuntimeError):
        return []
