"""Mutants that nothing can tell from the original, each with the argument; see `mutation`.

The key is the function, by its module and qualified name, and the statement as the mutation leaves it, in one line.
"""

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "accelerated.layers.pushed",
        "for number, step in enumerate(steps, 0):",
    ): "what the last step gives is not used",
    (
        "accelerated.normalisations.direction_vjp",
        "u = v / length",
    ): "what a length of 0 gives is replaced",
    (
        "reference.goodness._entmax_root",
        "x = np.maximum((z - np.max(z, axis=1, keepdims=True)) / 2, -2)",
    ): "t is at least -1: what is below has no part, wherever it is lifted to",
    (
        "reference.normalisations.group_norm_vjp",
        "rows = h.reshape(groups, len(h), -1)",
    ): "the groups of all samples are the same rows",
    (
        "reference.normalisations.rms_norm_vjp",
        "u = np.where(size == 0, 1, h / np.where(size == 0, 1, size))",
    ): "it is multiplied by the size, which is 0 there",
    (
        "reference.orthogonality._polynomial",
        "power = residual @ power",
    ): "powers of a matrix commute",
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
