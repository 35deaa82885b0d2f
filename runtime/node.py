"""A node as a host process sees it: start one, or attach to one that runs.

``Node.start`` runs the launcher as a child process and attaches to it; it never forks the host,
which may hold threads, sockets or a GPU. When the host dies, by whatever signal, the node ends too:
the launcher holds the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from runtime import errors
from runtime.client.client import Client
from runtime.client.model_queries import ModelClient
from runtime.client.request_options import Messages, Prompt
from runtime.client.results import Completion, ModelStatus
from runtime.client.stream import CompletionStream
from runtime.client.tree import ProcessFacts, TreeNode, arrange
from runtime.settings import arguments
from runtime.settings.ports import node_dir, resolve_port
from runtime.settings.user_paths import user_path
from supervision import ChildKind, Connection, Entry, forks
from supervision.errors import MachineUnfit, NodeNotRunning, NoReply, PortInUse
from supervision.machine import require_machine
from supervision.messages import ReportVitals, Vitals, VitalsReported, new_ref
from supervision.ports import free_port
from supervision.process import age_s, memory

if TYPE_CHECKING:
    from runtime.settings.config import ModelConfig, RuntimeConfig
    from supervision.launched import LaunchedNode

VITALS_TIMEOUT_S: Final = 1.0
MAX_PORT: Final = 65_535
PORT_TRIES: Final = 5  # a free port may be taken between choosing and binding it


class Node(ModelClient):
    """A running node. Safe to use from several threads; close it, or use it in a ``with``.

    In a process that is forked from this one (multiprocessing, gunicorn, Celery) it opens a
    connection of its own at its first use there, and ends nothing of its parent's.

    Questions to its models are those of ``ModelClient``.
    """

    def __init__(
        self, port: int, connection: Connection, child: LaunchedNode | None = None
    ) -> None:
        self.port = port
        self._connection = connection
        self._child = child
        self._process = forks.here()
        super().__init__(Client(connection))

    # ── getting one ─────────────────────────────────────────────────────────────────────────────

    @classmethod
    def start(  # noqa: PLR0913 - keywords, each with a default
        cls,
        models: Mapping[str, str | Path | ModelConfig] | None = None,
        *,
        cache_dir: str | Path | None = None,
        cache_ram: str | int | None = None,
        cache_ram_file: str | int | None = None,
        cache_disk: str | int | None = None,
        cache_disks: Mapping[str | Path, str | int] | None = None,
        port: int | None = None,
        runtime_dir: str | Path | None = None,
        log_file: str | Path | None = None,
        config: RuntimeConfig | None = None,
    ) -> Self:
        """Start a node and load ``models`` (id → path, or a ``ModelConfig``).

        Without ``port`` a free one is chosen. Sizes are bytes or texts like ``512MiB`` or ``25%``
        of what is free; 0 turns a tier off. ``cache_disks`` names several directories, each with
        its size, in place of ``cache_dir`` and ``cache_disk``. The node ends with ``stop``, with
        the context manager, or with this process.
        """
        from runtime.launch import start as launch
        from runtime.settings.config import RuntimeConfig, from_mapping, to_mapping

        try:
            require_machine()
        except MachineUnfit as error:
            raise errors.MachineUnfit(str(error)) from error
        if config is not None and not isinstance(config, RuntimeConfig):
            raise arguments.wrong("config", config, "a RuntimeConfig")
        base = to_mapping(config or RuntimeConfig())
        base |= _settings(
            paths={"cache_dir": cache_dir, "runtime_dir": runtime_dir, "log_file": log_file},
            sizes={
                "cache_ram": cache_ram,
                "cache_ram_file": cache_ram_file,
                "cache_disk": cache_disk,
            },
            disks=cache_disks,
        )
        chosen = None if port is None else arguments.whole("port", port, 1, MAX_PORT)
        wanted = dict(from_mapping(base).models)
        if models is not None:
            given = arguments.table("models", models, "ids of models and their paths")
            wanted |= {model: launch.as_config(model, value) for model, value in given.items()}
        base["models"] = {}
        node = cls._launch(base, chosen, config is not None)
        try:
            for model, model_config in wanted.items():
                node._client.load(model, model_config)
        except BaseException:
            node.stop()
            raise
        return node

    @classmethod
    def _launch(cls, settings: dict[str, Any], port: int | None, port_is_configured: bool) -> Self:
        from runtime.launch import start as launch
        from runtime.settings.config import from_mapping

        fixed = port if port is not None else settings["admin_port"] if port_is_configured else None
        last: errors.NodeStartFailed | None = None
        for _ in range(1 if fixed is not None else PORT_TRIES):
            chosen = fixed if fixed is not None else free_port()
            node_settings = from_mapping({**settings, "admin_port": chosen})
            try:
                child = launch.spawn(node_settings)
            except errors.NodeStartFailed as failed:
                if failed.kind != PortInUse.__name__:
                    raise
                last = failed
                continue
            try:
                return cls(chosen, Connection.attach(node_settings.node_dir), child)
            except NodeNotRunning as error:
                child.end()
                raise errors.NodeStartFailed(str(error), type(error).__name__) from error
        raise last or errors.NodeStartFailed("no free port was found")

    @classmethod
    def attach(cls, port: int | None = None, *, runtime_dir: str | Path | None = None) -> Self:
        """Use a running node: on ``port``, else ``LLAMA_ACTORS_PORT``, else the default port."""
        resolved = resolve_port(
            None if port is None else arguments.whole("port", port, 1, MAX_PORT)
        )
        base = None
        if runtime_dir is not None:
            base = user_path(arguments.path("runtime_dir", runtime_dir), "runtime_dir")
        directory = node_dir(resolved, base)
        try:
            return cls(resolved, Connection.attach(directory))
        except MachineUnfit as error:
            raise errors.MachineUnfit(str(error)) from error
        except NodeNotRunning as error:
            raise errors.NodeNotRunning(resolved, str(error)) from error

    # ── using it ────────────────────────────────────────────────────────────────────────────────

    @property
    def client(self) -> Client:
        """The questions themselves, for code that wants to hold no process."""
        return self._client

    @property
    def connection(self) -> Connection:
        """The raw line into the tree: ``ask`` and ``tell`` any message to any actor."""
        return self._connection

    def load(
        self,
        model: str,
        path: str | Path | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **options: Any,
    ) -> ModelStatus:
        """Load a GGUF under an id; ``options`` are fields of ``native.params.ModelParams``.

        ``progress`` hears shares from 0 to 1 while the file is read.
        ``thinking_markers`` and ``tool_call_markers`` are lists, see ``text.marker_scanner``;
        ``chat_template`` is a Jinja text in place of the file's own, ``chat_template_file`` the
        path of one. ``demo`` is the embedded model and takes no path.
        """
        from runtime.launch import start as launch

        config = launch.config_of(model, path, options)
        return self._client.load(model, config, progress=progress)

    def unload(self, model: str, *, drain_s: float | None = 0.0) -> None:
        """Unload a model; its running requests may go on for ``drain_s`` seconds."""
        self._client.unload(model, drain_s=drain_s)

    def models(self) -> list[ModelStatus]:
        """Loaded and loading models."""
        return self._client.models()

    def complete(self, model: str, prompt: Prompt, **options: Any) -> Completion:
        """Generate and wait for the end; options as for ``Client.stream``."""
        return self._client.complete(model, prompt, **options)

    def stream(self, model: str, prompt: Prompt, **options: Any) -> CompletionStream:
        """Generate, and yield typed events as they come; options as for ``Client.stream``."""
        return self._client.stream(model, prompt, **options)

    def chat(self, model: str, messages: Messages, **options: Any) -> Completion:
        """Answer a conversation; options as for ``Client.stream_chat``."""
        return self._client.chat(model, messages, **options)

    def stream_chat(self, model: str, messages: Messages, **options: Any) -> CompletionStream:
        """Answer a conversation, and yield events as they come: ``Client.stream_chat``."""
        return self._client.stream_chat(model, messages, **options)

    def prefill_only(self, model: str, prompt: Prompt, **options: Any) -> Completion:
        """Read a prompt into the cache and say nothing."""
        return self._client.prefill_only(model, prompt, **options)

    def continue_session(
        self, model: str, session: str, more: Prompt, **options: Any
    ) -> Completion:
        """Go on in a session: ``more`` is only what follows what it holds already."""
        return self._client.continue_session(model, session, more, **options)

    def status(self) -> dict[str, Any]:
        """The node, and what every actor says of itself, by id."""
        return {
            "node": {
                "port": self.port,
                "pid": self.launcher_pid,
                "boot": self._connection.record.boot,
            },
            "actors": self._client.status(),
        }

    def tree(self, *, vitals: bool | None = False) -> TreeNode:
        """The live tree, from the launcher down.

        With ``vitals``, memory, uptime and mailboxes too: the supervisors are asked, who know it
        of children that hang as well, and so is the kernel, which takes a few milliseconds.
        """
        if not arguments.flag("vitals", vitals):
            record = self._connection.record
            return arrange(record.pid, record.root_pid, record.boot, self._client.directory())
        try:
            entries = self._connection.directory()
            pulses = self._vitals(entries)
        except NoReply as error:
            raise errors.NoReply(str(error)) from error
        except NodeNotRunning as error:
            raise errors.NodeNotRunning(self.port, str(error)) from error
        record = self._connection.record
        return arrange(record.pid, record.root_pid, record.boot, entries, pulses, _facts)

    def _vitals(self, entries: tuple[Entry, ...]) -> dict[str, Vitals]:
        """By id; without the children of a supervisor that does not answer."""
        found: dict[str, Vitals] = {}
        for entry in entries:
            if entry.kind is ChildKind.SUPERVISOR and entry.is_up:
                with contextlib.suppress(NoReply):
                    answer = self._connection.ask(
                        entry.id, ReportVitals(new_ref()), timeout_s=VITALS_TIMEOUT_S
                    )
                    if isinstance(answer, VitalsReported):
                        found |= {one.id: one for one in answer.vitals}
        return found

    @property
    def launcher_pid(self) -> int:
        return self._connection.record.pid

    @property
    def is_own(self) -> bool:
        """Whether this object started the node, and so ends it; never in a forked process."""
        return self._child is not None and forks.is_here(self._process)

    # ── ending it ───────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Stop the node, also one that another process started; wait until nothing of it is left.

        ``ForkedProcess`` in a process that was forked from the one that opened this: a child does
        not stop what its parent uses. To stop it from there, ``Node.attach`` first.
        """
        if not forks.is_here(self._process):
            raise errors.ForkedProcess(
                f"this node was opened in process {self._process[0]}, from which this one was "
                f"forked; stop it there, or with Node.attach({self.port}).stop()"
            )
        pid = self.launcher_pid
        self.close()
        if self._child is not None:
            self._child.end()
            self._child = None
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_gone(pid)

    def close(self) -> None:
        """Let go of the node without stopping it. One that this host started ends with the host."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_own:
            self.stop()
        else:
            self.close()


def _facts(pid: int) -> ProcessFacts:
    size = memory(pid)
    return ProcessFacts(age_s(pid), *(size or (None, None)))


def _settings(
    paths: Mapping[str, object], sizes: Mapping[str, object], disks: object
) -> dict[str, Any]:
    """What is given of them, checked."""
    found: dict[str, Any] = {}
    for key, value in paths.items():
        if value is not None:
            found[key] = arguments.path(key, value)
    for key, value in sizes.items():
        if value is not None:
            found[key] = arguments.size(key, value)
    if disks is not None:
        table = arguments.table("cache_disks", disks, "directories and their sizes")
        found["cache_disks"] = {
            arguments.path("a directory of cache_disks", at): arguments.size(
                f"cache_disks[{at}]", one
            )
            for at, one in table.items()
        }
    return {key: value for key, value in found.items() if value != {}}


def _wait_gone(pid: int) -> None:
    """Wait until another process's launcher has ended."""
    from supervision.launched import STOP_TIMEOUT_S

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        gone, _, _ = select.select([fd], [], [], STOP_TIMEOUT_S)
    finally:
        os.close(fd)
    if not gone:
        raise errors.NoReply(f"the node with pid {pid} did not stop within {STOP_TIMEOUT_S:.0f} s")
