"""What `make gpu` runs, as far as a CPU can: all but the tests, with less of everything."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prograde.accelerated.rules import RULES
from prograde.equivalence_tests import gpu


def test_all_but_the_tests_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA", raising=False)
    gpu.main(str(tmp_path), "cpu", "uses", "constraint", "steps", "epochs")
    _, *found = (tmp_path / "uses.txt").read_text().splitlines()
    assert [line for line in found if not line.endswith((": ok", ": on a GPU alone"))] == []
    assert len(found) == 7
    machine, *defects = (tmp_path / "constraint.txt").read_text().splitlines()
    assert machine.startswith("cpu, PyTorch ")
    assert len(defects) == 4
    assert all(0 < float(line.split()[-1]) <= 5e-3 for line in defects), defects
    _, network, plain, *steps = (tmp_path / "steps.txt").read_text().splitlines()
    assert network.startswith("64-128-64-10, batch 128, float32, ")
    assert plain.split()[:3] == ["PyTorch", "backprop", "eager"]
    assert [line.split()[0] for line in steps] == list(RULES)
    assert all(float(line.split()[2]) > 0 for line in steps), steps
    _, note, *epochs = (tmp_path / "epochs.txt").read_text().splitlines()
    assert note.startswith("random images")
    assert [line.split(":")[0] for line in epochs] == [
        "DTG-FF, VGG8, epoch 1", "DTG-FF, VGG8", "CAW-Conv, ResNet-17, epoch 1", "CAW-Conv, ResNet-17"
    ]  # fmt: skip


def test_epochs_on_data_in_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "ten.npz", x_train=images, y_train=labels, x_test=images[::2], y_test=labels[::2])
    monkeypatch.setenv("DATA", str(tmp_path / "ten.npz"))
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    found = list(gpu.epochs(torch.device("cpu"), tmp_path))
    assert ": 24 images in " in found[0], "one step"
    assert found[1].startswith("DTG-FF, VGG8: test ")
    assert found[1].endswith(" %, cut short")


def test_a_use_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "load", lambda *source: 1 / 0)
    *_, fitted, _, _ = gpu.uses(torch.device("cpu"), tmp_path)
    assert fitted == "fitted: FAILED: ZeroDivisionError: division by zero"
