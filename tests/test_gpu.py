"""What `make gpu` runs, as far as a CPU can: FOTON's constraint and every rule's step."""

from pathlib import Path

from prograde.accelerated.rules import RULES
from prograde.equivalence_tests import gpu


def test_constraint_and_steps_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(str(tmp_path), "cpu", "constraint", "steps")
    machine, *defects = (tmp_path / "constraint.txt").read_text().splitlines()
    assert machine.startswith("cpu, PyTorch ")
    assert len(defects) == 4
    assert all(0 < float(line.split()[-1]) <= 5e-3 for line in defects), defects
    _, network, plain, *steps = (tmp_path / "steps.txt").read_text().splitlines()
    assert network == "64-128-64-10, batch 128"
    assert plain.split()[:3] == ["PyTorch", "backprop", "eager"]
    assert [line.split()[0] for line in steps] == list(RULES)
    assert all(float(line.split()[2]) > 0 for line in steps), steps
