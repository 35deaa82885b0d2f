"""Memory pressure on a real node: the arena gives memory back, and sources may misbehave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.messages.pressure_settings import PressureSettings
from cache.reclaim import resident_bytes
from runtime import Node
from runtime.client.cache.upkeep import is_flushed
from runtime.embedded import path as embedded_model_path
from runtime.settings.config import RuntimeConfig
from supervision.messages import new_ref
from tests.support.nodes import free_port
from tests.support.runtime_nodes import LeakCheck, cli, one_thread, started, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

HIGH, LOW = 0.8, 0.4
SOURCE = '''
import os, pathlib, threading

def read():
    """What the control file says: a total, of which the arena is what is used; or how to fail."""
    words = pathlib.Path(os.environ["PRESSURE_FILE"]).read_text().split()
    if words[0] == "raise":
        raise RuntimeError("the gauge is broken")
    if words[0] == "hang":
        threading.Event().wait()
    return os.stat(words[1]).st_blocks * 512, int(words[0])
'''


class Gauge:
    """A node whose scheduler reads a source of the user's own, which this object controls."""

    def __init__(self, node: Node, control: Path, log: Path) -> None:
        self.node = node
        self.log = log
        self._control = control

    @property
    def arena(self) -> str:
        return str(status_of(self.node, "ram_tier")["arena"])

    @property
    def resident(self) -> int:
        return resident_bytes(self.arena)

    def says(self, total: int) -> None:
        self._write(f"{total} {self.arena}")

    def fails(self, how: str) -> None:
        self._write(how)

    def _write(self, words: str) -> None:
        new = self._control.with_suffix(".new")
        new.write_text(words)
        new.replace(self._control)

    def status(self) -> dict[str, Any]:
        return dict(status_of(self.node, "scheduler"))

    def ask(self, message: object) -> Any:
        return self.node.client.ask("scheduler", message)

    def fill(self) -> None:
        """Some 25 MB of rows, of five prompts that share nothing."""
        for number in range(5):
            words = " ".join(f"The number {number} comes before {n}." for n in range(150))
            self.node.complete("demo", words, max_tokens=1)


@pytest.fixture
def gauge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gauge]:
    (tmp_path / "own_gauge.py").write_text(SOURCE)
    control = tmp_path / "control"
    control.write_text("raise")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PRESSURE_FILE", str(control))
    settings = PressureSettings(
        source="own_gauge:read", high=HIGH, low=LOW, interval_s=0.05, timeout_s=1.0, tiers=("ram",)
    )
    with (
        LeakCheck() as leaks,
        started(
            tmp_path,
            config=RuntimeConfig(pressure=settings),
            port=free_port(),
            cache_disk=0,
            models={"demo": one_thread(embedded_model_path())},
        ) as node,
    ):
        yield Gauge(node, control, tmp_path / "node.log")
        leaks.watch(node)


def test_the_arena_shrinks_to_the_low_watermark_and_no_further(gauge: Gauge) -> None:
    gauge.fill()
    eventually(lambda: is_flushed(gauge.node.client), what="room that is reserved is filled")
    full = gauge.resident
    assert full > 10 << 20
    rows = status_of(gauge.node, "cache_meta")["rows"]
    total = int(full / 0.9)
    gauge.says(total)
    assert isinstance(gauge.ask(m.SetPressure(new_ref(), enabled=True)), m.PressureSet)
    eventually(lambda: gauge.resident <= LOW * total, what="the memory is returned")
    eventually(lambda: not gauge.status()["relieving"], what="relief ends")
    assert gauge.resident > LOW * total - (1 << 20)  # about three rows

    left = status_of(gauge.node, "cache_meta")
    assert 0 < left["rows"] < rows
    tier = left["tiers"]["ram"]
    assert tier["used_bytes"] <= gauge.resident  # no row lost its memory
    status = gauge.status()
    assert status["evictions"] == 1  # one relief, not one per reading
    assert status["last_action"]["returned_bytes"] >= full - LOW * total
    assert status["last_reading"]["where"] == "own_gauge:read"
    # What is left is whole, and the memory can be had again.
    gauge.ask(m.SetPressure(new_ref(), enabled=False))
    gauge.fill()
    assert gauge.resident > full // 2
    again = gauge.node.complete("demo", "The number 4 comes before 0. The number", max_tokens=4)
    assert again.usage.cached_tokens > 0


def test_memory_without_rows_is_returned_before_any_row_is_given_up(gauge: Gauge) -> None:
    gauge.fill()
    full, meta = gauge.resident, status_of(gauge.node, "cache_meta")
    namespace = gauge.node.client.ask("cache_meta", m.ListNamespaces(new_ref())).namespaces[0]
    removed, cursor = 0, 0
    while removed < meta["rows"] // 2 or cursor:
        answer = gauge.node.client.ask(
            "cache_meta", m.RemoveRows(new_ref(), m.Removal.ALL, namespace.root, cursor)
        )
        removed, cursor = removed + answer.rows, answer.cursor
    assert gauge.resident == full  # kept for the next rows, as long as its memory is not needed
    gauge.node.complete("demo", "Some new words to keep. " * 40, max_tokens=1)
    kept = status_of(gauge.node, "cache_meta")["rows"]
    assert kept > 0
    gauge.says(int(full / 0.9))
    gauge.ask(m.SetPressure(new_ref(), enabled=True))
    eventually(lambda: gauge.resident <= LOW * full / 0.9, what="the memory is returned")
    assert status_of(gauge.node, "cache_meta")["rows"] == kept


def test_a_source_that_fails_costs_one_warning_and_comes_back(gauge: Gauge) -> None:
    gauge.fails("raise")
    gauge.ask(m.SetPressure(new_ref(), enabled=True))
    eventually(lambda: gauge.status()["failures"] >= 5, what="it has failed several times")
    assert "the gauge is broken" in gauge.status()["trouble"]
    assert gauge.log.read_text().count("pressure source own_gauge:read failed") == 1
    assert gauge.ask(m.CheckPressure(new_ref())).outcome == "source_failed"
    gauge.says(1 << 40)
    eventually(lambda: gauge.status()["trouble"] is None, what="it works again")
    assert gauge.ask(m.CheckPressure(new_ref())).outcome == "below_watermark"


def test_a_source_that_hangs_holds_nothing_up_and_can_be_replaced(gauge: Gauge) -> None:
    gauge.fails("hang")
    gauge.ask(m.SetPressure(new_ref(), enabled=True))
    eventually(lambda: gauge.status()["trouble"], what="it is noticed")
    assert "no answer within 1 s" in gauge.status()["trouble"]
    assert gauge.ask(m.CheckPressure(new_ref())).outcome == "source_failed"
    assert gauge.log.read_text().count("pressure source own_gauge:read failed") == 1
    assert gauge.node.complete("demo", "Once upon a time", max_tokens=2).tokens
    gauge.ask(m.SetPressure(new_ref(), source="noop"))
    assert gauge.ask(m.CheckPressure(new_ref())).outcome == "below_watermark"
    gauge.ask(m.SetPressure(new_ref(), source="system"))
    checked = gauge.ask(m.CheckPressure(new_ref()))
    assert checked.total > 1 << 20
    gauge.ask(m.SetPressure(new_ref(), source="nvidia"))
    checked = gauge.ask(m.CheckPressure(new_ref()))
    if checked.outcome == "source_failed":  # a machine without a GPU reports what is missing
        assert "NVML" in gauge.status()["trouble"] or "nvidia-ml-py" in gauge.status()["trouble"]


def test_a_person_sees_and_changes_it_from_the_command_line(gauge: Gauge, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        where = {"port": gauge.node.port, "runtime_dir": tmp_path / "run"}
        return cli("cache", "pressure", *arguments, **where)

    gauge.says(1 << 40)
    assert run().stdout.startswith("off, source own_gauge:read")
    done = run("on", "--high", "0.9", "--tiers", "ram,disk", "--check", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["enabled"] is True
    assert status["settings"]["tiers"] == ["ram", "disk"]
    assert status["check"]["outcome"] == "below_watermark"
    assert run("--low", "0.95").returncode == 2
    gauge.fails("raise")
    failed = run("--check")
    assert failed.returncode == 1
    assert "the gauge is broken" in failed.stdout


def test_settings_change_while_it_runs_and_nonsense_changes_nothing(gauge: Gauge) -> None:
    gauge.says(1 << 40)
    assert gauge.ask(m.CheckPressure(new_ref())).outcome == "disabled"
    refused = gauge.ask(m.SetPressure(new_ref(), high=0.3))
    assert isinstance(refused, m.PressureRefused)
    assert refused.key == "high"
    assert gauge.status()["settings"]["high"] == HIGH
    done = gauge.ask(m.SetPressure(new_ref(), enabled=True, high=0.3, low=0.2, tiers=("disk",)))
    assert done.settings.tiers == ("disk",)
    before = gauge.status()["readings"]
    eventually(lambda: gauge.status()["readings"] > before + 2, what="it reads by itself")
    # A tier that is not there has nothing to evict, and that is reported.
    gauge.fill()
    gauge.says(gauge.resident)
    outcomes = {gauge.ask(m.CheckPressure(new_ref())).outcome for _ in range(3)}
    assert outcomes <= {"nothing_to_evict", "waiting_for_effect"}
