"""No correct twin is refused: fresh examples of every property, in every precision, on several instruction sets.

    python -m prograde.equivalence_tests.soundness RESULTS.jsonl [--minutes 120] [--seed N] [--workers 2]

A job runs some test files with new examples in one precision and one of PLACES, an instruction set and a number of
threads, over which the examples are shared out; what FUNCTIONS names is run with more of them. The jobs come in an
order drawn from the seed: runs that are stopped early see different ones. The command goes on where it was stopped,
prints its seed and the kernels that were in force, and fails where a test did.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

EXAMPLES = 300
"""Of every property, in each precision."""

EXAMPLES_OF_FUNCTIONS = 10_000
"""Of the properties of FUNCTIONS."""

FUNCTIONS = {
    "test_losses.py": "test_cross_entropy or test_squared_error",
    "test_score_losses.py": "test_twin",
    "test_activations.py": "test_value_and_derivatives or test_difference",
    "test_goodness.py": "test_twin",
    "test_foton.py": "test_linear_orthogonal_network_gives_backprop",
    "test_recurrent_ftp.py": "test_every_step_of_a_linear_cell_has_the_same_inner_product_with_backprop",
}
"""Cheap functions and two theorems, by file and pytest's -k."""

PRECISIONS = ("float64", "float32", "bfloat16")

INSTRUCTION_SETS: dict[str, dict[str, str]] = {
    "all": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "SSE4.2": {
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "OPENBLAS_CORETYPE": "Nehalem",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}

KERNELS = """
import numpy, torch
found = [torch.backends.cpu.get_cpu_capability()]
dispatched = numpy._core._multiarray_umath.__cpu_features__
found.append("NumPy " + " ".join(name for name in ("X86_V2", "X86_V3", "X86_V4") if dispatched.get(name)))
try:
    import threadpoolctl
    found += [f"{pool['internal_api']} {pool.get('architecture', '')}" for pool in threadpoolctl.threadpool_info()]
except ImportError:
    pass
print(", ".join(found))
"""


PLACES = (("all", 1), ("AVX2", 2), ("SSE4.2", 1), ("all", 2))
"""Instruction sets and threads."""

FILES_A_JOB = 9


class Job(NamedTuple):
    """Test files, separated by spaces, in one configuration; `select` is pytest's -k."""

    files: str
    select: str
    dtype: str
    instructions: str
    threads: int
    examples: int


def jobs() -> Iterator[Job]:
    """Every job: all files in all configurations, then FUNCTIONS."""
    configurations = [(dtype, *place) for place in PLACES for dtype in PRECISIONS]
    files = sorted(path.name for path in Path(__file__).parent.glob("test_*.py") if "given(" in path.read_text())
    for chosen in (files[i : i + FILES_A_JOB] for i in range(0, len(files), FILES_A_JOB)):
        for configuration in configurations:
            yield Job(" ".join(chosen), "", *configuration, EXAMPLES // len(PLACES))
    for file, select in FUNCTIONS.items():
        for configuration in configurations:
            yield Job(file, select, *configuration, EXAMPLES_OF_FUNCTIONS // len(PLACES))


def environment(instructions: str, threads: int) -> dict[str, str]:
    # Threads of jobs that run at the same time would spend each other's processors while they wait.
    waiting = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    return {**os.environ, **INSTRUCTION_SETS[instructions], **waiting, "OMP_NUM_THREADS": str(threads)}


def run(job: Job, seed: int) -> dict[str, Any]:
    """The job's record: exit code, pytest's last line, and the names of tests that failed.

    Its seed is another in each of PLACES, which would draw the same examples else.
    """
    seed += PLACES.index((job.instructions, job.threads))
    names = [f"{__package__}.{file.removesuffix('.py')}" for file in job.files.split()]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", *names]
    command += ["-p", f"{__package__}.plugin", "-o", "consider_namespace_packages=true", "--import-mode=importlib"]
    command += ["--dtype", job.dtype, "--examples", str(job.examples), "--hypothesis-seed", str(seed)]
    command += ["-m", "hypothesis"]  # a mark that Hypothesis sets
    command += ["-k", job.select] if job.select else []
    started = time.perf_counter()
    done = subprocess.run(
        command, env=environment(job.instructions, job.threads), capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    code = 0 if done.returncode == 5 else done.returncode  # no test of these files depends on the precision
    seconds = round(time.perf_counter() - started, 1)
    return {**job._asdict(), "seed": seed, "code": code, "last": lines[-1], "failed": failed, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 0 where no test has failed so far, else 1."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.soundness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=120, help="after which no further job begins (default: 120)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="default: a new one, printed")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time (default: 2)")
    options = parser.parse_args(arguments)

    records = (
        [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    )
    done = {Job(*(record[field] for field in Job._fields)) for record in records}
    left = [job for job in jobs() if job not in done]
    random.Random(options.seed).shuffle(left)
    print(f"seed {options.seed}; {len(done)} jobs done, {len(left)} left")
    for instructions in INSTRUCTION_SETS:
        command = [sys.executable, "-c", KERNELS]
        print(
            instructions,
            subprocess.check_output(command, env=environment(instructions, 1), text=True).strip(),
            sep=": ",
        )
    deadline = time.monotonic() + 60 * options.minutes

    def attempt(job: Job) -> dict[str, Any] | None:
        return run(job, options.seed) if time.monotonic() < deadline else None

    with ThreadPoolExecutor(options.workers) as pool, options.results.open("a") as file:
        for record in filter(None, pool.map(attempt, left)):
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(*(record[field] for field in Job._fields), record["last"], flush=True)
            print(*record["failed"], sep="\n", end="\n" * bool(record["failed"]), flush=True)
    failed = sum(bool(record["code"]) for record in records)
    print(f"{len(records)} of {len(done) + len(left)} jobs done, {failed} of them with failures; seed {options.seed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
