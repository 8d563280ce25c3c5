"""Mutants that nothing can tell from the original, each with the argument; see `mutation`.

The key is the function, by its module and qualified name, and the statement as the mutation leaves it, in one line.
"""

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "accelerated.forward_forward.labelled",
        "whole = replaced and (positions >= 1 or num_classes == channels)",
    ): "an input formed whole has the numbers of one whose pixels are shared; it takes longer",
}
