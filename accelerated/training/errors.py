"""The errors that a person can mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable

import torch


class UserError(ValueError):
    """Names what was given, what came and what was expected.

    >>> try:
    ...     Recipe(epochs=0)
    ... except UserError as error:
    ...     print(error)
    epochs: 0, expected an integer, 1 or more
    """


class DataError(UserError):
    """Data that can't be trained on: which file or array, what was found and what was expected.

    >>> try:
    ...     load((torch.eye(4), torch.tensor([0, 1, 0])))
    ... except DataError as error:
    ...     print(error)
    train, labels: 3 labels, but train has 4 images
    """


def available(device: torch.device | str) -> torch.device:
    """The device, once a tensor has been made there. Raises UserError."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except Exception as error:  # each backend has its own way to say that it is missing
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"device: '{device}' is not available ({reason}); expected one of this machine, such as cpu"
        ) from error
    return found


def unknown(argument: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones, with those close to it."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return UserError(f"{argument}: {name!r}, {hint}expected one of {', '.join(known)}")
