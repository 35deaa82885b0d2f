"""The texts of a model: tokenises, detokenises and renders chats on a thread beside the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from actors import messages as m
from actors.engine.prompt_tokens import why_too_long
from actors.engine.reply_replay import ReplyReplay
from actors.messages import text as t
from actors.messages.errors import InvalidRequest, RequestRefused, UnsupportedRequest
from actors.messages.payload import Payload, read_payload
from actors.messages.salt import checked_salt
from actors.model.job_queue import JobQueue
from actors.requests.questions import TextQuestion
from actors.text.chat_prompt import ControlTokens, Prompt, prompt_tokens, render_chat
from actors.text.chat_request import Chat, chat_from
from actors.text.chat_shape import completed, fitted
from actors.text.chat_shown import check_shown
from actors.text.chat_template import ChatTemplate, TemplateFailed
from actors.text.divergence import RecentConversations
from actors.text.infill_prompt import infill_from, infill_tokens
from actors.text.part_places import Pieces, token_ends
from actors.text.parts import Part, Parts, parts_of, with_tools
from actors.text.rendered_prompt import Rendered
from actors.text.reply_events import ReplyRules
from actors.text.reply_format import ReplyFormat, ReplyFormats
from actors.text.thinking_signature import is_signed
from cache import tokens as token_bytes

if TYPE_CHECKING:
    from native.backend import Backend
    from supervision import Address

MAX_TEXT_BYTES: Final = 16 << 20
MAX_TOKENS: Final = 4 << 20
PAGE_TOKENS: Final = 8192  # 32 KiB
PAGE_BYTES: Final = 48 << 10
PAGE_PIECES: Final = 512  # of some bytes each; the longest of any vocabulary have 100
PAGE_CHARS: Final = 4096  # of up to 4 bytes each, beside half a page of tokens
PAGE_PARTS: Final = 128  # of up to 100 bytes each, beside both
CLOSE_WAIT_S: Final = 0.5
KEPT_TEMPLATES: Final = 12  # of the model and of requests, least recently used first


@dataclass(frozen=True, slots=True)
class _Job:
    asked: TextQuestion | m.Run
    reply_to: Address
    since: float


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A chat, and what its template makes of it."""

    chat: Chat
    rendered: Prompt
    control: ControlTokens
    parts: Parts


class TextService:
    """One thread, one queue. ``send`` takes answers, ``run`` the chat requests that are ready."""

    def __init__(
        self,
        backend: Backend,
        rules: ReplyRules,
        *,
        send: Callable[[object, object], None],
        run: Callable[[object], None],
        replays: ReplyReplay | None = None,
    ) -> None:
        self._backend = backend
        self._rules = rules
        self._send = send
        self._run = run
        self._replays = replays
        self._templates: dict[str, ChatTemplate] = {}
        self._again_templates: dict[str, ChatTemplate] = {}
        self._formats = ReplyFormats(backend)
        self._control: ControlTokens | None = None
        self._recent = RecentConversations()
        self._pieces = Pieces(backend)
        self._pending: dict[str, m.Run] = {}
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()  # of the two above; held for moments
        self._jobs: JobQueue[_Job] = JobQueue(
            "text service", "texts", do=self._do, refuse=self._refuse
        )

    # ── called from the mailbox ─────────────────────────────────────────────────────────────────

    def ask(self, question: TextQuestion, reply_to: Address) -> None:
        """Put a question in the queue; its answer, or a refusal, goes to ``reply_to``."""
        self._jobs.put(_Job(question, reply_to, time.monotonic()))

    def prepare(self, run: m.Run) -> None:
        """Make tokens of a prompt that is no plain text, then give the request to the engine."""
        with self._lock:
            self._pending[run.request_id] = run
        self._jobs.put(_Job(run, run.reply_to, time.monotonic()))

    def cancel(self, request_id: str) -> bool:
        """Whether the request is here; then its cancel follows it to the engine."""
        with self._lock:
            if request_id not in self._pending:
                return False
            self._cancelled.add(request_id)
            return True

    def __len__(self) -> int:
        """Chat requests that are here."""
        return len(self._pending)

    def close(self, reason: m.FailReason, detail: str) -> None:
        """End what is here with this reason. Wait a moment for the job that is under way."""
        self._jobs.close(reason, detail)
        with self._lock:
            left = list(self._pending.values())
            self._pending.clear()
        for run in left:
            self._fail(run, reason, detail)
        self._jobs.wait_ended(CLOSE_WAIT_S)

    # ── the thread ──────────────────────────────────────────────────────────────────────────────

    def _do(self, job: _Job) -> None:
        match job.asked:
            case m.Run():
                self._prepare(job, job.asked)
            case t.Tokenize():
                self._tokenize(job.asked, job.reply_to)
            case t.Detokenize():
                self._detokenize(job.asked, job.reply_to)
            case t.ApplyChatTemplate():
                self._apply(job.asked, job.reply_to)
            case t.VerifyThinking(ref, content, signature):
                valid = is_signed(self._rules.signing_key, _read(content), signature)
                self._send(job.reply_to, t.ThinkingVerified(ref, valid))

    def _refuse(self, job: _Job, reason: m.FailReason, detail: str) -> None:
        if not isinstance(job.asked, m.Run):
            self._send(job.reply_to, t.TextRefused(job.asked.ref, reason, detail))
            return
        with self._lock:
            here = self._pending.pop(job.asked.request_id, None) is not None
            self._cancelled.discard(job.asked.request_id)
        if here:
            self._fail(job.asked, reason, detail)

    def _fail(self, run: m.Run, reason: m.FailReason, detail: str) -> None:
        self._send(run.reply_to, m.CompletionFailed(run.request.ref, reason, detail))
        self._send("inflight", m.RequestEnded(run.request_id))

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────

    def _tokenize(self, asked: t.Tokenize, reply_to: Address) -> None:
        text = asked.text if isinstance(asked.text, str) else _decoded(_read(asked.text))
        if len(text) > MAX_TEXT_BYTES:
            raise InvalidRequest(_too_much("characters", MAX_TEXT_BYTES))
        too_long = why_too_long(text, self._backend.info) if asked.as_prompt else None
        if too_long is not None:
            raise RequestRefused(m.FailReason.PROMPT_TOO_LONG, too_long)
        ids = self._backend.tokenize(
            text, add_special=asked.add_special, parse_special=asked.parse_special
        )
        for page, last in _pages(token_bytes.pack(ids), PAGE_TOKENS * token_bytes.TOKEN_BYTES):
            self._send(reply_to, t.Tokenized(asked.ref, page, last))

    def _detokenize(self, asked: t.Detokenize, reply_to: Address) -> None:
        packed = _read(asked.tokens)
        if len(packed) % token_bytes.TOKEN_BYTES:
            raise InvalidRequest(
                f"{len(packed)} bytes are no whole tokens; a token is a u32, little-endian",
            )
        if len(packed) > MAX_TOKENS * token_bytes.TOKEN_BYTES:
            raise InvalidRequest(_too_much("tokens", MAX_TOKENS))
        ids = token_bytes.unpack(packed)
        n_vocab = self._backend.info.n_vocab
        if ids and max(ids) >= n_vocab:
            raise InvalidRequest(
                f"token {max(ids)} is not in the vocabulary of {n_vocab} tokens",
            )
        if asked.by_token:
            pieces = [self._backend.piece(one, special=asked.special) for one in ids]
            for start in range(0, max(1, len(pieces)), PAGE_PIECES):
                some = pieces[start : start + PAGE_PIECES]
                is_last = start + PAGE_PIECES >= len(pieces)
                lengths = tuple(map(len, some))
                self._send(reply_to, t.Detokenized(asked.ref, b"".join(some), is_last, lengths))
            return
        data = self._backend.detokenize(ids, special=asked.special)
        for page, last in _pages(data, PAGE_BYTES):
            self._send(reply_to, t.Detokenized(asked.ref, page, last))

    def _apply(self, asked: t.ApplyChatTemplate, reply_to: Address) -> None:
        found = self._prompt(asked.chat)
        text = found.rendered.text
        parts = with_tools(found.chat, text, found.parts)
        ids = prompt_tokens(self._backend, found.rendered, found.control)
        ends = token_ends(text, [one.end for one in parts.found], ids, self._pieces)
        shown = _shown_parts(parts.found, ends)
        packed = token_bytes.pack(ids)
        step = PAGE_TOKENS // 2 * token_bytes.TOKEN_BYTES
        n_pages = max(
            1, -(-len(text) // PAGE_CHARS), -(-len(packed) // step), -(-len(shown) // PAGE_PARTS)
        )
        for page in range(n_pages):
            self._send(
                reply_to,
                t.ChatTemplateApplied(
                    asked.ref,
                    text[page * PAGE_CHARS : (page + 1) * PAGE_CHARS],
                    packed[page * step : (page + 1) * step],
                    last=page == n_pages - 1,
                    parts=shown[page * PAGE_PARTS : (page + 1) * PAGE_PARTS],
                    unknown=parts.unknown[page * PAGE_PARTS : (page + 1) * PAGE_PARTS],
                ),
            )

    def _prepare(self, job: _Job, run: m.Run) -> None:
        request = run.request
        if isinstance(request.prompt, m.InfillPrompt):
            self._prepare_infill(job, run, request.prompt)
            return
        if not isinstance(request.prompt, m.ConversationPrompt):
            raise InvalidRequest("the prompt is no conversation; send messages")
        checked_salt(request.salt)
        prompt = self._prompt(request.prompt.conversation)
        too_long = why_too_long(prompt.rendered.text, self._backend.info)
        if too_long is not None:
            raise RequestRefused(m.FailReason.PROMPT_TOO_LONG, too_long)
        ids = prompt_tokens(self._backend, prompt.rendered, prompt.control)
        has_tools = prompt.chat.has_tools and bool(self._rules.markers.tool_call)
        asked = replace(request, tool_calls=request.tool_calls or has_tools)
        rendered = self._rendered(request, prompt, ids)
        self._hand_on(job, replace(run, request=asked), ids, rendered)

    def _prepare_infill(self, job: _Job, run: m.Run, prompt: m.InfillPrompt) -> None:
        parts = infill_from(prompt.parts if isinstance(prompt.parts, str) else _read(prompt.parts))
        too_long = why_too_long("".join(parts.texts()), self._backend.info)
        if too_long is not None:
            raise RequestRefused(m.FailReason.PROMPT_TOO_LONG, too_long)
        self._hand_on(job, run, infill_tokens(self._backend, parts), None)

    def _hand_on(self, job: _Job, run: m.Run, ids: list[int], rendered: Rendered | None) -> None:
        """Give a request with its tokens to the engine, unless its caller has left meanwhile."""
        waited, timeout_s = time.monotonic() - job.since, run.request.timeout_s
        packed = token_bytes.pack(ids) if rendered is None else rendered.packed
        ready = replace(
            run,
            request=replace(
                run.request,
                prompt=m.TokenPrompt(packed),
                timeout_s=None if timeout_s is None else max(0.0, timeout_s - waited),
            ),
        )
        with self._lock:
            here = self._pending.pop(run.request_id, None) is not None
            cancelled = run.request_id in self._cancelled
            self._cancelled.discard(run.request_id)
        if here:
            if self._replays is not None and rendered is not None:
                self._replays.rendered(run.request_id, rendered)
            self._run(ready)
            if cancelled:
                self._run(m.CancelRun(run.request_id))

    def _rendered(self, request: m.Complete, prompt: _Prompt, ids: list[int]) -> Rendered:
        """What the engine is to know of a chat besides its tokens; the chat is remembered."""
        chat, packed = prompt.chat, token_bytes.pack(ids)
        places, earlier = self._recent.place(
            prompt.parts, prompt.rendered.text, ids, packed, self._pieces, request.salt
        )
        reply_format = self._format(request, chat, prompt.rendered, prompt.control)
        is_whole = reply_format is not None and chat.continuing is None
        return Rendered(
            prompt.rendered,
            prompt.control,
            has_replies=any(one["role"] == "assistant" for one in chat.messages),
            format=reply_format,
            again=self._again(chat) if is_whole else None,
            packed=packed,
            places=places,
            earlier=earlier,
            pieces=self._pieces,
        )

    def _prompt(self, source: Payload | str) -> _Prompt:
        raw = source if isinstance(source, str) else _read(source)
        chat = chat_from(raw)
        template = self._compiled(chat)
        control = self._control or ControlTokens.of(self._backend)
        self._control = control
        chat = fitted(template, chat)
        prompt = render_chat(template, chat, control)
        parts = parts_of(chat, prompt.text, prompt.marks)
        thinks = bool(self._rules.markers.thinking)
        check_shown(template, chat, prompt.text, thinks=thinks, parts=parts)
        return _Prompt(chat, prompt, control, parts)

    def _format(
        self, request: m.Complete, chat: Chat, prompt: Prompt, control: ControlTokens
    ) -> ReplyFormat | None:
        """How the reply is read, where the request separates thinking or tool calls from text."""
        if self._rules.markers_are_set or not (chat.add_generation_prompt or chat.continuing):
            return None
        if not (chat.has_tools or chat.tool_choice.must_call or request.thinking):
            return None
        found = self._formats.of(self._compiled(chat).source, chat, prompt.text, control)
        if found is None or (not chat.has_tools and not found.reader.facts.can_think):
            return None
        return found

    def _again(self, chat: Chat) -> Callable[[Mapping[str, Any]], str | None]:
        """What renders the conversation with its reply, on the engine's thread.

        With a template of its own: one is used by one thread.
        """
        info, mine = self._backend.info, self._compiled(chat)
        other = self._again_templates.pop(mine.source, None) or ChatTemplate(
            mine.source,
            bos_token=self._shown(info.bos_token),
            eos_token=self._shown(info.eos_token),
        )
        other.shape = mine.shape
        self._again_templates[mine.source] = other
        while len(self._again_templates) > KEPT_TEMPLATES:
            del self._again_templates[next(iter(self._again_templates))]

        def again(message: Mapping[str, Any]) -> str | None:
            longer = replace(chat, sent=[*chat.sent, dict(message)], add_generation_prompt=False)
            try:
                return other.render(longer.reshaped().variables())
            except TemplateFailed:
                return None

        return again

    def _compiled(self, chat: Chat) -> ChatTemplate:
        """The template for this conversation, compiled at its first use; raises TemplateFailed."""
        info = self._backend.info
        usual = info.chat_template or ""
        source = chat.template or _chosen(chat, usual, dict(info.named_templates))
        if not source:
            raise UnsupportedRequest(
                "this model has no chat template; send a prompt as text, or a chat_template",
            )
        found = self._templates.pop(source, None)
        if found is None:
            ends = self._shown(info.bos_token), self._shown(info.eos_token)
            found = completed(ChatTemplate(source, bos_token=ends[0], eos_token=ends[1]))
        self._templates[source] = found
        while len(self._templates) > KEPT_TEMPLATES:
            del self._templates[next(iter(self._templates))]
        return found

    def _shown(self, token: int | None) -> str:
        if token is None:
            return ""
        return self._backend.piece(token, special=True).decode("utf-8", "replace")


def _shown_parts(parts: Sequence[Part], ends: Sequence[int | None]) -> tuple[t.ChatPart, ...]:
    starts = (0, *ends)
    return tuple(
        t.ChatPart(one.name, one.start, one.end, start, end, *(one.content or (None, None)))
        for one, start, end in zip(parts, starts, ends, strict=False)
    )


def _chosen(chat: Chat, usual: str, named: Mapping[str, str]) -> str:
    """The template that the model's file has for such a conversation; the usual one otherwise."""
    if chat.has_tools or chat.has_calls:
        return named.get("tool_use") or usual
    if chat.extras.get("documents"):
        return named.get("rag") or usual
    return usual


def _read(payload: Payload) -> bytes:
    limit = max(MAX_TEXT_BYTES, MAX_TOKENS * token_bytes.TOKEN_BYTES)
    n_bytes = len(payload) if isinstance(payload, bytes) else payload.n_bytes
    if n_bytes > limit:
        raise InvalidRequest(_too_much("bytes", limit))
    return read_payload(payload)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the text is not UTF-8 at byte {error.start}") from error


def _pages(data: bytes, size: int) -> Iterator[tuple[bytes, bool]]:
    for start in range(0, max(1, len(data)), size):
        yield data[start : start + size], start + size >= len(data)


def _too_much(what: str, limit: int) -> str:
    return f"too long: at most {limit} {what} are taken at once"
