"""What was trained, run by another engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from prograde.accelerated.modules import small_cnn
from prograde.accelerated.rules import ForwardForward, MonoForward, Rule


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))


ONNX: dict[str, Callable[[], tuple[Rule, tuple[int, ...]]]] = {
    "every layer's scores": lambda: (MonoForward(small_cnn((4, 8), pool_after=(0,)), grid=2), (1, 8, 8)),
    "candidate labels": lambda: (ForwardForward(mlp()), (64,)),
}


@pytest.mark.parametrize("name", ONNX)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_another_engine_runs_it(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    rule, shape = ONNX[name]()
    path, batch = tmp_path / "model.onnx", torch.export.Dim("batch")
    program = torch.onnx.export(
        rule.export(), (torch.randn(2, *shape),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    x = torch.randn(7, *shape)
    (scores,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = rule.eval()(x).detach()
    torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3, "scores that differ"
