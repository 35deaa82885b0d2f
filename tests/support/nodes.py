"""Start a real node for a test, and prove at the end that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from supervision.connection import Connection
from supervision.launcher import NodeConfig, run_node
from supervision.messages import Entry
from supervision.node_file import NodeRecord, RuntimeDir
from supervision.ports import free_port
from supervision.spec import SupervisorSpec
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def group_pids(pgid: int) -> list[int]:
    """Live processes of a process group."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (one / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
                if int(fields[2]) == pgid and fields[0] not in "ZX":
                    found.append(int(one.name))
    return found


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class RunningNode:
    """A node in processes of its own."""

    def __init__(self, process: subprocess.Popen[bytes], config: NodeConfig) -> None:
        self.process = process
        self.config = config
        self.folder = RuntimeDir(config.runtime_dir)
        self.groups: set[int] = set()
        self.connection: Connection | None = None
        self.note_group()

    @property
    def record(self) -> NodeRecord:
        record = self.folder.read()
        assert record is not None
        return record

    @property
    def log(self) -> str:
        assert self.config.log_file is not None
        return self.config.log_file.read_text(encoding="utf-8")

    def note_group(self) -> None:
        record = self.folder.read()
        if record is not None:
            with contextlib.suppress(OSError):
                self.groups.add(os.getpgid(record.admin_pid))

    def connect(self) -> Connection:
        if self.connection is None:
            self.connection = Connection.attach(self.config.runtime_dir)
        return self.connection

    def entry(self, child_id: str) -> Entry:
        found = self.connect().where(child_id)
        assert found is not None, f"{child_id} is not in the directory"
        return found

    def up(self, child_id: str, *, after_incarnation: int = 0, within_s: float = 30.0) -> Entry:
        """Wait until a child is up with a later incarnation."""

        def probe() -> Entry | None:
            found = self.connect().where(child_id)
            ok = found is not None and found.is_up and found.incarnation > after_incarnation
            return found if ok else None

        found = eventually(probe, within_s=within_s, what=f"{child_id} up")
        assert found is not None
        return found

    def shared_memory(self) -> set[str]:
        """Files in /dev/shm that a process of the node has mapped or open."""
        found: set[str] = set()
        for pid in {self.process.pid, *(p for g in self.groups for p in group_pids(g))}:
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
                found.update(part for part in maps.split() if part.startswith("/dev/shm/"))
            with contextlib.suppress(OSError):
                for one in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        target = os.readlink(one)
                        if target.startswith("/dev/shm/"):
                            found.add(target)
        return found

    def stop(self, *, within_s: float = 30.0) -> int:
        self.note_group()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def check_nothing_left(self) -> None:
        for group in self.groups:
            eventually(lambda g=group: not group_pids(g), what="every process gone", within_s=30)
        eventually(lambda: port_is_free(self.config.port), what="the port is free", within_s=30)

    def files(self) -> list[str]:
        return sorted(one.name for one in self.config.runtime_dir.iterdir())


def start_node(
    tree: SupervisorSpec, folder: Path, *, ready: bool = True, **options: object
) -> RunningNode:
    folder.mkdir(exist_ok=True)
    config = NodeConfig(
        port=options.pop("port", None) or free_port(),  # type: ignore[arg-type]
        runtime_dir=folder / "run",
        tree=tree,
        log_file=folder / "node.log",
        packages=("tests", "cache"),
        **options,  # type: ignore[arg-type]
    )
    path = folder / "config.pickle"
    path.write_bytes(pickle.dumps(config))
    fds = () if config.parent_fd is None else (config.parent_fd,)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.nodes", str(path)], cwd=ROOT, pass_fds=fds
    )
    if ready:

        def is_ready() -> bool:
            assert process.poll() is None, f"the node ended:\n{config.log_file.read_text()}"  # type: ignore[union-attr]
            record = RuntimeDir(config.runtime_dir).read()
            return record is not None and record.pid == process.pid

        eventually(is_ready, within_s=30, what="node ready", every_s=0.005)
    return RunningNode(process, config)


@contextlib.contextmanager
def running_node(tree: SupervisorSpec, folder: Path, **options: object) -> Iterator[RunningNode]:
    """A node that is stopped at the end; fails if a process, port, shared memory or file stays."""
    node = start_node(tree, folder, **options)
    try:
        yield node
        node.note_group()
        shared = node.shared_memory()
    finally:
        if node.connection is not None:
            node.connection.close()
        try:
            node.stop()
        finally:
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait(60)
    node.check_nothing_left()
    assert node.files() == [], "files are left in the runtime folder"
    assert not [one for one in shared if Path(one).exists()], "shared memory is left"


if __name__ == "__main__":
    sys.exit(run_node(pickle.loads(Path(sys.argv[1]).read_bytes())))
