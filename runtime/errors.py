"""Errors that users of a node can meet: what happened, and what to do.

``ModelError`` and its kinds carry the id of the model, ``ConfigError`` the key of the setting.

* LlamaActorsError
  x ConfigError           a setting is wrong                    -> fix the named key
  x NodeError
    - NodeNotRunning        nothing answers on that port          -> start one, or name its port
    - NodeStartFailed       the node process ended at start       -> read the detail
    - MachineUnfit          /proc or the loopback is missing      -> make it available
    - ForkedProcess         it was opened before a fork           -> open it in this process
    - NoReply               an actor did not answer in time       -> it may be restarting; try again
  x GatewayError
    - GatewayUnreachable    no whole answer comes from there      -> start it, or correct the URL
    - GatewayRefused        a key is missing, or may not do that  -> use another key, or wait
    - NotAGateway           something else answers there          -> correct the URL, or update
  x ModelError
    - ModelUnknown          no model of that id is loaded         -> load it
    - ModelAlreadyLoaded    the id is taken                       -> unload it, or choose another id
    - ModelLoadFailed       the file could not be loaded          -> see kind and detail
    - ModelDown             its process ended, did not come back  -> see the log, try again later
    - ModelUnloaded         it was unloaded during the request    -> load it again
    - ModelStopped          it crashed too often                  -> read the log, load it again
    - NoSuchModel           nothing on this machine is named so   -> see the names, or fetch it
    - FetchFailed           a hub's model was not fetched         -> read the detail, try again
    - NotRemovable          its files are not ours, or in use     -> read the detail
  x RequestError
    - InvalidRequest        an argument is wrong                  -> fix the named argument
    - PromptTooLong         prompt and context do not fit         -> shorten it, or a larger n_ctx
    - Overloaded            too many requests wait                -> again after retry_after_s
    - DeadlineExceeded      not finished within timeout_s         -> more time, or fewer tokens
    - SessionBusy           another request of it is running      -> wait for it, or cancel it
    - NotSupported          this model cannot do that             -> load it so that it can
    - EngineFailed          llama.cpp failed on this request      -> report it with the detail
    - RequestPoisoned       the request crashes its model         -> change it, report the fault
"""

from __future__ import annotations


class LlamaActorsError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(LlamaActorsError):
    """A setting is wrong; ``key`` names it. The node did not start."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key}: {detail}")
        self.key = key


class NodeError(LlamaActorsError):
    """The node as a whole cannot do what was asked."""


class NodeNotRunning(NodeError):
    """No node answers where one was expected. Start one, or name the right port."""

    def __init__(self, port: int, detail: str = "") -> None:
        because = f" ({detail})" if detail else ""
        super().__init__(
            f"no node runs on admin port {port}{because}; start one with "
            "`python -m runtime serve`, or name its port with --admin-port or LLAMA_ACTORS_PORT"
        )
        self.port = port


class NodeStartFailed(NodeError):
    """The node process ended before it was ready; the text is its own error message.

    ``kind`` is the name of the error that stopped it, such as ``PortInUse`` or ``ConfigError``.
    """

    def __init__(self, detail: str, kind: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


class NoReply(NodeError):
    """An actor did not answer in time. It may be restarting; trying again is safe."""


class MachineUnfit(NodeError):
    """This machine, or container, lacks what every node needs; the text names how to add it."""


class ForkedProcess(NodeError):
    """What another process opened was used in one that was forked from it.

    A ``Node`` itself may be used in a child, where it opens a connection of its own. A stream that
    was begun before the fork may not, and no child stops the node: attach in the child for that.
    """


class GatewayError(LlamaActorsError):
    """A node was asked by the HTTP of its gateway, and that failed before it was asked."""


class GatewayUnreachable(GatewayError):
    """No connection, or one that broke; or a gateway that cannot answer now."""


class GatewayRefused(GatewayError):
    """The gateway answers, and not this caller: its key is missing, wrong, or may not do that."""


class NotAGateway(GatewayError):
    """What answers at that URL is no gateway of this program, or one of another version."""


class ModelError(LlamaActorsError):
    """Something about one model; ``model`` is its id."""

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(detail)
        self.model = model


class ModelUnknown(ModelError):
    """No model of that id is loaded. Load it first."""


class ModelAlreadyLoaded(ModelError):
    """The id is taken. Unload that model first, or choose another id."""


class ModelLoadFailed(ModelError):
    """The model did not load; ``kind`` is the error's name in ``native.errors``."""

    def __init__(self, model: str, kind: str, detail: str) -> None:
        super().__init__(model, detail)
        self.kind = kind


class ModelDown(ModelError):
    """The model's process ended while it worked on the request, and did not come back in time.

    If it comes back in time, no error is raised: the reply continues at its next token.
    """


class ModelUnloaded(ModelError):
    """The model was unloaded while it worked on the request."""


class ModelStopped(ModelError):
    """The model crashed so often that it was stopped. Read the log, then load it again."""


class NoSuchModel(ModelError):
    """Nothing on this machine has that name: no file, no fetched model, no loaded one."""


class FetchFailed(ModelError):
    """A model of a hub was not fetched. What has come of it is kept for the next attempt."""

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(model, f"{model} was not fetched: {detail}")


class NotRemovable(ModelError):
    """The files of a model are not removed: others own them, or the model is loaded."""


class RequestError(LlamaActorsError):
    """One request could not be done; the node and its model are not affected."""


class InvalidRequest(RequestError):
    """An argument is wrong; the message names it, what was given and what is expected."""


class PromptTooLong(RequestError):
    """The prompt does not fit the context.

    ``n_prompt`` tokens are too many where ``n_ctx`` fit; a reply needs room for a token besides.
    Of a text above 1 MiB, and of a prompt that only continues a session, ``n_prompt`` is the least
    number that it may have. ``None``: not known.
    """

    def __init__(self, detail: str, n_prompt: int | None = None, n_ctx: int | None = None) -> None:
        super().__init__(detail)
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class Overloaded(RequestError):
    """Too many requests wait already; try again later.

    ``retry_after_s``: after so many seconds, 1 to 60, by how fast requests ended lately; ``None``
    where that is not known.
    """

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The request was not finished within its ``timeout_s``."""


class SessionBusy(RequestError):
    """Another request of the same session is running. Wait for its end, or cancel it."""


class NotSupported(RequestError):
    """This model cannot do that as it is loaded; the message names what it lacks."""


class EngineFailed(RequestError):
    """llama.cpp failed on this request; other requests are not affected."""


class RequestPoisoned(RequestError):
    """The process of ``model`` died each time it ran this request; other requests succeeded.

    The node cannot repair that: the request hits a fault in llama.cpp or in the model file, or it
    needs more memory than there is; the text names the cause as far as the kernel reports it. The
    same prompt with the same sampling, or the same question, is refused for some minutes, so that
    it ends no more processes; change it, give the node more memory, or report the fault with the
    node's log.
    """

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(detail)
        self.model = model
