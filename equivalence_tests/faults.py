"""Planted faults: each is put into the code, and a named assertion of the suite must catch it.

    python -m prograde.equivalence_tests.faults [--list] [NAME ...]

Nothing on disk is changed: a fault replaces one piece of a module's source text while it is imported, in a process of
its own. The command fails if a fault survives, if another assertion than the named one catches it, or if the text to
replace is no longer there.
"""

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import io
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec, spec_from_file_location
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NamedTuple

ROOT = "prograde"


class Fault(NamedTuple):
    """`before`, found once in `module`, becomes `after`; `test` must then fail with `assertion` in its message."""

    name: str
    module: str
    before: str
    after: str
    test: str
    assertion: str


FAULTS = [
    # Activations and losses
    Fault("relu difference ignores the kink", "accelerated.activations",
          "torch.minimum(u - a.clamp(max=0), a.clamp(min=0))", "torch.where(a > 0, u, 0)",
          "test_activations.py::test_difference", "relu.difference"),
    Fault("tanh derivative without the square", "accelerated.activations",
          "sigmoid_backward(4 * direction, torch.sigmoid(2 * a))", "sigmoid_backward(4 * direction, torch.sigmoid(a))",
          "test_activations.py::test_value_and_derivatives", "tanh.jvp"),
    Fault("leaky slope on the wrong side", "accelerated.activations",
          "leaky_relu_backward(direction, a, negative_slope, False)",
          "leaky_relu_backward(direction, -a, negative_slope, False)",
          "test_activations.py::test_value_and_derivatives", "leaky_relu.jvp"),
    Fault("maxmin gives minimum first", "accelerated.activations",
          "torch.maximum(first, second), torch.minimum(first, second)",
          "torch.minimum(first, second), torch.maximum(first, second)",
          "test_activations.py::test_value_and_derivatives", "maxmin.value"),
    Fault("maxmin does not permute derivatives", "reference.activations",
          "np.where(keep, u_first, u_second), np.where(keep, u_second, u_first)", "u_first, u_second",
          "test_activations.py::test_derivatives_are_those_of_the_value", "jvp is no slope"),
    Fault("temperature lost from the error", "accelerated.losses",
          "error if temperature == 1 else error / temperature", "error",
          "test_losses.py::test_cross_entropy", "cross_entropy_gradient"),
    Fault("temperature lost from the reference's error", "reference.losses",
          "(softmax(scores / temperature, axis=1) - targets) / temperature",
          "softmax(scores / temperature, axis=1) - targets",
          "test_losses.py::test_error_is_the_gradient_of_the_loss", "class 0"),
    Fault("label smoothing forgotten in the error", "accelerated.losses",
          "    if label_smoothing:\n", "    if False:\n",
          "test_losses.py::test_cross_entropy", "cross_entropy_gradient"),
    Fault("squared error without its half", "accelerated.losses",
          "0.5 * squared_error_gradient", "squared_error_gradient",
          "test_losses.py::test_squared_error", "squared_error"),
    # Backpropagation, and what all output-error rules share
    Fault("1/B dropped", "accelerated.network",
          "scaled = delta / len(delta)", "scaled = delta",
          "test_backprop.py::test_updates", "backprop.updates.weights[0]"),
    Fault("1/B dropped from the reference", "reference.network",
          "delta.T @ z / len(delta)", "delta.T @ z",
          "test_backprop.py::test_the_reference_is_autograd", "weights[0]"),
    Fault("bias update summed over the batch", "accelerated.network",
          "scaled.sum(dim=0)", "delta.sum(dim=0)",
          "test_network.py::test_layer_update", "layer_update.bias"),
    Fault("backprop forgets the mask", "accelerated.backprop",
          "gradient = mask * gradient", "gradient = 1 * gradient",
          "test_backprop.py::test_updates", "backprop.updates.weights"),
    Fault("the reference's backprop forgets the mask", "reference.backprop",
          "gradient = mask * gradient", "gradient = 1 * gradient",
          "test_backprop.py::test_the_reference_is_autograd", "weights"),
    Fault("backprop skips the derivative", "accelerated.backprop",
          "network.activations[layer].vjp(clean.preactivations[layer], gradient)", "gradient",
          "test_backprop.py::test_updates", "backprop.updates.weights[0]"),
    Fault("backprop mistakes activations for pre-activations", "reference.backprop",
          "vjp(clean.preactivations[layer], gradient)",
          "vjp(network.activations[layer].value(clean.preactivations[layer]), gradient)",
          "test_backprop.py::test_the_reference_is_autograd", "weights"),
    Fault("mask forgotten in the clean pass", "accelerated.network",
          "h = _mask(masks, layer, activation.value(a))", "h = activation.value(a)",
          "test_network.py::test_forward", "forward.inputs[1]"),
    Fault("bias forgotten in the clean pass", "accelerated.network",
          "functional.linear(z, weight, bias)", "functional.linear(z, weight)",
          "test_network.py::test_forward", "forward.inputs[1]"),
    Fault("gradients of another step kept", "accelerated.rules.rule",
          "parameter.grad = None  # so that the new gradients take its memory",
          "pass\n        self.__dict__.setdefault('old', {})",
          "test_rules.py::test_assign_credit_forgets_the_last_step", "stale gradient"),
    # FOTON
    Fault("projected error added", "accelerated.foton",
          "u = error @ (projection.T @ network.weights[0].T)  # rows",
          "u = -error @ (projection.T @ network.weights[0].T)  # rows",
          "test_foton.py::test_updates", "foton.updates.weights[0]"),
    Fault("difference of the wrong sign", "accelerated.network",
          "u = error @ (projection", "u = -error @ (projection",
          "test_pepita.py::test_updates", "pepita.updates.weights[0]"),
    Fault("projected error added in the reference", "reference.network",
          "clean.inputs[0] - error @ projection.T", "clean.inputs[0] + error @ projection.T",
          "test_foton.py::test_linear_orthogonal_network_gives_backprop", "differences[0]"),
    Fault("mask forgotten in the modulated pass", "accelerated.network",
          "_mask(masks, layer, activation.difference(a, u))", "activation.difference(a, u)",
          "test_foton.py::test_updates", "foton.updates.weights[0]"),
    Fault("modulated for clean activation", "accelerated.foton",
          "for factor, delta, h in zip(correction, chain(differences, [error]), clean.inputs, strict=True):",
          "differences = list(differences)\n"
          "    inputs = [clean.inputs[0], *(h - d for h, d in zip(clean.inputs[1:], differences))]\n"
          "    for factor, delta, h in zip(correction, chain(differences, [error]), inputs, strict=True):",
          "test_foton.py::test_updates", "foton.updates.weights[1]"),
    Fault("modulated for clean activation in the reference", "reference.foton",
          "for factor, delta, h in zip(correction, chain(differences, [error]), clean.inputs, strict=True):",
          "differences = list(differences)\n"
          "    inputs = [clean.inputs[0], *(h - d for h, d in zip(clean.inputs[1:], differences))]\n"
          "    for factor, delta, h in zip(correction, chain(differences, [error]), inputs, strict=True):",
          "test_foton.py::test_linear_orthogonal_network_gives_backprop", "foton.updates.weights"),
    Fault("linearised modulated pass", "accelerated.network",
          "activation.difference(a, u)", "activation.jvp(a, u)",
          "test_foton.py::test_updates", "foton.updates.weights[0]"),
    Fault("differences halved in the reference", "reference.network",
          "yield h - h_modulated", "yield 0.5 * (h - h_modulated)",
          "test_foton.py::test_linear_orthogonal_network_gives_backprop", "differences[0]"),
    Fault("error projection normalised", "accelerated.foton",
          "return transposed.T", "return transposed.T / 2",
          "test_foton.py::test_error_projection", "foton.error_projection"),
    Fault("error projection without the output layer's scale in the reference", "reference.foton",
          "projection = weights[-1].T  #", "projection = 2 * weights[-1].T  #",
          "test_foton.py::test_linear_orthogonal_network_gives_backprop", "differences[0]"),
    Fault("stale F", "accelerated.rules.foton",
          "            return error_projection(network.weights)",
          "            return self.__dict__.setdefault('stale', error_projection(network.weights))",
          "test_constraint.py::test_updates_follow_the_weights", "Foton.weights[0]"),
    Fault("given projection ignored", "accelerated.foton",
          "    if projection is None:\n", "    if True:\n",
          "test_foton.py::test_updates_with_a_given_projection", "foton.updates.weights[0]"),
    Fault("modulated pass drawn with masks of its own", "accelerated.rules.foton",
          "projection, held_masks, self.slope, self.linear)", "projection, self.masks(x), self.slope, self.linear)",
          "test_rules.py::test_dropout_masks_are_shared_by_both_passes", "masks of block"),
    Fault("weights not orthogonal at the start", "accelerated.rules.orthogonality",
          "for weight in self.weights().values():\n            weight.copy_(polar_factor(weight))",
          "for weight in self.weights().values():\n            weight.copy_(weight)",
          "test_constraint.py::test_the_limit_is_kept_at_every_step", "orthogonal from the start"),
    Fault("constraint forgotten", "accelerated.rules.foton",
          "        self.orthogonality.step(plain)\n", "        pass\n",
          "test_constraint.py::test_the_limit_is_kept_at_every_step", "<= 0.005"),
    Fault("momentum taken for a plain step", "accelerated.rules.foton",
          "group[\"momentum\"] or group", "group",
          "test_constraint.py::test_which_optimizers_take_plain_steps", "plain rate"),
    Fault("clipping goes unnoticed", "accelerated.rules.foton",
          "return weight.grad is self.gradient and versions == self.versions", "return True",
          "test_constraint.py::test_a_clipped_gradient_is_no_plain_step", "nearest"),
    Fault("retraction to first order", "accelerated.orthogonality",
          "c[batch:, batch:] = square * -(s**2)", "c[batch:, batch:] = 0",
          "test_orthogonality.py::test_retract", "retract"),
    Fault("Bjorck on the wrong polynomial", "accelerated.orthogonality",
          "comb(2 * k, k) / 4**k", "comb(2 * k, k) / 5**k",
          "test_orthogonality.py::test_bjorck", "bjorck"),
    Fault("Bjorck of the reference on the wrong polynomial", "reference.orthogonality",
          "comb(2 * k, k) / 4**k", "comb(2 * k, k) / 5**k",
          "test_orthogonality.py::test_one_step_acts_on_singular_values_alone", "singular values"),
    Fault("rescaling without the root", "accelerated.orthogonality",
          "q = q / scale.sqrt()", "q = q / scale",
          "test_orthogonality.py::test_bjorck_of_a_rescaled_weight", "bjorck"),
    Fault("convergence limits squared", "reference.orthogonality",
          "return float(np.sqrt(min(squares)))", "return float(min(squares))",
          "test_orthogonality.py::test_convergence_limits", "convergence limits"),
    Fault("orthogonal matrices of uneven signs", "reference.orthogonality",
          "q = q * np.sign(np.diag(r))", "q = q * 1.0",
          "test_samplers.py::test_orthogonal_is_uniform", "pvalue"),
    Fault("Bjorck step of order 1 wherever entries are small", "accelerated.rules.orthogonality",
          "if frobenius < 1 and column**2 <= self.limit:", "if column**2 <= 4 * self.limit:",
          "test_constraint.py::test_a_restored_weight_is_within_the_limit", "defect"),
    Fault("two steps of order 4 for any drift", "accelerated.rules.orthogonality",
          "return (4, 2) if left < 0.9 and", "return (4, 2) if left < 1e9 or",
          "test_constraint.py::test_a_restored_weight_is_within_the_limit", "defect"),
    Fault("weights checked every tenth step", "accelerated.rules.orthogonality",
          "if whole or not", "if self.steps % 10 == 0 and not",
          "test_constraint.py::test_the_limit_is_kept_at_every_step", "<= 0.005"),
    Fault("drift twice as large", "accelerated.orthogonality",
          "torch.addmm(rows, image, back, alpha=-1)", "torch.addmm(rows, image, back, alpha=-2)",
          "test_orthogonality.py::test_drift", "drift"),
    Fault("stretch undone twice", "accelerated.orthogonality",
          "rsqrt() - 1", "reciprocal() - 1",
          "test_orthogonality.py::test_polar_within", "polar_within"),
    Fault("stretch undone twice in the reference", "reference.orthogonality",
          "(1 / np.sqrt(np.where", "(1 / (np.where",
          "test_orthogonality.py::test_within_a_span_nothing_else_changes", "orthonormal in the span"),
    Fault("rows not made orthonormal in the reference", "reference.orthogonality",
          "np.linalg.qr(rows.T)[0].T", "1 * rows",
          "test_orthogonality.py::test_a_drift_in_few_directions_is_found_and_undone", "polar factor"),
    Fault("largest entry sought in the smallest rows", "accelerated.rules.orthogonality",
          "squares.topk(", "(-squares).topk(",
          "test_constraint.py::test_one_pair_of_rows_is_found", "found"),
    Fault("never all entries looked at", "accelerated.rules.orthogonality",
          "or (self.steps + index) % WHOLE == 0", "",
          "test_constraint.py::test_one_pair_of_rows_is_found_among_many_that_are_within_the_limit", "found"),
    Fault("checked by the vectors that were set right", "accelerated.rules.orthogonality",
          "drifts, directions = found[:CHECKS], found[CHECKS:]", "drifts, directions = found[CHECKS:], found[:CHECKS]",
          "test_constraint.py::test_weights_put_there_by_others_are_within_the_limit_after_one_step", "found"),
    Fault("what a step leaves taken for what was there before", "accelerated.orthogonality",
          "return rows - through - through @ q.T @ step.change @ q", "return rows - through",
          "test_orthogonality.py::test_drift_after", "drift_after"),
    Fault("what a step leaves taken for what was there before in the reference", "reference.orthogonality",
          "return rows - through @ a", "return rows - through",
          "test_orthogonality.py::test_the_drift_after_a_step_is_that_of_the_new_weight", "drift of the new weight"),
    Fault("directions found last forgotten by a checkpoint", "accelerated.rules.orthogonality",
          'self.directions = dict(state["directions"])', "self.directions = {}",
          "test_constraint.py::test_resuming_from_a_state_dict_is_exact", "weights"),
    Fault("weights of no known number of steps left alone", "accelerated.rules.orthogonality",
          "                weight.copy_(polar_factor(weight))\n", "                pass\n",
          "test_constraint.py::test_weights_put_there_by_others_are_within_the_limit_after_one_step", "found"),
    Fault("the same check at every step", "accelerated.rules.orthogonality",
          "manual_seed(self.steps)", "manual_seed(0)",
          "test_constraint.py::test_no_drift_stays_unseen", "found"),
    Fault("noise divided by in the span", "accelerated.orthogonality",
          "torch.where(rank, eigenvalues, 1)", "eigenvalues.clamp(min=1e-38)",
          "test_orthogonality.py::test_directions_without_a_weight_stay_as_they_are", "stay"),
    Fault("noise divided by in the span in the reference", "reference.orthogonality",
          "np.where(rank, eigenvalues, 1)", "np.maximum(eigenvalues, 1e-300)",
          "test_orthogonality.py::test_directions_without_a_weight_stay_as_they_are", "stay"),
    Fault("any interval taken for one", "accelerated.rules.orthogonality",
          "if self.steps % self.every:", "if False:",
          "test_constraint.py::test_constraint_at_every_third_step", "step 1"),
    # FOTON's other forms
    Fault("operators without the layers before", "accelerated.foton",
          "weight if not operators else weight @ operators[-1]", "weight",
          "test_foton.py::test_credit_operators", "credit_operators"),
    Fault("operators without the layers before in the reference", "reference.foton",
          "weight if not operators else weight @ operators[-1]", "weight",
          "test_foton.py::test_credit_operators", "credit_operators"),
    Fault("correction upside down", "accelerated.foton",
          "slope ** (depth - 2 * layer)", "slope ** (2 * layer - depth)",
          "test_foton.py::test_updates_corrected_for_a_slope", "foton.updates.weights[0]"),
    Fault("correction upside down in the reference", "reference.foton",
          "slope ** (depth - 2 * layer)", "slope ** (2 * layer - depth)",
          "test_foton.py::test_updates_corrected_for_a_slope", "foton.updates.weights[0]"),
    Fault("mask forgotten in the recomputed difference", "accelerated.foton",
          "delta = u = mask * u", "pass",
          "test_foton.py::test_recomputing_the_clean_pass_changes_nothing", "recomputed_factors"),
    Fault("modulated pass not masked in the reference", "reference.foton",
          "h_modulated = keep * activation", "h_modulated = activation",
          "test_foton.py::test_recomputing_the_clean_pass_changes_nothing", "recomputed_factors"),
    Fault("linear pass through the activations", "accelerated.foton",
          "            u = u @ network.weights[layer].T\n        mask",
          "            u = network.activations[layer].value(u) @ network.weights[layer].T\n        mask",
          "test_foton.py::test_linear_updates", "foton.updates.weights"),
    Fault("linear pass without the layer's own derivative in the reference", "reference.foton",
          "yield activation.vjp(a, u if mask is None else mask * u)",
          "yield u if mask is None else mask * u",
          "test_foton.py::test_linear_pass_gives_the_last_hidden_layer_its_gradient", "foton.updates"),
    Fault("linear pass carries the masked error in the second form", "accelerated.foton",
          "delta = activation.vjp(a, u if mask is None else mask * u)",
          "delta = u = activation.vjp(a, u if mask is None else mask * u)",
          "test_foton.py::test_recomputing_the_clean_pass_changes_nothing", "recomputed_factors"),
    Fault("other masks in the second sweep", "accelerated.rules.foton",
          "masks = self.draw_masks(x, replay)", "masks = self.draw_masks(x, self.generator)",
          "test_streaming.py::test_recomputed_updates_are_the_same_under_dropout", "same updates"),
    Fault("clean pass held by the stream", "accelerated.rules.foton",
          "            output = scores(network, x, self.draw_masks(x, self.generator))",
          "            clean = forward(network, x, tuple(self.draw_masks(x, self.generator)))\n"
          "            output = clean.scores",
          "test_streaming.py::test_memory_does_not_grow_with_depth", "live bytes"),
    Fault("projection refreshed at every step", "accelerated.rules.foton",
          "if self._uses % self.refresh == 0:", "if True:",
          "test_constraint.py::test_projection_refreshed_every_third_step", "step 1"),
    Fault("backprop's loss summed over the batch", "accelerated.rules.backprop",
          "loss = self.objective(x, y)", "loss = self.objective(x, y) * len(x)",
          "test_rules.py::test_backprop", "Backprop.weights[0]"),
    # Convolutions
    Fault("torus torn by a pixel", "accelerated.convolution",
          "functional.conv2d(_padded(x, size // 2, size - 1 - size // 2), kernel)",
          "functional.conv2d(_padded(x, size - 1 - size // 2, size // 2), kernel)",
          "test_convolution.py::test_convolve", "convolve"),
    Fault("kernel not mirrored in the adjoint", "accelerated.convolution",
          "kernel.flip(2, 3).transpose(0, 1)", "kernel.transpose(0, 1)",
          "test_convolution.py::test_convolve", "convolve_adjoint"),
    Fault("adjoint shifted the wrong way in the reference", "reference.convolution",
          "_shifted(y, size // 2 - p, size // 2 - q)", "_shifted(y, p - size // 2, q - size // 2)",
          "test_convolution.py::test_adjoint_and_update_are_those_of_the_convolution", "adjoint of the convolution"),
    Fault("kernel update summed over the batch", "accelerated.convolution",
          "shape, delta / len(z))", "shape, delta)",
          "test_convolution.py::test_kernel_update", "kernel_update"),
    Fault("plain averages", "accelerated.convolution",
          "size * functional.avg_pool2d(x, size)", "functional.avg_pool2d(x, size)",
          "test_convolution.py::test_average_pool", "average_pool"),
    Fault("plain averages in the reference", "reference.convolution",
          ".sum(axis=(3, 5)) / size", ".sum(axis=(3, 5)) / size**2",
          "test_convolution.py::test_pooling_keeps_the_norm_of_what_it_keeps", "A A^T = I"),
    Fault("factors of a step in the wrong order", "reference.convolution",
          "[p @ r, p @ (identity - r)]", "[p @ r, (identity - r) @ p]",
          "test_convolution.py::test_the_kernel_is_orthogonal_on_a_torus_of_any_size", "singular values"),
    Fault("bases not made projectors", "accelerated.convolution",
          "    p_r = p @ r\n", "    p_r = p @ r.flip(0)\n",
          "test_convolution.py::test_orthogonal_kernel", "orthogonal_kernel"),
    Fault("only half of a projector's derivative", "accelerated.convolution",
          "(of_p + of_p.T) @ q", "2 * of_p @ q",
          "test_convolution.py::test_orthogonal_kernel", "orthogonal_kernel_vjp"),
    Fault("only half of a projector's derivative in the reference", "reference.convolution",
          "(of_p + of_p.T) @ q", "2 * of_p @ q",
          "test_convolution.py::test_the_update_of_the_parts_is_the_kernels_derivative_transposed",
          "derivative of the kernel"),
    Fault("projection shuffled before the kernel", "accelerated.convolutional_foton",
          "shuffle(convolve_adjoint(layer.kernel, average_pool_adjoint(rows, layer.pool)), layer.factor)",
          "shuffle(convolve(layer.kernel.transpose(0, 1), average_pool_adjoint(rows, layer.pool)), layer.factor)",
          "test_convolutional_foton.py::test_updates", "convolutional_foton.updates"),
    Fault("kernel for its adjoint in the reference's projection", "reference.convolutional_foton",
          "convolve_adjoint(layer.kernel, average", "convolve(layer.kernel.transpose(1, 0, 2, 3), average",
          "test_convolutional_foton.py::test_the_projection_is_the_adjoint_of_the_network", "adjoint of the network"),
    Fault("differences not pooled", "accelerated.convolutional_foton",
          "pooled = average_pool(difference, network.layers[index].pool)",
          "pooled = difference[:, :, :: network.layers[index].pool, :: network.layers[index].pool]",
          "test_convolutional_foton.py::test_updates", "convolutional_foton.updates"),
    Fault("projected error added to images in the reference", "reference.convolutional_foton",
          "forward(network, x - np.einsum(", "forward(network, x + np.einsum(",
          "test_convolutional_foton.py::test_a_linear_network_that_does_not_widen_gives_backprop", "equal to backprop"),
    Fault("bias of a convolution averaged over pixels", "accelerated.convolutional_foton",
          "delta.sum(dim=(2, 3)).mean(dim=0)", "delta.mean(dim=(0, 2, 3))",
          "test_convolutional_foton.py::test_updates", "bias"),
    Fault("linear pass through the activations of convolutions", "accelerated.convolutional_foton",
          "u = _carried(network, i, u)", "u = _carried(network, i, layer.activation.value(u))",
          "test_convolutional_foton.py::test_linear_updates", "convolutional_foton.updates"),
    Fault("linear pass without a convolution's own derivative in the reference", "reference.convolutional_foton",
          "yield layer.activation.vjp(a, u)", "yield u",
          "test_convolutional_foton.py::test_linear_pass_gives_the_last_convolution_its_gradient",
          "convolutional_foton.updates"),
    Fault("slope counted from the dense layers", "accelerated.convolutional_foton",
          "foton.depth_correction(slope, len(inputs), linear)",
          "[1.0] * len(clean.inputs) + foton.depth_correction(slope, len(clean.dense.inputs), linear)",
          "test_convolutional_foton.py::test_a_slope_gives_the_updates_of_a_scaled_network_their_size", "slope"),
    Fault("correction of the other pass", "reference.foton",
          "return [slope ** (depth - 1 - layer)", "return [slope ** (depth - 2 * layer)",
          "test_foton.py::test_scaled_identity_scales_updates_by_depth", "linear, corrected"),
    Fault("kernel's update before its turn through the parts", "accelerated.rules.foton",
          "list(unit.convolution.bases), kernel)", "list(unit.convolution.bases), kernel.flip(2))",
          "test_convolutional_rules.py::test_gradients_are_the_references_through_the_parts", "mixing"),
    Fault("bases of kernels left to drift", "accelerated.rules.images",
          "(self.convolution, \"mixing\"), **bases}", "(self.convolution, \"mixing\")}",
          "test_convolutional_rules.py::test_training_keeps_every_part_orthogonal", "orthogonal kernel"),
    # FTP and its relatives
    Fault("correction of the wrong sign", "reference.ftp",
          "phi.value(project(feedback, outputs)) - phi.value(project(feedback, targets))",
          "phi.value(project(feedback, targets)) - phi.value(project(feedback, outputs))",
          "test_ftp.py::test_one_hidden_layer_is_direct_feedback_alignment", "ftp.updates"),
    Fault("gain applied within phi", "accelerated.ftp",
          "gain * phi.difference(project(feedback, targets + error), project(feedback, error))",
          "phi.difference(gain * project(feedback, targets + error), gain * project(feedback, error))",
          "test_ftp.py::test_updates", "ftp.updates"),
    Fault("targets of dropped units", "accelerated.ftp",
          "first if mask is None else (mask > 0) * first", "first",
          "test_ftp.py::test_dropped_units_have_no_target", "row of the feedback"),
    Fault("targets carried without their layer's weights", "reference.ftp",
          "affine(network.weights[layer], network.biases[layer], target)",
          "affine(network.weights[layer], None, target)",
          "test_ftp.py::test_targets_of_a_linear_network_are_displaced_by_its_jacobian", "layer 2"),
    Fault("local loss without the layer's own derivative", "accelerated.ftp",
          "yield activation.vjp(a, difference if mask is None else mask * difference), clean.inputs[layer]",
          "yield difference if mask is None else mask * difference, clean.inputs[layer]",
          "test_ftp.py::test_updates", "ftp.updates"),
    Fault("layers before the injection trained", "reference.ftp",
          "next(found) if layer >= inject - 1 else np.zeros_like(a)",
          "next(found) if layer >= inject - 1 else np.ones_like(a)",
          "test_ftp.py::test_layers_before_the_injection_are_not_trained", "no target, no update"),
    Fault("feedback ten times as large", "accelerated.ftp",
          "bound = scale * (6 / num_classes) ** 0.5", "bound = 10 * scale * (6 / num_classes) ** 0.5",
          "test_samplers.py::test_feedback_of_ftp", "pvalue"),
    Fault("rule's targets smoothed twice", "accelerated.rules.ftp",
          "one_hot(y, self.num_classes, self.label_smoothing,", "one_hot(y, self.num_classes, 0.5,",
          "test_rules.py::test_ftp", "Ftp.weights[0]"),
    Fault("weights for random matrices", "accelerated.feedback_alignment",
          "network._replace(weights=feedback)", "network",
          "test_feedback_alignment.py::test_feedback_alignment", "feedback_alignment.updates"),
    Fault("signs where the error was asked for", "accelerated.direct_feedback_alignment",
          "torch.sign(error) if signs else error", "torch.sign(error)",
          "test_feedback_alignment.py::test_direct_feedback_alignment", "direct_feedback_alignment.updates"),
    Fault("error sent in place of the label", "accelerated.direct_random_target_projection",
          "feedback, masks, targets)", "feedback, masks, error)",
          "test_feedback_alignment.py::test_direct_random_target_projection", "target_projection.updates"),
    Fault("error sent in place of the label by both", "reference.direct_random_target_projection",
          "feedback, masks, targets)", "feedback, masks, error)",
          "test_feedback_alignment.py::test_target_projection_does_not_look_at_the_output", "looked at"),
    Fault("label sent by the rule of DFA", "accelerated.rules.feedback_alignment",
          "signal = torch.sign(error) if self.signs else error",
          "signal = one_hot(y, self.num_classes, dtype=error.dtype)",
          "test_rules.py::test_relatives", "DirectFeedbackAlignment.weights[0]"),
    Fault("target without its difference", "reference.difference_target_propagation",
          "difference = _invert(inverses, index, h) - _invert(inverses, index, h - difference)",
          "difference = clean.inputs[index + 1] - _invert(inverses, index, h - difference)",
          "test_difference_target_propagation.py::test_updates", "dtp.updates"),
    Fault("inverses learned without noise", "accelerated.difference_target_propagation",
          "z = clean.inputs[layer] + eps", "z = clean.inputs[layer]",
          "test_difference_target_propagation.py::test_updates", "dtp.updates.inverses"),
    Fault("inverses learned by another loss", "reference.difference_target_propagation",
          "yield activation.vjp(a, activation.value(a) - z), h", "yield activation.value(a) - z, h",
          "test_difference_target_propagation.py::test_inverses_learn_by_their_gradient", "reconstruction"),
    Fault("step taken twice", "accelerated.difference_target_propagation",
          "difference = step * (error @ network.weights[-1])", "difference = step**2 * (error @ network.weights[-1])",
          "test_difference_target_propagation.py::test_updates", "dtp.updates.network"),
    Fault("inverses not trained by the rule", "accelerated.rules.rule",
          "(_pairs(self) if self.trained else ()), *self.own]", "(_pairs(self) if self.trained else ())]",
          "test_difference_target_propagation.py::test_rule", "DifferenceTargetPropagation"),
    # Padded convolutions, and FTP through them
    Fault("padding around one side only", "reference.convolutional_network",
          "*((q, q) for q in padding)", "*((2 * q, 0) for q in padding)",
          "test_convolutional_network.py::test_the_reference_convolves_as_scipy_does", "SciPy"),
    Fault("stride after the columns", "accelerated.convolutional_network",
          "layer.bias, layer.stride, layer.padding)",
          "layer.bias, layer.stride[::-1], layer.padding)",
          "test_convolutional_network.py::test_forward", "convolutional_network.forward"),
    Fault("kernel update of an image that has moved", "reference.convolutional_network",
          "windows = _windows(z, size, stride, padding)", "windows = _windows(np.roll(z, 1, 2), size, stride, padding)",
          "test_convolutional_network.py::test_kernel_update_is_the_convolutions_adjoint", "no adjoint"),
    Fault("bias of a padded convolution averaged over pixels", "accelerated.convolutional_network",
          "delta.sum(dim=(2, 3)).mean(dim=0)", "delta.mean(dim=(0, 2, 3))",
          "test_convolutional_network.py::test_layer_update", "bias"),
    Fault("mean for maximum in pooling", "reference.convolutional_network",
          ".max(axis=(3, 5))", ".mean(axis=(3, 5))",
          "test_convolutional_network.py::test_max_pool_by_hand", "max_pool"),
    Fault("targets pooled where the clean maxima lie", "accelerated.convolutional_ftp",
          "functional.max_pool2d(g - difference,", "functional.max_pool2d(g,",
          "test_convolutional_ftp.py::test_updates", "convolutional_ftp.updates"),
    Fault("what the clean pass loses by another maximum forgotten", "accelerated.convolutional_ftp",
          "(pooled.reshape(flat.shape) - there + moved)", "moved",
          "test_convolutional_ftp.py::test_updates", "convolutional_ftp.updates"),
    Fault("targets of feature maps moved on their way", "reference.convolutional_ftp",
          "max_pool(target, before.pool)", "max_pool(target + first.mean(), before.pool)",
          "test_convolutional_ftp.py::test_on_one_pixel_it_is_the_dense_form", "as dense"),
    Fault("derivative of a feature map left out", "reference.convolutional_ftp",
          "yield layer.activation.vjp(a, next(found)), z", "yield next(found), z",
          "test_convolutional_ftp.py::test_the_first_convolution_follows_direct_feedback", "first kernel"),
    Fault("feedback of a channel twice as large at every other position", "accelerated.rules.ftp",
          "first.expand(-1, *shape)", "(first * (1 + self.by_channel * torch.arange(shape[2]) % 2)).expand(-1, *shape)",
          "test_convolutional_ftp.py::test_gradients_are_the_references", "weight of 0"),
    Fault("factors of low rank exchanged", "accelerated.ftp",
          "return v @ right.T @ left.T", "return (v @ right.T).flip(1) @ left.T",
          "test_convolutional_ftp.py::test_low_rank_feedback_is_its_product", "low rank"),
    Fault("one seed for all rules", "accelerated.rules.ftp",
          "manual_seed(self.seed)", "manual_seed(0)",
          "test_convolutional_ftp.py::test_a_seed_in_place_of_the_feedback", "feedback of its own"),
    # PEPITA
    Fault("projected error taken off in PEPITA's differences", "accelerated.pepita",
          "activation_differences(network, clean, -error, projection, masks)",
          "activation_differences(network, clean, error, projection, masks)",
          "test_pepita.py::test_updates", "pepita.updates.weights[0]"),
    Fault("clean for modulated presynaptic factor", "accelerated.pepita",
          "yield difference, z if presynaptic == \"modulated\" else h", "yield difference, h",
          "test_pepita.py::test_updates", "pepita.updates.weights[0]"),
    Fault("presynaptic forms mixed up in the reference", "reference.pepita",
          "inputs = modulated.inputs if presynaptic == \"modulated\" else clean.inputs", "inputs = clean.inputs",
          "test_pepita.py::test_modulated_and_clean_forms_differ", "presynaptic forms"),
    Fault("output error of the wrong pass", "accelerated.pepita",
          "    if output_gradient is not None:\n", "    if output_gradient is None and False:\n",
          "test_pepita.py::test_updates", "pepita.updates.weights"),
    Fault("sign of F in the reference's modulated input", "reference.pepita",
          "clean.inputs[0] + error @ projection.T", "clean.inputs[0] - error @ projection.T",
          "test_pepita.py::test_small_modulation_is_feedback_alignment_with_a_moving_matrix", "feedback alignment"),
    Fault("modulated activation not carried to the next layer", "accelerated.pepita",
          "z = h_next - difference", "z = h_next",
          "test_pepita.py::test_updates", "pepita.updates.weights[1]"),
    Fault("projection ten times too large", "accelerated.pepita",
          "scale: float = 0.05", "scale: float = 0.5",
          "test_samplers.py::test_error_projection_of_pepita", "pvalue"),
    Fault("PEPITA's rule without its projection", "accelerated.rules.pepita",
          "second(network, clean, error, self.projection,",
          "second(network, clean, error, 0 * self.projection,",
          "test_rules.py::test_pepita", "Pepita.weights[0]"),
    # Forward-Forward
    Fault("streams swapped", "accelerated.forward_forward",
          "first = labelled(x, torch.cat([labels, negative_labels])",
          "first = labelled(x, torch.cat([negative_labels, labels])",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("streams swapped in the reference", "reference.forward_forward",
          "for of in (labels, negative_labels))", "for of in (negative_labels, labels))",
          "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss", "weights[0]"),
    Fault("streams of any inputs swapped", "accelerated.forward_forward",
          "    passes = layer_passes(network, "
          "PlainInput(normalise(torch.cat([positive, negative]))))\n    return credit(",
          "    passes = layer_passes(network, "
          "PlainInput(normalise(torch.cat([negative, positive]))))\n    return credit(",
          "test_forward_forward.py::test_updates_of_any_two_streams", "stream_updates"),
    Fault("theta without the layer's width", "accelerated.forward_forward",
          "goodness.scale(found.h[0].numel())", "goodness.scale(1)",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("theta without the layer's width in the reference", "reference.forward_forward",
          "goodness.scale(streams[0][layer].h[0].size)", "goodness.scale(1)",
          "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss", "weights[0]"),
    Fault("theta of a batch", "reference.forward_forward",
          "streams[0][layer].h[0].size", "streams[0][layer].h.size",
          "test_forward_forward.py::test_what_a_loss_is_told", "assert"),
    Fault("activity for the gradient of its goodness", "accelerated.forward_forward",
          "goodness.gradient(layer.h) *", "layer.h *",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("activity for the gradient of its goodness in the reference", "reference.forward_forward",
          "goodness.gradient(p.h) for s, p", "p.h for s, p",
          "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss", "weights[0]"),
    Fault("derivative of the activation forgotten", "accelerated.forward_forward",
          "d = activation.vjp(a, g)", "d = g",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("mean over both streams", "accelerated.forward_forward",
          "/ len(credit.loss)", "/ len(layer.h)",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("negative stream left out in the reference", "reference.forward_forward",
          "positive.weight + negative.weight", "positive.weight",
          "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss", "weights[0]"),
    Fault("prior with the layer's own goodness", "accelerated.forward_forward",
          "sum(values[layer + 1 :], ", "sum(values[layer:], ",
          "test_forward_forward.py::test_what_a_loss_is_told", "prior others of layer 0"),
    Fault("prior with the layer's own goodness in the reference", "reference.forward_forward",
          "list(range(layer)),", "list(range(layer + 1)),",
          "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss", "weights[0]"),
    Fault("prior of the other stream", "accelerated.forward_forward",
          "*own.chunk(2), *told.chunk(2))", "*own.chunk(2), *told.roll(len(told) // 2).chunk(2))",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights"),
    Fault("prior of the layer before alone", "accelerated.forward_forward",
          "before = own if before is None else before + own", "before = own",
          "test_forward_forward.py::test_what_a_loss_is_told", "prior before of layer 2"),
    Fault("inputs of layers not normalised", "accelerated.forward_forward",
          "source = PlainInput(normalise(h))", "source = PlainInput(h)",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights"),
    Fault("normalised by the mean instead of its root", "reference.forward_forward",
          "np.sqrt(np.mean(h**2, axis=axes, keepdims=True))", "np.mean(h**2, axis=axes, keepdims=True)",
          "test_forward_forward.py::test_normalisation_hides_goodness_and_keeps_direction", "allclose"),
    Fault("label left out of the norm", "accelerated.forward_forward",
          "(pixels.square().sum(dim=1) + amplitude**2)", "(pixels.square().sum(dim=1))",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("amplitude forgotten in the label's update", "accelerated.forward_forward",
          "torch.cat([self.amplitude * (d.flatten", "torch.cat([(d.flatten",
          "test_forward_forward.py::test_updates", "forward_forward.updates.weights[0]"),
    Fault("neutral label too bright", "accelerated.forward_forward",
          "amplitude / num_classes), x", "amplitude), x",
          "test_forward_forward.py::test_overlays", "overlay_neutral"),
    Fault("neutral label in memory that was never written", "accelerated.forward_forward",
          "torch.full_like(x[:, :num_classes], amplitude / num_classes)", "torch.empty_like(x[:, :num_classes])",
          "test_forward_forward.py::test_overlays", "overlay_neutral: not finite"),
    Fault("first scoring layer skipped", "accelerated.forward_forward",
          "in islice(layer_passes(network, source), first_layer, None)",
          "in islice(layer_passes(network, source), min(1, first_layer), None)",
          "test_forward_forward.py::test_label_scores", "label_scores"),
    Fault("labels and samples mixed up in scores", "accelerated.forward_forward",
          "unflatten(0, (len(labels), -1)))\n    return torch.cat(scores).T",
          "unflatten(0, (-1, len(labels))).T)\n    return torch.cat(scores).T",
          "test_forward_forward.py::test_label_scores", "label_scores"),
    Fault("the first part's labels in every part", "accelerated.forward_forward",
          "first._replace(labels=labels.repeat_interleave(len(x)))",
          "first._replace(labels=first.labels[: len(labels)].repeat_interleave(len(x)))",
          "test_forward_forward.py::test_scores_in_parts_are_those_of_one_pass", "in parts"),
    Fault("wrong labels that may be right", "accelerated.forward_forward",
          "torch.randint(1, num_classes", "torch.randint(0, num_classes",
          "test_samplers.py::test_wrong_labels_are_wrong_and_even", "np.any"),
    Fault("negative labels not passed to the layers", "accelerated.rules.forward_forward",
          "x, y, self.negative_labels(x, y), self.num_classes", "x, y, y, self.num_classes",
          "test_rules.py::test_forward_forward", "ForwardForward.weights[0]"),
    Fault("read-out learns from the labels' own pass", "accelerated.rules.forward_forward",
          "features = self._features(x) if", "features = self._features(x.flip(0)) if",
          "test_rules.py::test_forward_forward_read_out", "read-out[0]"),
    Fault("a layer's update depends on the depth", "accelerated.forward_forward",
          "/ len(credit.loss)\n", "/ len(credit.loss) * depth\n",
          "test_forward_forward.py::test_layers_are_local", "weights[0] below layer 1"),
    Fault("goodness of other layers without stop-gradient", "reference.forward_forward",
          "slopes = (credit.positive, credit.negative)",
          "told = [loss(later) for later in layer_goodness(streams, goodness, prior)[found.layer :]]; "
          "slopes = (sum(c.positive for c in told), sum(c.negative for c in told))",
          "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss", "weights[0]"),
    Fault("hard negatives that may be right", "accelerated.rules.forward_forward",
          "hard_wrong_labels(scores, y, self.generator)", "scores.argmax(dim=1)",
          "test_forward_forward_rules.py::test_hard_negatives_are_wrong_and_prefer_what_scores_high",
          "hard negatives are wrong"),
    Fault("hard negatives drawn evenly", "accelerated.rules.forward_forward",
          "hard_wrong_labels(scores, y, self.generator)", "wrong_labels(y, self.num_classes, self.generator)",
          "test_forward_forward_rules.py::test_hard_negatives_are_wrong_and_prefer_what_scores_high",
          "hard negatives score higher"),
    Fault("read-out of a neutral pass without labels", "accelerated.rules.forward_forward",
          "            return self.math.features(self.trained(), x, self.first_layer)",
          "            x = x + 1e-3",
          "test_forward_forward_rules.py::test_without_labels", "read-out"),
    Fault("rule's prior not passed on", "accelerated.rules.forward_forward",
          "credit, self.prior, self.amplitude", "credit, 'before', self.amplitude",
          "test_forward_forward_rules.py::test_gradients", "LayerCollaboration"),
    Fault("rule's goodness not passed on", "accelerated.rules.forward_forward",
          "self.goodness, credit, self.prior, self.amplitude",
          "GOODNESS['sum-of-squares'], credit, self.prior, self.amplitude",
          "test_forward_forward_rules.py::test_gradients", "goodness"),
    Fault("a gate's gradients swapped", "accelerated.rules.forward_forward_losses",
          "((held, gradient.mean()) for held, gradient in zip(gate, gradients, strict=True))",
          "((held, gradient.mean()) for held, gradient in zip(gate, gradients[::-1], strict=True))",
          "test_forward_forward_rules.py::test_a_gate_learns_its_own_parameters", "raw_tau of layer 1"),
    Fault("a gate's gradient summed", "accelerated.rules.forward_forward_losses",
          "gradient.mean()", "gradient.sum()",
          "test_forward_forward_rules.py::test_a_gate_learns_its_own_parameters", "raw_tau of layer 1"),
    Fault("the last gate for all layers", "accelerated.rules.forward_forward_losses",
          "raw_tau, kappa = self.raw_tau[layer.layer - 1], self.kappa[layer.layer - 1]",
          "raw_tau, kappa = self.raw_tau[-1], self.kappa[-1]",
          "test_forward_forward_rules.py::test_a_gate_learns_its_own_parameters", "loss of every layer's own gate"),
    # Forward-Forward through convolutions
    Fault("goodness after pooling", "accelerated.convolutional_forward_forward",
          "        yield LayerPass(h, partial(_update, source, layer, a))\n        passed = max_pool(h, layer.pool)\n",
          "        h = passed = max_pool(h, layer.pool)\n"
          "        yield LayerPass(h, partial(_update, source, layer, a))\n",
          "test_convolutional_forward_forward.py::test_goodness_is_taken_before_pooling", "goodness before pooling"),
    Fault("goodness after pooling in the reference", "reference.convolutional_forward_forward",
          "yield LayerPass(z, a, y)", "yield LayerPass(z, a, max_pool(y, layer.pool))",
          "test_convolutional_forward_forward.py::test_goodness_is_taken_before_pooling", "goodness before pooling"),
    Fault("feature maps passed on as they are", "accelerated.convolutional_forward_forward",
          "source = PlainImages(normalise(passed))", "source = PlainImages(passed)",
          "test_convolutional_forward_forward.py::test_updates", "convolutional_forward_forward.updates"),
    Fault("feature maps normalised by channel in the reference", "reference.forward_forward",
          "axes = tuple(range(1, h.ndim))", "axes = tuple(range(1, h.ndim))[-2:]",
          "test_convolutional_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss",
          "of layer 0"),
    Fault("feature maps passed on before pooling in features", "accelerated.convolutional_forward_forward",
          "h = max_pool(layer.h, pools[i]) if i < len(pools) else layer.h", "h = layer.h",
          "test_convolutional_forward_forward.py::test_scores_and_features", "neutral_features"),
    Fault("planes left out of the norm", "accelerated.convolutional_forward_forward",
          "total = x.square().sum(dim=(1, 2, 3)) + amplitude**2 * height * width",
          "total = x.square().sum(dim=(1, 2, 3))",
          "test_convolutional_forward_forward.py::test_updates",
          "convolutional_forward_forward.updates.layers[0].weight"),
    Fault("dark planes left out of the mean", "accelerated.convolutional_forward_forward",
          "((channels + num_classes) * height * width)", "((channels + 1) * height * width)",
          "test_convolutional_forward_forward.py::test_updates",
          "convolutional_forward_forward.updates.layers[0].weight"),
    Fault("neutral planes as bright as a label's", "accelerated.convolutional_forward_forward",
          "torch.full_like(x[:, 0, 0, :1], amplitude / num_classes)", "torch.full_like(x[:, 0, 0, :1], amplitude)",
          "test_convolutional_forward_forward.py::test_where_the_label_is", "neutral planes"),
    Fault("planes of another label", "accelerated.convolutional_forward_forward",
          "maps[self.labels]", "maps.flip(0)[self.labels]",
          "test_convolutional_forward_forward.py::test_planes_and_pixels_are_inputs_like_any_other", "planes put in"),
    Fault("planes' channels and outputs mixed up", "accelerated.convolutional_forward_forward",
          ".view(self.num_classes, -1, *layer.kernel.shape[2:])",
          ".view(-1, self.num_classes, *layer.kernel.shape[2:]).transpose(0, 1)",
          "test_convolutional_forward_forward.py::test_updates",
          "convolutional_forward_forward.updates.layers[0].weight"),
    Fault("label planes before the image in the reference", "reference.convolutional_forward_forward",
          "np.concatenate([x, planes], axis=1)", "np.concatenate([planes, x], axis=1)",
          "test_convolutional_forward_forward.py::test_where_the_label_is", "the image"),
    Fault("streams of images swapped", "accelerated.convolutional_forward_forward",
          "first = labelled(x, torch.cat([labels, negative_labels])",
          "first = labelled(x, torch.cat([negative_labels, labels])",
          "test_convolutional_forward_forward.py::test_updates",
          "convolutional_forward_forward.updates.layers[0].weight"),
    Fault("scores of convolutions with one label in all parts", "accelerated.convolutional_forward_forward",
          "labels.repeat_interleave(len(x)), num_classes, amplitude, place)",
          "torch.arange(len(labels), device=x.device).repeat_interleave(len(x)), num_classes, amplitude, place)",
          "test_convolutional_forward_forward.py::test_scores_in_parts_are_those_of_one_pass", "in parts"),
    # Recurrent networks
    Fault("new state kept by the wrong gate", "accelerated.recurrent",
          "return n + z * (h - n)", "return h + z * (n - h)",
          "test_recurrent.py::test_forward", "forward[1]"),
    Fault("new state kept by the wrong gate in the reference", "reference.recurrent",
          "return (1 - z) * n + z * h", "return z * n + (1 - z) * h",
          "test_recurrent.py::test_the_pass_is_that_of_pytorch", "states"),
    Fault("reset gate before the state's bias", "reference.recurrent",
          "np.tanh(p_n + r * q_n)", "np.tanh(r * (p_n + q_n))",
          "test_recurrent.py::test_the_pass_is_that_of_pytorch", "states"),
    Fault("reset gate's derivative lost", "accelerated.recurrent",
          "d_r = d_n * q_n * r * (1 - r)", "d_r = 0 * d_n * q_n * r * (1 - r)",
          "test_recurrent.py::test_cell", "gru step[1][0]"),
    Fault("reset gate's derivative lost in the reference", "reference.recurrent",
          "d_r = d_n * q_n * r * (1 - r)", "d_r = 0 * d_n * q_n * r * (1 - r)",
          "test_recurrent.py::test_backprop_through_time_is_autograd", "weight_ih"),
    Fault("reset gate forgotten in the state's factor", "reference.recurrent",
          "np.concatenate([d_r, d_z, d_n * r], axis=1)", "np.concatenate([d_r, d_z, d_n], axis=1)",
          "test_recurrent.py::test_a_cells_derivative_is_that_of_its_value", "vjp is no slope"),
    Fault("kept state's difference taken with the clean gate", "accelerated.recurrent",
          "(z - z_difference) * (v - n_difference)", "z * (v - n_difference)",
          "test_recurrent.py::test_cell", "gru step[2]"),
    Fault("reset gate's difference lost", "accelerated.recurrent",
          "lost = r_difference * q_n + (r - r_difference) * u[:, size:]", "lost = r * u[:, size:]",
          "test_recurrent.py::test_a_cells_difference_is_exact_for_steps_of_any_size", "difference of two steps"),
    Fault("state after the step as its presynaptic factor", "accelerated.recurrent",
          "previous = clean.states[-count - 1 : -1]", "previous = clean.states[-count:]",
          "test_recurrent.py::test_updates", "backprop_through_time.updates.weight_hh"),
    Fault("state after the step as the reference's presynaptic factor", "reference.recurrent",
          "clean.states[-count - 1 : -1]", "clean.states[-count:]",
          "test_recurrent.py::test_backprop_through_time_is_autograd", "weight_hh"),
    Fault("first inputs for the last ones", "accelerated.recurrent",
          "clean.x[:, clean.x.shape[1] - count :]", "clean.x[:, :count]",
          "test_recurrent.py::test_updates", "backprop_through_time.updates.weight_ih"),
    Fault("updates averaged over steps", "accelerated.recurrent",
          "factor.flatten(0, 1) / batch", "factor.flatten(0, 1) / (batch * count)",
          "test_recurrent.py::test_updates", "backprop_through_time.updates.weight_ih"),
    Fault("truncation one step too long", "accelerated.backprop_through_time",
          "max(length - truncation, 0)", "max(length - truncation - 1, 0)",
          "test_recurrent.py::test_inputs_before_the_truncation_are_not_learnt_from", "at truncation"),
    Fault("truncation one step too long in the reference", "reference.backprop_through_time",
          "max(length - truncation, 0)", "max(length - truncation - 1, 0)",
          "test_recurrent.py::test_inputs_before_the_truncation_are_not_learnt_from", "at truncation"),
    Fault("kept state carries no error back", "reference.backprop_through_time",
          "gradient = eta @ network.weight_hh + past", "gradient = eta @ network.weight_hh",
          "test_recurrent.py::test_backprop_through_time_is_autograd", "weight_ih"),
    Fault("rule's truncation ignored", "accelerated.rules.recurrent",
          "        if start:\n", "        if start:\n            start = 0\n        if False:\n",
          "test_recurrent_rules.py::test_backprop_through_time", "BackpropThroughTime.weight_ih"),
    # Forward target propagation through time
    Fault("correction of every step subtracted", "accelerated.recurrent_ftp",
          "difference = difference + first", "difference = difference - first",
          "test_recurrent_ftp.py::test_parts", "parts[0]"),
    Fault("first correction subtracted in the reference", "reference.recurrent_ftp",
          "target = clean.states[1] - first", "target = clean.states[1] + first",
          "test_recurrent_ftp.py::test_targets_of_a_linear_cell_are_displaced_by_powers_of_its_weights", "step 2"),
    Fault("correction of every step subtracted in the reference", "reference.recurrent_ftp",
          "target = target - first", "target = target + first",
          "test_recurrent_ftp.py::test_targets_of_a_linear_cell_are_displaced_by_powers_of_its_weights", "every"),
    Fault("target not carried", "accelerated.recurrent_ftp",
          "network.cell.difference(p, q, h, difference @ network.weight_hh.T, difference)",
          "network.cell.difference(p, q, h, first @ network.weight_hh.T, first)",
          "test_recurrent_ftp.py::test_parts", "parts[0]"),
    Fault("target not carried in the reference", "reference.recurrent_ftp",
          "affine(network.weight_hh, network.bias_hh, target)",
          "affine(network.weight_hh, network.bias_hh, clean.states[1] - first)",
          "test_recurrent_ftp.py::test_every_step_of_a_linear_cell_has_the_same_inner_product_with_backprop",
          "inner product at step"),
    Fault("kept state not displaced", "accelerated.recurrent_ftp",
          "difference @ network.weight_hh.T, difference)", "difference @ network.weight_hh.T, 0 * difference)",
          "test_recurrent_ftp.py::test_parts", "parts[0]"),
    Fault("targets go through the transpose", "accelerated.recurrent_ftp",
          "difference @ network.weight_hh.T, difference)",
          "difference @ network.weight_hh, difference)",
          "test_recurrent_ftp.py::test_an_orthogonal_linear_cell_with_matching_feedback_gives_backprop",
          "backpropagation's gradients"),
    Fault("local losses without the cell's derivative", "reference.recurrent_ftp",
          "delta, eta, _ = network.cell.vjp(p, q, h, difference)",
          "delta, eta, _ = network.cell.vjp(0 * p, 0 * q, h, difference)",
          "test_recurrent_ftp.py::test_the_local_losses_are_descended", "local slope"),
    Fault("sum for mean", "accelerated.recurrent_ftp",
          "found = found / len(found)", "found = found / 1",
          "test_recurrent_ftp.py::test_updates", "recurrent_ftp.updates.weight_ih"),
    Fault("mean for sum in the reference", "reference.recurrent_ftp",
          'len(found) if reduction == "mean" else 1', "len(found)",
          "test_recurrent_ftp.py::test_the_mean_over_steps_is_the_sum_by_their_number", "weight_ih"),
    Fault("rule's reduction ignored", "accelerated.rules.recurrent",
          "update_factors(network, clean, first, self.inject, self.reduction)",
          "update_factors(network, clean, first, self.inject)",
          "test_recurrent_rules.py::test_recurrent_ftp", "RecurrentFtp.weight_ih"),
    Fault("Elman's state matrix as PyTorch has it", "accelerated.modules.recurrent",
          "weight.copy_(orthogonal(", "torch.clone(orthogonal(",
          "test_recurrent_rules.py::test_elmans_state_matrix_starts_orthogonal", "assert"),
    # Hardware
    Fault("rounded down", "accelerated.hardware",
          ".round_()", ".floor_()",
          "test_hardware.py::test_quantise", "quantise: off by"),
    Fault("rounded down in the reference", "reference.hardware",
          "np.round(v", "np.floor(v",
          "test_hardware.py::test_quantising_leaves_few_levels_near_the_numbers", "farther off than half a level"),
    Fault("a level too many", "reference.hardware",
          "2 ** (bits - 1) - 1", "2 ** (bits - 1)",
          "test_hardware.py::test_quantising_leaves_few_levels_near_the_numbers", "too many levels"),
    Fault("zeros divided by zero", "accelerated.hardware",
          "torch.where(largest == 0, 1, largest)", "largest",
          "test_hardware.py::test_zeros_stay_zeros", "zeros do not stay zeros"),
    Fault("read noise by the spread of the weights", "accelerated.hardware",
          "crossbar.read_noise * weight.abs().amax()", "crossbar.read_noise * weight.std()",
          "test_hardware.py::test_noise_is_scaled_by_the_largest_weight", "read noise"),
    Fault("programming noise by the largest number, signed, in the reference", "reference.hardware",
          "deviation * np.max(np.abs(target))", "deviation * np.max(target)",
          "test_hardware.py::test_noise_is_scaled_by_the_largest_weight", "programming noise"),
    Fault("noise carries weights out of the range", "accelerated.hardware",
          "return clipped(target + deviation * target.abs().amax() * noise, weight_range)",
          "return target + deviation * target.abs().amax() * noise",
          "test_hardware.py::test_what_is_written_is_within_the_range", "out of range"),
    Fault("results not converted", "accelerated.hardware",
          "return quantise(driven @ read(crossbar, weight, noise).T, crossbar.product_bits)",
          "return driven @ read(crossbar, weight, noise).T",
          "test_hardware.py::test_each_operand_has_a_converter_of_its_own", "its result"),
    Fault("noise shared by all reads", "accelerated.rules.hardware",
          "random_noise(tuple(weight.shape), self.generator,",
          "random_noise(tuple(weight.shape), torch.Generator().manual_seed(0),",
          "test_hardware.py::test_the_two_passes_read_with_noise_of_their_own", "noise of the two passes"),
    Fault("transposed products exact", "accelerated.rules.hardware",
          "            return self.multiply(*args)\n",
          "            return func(*args) if args[1].is_contiguous() else self.multiply(*args)\n",
          "test_hardware.py::test_backward_products_are_seen", "products seen"),
    Fault("forward products without a bias exact", "accelerated.rules.hardware",
          "            return self.multiply(*args)\n",
          "            return self.multiply(*args) if args[1].is_contiguous() else func(*args)\n",
          "test_hardware.py::test_a_rules_gradient_is_the_reference_by_hand", "on hardware[0]"),
    Fault("the bias goes through the converter", "accelerated.rules.hardware",
          "return args[0] + self.multiply(*args[1:])",
          "return product(self.hardware.crossbar._replace(activation_bits=None, weight_bits=None), "
          "args[0] + self.multiply(*args[1:]), torch.eye(len(args[0]), dtype=args[0].dtype))",
          "test_hardware.py::test_biases_are_added_behind_the_converters", "the bias is quantised"),
    Fault("biases written without noise", "accelerated.rules.hardware",
          "if id(parameter) in self._trained:", "if id(parameter) in self._trained and parameter.dim() > 1:",
          "test_hardware.py::test_every_parameter_is_written_with_noise", "bias as written"),
    Fault("scores computed beside the hardware", "accelerated.rules.hardware",
          "            scores: Tensor = self.rule(x)", "            pass\n        scores: Tensor = self.rule(x)",
          "test_hardware.py::test_backward_products_are_seen", "products seen"),
    Fault("feedback matrices on no crossbar", "accelerated.rules.hardware",
          "(*self.parameters(), *self.buffers())", "self.parameters()",
          "test_hardware.py::test_every_product_with_a_matrix_is_seen", "products on crossbars"),
    Fault("targets carried by the activations' own pass", "accelerated.rules.second_pass",
          "network.biases[layer], target))", "network.biases[layer], clean.inputs[layer]))",
          "test_hardware.py::test_ftp_in_full", "Ftp in full.weights"),
    Fault("full pass of FTP forgets the mask", "accelerated.rules.second_pass",
          "target = mask * target", "target = 1 * target",
          "test_hardware.py::test_both_forms_share_their_masks", "weights[1]"),
    Fault("full pass modulated the other way", "accelerated.rules.second_pass",
          "clean.inputs[0] + error @ projection.T", "clean.inputs[0] - error @ projection.T",
          "test_hardware.py::test_pepita_in_full", "Pepita in full.weights[0]"),
    Fault("the full pass carries differences", "accelerated.rules.ftp",
          "(full_differences if full else differences)", "differences",
          "test_hardware.py::test_what_a_second_pass_in_full_loses", "below its levels"),
]  # fmt: skip


class PlantedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source with one fault put in; the compiled form is not cached."""

    fault: Fault

    def get_data(self, path: str) -> bytes:
        text = super().get_data(path).decode()
        found = text.count(self.fault.before)
        if found != 1:
            raise LookupError(f"the text to replace stands {found} times in {self.fault.module}, expected once")
        return text.replace(self.fault.before, self.fault.after).encode()

    def path_stats(self, path: str) -> Any:
        raise OSError("no cache for planted source")


class Planter(importlib.abc.MetaPathFinder):
    """Finds the fault's module through the other finders, and gives it a loader of planted source."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != f"{ROOT}.{self.fault.module}":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.origin is not None:
                loader = PlantedLoader(fullname, spec.origin)
                loader.fault = self.fault
                return spec_from_file_location(fullname, spec.origin, loader=loader)
        return None


def caught_by(fault: Fault) -> str:
    """ "" where the named test fails with the named assertion, else what happened instead. Imports the package anew."""
    import pytest

    sys.meta_path.insert(0, Planter(fault))

    class Failures:
        messages: list[str] = []  # noqa: RUF012

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                self.messages.append(str(report.longrepr))

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                self.messages.append(f"collection failed: {report.longrepr}")

    failures = Failures()
    file, _, test = fault.test.partition("::")
    node = f"{ROOT}.equivalence_tests.{file.removesuffix('.py')}::{test}"
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", f"{ROOT}.equivalence_tests.plugin"]
    options += ["--import-mode=importlib", "-o", "consider_namespace_packages=true"]
    options += ["-c", os.devnull, "--rootdir", os.getcwd()]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        code = pytest.main([*options, "--pyargs", node], plugins=[failures])
    text = "\n".join(failures.messages)
    if code == 0:
        return "survived"
    if code != 1 or "AssertionError" not in text:
        return f"no assertion failed: {(text or output.getvalue()).strip().splitlines()[-1:]}"
    asserted = [line for line in text.splitlines() if line.lstrip(" |").startswith("E ") or "Error" in line]
    if not any(fault.assertion in line for line in asserted):
        return f"caught by another assertion than '{fault.assertion}': {asserted[:1]}"
    return ""


def _child(fault: Fault, pipe: Connection) -> None:
    try:
        pipe.send(caught_by(fault))
    except BaseException as error:  # whatever it was is the answer
        pipe.send(f"{type(error).__name__}: {error}")


def plant(fault: Fault) -> str:
    """`caught_by` in a process of its own."""
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(fault, theirs))
    process.start()
    theirs.close()
    try:
        answer = str(ours.recv())
    except EOFError:
        answer = "the process died"
    process.join()
    return answer


@contextlib.contextmanager
def preloaded() -> Iterator[None]:
    """Imports what is slow to import and has no fault in it, for every child to inherit."""
    import hypothesis
    import numpy
    import pytest
    import scipy.special
    import scipy.stats
    import torch

    torch.set_num_threads(1)
    assert all((hypothesis, numpy, pytest, scipy))
    for name in [name for name in sys.modules if name.startswith(f"{ROOT}.") and name != __name__]:
        del sys.modules[name]
    yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 where all faults are caught, 1 where one is not, 2 for a wrong name."""
    parser = argparse.ArgumentParser(prog=f"python -m {ROOT}.equivalence_tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="only faults whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="list the faults and the tests that must catch them")
    options = parser.parse_args(arguments)
    chosen = [f for f in FAULTS if not options.names or any(name in f.name for name in options.names)]
    if not chosen:
        parser.error(f"no fault named {' or '.join(options.names)}; --list shows their names")
    if options.list:
        for fault in chosen:
            print(f"{fault.name}: {fault.module}, caught by {fault.test}")
        return 0
    if find_spec("hypothesis") is None or find_spec("pytest") is None:
        parser.error("pytest and hypothesis are missing; install prograde[test]")

    start, survivors = time.perf_counter(), 0
    with preloaded(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for fault, answer in zip(chosen, pool.map(plant, chosen), strict=True):
            survivors += bool(answer)
            print(
                f"{'NOT CAUGHT' if answer else 'caught'}  {fault.name}" + (f": {answer}" if answer else ""), flush=True
            )
    seconds = time.perf_counter() - start
    print(f"{len(chosen) - survivors} of {len(chosen)} planted faults caught by their assertions in {seconds:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
