"""Whether FOTON uses depth: narrow networks of rotations on images of 4 x 4 pixels, beside layers that stay as drawn.

Every run is added to FOLDER/rotations.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the table of `rotations.md`.

Images are averaged to 4 x 4 pixels, each pixel standardised and doubled, so that tanh bends. A network is 16 to 16
with tanh, so many rotations by 0.6 with tanh, and scores: 2000 steps of 128 images by SGD with momentum 0.9, the rate
falling to 0 as a cosine. "frozen" trains the first layer and the scores by backpropagation, "last-layer" the scores
alone. Backpropagation has FOTON's constraint. Rates are those of RULES.
"""

import argparse
from math import cos, pi
from pathlib import Path

import torch
from resumable import Result, Run, cell, chosen, markdown, run_all
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from prograde.accelerated.modules import Rotation
from prograde.accelerated.rules import Foton
from prograde.accelerated.training import Dataset, load

PIXELS, ANGLE, BATCH, STEPS = 4, 0.6, 128, 2000
DEPTHS = (1, 10)
RULES = {"last-layer": 0.1, "frozen": 0.1, "foton": 0.03, "foton-linear": 0.1, "backprop": 0.1}
"""With their learning rates."""


def network(rotations: int, num_classes: int) -> nn.Sequential:
    n = PIXELS**2
    hidden = [Rotation(n, ANGLE, nn.Tanh()) for _ in range(rotations)]
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), *hidden, nn.Linear(n, num_classes))


def few_pixels(dataset: Dataset) -> list[Tensor]:
    """Of the training, validation and test images, each (n, 16)."""
    parts = (dataset.train, dataset.validation, dataset.test)
    maps = [part.images.float().unflatten(1, (1, *dataset.image_shape)) for part in parts]
    images = [adaptive_avg_pool2d(x, PIXELS).flatten(1) for x in maps]
    mean, std = images[0].mean(dim=0), images[0].std(dim=0).clamp(min=1e-6)
    return [2 * (x - mean) / std for x in images]


def train(run: Run, dataset: Dataset) -> Result:
    """Accuracies in percent, None where training breaks down."""
    torch.manual_seed(run["seed"])
    model = network(run["depth"], dataset.num_classes)
    rule = Foton(model, linear=run["rule"] == "foton-linear")
    x, x_held, x_test = few_pixels(dataset)
    if run["rule"] == "last-layer":
        with torch.no_grad():
            x, x_held, x_test = (model[:-1](part) for part in (x, x_held, x_test))
        model = model[-1:]
    elif run["rule"] == "frozen":
        model[2:-1].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], run["rate"], momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + cos(pi * step / run["steps"])) / 2)
    for _ in range(run["steps"]):
        batch = torch.randint(len(x), (BATCH,))
        z, y = x[batch], dataset.train.labels[batch]
        if run["rule"].startswith("foton"):
            rule.assign_credit(z, y)
        else:
            optimizer.zero_grad()
            cross_entropy(model(z), y).backward()
        optimizer.step()
        if run["rule"] != "last-layer":
            try:
                rule.constrain(optimizer)
            except FloatingPointError as error:
                return {"accuracy": None, "why": str(error)}
        schedule.step()
    sets = ((x_held, dataset.validation.labels), (x_test, dataset.test.labels))
    with torch.no_grad():
        held, test = (100 * (model(z).argmax(dim=1) == y).double().mean().item() for z, y in sets)
    return {"accuracy": test, "validation": held}


def summary(results: list[Result]) -> str:
    """Test accuracy as mean and standard deviation over seeds, rule by rule."""
    cells = [[cell(chosen(results, rule=rule, depth=depth)) for depth in DEPTHS] for rule in RULES]
    return markdown([["rotations", *map(str, DEPTHS)], *([rule, *row] for rule, row in zip(RULES, cells, strict=True))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(arguments.data)
    plain = {"data": Path(arguments.data).name, "steps": arguments.steps}
    runs = [
        {**plain, "seed": seed, "depth": depth, "rule": rule, "rate": rate}
        for seed in arguments.seeds
        for depth in DEPTHS
        for rule, rate in RULES.items()
    ]
    results = run_all(runs, lambda run: train(run, dataset), arguments.folder / "rotations.jsonl")
    print(summary(chosen(results, **plain)))
