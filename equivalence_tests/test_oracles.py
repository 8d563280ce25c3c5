"""A third opinion of every function of the reference: a mistake that both twins share passes where they are compared.

`ORACLES` names the test of the function, or of its twin, which is held to it: autograd, torch.nn, SciPy, finite
differences, a definition written out for one number at a time, or a theorem that only the right result fulfils. Those
that no other file has stand here. `DRAWN` are samplers, which `test_samplers.py` and the files of their algorithms hold
to their laws.
"""

import inspect
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, ndimage

from prograde import reference
from prograde.equivalence_tests.sides import MODULES
from prograde.equivalence_tests.strategies import seeds

pytestmark = pytest.mark.places_itself  # on the CPU, as SciPy is

CELLS = "test_recurrent.py::test_a_cells_derivative_is_that_of_its_value"
DEFINITIONS = "test_scores.py::test_values_and_gradients_are_those_of_the_definition"
DERIVATIVES = "test_normalisations.py::test_derivatives_are_those_of_the_value"
ENTROPY = "test_losses.py::test_means_are_those_of_pytorch"
STEPS = "test_layers.py::test_steps_agree_with_their_value"
PACKED = "test_recurrent_stacks.py::test_backprop_through_time_is_autograd_of_packed_sequences"
PLAIN = "test_oracles.py::test_rules_of_a_dense_network_by_their_equations"
GOODNESS = "test_goodness.py::test_values_and_gradients_are_those_of_the_definition"
MEANS = "test_normalisations.py::test_values_are_those_of_the_definition"
MODULE = "test_layer_kinds.py::test_pytorchs_own_modules"
OUTLETS = "test_layer_kinds.py::test_outlets_are_pytorchs"
SLOPES = "test_losses.py::test_weighted_errors_are_gradients"
UNROLLED = "test_recurrent.py::test_backprop_through_time_is_autograd"
CUMULATIVE = "test_cumulative_goodness.py::"

ORACLES: dict[str, dict[str, str]] = {
    "activations": {
        **dict.fromkeys(
            ["gelu", "identity", "leaky_relu", "relu", "silu", "tanh"],
            "test_activations.py::test_pytorchs_own_functions",
        ),
        "maxmin": "test_activations.py::test_maxmin_sorts_pairs_and_keeps_norms",
    },
    "losses": {
        **dict.fromkeys(["absolute_error", "binary_cross_entropy", "cross_entropy", "huber", "squared_error"], ENTROPY),
        **{
            f"{name}_gradient": SLOPES
            for name in ("absolute_error", "binary_cross_entropy", "cross_entropy", "huber", "squared_error")
        },
        "counted": "test_losses.py::test_counted",
        "one_hot": "test_oracles.py::test_smoothed_targets_are_pytorchs",
    },
    "goodness": dict.fromkeys(
        [
            "entmax_weighted",
            "excess_kurtosis",
            "maximum",
            "mean_activation",
            "mean_square",
            "sum_of_squares",
            "negated",
            "top_k",
        ],
        GOODNESS,
    ),
    "pair_losses": dict.fromkeys(
        ["collaboration", "smoothed_triplet", "symba", "threshold", "two_thresholds"],
        "test_pair_losses.py::test_slopes_are_those_of_the_equation",
    ),
    "cumulative_goodness": {
        **dict.fromkeys(
            ["cumulative", "per_block", "squared_hinge", "hardness_gated", "depth_scaled_auxiliary"],
            f"{CUMULATIVE}test_slopes_are_those_of_the_equation",
        ),
        **dict.fromkeys(
            ["coverage", "free_riding_fraction", "layer_separation", "starved_fraction"],
            f"{CUMULATIVE}test_metrics_by_hand",
        ),
        **dict.fromkeys(
            ["attenuation_bounds", "decay_bound", "gradient_bound"], f"{CUMULATIVE}test_bounds_of_the_attenuation"
        ),
        "attenuation": f"{CUMULATIVE}test_the_worked_example",
        "log_attenuation": f"{CUMULATIVE}test_attenuation_is_a_ratio_of_slopes",
        "compensated": f"{CUMULATIVE}test_compensated_gradient",
        "gate_gradient": f"{CUMULATIVE}test_gate_gradient_is_that_of_the_loss",
    },
    "negatives": {
        "blurred_masks": "test_oracles.py::test_a_blur_is_scipys_filter",
        "hybrid_images": "test_negatives.py::test_a_hybrid_is_of_one_image_or_the_other",
        "self_supervised_pairs": "test_negatives.py::test_partners_are_others",
        "wrong_label_probabilities": "test_negatives.py::test_the_right_label_has_no_chance",
    },
    "adaptive_pooling": {
        "grid_pool": "test_adaptive_pooling.py::test_cells_are_those_of_pytorch",
        "grid_pool_adjoint": "test_adaptive_pooling.py::test_the_adjoint_is_the_adjoint",
    },
    "scores": {
        **dict.fromkeys(
            ["features", "group_mean", "group_mean_square", "linear_map", "patch_energy", "random_readout"], DEFINITIONS
        ),
        "features_adjoint": DEFINITIONS,
        "no_penalty": "test_scores.py::test_who_has_a_penalty",
    },
    "learned_scores": {
        **dict.fromkeys(["channel_class", "prototype_cosine"], DEFINITIONS),
        "assignment": "test_learned_scores.py::test_every_channel_is_a_distribution_over_classes",
    },
    "score_losses": dict.fromkeys(
        ["cosine_margin", "cross_entropy", "mixed", "positive_versus_negative", "smooth_margin"],
        "test_score_losses.py::test_slopes_are_those_of_the_equation",
    ),
    "normalisations": {
        **dict.fromkeys(
            ["channel_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm", "unit_sphere"], MEANS
        ),
        **{
            f"{name}_vjp": DERIVATIVES
            for name in ("channel_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm", "unit_sphere")
        },
        "batch_norm": MEANS,
        "batch_norm_vjp": "test_normalisations.py::test_gradient_through_batch_norm_is_that_of_its_value",
        "direction": "test_oracles.py::test_a_direction_is_pytorchs",
        "direction_vjp": "test_normalisations.py::test_derivative_of_a_direction",
    },
    "aggregation": {
        **dict.fromkeys(["best_range", "range_hits"], "test_aggregation.py::test_best_range_is_that_of_a_double_loop"),
        **dict.fromkeys(["last", "total", "range_total", "weighted"], "test_aggregation.py::test_special_cases"),
        "loss_weights": "test_aggregation.py::test_weights_prefer_small_losses",
    },
    "convolution": {
        **dict.fromkeys(
            ["convolve", "convolve_adjoint", "kernel_update"], "test_oracles.py::test_convolutions_are_pytorchs"
        ),
        **dict.fromkeys(
            ["circular_convolve", "circular_convolve_adjoint", "circular_kernel_update"],
            "test_oracles.py::test_circular_convolutions_are_pytorchs",
        ),
        "orthogonal_kernel": "test_convolution.py::test_the_kernel_is_orthogonal_on_a_torus_of_any_size",
        "orthogonal_kernel_vjp": (
            "test_convolution.py::test_the_update_of_the_parts_is_the_kernels_derivative_transposed"
        ),
        **dict.fromkeys(["skew_kernel", "skew_kernel_vjp"], "test_convolution.py::test_skew_kernel"),
    },
    "pooling": {
        **dict.fromkeys(["average_pool", "lp_pool", "max_pool"], OUTLETS),
        **dict.fromkeys(["average_pool_adjoint", "lp_pool_vjp", "max_pool_vjp"], OUTLETS),
        "lp_pool_jvp": STEPS,
        "at_maxima": "test_layers.py::test_values_at_maxima_are_taken_where_the_map_is_largest",
        **dict.fromkeys(["shuffle", "unshuffle"], "test_oracles.py::test_rearrangements_are_pytorchs"),
        **dict.fromkeys(
            ["scaled_average_pool", "scaled_average_pool_adjoint"],
            "test_convolution.py::test_pooling_keeps_the_norm_of_what_it_keeps",
        ),
    },
    "layers": {
        **dict.fromkeys(["AdaptiveAveragePool", "AveragePool", "Flatten", "LPPool", "MaxPool"], OUTLETS),
        "CircularConvolution": "test_layers.py::test_update_is_the_derivative_by_the_parameters",
        "Rotation": "test_rotation.py::test_the_module_is_the_layer_and_autograd_its_oracle",
        **dict.fromkeys(["Convolution", "Dense"], MODULE),
        "Mask": STEPS,
        "Unshuffle": "test_oracles.py::test_rearrangements_are_pytorchs",
        "MeanOverPositions": "test_layer_kinds.py::test_backpropagation_is_autograd",
        **dict.fromkeys(
            ["Maxima", "ScaledAveragePool"], "test_layers.py::test_maxima_and_scaled_averages_are_maximum_pooling"
        ),
        **dict.fromkeys(
            ["forward", "updates", "dense_chain", "activity", "pulled_back"],
            "test_backprop.py::test_the_reference_is_autograd",
        ),
        "pushed": "test_layers.py::test_steps_in_a_row_follow_the_chain_rule",
        "changed": "test_layer_kinds.py::test_difference_is_that_of_two_values",
        "linear_part": "test_foton.py::test_linear_rotations_give_backprop",
        "scores": "test_oracles.py::test_scores_are_a_sequence_of_modules",
        "per_label": "test_backprop.py::test_labels_that_are_ignored_count_as_if_they_were_not_there",
        "without_dropped": "test_ftp.py::test_dropped_units_have_no_target",
    },
    "normalisation_layers": dict.fromkeys(["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"], MODULE),
    "blocks": {"Residual": MODULE},
    "attention": {"Attention": MODULE},
    "embedding": {"Embedding": "test_layer_kinds.py::test_an_embedding_is_pytorchs"},
    "backprop": dict.fromkeys(
        ["activity_gradients", "update_factors", "updates"], "test_backprop.py::test_the_reference_is_autograd"
    ),
    "orthogonality": {
        **dict.fromkeys(["gram", "defect", "drift"], "test_oracles.py::test_how_far_from_orthogonal"),
        "basis": "test_orthogonality.py::test_a_basis_is_orthonormal_and_spans_its_rows",
        "polar_factor": "test_oracles.py::test_the_polar_factor_is_scipys",
        **dict.fromkeys(
            ["bjorck", "bjorck_factor", "polar_iteration", "scaled_bjorck"],
            "test_oracles.py::test_iterations_end_at_scipys_polar_factor",
        ),
        "convergence_limit": "test_orthogonality.py::test_convergence_within_the_limit",
        "spectral_bound": "test_orthogonality.py::test_the_bound_bounds",
        "drift_after": "test_orthogonality.py::test_the_drift_after_a_step_is_that_of_the_new_weight",
        "polar_within": "test_orthogonality.py::test_within_a_span_nothing_else_changes",
        "retract": "test_orthogonality.py::test_retraction_from_the_factors_is_bjorck_of_the_weight",
        **dict.fromkeys(
            ["quarter_turns", "skew_orthogonal", "skew_orthogonal_vjp"],
            "test_oracles.py::test_skew_weights_by_their_matrix_and_autograd",
        ),
    },
    "pepita": dict.fromkeys(["update_factors", "updates"], PLAIN),
    "foton": {
        **dict.fromkeys(
            ["differences", "updates", "update_factors"], "test_foton.py::test_linear_orthogonal_network_gives_backprop"
        ),
        "recomputed_factors": "test_foton.py::test_recomputing_the_clean_pass_changes_nothing",
        "linear_errors": "test_foton.py::test_linear_pass_gives_the_last_hidden_layer_its_gradient",
        "error_projection": "test_foton.py::test_the_projection_is_the_adjoint_of_the_network",
        "credit_operators": "test_foton.py::test_any_linear_network_is_backprop_times_a_positive_operator",
        "depth_correction": "test_foton.py::test_scaled_identity_scales_updates_by_depth",
    },
    "ftp": {
        **dict.fromkeys(
            ["local_factors", "update_factors", "updates"],
            "test_ftp.py::test_the_layer_of_the_first_target_follows_direct_feedback",
        ),
        **dict.fromkeys(
            ["differences", "first_difference"],
            "test_ftp.py::test_targets_of_a_linear_network_are_displaced_by_its_jacobian",
        ),
        "feedback_by_channel": "test_ftp.py::test_feedback_by_channel_is_one_number_for_all_positions",
        "output_error": "test_ftp.py::test_targets_are_outputs_less_the_error",
        "project": "test_ftp.py::test_low_rank_feedback_is_its_product",
    },
    "feedback_alignment": dict.fromkeys(
        ["update_factors", "updates"], "test_feedback_alignment.py::test_the_weights_as_feedback_give_backprop"
    ),
    "direct_feedback_alignment": dict.fromkeys(["update_factors", "updates"], PLAIN),
    "direct_random_target_projection": {"updates": PLAIN},
    "difference_target_propagation": {
        **dict.fromkeys(
            ["differences", "update_factors", "updates"],
            "test_difference_target_propagation.py::test_orthogonal_weights_and_their_inverses_give_backprop",
        ),
        "inverse_factors": "test_difference_target_propagation.py::test_inverses_learn_by_their_gradient",
    },
    "forward_forward": {
        **dict.fromkeys(
            ["local_updates", "stream_updates", "updates"],
            "test_forward_forward.py::test_the_reference_is_autograd_of_each_layers_own_loss",
        ),
        **dict.fromkeys(["overlay", "overlay_neutral"], "test_forward_forward_labels.py::test_where_the_label_is"),
        **dict.fromkeys(
            ["features", "neutral_features"],
            "test_forward_forward_labels.py::test_features_are_what_layers_pass_on",
        ),
        "readout_update": "test_oracles.py::test_a_read_out_is_softmax_regression",
        **dict.fromkeys(["label_scores", "stream_goodness"], "test_oracles.py::test_goodness_of_a_stack_of_pytorchs"),
    },
    "local_classifiers": {
        **dict.fromkeys(
            ["layer_passes", "local_updates", "updates"],
            "test_local_classifiers.py::test_the_reference_is_autograd_of_each_layers_own_loss",
        ),
        "concatenated": "test_oracles.py::test_activities_of_all_layers_in_a_row",
        **dict.fromkeys(["joined", "layer_scores"], "test_oracles.py::test_shortcuts_between_modules_of_pytorchs"),
    },
    "hybrid_dynamic_temperature": {
        **dict.fromkeys(
            ["goodness", "losses", "scores", "updates"],
            "test_hybrid_dynamic_temperature.py::test_updates_are_the_gradient_of_the_losses",
        ),
        "warm_start": "test_hybrid_dynamic_temperature.py::test_thresholds_begin_at_the_mean_goodness",
    },
    "recurrent": {
        **dict.fromkeys(["elman", "gru", "lstm"], CELLS),
        **dict.fromkeys(["updates", "unrolled"], UNROLLED),
        "state_size": "test_oracles.py::test_a_state_is_what_modules_of_pytorch_hand_on",
        **dict.fromkeys(["CellStep", "Part", "TokenStep", "factors_per_step", "forward_per_step"], PACKED),
        **dict.fromkeys(
            ["at_steps", "differences_per_step"],
            "test_recurrent_stacks.py::test_targets_are_the_networks_own_run_with_corrections",
        ),
    },
    "hardware": {
        "quantise": "test_oracles.py::test_quantising_is_pytorchs",
        **dict.fromkeys(["product", "read"], "test_oracles.py::test_a_product_is_of_what_pytorch_quantises"),
        **dict.fromkeys(["convolve", "convolve_adjoint"], "test_hardware.py::test_exact_crossbars_convolve"),
        **dict.fromkeys(["clipped", "programmed"], "test_hardware.py::test_what_is_written_is_within_the_range"),
    },
}

DRAWN = {
    "difference_target_propagation": {"inverse_noise", "random_inverses"},
    "direct_feedback_alignment": {"random_feedback"},
    "feedback_alignment": {"random_feedback"},
    "forward_forward": {"wrong_labels"},
    "ftp": {"low_rank_feedback", "random_feedback"},
    "hardware": {"random_noise"},
    "layers": {"dropout_masks", "he_uniform"},
    "learned_scores": {"random_logits", "random_prototypes"},
    "negatives": {"hard_wrong_labels", "random_masks", "random_partners"},
    "orthogonality": {"orthogonal"},
    "pepita": {"error_projection"},
    "scores": {"random_projection"},
}

INTERFACES = {
    "Activation",
    "Block",
    "Cell",
    "Goodness",
    "Layer",
    "NormalisationLayer",
    "Normalisation",
    "Score",
    "NormalisationStep",
    "Step",
}
"""What functions and layers of a kind have in common."""


def computing(module: Any) -> set[str]:
    """The public names of a module that compute: functions, made activations, goodness and cells, layers and steps."""
    found = {name: getattr(module, name) for name in module.__all__ if name not in INTERFACES}
    kinds = (module.__dict__.get(name) for name in ("Activation", "Goodness", "Cell"))
    made = tuple(kind for kind in kinds if isinstance(kind, type))
    return {
        name
        for name, item in found.items()
        if inspect.isfunction(item) or isinstance(item, made) or (inspect.isclass(item) and hasattr(item, "value"))
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_function_has_a_third_opinion(module: str) -> None:
    named = set(ORACLES.get(module, {})) | DRAWN.get(module, set())
    lacking = computing(getattr(reference, module)) - named
    assert not lacking, "without one"
    assert named <= set(getattr(reference, module).__all__), "no such function"


def test_the_tests_named_are_there() -> None:
    for oracles in ORACLES.values():
        for test in oracles.values():
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (Path(__file__).parent / file).read_text(), re.MULTILINE), test


IDENTITY = reference.activations.identity


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> bool:
    """To a number of float64's roundings of the largest number."""
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().numpy()
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max(initial=0) <= tolerance * max(1, np.abs(expected).max(initial=0))
    )


@given(rng=seeds(), smoothing=st.sampled_from([0.0, 0.1, 0.7]))
def test_smoothed_targets_are_pytorchs(rng: np.random.Generator, smoothing: float) -> None:
    """The cross-entropy to them as probabilities is the loss that smooths its labels itself."""
    scores, labels = torch.tensor(rng.standard_normal((6, 4))), torch.tensor(rng.integers(0, 4, 6))
    targets = torch.tensor(reference.losses.one_hot(labels.numpy(), 4, smoothing))
    loss = torch.nn.functional.cross_entropy
    torch.testing.assert_close(loss(scores, targets), loss(scores, labels, label_smoothing=smoothing))


@given(rng=seeds(), passes=st.integers(0, 4))
def test_a_blur_is_scipys_filter(rng: np.random.Generator, passes: int) -> None:
    """Mirrored at the border, where the outermost pixel is counted twice."""
    noise = rng.integers(0, 2, (3, 7, 5)).astype(float)
    blurred = noise
    for _ in range(passes):
        for axis in (1, 2):
            blurred = ndimage.correlate1d(blurred, [0.25, 0.5, 0.25], axis=axis, mode="reflect")
    assert (reference.negatives.blurred_masks(noise, passes) == (blurred > 0.5)).all()


@given(rng=seeds())
def test_a_direction_is_pytorchs(rng: np.random.Generator) -> None:
    v = rng.standard_normal((4, 3, 6))
    assert close(reference.normalisations.direction(v), torch.nn.functional.normalize(torch.tensor(v), dim=-1))


@given(rng=seeds(), groups=st.sampled_from([1, 2]), stride=st.sampled_from([(1, 1), (2, 1)]))
def test_convolutions_are_pytorchs(rng: np.random.Generator, groups: int, stride: tuple[int, int]) -> None:
    """Value, adjoint and update: the last two by autograd."""
    kernel = torch.tensor(rng.standard_normal((6, 4 // groups, 3, 2)), requires_grad=True)
    z = torch.tensor(rng.standard_normal((5, 4, 7, 6)), requires_grad=True)
    found = torch.nn.functional.conv2d(z, kernel, stride=stride, padding=(1, 0), groups=groups)
    d = torch.tensor(rng.standard_normal(found.shape))
    by_kernel, by_z = torch.autograd.grad(found, (kernel, z), d)
    module, place = reference.convolution, (stride, (1, 0), groups)
    k, x, y = (tensor.detach().numpy() for tensor in (kernel, z, d))
    assert close(module.convolve(k, x, *place), found)
    assert close(module.convolve_adjoint(k, y, (7, 6), *place), by_z)
    assert close(len(x) * module.kernel_update(y, x, (3, 2), *place), by_kernel)


@given(rng=seeds(), size=st.sampled_from([1, 3]))
def test_circular_convolutions_are_pytorchs(rng: np.random.Generator, size: int) -> None:
    kernel = torch.tensor(rng.standard_normal((3, 2, size, size)), requires_grad=True)
    z = torch.tensor(rng.standard_normal((5, 2, 6, 5)), requires_grad=True)
    around = torch.nn.functional.pad(z, (size // 2,) * 4, mode="circular")
    found = torch.nn.functional.conv2d(around, kernel)
    d = torch.tensor(rng.standard_normal(found.shape))
    by_kernel, by_z = torch.autograd.grad(found, (kernel, z), d)
    k, x, y = (tensor.detach().numpy() for tensor in (kernel, z, d))
    module = reference.convolution
    assert close(module.circular_convolve(k, x), found)
    assert close(module.circular_convolve_adjoint(k, y), by_z)
    assert close(len(x) * module.circular_kernel_update(y, x, size), by_kernel)


@given(rng=seeds())
def test_rearrangements_are_pytorchs(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4, 6))
    y = reference.pooling.unshuffle(x, 2)
    assert close(reference.layers.Unshuffle(2).value(x), y, 0)
    assert close(y, torch.nn.functional.pixel_unshuffle(torch.tensor(x), 2), 0)
    assert close(reference.pooling.shuffle(y, 2), torch.nn.functional.pixel_shuffle(torch.tensor(y), 2), 0)


shapes = st.sampled_from([(3, 5), (5, 3), (4, 4)])


@given(rng=seeds(), shape=shapes)
def test_how_far_from_orthogonal(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """By the scalar products of rows, or of columns, one by one."""
    weight = rng.standard_normal(shape)
    vectors = weight if shape[0] <= shape[1] else weight.T
    products = np.array([[sum(a * b for a, b in zip(u, v, strict=True)) for v in vectors] for u in vectors])
    rows = rng.standard_normal((2, len(vectors)))
    module = reference.orthogonality
    assert close(module.gram(weight), products)
    assert close(module.defect(weight), np.array(max(abs(p - (i == j)) for (i, j), p in np.ndenumerate(products))))
    off = [[sum(v[i] * ((i == j) - products[i, j]) for i in range(len(v))) for j in range(len(v))] for v in rows]
    assert close(module.drift(weight, rows), np.array(off))


def near_orthogonal(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    return reference.orthogonality.orthogonal(shape, rng) + 0.05 * rng.standard_normal(shape)


@given(rng=seeds(), shape=shapes)
def test_the_polar_factor_is_scipys(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    weight = rng.standard_normal(shape)
    assert close(reference.orthogonality.polar_factor(weight), linalg.polar(weight)[0], 1e-9)


@given(rng=seeds(), shape=shapes)
def test_iterations_end_at_scipys_polar_factor(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    module, weight = reference.orthogonality, near_orthogonal(rng, shape)
    factor = linalg.polar(weight)[0]
    q = module.bjorck_factor(module.gram(weight), steps=12, rescale=False)
    assert close(q @ weight if shape[0] <= shape[1] else weight @ q, factor)
    assert close(module.bjorck(weight, steps=12, rescale=False), factor)
    assert close(module.polar_iteration(weight, 6), factor)
    assert close(module.scaled_bjorck(weight, rng.standard_normal(shape[1]), steps=40, iterations=30), factor)


@given(rng=seeds())
def test_skew_weights_by_their_matrix_and_autograd(rng: np.random.Generator) -> None:
    """J has the blocks (0, -1; 1, 0) on two halves or two neighbours: what it is, its columns say; J^2 = -1."""
    module, q = reference.orthogonality, reference.orthogonality.orthogonal((6, 6), rng)
    turn = module.quarter_turns(np.eye(6))
    assert (turn @ turn == -np.eye(6)).all()
    assert (turn == -turn.T).all()
    gradient = rng.standard_normal((6, 6))
    variable, j = torch.tensor(q, requires_grad=True), torch.tensor(turn)
    weight = variable.mT @ j @ variable
    assert close(module.skew_orthogonal(q), weight)
    assert close(
        module.skew_orthogonal_vjp(q, gradient), torch.autograd.grad(weight, variable, torch.tensor(gradient))[0]
    )


@given(rng=seeds())
def test_a_read_out_is_softmax_regression(rng: np.random.Generator) -> None:
    readout, rows, labels = rng.standard_normal((3, 5)), rng.standard_normal((7, 5)), rng.integers(0, 3, 7)
    variable = torch.tensor(readout, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(torch.tensor(rows) @ variable.mT, torch.tensor(labels))
    found = reference.forward_forward.readout_update(readout, rows, labels)
    assert close(found, torch.autograd.grad(loss, variable)[0]), "the read-out"


@given(rng=seeds())
def test_activities_of_all_layers_in_a_row(rng: np.random.Generator) -> None:
    maps, units = rng.standard_normal((3, 2, 4, 5)), rng.standard_normal((3, 6))
    expected = torch.cat([torch.tensor(maps).mean((2, 3)), torch.tensor(units)], 1)
    assert close(reference.local_classifiers.concatenated([maps, units]), expected)


def of_module(module: torch.nn.Linear | torch.nn.Conv2d, *steps: Any, outlet: Any = ()) -> Any:
    """The layer of the reference with a module's parameters."""
    weight, bias = (parameter.detach().numpy() for parameter in module.parameters())
    if isinstance(module, torch.nn.Linear):
        return reference.layers.Dense(weight, bias, steps, outlet)
    return reference.layers.Convolution(weight, bias, steps, outlet, (1, 1), (1, 1))


def made(rng: np.random.Generator, *modules: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    for parameter in torch.nn.ModuleList(modules).parameters():
        parameter.data = torch.tensor(rng.standard_normal(parameter.shape) / 2)
    return modules


@given(rng=seeds())
def test_scores_are_a_sequence_of_modules(rng: np.random.Generator) -> None:
    convolution, dense = made(rng, torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Linear(12, 4))
    around = (torch.nn.Tanh(), torch.nn.AvgPool2d(2), torch.nn.Flatten())
    steps = reference.layers.AveragePool(2), reference.layers.Flatten()
    layers = of_module(convolution, reference.activations.tanh, outlet=steps), of_module(dense)
    x = rng.standard_normal((3, 2, 4, 5))
    expected = torch.nn.Sequential(convolution, *around, dense)(torch.tensor(x))
    assert close(reference.layers.scores(layers, x), expected), "scores"


def goodness_of_each(modules: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Mean squares of every layer's units, of samples that are brought to a root mean square of 1 before each."""
    found = []
    for module in modules:
        x = torch.tanh(module(x / (x.square().mean(1, keepdim=True).sqrt() + 1e-8)))
        found.append(x.square().mean(1))
    return found


@given(rng=seeds(), first=st.integers(0, 2))
def test_goodness_of_a_stack_of_pytorchs(rng: np.random.Generator, first: int) -> None:
    """Of two streams, with what each layer's loss includes of others; of each label, written over the first numbers."""
    module, mean_square = reference.forward_forward, reference.goodness.mean_square
    modules = made(rng, torch.nn.Linear(7, 5), torch.nn.Linear(5, 4), torch.nn.Linear(4, 6))
    layers = [of_module(linear, reference.activations.tanh) for linear in modules]
    x, other = torch.tensor(rng.standard_normal((2, 3, 7)))
    streams = [goodness_of_each(modules, stream) for stream in (x, other)]
    for prior in ("none", "before", "others"):
        found = module.stream_goodness(layers, x.numpy(), other.numpy(), mean_square, prior)
        for place, layer in enumerate(found):
            chosen = {"none": [], "before": range(place), "others": {0, 1, 2} - {place}}[prior]
            included = [sum((g[t] for t in chosen), torch.zeros(3)) for g in streams]
            expected = streams[0][place], streams[1][place], *included
            assert all(map(close, layer[3:], expected)), f"{prior}, layer {place}"
    columns = []
    for label in range(4):
        candidate = x.clone()
        candidate[:, :4], candidate[:, label] = 0, 2
        columns.append(sum(goodness_of_each(modules, candidate)[first:]))
    assert close(module.label_scores(layers, x.numpy(), 4, mean_square, 2.0, first), torch.stack(columns, 1)), "labels"


@given(rng=seeds(), join=st.sampled_from(["add", "concatenate"]))
def test_shortcuts_between_modules_of_pytorchs(rng: np.random.Generator, join: Any) -> None:
    """The second layer's maps get those of the first, at half their size."""
    module, tanh = reference.local_classifiers, reference.activations.tanh
    width = {"add": 3, "concatenate": 6}[join]
    one, two, three = made(
        rng, *(torch.nn.Conv2d(inside, outside, 3, padding=1) for inside, outside in ((2, 3), (3, 3), (width, 4)))
    )
    x = torch.tensor(rng.standard_normal((2, 2, 4, 6)))
    first = torch.tanh(one(x))
    second = torch.tanh(two(first))
    halved, saved = (torch.nn.functional.avg_pool2d(maps, 2) for maps in (second, first))
    passed_on = halved + saved if join == "add" else torch.cat([halved, saved], 1)
    shortcut = module.Shortcut(0, 1, join, 2)
    arrays = [maps.detach().numpy() for maps in (halved, first)]
    assert close(module.joined(*arrays, shortcut), passed_on), "joined"
    activities = first, second, torch.tanh(three(passed_on))
    matrices = [rng.standard_normal((5, h[0].numel())) for h in activities]
    scores = [
        torch.nn.functional.linear(h.flatten(1), torch.tensor(m)) for h, m in zip(activities, matrices, strict=True)
    ]
    outlets = (), (reference.layers.AveragePool(2),), ()
    layers = [
        module.LocalLayer(of_module(convolution, tanh, outlet=outlet), reference.scores.linear_map(), (matrix,))
        for convolution, outlet, matrix in zip((one, two, three), outlets, matrices, strict=True)
    ]
    assert close(module.layer_scores(layers, x.numpy(), [shortcut]), torch.stack(scores)), "layer_scores"


@given(sizes=st.tuples(*[st.integers(1, 5)] * 4), kind=st.sampled_from(["elman", "gru", "lstm"]))
def test_a_state_is_what_modules_of_pytorch_hand_on(sizes: tuple[int, ...], kind: str) -> None:
    """Of a layer upon another, h and the LSTM's c; what is embedded is a part of the state too."""
    inputs, *widths = sizes
    stack: list[Any] = [reference.embedding.Embedding(np.zeros((3, inputs)))]
    handed = inputs
    for width in widths:
        module = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind](inputs, width)
        states = module(torch.zeros(1, inputs))[1]
        handed += sum(state.numel() for state in (states if kind == "lstm" else [states]))
        of_input, of_state = (parameter.detach().numpy() for parameter in list(module.parameters())[:2])
        dense = reference.layers.Dense(of_input, None), reference.layers.Dense(of_state, None)
        stack.append(reference.recurrent.RecurrentLayer(reference.recurrent.CELLS[kind], *dense))
        inputs = width
    assert reference.recurrent.state_size(stack) == handed, "state_size"


def levels(v: Any, bits: int) -> torch.Tensor:
    most = 2 ** (bits - 1) - 1
    scale = float(np.abs(v).max()) / most
    return torch.fake_quantize_per_tensor_affine(torch.tensor(v, dtype=torch.float32), scale, 0, -most, most).double()


@given(rng=seeds(), bits=st.integers(2, 6))
def test_quantising_is_pytorchs(rng: np.random.Generator, bits: int) -> None:
    v = rng.standard_normal((5, 4))
    assert close(reference.hardware.quantise(v, bits), levels(v, bits), 1e-6)


@given(rng=seeds(), bits=st.integers(2, 6))
def test_a_product_is_of_what_pytorch_quantises(rng: np.random.Generator, bits: int) -> None:
    x, weight, noise = rng.standard_normal((5, 4)), rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    crossbar = reference.hardware.Crossbar(bits, bits, None, 0.1)
    read = levels(weight, bits) + 0.1 * levels(weight, bits).abs().max() * torch.tensor(noise)
    assert close(reference.hardware.read(crossbar, weight, noise), read, 1e-6)
    assert close(reference.hardware.product(crossbar, x, weight, noise), levels(x, bits) @ read.mT, 1e-5)


def grown(weights: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The activities of a dense network with tanh, scores last."""
    found = [x]
    for weight in weights[:-1]:
        found.append(torch.tanh(found[-1] @ weight.mT))
    return [*found, found[-1] @ weights[-1].mT]


@given(rng=seeds())
def test_rules_of_a_dense_network_by_their_equations(rng: np.random.Generator) -> None:
    """DFA, DRTP and PEPITA as their papers have them: a network of matrices, written down once more."""
    widths = (7, 6, 5, 4)
    weights = [torch.tensor(rng.standard_normal((m, n)) / 2) for n, m in pairwise(widths)]
    x, y = torch.tensor(rng.standard_normal((3, 7))), torch.tensor(rng.integers(0, 4, 3))
    h = grown(weights, x)
    hot = torch.nn.functional.one_hot(y, 4).double()
    e = h[-1].softmax(1) - hot
    b = [torch.tensor(rng.standard_normal((n, 4))) for n in widths[1:-1]]

    def products(deltas: list[torch.Tensor], z: list[torch.Tensor]) -> list[torch.Tensor]:
        return [d.mT @ before / len(x) for d, before in zip(deltas, z, strict=False)]

    def by_feedback(signal: torch.Tensor) -> list[torch.Tensor]:
        hidden = [(signal @ matrix.mT) * (1 - after**2) for matrix, after in zip(b, h[1:], strict=False)]
        return products([*hidden, e], h)

    f = torch.tensor(rng.standard_normal((4, 7)))
    second = grown(weights, x + e @ f)
    expected = {
        "direct_feedback_alignment": by_feedback(e),
        "direct_random_target_projection": by_feedback(hot),
        "pepita": products([*(p - q for p, q in zip(h[1:-1], second[1:-1], strict=True)), e], second),
    }
    arrays = [weight.numpy() for weight in weights]
    layers = reference.layers.dense_chain(arrays, [None] * 3, [*[reference.activations.tanh] * 2, IDENTITY])
    for name, found in expected.items():
        through = f.numpy() if name == "pepita" else [matrix.numpy() for matrix in b]
        updates = getattr(reference, name).updates(layers, through, x.numpy(), y.numpy())
        for update, by_hand in zip(updates, found, strict=True):
            assert close(update[0], by_hand), name
