"""What is installed here."""

import importlib.metadata


def version() -> str:
    """Of prograde, where it is installed and not run from its sources."""
    try:
        return importlib.metadata.version("prograde")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
