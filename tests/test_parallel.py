"""Several processes make one training: what `two_processes.py` checks in each of two, and what follows a lost one."""

import itertools
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as sharded
from torch import Tensor, nn

from prograde.accelerated.parallel import DataParallel, LayerParallel
from prograde.accelerated.parallel.layer_parallel import _evenly
from prograde.accelerated.rules import MonoForward

SCRIPT = Path(__file__).with_name("two_processes.py")
OF_FOUR = "foton", "ftp, batch norm", "forward-forward, pairs", "mono-forward, images"
SECONDS = 240
"""After which processes are ended that have not ended by themselves."""


def started(folder: Path, *arguments: str, size: int = 2) -> list[subprocess.Popen[str]]:
    folder.mkdir(exist_ok=True)
    paths = {"PARALLEL_FOLDER": str(folder), "PARALLEL_STORE": str(folder / f"store-{arguments[0]}")}
    found = []
    paths |= {"WORLD_SIZE": str(size), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for rank in range(size):
        environment = os.environ | paths | {"RANK": str(rank)}
        command = [sys.executable, "-P", str(SCRIPT), *arguments]
        found.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return found


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What they have said; those that do not end in time are ended."""
    until = time.monotonic() + SECONDS
    said = []
    for process in processes:
        try:
            said.append(process.communicate(timeout=max(1, until - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            process.kill()
            said.append(f"did not end: {process.communicate()[0]}")
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave: of their checks, and of each kind of training one of them ended in its fifth step."""
    folder = tmp_path_factory.mktemp("processes")
    said = ended(started(folder, "checks,data,layers"))
    for name in ("results-0.json", "results-1.json", "lost-data.txt", "lost-layers.txt"):
        assert (folder / name).exists(), "\n".join(said)
    return folder


def test_two_processes_are_as_one(folder: Path) -> None:
    """Every check of `two_processes.py`, in both."""
    results = [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0].keys() == results[1].keys()
    failed = [f"{name}, process {rank}:\n{said}" for rank in (0, 1) for name, said in results[rank].items() if said]
    assert not failed, "\n".join(failed)


@pytest.mark.nightly
def test_four_processes_are_as_one(tmp_path: Path) -> None:
    names = [f"as one process: {name}" for name in OF_FOUR]
    names += ["processes stay in step", "layers in two processes as in one", "groups of two"]
    said = ended(started(tmp_path, "checks", *names, size=4))
    for rank in range(4):
        file = tmp_path / f"results-{rank}.json"
        assert file.exists(), "\n".join(said)
        assert json.loads(file.read_text()) == dict.fromkeys(names, ""), f"process {rank}"


@pytest.mark.parametrize("kind", ["data", "layers"])
def test_a_lost_process_ends_the_run_with_a_clear_word(folder: Path, kind: str) -> None:
    said = (folder / f"lost-{kind}.txt").read_text()
    assert said.startswith("process 0 of 2 lost another one")
    assert "start all of them again from the last checkpoint" in said


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_goes_on_from_what_two_have_saved(folder: Path) -> None:
    """Whoever has the state's names and shapes reads it: here without a process group, bit for bit."""
    rule, again = layered(), layered()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.05, momentum=0.9)
    for step in range(3):
        rule.assign_credit(*pictures(step))
        optimizer.step()
    state = {f"rule.{name}": value for name, value in again.state_dict().items()}
    sharded.load(state, checkpoint_id=folder / "saved", no_dist=True)
    for name, value in rule.state_dict().items():
        assert torch.equal(value, state[f"rule.{name}"]), name


def layered() -> MonoForward:
    """As in `two_processes.py`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Tanh(),
        nn.BatchNorm2d(8, affine=False), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(),
        nn.Linear(8, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 4),
    )  # fmt: skip
    return MonoForward(model)


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 8, 8, generator=drawn), torch.randint(4, (6,), generator=drawn)


@pytest.mark.parametrize("wrapper", [DataParallel, LayerParallel])
def test_without_a_process_group_it_is_said_what_to_call(wrapper: type[DataParallel] | type[LayerParallel]) -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        wrapper(layered())


def test_a_rule_does_not_hold_its_group(tmp_path: Path) -> None:
    """Threads of a group that something holds run on as Python ends, which brings the process down now and then."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for wrapper in (DataParallel, LayerParallel):
            group = dist.new_group([0])
            rule = wrapper(layered(), group=group)
            rule.assign_credit(*pictures(0))
            dist.destroy_process_group(group)
            held = weakref.ref(group)
            del group
            assert held() is None
            with pytest.raises(ValueError, match="destroy_process_group"):
                rule.processes.first("a word")
    finally:
        dist.destroy_process_group()


def test_units_are_split_so_that_the_largest_part_is_small() -> None:
    costs = [3, 9, 2, 7, 4, 4, 1]
    for parts in range(1, len(costs) + 1):
        split = _evenly(costs, parts)
        assert len(split) == parts
        cuts = itertools.combinations(range(1, len(costs)), parts - 1)
        largest = min(max(sum(costs[i:j]) for i, j in itertools.pairwise((0, *cut, len(costs)))) for cut in cuts)
        bounds = itertools.pairwise(itertools.accumulate(split, initial=0))
        assert max(sum(costs[i:j]) for i, j in bounds) == largest
