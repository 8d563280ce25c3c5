"""Whether FOTON uses depth: narrow networks of rotations on images of 4 x 4 pixels, beside layers that stay as drawn.

Every run is added to FOLDER/rotations.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the table of `rotations.md`.

Images are averaged to 4 x 4 pixels, each pixel standardised and doubled, so that tanh bends. A network is 16 to 16
with tanh, so many rotations by 0.6 with tanh, and scores: 2000 steps of 128 images by SGD with momentum 0.9, the rate
falling to 0 as a cosine. "frozen" trains the first layer and the scores by backpropagation, "last-layer" the scores
alone. Backpropagation has FOTON's constraint. Rates are those of RULES.

With --convolutions images have 8 x 8 pixels, taken as 4 channels of 4 x 4. Layers are orthogonal convolutions of 2 x 2,
rotations by 0.6 of ten of them and by 0.35 of thirty.
"""

import argparse
from collections.abc import Iterable
from math import cos, pi
from pathlib import Path

import torch
from resumable import Result, Run, cell, chosen, interval, markdown, paired, run_all
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, pixel_unshuffle

from prograde.accelerated.modules import OrthogonalConv2d, Rotation
from prograde.accelerated.rules import Foton
from prograde.accelerated.training import Dataset, load

PIXELS, CHANNELS, BATCH, STEPS = 4, 4, 128, 2000
ANGLES = {1: 0.6, 10: 0.6}
CONVOLUTIONAL_ANGLES = {10: 0.6, 30: 0.35}
"""By depth."""
RULES = {"last-layer": 0.1, "frozen": 0.1, "foton": 0.03, "foton-linear": 0.1, "backprop": 0.1}
"""With their learning rates."""


def network(rotations: int, num_classes: int) -> nn.Sequential:
    n = PIXELS**2
    hidden = [Rotation(n, ANGLES[rotations], nn.Tanh()) for _ in range(rotations)]
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), *hidden, nn.Linear(n, num_classes))


def convolutional_network(rotations: int, num_classes: int) -> nn.Sequential:
    angle = CONVOLUTIONAL_ANGLES[rotations]
    hidden = [Rotation(CHANNELS, angle, nn.Tanh(), kernel_size=2) for _ in range(rotations)]
    first, scores = OrthogonalConv2d(CHANNELS, CHANNELS, 2), nn.Linear(CHANNELS * PIXELS**2, num_classes)
    return nn.Sequential(first, nn.Tanh(), *hidden, nn.Flatten(), scores)


def few_pixels(dataset: Dataset, convolutions: bool) -> list[Tensor]:
    """Of the training, validation and test images, each (n, 16) or (n, 4, 4, 4)."""
    parts = (dataset.train, dataset.validation, dataset.test)
    maps = [part.images.float().unflatten(1, (1, *dataset.image_shape)) for part in parts]
    if convolutions:
        images = [pixel_unshuffle(adaptive_avg_pool2d(x, 2 * PIXELS), 2) for x in maps]
    else:
        images = [adaptive_avg_pool2d(x, PIXELS).flatten(1) for x in maps]
    mean, std = images[0].mean(dim=0), images[0].std(dim=0).clamp(min=1e-6)
    return [2 * (x - mean) / std for x in images]


def train(run: Run, dataset: Dataset) -> Result:
    """Accuracies in percent, None where training breaks down."""
    torch.manual_seed(run["seed"])
    convolutions = run.get("convolutions", False)
    model = (convolutional_network if convolutions else network)(run["depth"], dataset.num_classes)
    rule = Foton(model, linear=run["rule"] == "foton-linear")
    x, x_held, x_test = few_pixels(dataset, convolutions)
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


def summary(results: list[Result], depths: Iterable[int]) -> str:
    """Test accuracy as mean and standard deviation over seeds, rule by rule."""
    depths = list(depths)
    cells = [[cell(chosen(results, rule=rule, depth=depth), seeds=3) for depth in depths] for rule in RULES]
    return markdown([["rotations", *map(str, depths)], *([rule, *row] for rule, row in zip(RULES, cells, strict=True))])


def differences(results: list[Result], depths: Iterable[int]) -> str:
    """Less the frozen rotations, and of the most rotations less the fewest; means with intervals, in points."""
    depths = list(depths)
    few, many = depths[0], depths[-1]

    def less(rule: str, depth: int, other: str, at: int) -> str:
        runs, others = chosen(results, rule=rule, depth=depth), chosen(results, rule=other, depth=at)
        return interval(paired(runs, others)) if runs != others else ""

    heads = [f"{depth}, less frozen" for depth in depths]
    rows = [
        [rule, *(less(rule, depth, "frozen", depth) for depth in depths), less(rule, many, rule, few)] for rule in RULES
    ]
    return markdown([["rotations", *heads, f"{many} less {few}"], *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--convolutions", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(arguments.data)
    plain = {"data": Path(arguments.data).name, "steps": arguments.steps}
    depths = CONVOLUTIONAL_ANGLES if arguments.convolutions else ANGLES
    log = "convolutional_rotations.jsonl" if arguments.convolutions else "rotations.jsonl"
    if arguments.convolutions:
        plain["convolutions"] = True
    runs = [
        {**plain, "seed": seed, "depth": depth, "rule": rule, "rate": rate}
        for seed in arguments.seeds
        for depth in depths
        for rule, rate in RULES.items()
    ]
    results = run_all(runs, lambda run: train(run, dataset), arguments.folder / log)
    print(summary(chosen(results, **plain), depths))
