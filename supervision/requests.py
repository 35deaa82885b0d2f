"""Which requests a supervisor refuses, as OTP does.

``start_child`` makes a child, ``restart_child`` starts one that is known and down,
``terminate_child`` stops one, ``delete_child`` forgets one that is down. Here is only which of
them are refused, and why; what follows from one that is not is in ``core.py``.
"""

from __future__ import annotations

from dataclasses import replace

from supervision.effects import Child, State
from supervision.errors import SpecError
from supervision.messages import DeleteFailure, StartFailure
from supervision.spec import ChildSpec, Strategy, SupervisorSpec, require_significant_may_be


def spec_of_new_child(
    supervisor: SupervisorSpec, child_id: str, args: object, spec: ChildSpec | None
) -> ChildSpec:
    """What start_child is to start: the template with an id and args, or the spec that came along.

    Raises SpecError where that is impossible.
    """
    if supervisor.template is not None:
        if spec is not None:
            raise SpecError("StartChild.spec", spec.id, "simple_one_for_one has a template")
        return replace(supervisor.template, id=child_id, args=args)
    if not isinstance(spec, ChildSpec):
        raise SpecError("StartChild.spec", spec, "must be a ChildSpec: there is no template here")
    if spec.id != child_id:
        raise SpecError("StartChild.child_id", child_id, f"the spec is for {spec.id!r}")
    if args is not None:
        raise SpecError("StartChild.args", args, "the args of a child with a spec belong into it")
    require_significant_may_be(spec, supervisor.auto_shutdown)
    return spec


def why_not_start(
    supervisor: SupervisorSpec, child: Child | None, *, has_spec: bool
) -> tuple[StartFailure, str] | None:
    """Why start_child is refused, independent of the spec."""
    is_dynamic = supervisor.strategy is Strategy.SIMPLE_ONE_FOR_ONE
    if child is None:
        if is_dynamic or has_spec:
            return None
        return StartFailure.UNKNOWN_CHILD, "only simple_one_for_one can start it without its spec"
    if child.state is not State.DOWN:
        return StartFailure.ALREADY_STARTED, f"it is {child.state.value}"
    if is_dynamic:  # one that crashed too often and was given up: it may be started again
        return None
    return StartFailure.ALREADY_PRESENT, "it is known and down; restart_child starts it"


def why_not_restart(
    supervisor: SupervisorSpec, child: Child | None
) -> tuple[StartFailure, str] | None:
    """Why restart_child is refused."""
    if supervisor.strategy is Strategy.SIMPLE_ONE_FOR_ONE:
        return StartFailure.SIMPLE_ONE_FOR_ONE, "its children are made by start_child"
    if child is None:
        return StartFailure.UNKNOWN_CHILD, "this supervisor has no such child"
    if child.state is State.RESTARTING:
        return StartFailure.RESTARTING, "it is about to start"
    if child.has_process:
        return StartFailure.RUNNING, f"it is {child.state.value}"
    return None


def why_not_delete(
    supervisor: SupervisorSpec, child: Child | None
) -> tuple[DeleteFailure, str] | None:
    """Why delete_child is refused."""
    if supervisor.strategy is Strategy.SIMPLE_ONE_FOR_ONE:
        return DeleteFailure.SIMPLE_ONE_FOR_ONE, "terminate_child forgets its children"
    if child is None:
        return DeleteFailure.UNKNOWN_CHILD, "this supervisor has no such child"
    if child.state is State.RESTARTING:
        return DeleteFailure.RESTARTING, "it is about to start; terminate it first"
    if child.has_process:
        return DeleteFailure.RUNNING, f"it is {child.state.value}; terminate it first"
    return None
