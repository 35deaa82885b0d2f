"""Memory pressure: when relief begins, how much is asked for, when it ends; and its sources."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.messages.pressure_settings import BadPressureSetting, PressureSettings, settings_from
from actors.node.pressure_policy import (
    Decision,
    PressureCore,
    Reading,
    Verdict,
    settle_s,
)
from actors.node.pressure_sources import (
    NvidiaSource,
    SourceUnavailable,
    as_reading,
    open_source,
    system_reading,
)
from runtime.errors import ConfigError
from runtime.settings.config import from_mapping, to_mapping

pytestmark = pytest.mark.pure

TOTAL = 1000
SETTINGS = PressureSettings(enabled=True, high=0.85, low=0.75, min_evict_bytes=10, interval_s=2.0)


def core(**changed: object) -> PressureCore:
    return PressureCore(settings_from(changed, SETTINGS))


def at(used: int, stalled: float = 0.0) -> Reading:
    return Reading(used, TOTAL, stalled)


# ── the core ───────────────────────────────────────────────────────────────────────────────────


def test_the_real_overshoot_is_asked_for_not_the_width_of_the_band() -> None:
    assert core().observe(0.0, at(990)) == Decision(Verdict.EVICT, 240)


def test_between_the_watermarks_nothing_begins() -> None:
    assert core().observe(0.0, at(849)).verdict is Verdict.BELOW
    assert core().observe(0.0, at(850)).verdict is Verdict.EVICT


def test_relief_continues_below_high_until_low_is_reached() -> None:
    one = core()
    one.observe(0.0, at(900))
    one.evicted(1.0, 70)
    assert one.observe(10.0, at(830)) == Decision(Verdict.EVICT, 80)
    one.evicted(11.0, 80)
    assert one.observe(20.0, at(750)).verdict is Verdict.BELOW
    assert one.observe(30.0, at(840)).verdict is Verdict.BELOW  # it begins again at high only


def test_an_overshoot_is_not_paid_twice_while_its_effect_is_awaited() -> None:
    one = core()
    one.observe(0.0, at(900))
    assert one.observe(0.5, at(900)).verdict is Verdict.WAITING  # still under way
    one.evicted(1.0, 150)
    assert one.observe(1.0 + settle_s(one.settings) - 0.01, at(900)).verdict is Verdict.WAITING
    assert one.observe(1.0 + settle_s(one.settings), at(900)).verdict is Verdict.EVICT


def test_relief_that_frees_nothing_ends() -> None:
    one = core()
    one.observe(0.0, at(900))
    one.evicted(1.0, 0)
    assert one.observe(10.0, at(840)).verdict is Verdict.BELOW


def test_a_stall_begins_relief_early_but_never_below_low() -> None:
    assert core().observe(0.0, at(800, stalled=50.0)) == Decision(Verdict.EVICT, 50)
    assert core().observe(0.0, at(700, stalled=50.0)).verdict is Verdict.BELOW
    assert core(stall_high=0.0).observe(0.0, at(800, stalled=50.0)).verdict is Verdict.BELOW


def test_an_overshoot_smaller_than_worth_a_row_is_left() -> None:
    one = core(min_evict_bytes=200)
    assert one.observe(0.0, at(900)).verdict is Verdict.TOO_LITTLE


def test_a_source_without_a_total_never_evicts() -> None:
    assert core().observe(0.0, Reading(10, 0)).verdict is Verdict.BELOW


readings = st.lists(
    st.tuples(
        st.integers(0, 1200), st.floats(0, 100), st.floats(0, 5), st.none() | st.integers(0, 400)
    ),
    max_size=60,
)


@example([(1, 10.0, 0.0, 0), (1, 10.0, 1.0, None), (1, 0.0, 1.0, None)], (0.5, 0.0), 0)
@given(readings, st.sampled_from([(0.85, 0.75), (0.5, 0.0), (1.0, 0.99)]), st.integers(0, 100))
def test_laws_of_relief(
    steps: list[tuple[int, float, float, int | None]], marks: tuple[float, float], least: int
) -> None:
    """Never more than lies above low; never two at once; never a start between the watermarks."""
    one = core(high=marks[0], low=marks[1], min_evict_bytes=least)
    now, in_flight, was_low_since_start, settled_at = 0.0, False, True, 0.0
    for used, stalled, pause, freed in steps:
        now += pause
        decision = one.observe(now, Reading(used, TOTAL, stalled))
        low, high = int(marks[1] * TOTAL), marks[0] * TOTAL
        if decision.verdict is Verdict.EVICT:
            assert not in_flight
            assert now >= settled_at
            assert max(1, least) <= decision.nbytes <= used - low
            if was_low_since_start:
                assert used >= high or stalled >= 10.0
            in_flight, was_low_since_start = True, False
        else:
            assert decision.nbytes == 0
        if used <= low:
            was_low_since_start = True
        if in_flight and freed is not None:
            one.evicted(now, freed)
            in_flight, settled_at = False, now + settle_s(one.settings)
            was_low_since_start = was_low_since_start or freed == 0


@given(st.integers(1, 400), st.integers(0, 400))
def test_a_steady_usage_and_an_accurate_cache_settle_after_one_eviction(
    above: int, growth: int
) -> None:
    """What is freed stays freed: usage falls to low at once, and nothing flaps around it."""
    one, used, evictions = core(), 750 + above, 0
    for step in range(50):
        decision = one.observe(step * 10.0, at(used))
        if decision.verdict is Verdict.EVICT:
            evictions += 1
            used -= decision.nbytes
            one.evicted(step * 10.0 + 1, decision.nbytes)
        if step == 25 and used <= 750:
            used += min(growth, 99)  # grows again, but stays below high
    assert evictions == (1 if above >= 100 else 0)
    assert used >= 750


# ── settings ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("high", 0.7),
        ("low", 0.9),
        ("low", -0.1),
        ("high", 1.1),
        ("interval_s", 0),
        ("timeout_s", -1),
        ("stall_high", 101),
        ("min_evict_bytes", -1),
        ("source", "nonsense"),
        ("source", "module:"),
        ("tiers", []),
        ("tiers", "ram"),
        ("enabled", 1),
        ("colour", "red"),
    ],
)
def test_a_bad_setting_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(BadPressureSetting) as refused:
        settings_from({key: value}, SETTINGS)
    assert refused.value.key in {key, "high"}


def test_settings_from_a_file_keep_their_types() -> None:
    settings = settings_from(
        {"enabled": True, "interval_s": 1, "tiers": ["ram"], "source": "my.tools:memory.read"}
    )
    assert settings.interval_s == 1.0
    assert settings.tiers == ("ram",)
    assert settings.low == PressureSettings().low


def test_the_configuration_carries_them_and_names_what_is_wrong() -> None:
    config = from_mapping(
        {"pressure": {"enabled": True, "low": 0.5, "min_evict_bytes": "4MiB"}, "models": {}}
    )
    assert config.pressure == PressureSettings(enabled=True, low=0.5, min_evict_bytes=4 << 20)
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    for table, key in (({"hihg": 1.0}, "pressure.hihg"), ({"high": 2.0}, "pressure.high")):
        with pytest.raises(ConfigError) as refused:
            from_mapping({"pressure": table})
        assert refused.value.key == key
    with pytest.raises(ConfigError, match="must be a table"):
        from_mapping({"pressure": True})
    with pytest.raises(ConfigError, match="gguf_chunked"):
        from_mapping({"fingerprint_mode": "fast"})


# ── sources ────────────────────────────────────────────────────────────────────────────────────


def machine(tmp_path: Path, available_kb: int = 400) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "pressure").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n"
    )
    (tmp_path / "proc" / "pressure" / "memory").write_text(
        "some avg10=1.50 avg60=0.10 avg300=0.00 total=5\nfull avg10=0.00 avg60=0 avg300=0 total=1\n"
    )
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slice/unit\n")
    return tmp_path


def group(folder: Path, limit: str, current: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")
    (folder / "memory.pressure").write_text("some avg10=33.00 avg60=0.00 avg300=0.00 total=9\n")


def test_the_machine_is_read_from_proc(tmp_path: Path) -> None:
    reading = system_reading(machine(tmp_path))
    assert reading == Reading(600 << 10, 1000 << 10, 1.5, "machine")


def test_the_tightest_control_group_on_the_way_up_counts(tmp_path: Path) -> None:
    groups = machine(tmp_path) / "sys/fs/cgroup"
    group(groups / "slice" / "unit", "max", 900)
    group(groups / "slice", "1000", 950, inactive=50)
    reading = system_reading(tmp_path)
    assert reading == Reading(900, 1000, 33.0, "control group /slice")


def test_page_cache_that_the_kernel_can_drop_is_no_pressure(tmp_path: Path) -> None:
    groups = machine(tmp_path) / "sys/fs/cgroup"
    group(groups / "slice" / "unit", "1000", 990, inactive=900)
    assert system_reading(tmp_path).where == "machine"


def test_a_kernel_without_psi_or_groups_still_gives_a_reading(tmp_path: Path) -> None:
    proc = machine(tmp_path) / "proc"
    (proc / "pressure" / "memory").unlink()
    (proc / "self" / "cgroup").write_text("1:name=systemd:/\n")
    assert system_reading(tmp_path) == Reading(600 << 10, 1000 << 10, 0.0, "machine")


def test_this_machine_can_be_read() -> None:
    reading = system_reading()
    assert 0 < reading.used < reading.total


def test_without_a_readable_proc_and_psutil_the_error_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(SourceUnavailable, match="psutil is not installed"):
        system_reading(tmp_path / "nowhere")


def test_without_nvml_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SourceUnavailable, match="pip install nvidia-ml-py"):
        NvidiaSource()


def test_the_fullest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = types.ModuleType("pynvml")
    uses = [types.SimpleNamespace(used=10, total=100), types.SimpleNamespace(used=90, total=100)]
    nvml.NVMLError = RuntimeError  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetCount = lambda: 2  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetMemoryInfo = lambda gpu: uses[gpu]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert open_source("nvidia")() == Reading(90, 100, where="GPU 1")


def test_a_source_of_your_own_is_found_by_name_and_checked() -> None:
    assert open_source("math:hypot")(3, 4) == 5
    with pytest.raises(SourceUnavailable, match="not a callable"):
        open_source("math:pi")
    assert as_reading((3, 4), "mine") == Reading(3, 4, where="mine")
    for nonsense in (None, (1,), (1, "2"), (-1, 2), "12"):
        with pytest.raises(SourceUnavailable):
            as_reading(nonsense, "mine")
