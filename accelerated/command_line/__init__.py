"""The command `prograde`: train, compare, benchmark, check."""

from .app import app, main

__all__ = ["app", "main"]
