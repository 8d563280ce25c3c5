"""Property tests that hold an accelerated twin to the reference, and both to the theorems.

Run with `prograde check`, on this package's twin or on one's own: `prograde check --twin my_package`. In a suite of
one's own, `parametrize_with_twins` and `parametrize_with_rules` run them, and what is promised of every rule, as named
checks.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common_checks import parametrize_with_rules, parametrize_with_twins

__all__ = ["parametrize_with_rules", "parametrize_with_twins"]


def __getattr__(name: str) -> Any:
    """Loads what makes the checks where it is asked for: the plugin is loaded before it."""
    if name in __all__:
        from . import common_checks

        return getattr(common_checks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
