"""Log records: text for people, one JSON object per line for programs."""

from __future__ import annotations

import io
import json
import logging
import os
import re

import pytest

from supervision import logs
from supervision.core import SupervisorCore
from supervision.effects import Crashed, Happened
from supervision.errors import SpecError
from supervision.exits import ExitKind, ExitReason
from supervision.launcher import NodeConfig
from supervision.lifelog import write_crash, write_event
from supervision.pulse import Reading, Turn
from supervision.spec import ChildSpec, Strategy, SupervisorSpec

pytestmark = pytest.mark.pure

KILLED = ExitReason(ExitKind.KILLED, "killed by SIGKILL")


@pytest.fixture
def written():
    """A logger of our own and what it has written, as JSON."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.Logger("supervision.root")
    logger.addHandler(handler)
    return logger, lambda: [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_is_one_object_with_stable_keys(written):
    logger, objects = written
    logger.info("hello %s", "you")
    (found,) = objects()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("ts"))
    assert found == {
        "level": "INFO",
        "pid": os.getpid(),
        "logger": "supervision.root",
        "event": "log",
        "message": "hello you",
    }


def test_an_event_carries_its_fields_and_its_reason_in_two_keys(written):
    logger, objects = written
    logs.event(logger, logging.WARNING, "down", "a is down", child="a", reason=KILLED, action=None)
    (found,) = objects()
    assert found["event"] == "down"
    assert found["message"] == "a is down"
    assert found["child"] == "a"
    assert found["reason_kind"] == "killed"
    assert found["reason"] == "killed by SIGKILL"
    assert "action" not in found


def test_fields_never_replace_fixed_keys(written):
    logger, objects = written
    logs.event(logger, logging.INFO, "up", "text", pid=1, level="x", message="y")
    (found,) = objects()
    assert (found["pid"], found["level"], found["message"]) == (os.getpid(), "INFO", "text")


def test_a_traceback_and_odd_texts_stay_inside_one_line(written):
    logger, objects = written
    try:
        raise ValueError("one\ntwo\u2028three")
    except ValueError:
        logger.exception("it\nbroke, 100 %")
    logs.event(logger, logging.ERROR, "crashed", "Traceback\n  File\nValueError: %s %d", child="ü")
    first, second = objects()
    assert first["message"] == "it\nbroke, 100 %"
    assert first["traceback"].startswith("Traceback")
    assert "one\ntwo" in first["traceback"]
    assert second["child"] == "ü"
    assert second["message"].endswith("%s %d")


def test_values_that_json_cannot_hold_become_texts(written):
    logger, objects = written
    logs.event(logger, logging.INFO, "up", "x", where=ExitKind.KILLED, inf=float("inf"))
    (found,) = objects()
    assert found["where"] == "ExitKind.KILLED"
    assert found["inf"] == float("inf")


def spec(*ids: str) -> SupervisorSpec:
    return SupervisorSpec(Strategy.ONE_FOR_ONE, tuple(ChildSpec(one, "a.B") for one in ids))


def died_once(*, intensity: int = 5) -> SupervisorCore:
    """A supervisor of a child that was up and got killed."""
    core = SupervisorCore(
        SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", "a.B"),), intensity=intensity)
    )
    core.start()
    core.child_ready("a", 1)
    core.child_exited("a", 1, KILLED, 10.0)
    return core


@pytest.mark.parametrize(("intensity", "action"), [(5, "restart"), (0, "give_up")])
def test_an_exit_report_names_what_the_supervisor_does(written, intensity, action):
    logger, objects = written
    core = died_once(intensity=intensity)
    write_event(logger, core, Happened("down", "a", 1, str(KILLED), KILLED), 77)
    (found,) = objects()
    assert found["action"] == action
    assert (found["child"], found["incarnation"], found["child_pid"]) == ("a", 1, 77)
    assert found["level"] == "WARNING"
    assert found["message"] == (
        f"down a incarnation 1 pid 77 killed: killed by SIGKILL; action: {action}"
    )


def test_an_ordered_stop_is_no_warning(written):
    logger, objects = written
    core = SupervisorCore(spec("a"))
    core.start()
    core.child_ready("a", 1)
    core.stop(ExitReason(ExitKind.SHUTDOWN))
    shutdown = ExitReason(ExitKind.SHUTDOWN)
    write_event(logger, core, Happened("down", "a", 1, "shutdown", shutdown), 77)
    (found,) = objects()
    assert (found["level"], found["action"]) == ("INFO", "stopping")


def test_a_crash_report_names_the_last_messages_and_no_content(written):
    logger, objects = written
    core = died_once()
    last = Reading(95.0, 9, 95.0, 3, 0.0, (Turn("Echo", 90.0, 0.002), Turn("Complete", 95.0, None)))
    child = core.children["a"]
    assert child.last_exit is not None
    write_crash(logger, core, Crashed(child, 1, child.last_exit), 77, 12.3456, last)
    (found,) = objects()
    assert found["event"] == "crash_report"
    assert (found["turns"], found["mailbox"], found["uptime_s"]) == (9, 3, 12.346)
    assert [one["message"] for one in found["last"]] == ["Echo", "Complete"]
    assert [one["took_s"] for one in found["last"]] == [0.002, None]
    lines = found["message"].splitlines()
    assert lines[0].startswith("crash report of a incarnation 1 pid 77: killed: killed by SIGKILL")
    assert lines[0].endswith("action: restart")
    assert lines[1] == "up for 12.3 s, 9 messages handled, 3 waiting"
    assert re.fullmatch(r"  Echo, [\d.]+ s ago, took 2\.000 ms", lines[2])
    assert lines[3].endswith("it was in this one")


@pytest.fixture
def log_in(tmp_path):
    """Open the log of this process, as the launcher does, and give it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def opened(log_format):
        logs.open_log(tmp_path / "log", log_format)
        return tmp_path / "log"

    yield opened
    logs.close_log()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("log_format", logs.LOG_FORMATS)
def test_the_format_is_chosen_when_the_log_is_opened(log_in, log_format):
    path = log_in(log_format)
    logs.event(logging.getLogger("supervision.x"), logging.INFO, "up", "a is up", child="a")
    text = path.read_text(encoding="utf-8")
    if log_format == "json":
        assert json.loads(text)["child"] == "a"
    else:
        assert text.endswith(f"INFO {os.getpid()} supervision.x: a is up\n")


def test_faults_go_to_the_log_in_text_and_to_memory_in_json(log_in):
    path = log_in("json")
    assert os.readlink(f"/proc/self/fd/{logs.log_fd()}") != str(path)
    os.write(logs.log_fd(), b"Fatal Python error: Segmentation fault\n")
    assert logs.take_faults() == "Fatal Python error: Segmentation fault"
    assert logs.take_faults() is None
    os.write(logs.log_fd(), b"again\n")
    assert logs.take_faults() == "again"
    logs.close_log()
    path = log_in("text")
    assert os.readlink(f"/proc/self/fd/{logs.log_fd()}") == str(path)
    assert logs.take_faults() is None


def test_a_wrong_format_is_refused_by_name(tmp_path):
    with pytest.raises(SpecError, match=r"NodeConfig\.log_format"):
        NodeConfig(4711, tmp_path, spec("a"), log_format="xml")  # type: ignore[arg-type]
