"""Specs refuse impossible values, each with one error that names the value."""

from __future__ import annotations

import pickle

import pytest

from supervision.errors import SpecError
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
    AutoShutdown,
    Backoff,
    ChildKind,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)

pytestmark = pytest.mark.pure

ACTOR = "tests.support.children.GoodChild"
ONE = SupervisorSpec(Strategy.ONE_FOR_ONE)
NAN = float("nan")
SIGNIFICANT = ChildSpec("a", ACTOR, restart=Restart.TRANSIENT, significant=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": ""}, "ChildSpec.id"),
        ({"id": None}, "ChildSpec.id"),
        ({"id": "root"}, "ChildSpec.id"),
        ({"actor": "NoModule"}, "ChildSpec.actor"),
        ({"actor": "a.b.not-a-name"}, "ChildSpec.actor"),
        ({"actor": "a..Name"}, "ChildSpec.actor"),
        ({"actor": b"a.Name"}, "ChildSpec.actor"),
        ({"restart": "permanent"}, "ChildSpec.restart"),
        ({"restart": None}, "ChildSpec.restart"),
        ({"kind": "worker"}, "ChildSpec.kind"),
        ({"shutdown": 0}, "ChildSpec.shutdown"),
        ({"shutdown": float("inf")}, "ChildSpec.shutdown"),
        ({"shutdown": "brutal"}, "ChildSpec.shutdown"),
        ({"shutdown": NAN}, "ChildSpec.shutdown"),
        ({"shutdown": True}, "ChildSpec.shutdown"),
        ({"shutdown": None}, "ChildSpec.shutdown"),
        ({"shutdown": 10**400}, "ChildSpec.shutdown"),
        ({"init_timeout_s": -1}, "ChildSpec.init_timeout_s"),
        ({"init_timeout_s": NAN}, "ChildSpec.init_timeout_s"),
        ({"init_timeout_s": "10"}, "ChildSpec.init_timeout_s"),
        ({"backoff": 1.0}, "ChildSpec.backoff"),
        ({"restart_if_never_ready": 1}, "ChildSpec.restart_if_never_ready"),
        ({"significant": "yes", "restart": Restart.TRANSIENT}, "ChildSpec.significant"),
        ({"significant": True}, "ChildSpec.significant"),
        ({"kind": ChildKind.SUPERVISOR}, "ChildSpec.args"),
        ({"args": ONE}, "ChildSpec.args"),
    ],
)
def test_a_child_spec_names_the_value_that_is_wrong(change, field):
    with pytest.raises(SpecError) as caught:
        ChildSpec(**{"id": "a", "actor": ACTOR, **change})
    assert caught.value.field == field
    assert repr(caught.value.value) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"strategy": "one_for_one"}, "SupervisorSpec.strategy"),
        ({"intensity": -1}, "SupervisorSpec.intensity"),
        ({"intensity": 1.5}, "SupervisorSpec.intensity"),
        ({"intensity": True}, "SupervisorSpec.intensity"),
        ({"intensity": None}, "SupervisorSpec.intensity"),
        ({"period_s": 0}, "SupervisorSpec.period_s"),
        ({"period_s": -1.0}, "SupervisorSpec.period_s"),
        ({"period_s": NAN}, "SupervisorSpec.period_s"),
        ({"period_s": float("inf")}, "SupervisorSpec.period_s"),
        ({"period_s": "30"}, "SupervisorSpec.period_s"),
        ({"auto_shutdown": "never"}, "SupervisorSpec.auto_shutdown"),
        ({"auto_shutdown": None}, "SupervisorSpec.auto_shutdown"),
        ({"children": (SIGNIFICANT,)}, "ChildSpec.significant"),
        (
            {"strategy": Strategy.SIMPLE_ONE_FOR_ONE, "template": SIGNIFICANT},
            "ChildSpec.significant",
        ),
        (
            {"strategy": Strategy.SIMPLE_ONE_FOR_ONE, "template": "a.b.C"},
            "SupervisorSpec.template",
        ),
        ({"children": [ChildSpec("a", ACTOR)]}, "SupervisorSpec.children"),
        ({"children": ("a",)}, "SupervisorSpec.children"),
        ({"template": ChildSpec("a", ACTOR)}, "SupervisorSpec.template"),
        ({"strategy": Strategy.SIMPLE_ONE_FOR_ONE}, "SupervisorSpec.template"),
        (
            {
                "strategy": Strategy.SIMPLE_ONE_FOR_ONE,
                "template": ChildSpec("t", ACTOR),
                "children": (ChildSpec("a", ACTOR),),
            },
            "SupervisorSpec.children",
        ),
    ],
)
def test_a_supervisor_spec_names_the_value_that_is_wrong(change, field):
    with pytest.raises(SpecError) as caught:
        SupervisorSpec(**{"strategy": Strategy.ONE_FOR_ONE, **change})
    assert caught.value.field == field
    assert repr(caught.value.value) in str(caught.value)


def test_a_significant_child_is_transient_or_temporary_below_an_auto_shutdown_supervisor():
    for restart in (Restart.TRANSIENT, Restart.TEMPORARY):
        for auto in (AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT):
            child = ChildSpec("a", ACTOR, restart=restart, significant=True)
            SupervisorSpec(Strategy.ONE_FOR_ONE, (child,), auto_shutdown=auto)
            SupervisorSpec(Strategy.SIMPLE_ONE_FOR_ONE, template=child, auto_shutdown=auto)


def test_an_id_appears_once_in_the_whole_tree():
    below = SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", ACTOR),))
    sub = ChildSpec("sub", ACTOR, args=below, kind=ChildKind.SUPERVISOR)
    with pytest.raises(SpecError, match="'a'"):
        SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", ACTOR), sub))


@pytest.mark.parametrize(
    "change",
    [
        {"first_s": 0},
        {"first_s": NAN},
        {"first_s": "1"},
        {"factor": 0.5},
        {"factor": NAN},
        {"factor": float("inf")},
        {"factor": "2"},
        {"max_s": -1},
        {"max_s": float("inf")},
        {"max_s": 0.05},
        {"jitter": -0.1},
        {"jitter": 1.0},
        {"jitter": NAN},
        {"jitter": None},
    ],
    ids=str,
)
def test_a_backoff_names_the_value_that_is_wrong(change):
    with pytest.raises(SpecError) as caught:
        Backoff(**change)
    (name, value), *_ = change.items()
    assert caught.value.field == f"Backoff.{name}"
    assert repr(value) in str(caught.value)


def test_markers_and_specs_survive_a_message():
    spec = ChildSpec("a", ACTOR, restart=Restart.TRANSIENT, shutdown=BRUTAL_KILL)
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.shutdown is BRUTAL_KILL
    assert pickle.loads(pickle.dumps(INFINITY)) is INFINITY
