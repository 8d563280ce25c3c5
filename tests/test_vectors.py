"""Golden vectors: what is written is read back, both implementations agree with it, and a page of C does."""

import json
import runpy
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prograde import reference
from prograde.equivalence_tests import vectors
from prograde.equivalence_tests.sides import MODULES, ReferenceSide, TwinSide
from prograde.equivalence_tests.test_oracles import DRAWN, computing

ROOT = Path(__file__).parent.parent
WRITTEN = ("losses", "direct_feedback_alignment", "aggregation")
"""Of every run; all modules in the nightly one."""

LEFT_OUT = {
    "cumulative_goodness": "metrics of training and bounds of theorems",
    "hybrid_dynamic_temperature": "its parameters are many, and its parts have vectors",
    "normalisation_layers": "made of `normalisations`",
    "blocks": "a layer of layers", "layers": "what the calls are made of",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("vectors")
    vectors.write(found, WRITTEN)
    return found


def check_module(folder: Path, module: str) -> None:
    """The reference gives the results bit for bit, the twin within the bounds; a result that is 1 % off is refused."""
    cases = list(vectors.read(folder / f"{module}.json"))
    refused = 0
    for case in cases:
        for error, _ in vectors.errors(case, ReferenceSide(), "float64").values():
            assert error == 0, case.call
        for precision in vectors.PRECISIONS:
            twin = TwinSide("prograde.accelerated", "cpu", precision)
            for path, (error, bound) in (
                vectors.errors(case, twin, precision).items() if case.bounds.get(precision) else ()
            ):
                assert error <= bound, (
                    f"{module}/{case.name} {case.call}, {path} in {precision}: {error}, bound {bound}"
                )
        refused += any(0.01 * vectors.rms(case.results[path]) > bound for path, bound in case.bounds["float64"].items())
    assert refused > len(cases) / 2, "bounds that nothing exceeds"


@pytest.mark.parametrize("module", WRITTEN)
def test_what_is_written_is_read_and_held_to(folder: Path, module: str) -> None:
    check_module(folder, module)


@pytest.mark.nightly
def test_all_modules(tmp_path: Path) -> None:
    vectors.write(tmp_path)
    for module in vectors.modules():
        check_module(tmp_path, module)


def test_both_files_have_the_same_arrays_bit_for_bit(folder: Path) -> None:
    data = (folder / "losses.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    stored = json.loads((folder / "losses.json").read_text())
    about = header.pop("__metadata__")
    assert about == {"version": str(stored["version"]), **stored["calls"]}
    assert header.keys() == stored["tensors"].keys()
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        array = np.frombuffer(data[8 + length :][start:end], dict(vectors.TYPES.values())[entry["dtype"]])
        assert array.tobytes() == vectors.from_json(stored["tensors"][name]).tobytes(), name


def test_safetensors_itself_reads_the_file(folder: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = numpy.load_file(folder / "losses.safetensors")
    cases = vectors.read(folder / "losses.json")
    for case in cases:
        for path, array in case.results.items():
            assert np.array_equal(tensors[f"{case.name}/{path}"], array), path


def test_nothing_is_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        vectors.main(["write", str(folder), "--only", "losses"])
    assert "losses.safetensors exists already" in capsys.readouterr().err


def test_another_version_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "losses.json").read_text().replace(f'"version": {vectors.VERSION}', '"version": 0')
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(ValueError, match="version 0, expected"):
        next(vectors.read(tmp_path / "old.json"))


def test_every_function_has_vectors_or_is_named() -> None:
    calls = " ".join(call for call, _ in vectors._calls())
    missing = {module: [] for module in MODULES}  # type: ignore[var-annotated]
    for module in set(MODULES) - set(LEFT_OUT):
        for name in computing(getattr(reference, module)) - DRAWN.get(module, set()):
            if f"{module}.{name}" not in calls:
                missing[module].append(name)
    found = {module: sorted(names) for module, names in missing.items() if names}
    assert found == PARTS, "functions without vectors"


PARTS = {
    "backprop": ["activity_gradients"],
    "convolution": ["orthogonal_kernel", "orthogonal_kernel_vjp", "skew_kernel", "skew_kernel_vjp"],
    "difference_target_propagation": ["differences", "inverse_factors", "update_factors"],
    "forward_forward": [
        "features", "label_scores", "local_updates", "neutral_features", "overlay_neutral", "stream_goodness",
        "stream_updates",
    ],
    "foton": [
        "credit_operators", "depth_correction", "linear_errors",
        "recomputed_factors", "update_factors",
    ],
    "ftp": [
        "differences", "feedback_by_channel", "first_difference", "local_factors", "output_error", "project",
    ],
    "hardware": ["convolve", "convolve_adjoint", "programmed", "read"],
    "learned_scores": ["assignment", "prototype_cosine"],
    "local_classifiers": ["concatenated", "joined", "layer_passes", "layer_scores", "local_updates"],
    "losses": ["one_hot"],
    "orthogonality": [
        "basis", "bjorck_factor", "convergence_limit", "drift_after", "polar_within", "retract", "scaled_bjorck",
    ],
    "pooling": ["lp_pool_jvp", "lp_pool_vjp"],
    "recurrent": ["state_size"],  # an integer, of shapes alone
    "scores": ["features_adjoint", "no_penalty", "patch_energy", "random_readout"],
}  # fmt: skip
"""Functions without vectors of their own; most are parts of those that have them."""


def test_plain_python_agrees_and_a_mistake_in_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = runpy.run_path(str(ROOT / "examples" / "plain_python.py"))
    names["test_ftp"](tmp_path)
    monkeypatch.setitem(names["test_ftp"].__globals__, "tanh", lambda value: value)
    (tmp_path / "again").mkdir()
    with pytest.raises(AssertionError):
        names["test_ftp"](tmp_path / "again")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler")
def test_a_page_of_c(folder: Path, tmp_path: Path) -> None:
    program, vector = tmp_path / "golden_vectors", folder / "direct_feedback_alignment.safetensors"
    source = ROOT / "examples" / "golden_vectors.c"
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", "-o", program, source, "-lm"], check=True)
    done = subprocess.run([program, vector], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bound") == 6
    assert "agrees" in done.stdout
    wrong = bytearray(vector.read_bytes())
    numbers = 8 + struct.unpack("<Q", wrong[:8])[0]
    wrong[numbers : numbers + 8] = struct.pack("<d", 3.0)  # the first number of the first operand
    (tmp_path / "wrong.safetensors").write_bytes(wrong)
    again: Any = subprocess.run([program, tmp_path / "wrong.safetensors"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "DISAGREES" in again.stdout
