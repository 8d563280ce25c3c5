"""Forward Target Propagation in plain Python lists: a third implementation, held to the golden vectors.

Every number of an implementation in any language can be held to the reference so: read the operands of a case, compute,
compare with the results. Prints the error of each update beside the largest one allowed.
"""

from math import exp, tanh
from pathlib import Path
from tempfile import TemporaryDirectory

from prograde.equivalence_tests import vectors

Rows = list[list[float]]


def times(rows: Rows, matrix: Rows) -> Rows:
    """Every row times the transposed matrix."""
    return [[sum(a * b for a, b in zip(row, other, strict=True)) for other in matrix] for row in rows]


def layer(z: Rows, weight: Rows, bias: list[float], last: bool) -> Rows:
    a = [[value + b for value, b in zip(row, bias, strict=True)] for row in times(z, weight)]
    return a if last else [[tanh(value) for value in row] for row in a]


def softmax(row: list[float]) -> list[float]:
    powers = [exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def update(delta: Rows, z: Rows) -> tuple[Rows, list[float]]:
    """1/B delta^T z for the weight, the mean of delta for the bias."""
    columns = list(zip(*delta, strict=True))
    weight = [[sum(d * v for d, v in zip(u, w, strict=True)) / len(z) for w in zip(*z, strict=True)] for u in columns]
    return weight, [sum(column) / len(z) for column in columns]


def ftp(weights: list[Rows], biases: list[list[float]], feedback: Rows, x: Rows, labels: list[int]):
    """Equations (1) to (6) of `prograde.reference.ftp` for dense layers with tanh."""
    depth = len(weights)
    h = [x]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        h.append(layer(h[-1], weight, bias, number == depth))
    outputs = [softmax(row) for row in h[-1]]
    error = [[p - (k == y) for k, p in enumerate(row)] for row, y in zip(outputs, labels, strict=True)]
    correction = times(error, feedback)
    target = [[v - c for v, c in zip(*rows, strict=True)] for rows in zip(h[1], correction, strict=True)]
    found = []
    for number in range(1, depth):
        pairs = zip(h[number], target, strict=True)
        delta = [[(1 - v * v) * (v - t) for v, t in zip(*rows, strict=True)] for rows in pairs]
        found.append(update(delta, h[number - 1]))
        target = layer(target, weights[number], biases[number], number == depth - 1)
    return [*found, update(error, h[-2])]


def test_ftp(folder: Path) -> None:
    vectors.write(folder, ["ftp"])
    case = next(vectors.read(folder / "ftp.json"))
    given = {name: [a.tolist() for a in v] if isinstance(v, tuple) else v.tolist() for name, v in case.operands.items()}
    updates = ftp(given["weights"], given["biases"], given["of_first"], given["x"], given["labels"])
    for path, (error, bound) in vectors.distances(case, updates, "float64").items():
        print(f"{path}: error {error:.1e}, bound {bound:.1e}")
        assert error <= bound


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        test_ftp(Path(folder))
    print("FTP in plain Python agrees with the reference")
