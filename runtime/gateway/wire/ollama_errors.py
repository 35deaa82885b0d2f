"""Failures in Ollama's words, by which its clients recognise them."""

from __future__ import annotations

from typing import Any, Final

from runtime.gateway.wire.failure import Failure, Fault, Refused

BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"


def error_object(failure: Failure) -> dict[str, Any]:
    """``{"error": …}``, in a body and as the last line of a stream."""
    return {"error": BUSY if failure.fault is Fault.OVERLOADED else failure.message}


def no_model(name: str, more: str = "") -> Refused:
    """There is no model of that name; raise it."""
    return Refused(Failure(Fault.NO_MODEL, f"model '{name}' not found{more}", "model"))
