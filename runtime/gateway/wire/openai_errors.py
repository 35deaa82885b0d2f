"""Failures in OpenAI's words, which llama-server and its clients use too."""

from __future__ import annotations

from typing import Any, Final

from runtime.gateway.wire.failure import Failure, Fault

_TYPES: Final = {
    Fault.NO_KEY: "authentication_error",
    Fault.FORBIDDEN: "permission_error",
    Fault.RATE: "rate_limit_error",
    Fault.CONFLICT: "conflict",
    Fault.INTERNAL: "server_error",
    Fault.UNSUPPORTED: "not_supported_error",
    Fault.NOT_DONE: "not_supported_error",
    Fault.OVERLOADED: "overloaded_error",
    Fault.UNAVAILABLE: "overloaded_error",
    Fault.DEADLINE: "timeout_error",
    Fault.NOT_FOUND: "not_found_error",
}
_CODES: Final = {
    Fault.TOO_LONG: "context_length_exceeded",
    Fault.NO_KEY: "invalid_api_key",
    Fault.NO_MODEL: "model_not_found",
    Fault.NOT_FOUND: "not_found",
    Fault.POISONED: "request_poisoned",
    Fault.RATE: "rate_limit_exceeded",
    Fault.OVERLOADED: "server_is_overloaded",
    Fault.UNAVAILABLE: "server_is_overloaded",
    Fault.DEADLINE: "deadline_exceeded",
}


def error_object(failure: Failure) -> dict[str, Any]:
    """``{"error": …}``, in a body and in a stream."""
    return {
        "error": {
            "message": failure.message,
            "type": _TYPES.get(failure.fault, "invalid_request_error"),
            "param": failure.param,
            "code": failure.code or _CODES.get(failure.fault),
        }
    }


def own_error_object(failure: Failure) -> dict[str, Any]:
    """OpenAI's form, and ``kind``: the error's class in ``runtime.errors``, with its own text."""
    error = error_object(failure)["error"]
    error["message"] = failure.said or failure.message
    return {"error": error | {"kind": failure.kind}}


def native_error_object(failure: Failure) -> dict[str, Any]:
    """llama-server's form: its codes are statuses, and overflow has a type of its own."""
    error: dict[str, Any] = {
        "code": 501 if failure.fault is Fault.UNSUPPORTED else failure.status,
        "message": failure.message,
        "type": _TYPES.get(failure.fault, "invalid_request_error"),
    }
    if failure.fault is Fault.TOO_LONG:
        error["type"] = "exceed_context_size_error"
        error["message"] = f"request exceeds the available context size: {failure.message}"
        error |= {"n_prompt_tokens": failure.n_prompt, "n_ctx": failure.n_ctx}
    return {"error": error}
