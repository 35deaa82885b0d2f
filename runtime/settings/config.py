"""Everything a node can be told, in one frozen value.

Sources, strongest first: command line, environment, TOML file, defaults. A wrong key or value stops
the start with a ``ConfigError`` that names it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from actors.messages.markers import Markers
from actors.messages.pressure_settings import BadPressureSetting, PressureSettings, settings_from
from cache.policy import SAVE_ALL, SavePolicy
from native import BackendKind
from native.fingerprint import FINGERPRINT_MODES, FingerprintMode
from native.params import ModelParams
from native.system_memory import MACHINE, MemoryLimit, tightest_limit
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from runtime.errors import ConfigError
from runtime.settings.cache_policy import KEYS, TABLES, save_mapping, save_policy_from
from runtime.settings.load_options import model_params
from runtime.settings.markers import KEYS as MARKER_KEYS
from runtime.settings.markers import markers_from, markers_mapping
from runtime.settings.ports import DEFAULT_PORT, node_dir
from runtime.settings.sizes import (
    Budget,
    Share,
    format_size,
    parse_budget,
    parse_size,
    plain_budget,
)
from runtime.settings.template_settings import KEYS as TEMPLATE_KEYS
from runtime.settings.template_settings import template_from
from runtime.settings.user_paths import home, no_home, user_path
from supervision.logs import LOG_FORMATS, LogFormat

STAGING_BYTES: Final = 64 << 20
RAM_SHARE_OF_AVAILABLE: Final = 4  # a quarter, so that weights and other programs keep the rest
RAM_CAP_BYTES: Final = 4 << 30
DISK_CAP_BYTES: Final = 16 << 30
RAM_FILE_ROOT: Final = Path("/dev/shm")  # noqa: S108 - the tmpfs of every Linux; we make it 0700
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class DirectoryPlan:
    """One file tier as configured: its name, where it lies, its budget, and which key says so."""

    name: str
    root: Path
    budget: Budget
    key: str
    is_asked_for: bool
    """The directory was named; a default one may be done without."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model to load: where it lies and how to run it."""

    path: str
    params: ModelParams = field(default_factory=ModelParams)
    backend: BackendKind = "llama"
    markers: Markers = field(default_factory=Markers)
    """What starts and ends thinking and tool calls; by default what the chat template shows."""
    chat_template: str | None = None
    """A Jinja text in place of the one in the file."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """A node. Sizes in bytes; ``None`` means the default described beside it."""

    admin_port: int = DEFAULT_PORT
    runtime_dir: Path | None = None
    """Parent of the node's own folder: ``$XDG_RUNTIME_DIR/llama-actors``, else a temporary one."""
    cache_dir: Path | None = None
    """Root of the disk tier: ``$XDG_CACHE_HOME/llama-actors``, else ``~/.cache/llama-actors``.
    Without either there is no disk tier."""
    cache_disk: Budget = DISK_CAP_BYTES
    """Budget of the disk tier; 0 turns it off."""
    cache_disks: Mapping[str, Budget] = field(default_factory=dict)
    """Several disks: a budget per directory, in place of ``cache_dir`` and ``cache_disk``. Rows are
    spread over them in proportion to the budgets."""
    cache_ram: Budget | None = None
    """Budget of the RAM tier: a quarter of the available memory, at most 4 GiB; 0 turns it off."""
    cache_ram_file: Budget = 0
    """Budget of the ram_file tier: files in memory, which survive a restart of the node. Off."""
    cache_ram_file_dir: Path | None = None
    """Its directory, on a tmpfs: ``/dev/shm/llama-actors-<uid>``."""
    cache_salt: str = ""
    """Separates what otherwise equal models store, for instance by tenant."""
    fingerprint_mode: FingerprintMode = "safe"
    """How model files are told apart: ``safe``, ``gguf_chunked``, ``fast_unsafe``; see
    ``native.fingerprint``."""
    save: SavePolicy = SAVE_ALL
    """What is kept where and for how long: the tables ``[save]``, ``[live]``, ``[logits]`` and
    ``[restore]``, see ``runtime.settings.cache_policy``."""
    pressure: PressureSettings = field(default_factory=PressureSettings)
    """Memory pressure: source, watermarks, tiers; off by default."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    log_file: Path | None = None
    """Where the life-cycle log goes; standard error when not given."""
    log_format: LogFormat = "text"
    """``text`` for people, or ``json``: one object per line, with the keys of supervision/logs."""

    def __post_init__(self) -> None:
        if not 1024 <= self.admin_port <= 65535:
            raise ConfigError("admin_port", f"{self.admin_port} is not between 1024 and 65535")
        if self.fingerprint_mode not in FINGERPRINT_MODES:
            raise ConfigError(
                "fingerprint_mode",
                f"{self.fingerprint_mode!r} is not one of {', '.join(FINGERPRINT_MODES)}",
            )
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(
                "log_format", f"{self.log_format!r} is not one of {', '.join(LOG_FORMATS)}"
            )
        for key in ("cache_disk", "cache_ram", "cache_ram_file"):
            _check_budget(key, getattr(self, key))
        for path, budget in self.cache_disks.items():
            _check_budget(f"cache_disks.{path}", budget)
        if self.cache_disks and self.cache_dir is not None:
            raise ConfigError(
                "cache_dir", "is for one disk; with cache_disks, name this directory there"
            )
        if len({os.path.realpath(path) for path in self.cache_disks}) < len(self.cache_disks):
            raise ConfigError("cache_disks", "names one directory twice; join the two budgets")
        for model in self.models:
            check_model_id(model)

    @property
    def node_dir(self) -> Path:
        """The node's own folder: secret, addresses, logs. Gone after a clean stop."""
        return node_dir(self.admin_port, self.runtime_dir)

    @property
    def disk_root(self) -> Path | None:
        """The first disk's directory; ``None`` without a disk tier."""
        for path, budget in self.cache_disks.items():
            if budget:
                return Path(path)
        if not self.cache_disk or self.cache_disks:
            return None
        if self.cache_dir is not None:
            return self.cache_dir
        base = _cache_home()
        return None if base is None else base / "llama-actors"

    @property
    def no_disk_because(self) -> str:
        """Why there is no disk tier although none was turned off; empty if there is one."""
        is_wanted = bool(self.cache_disk) and not self.cache_disks
        if not is_wanted or self.disk_root is not None:
            return ""
        return f"{no_home()}; name a directory with --cache-dir"

    def directories(self) -> tuple[DirectoryPlan, ...]:
        """The file tiers, fastest first. Several disks are called disk, disk2, disk3 and so on."""
        plans: list[DirectoryPlan] = []
        if self.cache_ram_file:
            root = self.cache_ram_file_dir or RAM_FILE_ROOT / f"llama-actors-{os.getuid()}"
            named = self.cache_ram_file_dir is not None
            key = "cache_ram_file"
            plans.append(DirectoryPlan("ram_file", root, self.cache_ram_file, key, named))
        if self.cache_disks:
            disks = [(Path(p), b, f"cache_disks.{p}", True) for p, b in self.cache_disks.items()]
        else:
            at = self.disk_root
            named = self.cache_dir is not None
            disks = [] if at is None else [(at, self.cache_disk, "cache_dir", named)]
        for number, (root, budget, key, named) in enumerate(disks, 1):
            name = "disk" if number == 1 else f"disk{number}"
            if budget:
                plans.append(DirectoryPlan(name, root, budget, key, named))
        return tuple(plans)

    def ram_bytes(self) -> int:
        """The RAM tier's size; refuses one that this machine cannot hold.

        Rows reach files through the arena, so without a RAM tier a small one remains to pass them
        on, unless there is no file tier either.
        """
        tightest = tightest_limit()
        if tightest is None:
            return self._ram_bytes_unknown()
        available = tightest.available
        if self.cache_ram == 0:
            staging = min(STAGING_BYTES, available // RAM_SHARE_OF_AVAILABLE)
            return staging if self.directories() else 0
        if self.cache_ram is None:
            return min(RAM_CAP_BYTES, available // RAM_SHARE_OF_AVAILABLE)
        if isinstance(self.cache_ram, Share):
            return self.cache_ram.of(available)
        if self.cache_ram > available:
            raise ConfigError(
                "cache_ram",
                f"{format_size(self.cache_ram)} asked for, {describe_available(tightest)}; "
                "choose a smaller --cache-ram, or 0 to turn the RAM tier off",
            )
        return self.cache_ram

    def _ram_bytes_unknown(self) -> int:
        """The same where the machine does not tell how much memory is available."""
        if isinstance(self.cache_ram, Share):
            raise ConfigError(
                "cache_ram",
                f"{self.cache_ram} of what is available, which this machine does not tell "
                "(/proc/meminfo cannot be read); give bytes, for instance 512MiB",
            )
        if self.cache_ram:
            return self.cache_ram
        return STAGING_BYTES if self.cache_ram is None or self.directories() else 0


def describe_available(tightest: MemoryLimit) -> str:
    """Available memory and the limit that bounds it, as text."""
    text = f"{format_size(tightest.available)} of memory available"
    if tightest.where == MACHINE:
        return text
    return f"{text} (limit {format_size(tightest.limit)} of {tightest.where})"


def _cache_home() -> Path | None:
    """``$XDG_CACHE_HOME``, else ``~/.cache``; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # a relative one is to be ignored, says its specification
        return Path(given)
    place = home()
    return None if place is None else place / ".cache"


def _check_budget(key: str, budget: Budget | None) -> None:
    if isinstance(budget, int) and budget < 0:
        raise ConfigError(key, f"{budget} is negative; 0 turns the tier off")


def check_model_id(model: str) -> None:
    """Refuse ids that would be awkward in a shell, a path or a log."""
    if not _MODEL_ID.fullmatch(model):
        raise ConfigError(
            "model id",
            f"{model!r} must be 1 to 64 letters, digits, '.', '_' or '-', not starting so",
        )


def parse_model_argument(text: str) -> tuple[str, ModelConfig]:
    """``ID=PATH`` as given to ``--model`` and ``load``; ``demo`` alone is the embedded model."""
    model, separator, path = text.partition("=")
    if text == EMBEDDED_MODEL_ID:
        return text, ModelConfig(str(embedded_model_path()))
    if not separator or not path:
        raise ConfigError("model", f"{text!r} is not ID=PATH, for instance tiny=models/tiny.gguf")
    check_model_id(model)
    if model == EMBEDDED_MODEL_ID:
        raise ConfigError(
            "model", f"{EMBEDDED_MODEL_ID!r} always means the embedded model; choose another id"
        )
    return model, ModelConfig(str(user_path(path, f"model {model}")))


def load_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file into the keyword form that ``from_mapping`` takes."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError("config", f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", f"{path} is not TOML: {error}") from error


def from_mapping(settings: Mapping[str, Any]) -> RuntimeConfig:
    """Build a configuration from plain values, as TOML and JSON give them."""
    known = {f.name for f in dataclasses.fields(RuntimeConfig)} | set(TABLES)
    unknown = sorted(set(settings) - known)
    if unknown and unknown[0] in KEYS:
        save_policy_from({unknown[0]: settings[unknown[0]]})
        raise ConfigError(unknown[0], "belongs into the table [save]")
    if unknown:
        raise ConfigError(unknown[0], f"unknown setting; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = dict(settings)
    for key in ("runtime_dir", "cache_dir", "cache_ram_file_dir", "log_file"):
        if values.get(key) is not None:
            values[key] = user_path(values[key], key)
    for key in ("cache_ram", "cache_ram_file", "cache_disk"):
        if values.get(key) is not None:
            values[key] = parse_budget(values[key], key)
    values["cache_disks"] = _disks_from(values.get("cache_disks", {}))
    values["pressure"] = _pressure_from(values.get("pressure", {}))
    tables: dict[str, object] = {name: values.pop(name) for name in TABLES if name in values}
    values["save"] = save_policy_from(values.get("save", {}), tables)
    models = values.get("models", {})
    if not isinstance(models, Mapping):
        raise ConfigError("models", "must be a table of models by id")
    values["models"] = {model: _model_from(model, value) for model, value in models.items()}
    try:
        return RuntimeConfig(**values)
    except TypeError as error:
        raise ConfigError("config", str(error)) from error


def _disks_from(values: object) -> dict[str, Budget]:
    if not isinstance(values, Mapping):
        raise ConfigError("cache_disks", 'must be a table: [cache_disks], then "/path" = "200GiB"')
    return {
        str(user_path(path, "cache_disks")): parse_budget(size, f"cache_disks.{path}")
        for path, size in values.items()
    }


def _pressure_from(values: object) -> PressureSettings:
    if not isinstance(values, Mapping):
        raise ConfigError("pressure", "must be a table, for instance [pressure] enabled = true")
    plain = dict(values)
    if "min_evict_bytes" in plain:
        plain["min_evict_bytes"] = parse_size(plain["min_evict_bytes"], "pressure.min_evict_bytes")
    try:
        return settings_from(plain)
    except BadPressureSetting as error:
        raise ConfigError(f"pressure.{error.key}", error.detail) from error


def _model_from(model: str, value: object) -> ModelConfig:
    if model == EMBEDDED_MODEL_ID:  # the embedded model, unless a path is given
        options = value if isinstance(value, Mapping) else {"path": value}
        value = {**options, "path": options.get("path") or str(embedded_model_path())}
    if isinstance(value, str):
        return ModelConfig(str(user_path(value, f"models.{model}")))
    if not isinstance(value, Mapping) or "path" not in value:
        raise ConfigError(f"models.{model}", "must be a path, or a table with a path")
    options = {
        key: item
        for key, item in value.items()
        if key not in ("path", "backend", *MARKER_KEYS, *TEMPLATE_KEYS)
    }
    return ModelConfig(
        str(user_path(value["path"], f"models.{model}.path")),
        model_params(options, f"models.{model}"),
        backend_kind(value.get("backend", "llama")),
        markers_from(value, f"models.{model}"),
        template_from(value, f"models.{model}"),
    )


def backend_kind(name: object) -> BackendKind:
    """``llama``, or ``stub`` for tests without native code."""
    if name == "llama" or name == "stub":  # noqa: PLR1714  # narrows the type
        return name
    raise ConfigError("backend", f"{name!r} is not one of llama, stub")


def to_mapping(config: RuntimeConfig) -> dict[str, Any]:
    """The inverse of ``from_mapping``, in values that JSON can carry."""
    plain = dataclasses.asdict(config)
    for key in ("runtime_dir", "cache_dir", "cache_ram_file_dir", "log_file"):
        plain[key] = None if plain[key] is None else str(plain[key])
    for key in ("cache_ram", "cache_ram_file", "cache_disk"):
        plain[key] = plain_budget(getattr(config, key))
    plain["cache_disks"] = {p: plain_budget(budget) for p, budget in config.cache_disks.items()}
    plain |= save_mapping(config.save)
    plain["models"] = {
        model: {
            "path": c.path,
            "backend": c.backend,
            **dataclasses.asdict(c.params),
            **markers_mapping(c.markers),
            **({} if c.chat_template is None else {"chat_template": c.chat_template}),
        }
        for model, c in config.models.items()
    }
    return plain
