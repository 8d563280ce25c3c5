"""Mutants that nothing can tell from the original, each with the argument; see `mutation`.

The key is the function, by its module and qualified name, and the statement as the mutation leaves it, in one line.
"""

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "accelerated.activations._gelu_difference",
        "m = torch.sub(a, u, alpha=0.5).clamp_(-12, 13)",
    ): "beyond 12 the derivative is 1 in every precision",
    (
        "accelerated.orthogonality.bjorck_factor",
        "if step < steps:",
    ): "the Gram matrix after the last step is not used",
    (
        "reference.orthogonality.bjorck_factor",
        "factor, gram = (q @ factor, q @ (q @ gram))",
    ): "q is a polynomial of the Gram matrix, which commutes with it",
    (
        "reference.negatives.blurred_masks",
        "padded = np.pad(blurred, [(0, 0), *((1, 2) if axis == a else (0, 0) for a in (1, 2))], mode='edge')",
    ): "the second row beyond the border is not read",
    (
        "accelerated.rules.ftp.Ftp._first_difference",
        "rows = len(h) if h.device.type != 'cpu' else PART // flat.shape[0] + 1",
    ): "rows are worked on in parts, whose size changes no row",
    (
        "accelerated.forward_forward.labelled",
        "whole = replaced and (positions >= 1 or num_classes == channels)",
    ): "an input formed whole has the numbers of one whose pixels are shared; it takes longer",
}
