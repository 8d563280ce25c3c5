"""Checkpoints: what the file has, what it is refused for, and trainings that go on from it exactly."""

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from prograde.accelerated.rules import Foton, Rule
from prograde.accelerated.training import (
    Callback,
    CheckpointError,
    History,
    Recipe,
    Run,
    build,
    checkpoint,
    default_recipe,
    fit,
    load,
    restore,
)

CONTENT: dict[str, Any] = {
    "numbers": [1, -2.5, True, None, float("inf"), (3, (4, "five"))],
    "by number": {0: {"step": torch.tensor(7.0)}, 1: {}},
    "named": {"$tensor": 1, "a.b": "c"},
    "tensors": {
        "float64": torch.rand(2, 3, dtype=torch.float64), "bfloat16": torch.rand(3).bfloat16(),
        "int64": torch.arange(4), "bool": torch.tensor([True, False]), "uint8": torch.arange(5).byte(),
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0),
    },
}  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint", CONTENT)
    found = checkpoint.load(tmp_path / "checkpoint")
    torch.testing.assert_close(found["tensors"], CONTENT["tensors"], rtol=0, atol=0)
    assert repr(found) == repr(CONTENT), "tuples, keys, truth values and dtypes too"


def test_other_programs_read_it(tmp_path: Path) -> None:
    """With safetensors alone: tensors by name, settings as JSON."""
    path = tmp_path / "checkpoint"
    digits, recipe = load("digits"), default_recipe("foton", "digits", hidden=(8,), epochs=1)
    rule = build("foton", digits, recipe, seed=0)
    fit(rule, digits, recipe=recipe, checkpoint=path)
    with safetensors.safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["prograde"])
        weight = file.get_tensor("best.model.0.weight")
    assert np.array_equal(weight, rule.state_dict()["model.0.weight"].numpy())
    assert about["settings"]["rule"] == "Foton"
    assert about["settings"]["network"]["hidden"] == {"$tuple": [8]}
    assert [epoch["epoch"] for epoch in about["history"]] == [1]


def test_tied_tensors_are_stored_once_and_listed(tmp_path: Path) -> None:
    path, weight = tmp_path / "checkpoint", torch.rand(100, 100)
    content = {"rule": {"a": weight, "b": weight, "half": weight[:50], "turned": weight.T}, "other": weight.clone()}
    checkpoint.save(path, content)
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["prograde"])["tied"] == {"rule.b": "rule.a"}
        assert sorted(file.keys()) == ["other", "rule.a", "rule.half", "rule.turned"]
    torch.testing.assert_close(checkpoint.load(path), content, rtol=0, atol=0)


def test_the_order_of_memory_comes_back(tmp_path: Path) -> None:
    """Which fused optimizers read their state in."""
    path = tmp_path / "checkpoint"
    kernel = torch.rand(4, 3, 2, 5).to(memory_format=torch.channels_last)
    checkpoint.save(path, {"kernel": kernel, "turned": torch.rand(3, 4).T})
    found = checkpoint.load(path)["kernel"]
    assert torch.equal(found, kernel)
    assert found.stride() == kernel.stride() != torch.empty(4, 3, 2, 5).stride()
    assert checkpoint.load(path)["turned"].stride() == (1, 4)


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint: scheduler\.1\.by is a function, expected a tensor"):
        checkpoint.save(tmp_path / "checkpoint", {"scheduler": [0, {"by": lambda: 0}]})
    assert not list(tmp_path.iterdir())


# What it is refused for


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """A bit changed anywhere: in the length, in the header, in a name, in a number or in a tensor."""
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"name": "a", "number": 12345, "weight": torch.zeros(50)})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 5):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with contextlib.suppress(CheckpointError):
                found = checkpoint.load(path)
                assert (found["name"], found["number"]) == ("a", 12345), "what says nothing: spaces, the word pt"
                assert torch.equal(found["weight"], torch.zeros(50)), place
    for content in (whole[:-10], whole[:100], b"", b"text", whole + b"0", b"\xff" * 100, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint: .*truncated or no checkpoint of prograde"):
            checkpoint.load(path)
    path.write_bytes(whole[:-4] + b"\0\0\x80\x3f")
    with pytest.raises(CheckpointError, match=r"checkpoint: .* is damaged \(by its SHA-256\)"):
        checkpoint.load(path)


def test_another_versions_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", "prograde checkpoint 9")
        checkpoint.save(path, {"number": 1})
    with pytest.raises(CheckpointError, match=r"not written by this version of prograde \('prograde checkpoint 3'\)"):
        checkpoint.load(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of prograde"):
        checkpoint.load(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of prograde"):
        checkpoint.load(path)


def test_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("harm").touch, ())

    path = tmp_path / "checkpoint"
    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        write({"format": checkpoint.FORMAT, "weight": Payload()}, path)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    assert not (tmp_path / "harm").exists()


def forged(path: Path, tree: Any, tensors: dict[str, Tensor]) -> None:
    """A file of anyone's, with its checksum right."""
    text = tree if isinstance(tree, str) else json.dumps({"format": checkpoint.FORMAT, "tied": {}, **tree})
    metadata = {checkpoint.HEADER: text, checkpoint.DIGEST: checkpoint._digest(text, tensors)}
    path.write_bytes(safetensors.torch.save(tensors, metadata))


FORGED: dict[str, Any] = {
    "deep": '{"a": ' * 100_000, "no object": "[1]", "a number": "1" * 10_000, "no tensor": {"a": {"$tensor": "none"}},
    "tied to none": {"tied": {"a": "b"}}, "no list": {"tied": 3}, "an order": {"a": {"$tensor": "w", "order": [7, 7]}},
    "no pairs": {"a": {"$dict": [1, 2]}}, "a key": {"a": {"$dict": [[[1], 2]]}}, "no number": {"a": {"$float": "x"}},
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_strangers_file_is_refused(name: str, tmp_path: Path) -> None:
    forged(tmp_path / "checkpoint", FORGED[name], {"w": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="no checkpoint of prograde"):
        checkpoint.load(tmp_path / "checkpoint")


def test_a_strangers_network_takes_no_memory(tmp_path: Path) -> None:
    """One wider than the file's weights is refused before it is made; so is a training of no such settings."""
    path = tmp_path / "checkpoint"
    digits, recipe = load("digits"), default_recipe("foton", "digits", hidden=(8,), epochs=1)
    fit(build("foton", digits, recipe, seed=0), digits, recipe=recipe, checkpoint=path)
    whole = checkpoint.load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for hidden in ((12_000, 12_000), (8, 8), ("8",), (-1,)):
        settings = whole["settings"] | {"network": whole["settings"]["network"] | {"hidden": hidden}}
        checkpoint.save(path, whole | {"settings": settings})
        with pytest.raises(ValueError, match=r"cannot be made a rule of|hidden: width"):
            restore(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18, "KiB"
    for name in ("settings", "best", "optimizer", "generators", "history", "progress", "step"):
        for wrong in (None, 3, [1], {"a": 1}):
            checkpoint.save(path, whole | {name: wrong})
            with contextlib.suppress(CheckpointError):
                history = fit(build("foton", digits, recipe, seed=0), digits, recipe=recipe, resume=path)
                assert (name, wrong) in (("progress", None), ("step", 3)), history


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"number": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"number": 2})
    assert checkpoint.load(path) == {"number": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_the_name_of_a_file_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, after the file has its name: else a power failure might bring the old one back."""
    synced: list[tuple[bool, bool]] = []
    path = tmp_path / "checkpoint"
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append((stat.S_ISDIR(os.fstat(number).st_mode), path.exists()))
    )
    checkpoint.save(path, {"number": 1})
    assert synced == [(False, False), (True, True)]


# Trainings that go on


class Interrupted(Exception):
    pass


class Ending(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run) -> None:
        if run.step == self.step:
            raise Interrupted


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 10))


def pair(samples: int = 105) -> tuple[Tensor, Tensor]:
    part = load("digits").train
    return part.images[:samples], part.labels[:samples]


class Noisy(Dataset[Any]):
    """Samples that are drawn anew each time, from PyTorch's generator."""

    def __init__(self) -> None:
        self.x, self.y = pair()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + 0.1 * torch.randn(64), self.y[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(*pair(), strict=True)


def seeded() -> Any:
    return DataLoader(TensorDataset(*pair()), 20, shuffle=True, generator=torch.Generator().manual_seed(5))


DATA: dict[str, Callable[[], Any]] = {
    "Dataset": lambda: load("digits"),
    "pair": pair,
    "TensorDataset": lambda: TensorDataset(*pair()),
    "DataLoader": lambda: DataLoader(TensorDataset(*pair()), 20, shuffle=True),
    "DataLoader, workers": lambda: DataLoader(Noisy(), 20, shuffle=True, num_workers=2),
    "DataLoader, own generator": seeded,
    "DataLoader, noise": lambda: DataLoader(Noisy(), 20, shuffle=True),
    "stream": lambda: DataLoader(Stream(), 20),
}


def trained(name: str, **options: Any) -> tuple[list[Any], Rule]:
    """Everything that a training gives but how long it took."""
    data, rule = DATA[name](), Foton(model())
    options = {"validation": pair(40), "alignment_every": 2} | options
    if name == "Dataset":
        options |= {"recipe": Recipe(batch=300, shift=1, flip=True)}
        del options["validation"]
    elif "noise" in name:  # its last batch, which alignment is measured on, is not drawn again
        options |= {"alignment_every": 0}
    elif name == "stream":
        options |= {"max_steps": 18}
    elif name in ("pair", "TensorDataset"):
        options |= {"batch": 20}
    history: History = fit(rule, data, epochs=3, **options)
    return [
        [(e.epoch, e.loss, e.samples, e.validation_accuracy, e.validation_loss, e.alignment) for e in history.epochs],
        [parameter.detach().clone() for parameter in rule.parameters()],
    ], rule


@pytest.mark.parametrize("name", DATA)
def test_a_training_goes_on_amid_an_epoch_exactly(name: str, tmp_path: Path) -> None:
    """After every kind of step: the first, the middle ones, an epoch's last and the first of the next."""
    path = tmp_path / "checkpoint"
    whole, _ = trained(name)
    per_epoch = 4 if name == "Dataset" else 6
    for step in (1, 3, per_epoch, per_epoch + 1, 3 * per_epoch - 1) if "workers" not in name else (3, per_epoch):
        with pytest.raises(Interrupted):
            trained(name, checkpoint=path, checkpoint_every=1, overwrite=True, callbacks=[Ending(step)])
        torch.rand(step)  # whatever the process drew before
        assert checkpoint.load(path)["step"] == step
        torch.testing.assert_close(trained(name, resume=path)[0], whole, rtol=0, atol=0)


def test_ones_own_optimizer_and_accumulation_go_on_exactly(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    options: dict[str, Any] = {
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
        "scheduler": lambda optimizer: OneCycleLR(optimizer, 0.02, total_steps=9),
        "clip_norm": 0.5,
        "accumulate": 2,
    }
    whole, _ = trained("pair", **options)
    for step in (2, 3, 5):
        with pytest.raises(Interrupted):
            trained("pair", checkpoint=path, checkpoint_every=1, overwrite=True, callbacks=[Ending(step)], **options)
        torch.testing.assert_close(trained("pair", resume=path, **options)[0], whole, rtol=0, atol=0)
    for changes, message in (
        ({"accumulate": 3}, "has accumulate 2, expected 3"),
        ({"clip_norm": None}, "has clip_norm 0.5, expected None"),
        (
            {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)},
            "has own_optimizer AdamW, expected SGD",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            trained("pair", resume=path, **{**options, **changes})


def test_a_rate_that_follows_validation_goes_on_exactly(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    rates: dict[str, list[float]] = {"whole": [], "resumed": []}

    def plan(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0)  # nothing is good enough

    class Rates(Callback):
        def __init__(self, name: str) -> None:
            self.rates = rates[name]

        def on_step(self, run: Run) -> None:
            self.rates.append(run.optimizer.param_groups[0]["lr"])

    options: dict[str, Any] = {"scheduler": plan, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)}
    whole, _ = trained("pair", callbacks=[Rates("whole")], **options)
    with pytest.raises(Interrupted):
        trained("pair", checkpoint=path, checkpoint_every=1, callbacks=[Ending(14)], **options)
    found, _ = trained("pair", resume=path, callbacks=[Rates("resumed")], **options)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    assert rates["resumed"] == rates["whole"][14:]
    assert rates["whole"][0] > rates["whole"][-1]


def test_the_last_step_is_measured_though_the_training_was_killed_after_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    whole, _ = trained("pair", max_steps=8)
    with pytest.raises(Interrupted):
        trained("pair", max_steps=8, checkpoint=path, checkpoint_every=8, callbacks=[Ending(8)])
    assert checkpoint.load(path)["step"] == 8
    torch.testing.assert_close(trained("pair", max_steps=8, resume=path)[0], whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epoch", 2), ("loss", "0.1"), ("validation_accuracy", "0.9"), ("alignment", [1.0]), ("samples", 1.5)],
)
def test_a_strangers_epochs_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    """What is refused has changed nothing: neither has a checkpoint of another network, or of more epochs."""
    path = tmp_path / "checkpoint"
    trained("pair", checkpoint=path)
    whole = checkpoint.load(path)
    whole["history"][0][name] = value
    checkpoint.save(path, whole)
    with pytest.raises(CheckpointError, match="does not fit this training"):
        trained("pair", resume=path)


def test_a_checkpoint_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    path, (x, y) = tmp_path / "checkpoint", pair()
    fit(Foton(model()), (x, y), epochs=3, batch=20, checkpoint=path)
    whole = checkpoint.load(path)
    wider = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 11))
    state = whole["optimizer"]["state"]
    smaller = {**state[0], "momentum_buffer": state[0]["momentum_buffer"][:1]}
    forged = {"optimizer": {**whole["optimizer"], "state": {**state, 0: smaller}}}
    for epochs, net, content in (
        (1, model(), {}),
        (3, wider, {}),
        (3, model(), {"optimizer": {}}),
        (3, model(), forged),
    ):
        checkpoint.save(path, whole | content)
        rule = Foton(net)
        with torch.no_grad():
            rule.units[0].weights[0].mul_(-1)
        before = {name: tensor.clone() for name, tensor in rule.state_dict().items() if isinstance(tensor, Tensor)}
        with pytest.raises(CheckpointError):
            fit(rule, (x, y), epochs=epochs, batch=20, resume=path)
        for name, tensor in before.items():
            assert torch.equal(rule.state_dict()[name], tensor), name


def test_a_checkpoint_is_written_every_so_many_steps(tmp_path: Path) -> None:
    path, seen = tmp_path / "checkpoint", []

    class Noting(Callback):
        def on_step(self, run: Run) -> None:
            seen.append(checkpoint.load(path)["step"] if path.exists() else 0)

    trained("pair", checkpoint=path, checkpoint_every=4, callbacks=[Noting()])
    assert seen == [0, 0, 0, 4, 4, 4, 6, 8, 8, 8, 8, 12, 12, 12, 12, 16, 16, 16]
    assert checkpoint.load(path)["step"] == 18


def test_the_best_weights_are_kept_beside_the_last(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    (epochs, _), rule = trained("pair", checkpoint=path, optimizer=lambda p: torch.optim.SGD(p, lr=2.0))
    state = checkpoint.load(path)
    best = max(epochs, key=lambda epoch: epoch[3])[0]
    assert best < 3, "else the test says nothing"
    for name, tensor in rule.state_dict().items():
        if isinstance(tensor, Tensor):
            assert torch.equal(state["best"][name], tensor), name
    assert not torch.equal(state["rule"]["model.0.weight"], state["best"]["model.0.weight"])


def test_other_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    trained("pair", checkpoint=path)
    x, y = pair()
    with pytest.raises(
        CheckpointError, match=r"has data 'tuple' of 105 \+ 40 samples \(SHA-256 \w{8}\), expected data"
    ):
        fit(Foton(model()), (x + 1e-3, y), pair(40), epochs=3, batch=20, resume=path)


def train_on(path: Path, resume: bool, out: Path) -> None:
    torch.set_num_threads(1)
    data, rule = pair(205), Foton(model())
    files: dict[str, Any] = {"checkpoint": path, "checkpoint_every": 1, "resume": path if resume else None}
    history = fit(rule, data, data, epochs=10, batch=20, alignment_every=0, **files)
    found = [[epoch.loss, epoch.validation_accuracy, epoch.samples] for epoch in history.epochs]
    checkpoint.save(out, {"epochs": found, "rule": rule.state_dict()})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_killed_training_goes_on_exactly(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Killed at random moments, as often as asked for, some amid a write; what is there is always whole."""
    kills, seed = (request.config.getoption(option) for option in ("--kills", "--mutation-seed"))
    rng, context = random.Random(seed), multiprocessing.get_context("fork")
    path, out = tmp_path / "checkpoint", tmp_path / "out"

    def begun(resume: bool) -> Any:
        process = context.Process(target=train_on, args=(path, resume, out))
        process.start()
        return process

    def ended(process: Any) -> dict[str, Any]:
        process.join()
        assert process.exitcode == 0
        found = checkpoint.load(out)
        out.unlink()
        path.unlink()
        assert not list(tmp_path.iterdir()), "nothing is left of writes that were killed"
        return found

    start = time.monotonic()
    whole = ended(begun(False))
    seconds = time.monotonic() - start
    killed = amid_a_write = 0
    process = begun(False)
    while killed < kills:
        while not path.exists():
            time.sleep(1e-3)
        time.sleep(rng.uniform(0, seconds / 3))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed += 1
            checkpoint.load(path)
            amid_a_write += any(tmp_path.glob(".checkpoint.*"))
            process = begun(True)
        else:
            torch.testing.assert_close(ended(process), whole, rtol=0, atol=0)
            process = begun(False)
    torch.testing.assert_close(ended(process), whole, rtol=0, atol=0)
    print(f"{killed} kills, {amid_a_write} amid a write")
