"""Where exact replay meets requests: prompts are looked up, replies noted at their end.

Runs on the engine thread, but for ``rendered`` and ``tokenised``. See ``actors.text.reply_marks``
for what a mark is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from actors import messages as m
from actors.engine.request import Request
from actors.kv.cache_client import CacheClient
from actors.kv.request_cache import RequestCache
from actors.messages.payload import PayloadGone, read_payload
from actors.messages.text_kind import TextKind
from actors.text.chat_prompt import ControlTokens, prompt_tokens
from actors.text.format_parser import FormatParser
from actors.text.rendered_prompt import Rendered
from actors.text.reply_marks import PLAIN, SPECIAL, Mark, RecentReplies, SentText, mark_reply
from actors.text.rerendered import end_of_reply, means_the_same, message_of
from cache.text_marks import CANDIDATE, RowMark
from cache.tokens import TokenIds
from native.backend import Backend
from native.errors import NativeError

MAX_CANDIDATES: Final = 512  # 10 KiB of a message, and more turns than a conversation has


class Namespaces(Protocol):
    """The namespaces that rows lie in now."""

    def root_of(self, request: RequestCache) -> bytes: ...


class ReplyReplay:
    """Replies of one engine that may come back as text, and the tokens that stand for them."""

    def __init__(
        self, backend: Backend, namespaces: Namespaces, cache: CacheClient | None = None
    ) -> None:
        self._backend = backend
        self._namespaces = namespaces
        self._cache = cache
        self._control: ControlTokens | None = None
        self._ends: re.Pattern[bytes] | None = None
        self._rendered: dict[str, Rendered] = {}
        self._tokenised: dict[str, TokenIds] = {}
        self.recent = RecentReplies()
        self.hits = 0

    def rendered(self, request_id: str, rendered: Rendered) -> None:
        """From any thread: the rendered prompt of this request, before the request itself."""
        self._rendered[request_id] = rendered

    def tokenised(self, request_id: str, ids: TokenIds) -> None:
        """From any thread: what the text of this request is by itself, before the request."""
        self._tokenised[request_id] = ids

    def rendered_of(self, request_id: str) -> Rendered | None:
        """The conversation of this request, before ``begin``; None where it is none."""
        return self._rendered.get(request_id)

    def begin(self, request: Request, run: m.Run, now: float) -> None:
        """A request arrived: if its text holds a known reply, use the tokens up to its end."""
        rendered = self._rendered.pop(request.spec.request_id, None)
        request.prompt.rendered = rendered
        request.prompt.ids = self._tokenised.pop(request.spec.request_id, None)
        request.prompt.sent = _sent(run.request) if rendered is None else rendered.sent()
        _place(request)
        if not self._may_replay(request):
            return
        sent = request.prompt.sent
        root = self._namespaces.root_of(request.cache)
        found = self.recent.find(root, sent) if sent else None
        if found is not None:
            mark, known = found
            self.take(request, known, mark)
        else:
            self._ask_cache(request, now)

    def _ask_cache(self, request: Request, now: float) -> None:
        """Look for a reply of an earlier process, since none of this one matches.

        The end of a reply is found by the control token that follows it.
        """
        sent, cache = request.prompt.sent, self._cache
        if sent is None or cache is None or not cache.keeps_marks:
            return
        if request.spec.parent_key is not None:
            return  # which is being asked for
        if sent.reads != SPECIAL or not sent.has_replies:
            return
        ends = self._control_ends(request, sent.data)
        if ends:
            digests = sent.digests(self._namespaces.root_of(request.cache), ends)
            packed = b"".join(CANDIDATE.pack(end, digest) for end, digest in digests.items())
            cache.resolve_text(request.cache, packed, now)

    def _control_ends(self, request: Request, data: bytes) -> list[int]:
        if self._ends is None:
            control = (
                ControlTokens.of(self._backend)
                if request.prompt.rendered is None
                else request.prompt.rendered.control
            )
            texts = (re.escape(text.encode()) for text in control.ids)
            self._ends = re.compile(b"|".join(texts) or b"(?!)")
        found = {hit.start() for hit in self._ends.finditer(data)} - {0}
        return sorted(found)[-MAX_CANDIDATES:]

    def take_stored(self, request: Request, known: Sequence[int], found: m.TextResolved) -> None:
        """Cache_meta knew a reply that the text of this request begins with."""
        n_tokens = len(known)
        self.take(request, known, Mark(found.digest, found.n_bytes, found.n_known, n_tokens))

    def forget(self, request_id: str) -> None:
        """It was refused."""
        self._rendered.pop(request_id, None)
        self._tokenised.pop(request_id, None)

    def _may_replay(self, request: Request) -> bool:
        """Not where the exact tokens are known otherwise, or the text is not all of the prompt.

        A ``parent_key`` or a session determines the first tokens; a chat is tokenised without.
        """
        is_joined = request.spec.parent_key is not None or request.cache.parent_tokens
        is_known = request.resume.knows_prompt or (is_joined and request.prompt.rendered is None)
        return request.prompt.sent is not None and not is_known

    def take(self, request: Request, known: Sequence[int], mark: Mark) -> None:
        """Let the prompt begin with these tokens, which stand for its first bytes."""
        rest = self._rest(request, mark.n_known)
        if rest is None:
            return
        request.prompt.is_replaced()
        request.line.prompt_is(TokenIds([*known, *rest]))
        _place(request)
        # The row that ended there may never be written; then one that contains it has the mark.
        request.cache.add_mark(RowMark(mark.digest, mark.n_bytes, mark.n_known, len(known)))
        self.hits += 1

    def _rest(self, request: Request, n_bytes: int) -> list[int] | None:
        sent, rendered = request.prompt.sent, request.prompt.rendered
        try:
            if sent is None:
                return None
            if rendered is not None:
                at = len(sent.data[:n_bytes].decode("utf-8"))
                return prompt_tokens(self._backend, rendered.prompt, rendered.control, start=at)
            rest = sent.data[n_bytes:].decode("utf-8")
            special = sent.reads == SPECIAL
            return (
                self._backend.tokenize(rest, add_special=False, parse_special=special)
                if rest
                else []
            )
        except (NativeError, UnicodeDecodeError):
            return None  # the reply ended inside a character, which came back as another one

    def finished(self, request: Request) -> None:
        """A reply has ended: note which tokens stand for its text."""
        sent, line = request.prompt.sent, request.line
        n_prompt = line.n_prompt
        if sent is None or not n_prompt or not line.n_reply:
            return
        n_tokens = n_prompt + request.reply.stream.visible_tokens()
        ids, seen = line.tokens[n_prompt:], line.tokens[n_prompt:n_tokens]
        reply = self._backend.detokenize(ids, special=True)
        visible = self._backend.detokenize(seen, special=True)
        stop = request.reply.stream.stopped_by
        root = self._namespaces.root_of(request.cache)
        mark = mark_reply(root, sent, reply, visible, n_tokens, stop)
        self._note(request, mark)
        again = self._as_values(request, mark)
        if again is not None:
            self._note(request, again)

    def _note(self, request: Request, mark: Mark) -> None:
        sent = request.prompt.sent
        self.recent.put(self._namespaces.root_of(request.cache), mark, request.line.tokens)
        if self._cache is not None and self._cache.keeps_marks and sent and sent.reads == SPECIAL:
            self._cache.mark_end(request.cache, mark)

    def _as_values(self, request: Request, mark: Mark) -> Mark | None:
        """The mark of a reply with tool calls in the text that the template writes for it.

        None where that is the text that was generated, or means something else.
        """
        sent, rendered, stream = request.prompt.sent, request.prompt.rendered, request.reply.stream
        if (
            not isinstance(stream, FormatParser)
            or not stream.calls
            or stream.stopped_by is not None
        ):
            return None
        if sent is None or rendered is None or rendered.again is None or rendered.format is None:
            return None
        thinking = stream.said(TextKind.THINKING)
        message = message_of(stream.said(TextKind.TEXT), thinking, stream.calls)
        text = rendered.again(message)
        if text is None or any(one in str(message) for one in rendered.control.ids):
            return None
        end = end_of_reply(text, rendered.control, self._backend.info.eog_tokens)
        prompt = rendered.prompt.text
        if end < len(prompt) or not text.startswith(prompt):
            return None
        calls = message["tool_calls"]
        if not means_the_same(
            rendered.format.reader, stream.written, text[len(prompt) : end], calls
        ):
            return None
        reply = text[len(prompt) : end].encode()
        n_bytes = len(sent.data) + len(reply)
        digest = sent.with_reply(self._namespaces.root_of(request.cache), reply)
        return None if digest == mark.digest else Mark(digest, n_bytes, n_bytes, mark.n_tokens)


def _place(request: Request) -> None:
    """Find the parts of a chat among the tokens of its prompt."""
    rendered = request.prompt.rendered
    if rendered is None or rendered.places is None:
        return
    tokens = request.line.prompt.packed
    request.prompt.places = places = rendered.places.for_tokens(rendered.packed, tokens)
    request.cache.restarts_at(places.restarts)


def _sent(asked: m.Complete) -> SentText | None:
    """The text of a prompt that came as text, if it is all of the prompt."""
    prompt = asked.prompt
    if not isinstance(prompt, m.TextPrompt) or asked.candidates is not None:
        return None
    try:
        raw = prompt.text if isinstance(prompt.text, str) else read_payload(prompt.text)
    except PayloadGone:
        return None
    data = raw.encode("utf-8", "replace") if isinstance(raw, str) else raw
    return SentText(data, SPECIAL if prompt.parse_special else PLAIN)
