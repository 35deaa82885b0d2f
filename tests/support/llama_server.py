"""Takes llama-server's command line, and runs a node with a gateway in its place.

For llama-server's own tests, which start one server for each test. A node of ours is a tree of
processes and takes longer to start, so nodes may be kept: with ``KEEPER`` in the environment the
nodes belong to a ``Keeper`` in another process, which lends one that has the wanted settings, cold.
Without it the node lives as long as this process. Either way this process only passes on bytes, so
it imports no more than it must.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from runtime import Node

KEEPER: Final = "LLAMA_SERVER_KEEPER"
"""Path of a keeper's Unix socket."""
RECORD: Final = "LLAMA_SERVER_UNKNOWN"
"""File to which options are appended that have no meaning here."""
N_KEPT: Final = 5
_FLAGS: Final = frozenset(
    {
        "--embedding", "--embeddings", "--reranking", "--rerank", "--metrics", "--slots",
        "--no-slots", "--jinja", "--no-jinja", "--offline", "--cont-batching", "-cb",
        "--kv-unified", "--verbose", "-v", "--no-mmproj", "--context-shift", "--no-ui",
        "--no-models-autoload", "--ui-mcp-proxy", "--backend_sampling", "--swa-full",
        "--no-cache-idle-slots",
    }
)  # fmt: skip
_SHORT: Final = {
    "-c": "--ctx-size", "-np": "--parallel", "-b": "--batch-size", "-ub": "--ubatch-size",
    "-m": "--model", "-n": "--n-predict", "-a": "--alias", "-hf": "--hf-repo",
    "-hff": "--hf-file", "-t": "--threads", "-ngl": "--n-gpu-layers", "-s": "--seed",
}  # fmt: skip
_USED: Final = frozenset(
    {
        "--host", "--port", "--model", "--hf-repo", "--hf-file", "--ctx-size", "--parallel",
        "--batch-size", "--ubatch-size", "--temp", "--seed", "--alias", "--api-key", "--pooling",
        "--chat-template", "--chat-template-file", "--reasoning", "--cors-origins", "--tools",
    }
)  # fmt: skip
_TEMPLATES: Final = {
    "llama3": "{% for message in messages %}{{ '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "command-r": "{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + {'system': "
    "'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message['role']] + '_TOKEN|>' + "
    "message['content'] + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
    "chatml": "",
}
"""Those that llama-server has by name, written for this project; chatml is the models' own."""


@dataclass(frozen=True, slots=True)
class Options:
    """A command line: values by the long names of options, flags as true."""

    given: dict[str, str | bool]
    unknown: tuple[str, ...] = ()

    @property
    def hosts(self) -> list[str]:
        return [one.strip() for one in str(self.given.get("--host", "127.0.0.1")).split(",")]

    @property
    def port(self) -> int:
        return int(self.given.get("--port", 8080))

    def number(self, name: str, default: float) -> float:
        return float(self.given.get(name, default))


def parse(arguments: Sequence[str]) -> Options:
    """Read llama-server's options; one that is not known takes what does not look like another."""
    given: dict[str, str | bool] = {}
    unknown = []
    at = 0
    while at < len(arguments):
        name = _SHORT.get(arguments[at], arguments[at])
        at += 1
        has_value = at < len(arguments) and (
            name in _USED or not arguments[at].startswith("-") or _is_number(arguments[at])
        )
        if name in _FLAGS or not has_value:
            given[name] = True
        else:
            given[name] = arguments[at]
            at += 1
        if name not in _FLAGS and name not in _USED:
            unknown.append(name)
    return Options(given, tuple(unknown))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


ROUTED: Final = "ggml-org/tinygemma3-GGUF:Q8_0"
"""What llama-server loads by name when it is started without a model; here it is loaded at once."""


def kind_of(options: Options) -> str | None:
    """Which of ``llama_server_models`` stands for the model that is named; None: no model is."""
    names = [str(options.given.get(one, "")) for one in ("--model", "--hf-repo", "--hf-file")]
    name = " ".join(names).lower()
    if not name.strip():
        return None
    if "rerank" in name or options.given.get("--reranking"):
        return "ranking"
    if "bert" in name or "bge" in name:
        return "embedding"
    return "infill" if "infill" in name else "story"


def settings_of(options: Options) -> dict[str, Any]:
    """What a node needs to act as this llama-server, as JSON; equal values mean equal nodes."""
    given = options.given
    n_slots = int(options.number("--parallel", 4))
    n_ctx = int(options.number("--ctx-size", 4096))
    shares = 1 if given.get("--kv-unified") else n_slots
    kind = kind_of(options)
    settings: dict[str, Any] = {
        "kind": kind or "story",
        "id": sorted(str(given.get("--alias", "model")).split(","))[0],
        "other_names": [] if kind else [ROUTED],
        "n_ctx": n_ctx // shares,
        "n_seq_max": n_slots,
        "n_batch": int(options.number("--batch-size", 512)),
        "embed_tokens": int(options.number("--ubatch-size", 512)),
        "pooling": given.get("--pooling", "model"),
        "template": _template(options),
        "sampling": {
            "temperature": options.number("--temp", 0.8), "top_k": 40, "top_p": 0.95,
            "min_p": 0.05, "seed": options.number("--seed", -1),
        },
        "slots": not given.get("--no-slots"),
        "metrics": bool(given.get("--metrics")),
        "api_key": given.get("--api-key"),
        "origins": _origins(options),
    }  # fmt: skip
    return settings


def _origins(options: Options) -> list[str]:
    if origins := options.given.get("--cors-origins"):
        return str(origins).split(",")
    if "--tools" in options.given:
        return ["localhost"]
    return ["*"] if "--api-key" in options.given else []


def _template(options: Options) -> str | None:
    given = options.given
    text = None
    if path := given.get("--chat-template-file"):
        text = Path(str(path)).read_text(encoding="utf-8")
    elif named := given.get("--chat-template"):
        text = _TEMPLATES.get(str(named), str(named)) or None
    if text is None:
        return None
    # llama-server gives a template this variable always, unless a request gives another.
    thinks = "false" if given.get("--reasoning") == "off" else "true"
    return (
        f"{{%- if enable_thinking is not defined %}}{{%- set enable_thinking = {thinks} %}}"
        f"{{%- endif %}}{text}"
    )


# ── nodes ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Kept:
    node: Node
    port: int
    home: tempfile.TemporaryDirectory[str]
    is_lent: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        self.node.stop()
        self.home.cleanup()


class Keeper:
    """Nodes by their settings; a few idle ones are kept. Threads may share one."""

    def __init__(self, models: Path, n_kept: int = N_KEPT) -> None:
        """``models``: folder of the files that ``llama_server_models`` writes, made when needed."""
        self._models = models
        self._n_kept = n_kept
        self._lock = threading.Lock()
        self._nodes: OrderedDict[int, _Kept] = OrderedDict()
        self.n_started = 0
        self.n_lent = 0

    @contextlib.contextmanager
    def lend(self, settings: dict[str, Any]) -> Iterator[int]:
        """The port of a node with these settings, on which nothing is running or warm."""
        kept = self._take(settings) or self._start(settings)
        self.n_lent += 1
        try:
            yield kept.port
        finally:
            self._give_back(kept)

    def close(self) -> None:
        """End every node."""
        with self._lock:
            found = list(self._nodes.values())
            self._nodes.clear()
        for one in found:
            one.close()

    def _take(self, settings: dict[str, Any]) -> _Kept | None:
        with self._lock:
            for kept in self._nodes.values():
                if not kept.is_lent and kept.settings == settings:
                    kept.is_lent = True
                    break
            else:
                return None
        _cool(kept.node, settings["id"])
        return kept

    def _start(self, settings: dict[str, Any]) -> _Kept:
        self._make_room()
        kept = _started(settings, self._models)
        self.n_started += 1
        with self._lock:
            self._nodes[id(kept)] = kept
        return kept

    def _make_room(self) -> None:
        with self._lock:
            idle = [key for key, one in self._nodes.items() if not one.is_lent]
            ended = [self._nodes.pop(key) for key in idle[: len(idle) - self._n_kept + 1]]
        for one in ended:
            one.close()

    def _give_back(self, kept: _Kept) -> None:
        counts = kept.settings["metrics"]  # begin at 0 in every test
        with self._lock:
            kept.is_lent = False
            self._nodes.move_to_end(id(kept))
            if counts or self._n_kept == 0:
                del self._nodes[id(kept)]
        if counts or self._n_kept == 0:
            kept.close()


def _started(settings: dict[str, Any], models: Path) -> _Kept:
    from native.params import ModelParams
    from runtime import ModelConfig, Node, RuntimeConfig
    from runtime.settings.gateway import GatewaySettings, Listen
    from tests.support.nodes import free_port

    home = tempfile.TemporaryDirectory(prefix="llama-server-")
    folder = Path(home.name)
    port = free_port()
    keys = None
    if settings["api_key"]:
        keys = str(folder / "keys.toml")
        digest = hashlib.sha256(settings["api_key"].encode()).hexdigest()
        Path(keys).write_text(f'[keys.test]\nsha256 = "{digest}"\nadmin = true\n', "utf-8")
        os.chmod(keys, 0o600)
    gateway = GatewaySettings(
        listen=(Listen("127.0.0.1", port),),
        keys_file=keys,
        origins=tuple(settings["origins"]),
        sampling=tuple(settings["sampling"].items()),
        aliases=tuple((name, settings["id"]) for name in settings["other_names"]),
        slots=settings["slots"],
        metrics=settings["metrics"],
    )
    model = ModelConfig(
        str(model_file(models, settings["kind"])),
        ModelParams(
            n_threads=1,
            n_ctx=settings["n_ctx"],
            n_batch=min(settings["n_batch"], settings["n_ctx"]),
            n_ubatch=min(settings["n_batch"], settings["n_ctx"]),
            n_seq_max=settings["n_seq_max"],
            embed_tokens=settings["embed_tokens"],
            pooling=settings["pooling"],
        ),
        chat_template=settings["template"],
    )
    node = Node.start(
        {settings["id"]: model},
        port=free_port(),
        cache_ram="64MiB",
        cache_disk=0,
        runtime_dir=folder / "run",
        log_file=folder / "node.log",
        config=RuntimeConfig(gateway=gateway),
    )
    return _Kept(node, port, home, settings=settings)


def model_file(folder: Path, kind: str) -> Path:
    """The file of a model, written now if it is not there."""
    path = folder / f"{kind}.gguf"
    if not path.exists():
        from tests.support.llama_server_models import WRITERS

        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{kind}.{os.getpid()}.{threading.get_ident()}"
        WRITERS[kind](unfinished)
        os.replace(unfinished, path)
    return path


def _cool(node: Node, model: str) -> None:
    """Nothing of earlier requests runs, and nothing of them is reused."""
    from actors import messages as m
    from supervision.messages import new_ref
    from tests.support.waiting import eventually

    eventually(lambda: not node.client.queue_depth(), what="the node has nothing to do")
    if node.model_info(model).details.get("can_generate"):
        node.evict(model)
    cursor = 0
    while True:
        answer = node.client.ask(
            "cache_meta", m.RemoveRows(new_ref(), m.Removal.ALL, cursor=cursor)
        )
        assert isinstance(answer, m.RowsRemoved)
        cursor = answer.cursor
        if not cursor:
            return


class KeeperServer:
    """Lends nodes over a Unix socket: one connection a lease, which ends with it."""

    def __init__(self, keeper: Keeper, path: Path) -> None:
        self._keeper = keeper
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rw") as lines:
            settings = json.loads(lines.readline())
            try:
                with self._keeper.lend(settings) as port:
                    lines.write(json.dumps({"port": port}) + "\n")
                    lines.flush()
                    lines.readline()  # until it is closed
            except Exception as error:  # noqa: BLE001 - the other process reports it
                with contextlib.suppress(OSError):
                    lines.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
                    lines.flush()

    def close(self) -> None:
        """Lend no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


# ── the process that stands for llama-server ────────────────────────────────────────────────────


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM."""
    options = parse(arguments)
    if options.unknown and (record := os.environ.get(RECORD)):
        with open(record, "a", encoding="utf-8") as out:
            out.write("\n".join(options.unknown) + "\n")
    # A test may end the server while it still starts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = settings_of(options)
    lease = _borrowed(settings) if os.environ.get(KEEPER) else _own(settings)
    with lease as port:
        asyncio.run(_forward(options.hosts, options.port, port))
    return 0


@contextlib.contextmanager
def _borrowed(settings: dict[str, Any]) -> Iterator[int]:
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.connect(os.environ[KEEPER])
        with keeper.makefile("rw") as lines:
            lines.write(json.dumps(settings) + "\n")
            lines.flush()
            answer = json.loads(lines.readline() or '{"error": "the keeper has ended"}')
            if "error" in answer:
                sys.exit(f"no node: {answer['error']}")
            yield answer["port"]


@contextlib.contextmanager
def _own(settings: dict[str, Any]) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="llama-server-models-") as models:
        keeper = Keeper(Path(models), n_kept=0)
        try:
            with keeper.lend(settings) as port:
                yield port
        finally:
            keeper.close()


async def _forward(hosts: Sequence[str], port: int, target: int) -> None:
    """Pass connections on until SIGTERM."""
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        task.add_done_callback(running.discard)
        await _passed_on(reader, writer, target)

    servers = [await asyncio.start_server(connected, host, port) for host in hosts]
    await over.wait()
    for one in servers:
        one.close()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _passed_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int
) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
    ways = [
        asyncio.create_task(_pump(reader, there_writer)),
        asyncio.create_task(_pump(there_reader, writer)),
    ]
    try:
        # Either side may end the connection, and then the other has to know.
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for one in (writer, there_writer):
            one.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
