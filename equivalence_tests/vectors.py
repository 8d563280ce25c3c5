"""Golden vectors: operands, expected results and bounds of the reference's functions, for any language.

    python -m prograde.equivalence_tests.vectors write FOLDER [--only MODULE ...]

Each module has two files with the same content: MODULE.safetensors, whose tensors are named CASE/NAME, and MODULE.json,
whose numbers are hexadecimal floats of C99. A case is a call, an expression in the names of `prograde.reference`, of
which the arrays are operands; results are named as `tolerance` names them, such as CASE/result[0][1]. A bound is the
largest root mean square error of a result in a precision, by the policy of the tests, CASE/bound[PRECISION]/result...
An implementation agrees where it was given the operands rounded to that precision and stays within the bounds; of
integers and of what is only moved the bound is 0 or one rounding. A new VERSION means other numbers or other names.

Operands are `typical`, at `kinks` (zeros of both signs, ties, halves, equal units) or at `extremes` (numbers near 1e30
beside denormal ones, of which only float64 has bounds).
"""

import argparse
import ast
import json
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .sides import EPS, ReferenceSide, Side, map_arrays
from .tolerance import DOUBLE, FACTOR, leaves, movement, rms

VERSION = 1
PRECISIONS = ("float64", "float32", "bfloat16")


def _typical() -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape)

    widths = (7, 6, 5, 4)
    shapes = list(zip(widths[1:], widths, strict=False))
    return {
        "a": normal(3, 6), "u": normal(3, 6), "d": normal(3, 6), "h": normal(3, 6), "v": normal(5, 4),
        "logits": normal(5, 4), "labels": rng.integers(0, 4, 5), "targets": rng.random((5, 4)), "numbers": normal(5, 4),
        "positive": rng.random(5) + 1, "negative": rng.random(5), "before": rng.random((2, 5)),
        "all_logits": normal(3, 5, 4), "mask": rng.integers(0, 2, (3, 6)).astype(float),
        "noise": rng.integers(0, 2, (2, 5, 6)).astype(float), "partner": np.array([2, 0, 1]),
        "maps": normal(2, 4, 6, 5), "cells": normal(2, 4, 3, 2), "of_maps": normal(2, 4, 6, 5),
        "squares": normal(2, 3, 4, 6), "small": normal(2, 3, 2, 3),
        "kernel": normal(4, 3, 3, 2), "images": normal(2, 3, 7, 6), "delta": normal(2, 4, 4, 5),
        "odd_kernel": normal(4, 3, 3, 3), "on_torus": normal(2, 4, 4, 6), "torus": normal(2, 3, 4, 6),
        "weight": normal(3, 5) / 3, "rows": normal(2, 3), "square": normal(4, 4), "turned": normal(4, 4),
        "x": normal(5, 7), "weights": tuple(normal(*shape) / 2 for shape in shapes),
        "biases": tuple(0.3 * normal(m) for m, _ in shapes), "mirrored": tuple(normal(*s) for s in shapes[1:]),
        "direct": tuple(normal(m, 4) for m, _ in shapes[:-1]), "rows_of_x": normal(4, 7), "of_first": normal(6, 4),
        "readout": normal(4, 6), "features": normal(5, 6), "omega": normal(4, 2), "tau": np.array(0.3),
        "inverse": normal(6, 5), "disturbance": normal(5, 6) / 10,
        "gates": normal(3, 24), "recurrent_gates": normal(3, 24), "two_states": normal(3, 12),
        "of_two_states": normal(3, 12), "sequence": normal(3, 4, 2), "of_input": normal(6, 2), "of_bias": normal(6),
        "of_state": normal(6, 6) / 3, "of_output": normal(4, 6), "start": normal(3, 6), "per_step": normal(3, 4, 4),
        "corrections": normal(3, 4, 6), "projections": normal(18, 6) / 3, "of_tokens": normal(3, 4, 6),
    }  # fmt: skip


def _kinks() -> dict[str, Any]:
    ties = np.array(
        [[0.0, -0.0, 2.0, 2.0, -2.0, -2.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.5, -0.5, 0.0, 0.0, 3.0, 3.0]]
    )
    equal = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [-1.0, 2.0, 2.0, -1.0], [0.5] * 4, [0.0, 0, 0, 1]])
    return _typical() | {
        "a": ties, "h": ties, "u": np.ones((3, 6)), "v": np.array([[3.0, 0.5], [-1.5, 2.5]]), "logits": equal,
        "numbers": equal - np.array([0.0, 1.0, -1.0, 0.0]), "all_logits": np.stack([equal, equal, equal[::-1]]),
        "squares": np.tile(np.array([[1.0, 1.0], [0.0, -0.0]]), (2, 3, 2, 3)), "positive": np.ones(5),
        "negative": np.ones(5), "before": np.zeros((2, 5)), "labels": np.array([0, 3, 1, 2, 3]),
        "x": np.array([[0.0], [1.0], [1.0], [-0.0], [1.0]]) * _typical()["x"],
    }  # fmt: skip


def _extremes() -> dict[str, Any]:
    wide = np.array([[1e30, -1e30, 1e-310, -1e-310, 700.0, -700.0], [0.0] * 6, [1e-30, 1.0, -1.0, 40.0, -40.0, 1e4]])
    far = np.array([[1e30, -1e30, 0, 0], [1e4, 1e4, -1e4, 0.0], [1e-310] * 4, [800.0, -800, 0, 0], [0.0] * 4])
    return _typical() | {
        "a": wide, "u": np.full((3, 6), 1e-3), "h": np.array([[1e15, -1e15, 1e-310, 0, 1, 2], [1e-200] * 6, [1.0] * 6]),
        "logits": far, "v": np.array([[1e30, -1e-310], [0.0, 1e29]]),
        "positive": np.array([1e4, 0.0, 1e-310, 1.0, 1e15]), "negative": np.array([0.0, 1e4, 1e-310, 1e15, 1.0]),
    }  # fmt: skip


OPERANDS = {"typical": _typical, "kinks": _kinks, "extremes": _extremes}

NETWORK = "layers.dense_chain(weights, biases, (activations.tanh, activations.tanh, activations.identity))"
HIDDEN = "layers.dense_chain(weights[:2], biases[:2], (activations.tanh, activations.tanh))"
WITHOUT_BIASES = "layers.dense_chain(weights, (None,) * 3, (activations.relu, activations.relu, activations.identity))"
TWO_STREAMS = "pair_losses.LayerGoodness(1, 3, 6.0, positive, negative, before[0], before[1])"
CELL = "recurrent.RecurrentLayer(recurrent.elman(), layers.Dense(of_input, of_bias), layers.Dense(of_state, None))"
STEPS = f"(*recurrent.unrolled([{CELL}], sequence), layers.Dense(of_output, None))"
ALL = ("typical", "kinks", "extremes")
KINKS = ("typical", "kinks")


def _calls() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Expressions with the operands that they are evaluated for."""
    for name in ("gelu", "identity", "leaky_relu()", "maxmin", "relu", "silu", "tanh"):
        yield f"activations.{name}.value(a)", ALL
        for derivative in ("jvp", "vjp", "difference"):
            yield f"activations.{name}.{derivative}(a, u)", ALL
    yield "losses.counted(logits, labels, 3)", KINKS
    for end in ("", "_gradient"):
        yield f"losses.cross_entropy{end}(logits, labels, 0.5, 0.1)", ALL if end else KINKS
        yield f"losses.cross_entropy{end}(logits, labels, ignore_index=3)", KINKS
        yield f"losses.squared_error{end}(logits, labels)", KINKS
        yield f"losses.absolute_error{end}(logits, numbers)", KINKS
        yield f"losses.huber{end}(logits, numbers)", KINKS
        yield f"losses.binary_cross_entropy{end}(logits, targets)", ALL
    made = ("entmax_weighted()", "excess_kurtosis()", "maximum", "mean_activation", "mean_square", "sum_of_squares")
    for name in (*made, "negated(goodness.mean_square)", "top_k(0.4)"):
        for function in ("value", "gradient"):
            tied = function == "gradient" and name in ("maximum", "top_k(0.4)")  # which of equal units counts is free
            kinds = ("typical",) if tied else KINKS if name == "excess_kurtosis()" else ALL
            yield f"goodness.{name}.{function}(h)", kinds
    for name in ("collaboration()", "smoothed_triplet()", "symba()", "threshold()", "two_thresholds(8.0, 2.0)"):
        yield f"pair_losses.{name}({TWO_STREAMS})", ALL
    names = ("cumulative()", "per_block()", "squared_hinge()", "hardness_gated()", "depth_scaled_auxiliary()")
    for name in (*names, "compensated()"):
        yield f"cumulative_goodness.{name}({TWO_STREAMS})", KINKS
    for law in ("root", "softmax"):
        yield f"negatives.wrong_label_probabilities(logits, labels, '{law}')", KINKS
    yield "negatives.hybrid_images(a, d, mask)", KINKS
    yield "negatives.blurred_masks(noise, 2)", ("typical",)
    yield "negatives.self_supervised_pairs(a, partner)", ("typical",)
    yield "adaptive_pooling.grid_pool(maps, (3, 2))", ("typical",)
    yield "adaptive_pooling.grid_pool_adjoint(cells, (6, 5))", ("typical",)
    for name in ("group_mean(2)", "group_mean_square(2)"):
        yield f"scores.{name}.value(maps, ())", ("typical",)
    yield "scores.features(maps, (3, 2))", ("typical",)
    yield "scores.linear_map().value(a, (readout,))", ("typical",)
    yield "learned_scores.channel_class().value(maps, (omega, tau))", ("typical",)
    for name in ("cosine_margin()", "cross_entropy(0.1)", "mixed()", "positive_versus_negative()", "smooth_margin()"):
        yield f"score_losses.{name}(logits, labels)", KINKS
    for name in ("batch_norm", "layer_norm", "rms_norm", "unit_sphere"):
        yield f"normalisations.{name}(h)", KINKS
        yield f"normalisations.{name}_vjp(h, d)", ("typical",)
    for name, groups in (("group_norm", ", 2"), ("instance_norm", ""), ("channel_norm", "")):
        yield f"normalisations.{name}(maps{groups})", ("typical",)
        yield f"normalisations.{name}_vjp(maps, of_maps{groups})", ("typical",)
    yield "normalisations.direction(a)", ALL
    yield "normalisations.direction_vjp(a, d)", ALL
    for name in ("last(", "total(", "range_total(", "range_hits(", "best_range(", "weighted("):
        others = {"range_total(": ", 1, 2", "weighted(": ", positive[:3]"}.get(name, ", labels" if "_" in name else "")
        yield f"aggregation.{name}all_logits{others})", KINKS
    yield "aggregation.loss_weights(positive)", KINKS
    place = "(2, 1), (1, 0)"
    yield f"convolution.convolve(kernel, images, {place})", ("typical",)
    yield f"convolution.convolve_adjoint(kernel, delta, (7, 6), {place})", ("typical",)
    yield f"convolution.kernel_update(delta, images, (3, 2), {place})", ("typical",)
    yield "convolution.circular_convolve(odd_kernel, torus)", ("typical",)
    yield "convolution.circular_convolve_adjoint(odd_kernel, on_torus)", ("typical",)
    yield "convolution.circular_kernel_update(on_torus, torus, 3)", ("typical",)
    for call in ("max_pool(squares, 2)", "max_pool_vjp(squares, small, 2)", "at_maxima(squares, squares, 2)",
                 "average_pool(squares, 2)", "average_pool_adjoint(squares, small, 2)", "lp_pool(squares, 2.0, 2)",
                 "scaled_average_pool(squares, 2)", "scaled_average_pool_adjoint(small, 2)", "unshuffle(squares, 2)",
                 "shuffle(on_torus, 2)"):  # fmt: skip
        yield f"pooling.{call}", KINKS
    for call in ("gram(weight)", "defect(weight)", "drift(weight, rows)", "polar_factor(weight)", "bjorck(weight)",
                 "polar_iteration(weight)", "spectral_bound(orthogonality.gram(weight))", "skew_orthogonal(square)",
                 "skew_orthogonal_vjp(square, turned)", "quarter_turns(square)"):  # fmt: skip
        yield f"orthogonality.{call}", ("typical",)
    yield "hardware.quantise(v, 3)", ALL
    yield "hardware.clipped(v, 1.0)", KINKS
    yield "hardware.product(hardware.Crossbar(4, None, None), v, square[:, :v.shape[1]])", ("typical",)
    clean = f"{NETWORK}, layers.forward({NETWORK}, x)"
    yield f"backprop.updates({NETWORK}, x, labels)", ("typical",)
    yield f"backprop.update_factors({clean}, v)", ("typical",)
    yield f"feedback_alignment.updates({NETWORK}, mirrored, x, labels)", ("typical",)
    yield f"feedback_alignment.update_factors({clean}, v, mirrored)", ("typical",)
    yield f"direct_feedback_alignment.updates({NETWORK}, direct, x, labels)", ("typical",)
    yield f"direct_feedback_alignment.update_factors({clean}, v, direct)", ("typical",)
    yield f"direct_random_target_projection.updates({NETWORK}, direct, x, labels)", ("typical",)
    yield f"pepita.updates({NETWORK}, rows_of_x, x, labels)", ("typical",)
    yield f"pepita.update_factors({clean}, v, rows_of_x)", ("typical",)
    yield f"foton.updates({NETWORK}, x, labels)", ("typical",)
    yield f"foton.updates({NETWORK}, x, labels, linear=True)", ("typical",)
    yield f"foton.updates({WITHOUT_BIASES}, x, labels)", KINKS
    yield f"foton.updates({WITHOUT_BIASES}, x, labels, linear=True)", KINKS
    yield f"foton.error_projection({clean})", ("typical",)
    yield f"foton.differences({clean}, v, rows_of_x)", ("typical",)
    yield f"ftp.updates({NETWORK}, of_first, x, labels)", ("typical",)
    yield f"ftp.update_factors({clean}, v, features)", ("typical",)
    streams = f"{HIDDEN}, x, labels, (labels + 1) % 4, 4"
    for loss in ("pair_losses.threshold()", "pair_losses.symba()"):
        yield f"forward_forward.updates({streams}, goodness.mean_square, {loss})", ("typical",)
    score = "scores.linear_map(), (readout,)"
    local = f"(local_classifiers.LocalLayer({NETWORK}[0], {score}),), x, labels, score_losses.cross_entropy()"
    yield f"local_classifiers.updates({local})", ("typical",)
    inverse = "(layers.Dense(inverse, None, (activations.tanh,)),), (disturbance,)"
    yield f"difference_target_propagation.updates({NETWORK}, {inverse}, x, labels)", ("typical",)
    for cell, n in (("gru", 3), ("lstm", 4), ("elman()", 1)):
        state, d = ("two_states", "of_two_states") if cell == "lstm" else ("a", "d")
        operands = f"gates[:, :{6 * n}], recurrent_gates[:, :{6 * n}], {state}"
        yield f"recurrent.{cell}.value({operands})", ("typical",)
        yield f"recurrent.{cell}.vjp({operands}, {d})", ("typical",)
    of_steps = f"{STEPS}, recurrent.forward_per_step({STEPS}, start)"
    yield f"recurrent.forward_per_step({STEPS}, start).scores", ("typical",)
    yield f"recurrent.at_steps({STEPS}[:-1], [corrections])", ("typical",)
    yield f"recurrent.differences_per_step({of_steps}, recurrent.at_steps({STEPS}[:-1], [corrections]))", ("typical",)
    step = f"recurrent.CellStep({CELL}, sequence[:, 0], sequence[:, 0] @ of_input.T + of_bias, recurrent.Part(0, 6, 6))"
    tokens = "partner, of_input[partner], recurrent.Part(2, 4, 6)"
    for own in (step, f"recurrent.TokenStep(embedding.Embedding(of_input), {tokens})"):
        yield f"{own}.value(a)", ("typical",)
        yield f"{own}.difference(a, u)", ("typical",)
        yield f"{own}.adjoint(a, d)", ("typical",)
        yield f"{own}.update(a, d)", ("typical",)
    for causal in (False, True):
        layer = f"attention.Attention(projections, None, of_state, of_bias, heads=2, causal={causal})"
        yield f"{layer}.value(corrections)", ("typical",)
        for method in ("difference", "adjoint", "update"):
            yield f"{layer}.{method}(corrections, of_tokens)", ("typical",)
    yield "embedding.Embedding(of_input).value(partner[:, None])", ("typical",)
    yield "embedding.Embedding(of_input).update(partner[:, None], sequence[:, :1])", ("typical",)
    yield "recurrent.Part(1, 4, 6).value(a)", ("typical",)
    yield "recurrent.Part(1, 4, 6).vjp(a, d[:, :3])", ("typical",)
    yield f"recurrent.updates({STEPS}, recurrent.factors_per_step({of_steps}, per_step))", ("typical",)
    yield "forward_forward.overlay(x, labels, 4)", ("typical",)
    yield "forward_forward.readout_update(readout, features, labels)", ("typical",)


class Vector(NamedTuple):
    """A case: its name, its call, the operands that are arrays, by name, and the results with their bounds by path."""

    name: str
    call: str
    operands: dict[str, Any]
    results: dict[str, Any]
    bounds: dict[str, dict[str, float]]


def evaluated(call: str, side: Side, operands: Any) -> Any:
    """The call on a side, whose modules the expression names; `operands` are that side's arrays by name.

    What is given one after another becomes a tuple.
    """
    names = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)} - set(operands)
    found = eval(call, {"__builtins__": {}}, {name: getattr(side, name) for name in names} | operands)
    return tuple(found) if isinstance(found, Iterator) else found


def vectors(module: str) -> Iterator[Vector]:
    """Those of a module, by the reference."""
    counts: dict[str, int] = {}
    for call, kinds in _calls():
        if call.partition(".")[0] != module:
            continue
        for kind in kinds:
            names = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
            operands = {name: value for name, value in OPERANDS[kind]().items() if name in names}
            function = call.split("(")[0].removeprefix(f"{module}.")
            number = counts[function] = counts.get(function, -1) + 1
            yield _vector(f"{function}-{number}-{kind}", call, kind, operands)


def _vector(name: str, call: str, kind: str, operands: dict[str, Any]) -> Vector:
    def run(side: Side, arrays: Any) -> Any:
        return evaluated(call, side, arrays)

    side = ReferenceSide()
    results = dict(leaves("result", side.results(run(side, operands))))
    bounds: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS if kind != "extremes" else ("float64",):
        eps = EPS[precision]
        with np.errstate(all="ignore"):
            moves, noise = (movement("result", run, (operands,), size) for size in (eps, DOUBLE))
        limits = {
            path: FACTOR * (eps * moves[path] + DOUBLE * noise[path]) + eps * rms(value)
            if value.dtype.kind == "f"
            else 0.0
            for path, value in results.items()
        }
        bounds[precision] = {path: float(limit) for path, limit in limits.items() if np.isfinite(limit)}
    return Vector(name, call, operands, results, bounds)


def _tensors(vector: Vector) -> dict[str, Any]:
    """All arrays of a case by their names in the files."""
    found = {f"{vector.name}/{path}": array for path, array in _operands_by_path(vector.operands)}
    found |= {f"{vector.name}/{path}": array for path, array in vector.results.items()}
    for precision, limits in vector.bounds.items():
        found |= {f"{vector.name}/bound[{precision}]/{path}": np.array(limit) for path, limit in limits.items()}
    return found


def _operands_by_path(operands: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in operands.items():
        yield from leaves(name, value)


TYPES = {"f": ("F64", "<f8"), "i": ("I64", "<i8"), "b": ("BOOL", "|b1")}


def write_safetensors(path: Path, tensors: dict[str, Any], about: dict[str, str]) -> None:
    """The format of safetensors: the length of a JSON header, the header, the numbers, little end first."""
    header: dict[str, Any] = {"__metadata__": about}
    parts, end = [], 0
    for name, array in tensors.items():
        kind, stored = TYPES[array.dtype.kind]
        parts.append(np.ascontiguousarray(array, stored).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def in_json(array: Any) -> dict[str, Any]:
    """Shape, type and numbers, floats in hexadecimal."""
    flat = np.ravel(array).tolist()
    numbers = [number.hex() if isinstance(number, float) else number for number in flat]
    return {"dtype": TYPES[array.dtype.kind][0], "shape": list(array.shape), "data": numbers}


def from_json(stored: dict[str, Any]) -> Any:
    """The array of `in_json`."""
    numbers = [float.fromhex(number) if isinstance(number, str) else number for number in stored["data"]]
    kinds = dict(TYPES.values())
    return np.array(numbers, kinds[stored["dtype"]]).reshape(stored["shape"])


def modules() -> list[str]:
    """Those with vectors, in order."""
    return list(dict.fromkeys(call.partition(".")[0] for call, _ in _calls()))


def write(folder: Path, only: Sequence[str] = ()) -> int:
    """Writes the files of all modules, or of some; returns how many cases. Raises FileExistsError for what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {module: [folder / f"{module}.{end}" for end in ("safetensors", "json")] for module in only or modules()}
    for path in (path for paths in files.values() for path in paths):
        if path.exists():
            raise FileExistsError(f"{path} exists already")
    total = 0
    for module, paths in files.items():
        cases = list(vectors(module))
        tensors = {name: array for case in cases for name, array in _tensors(case).items()}
        calls = {case.name: case.call for case in cases}
        write_safetensors(paths[0], tensors, {"version": str(VERSION), **calls})
        stored = {name: in_json(array) for name, array in tensors.items()}
        paths[1].write_text(json.dumps({"version": VERSION, "calls": calls, "tensors": stored}, indent=1))
        total += len(cases)
    return total


def read(path: Path) -> Iterator[Vector]:
    """The cases of a JSON file. Raises ValueError for another version."""
    found = json.loads(path.read_text())
    if found["version"] != VERSION:
        raise ValueError(f"{path}: version {found['version']}, expected {VERSION}")
    arrays = {name: from_json(stored) for name, stored in found["tensors"].items()}
    for name, call in found["calls"].items():
        own = {path.removeprefix(f"{name}/"): value for path, value in arrays.items() if path.startswith(f"{name}/")}
        operands: dict[str, Any] = {}
        bounds: dict[str, dict[str, float]] = {}
        for path_, value in own.items():
            if path_.startswith("bound["):
                precision, _, result = path_.removeprefix("bound[").partition("]/")
                bounds.setdefault(precision, {})[result] = float(value)
            elif not path_.startswith("result"):
                stem, indexed, _ = path_.partition("[")
                operands[stem] = (*operands.get(stem, ()), value) if indexed else value
        yield Vector(name, call, operands, {k: v for k, v in own.items() if k.startswith("result")}, bounds)


def distances(vector: Vector, found: Any, precision: str) -> dict[str, tuple[float, float]]:
    """The error of each result found, arrays or lists, beside its bound. Raises AssertionError for another shape."""
    results = {path: _result(found, path) for path in vector.results}
    for path, expected in vector.results.items():
        assert results[path].shape == expected.shape, f"{path}: shape {results[path].shape}, expected {expected.shape}"
    limits = vector.bounds.get(precision, {})
    with np.errstate(all="ignore"):
        return {path: (rms(results[path] - vector.results[path]), limit) for path, limit in limits.items()}


def _result(found: Any, path: str) -> Any:
    """What stands at a path such as result[0].weight of a tree."""
    for step in re.findall(r"\[(\d+)\]|\.(\w+)", path):
        found = found[int(step[0])] if step[0] else getattr(found, step[1])
    return np.asarray(found)


def errors(vector: Vector, side: Side, precision: str) -> dict[str, tuple[float, float]]:
    """The same of a side at the case."""
    found = evaluated(vector.call, side, map_arrays(side.operands, vector.operands))
    return distances(vector, side.results(found), precision)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.vectors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=["write"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=modules(), default=[], metavar="MODULE", help="default: all")
    options = parser.parse_args(arguments)
    try:
        total = write(options.folder, options.only)
    except FileExistsError as error:
        parser.error(str(error))
    print(f"{total} cases of {len(options.only or modules())} modules in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
