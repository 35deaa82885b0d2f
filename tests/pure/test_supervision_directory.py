"""Folding directory changes, and the messages themselves."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import pytest

from supervision import messages
from supervision.address import Address
from supervision.directory import add_news
from supervision.exits import ExitKind, ExitReason
from supervision.messages import Entry
from supervision.monitors import merge_directory
from supervision.spec import ChildKind

pytestmark = pytest.mark.pure


def entry(incarnation=1, state="up", **changes):
    address = Address("127.0.0.1", 1000 + incarnation) if state == "up" else None
    fields = {"id": "a", "kind": ChildKind.WORKER, "parent": "root", "actor": "x.Y",
              "address": address, "pid": 1, "incarnation": incarnation, "state": state,
              "restarts": 0, "started_at": 0.0}  # fmt: skip
    return Entry(**{**fields, **changes})


def test_going_down_and_coming_up_are_news():
    directory = {"a": entry(1)}
    assert merge_directory(directory, (entry(2, "starting"),), ()) == (entry(2, "starting"),)
    assert merge_directory(directory, (entry(2),), ()) == (entry(2),)
    assert directory == {"a": entry(2)}


def test_a_restart_is_reported_even_when_the_exit_was_not_seen():
    directory = {"a": entry(1)}
    assert merge_directory(directory, (entry(2),), ()) == (entry(2),)


def test_repeated_and_merely_different_entries_are_no_news():
    directory = {"a": entry(1)}
    assert merge_directory(directory, (entry(1),), ()) == ()
    assert merge_directory(directory, (entry(1, restarts=3),), ()) == ()
    assert directory["a"].restarts == 3


def test_an_older_incarnation_changes_nothing():
    directory = {"a": entry(3)}
    assert merge_directory(directory, (entry(2, "down"),), ()) == ()
    assert merge_directory(directory, (), (entry(2, "down"),)) == ()
    assert directory == {"a": entry(3)}


def test_a_removed_entry_is_gone_and_was_news_if_it_was_up():
    directory = {"a": entry(1)}
    gone = entry(1, "down")
    assert merge_directory(directory, (), (gone,)) == (gone,)
    assert directory == {}
    assert merge_directory(directory, (), (gone,)) == ()


def test_news_that_wait_keep_why_the_incarnation_before_ended():
    lost = ExitReason(ExitKind.KILLED, "its supervisor died")
    waiting: tuple[dict, dict] = ({}, {})
    add_news(waiting, (), (entry(1, "down", last_exit=lost),))
    assert waiting[1]["a"].last_exit == lost
    add_news(waiting, (entry(2, "starting"),), ())
    add_news(waiting, (entry(2),), ())
    assert waiting == ({"a": entry(2, last_exit=lost)}, {})
    later = ExitReason(ExitKind.KILLED, "killed again")
    add_news(waiting, (entry(3, last_exit=later),), ())
    assert waiting[0]["a"].last_exit == later
    add_news(waiting, (), (entry(3, "down", last_exit=later),))
    assert waiting == ({}, {"a": entry(3, "down", last_exit=later)})


def message_classes():
    return [
        cls
        for _, cls in inspect.getmembers(messages, inspect.isclass)
        if cls.__module__.startswith(messages.__name__) and dataclasses.is_dataclass(cls)
    ]


@pytest.mark.parametrize("cls", message_classes(), ids=lambda cls: cls.__name__)
def test_every_message_is_frozen_and_slotted(cls):
    assert cls.__dataclass_params__.frozen
    assert "__slots__" in vars(cls)


def test_an_address_reads_back_what_it_writes():
    address = Address("127.0.0.1", 4711)
    assert Address.parse(str(address)) == address
    assert pickle.loads(pickle.dumps(address)) == address
