"""The configuration of a node as one frozen value, and how it is read and passed on.

Sources, strongest first: command line, environment, TOML file, defaults. A wrong key or value stops
the start with a ``ConfigError`` that names it. What a file may hold: ``runtime.settings.schema``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from actors.messages.exact import EXACT_NAMES, Exact
from actors.messages.markers import Markers
from actors.messages.pressure_settings import BadPressureSetting, PressureSettings
from cache.errors import InvalidPolicy
from cache.policy import SAVE_ALL, LivePolicy, LogitsPolicy, RestorePolicy, SavePolicy
from native import BackendKind
from native.fingerprint import FINGERPRINT_MODES, FingerprintMode
from native.params import ModelParams
from native.system_memory import MACHINE, MemoryLimit, tightest_limit
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from runtime.errors import ConfigError
from runtime.settings import gateway as gateways
from runtime.settings import schema
from runtime.settings.arguments import short
from runtime.settings.durations import parse_duration
from runtime.settings.gateway import DEFAULT_SAMPLING, GatewaySettings
from runtime.settings.load_options import WORDS as LOAD_OPTIONS
from runtime.settings.load_options import model_params
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
from runtime.settings.template_settings import template_from
from runtime.settings.user_paths import home, no_home, user_path
from supervision.logs import LOG_FORMATS, LogFormat

STAGING_BYTES: Final = 64 << 20
RAM_SHARE_OF_AVAILABLE: Final = 4  # a quarter, so that weights and other programs keep the rest
RAM_CAP_BYTES: Final = 4 << 30
RAM_FILE_ROOT: Final = Path("/dev/shm")  # noqa: S108 - the tmpfs of every Linux; we make it 0700
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class DirectoryPlan:
    """One file tier as configured; ``key`` is the setting that names it."""

    name: str
    root: Path
    budget: Budget
    key: str
    is_asked_for: bool
    """The directory was named; a node starts without a default one that cannot be used."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model to load: where it lies and how to run it."""

    path: str
    params: ModelParams = field(default_factory=ModelParams)
    backend: BackendKind = "llama"
    markers: Markers = field(default_factory=Markers)
    """What starts and ends thinking and tool calls; by default those in the chat template."""
    chat_template: str | None = None
    """A Jinja text in place of the one in the file."""
    exact: Exact = Exact.REPEAT
    """Of requests that name no level; with ``ALWAYS``, of all requests. Its name will do."""
    autoload: bool = False
    """It is loaded at its first use instead of when the node starts."""
    keep_alive: float | None = None
    """Seconds without requests after which it sleeps; below 0: never; None: as the node has it."""
    pin: bool = False
    """It stays in memory, whatever else needs room."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "exact", Exact(self.exact))
        except ValueError:
            wanted = f"{short(self.exact)} is not one of {', '.join(EXACT_NAMES)}"
            raise ConfigError("exact", wanted) from None


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """A node. Each field is the setting of the same name in ``schema.Node``, which explains it.

    Sizes are bytes, or a ``Share`` of what is free. ``None`` means the default that is described
    there. ``save`` holds the tables ``[save]``, ``[live]``, ``[logits]`` and ``[restore]``.
    """

    admin_port: int = DEFAULT_PORT
    runtime_dir: Path | None = None
    cache_dir: Path | None = None
    cache_disk: Budget = schema.DISK_BYTES
    cache_disks: Mapping[str, Budget] = field(default_factory=dict)
    cache_ram: Budget | None = None
    cache_ram_file: Budget = 0
    cache_ram_file_dir: Path | None = None
    cache_salt: str = ""
    fingerprint_mode: FingerprintMode = "safe"
    save: SavePolicy = SAVE_ALL
    pressure: PressureSettings = field(default_factory=PressureSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    models_dir: Path | None = None
    models_defaults: ModelConfig | None = None
    """Of the models of ``models_dir``, without a path."""
    models_presets: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Of some of them, by their ids: the tables of ``[models]`` that have no path."""
    models_max: int = 0
    models_memory: Budget | None = None
    keep_alive: float | None = None
    log_file: Path | None = None
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        gateways.check(self.gateway)
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
        for key in ("cache_disk", "cache_ram", "cache_ram_file", "models_memory"):
            _check_budget(key, getattr(self, key))
        if self.models_presets and self.models_dir is None:
            model = next(iter(self.models_presets))
            detail = "must be a path, or a table with a path; one without needs models_dir"
            raise ConfigError(f"models.{model}", detail)
        for path, budget in self.cache_disks.items():
            _check_budget(f"cache_disks.{path}", budget)
        if self.cache_disks and self.cache_dir is not None:
            raise ConfigError(
                "cache_dir", "is for one disk; with cache_disks, name this directory there"
            )
        if len({os.path.realpath(path) for path in self.cache_disks}) < len(self.cache_disks):
            raise ConfigError("cache_disks", "names one directory twice; join the two budgets")
        for model in (*self.models, *self.models_presets):
            check_model_id(model)

    def models_bytes(self) -> int | None:
        """Memory that models may take together; None: what is available."""
        if not self.models_memory:
            return None
        if not isinstance(self.models_memory, Share):
            return self.models_memory
        tightest = tightest_limit()
        return None if tightest is None else self.models_memory.of(tightest.available)

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
                f"{format_size(self.cache_ram)} needed, {describe_available(tightest)}; "
                "choose a smaller --cache-ram, or 0 to turn the RAM tier off",
            )
        return self.cache_ram

    def _ram_bytes_unknown(self) -> int:
        """The same where the available memory is not known."""
        if isinstance(self.cache_ram, Share):
            raise ConfigError(
                "cache_ram",
                f"{self.cache_ram} of what is available, which is not known "
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
    if os.path.isabs(given):  # by its specification a relative one is ignored
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


def from_file(path: Path) -> RuntimeConfig:
    """The configuration in a TOML file; errors name the line."""
    settings = load_toml(path)
    with located(path):
        return from_mapping(settings)


@contextlib.contextmanager
def located(path: Path | None, besides: Collection[str] = ()) -> Iterator[None]:
    """Add file and line to a ConfigError whose key is in this file, and is not one ``besides``."""
    try:
        yield
    except ConfigError as error:
        line = None
        if path is not None and error.key.partition(".")[0] not in besides:
            line = _line_of(path.read_text(encoding="utf-8"), error.key)
        if line is None:
            raise
        detail = str(error).removeprefix(f"{error.key}: ")
        raise ConfigError(error.key, f"{detail} ({path}, line {line})") from error


def _line_of(text: str, key: str) -> int | None:
    """The line that sets a key, or the nearest table around it; None if there is none."""
    table, best, found = "", 0, None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*(.+?)\s*\]+\s*(#.*)?$", line):
            full = table = re.sub(r"[\"']", "", header[1])
        elif pair := re.match(r"""\s*("[^"]*"|'[^']*'|[\w.-]+)\s*=""", line):
            full = ".".join(filter(None, (table, pair[1].strip("\"'"))))
        else:
            continue
        if (key == full or key.startswith(full + ".")) and len(full) > best:
            best, found = len(full), number
    return found


def from_mapping(settings: Mapping[str, Any]) -> RuntimeConfig:
    """Build a configuration from plain values, as TOML and JSON give them."""
    given = schema.read_node({key: one for key, one in settings.items() if one is not None})
    plain = msgspec.structs.asdict(given)
    values: dict[str, Any] = {}
    for key in ("runtime_dir", "cache_dir", "cache_ram_file_dir", "models_dir", "log_file"):
        values[key] = None if plain[key] is None else user_path(plain[key], key)
    for key in ("cache_ram", "cache_ram_file", "cache_disk", "models_memory"):
        values[key] = None if plain[key] is None else parse_budget(plain[key], key)
    tables = {model: _preset(one) for model, one in given.models.items()}
    presets = {
        model: preset_config(given.models_defaults, table, f"models.{model}")
        for model, table in tables.items()
        if table is not None and model != EMBEDDED_MODEL_ID
    }
    return RuntimeConfig(
        **values,
        admin_port=given.admin_port,
        cache_disks={
            str(user_path(path, "cache_disks")): parse_budget(size, f"cache_disks.{path}")
            for path, size in given.cache_disks.items()
        },
        cache_salt=given.cache_salt,
        fingerprint_mode=given.fingerprint_mode,
        save=_save_from(given),
        pressure=_pressure_from(given.pressure),
        gateway=_gateway_from(given.gateway),
        models={
            model: _model_from(model, value)
            for model, value in given.models.items()
            if model not in presets
        },
        models_defaults=preset_config(given.models_defaults, {}, "models_defaults")
        if given.models_defaults
        else None,
        models_presets=presets,
        models_max=given.models_max,
        keep_alive=parse_duration(given.keep_alive, "keep_alive"),
        log_format=given.log_format,
    )


def _save_from(given: Any) -> SavePolicy:
    """One policy of the four tables."""
    table = "logits"
    try:
        plain = msgspec.structs.asdict(given.logits)
        plain["memory_bytes"] = parse_size(plain["memory_bytes"], "logits.memory_bytes")
        logits = LogitsPolicy(**plain)
        table = "restore"
        restore = RestorePolicy(**msgspec.structs.asdict(given.restore))
        table = "live"
        live = LivePolicy(**msgspec.structs.asdict(given.live))
        table = "save"
        save = msgspec.structs.asdict(given.save)
        return dataclasses.replace(SAVE_ALL, **save, logits=logits, restore=restore, live=live)
    except InvalidPolicy as error:
        raise ConfigError(table, str(error)) from error


def _pressure_from(given: Any) -> PressureSettings:
    plain = msgspec.structs.asdict(given)
    plain["min_evict_bytes"] = parse_size(plain["min_evict_bytes"], "pressure.min_evict_bytes")
    try:
        return PressureSettings(**plain)
    except BadPressureSetting as error:
        raise ConfigError(f"pressure.{error.key}", error.detail) from error


def _gateway_from(given: Any) -> GatewaySettings:
    plain = msgspec.structs.asdict(given)
    for key in ("max_body", "max_header_bytes", "log_bytes", "store_bytes"):
        plain[key] = parse_size(plain[key], f"gateway.{key}")
    for key in ("keys_file", "tls_certificate", "tls_key"):
        if plain[key] is not None:
            plain[key] = str(user_path(plain[key], f"gateway.{key}"))
    plain["listen"] = gateways.addresses(plain["listen"])
    plain["aliases"] = tuple(plain["aliases"].items())
    plain["sampling"] = tuple(plain["sampling"].items()) or DEFAULT_SAMPLING
    settings = GatewaySettings(**plain)
    gateways.check(settings)
    return settings


def _gateway_mapping(settings: GatewaySettings) -> dict[str, Any]:
    plain = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    plain["listen"] = [str(one) for one in settings.listen]
    for key in ("aliases", "sampling"):
        plain[key] = dict(plain[key])
    return plain


def _model_from(model: str, value: object) -> ModelConfig:
    where = f"models.{model}"
    if model == EMBEDDED_MODEL_ID:  # the embedded model, unless a path is given
        options = value if isinstance(value, Mapping) else {"path": value}
        value = {**options, "path": options.get("path") or str(embedded_model_path())}
    if isinstance(value, str):
        return ModelConfig(str(user_path(value, where)))
    if not isinstance(value, Mapping) or "path" not in value:
        raise ConfigError(where, "must be a path, or a table with a path")
    return model_config(value, where)


def _preset(value: object) -> Mapping[str, Any] | None:
    """A table of ``[models]`` for a model of ``models_dir``: one without a path."""
    return value if isinstance(value, Mapping) and value.get("path") is None else None


def preset_config(defaults: Mapping[str, Any], table: Mapping[str, Any], where: str) -> ModelConfig:
    """How a model of ``models_dir`` is loaded: without a path, at its first use."""
    if defaults.get("path") is not None:
        raise ConfigError("models_defaults.path", "leave it out: it is for all of models_dir")
    merged = {**defaults, **{key: one for key, one in table.items() if one is not None}}
    if merged.get("autoload") is None:
        merged["autoload"] = True
    return model_config(merged, where)


def model_config(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The table of a model; ``where`` is the prefix of its keys in errors."""
    given = schema.read_model(values, where)
    plain = msgspec.structs.asdict(given)
    is_stub = given.backend == "stub"  # which has no file
    path = given.path or ""
    return ModelConfig(
        path if is_stub or not path else str(user_path(path, f"{where}.path")),
        model_params({key: plain[key] for key in LOAD_OPTIONS}, where),
        given.backend,
        markers_from(plain, where),
        template_from(plain, where),
        given.exact,
        bool(given.autoload),
        parse_duration(given.keep_alive, f"{where}.keep_alive"),
        given.pin,
    )


def to_mapping(config: RuntimeConfig) -> dict[str, Any]:
    """The inverse of ``from_mapping``, in values that JSON can carry."""
    plain = dataclasses.asdict(config)
    for key in ("runtime_dir", "cache_dir", "cache_ram_file_dir", "models_dir", "log_file"):
        plain[key] = None if plain[key] is None else str(plain[key])
    for key in ("cache_ram", "cache_ram_file", "cache_disk", "models_memory"):
        plain[key] = plain_budget(getattr(config, key))
    plain["cache_disks"] = {p: plain_budget(budget) for p, budget in config.cache_disks.items()}
    for name, policy in (
        ("save", config.save),
        ("live", config.save.live),
        ("logits", config.save.logits),
        ("restore", config.save.restore),
    ):
        keys = schema.TABLES[name].__struct_fields__
        plain[name] = {key: getattr(policy, key) for key in keys}
    plain["gateway"] = _gateway_mapping(config.gateway)
    del plain["models_presets"]
    all_models = {**config.models, **config.models_presets}
    plain["models"] = {model: model_mapping(one) for model, one in all_models.items()}
    defaults = config.models_defaults
    plain["models_defaults"] = {} if defaults is None else model_mapping(defaults)
    return plain


def model_mapping(model: ModelConfig) -> dict[str, Any]:
    """The inverse of ``model_config``."""
    return {
        **({"path": model.path} if model.path else {}),
        "backend": model.backend,
        **dataclasses.asdict(model.params),
        **markers_mapping(model.markers),
        **({} if model.chat_template is None else {"chat_template": model.chat_template}),
        "exact": model.exact.value,
        "autoload": model.autoload,
        "keep_alive": model.keep_alive,
        "pin": model.pin,
    }
