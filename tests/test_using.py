"""Networks by name, configuration files, and what was trained put to use, on the command line."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from prograde.accelerated.command_line import options
from prograde.accelerated.command_line.app import app
from prograde.accelerated.command_line.rules import MODELS, tried
from prograde.accelerated.training import Recipe, UserError, build, checkpoint, default_recipe, load, restore
from prograde.accelerated.training.networks import NETWORKS, made, named
from prograde.accelerated.training.recipes import ALL_PRESETS, FURTHER_PRESETS, PRESETS

SMALL = "small-cnn:channels=(4,8),pool_after=(0,)"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="prograde")


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("prograde: error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


SIZES: dict[str, tuple[str, tuple[int, ...]]] = {
    "lenet": ("lenet", (28, 28)),
    "vgg8": ("vgg8:channels=(8,8,8,8,8,8,8)", (3, 32, 32)),
    "vgg11": ("vgg11:channels=(8,8,8,8,8,8,8,8)", (3, 32, 32)),
    "resnet17": ("resnet17:planes=(10,20)", (3, 16, 16)),
    "resnet18": ("resnet18:widths=(4,8)", (3, 16, 16)),
    "vit": ("vit:patch=7,width=16,depth=1,heads=2", (28, 28)),
    "small-cnn": (SMALL, (8, 8)),
    "tiny-cnn": ("tiny-cnn", (3, 16, 16)),
    "cfse": ("cfse:channels=(10,10)", (3, 16, 16)),
    "rnn": ("rnn:hidden_size=4", (8, 8)),
    "gru": ("gru:hidden_size=4", (8, 8)),
    "lstm": ("lstm:hidden_size=4", (8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_the_samples_that_it_is_made_for(name: str) -> None:
    model, sample = SIZES[name]
    found = made(model, sample, 10, torch.float64)
    assert found.example.dtype == torch.float64
    assert found.example.shape[1:] == (sample if len(sample) == 3 or "hidden_size" in model else (1, *sample))
    assert found.model(found.example).shape == (2, 10)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lenett", "did you mean lenet"),
        ("vit:7", "expected arguments as in vit:patch=7,depth=2"),
        ("vit:patch=__import__('os')", "expected arguments as in"),
        ("vit:**{}", "expected arguments as in"),
        ("a b:c", "package.module:factory"),
        ("mlp:12-x", "positive integers"),
        (3, "expected mlp:512-256"),
    ],
)
def test_names_that_are_none(model: Any, words: str) -> None:
    with pytest.raises(UserError, match="model: ") as refused:
        Recipe(model=model)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("model", "sample", "words"),
    [
        ("vit:size=3", (28, 28), "'size'"),
        ("vit:heads=5", (28, 28), "heads: 5"),
        ("lenet", (30,), "takes images"),
        ("vit", (28, 20), "square"),
        ("gru", (3, 8, 8), "takes sequences"),
        ("no_such_module:net", (8, 8), "can't be imported"),
        ("math:net", (8, 8), "module 'math' has no 'net'"),
        ("math:pi", (8, 8), "'math:pi'"),
        ("argparse:Namespace", (8, 8), "expected an nn.Module"),
    ],
)
def test_networks_that_cannot_be_made(model: str, sample: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match="model: ") as refused:
        made(model, sample, 10, torch.float32)
    assert words in str(refused.value)


def test_an_mlp_by_its_widths_is_the_same_recipe() -> None:
    assert Recipe(model="mlp:12-6") == Recipe(hidden=(12, 6))
    assert Recipe(model="lenet").hidden == ()
    with pytest.raises(UserError, match=r"dropout: 0\.5, but model 'lenet' has its own"):
        Recipe(model="lenet", dropout=0.5)
    assert default_recipe("hyperspherical", "digits", model="lenet").normalisation == "none"
    assert default_recipe("bptt", "digits", hidden=(8,)).model == "mlp"


def test_arguments_are_literals() -> None:
    assert named("vit:patch=7,depth=2") == ("vit", {"patch": 7, "depth": 2})
    assert named("own.nets:small:width=3") == ("own.nets:small", {"width": 3})


OWN = """
from torch import nn

def images(num_classes, image_channels, width=4):
    convolution = nn.Conv2d(image_channels, width, 3)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, num_classes))

def rows(features, num_classes):
    return nn.Sequential(nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, num_classes))

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh()), nn.Linear(8, num_classes)
        self.units = [self.first, self.last]
    def forward(self, x):
        return self.last(self.first(x))
"""


@pytest.mark.parametrize("model", ["own_nets:images:width=3", "own_nets:rows", "own_nets:Own"])
def test_a_network_of_the_user_s_is_trained_saved_and_run_only_by_its_name(model: str) -> None:
    Path("own_nets.py").write_text(OWN)
    sys.modules.pop("own_nets", None)
    done(run("train", "mono-forward", "--model", model, "--epochs", 1, "--save", "own.pt"))
    for command in (["evaluate", "own.pt"], ["predict", "own.pt", "digits"], ["train", "--resume", "own.pt"]):
        assert_refused(run(*command), "code that would be run", model)
        if command[0] != "train":
            done(run(*command, "--model", model))
    done(run("train", "--resume", "own.pt", "--model", model, "--epochs", 2))


@pytest.mark.parametrize("name", FURTHER_PRESETS)
def test_every_rule_is_trained_from_the_line(name: str) -> None:
    """Those of PRESETS are in test_command_line.py."""
    done(run("train", name, "--epochs", 1, "--save", "it.pt", "--batch", 300))
    trained = restore("it.pt")
    assert type(trained.rule) is ALL_PRESETS[name].rule
    assert done(run("evaluate", "it.pt")).stdout.endswith("test images of digits\n")


def test_a_resumed_training_knows_its_rule() -> None:
    done(run("train", "foton-linear", "--model", "mlp:12", "--epochs", 1, "--save", "it.pt"))
    printed = done(run("train", "--resume", "it.pt", "--epochs", 2)).stdout
    assert "foton-linear" in printed
    assert "64-12-10" in printed
    assert_refused(run("train"), "rule: none given", "--resume")
    assert_refused(run("train", "ftp", "--resume", "it.pt"), "rule: 'ftp'", "'it.pt' is of foton-linear")


def test_a_rule_refuses_a_network_by_its_own_sentence() -> None:
    assert_refused(run("train", "foton", "--model", SMALL), "foton: layer '0': Conv2d", "OrthogonalConv2d")
    assert_refused(run("train", "dfa", "--model", "lenet", "--hidden", "5"), "--hidden", "lenet")


def test_compare_takes_a_network_for_each_rule() -> None:
    printed = done(
        run("compare", f"mono-forward:{SMALL}", "mono-forward:12", "--epochs", 1, "--seeds", 1, "--output", "o")
    )
    assert SMALL in printed.stdout
    assert "64-12-10" in printed.stdout
    networks = [f"mono-forward:{SMALL}", "mono-forward:8", "mono-forward"]
    jobs = options.jobs(networks, "digits", "9-7", epochs=1)
    assert [job.hidden for job in jobs] == [SMALL, "8", "9-7"]
    jobs = options.jobs(networks, "digits", None, model="lenet")
    assert [job.hidden for job in jobs] == [SMALL, "8", "lenet"]
    done(run("report", "o", "--output", "page.html"))
    assert SMALL in Path("page.html").read_text()


CONFIG = f"""
rule = "mono-forward"
model = "{SMALL}"
epochs = 1
learning-rate = 0.02
optimizer = "sgd"
schedule = "constant"
standardise = false
flip = true

[options]
grid = 2
first_layer = 1
"""


def test_a_configuration_file_stands_for_the_line_which_comes_first() -> None:
    Path("c.toml").write_text(CONFIG)
    done(run("train", "--config", "c.toml", "--save", "it.pt", "--learning-rate", 0.05))
    recipe = restore("it.pt").recipe
    expected = Recipe(
        model=SMALL, epochs=1, learning_rate=0.05, momentum=0.0, schedule="constant", standardise=False, flip=True,
        options={"grid": 2, "first_layer": 1},
    )  # fmt: skip
    assert recipe == expected
    done(run("train", "--config", "c.toml", "--save", "other.pt", "--set", "schedule=steps", "--epochs", 2))
    assert (restore("other.pt").recipe.schedule, restore("other.pt").recipe.epochs) == ("steps", 2)
    assert not restore("other.pt").recipe.standardise, "--set replaces what has its name alone"
    done(run("train", "--config", "c.toml", "--save", "third.pt", "--option", "first_layer=0"))
    assert restore("third.pt").recipe.options == {"grid": 2, "first_layer": 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", ["--config: 'epoch'", "did you mean epochs"]),
        ("epochs = 2.5", ["epochs"]),
        ("epochs = 1979-05-27", ["epochs", "expected a string, a number"]),
        ("epochs =", ["no TOML"]),
        ('schedule = "cosin"', ["schedule", "did you mean cosine"]),
        ("[options]\ngrids = 2", ["grids", "did you mean grid"]),
        ("option = 3", ["'option'"]),
        ("learning-rate = 0.1\nlearning_rate = 0.2", ["learning_rate twice"]),
    ],
)
def test_configuration_files_that_are_refused(text: str, words: list[str]) -> None:
    Path("c.toml").write_text('rule = "mono-forward"\n' + text)
    assert_refused(run("train", "--config", "c.toml"), *words)
    assert os.listdir() == ["c.toml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "rate=3"], ["--set: 'rate'"]),
        (["--set", "epochs"], ["--set: 'epochs'", "NAME=VALUE"]),
        (["--set", "epochs=2", "--epochs", 3], ["--set: epochs is 2", "--epochs is given too"]),
        (["--set", "hidden=8", "--hidden", "9"], ["--hidden is given too"]),
        (["--set", "options=3"], ["--option NAME=VALUE"]),
        (["--set", "standardise=maybe"], ["standardise", "True or False"]),
        (["--config", "none.toml"], ["none.toml"]),
        (["--checkpoint-every", 5], ["--checkpoint-every: 5", "--save FILE"]),
    ],
)
def test_settings_that_are_refused(arguments: list[Any], words: list[str]) -> None:
    assert_refused(run("train", "foton", *arguments), *words)
    assert os.listdir() == []


def rows(result: Result) -> list[list[str]]:
    return [line.split(",") for line in done(result).stdout.splitlines()]


@pytest.mark.parametrize("model", ["mlp:12", SMALL])
def test_predictions_are_those_of_the_rule(model: str) -> None:
    done(run("train", "mono-forward", "--model", model, "--epochs", 3, "--save", "it.pt"))
    trained, digits = restore("it.pt"), load("digits")
    scores = trained.rule(trained.prepare(digits.test.images)).detach()
    pixels = (255 * digits.test.images).round()
    assert torch.equal(trained.prepare(pixels.byte().numpy()), trained.prepare(pixels / 255)), "bytes are pixels"
    with pytest.raises(UserError, match="pictures: values to 255, far from those that the network was trained on"):
        trained.prepare(pixels, "pictures")
    header, *found = rows(run("predict", "it.pt", "digits", "--scores"))
    assert header == ["sample", "class", *map(str, range(10))]
    assert [row[0] for row in found] == [str(i) for i in range(360)]
    assert [int(row[1]) for row in found] == scores.argmax(dim=1).tolist()
    np.testing.assert_allclose(np.array(found)[:, 2:].astype(float), scores.numpy(), rtol=1e-4, atol=1e-5)
    share = np.mean([int(row[1]) == label for row, label in zip(found, digits.test.labels, strict=True)])
    assert f"{100 * share:.2f} %" in run("evaluate", "it.pt").stdout

    pixels = (255 * digits.test.images[:5].view(5, 8, 8)).round().byte().numpy()
    np.save("bytes.npy", pixels)
    np.save("rows.npy", (pixels / 255).reshape(5, 64))
    Path("pictures").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(f"pictures/{number}.png")
    first = [row[1] for row in rows(run("predict", "it.pt", "bytes.npy"))[1:]]
    assert first == [row[1] for row in rows(run("predict", "it.pt", "rows.npy"))[1:]]
    pictures = rows(run("predict", "it.pt", "pictures"))[1:]
    assert [row[0] for row in pictures] == [f"{number}.png" for number in range(5)]
    assert [row[1] for row in pictures] == first
    assert rows(run("predict", "it.pt", "pictures/3.png"))[1:] == [["3.png", first[3]]]

    np.save("far.npy", 255.0 * (pixels / 255))
    np.save("other.npy", np.zeros((2, 9)))
    np.save("holes.npy", np.full((2, 64), np.nan))
    np.save("names.npy", np.array([["a", "b"]]))
    assert_refused(run("predict", "it.pt", "far.npy"), "far.npy: values to 255", "0..1")
    assert_refused(run("predict", "it.pt", "other.npy"), "shape (9,)", "(8, 8)")
    assert_refused(run("predict", "it.pt", "holes.npy"), "NaN")
    assert_refused(run("predict", "it.pt", "names.npy"), "expected real numbers")
    assert_refused(run("predict", "it.pt", "nowhere"), "nowhere")
    assert_refused(run("predict", "it.pt", "rows.npy", "--output", "no/a.csv"), "'no/a.csv'", "is not there")
    assert_refused(run("predict", "far.npy", "digits"), "checkpoint")

    done(run("predict", "it.pt", "bytes.npy", "--output", "found.csv"))
    written = Path("found.csv").read_text()
    assert written.startswith("sample,class\n0,")
    assert_refused(run("predict", "it.pt", "rows.npy", "--output", "found.csv"), "--overwrite")
    assert Path("found.csv").read_text() == written
    done(run("predict", "it.pt", "pictures", "--output", "found.csv", "--overwrite"))
    assert Path("found.csv").read_text() != written


def test_classes_are_predicted_by_their_names() -> None:
    x = np.random.default_rng(0).normal(size=(60, 5))
    y = np.arange(60) % 3
    x[np.arange(60), y] += 9
    np.savez("d.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6], classes=["ash", "birch", "cedar"])
    done(run("train", "backprop", "--data", "d.npz", "--hidden", "8", "--epochs", 80, "--save", "it.pt"))
    assert_refused(run("evaluate", "it.pt"), "trained on 'd'", "--data")
    assert "of 6 test images of d" in done(run("evaluate", "it.pt", "--data", "d.npz")).stdout
    trained = restore("it.pt")
    found = trained.rule(trained.prepare(load("d.npz").test.images)).argmax(dim=1)
    named = [("ash", "birch", "cedar")[label] for label in found]
    assert len(set(named)) > 1
    assert [row[1] for row in rows(run("predict", "it.pt", "d.npz"))[1:]] == named


def test_a_table_is_measured_by_the_columns_and_classes_of_training() -> None:
    rng = np.random.default_rng(0)
    x, kinds = rng.normal(size=(60, 2)), np.array(["ash", "fir"])[np.arange(60) % 2]

    def write(path: str, header: str, names: dict[str, str]) -> None:
        lines = [f"{a:g},{b:g},{names[kind]}" for (a, b), kind in zip(x, kinds, strict=True)]
        Path(path).write_text("\n".join([header, *lines, ""]))

    write("d.csv", "height,width,y", {"ash": "ash", "fir": "fir"})
    write("swapped.csv", "width,height,y", {"ash": "ash", "fir": "fir"})
    write("renamed.csv", "height,width,y", {"ash": "oak", "fir": "fir"})
    done(run("train", "backprop", "--data", "d.csv", "--hidden", "8", "--epochs", 1, "--save", "it.pt"))
    done(run("evaluate", "it.pt", "--data", "d.csv"))
    refused = "columns width, height, expected height, width, in this order"
    assert_refused(run("evaluate", "it.pt", "--data", "swapped.csv"), refused)
    assert_refused(run("evaluate", "it.pt", "--data", "renamed.csv"), "classes fir, oak", "trained on ash, fir")


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_every_row_of_a_table_is_predicted_by_its_columns(end: str) -> None:
    """In the order of its rows, whatever the order of its columns and whichever else it has, without labels."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    a, b = np.random.default_rng(0).normal(size=(2, 60))
    a += np.where(np.arange(60) % 3, 4, -4)
    kinds = np.where(a > 0, "ash", "fir").tolist()

    def write(path: str, columns: dict[str, list[Any]]) -> None:
        if end == "parquet":
            parquet.write_table(pyarrow.table(columns), path)
        else:
            lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
            Path(path).write_text("\n".join([",".join(columns), *lines, ""]))

    write(f"d.{end}", {"height": a.tolist(), "width": b.tolist(), "y": kinds})
    write(f"new.{end}", {"name": ["it"] * 60, "width": b.tolist(), "height": a.tolist()})
    write(f"less.{end}", {"height": a.tolist()})
    few = ["--hidden", "16", "--epochs", 60, "--validation", 20]
    done(run("train", "backprop", "--data", f"d.{end}", *few, "--save", "it.pt"))
    found = rows(run("predict", "it.pt", f"new.{end}"))[1:]
    assert [row[0] for row in found] == [str(number) for number in range(60)]
    trained, x = restore("it.pt"), torch.tensor(np.stack([a, b], axis=1))
    expected = [trained.classes[label] for label in trained.rule(trained.prepare(x)).argmax(dim=1)]
    assert [row[1] for row in found] == expected
    assert sum(guess == kind for guess, kind in zip(expected, kinds, strict=True)) > 50
    assert rows(run("predict", "it.pt", f"d.{end}:y"))[1:] == found
    assert_refused(run("predict", "it.pt", f"less.{end}"), f"less.{end}: no column 'width', expected height, width")


def test_a_file_cannot_make_code_run(monkeypatch: pytest.MonkeyPatch) -> None:
    done(run("train", "mono-forward", "--model", "mlp:8", "--epochs", 1, "--save", "it.pt"))
    state = checkpoint.load("it.pt")
    Path("evil.py").write_text("raise SystemExit('run')")
    state["settings"]["network"] |= {"model": "evil:net", "hidden": (), "dropout": 0.0}
    monkeypatch.setattr(checkpoint, "load", lambda path: state)
    with pytest.raises(checkpoint.CheckpointError, match="code that would be run"):
        restore("it.pt")
    assert_refused(run("predict", "it.pt", "digits"), "code that would be run")
    assert "evil" not in sys.modules


def test_rules_says_what_trains_what() -> None:
    printed = done(run("rules")).stdout
    table = {line.split()[0]: line.split()[2:] for line in printed.splitlines() if line.strip()[:1].isalpha()}
    assert set(ALL_PRESETS) <= set(table)
    kinds = list(MODELS)
    assert table["foton"] == ["yes" if kind in ("MLP", "orthogonal CNN") else "–" for kind in kinds]
    assert table["mono-forward"] == ["–" if kind in ("orthogonal CNN", "RNN") else "yes" for kind in kinds]
    assert table["bptt"] == ["yes" if kind == "RNN" else "–" for kind in kinds]
    assert "MLP: yes; leaves out 4 (in no unit" in done(run("rules", "mono-forward")).stdout
    of_one = done(run("rules", "pepita")).stdout
    assert "MLP: yes\n" in of_one
    for words in ("prograde.accelerated.rules.Pepita", "RNN: no;", "presynaptic: 'clean' or 'modulated'; 'modulated'"):
        assert words in of_one
    assert_refused(run("rules", "fotom"), "did you mean foton")


def test_a_table_of_rules_is_true() -> None:
    assert isinstance(tried(ALL_PRESETS["foton"].rule, "CNN"), str)
    assert isinstance(tried(ALL_PRESETS["dfa"].rule, "ViT"), ALL_PRESETS["dfa"].rule)


def test_the_shell_completes_rules_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for line, expected in (
        ("prograde train fot", "foton"),
        ("prograde train foton --model resn", "resnet18"),
        ("prograde pre", "predict"),
    ):
        variables = {
            "_PROGRADE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1),
        }  # fmt: skip
        result = CliRunner().invoke(app, [], prog_name="prograde", env=variables)
        assert expected in result.output.split()


def test_building_a_named_network_repeats_itself() -> None:
    digits = load("digits")
    recipe = default_recipe("mono-forward", "digits", model=SMALL)
    one, same, other = (build("mono-forward", digits, recipe, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert len(PRESETS) + len(FURTHER_PRESETS) == len(ALL_PRESETS)


def test_pictures_in_colour_and_grey_ones_among_them() -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 48), ("test", 6)):
        for label, kind in enumerate(("red", "blue")):
            Path(f"pictures/{part}/{kind}").mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 * label] += 120
                Image.fromarray(pixels).save(f"pictures/{part}/{kind}/{number}.png")
    model = "resnet18:widths=(4,8)"
    done(
        run(
            "train",
            "mono-forward",
            "--data",
            "pictures",
            "--model",
            model,
            "--epochs",
            10,
            "--batch",
            8,
            "--validation",
            16,
            "--save",
            "it.pt",
        )
    )
    found = rows(run("predict", "it.pt", "pictures/test/blue"))[1:]
    assert [row[1] for row in found] == ["blue"] * 6
    assert [row[1] for row in rows(run("predict", "it.pt", "pictures/test/red"))[1:]] == ["red"] * 6
    Image.fromarray(np.full((8, 8), 100, dtype=np.uint8)).save("grey.png")
    assert rows(run("predict", "it.pt", "grey.png"))[1][0] == "grey.png"
    Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save("other.png")
    assert_refused(run("predict", "it.pt", "other.png"), "shape (3, 9, 8)", "(3, 8, 8)")
