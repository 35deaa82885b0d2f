"""The benchmarks run, end to end, with finite figures."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench import native_speed, peers, servers
from bench.machine import slug
from bench.run import BENCHMARKS
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
    ("speculation", "lookup_over_plain"),
    ("long_restore", "wrapper_later_over_memcpy"),
    ("long_restore", "restore_cold_over_read"),
    ("streaming", "delivered"),
    ("grammars", "known_later_ms"),
    ("grammars", "mask_us"),
    ("reply_parser", "parse"),
    ("streaming", "token_p50_added_ms"),
    ("streaming", "token_p99_saving_over_not"),
    ("node", "model_above_both_mib"),
    ("command_line", "own_time_ms"),
    ("agents_day", "computed_over_distinct"),
    ("agents_day", "stored_computed_again"),
    ("agents_day", "total_over_enough_ram"),
}
_BESIDE_OTHERS = ("servers", "native_speed", "long_restore", "streaming")
_ONE_MODEL = ("ttft", "restore", "agents", "conversation", "throughput", "command_line")
_EXACT = ("exactness", "exact_price")
_ROOM = ("room", "prefetch", "resume")
_DAY = ("agents_day",)
_NAMED = {*_DAY, *_BESIDE_OTHERS, *_ONE_MODEL, *_EXACT, *_ROOM}
_REST = tuple(name for name in BENCHMARKS if name not in _NAMED)
GROUPS = (_DAY, _BESIDE_OTHERS, _ONE_MODEL, _EXACT, _ROOM, _REST)
"""Every benchmark is in one of them, and none takes too long for one test."""
BESIDE_PEERS = {
    ("servers", "repeat_ttft_ours_over_server"),
    ("servers", "restart_ttft_ours_over_server"),
    ("servers", "shared_total_ours_over_server"),
    ("agents_day", "total_over_server"),
    ("native_speed", "prefill_ours_over_llama_bench"),
    ("native_speed", "decode_ours_over_batched_bench"),
}


@pytest.mark.parametrize("group", GROUPS, ids=[group[0] for group in GROUPS])
def test_every_benchmark_appends_finite_figures(group, tmp_path):
    command = [sys.executable, "-m", "bench.run", "--quick", "--results", str(tmp_path)]
    command += [f"--only={name}" for name in group]
    said = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    (path,) = tmp_path.iterdir()
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = EXPECTED if peers.missing(*peers.PROGRAMS) else EXPECTED | BESIDE_PEERS
    found = {(row["benchmark"], row["metric"]) for row in rows}
    assert found >= {one for one in expected if one[0] in group}
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


@pytest.mark.parametrize("benchmark", [servers, native_speed])
def test_a_benchmark_whose_peer_is_not_built_prints_how_to_build_it(
    benchmark, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    assert benchmark.main(True) == []
    assert f"{benchmark.NAME} is skipped" in (said := capsys.readouterr().out)
    assert peers.HOW in said


def test_a_peer_that_cannot_be_built_points_to_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "source", lambda _: tmp_path / "no source")
    assert peers.main(["--jobs", "1"]) == 1
    assert str(tmp_path / "build.log") in capsys.readouterr().err
    assert "no source" in (tmp_path / "build.log").read_text()
