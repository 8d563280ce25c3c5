"""What was trained, run without its rule: by torch.export in PyTorch, and by ONNX Runtime where that is installed.

Run it: python export.py                (half a minute on one core)
Expect: 94 % of the test images, by the rule, by PyTorch's file and by ONNX Runtime; their scores differ by less than
        1e-4, and all predictions are the same.
"""

import importlib.util
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from prograde.accelerated.modules import small_cnn
from prograde.accelerated.rules import MonoForward
from prograde.accelerated.training import Recipe, fit, load

torch.manual_seed(0)
digits = load("digits")
rule = MonoForward(small_cnn((16, 32), pool_after=(0,)), grid=2)
fit(rule, digits, recipe=Recipe(epochs=15, optimizer="adam", learning_rate=1e-2, momentum=0.0), seed=0)

test = digits.to("cpu", torch.float32, standardise=True).as_images().test
expected = rule.eval()(test.images).detach()
module: nn.Module = rule.export()  # every layer's classifier, and their sum
batch = torch.export.Dim("batch")
folder = Path(tempfile.mkdtemp())


def report(name: str, scores: torch.Tensor) -> None:
    share = (scores.argmax(dim=1) == test.labels).float().mean().item()
    same = (scores.argmax(dim=1) == expected.argmax(dim=1)).float().mean().item()
    apart = (scores - expected).abs().max().item()
    print(f"{name:13} {100 * share:.1f}% of the test images, {100 * same:.1f}% as the rule, scores {apart:.0e} apart")


report("the rule", expected)
program = torch.export.export(module, (test.images[:2],), dynamic_shapes=({0: batch},))
torch.export.save(program, folder / "digits.pt2")
report("torch.export", torch.export.load(folder / "digits.pt2").module()(test.images))

if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own functions
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(folder / "digits.onnx")
    session = onnxruntime.InferenceSession(folder / "digits.onnx")
    (scores,) = session.run(None, {session.get_inputs()[0].name: test.images.numpy()})
    report("ONNX Runtime", torch.from_numpy(scores))
