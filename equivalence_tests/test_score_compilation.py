"""Scores, their losses and normalisations compile as a whole: no graph break, nothing that waits for the device."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.test_normalisations import NORMALISATIONS
from prograde.equivalence_tests.test_score_losses import LOSSES
from prograde.equivalence_tests.test_scores import CLASSES, KINDS

pytestmark = [pytest.mark.places_itself, pytest.mark.usefixtures("ours_only")]


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what some versions of PyTorch import here
        torch._dynamo.reset()


def compiled(step: Any, *operands: Any) -> None:
    """Its results, by name, are those of the step itself."""
    found = torch.compile(step, fullgraph=True, backend="eager")(*operands)
    for name, other in step(*operands).items():
        for one, two in zip(found[name], other, strict=True):
            assert torch.equal(one, two), name


def test_scores(twin: Side) -> None:
    rng = np.random.default_rng(5)
    scores, learned = {}, {}
    for name, kind in KINDS.items():
        fixed, parameters = kind.arrays(6, 6 * int(np.prod(kind.grid or (3, 4))), rng)
        scores[name] = kind.make(twin, twin.operands(fixed))
        learned[name] = twin.operands(tuple(np.asarray(p) for p in parameters))

    def step(h: Any, gradient: Any, learned: Any) -> Any:
        found = {}
        for name, score in scores.items():
            credit, (cost, slopes) = score.credit(h, learned[name], gradient), score.penalty(learned[name])
            found[name] = score.value(h, learned[name]), credit.activities, *credit.parameters, cost, *slopes
        return found

    operands = twin.operands((rng.standard_normal((2, 6, 3, 4)), rng.standard_normal((2, CLASSES))))
    compiled(step, *operands, learned)


def test_losses(twin: Side) -> None:
    rng = np.random.default_rng(6)
    losses = {name: make(twin.score_losses) for name, make in LOSSES.items()}
    operands = twin.operands((rng.standard_normal((3, 4)), rng.integers(0, 4, 3)))
    compiled(lambda scores, labels: {name: loss(scores, labels) for name, loss in losses.items()}, *operands)


def test_normalisations(twin: Side) -> None:
    module = twin.normalisations

    def step(h: Any, gradient: Any) -> Any:
        found = {name: (normalise(module, h),) for name, normalise in NORMALISATIONS.items()}
        return found | {"batch_norm_vjp": (module.batch_norm_vjp(h, gradient),)}

    compiled(step, *twin.operands(np.random.default_rng(7).standard_normal((2, 3, 6, 3, 4))))


def test_aggregation(twin: Side) -> None:
    """But for the choice of a range, which is a number for the host."""
    rng = np.random.default_rng(8)
    module = twin.aggregation

    def step(scores: Any, losses: Any, labels: Any) -> Any:
        return {
            "last": (module.last(scores),),
            "total": (module.total(scores), module.range_total(scores, 1, 2)),
            "weighted": (module.weighted(scores, module.loss_weights(losses)),),
            "range_hits": (module.range_hits(scores, labels),),
        }

    scores, losses = twin.operands((rng.standard_normal((4, 3, 5)), rng.uniform(0, 2, 4)))
    compiled(step, scores, losses, twin.operands(rng.integers(0, 5, 3)))
