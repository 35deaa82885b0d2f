"""Where exact replay meets requests: prompts are looked up, replies noted at their end.

Runs on the engine thread, but for ``rendered``. See ``actors.text.reply_marks`` for what a mark is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actors.messages.payload import PayloadGone, read_payload
from actors.text.chat_prompt import ControlTokens, Prompt, prompt_tokens
from actors.text.reply_marks import PLAIN, SPECIAL, Mark, RecentReplies, SentText, mark_reply
from cache.text_marks import CANDIDATE, RowMark
from native.errors import NativeError

if TYPE_CHECKING:
    from actors import messages as m
    from actors.engine.request import Request
    from actors.kv.cache_client import CacheDialogue
    from native.backend import Backend

MAX_CANDIDATES: Final = 512  # 10 KiB of a message, and more turns than anybody takes


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as the text desk rendered it."""

    prompt: Prompt
    control: ControlTokens
    has_replies: bool

    def sent(self) -> SentText:
        text = self.prompt.text
        forged: list[int] = []
        n_bytes = at = 0
        for start, _ in self.prompt.forged:  # ascending, in characters
            n_bytes += len(text[at:start].encode("utf-8", "replace"))
            at = start
            forged.append(n_bytes)
        data = text.encode("utf-8", "replace")
        return SentText(data, SPECIAL, tuple(dict.fromkeys(forged)), self.has_replies)


class Replays:
    """What one model's engine knows of replies that may come back as text."""

    def __init__(
        self, backend: Backend, root: Callable[[], bytes], cache: CacheDialogue | None = None
    ) -> None:
        """``root`` tells the namespace of the moment."""
        self._backend = backend
        self._root = root
        self._cache = cache
        self._control: ControlTokens | None = None
        self._ends: re.Pattern[bytes] | None = None
        self._rendered: dict[str, Rendered] = {}
        self.recent = RecentReplies()
        self.hits = 0

    def rendered(self, request_id: str, rendered: Rendered) -> None:
        """From any thread: what this request's prompt says. Before the request itself."""
        self._rendered[request_id] = rendered

    def begin(self, request: Request, run: m.Run) -> None:
        """A request arrived. If a known reply is in its text, its tokens begin as that was said."""
        rendered = self._rendered.pop(request.request_id, None)
        request.rendered = rendered
        request.sent = _sent(run.request) if rendered is None else rendered.sent()
        if not self._may_replay(request):
            return
        found = self.recent.find(self._root(), request.sent) if request.sent else None
        if found is not None:
            mark, known = found
            self.take(request, known, mark)
        else:
            self._ask_cache(request)

    def _ask_cache(self, request: Request) -> None:
        """Nothing is known here: a process before this one may have said it.

        A reply that comes back is followed by a control token, or nobody could tell where it ends.
        """
        sent, cache = request.sent, self._cache
        if sent is None or cache is None or not cache.keeps_marks:
            return
        if request.parent_key is not None:
            return  # which is being asked for
        if sent.reads != SPECIAL or not sent.has_replies:
            return
        ends = self._control_ends(request, sent.data)
        if ends:
            digests = sent.digests(self._root(), ends)
            cache.resolve_text(
                request, b"".join(CANDIDATE.pack(end, digest) for end, digest in digests.items())
            )

    def _control_ends(self, request: Request, data: bytes) -> list[int]:
        if self._ends is None:
            control = (
                ControlTokens.of(self._backend)
                if request.rendered is None
                else request.rendered.control
            )
            texts = (re.escape(text.encode()) for text in control.ids)
            self._ends = re.compile(b"|".join(texts) or b"(?!)")
        found = {hit.start() for hit in self._ends.finditer(data)} - {0}
        return sorted(found)[-MAX_CANDIDATES:]

    def take_stored(self, request: Request, known: list[int], found: m.TextResolved) -> None:
        """Cache_meta knew a reply that the text of this request begins with."""
        n_tokens = len(known)
        self.take(request, known, Mark(found.digest, found.n_bytes, found.n_known, n_tokens))

    def forget(self, request_id: str) -> None:
        """It was refused."""
        self._rendered.pop(request_id, None)

    def _may_replay(self, request: Request) -> bool:
        """Not where the exact tokens are known otherwise, or the text is not all of the prompt.

        A ``parent_key`` or a session says how a text begins; a chat was tokenised without them.
        """
        is_joined = request.parent_key is not None or request.parent_tokens
        is_known = request.journal_prompt or (is_joined and request.rendered is None)
        return request.sent is not None and not is_known

    def take(self, request: Request, known: list[int], mark: Mark) -> None:
        """Let the prompt begin with these tokens, which stand for its first bytes."""
        rest = self._rest(request, mark.n_known)
        if rest is None:
            return
        request.text, request.tokens = None, [*known, *rest]
        # The row that ended there may never be written; then that which goes on holds the mark.
        request.marks.append(RowMark(mark.digest, mark.n_bytes, mark.n_known, len(known)))
        self.hits += 1

    def _rest(self, request: Request, n_bytes: int) -> list[int] | None:
        sent, rendered = request.sent, request.rendered
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
        sent, n_prompt = request.sent, request.n_prompt
        if sent is None or not n_prompt or not request.n_text_tokens:
            return
        n_tokens = n_prompt + request.stream.visible_tokens()
        said, seen = request.tokens[n_prompt:], request.tokens[n_prompt:n_tokens]
        reply = self._backend.detokenize(said, special=True)
        visible = self._backend.detokenize(seen, special=True)
        stop = request.stream.stopped_by
        mark = mark_reply(self._root(), sent, reply, visible, n_tokens, stop)
        self.recent.put(mark, request.tokens)
        if self._cache is not None and self._cache.keeps_marks and sent.reads == SPECIAL:
            self._cache.mark_end(request, mark)


def _sent(asked: m.Complete) -> SentText | None:
    """The text of a prompt that came as text, if it is all of the prompt."""
    if asked.tokens or asked.continues or asked.candidates is not None:
        return None
    try:
        raw = asked.prompt if isinstance(asked.prompt, str) else read_payload(asked.prompt)
    except PayloadGone:
        return None
    data = raw.encode("utf-8", "replace") if isinstance(raw, str) else raw
    return SentText(data, SPECIAL if asked.parse_special else PLAIN)
