"""The texts of a model: tokenises, detokenises and renders chats on a thread beside the engine.

Prompts too, but for short texts: those fit, and are tokenised faster than they are handed on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from actors import messages as m
from actors.engine.prompt_tokens import check_bytes, check_tokens, is_countable, whole_text
from actors.engine.reply_replay import ReplyReplay
from actors.messages import text as t
from actors.messages.errors import InvalidRequest, RequestRefused, UnsupportedRequest
from actors.messages.payload import Payload, PayloadGone, read_payload
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
from cache.tokens import TokenIds
from native.errors import NativeError

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
ADDED_TOKENS: Final = 4  # that a tokenizer puts around a text, at most
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
    """One thread, one queue. ``send`` takes answers, ``run`` the requests that are ready."""

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

    def prepares(self, run: m.Run) -> bool:
        """Whether its prompt is made tokens here: not token ids, nor a text that is short.

        A text with fewer bytes than the context has cells fits into it. A longer one is counted
        here, so that one that does not fit is refused before its turn, and no step waits for that.
        """
        info = self._backend.info
        match run.request.prompt:
            case m.ConversationPrompt() | m.InfillPrompt():
                return True
            case m.TextPrompt(text):
                return info.can_generate and _n_bytes(text) + ADDED_TOKENS > info.n_ctx
            case _:
                return False

    def prepare(self, run: m.Run) -> None:
        """Make tokens of a prompt, then give the request to the engine."""
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
        """Requests that are here."""
        return len(self._pending)

    def close(self, reason: m.FailReason, detail: str) -> None:
        """End what is here with this reason. Wait a moment for the job that is under way."""
        self._jobs.close(reason, detail)
        with self._lock:
            left = list(self._pending.values())
            self._pending.clear()
        for run in left:
            self._fail(run, RequestRefused(reason, detail))
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

    def _refuse(self, job: _Job, why: RequestRefused) -> None:
        if not isinstance(job.asked, m.Run):
            refused = t.TextRefused(job.asked.ref, why.reason, str(why), why.facts)
            self._send(job.reply_to, refused)
            return
        with self._lock:
            here = self._pending.pop(job.asked.request_id, None) is not None
            self._cancelled.discard(job.asked.request_id)
        if here:
            self._fail(job.asked, why)

    def _fail(self, run: m.Run, why: RequestRefused) -> None:
        failed = m.CompletionFailed(run.request.ref, why.reason, str(why), why.facts)
        self._send(run.reply_to, failed)
        self._send("inflight", m.RequestEnded(run.request_id))

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────

    def _tokenize(self, asked: t.Tokenize, reply_to: Address) -> None:
        text = asked.text if isinstance(asked.text, str) else _decoded(_read(asked.text))
        if len(text) > MAX_TEXT_BYTES:
            raise InvalidRequest(_too_much("characters", MAX_TEXT_BYTES))
        if asked.as_prompt:
            self._check_bytes(text)
        ids = self._backend.tokenize(
            text, add_special=asked.add_special, parse_special=asked.parse_special
        )
        if asked.as_prompt:
            check_tokens(len(ids), self._backend.info)
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
        match run.request.prompt:
            case m.ConversationPrompt(conversation):
                self._prepare_chat(job, run, conversation)
            case m.InfillPrompt(parts):
                self._prepare_infill(job, run, parts)
            case m.TextPrompt() as prompt:
                self._hand_on(job, run, self._text_ids(prompt))
            case _:
                raise InvalidRequest("the prompt is no conversation; send messages")

    def _check_bytes(self, text: str) -> None:
        """RequestRefused for a prompt that cannot fit and is too large to be counted."""
        if not is_countable(text):
            check_bytes(text, self._backend.info)

    def _text_ids(self, prompt: m.TextPrompt) -> TokenIds | None:
        """The tokens of a text; None where there are none: the engine refuses it then.

        Whether they fit is decided there: a session or a known reply may replace some of them.
        """
        try:
            raw = prompt.text if isinstance(prompt.text, str) else read_payload(prompt.text)
            text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
            self._check_bytes(text)
            return whole_text(self._backend, text, special=prompt.parse_special)
        except (NativeError, PayloadGone):
            return None

    def _prepare_chat(self, job: _Job, run: m.Run, conversation: Payload | str) -> None:
        request = run.request
        checked_salt(request.salt)
        prompt = self._prompt(conversation)
        self._check_bytes(prompt.rendered.text)
        ids = prompt_tokens(self._backend, prompt.rendered, prompt.control)
        has_tools = prompt.chat.has_tools and bool(self._rules.markers.tool_call)
        asked = replace(request, tool_calls=request.tool_calls or has_tools)
        rendered = self._rendered(request, prompt, ids)
        asked = replace(asked, prompt=m.TokenPrompt(rendered.packed))
        self._hand_on(job, replace(run, request=asked), rendered)

    def _prepare_infill(self, job: _Job, run: m.Run, source: Payload | str) -> None:
        parts = infill_from(source if isinstance(source, str) else _read(source))
        self._check_bytes("".join(parts.texts()))
        ids = infill_tokens(self._backend, parts)
        asked = replace(run.request, prompt=m.TokenPrompt(token_bytes.pack(ids)))
        self._hand_on(job, replace(run, request=asked))

    def _hand_on(self, job: _Job, run: m.Run, beside: Rendered | TokenIds | None = None) -> None:
        """Give a request to the engine, unless its caller has left meanwhile.

        ``beside``: what the engine is to know of its prompt besides what it can read in it.
        """
        waited, timeout_s = time.monotonic() - job.since, run.request.timeout_s
        if timeout_s is not None:
            left_s = max(0.0, timeout_s - waited)
            run = replace(run, request=replace(run.request, timeout_s=left_s))
        with self._lock:
            here = self._pending.pop(run.request_id, None) is not None
            cancelled = run.request_id in self._cancelled
            self._cancelled.discard(run.request_id)
        if here:
            if self._replays is not None and isinstance(beside, Rendered):
                self._replays.rendered(run.request_id, beside)
            elif self._replays is not None and isinstance(beside, TokenIds):
                self._replays.tokenised(run.request_id, beside)
            self._run(run)
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


def _n_bytes(text: object) -> int:
    """Of the text of a prompt; 0 for what is none, which the engine refuses."""
    if isinstance(text, str):
        return len(text.encode("utf-8", "replace"))
    if isinstance(text, bytes):
        return len(text)
    n_bytes = getattr(text, "n_bytes", 0)
    return n_bytes if isinstance(n_bytes, int) else 0


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
