"""The command `prograde`: what its parts do, docs/command-line.md says."""

import sys

__all__ = ["main"]


def main() -> None:
    """The console entry. Ctrl-C while PyTorch loads ends as it does later, in a line."""
    try:
        from .app import app
    except KeyboardInterrupt:
        print("prograde: interrupted", file=sys.stderr)
        sys.exit(130)
    app(prog_name="prograde")
