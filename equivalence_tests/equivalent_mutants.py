"""Mutants that nothing can tell from the original, each with the argument; see `mutation`.

The key is the function, by its module and qualified name, and the statement as the mutation leaves it, in one line.
"""

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "accelerated.losses.errors",
        "e = e if temperature == 0 else e / temperature",
    ): "a division by 1 changes no number",
    (
        "accelerated.foton.recomputed_factors",
        "yield (delta if factor == 0 else factor * delta, z)",
    ): "a product with 1 changes no number, and a factor is a power of a positive number",
    (
        "accelerated.activations._gelu_difference",
        "small = (u.abs() < 5 * torch.finfo(u.dtype).eps ** 0.25).to(u.dtype)",
    ): "between 4 and 5 both ways are right to rounding: the series is off by 1.3 eps |u|",
    (
        "accelerated.losses.entropies",
        "logits = scores if temperature == 0 else scores / temperature",
    ): "a division by 1 changes no number",
    (
        "accelerated.goodness._entmax_root",
        "support = (squares <= 1).sum(dim=1, keepdim=True).clamp(min=1)",
    ): "a unit at which the squares are 1 is the threshold itself, with it or without",
    (
        "accelerated.orthogonality.spectral_bound",
        "row_sum = gram.abs().sum(dim=-2).amax(dim=-1)",
    ): "a Gram matrix is symmetric",
    (
        "accelerated.pooling._lp_slopes",
        "return inside.sign() * (inside.abs() / torch.where(h == 0, 2, h)).pow(power - 1)",
    ): "the norm is 0 where all pixels of its square are, whose sign is 0",
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
        "accelerated.rules.local.layer_aggregation.LayerAggregation.forward",
        "return weighted(torch.where(taken, scores, 1), self.weights)",
    ): "what is not taken has a weight of 0, whatever finite number stands there",
    (
        "accelerated.rules.rule.LayeredRule.activity_shapes",
        "x = torch.zeros(1, *sample, dtype=key[1], device=self.units[0].weights[0].device)",
    ): "in evaluation mode the shape of a sample's activities does not depend on how many samples there are",
    (
        "accelerated.rules.ftp.Ftp._first_difference",
        "is_channels_last = h.dim() != 4 and h.is_contiguous(memory_format=torch.channels_last)",
    ): "the order in memory changes no number",
    (
        "accelerated.rules.ftp.Ftp._first_difference",
        "rows = len(h) if h.device.type != 'cpu' else PART // flat.shape[1] + 2",
    ): "rows are worked on in parts, whose size changes no row",
    (
        "accelerated.orthogonality.bjorck_factor",
        "factor = q if factor is None else factor @ q",
    ): "both are polynomials of the Gram matrix, which commute",
    (
        "accelerated.rules.orthogonality.Orthogonality._restore_unseen",
        "restored = polar_iteration(torch.stack(rows), 3 if self.tolerance >= FINE else 5)",
    ): "four steps have converged: a fifth changes no more than rounding does",
    (
        "accelerated.recurrent.differences_per_step",
        "of_step = Pass(*((*part[begin:begin + count], part[-0]) for part in clean))",
    ): "the differences end before the output, whose pass is not looked at",
    (
        "accelerated.forward_forward.label_scores",
        "at_once = max(2, candidates // x.shape[0])",
    ): "how many labels are scored at once changes no score",
    (
        "accelerated.rules.output_loss.Loss._in_share",
        "return found if self.share == 2 else self.share * found",
    ): "a share of 1 changes nothing, and none is 2",
    (
        "reference.orthogonality.convergence_limit",
        "squares = [1 - root.real for root in map(complex, roots) if abs(root.imag) < 1e-09 and root.real <= -1e-09]",
    ): "no root lies on the bound",
    (
        "accelerated.foton.error_projection",
        "if index >= 0:",
    ): "what is before the first layer is taken for the output's outlet, which is none",
    (
        "accelerated.normalisations.direction",
        "return torch.where(length <= eps, 0, v / length).to(v.dtype)",
    ): "what a length of eps or less gives is replaced",
    (
        "reference.orthogonality.orthogonal",
        "q = q / np.sign(np.diag(r))",
    ): "a sign is its own inverse",
    (
        "accelerated.forward_forward.label_scores",
        "at_once = max(1, candidates // x.shape[1])",
    ): "labels have the same scores in other portions",
    (
        "accelerated.forward_forward.labelled",
        "start, channels = (x.shape[1], x.shape[1] + num_classes) if replaced else (0, x.shape[1])",
    ): "labels are then written into the input, which gives the same",
    (
        "accelerated.rules.orthogonality.Orthogonality._restore",
        "share = 1.0 if way.order == 1 else 1",
    ): "the other branch takes the same step",
    (
        "reference.forward_forward.wrong_labels",
        "return (labels - rng.integers(1, num_classes, labels.shape)) % num_classes",
    ): "as even over the other labels",
    (
        "reference.negatives.random_partners",
        "partner[order] = np.roll(order, 1)",
    ): "a random order is as random backwards",
    (
        "accelerated.layers.changed",
        "for number, step in enumerate(steps, 0):",
    ): "what the last step gives is not used",
    (
        "accelerated.losses.entropies",
        "return found if v is None else times(found, v)",
    ): "products of numbers commute",
    (
        "accelerated.orthogonality.retract",
        "cube = t @ square",
    ): "powers of a matrix commute",
    (
        "accelerated.orthogonality.scaled_bjorck",
        "v = start * torch.linalg.vector_norm(start)",
    ): "each iteration gives it the length 1",
    (
        "accelerated.rules.feedback_alignment.DirectFeedbackAlignment._drawn",
        "weight = self.units[1].weights[0]",
    ): "weights of two devices or dtypes are refused before",
    (
        "accelerated.rules.feedback_alignment._FeedbackRule.checked",
        "check_place(name, self.get_buffer(name), self.units[1].weights[0])",
    ): "weights of two devices or dtypes are refused before",
    (
        "accelerated.rules.forward_forward_losses.CumulativeForwardForward.__init__",
        "self.raw_tau.append(nn.Parameter(torch.full_like(like.flatten()[1], math.log(math.expm1(1)))))",
    ): "another number of the same weight has the same device and dtype",
    (
        "accelerated.rules.output_loss.OwnLoss.gradient",
        "seen = scores.requires_grad_()",
    ): "in a step scores have no graph, and nobody else has them",
    (
        "accelerated.blocks._deltas",
        "for number, layer in enumerate(layers, 0):",
    ): "what the last layer would give is not used",
    (
        "accelerated.goodness._entmax_root",
        "x = ((z - z.amax(dim=1, keepdim=True)) / 2).clamp(min=-2)",
    ): "t is at least -1: what is below has no part, wherever it is lifted to",
    (
        "accelerated.rules.local.units.LocalUnit.pass_on",
        "if h.dim() == 5 and h.stride(1) == 1:",
    ): "the order in memory changes no number",
    (
        "accelerated.difference_target_propagation.differences",
        "found = [step * layers[-1].adjoint(clean.inputs[1], error)]",
    ): "the adjoint of a dense layer does not look at its input",
    (
        "accelerated.rules.rule.OutputErrorRule.sample_shapes",
        "z = self.begin(torch.zeros(2, *sample, dtype=dtype, device=self.units[0].weights[0].device))",
    ): "in evaluation mode a sample's shape does not depend on how many samples there are",
    (
        "accelerated.convolution.skew_kernel_vjp",
        "size, turned = (kernel.shape[3], quarter_turns(kernel))",
    ): "other kernels than square ones are refused before",
    (
        "accelerated.rules.local.units.LocalUnit.pass_on",
        "if h.dim() == 4 and h.stride(1) == 0:",
    ): "the order in memory changes no number",
    (
        "accelerated.rules.convolving._convolved",
        "z, kernel = (input.detach(), weight)",
    ): "the functions that take it record no graph, and give no gradient by it",
    (
        "accelerated.losses.errors",
        "e = torch.softmax(scores if temperature == 0 else scores / temperature, dim=-1)",
    ): "to divide by 1 changes nothing, and no temperature is 0",
    (
        "accelerated.convolution",
        "MANY = 129",
    ): "of one channel more or less, windows have the numbers of PyTorch's own; it takes longer or less long",
    (
        "accelerated.convolution._parts",
        "yield from samples.split(ceil(height), dim=1)",
    ): "a sum over rows is made in parts, of whatever size; larger ones take more memory",
    (
        "accelerated.activations._gelu_difference",
        "small = (u.abs() <= 4 * torch.finfo(u.dtype).eps ** 0.25).to(u.dtype)",
    ): "on the bound itself both forms have all digits",
    (
        "accelerated.hardware.quantise",
        "largest = torch.where(largest == 0, 2, largest)",
    ): "where the largest is 0 all are 0, by whatever they are divided",
    (
        "accelerated.rules.local.score_heads.grids",
        "last = min((unit.width for unit in [b for b in units if b.has_maps][-1:]), default=1)",
    ): "the last unit with maps alone, or none: of one number the least is the largest",
    (
        "accelerated.orthogonality.convergence_limit",
        "return float(np.sqrt(max(squares)))",
    ): "for negative E the polynomials fall steadily, to one root each",
    (
        "reference.orthogonality.convergence_limit",
        "return float(np.sqrt(max(squares)))",
    ): "for negative E the polynomials fall steadily, to one root each",
    (
        "accelerated.rules.module_layer.ModuleStep.jvp",
        "d = torch.ones_like(self.value(a), requires_grad=True)",
    ): "vjp is linear in d: its derivative by d is the same at any",
    (
        "accelerated.rules.rule.check_finite",
        "if readable(x) and (not isfinite(x.mean(dtype=wide(x.dtype)))):",
    ): "a mean is finite where its sum is",
    (
        "accelerated.rules.local.units.LocalUnit.pass_on",
        "if h.dim() != 4 and h.stride(1) == 1:",
    ): "the order in memory changes no number",
    (
        "accelerated.rules.ftp.Ftp._first_difference",
        "is_channels_last = h.dim() == 5 and h.is_contiguous(memory_format=torch.channels_last)",
    ): "the order in memory changes no number",
    (
        "accelerated.rules.local.score_heads.grids",
        "last = max((unit.width for unit in [b for b in units if b.has_maps][-1:]), default=0)",
    ): "a unit that is as wide or wider has one cell, and without maps all have",
    (
        "accelerated.rules.orthogonality.Orthogonality._restore",
        "share = 0.5 if way.order == 0 else 1",
    ): "the other branch takes the same step",
    (
        "accelerated.rules.orthogonality.ScaledBjorck.step",
        "if self._looks_at(weight) and (not torch.isfinite(weight).any()):",
    ): "all are divided by one norm: where one is not finite, none is",
    (
        "accelerated.rules.orthogonality._of_columns",
        "rows = torch.linalg.vector_norm(symmetric, dim=1)",
    ): "rows and columns of a symmetric matrix are the same",
    (
        "accelerated._arrays.few_rows",
        "parts = gcd(matrix.shape[1], PARTS)",
    ): "a greatest common divisor is one of both",
    (
        "accelerated.losses.huber",
        "found = torch.where(size < delta, size.square() / 2, delta * (size - delta / 2))",
    ): "on the bound itself both forms are delta^2 / 2",
    (
        "accelerated.rules.convolving._convolved",
        "z, kernel = (input, weight.detach())",
    ): "the functions that take it record no graph, and give no gradient by it",
    (
        "accelerated.rules.foton.Foton._load_from_state_dict",
        "self.projection = None if found is None else self.units[1].weights[0].new_empty(found.shape)",
    ): "weights of two devices or dtypes are refused before",
    (
        "accelerated.rules.stepping._add",
        "if beta == 2:",
    ): "to multiply by 1 changes nothing",
}
