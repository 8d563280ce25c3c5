"""Changed images are what is said of them, every draw is as likely, and nothing but training data is changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional

from prograde.accelerated.training import Dataset, Epoch, Recipe, UserError, build, default_recipe, fit, load
from prograde.accelerated.training.data.augmentation import Augmentation


def moves(image: Tensor, shift: int, flip: bool) -> dict[tuple[int, int, bool], bytes]:
    """All that (channels, height, width) can become: crops of the image with its border repeated."""
    height, width = image.shape[1:]
    found = {}
    for mirrored in (False, True) if flip else (False,):
        wide = functional.pad((image.flip(2) if mirrored else image)[None], (shift,) * 4, mode="replicate")[0]
        for down in range(2 * shift + 1):
            for right in range(2 * shift + 1):
                crop = wide[:, down : down + height, right : right + width]
                found[down, right, mirrored] = crop.contiguous().numpy().tobytes()
    return found


@pytest.mark.parametrize(("shift", "flip"), [(1, False), (2, True), (0, True)])
@pytest.mark.parametrize("flat", [True, False])
def test_every_move_is_drawn_as_often(shift: int, flip: bool, flat: bool) -> None:
    image = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    names = {content: move for move, content in moves(image, shift, flip).items()}
    samples = 400 * len(names)
    x = image.flatten().expand(samples, -1) if flat else image.expand(samples, -1, -1, -1)
    found = Augmentation((2, 3, 4), shift, flip)(x, torch.Generator().manual_seed(0))
    assert found.shape == x.shape
    drawn = [names[row.numpy().tobytes()] for row in found]
    counts = torch.tensor([drawn.count(move) for move in names.values()], dtype=torch.float64)
    # Chi-square of m - 1 degrees: m is its mean but for 1, and five deviations of sqrt(2 m) are never seen.
    assert ((counts - 400) ** 2 / 400).sum() < len(names) + 5 * (2 * len(names)) ** 0.5


def test_grey_images_without_an_axis_of_channels_are_moved() -> None:
    image = torch.arange(12.0).view(1, 3, 4)
    found = Augmentation((3, 4), shift=1)(image.flatten(1).expand(50, -1), torch.Generator().manual_seed(0))
    assert {row.numpy().tobytes() for row in found} <= set(moves(image, 1, False).values())


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_square_is_cut_out_as_often(side: int, channels: int) -> None:
    x = (1 + torch.arange(channels * 3 * 4.0)).expand(4800, -1)
    found = Augmentation((channels, 3, 4), cutout=side, mean=-5.0)(x, torch.Generator().manual_seed(0))
    cut = found == -5
    assert torch.equal(found[~cut], x[~cut]), "the rest is as it was"
    cut = cut.view(-1, channels, 3, 4)
    assert torch.equal(cut, cut[:, :1].expand_as(cut)), "in every channel alike"
    expected = {}
    for row in range(3):
        for column in range(4):
            square = torch.zeros(3, 4, dtype=torch.bool)
            first = row - side // 2, column - side // 2
            square[max(0, first[0]) : first[0] + side, max(0, first[1]) : first[1] + side] = True
            expected[square.numpy().tobytes()] = expected.get(square.numpy().tobytes(), 0) + 400
    drawn = [square.numpy().tobytes() for square in cut[:, 0].contiguous()]
    counts = torch.tensor([drawn.count(square) for square in expected], dtype=torch.float64)
    assert counts.sum() == len(drawn)
    means = torch.tensor(list(expected.values()), dtype=torch.float64)
    assert ((counts - means) ** 2 / means).sum() < len(means) + 5 * (2 * len(means)) ** 0.5


def factors(jitter: float, samples: int, seed: int) -> Tensor:
    """(3, samples), by an image that shows them: its brightness, contrast and saturation, measured."""
    image = torch.tensor([[0.2, 0.6], [0.3, 0.5], [0.4, 0.4]], dtype=torch.float64)  # (channel, pixel)
    augmentation = Augmentation((3, 1, 2), jitter=jitter)
    found = augmentation(image.flatten().expand(samples, -1), torch.Generator().manual_seed(seed)).view(-1, 3, 2)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    grey, before = torch.einsum("c,ncp->np", luma, found), luma @ image
    brightness = grey.mean(dim=1) / before.mean()
    contrast = (grey[:, 1] - grey[:, 0]) / (before[1] - before[0]) / brightness
    saturation = (found[:, 0] - found[:, 1])[:, 0] / -0.1 / brightness / contrast
    return torch.stack([brightness, contrast, saturation])


def test_colours_are_jittered_by_independent_uniform_factors() -> None:
    drawn = factors(0.4, 20000, 0)
    assert drawn.min() >= 0.6 - 1e-12
    assert drawn.max() <= 1.4 + 1e-12
    for sorted_factors in drawn.sort(dim=1).values:  # Kolmogorov and Smirnov: 2 / sqrt(n) is exceeded once in 1500
        uniform = torch.linspace(0.6, 1.4, 20000, dtype=torch.float64)
        assert (sorted_factors - uniform).abs().max() < 0.8 * 2 / 20000**0.5
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 5 / 20000**0.5


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jittered_colours_are_those_of_pillow(mode: str) -> None:
    channels = len(mode)
    pixels = torch.randint(60, 160, (5, 6, channels), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x = pixels.permute(2, 0, 1).flatten().double() / 255
    found = Augmentation((channels, 5, 6), jitter=0.3)(x.expand(20, -1), torch.Generator().manual_seed(2))
    image = Image.fromarray(pixels.squeeze(2).numpy() if mode == "L" else pixels.numpy())
    generator = torch.Generator().manual_seed(2)
    draws = 0.7 + 0.6 * torch.rand(3, 20, generator=generator, dtype=torch.float64)
    for sample, (brightness, contrast, saturation) in zip(found, draws.T.tolist(), strict=True):
        expected = ImageEnhance.Brightness(image).enhance(brightness)
        expected = ImageEnhance.Contrast(expected).enhance(contrast)
        expected = ImageEnhance.Color(expected).enhance(saturation) if mode == "RGB" else expected
        values = torch.tensor(list(expected.tobytes())).view(5, 6, channels).permute(2, 0, 1).flatten()
        assert (255 * sample - values).abs().max() < 4, "bytes are cut off four times"


def test_standardised_images_change_as_others_do(digits: Dataset) -> None:
    """Black and mean are where standardisation has put them."""
    given = {"shift": 1, "flip": True, "cutout": 3, "jitter": 0.5}
    raw, standardised = (
        Augmentation.of(digits, standard, **given)(
            digits.to("cpu", torch.float64, standard).train.images, torch.Generator().manual_seed(0)
        )
        for standard in (False, True)
    )
    torch.testing.assert_close(raw, standardised * digits.std + digits.mean, rtol=0, atol=1e-12)


def test_without_moves_nothing_is_drawn_or_copied() -> None:
    x, generator = torch.rand(5, 12), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert Augmentation((12,))(x, generator) is x
    assert torch.equal(generator.get_state(), state)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def recipe(**changes: Any) -> Recipe:
    return default_recipe("forward-forward", "digits", **{"hidden": (24,), "epochs": 4, **changes})


def test_resuming_with_moved_images_is_exact(digits: Dataset, tmp_path: Path) -> None:
    path, chosen = tmp_path / "checkpoint", recipe(shift=1, flip=True, cutout=3, jitter=0.2)

    def train(**files: Any) -> tuple[list[float], list[Tensor]]:
        rule = build("forward-forward", digits, chosen, seed=0)
        history = fit(rule, digits, recipe=chosen, alignment_every=0, **files)
        return [epoch.loss for epoch in history.epochs], [p.detach().clone() for p in rule.parameters()]

    class Interrupted(Exception):
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise Interrupted

    whole = train()
    with pytest.raises(Interrupted):
        train(checkpoint=path, on_epoch=stop)
    losses, parameters = train(resume=path)
    assert losses == whole[0]
    assert all(torch.equal(a, b) for a, b in zip(parameters, whole[1], strict=True))


def test_moves_are_drawn_anew_in_every_batch(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    same = digits._replace(train=digits.train._replace(images=digits.train.images[:1].expand(256, -1)))
    same = same._replace(train=same.train._replace(labels=digits.train.labels[:1].expand(256)))
    seen: list[Tensor] = []
    rule = build("forward-forward", digits, recipe(), seed=0)
    monkeypatch.setattr(rule, "assign_credit", lambda x, y: (seen.append(x), torch.zeros(()))[1])
    for moves in ({"shift": 2}, {"flip": True}, {"cutout": 4}, {"jitter": 0.3}):
        seen.clear()
        fit(rule, same, recipe=recipe(epochs=2, batch=128, **moves), alignment_every=0)
        assert len(seen) == 4
        assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i]), moves


def test_training_images_alone_are_moved(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    chosen = recipe(shift=2, epochs=1)
    rule = build("forward-forward", digits, chosen, seed=0)
    assign, forward = rule.assign_credit, rule.forward

    def noting(kept: list[Tensor], function: Any) -> Any:
        return lambda x, *y: (kept.append(x), function(x, *y))[1]

    asked: list[Tensor] = []
    monkeypatch.setattr(rule, "assign_credit", noting(seen, assign))
    monkeypatch.setattr(rule, "forward", noting(asked, forward))
    fit(rule, digits, recipe=chosen, alignment_every=0)
    known = {row.numpy().tobytes() for split in (digits.train, digits.validation, digits.test) for row in split.images}
    assert len(torch.cat(asked)) == len(digits.validation.labels) + len(digits.test.labels)
    assert all(row.numpy().tobytes() in known for row in torch.cat(asked))
    unmoved = sum(row.numpy().tobytes() in known for row in torch.cat(seen))
    assert 0 < unmoved < len(digits.train.labels) / 10, "one move in 25 is none"


def test_impossible_moves_are_refused(digits: Dataset) -> None:
    for shift in (-1, 0.5, True):
        with pytest.raises(UserError, match=r"shift: .*, expected an integer, 0 or more"):
            recipe(shift=shift)
    rule = build("forward-forward", digits, recipe(), seed=0)
    with pytest.raises(UserError, match="shift: 8, expected less than the 8 pixels of a side"):
        fit(rule, digits, recipe=recipe(shift=8))
    with pytest.raises(UserError, match="cutout: 9, expected no more than the 8 pixels of a side"):
        fit(rule, digits, recipe=recipe(cutout=9))
    for jitter in (-0.1, 1, float("nan")):
        with pytest.raises(UserError, match=r"jitter: .*, expected a finite number, 0 or more and below 1"):
            recipe(jitter=jitter)
    with pytest.raises(UserError, match="flip: 'no', expected True or False"):
        recipe(flip="no")
    for moves in ({"shift": 1}, {"flip": True}, {"cutout": 2}, {"jitter": 0.1}):
        with pytest.raises(UserError, match=r"digits: samples of shape \(64,\), expected images"):
            fit(rule, digits._replace(image_shape=(64,)), recipe=recipe(**moves))
        for last in (1, 3, 4):
            with pytest.raises(UserError, match=r"6, \d\), expected \(channels, height, width\), channels first"):
                fit(rule, digits._replace(image_shape=(5, 6, last)), recipe=recipe(**moves))
    assert digits._replace(image_shape=(64, 4, 4)).channels_first == (64, 4, 4), "small maps are no colours"
