"""Where memory pressure is read: the machine, its control groups, a GPU, or a function of yours.

A source is a callable without arguments that returns a ``Reading``, or a pair (used, total) in
bytes. It may block or raise: it runs on a thread of its own, see ``Sampler``. Nothing is imported
before it is asked for.

system: the tightest of the machine (total minus available) and every control group above this
process that has a limit (in use minus what the kernel can drop at once). The stall is the "some
avg10" of the same group's, or the machine's, pressure file.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.node.pressure_policy import Reading
from native.control_groups import ROOT
from native.system_memory import group_limits, machine_memory

Source = Callable[[], Any]


class SourceUnavailable(Exception):
    """This machine has no such reading; the text names what is missing."""


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


def system_reading(root: Path = ROOT) -> Reading:
    """The tightest limit that applies to this process; ``root`` is given by tests only."""
    machine = machine_memory(root)
    if machine is None:
        readings = [_by_psutil()]
    else:
        stalled = _stall(root / "proc/pressure/memory")
        readings = [Reading(machine.used, machine.limit, stalled, machine.where)]
    for one in group_limits(root):
        stalled = 0.0 if one.folder is None else _stall(one.folder / "memory.pressure")
        readings.append(Reading(one.used, one.limit, stalled, one.where))
    return max(readings, key=lambda reading: reading.share)


def _by_psutil() -> Reading:
    try:
        psutil: Any = importlib.import_module("psutil")
    except ImportError as error:
        detail = "/proc/meminfo has no usable value, and psutil is not installed"
        raise SourceUnavailable(detail) from error
    memory = psutil.virtual_memory()
    return Reading(int(memory.total - memory.available), int(memory.total), where="psutil")


def _stall(path: Path) -> float:
    """``some avg10`` of a PSI file, in percent; 0 where the kernel has no such file."""
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
