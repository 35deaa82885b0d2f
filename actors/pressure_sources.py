"""Where memory pressure is read: the machine, its control groups, a GPU, or a function of yours.

A source is a callable without arguments that returns a ``Reading``, or a pair (used, total) in
bytes. It may block or raise: it runs on a thread of its own, see ``Sampler``. Nothing is imported
before it is asked for.

system: the tightest of the machine (total minus available) and every control group (v2) above this
process that has a limit (in use minus what the kernel can drop at once). The stall is the "some
avg10" of the same group's, or the machine's, pressure file.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from actors.pressure import Reading

Source = Callable[[], Any]
PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")


class SourceUnavailable(Exception):
    """This machine cannot tell; the text says what is missing."""


def open_source(name: str) -> Source:
    """The source of this name, as in ``PressureSettings.source``. Imports; may raise anything."""
    match name:
        case "noop":
            return lambda: Reading(0, 1, where="noop")
        case "system":
            return system_reading
        case "nvidia":
            return NvidiaSource()
        case _:
            return _own_source(name)


def _own_source(name: str) -> Source:
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise SourceUnavailable(f"{name} is {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]  # whatever it returns is checked by as_reading


def as_reading(answer: object, name: str) -> Reading:
    """What a source returned, checked; ``SourceUnavailable`` if it makes no sense."""
    if isinstance(answer, tuple | list) and len(answer) == 2:
        used, total = answer
        if isinstance(used, int | float) and isinstance(total, int | float):
            answer = Reading(int(used), int(total), where=name)
    if not isinstance(answer, Reading) or answer.used < 0 or answer.total < 0:
        raise SourceUnavailable(f"{name} returned {answer!r}, not (used, total) in bytes")
    return answer


# ── the machine and its control groups ─────────────────────────────────────────────────────────


def system_reading(proc: Path = PROC, cgroups: Path = CGROUPS) -> Reading:
    """The tightest limit that applies to this process; paths are given by tests only."""
    readings = [_machine(proc), *_groups(proc, cgroups)]
    return max(readings, key=lambda reading: reading.share)


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that this process may still take: the least that any limit leaves; ``None``: unknown.

    All page cache counts as available, whatever the kernel would keep longest: the pages of a model
    file that was just read are those that loading it needs.
    """
    try:
        readings = [_machine(proc), *_groups(proc, cgroups, _ALL_CACHE)]
    except SourceUnavailable:
        return None
    return min(max(0, one.total - one.used) for one in readings)


def _machine(proc: Path) -> Reading:
    facts: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            key, _, rest = line.partition(":")
            facts[key] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError) as error:
        return _by_psutil(error)
    if "MemTotal" not in facts or "MemAvailable" not in facts:
        return _by_psutil(KeyError("MemAvailable"))
    used = facts["MemTotal"] - facts["MemAvailable"]
    stalled = _stall(proc / "pressure" / "memory")
    return Reading(max(0, used), facts["MemTotal"], stalled, "machine")


def _by_psutil(cause: Exception) -> Reading:
    try:
        psutil: Any = importlib.import_module("psutil")
    except ImportError:
        detail = f"/proc/meminfo says nothing useful ({cause!r}), and psutil is not installed"
        raise SourceUnavailable(detail) from cause
    memory = psutil.virtual_memory()
    return Reading(int(memory.total - memory.available), int(memory.total), where="psutil")


_IDLE_CACHE: Final = ("inactive_file",)
"""Page cache that the kernel gives up without writing anything, and without regret."""
_ALL_CACHE: Final = ("inactive_file", "active_file")


def _groups(proc: Path, cgroups: Path, droppable: tuple[str, ...] = _IDLE_CACHE) -> list[Reading]:
    """A reading for every group on the way up that has a limit; none without cgroup v2."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    own = next((line.partition("::")[2] for line in lines if line.startswith("0::")), None)
    if own is None:
        return []
    # In a container the path may point outside of what is mounted; the mount's root then is ours.
    parts = [part for part in own.split("/") if part and part != ".."]
    readings = []
    for depth in range(len(parts), -1, -1):
        reading = _group(cgroups.joinpath(*parts[:depth]), droppable)
        if reading is not None:
            readings.append(reading)
    return readings


def _group(folder: Path, droppable: tuple[str, ...]) -> Reading | None:
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        current = int((folder / "memory.current").read_text(encoding="ascii"))
        if limit == "max":
            return None
        used = current - _sum_of(droppable, folder / "memory.stat")
        stalled = _stall(folder / "memory.pressure")
        return Reading(max(0, used), int(limit), stalled, f"control group {folder.name}")
    except (OSError, ValueError):
        return None


def _sum_of(keys: tuple[str, ...], stat: Path) -> int:
    """The values of these keys in a ``memory.stat``."""
    total = 0
    for line in stat.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(" ")
        if key in keys:
            total += int(value)
    return total


def _stall(path: Path) -> float:
    """``some avg10`` of a PSI file, in percent; 0 where the kernel does not tell."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            kind, *pairs = line.split()
            if kind == "some":
                return float(dict(pair.split("=") for pair in pairs)["avg10"])
    except (OSError, ValueError, KeyError):
        return 0.0
    return 0.0


# ── NVIDIA ─────────────────────────────────────────────────────────────────────────────────────


class NvidiaSource:
    """The fullest GPU, by NVML. Needs ``pip install llama-actors[nvidia]`` and a driver."""

    def __init__(self) -> None:
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise SourceUnavailable(
                "the source nvidia needs nvidia-ml-py; pip install nvidia-ml-py, "
                "or choose another pressure.source"
            ) from error
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise SourceUnavailable(f"NVML does not work here: {error}") from error
        if not count:
            raise SourceUnavailable("NVML sees no GPU")
        self._gpus = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def __call__(self) -> Reading:
        readings = []
        for index, gpu in enumerate(self._gpus):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
            readings.append(Reading(int(memory.used), int(memory.total), where=f"GPU {index}"))
        return max(readings, key=lambda reading: reading.share)


# ── asking without waiting ─────────────────────────────────────────────────────────────────────


class Sampler:
    """One source on one daemon thread. ``ask`` returns at once; the answer goes to ``post``.

    A source that hangs keeps this thread for good; make another sampler for another source.
    """

    def __init__(self, name: str, post: Callable[[object], None]) -> None:
        self.name = name
        self._post = post
        self._questions: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"pressure:{name}", daemon=True)
        self._thread.start()

    def ask(self, number: int) -> None:
        self._questions.put(number)

    def close(self) -> None:
        self._questions.put(None)

    def _run(self) -> None:
        source: Source | None = None
        while (number := self._questions.get()) is not None:
            try:
                source = source or open_source(self.name)
                self._post((self, number, as_reading(source(), self.name)))
            except Exception as error:  # noqa: BLE001 - a user's source may raise anything
                self._post((self, number, f"{type(error).__name__}: {error}"))
