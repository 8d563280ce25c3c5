"""Mutants that nothing can tell from the original, each with the argument; see `mutation`.

The key is the function, by its module and qualified name, and the statement as the mutation leaves it, in one line.
"""

EQUIVALENT: dict[tuple[str, str], str] = {}
