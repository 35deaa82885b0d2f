"""Specs refuse impossible values, each with one error that names the value."""

from __future__ import annotations

import pickle

import pytest

from supervision.errors import SpecError
from supervision.spec import (
    BRUTAL_KILL,
    INFINITY,
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


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": ""}, "ChildSpec.id"),
        ({"actor": "NoModule"}, "ChildSpec.actor"),
        ({"actor": "a.b.not-a-name"}, "ChildSpec.actor"),
        ({"restart": "permanent"}, "ChildSpec.restart"),
        ({"kind": "worker"}, "ChildSpec.kind"),
        ({"shutdown": 0}, "ChildSpec.shutdown"),
        ({"shutdown": float("inf")}, "ChildSpec.shutdown"),
        ({"shutdown": "brutal"}, "ChildSpec.shutdown"),
        ({"init_timeout_s": -1}, "ChildSpec.init_timeout_s"),
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
        ({"period_s": 0}, "SupervisorSpec.period_s"),
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


def test_an_id_appears_once_in_the_whole_tree():
    below = SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", ACTOR),))
    sub = ChildSpec("sub", ACTOR, args=below, kind=ChildKind.SUPERVISOR)
    with pytest.raises(SpecError, match="'a'"):
        SupervisorSpec(Strategy.ONE_FOR_ONE, (ChildSpec("a", ACTOR), sub))


@pytest.mark.parametrize("change", [{"first_s": 0}, {"factor": 0.5}, {"max_s": -1}])
def test_a_backoff_refuses_impossible_values(change):
    with pytest.raises(SpecError):
        Backoff(**change)


def test_markers_and_specs_survive_a_message():
    spec = ChildSpec("a", ACTOR, restart=Restart.TRANSIENT, shutdown=BRUTAL_KILL)
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.shutdown is BRUTAL_KILL
    assert pickle.loads(pickle.dumps(INFINITY)) is INFINITY
