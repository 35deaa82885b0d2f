"""What models that come and go are made of: a folder, a table, measurements, durations, holds."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from actors import messages as m
from actors.messages.actor_ids import RESIDENCY, model_actor_id
from actors.messages.slot_file import SlotFile
from actors.requests import effects as fx
from actors.requests.failures import not_loaded
from actors.requests.request_table import RequestTable
from native.params import ModelParams
from runtime.embedded import path as embedded_model_path
from runtime.errors import ConfigError
from runtime.residency.folder import Folder, model_id
from runtime.residency.memory import Measured, Taken, need_of, settled
from runtime.residency.table import ResidencyTable
from runtime.settings.config import from_mapping, to_mapping
from runtime.settings.durations import parse_duration
from supervision import Address, ChildKind, Entry

pytestmark = pytest.mark.pure

CALLER = Address("127.0.0.1", 1)


# ── the folder ──────────────────────────────────────────────────────────────────────────────────


def _aged(path: Path) -> None:
    """As if it had been written a minute ago."""
    then = time.time() - 60
    os.utime(path, (then, then))


def test_a_file_is_offered_when_it_is_whole_and_stays_as_it_is(tmp_path: Path) -> None:
    reports: list[str] = []
    folder = Folder(tmp_path, reports.append)
    whole = embedded_model_path().read_bytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    assert folder.look() == {}  # it may be written still
    assert set(folder.look()) == {"a"}
    path.write_bytes(whole[:-1])
    assert folder.look() == {}
    _aged(path)
    assert folder.look() == {}
    assert folder.look() == {}
    assert len(reports) == 1  # once
    path.write_bytes(whole)
    _aged(path)
    (offered,) = folder.look().values()
    assert (offered.model, offered.path, offered.n_bytes) == ("a", str(path), len(whole))
    path.unlink()
    assert folder.look() == {}


def test_names_that_no_id_can_be_get_hyphens_and_none_is_offered_twice(tmp_path: Path) -> None:
    assert model_id("My model (2).Q4_K") == "My-model-2-.Q4_K"
    reports: list[str] = []
    for name in ("a b.gguf", "a-b.gguf"):
        shutil.copy(embedded_model_path(), tmp_path / name)
        _aged(tmp_path / name)
    assert set(Folder(tmp_path, reports.append).look()) == {"a-b"}
    assert len(reports) == 1


def test_a_folder_that_cannot_be_read_is_empty_and_reported(tmp_path: Path) -> None:
    reports: list[str] = []
    assert Folder(tmp_path / "nothing", reports.append).look() == {}
    assert len(reports) == 1


# ── what outlives the actor ─────────────────────────────────────────────────────────────────────


def test_the_table_of_what_sleeps_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    table = ResidencyTable(str(path))
    spec = m.LoadModel("", "a", "/a", params=ModelParams(n_ctx=512), keep_alive_s=3.0, pin=True)
    table.put_to_sleep(spec, 7.0)
    table.set_keep_alive("b", -1.0)
    again = ResidencyTable(str(path))
    found = again.get("a")
    assert found is not None
    assert (found.spec, found.last_use) == (spec, 7.0)
    assert again.keep_alive("b") == -1.0
    assert again.forget("a")
    assert not again.forget("a")
    assert ResidencyTable(str(path)).asleep == {}


def test_a_torn_slot_costs_its_own_change_alone(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    path.touch()
    file = SlotFile(str(path))
    file.write(b"one")
    file.write(b"two")
    with path.open("r+b") as raw:  # the second is in slot 0
        raw.seek(44)
        raw.write(b"x")
    assert SlotFile(str(path)).body == b"one"


def test_measurements_are_those_of_the_same_file_and_options(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept.json")
    spec = m.LoadModel("", "a", str(embedded_model_path()), params=ModelParams(n_ctx=512))
    measured = Measured(kept)
    measured.note(spec, Taken(1, 2, 3))
    assert Measured(kept).get(spec) == Taken(1, 2, 3)
    other = m.LoadModel("", "a", spec.path, params=ModelParams(n_ctx=1024))
    assert Measured(kept).get(other) is None
    Path(kept).write_text("not JSON", encoding="utf-8")
    assert Measured(kept).get(spec) is None


def test_a_context_without_a_length_is_as_long_as_fits() -> None:
    spec = m.LoadModel("", "a", str(embedded_model_path()), params=ModelParams(n_ctx=0))
    need = need_of(spec, on_gpu=False)
    assert need.n_bytes >= spec_bytes(spec)
    roomy = settled(spec.params, need.headers, 64 << 30).n_ctx
    tight = settled(spec.params, need.headers, need.n_bytes).n_ctx
    assert 0 < tight <= roomy
    assert settled(ModelParams(n_ctx=768), need.headers, 1).n_ctx == 768


def spec_bytes(spec: m.LoadModel) -> int:
    """Nearly all of a file is weights."""
    return Path(spec.path).stat().st_size * 9 // 10


# ── settings ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (5, 5.0), ("5m", 300.0), ("1h30m", 5400.0), ("250ms", 0.25), (-1, -1.0),
     ("-1", -1.0), ("-5m", -1.0), ("0", 0.0), ("90", 90.0)],
)  # fmt: skip
def test_durations(given: object, seconds: float | None) -> None:
    assert parse_duration(given, "keep_alive") == seconds


@pytest.mark.parametrize("given", ["", "5x", "m", True, [], "5m!"])
def test_what_is_no_duration(given: object) -> None:
    with pytest.raises(ConfigError, match="keep_alive"):
        parse_duration(given, "keep_alive")


def test_tables_of_models_are_presets_without_a_path(tmp_path: Path) -> None:
    settings = {
        "models_dir": str(tmp_path),
        "models_defaults": {"n_ctx": 1024, "keep_alive": "5m"},
        "models": {
            "a": {"pin": True},
            "b": {"path": str(tmp_path / "b.gguf"), "autoload": True},
            "c": str(tmp_path / "c.gguf"),
        },
    }
    config = from_mapping(settings)
    assert set(config.models) == {"b", "c"}
    assert (config.models["b"].autoload, config.models["c"].autoload) == (True, False)
    preset = config.models_presets["a"]
    assert (preset.params.n_ctx, preset.keep_alive, preset.pin) == (1024, 300.0, True)
    assert preset.autoload
    assert from_mapping(to_mapping(config)) == config
    with pytest.raises(ConfigError, match="leave it out"):
        from_mapping({**settings, "models_defaults": {"path": "/x"}})


# ── inflight ────────────────────────────────────────────────────────────────────────────────────


def entry(child: str, state: str, incarnation: int = 1) -> Entry:
    kind = ChildKind.WORKER
    return Entry(child, kind, "models", "x.Y", CALLER, 1, incarnation, state, 0, 0.0, None)


class Table:
    """A table with an actor that loads models, and what was asked of it."""

    def __init__(self) -> None:
        self.directory = {
            "models": entry("models", "up"),
            RESIDENCY: entry(RESIDENCY, "up"),
        }
        self.table = RequestTable(
            self.directory,
            accepted=lambda _: 0,
            digest=lambda _: None,
            part_digests=lambda _: (),
        )

    def arrive(self, name: str, now: float = 1.0) -> list[fx.Effect]:
        request = m.Complete(name, "m", m.TextPrompt(b"x"), load_events=True)
        return self.table.arrived(now, name, request, CALLER)

    def change(self, state: str, incarnation: int = 1) -> list[fx.Effect]:
        changed = entry(model_actor_id("m"), state, incarnation)
        self.directory[changed.id] = changed
        return self.table.directory_changed(2.0, (changed,))


def started(effects: list[fx.Effect]) -> list[str]:
    return [one.request_id for one in effects if isinstance(one, fx.Start)]


def test_a_model_that_is_not_there_is_asked_for_and_its_requests_wait() -> None:
    world = Table()
    assert fx.Need("m", 1.0) in world.arrive("a")
    assert fx.Need("m", 1.0) in world.arrive("b", now=5.0)  # the oldest one counts
    world.table.awaited("m")
    told = world.table.loading("m", 0.5)
    assert [one.message for one in told if isinstance(one, fx.Reply)] == [
        m.ModelLoading("a", 0.5),
        m.ModelLoading("b", 0.5),
    ]
    assert started(world.change("up")) == ["a", "b"]


def test_why_it_did_not_load_ends_all_that_wait() -> None:
    world = Table()
    world.arrive("a")
    failed = m.ModelNotLoaded("m", m.LoadFailure.REFUSED, "TruncatedGguf", "half", 3.0)
    (reply, *_) = [
        one for one in world.table.not_coming("m", not_loaded(failed)) if isinstance(one, fx.Reply)
    ]
    assert isinstance(reply.message, m.CompletionFailed)
    assert reply.message.reason is m.FailReason.LOAD_FAILED
    assert reply.message.facts == m.FailureFacts(retry_after_s=3.0, kind="TruncatedGguf")
    world.arrive("b")
    unknown = m.ModelNotLoaded("m", m.LoadFailure.UNKNOWN, "ModelUnknown", "")
    assert any(
        isinstance(one, fx.Reply)
        and isinstance(one.message, m.CompletionFailed)
        and one.message.reason is m.FailReason.MODEL_UNKNOWN
        for one in world.table.not_coming("m", not_loaded(unknown))
    )


def test_a_held_model_ends_what_runs_and_what_comes_waits_until_it_is_back() -> None:
    world = Table()
    world.change("up")
    assert started(world.arrive("a")) == ["a"]
    assert world.table.held("r", "m", 1, if_idle=True) == [fx.Held("r", "m", is_held=False)]
    assert not world.table.held("r", "m", 1, if_idle=False)
    assert not started(world.arrive("b"))
    assert fx.Held("r", "m", is_held=True) in world.table.ended(1.0, "a")
    world.change("stopping")
    assert fx.Need("m", 1.0) in world.table.released(3.0, "m")
    assert started(world.change("up", 2)) == ["b"]


def test_what_was_held_is_free_when_the_actor_that_held_it_has_ended() -> None:
    world = Table()
    world.change("up")
    world.table.held("r", "m", 1, if_idle=False)
    world.arrive("a")
    world.directory[RESIDENCY] = gone = entry(RESIDENCY, "restarting")
    assert started(world.table.directory_changed(2.0, (gone,))) == ["a"]
