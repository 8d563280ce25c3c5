"""Property tests that hold an accelerated twin to the reference, and both to the theorems.

Run with `prograde check`, on this package's twin or on one's own: `prograde check --twin my_package`.
"""
