"""The benchmarks run, end to end, and say something finite."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import slug
from bench.stats import paired_ratios, summarise

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
EXPECTED = {
    ("node", "start_s"),
    ("ttft", "ttft_cold_ms"),
    ("ttft", "ttft_warm_ms"),
    ("ttft", "actors_cost_ms"),
    ("restore", "node_later_over_memcpy"),
    ("throughput", "actors_over_bare"),
}


def test_every_benchmark_appends_finite_figures(tmp_path):
    command = [sys.executable, "-m", "bench.run", "--quick", "--results", str(tmp_path)]
    said = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    (path,) = tmp_path.iterdir()
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["benchmark"], row["metric"]) for row in rows} >= EXPECTED
    assert all(math.isfinite(float(row["value"])) for row in rows)
    assert all(float(row["value"]) > 0 for row in rows if row["unit"] in {"x", "tok/s", "MiB"})
    assert all(int(row["runs"]) >= 1 for row in rows)


@pytest.mark.parametrize(
    ("cpu_model", "expected"),
    [
        ("AMD EPYC", "amd-epyc-2c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c-2c"),
        ("AMD Ryzen 9 5950X 16-Core Processor", "amd-ryzen-9-5950x-2c"),
    ],
)
def test_a_machine_is_named_by_cpu_and_cores(cpu_model, expected):
    assert slug(cpu_model, 2) == expected


def test_pairs_are_compared_within_their_round():
    ours, peers = [2.0, 30.0, 5.0], [1.0, 10.0, 5.0]
    assert summarise(paired_ratios(ours, peers)).median == 2.0
