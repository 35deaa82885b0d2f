"""The tokens of one request, and how many of them its sequence of the context holds.

A prefix that several sequences hold lies in the same cells. A sequence is therefore described by
*stretches*: runs of positions whose cells were, or will be, filled together. See
``actors.engine.cell_sharing`` for what is counted with them.

State only. Counts are changed through methods that name what happened: the engine's live tier
places a request and shares cells, a step decodes, ``actors.kv`` restores. ``stretches``,
``share_upto`` and ``is_sticky`` are the live tier's own (``engine.live_sequences``).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from cache import tokens as token_bytes
from cache.tokens import TokenIds


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions ``start`` up to ``end`` of a sequence, in cells that belong to ``origin``."""

    origin: int
    start: int
    end: int


Stretches = tuple[Stretch, ...]


def between(stretches: Stretches, start: int, end: int) -> Stretches:
    """The stretches of positions ``start`` up to ``end``."""
    return tuple(
        Stretch(one.origin, max(one.start, start), min(one.end, end))
        for one in stretches
        if max(one.start, start) < min(one.end, end)
    )


@dataclass(slots=True, eq=False)
class Timeline:
    """Prompt and reply of a request as tokens; the first ``n_kv`` of them are in the context."""

    prompt: TokenIds
    tokens: array[int] = field(init=False)
    """Prompt and reply so far."""
    n_prompt: int = 0
    """Tokens of the prompt; 0 until the prompt is fixed."""
    n_resumed: int = 0
    """Reply tokens from before an interruption; they follow the prompt in ``tokens``."""
    n_generated: int = 0
    """Tokens that were sampled, one that ends the text without being part of it included."""
    seq: int | None = None
    n_cells: int = 0
    """Cells of prompt and whole reply; some of them may be shared, see ``stretches``."""
    stretches: Stretches = ()
    n_kv: int = 0
    n_reused: int = 0
    """Tokens whose KV was not computed for this request."""
    n_live: int = 0
    """Of those, tokens shared with another sequence of this context; always the first ones."""
    share_upto: int = 0
    """Position up to which the cells of a sequence in the context are shared, now or later."""
    is_sticky: bool = False
    """Whether what it shares is the sequence of its own session."""
    _packed: bytes = b""
    """Prompt and reply from before an interruption; empty without one."""

    def __post_init__(self) -> None:
        self.tokens = self.prompt.column()

    # ── queries ─────────────────────────────────────────────────────────────────────────────────

    @property
    def n_pending(self) -> int:
        """Tokens that are known and not in the context yet."""
        return len(self.tokens) - self.n_kv

    @property
    def is_generating(self) -> bool:
        """Whether it decodes one token at a time; False while it computes all again."""
        return self.n_generated > 0 and len(self.tokens) - self.n_kv <= 1

    @property
    def prompt_end(self) -> int:
        """Tokens of the prompt, also before it is fixed."""
        return self.n_prompt or len(self.tokens)

    @property
    def n_known(self) -> int:
        """Tokens that were known when the request started; 0 before."""
        return self.n_prompt + self.n_resumed

    @property
    def n_reply(self) -> int:
        """Tokens of the reply, those from before an interruption included."""
        return len(self.tokens) - self.n_prompt if self.n_prompt else 0

    @property
    def kv_seq(self) -> int:
        """The sequence; RuntimeError before the request has one."""
        if self.seq is None:
            raise RuntimeError("a request has no sequence: a bug in the engine")
        return self.seq

    @property
    def packed_prompt(self) -> bytes:
        """The tokens it started with as bytes; packed once, for all comparisons with others."""
        return self._packed or self.prompt.packed

    def packed(self, start: int = 0, end: int | None = None) -> bytes:
        """Tokens ``start`` up to ``end`` as bytes; those it started with are not packed again."""
        known = self.packed_prompt
        stop = len(self.tokens) if end is None else end
        if stop * token_bytes.TOKEN_BYTES <= len(known):
            return token_bytes.cut(known, start, stop)
        return token_bytes.pack(self.tokens[start:stop])

    def ids(self, n_tokens: int) -> TokenIds:
        """The first ``n_tokens``, as they are now."""
        return TokenIds(self.tokens[:n_tokens])

    # ── before it starts ────────────────────────────────────────────────────────────────────────

    def prompt_is(self, prompt: TokenIds) -> None:
        """The tokens of the prompt are known."""
        self.prompt, self.tokens = prompt, prompt.column()

    def fix_prompt(self) -> None:
        """What follows the present tokens is the reply."""
        self.n_prompt = self.n_prompt or len(self.tokens)

    def resumed(self) -> None:
        """The reply so far is from before an interruption."""
        self.n_resumed = self.n_reply
        self._packed = token_bytes.pack(self.tokens)

    # ── cells ───────────────────────────────────────────────────────────────────────────────────

    def placed(self, seq: int, stretches: Stretches, n_cells: int) -> None:
        """The request has this sequence, and these cells of it."""
        self.seq, self.stretches, self.n_cells = seq, stretches, n_cells

    def took_over(self, upto: int) -> None:
        """Its sequence is that of an ended request, of which ``upto`` tokens stay."""
        self.n_kv = self.n_live = self.n_reused = upto

    def use_cells(self, stretches: Stretches) -> None:
        """Its sequence has these cells now."""
        self.stretches = stretches

    def share(self, upto: int, *, is_sticky: bool) -> None:
        """The cells up to position ``upto`` are, or will be, those of another sequence too."""
        self.share_upto, self.is_sticky = upto, is_sticky

    def shared(self, upto: int) -> None:
        """The cells up to position ``upto`` are those of another sequence too."""
        n_new = upto - self.n_kv
        self.n_kv = upto
        self.n_reused += n_new
        self.n_live += n_new

    def restored(self, n_tokens: int, *, shared: int = 0) -> None:
        """Its first ``n_tokens`` are in the context without having been computed.

        At most ``shared`` of them are still those of another sequence.
        """
        self.n_kv = self.n_reused = n_tokens
        self.n_live = min(self.n_live, shared)

    def decoded(self, n_tokens: int) -> None:
        """So many more tokens are in the context."""
        self.n_kv += n_tokens

    def cut(self, n_tokens: int) -> None:
        """Only the first ``n_tokens`` are left in the context."""
        self.n_kv = n_tokens
        self.n_reused = min(self.n_reused, n_tokens)
        self.n_live = min(self.n_live, n_tokens)

    def emptied(self) -> None:
        """A failed step left nothing of its sequence; all of it is computed again."""
        self.n_kv = 0

    def lost(self, stretch: Stretch) -> None:
        """The context is a new, empty one; the sequence has the cells of ``stretch`` there."""
        self.n_kv = self.n_reused = self.n_live = self.share_upto = 0
        self.is_sticky = False
        self.stretches = (stretch,)

    def left(self) -> int | None:
        """The request ended: the sequence that it had, if any."""
        seq, self.seq = self.seq, None
        return seq

    # ── the reply ───────────────────────────────────────────────────────────────────────────────

    def append(self, token: int) -> None:
        """A token of the reply was sampled."""
        self.tokens.append(token)
        self.n_generated += 1

    def ended(self) -> None:
        """A token was sampled that ends the text and is not part of it."""
        self.n_generated += 1
