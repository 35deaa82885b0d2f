"""Reply parsing as tables: what a caller gets for each token, and where the bytes of tokens lie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.text_kind import TextKind
from actors.text.positions import Positions, Visible, Written
from actors.text.reply_parser import Delta, ReplyParser, Span

pytestmark = pytest.mark.pure

THINK = ("<t>", "</t>")
CALL = ("<c>", "</c>", "<p>", "</p>")
LETTERS = {TextKind.TEXT: "x", TextKind.THINKING: "t", TextKind.TOOL_CALL: "c"}

# Tokens are separated by blanks; "_" is a blank, "." a token without bytes, "[…]" a control token,
# which is written and not shown. What each gives is in the same column of the line below it, "-"
# nothing, and what the end of the reply gives comes last: kind (x text, t thinking, c call), the
# numbers of the tokens that are delivered with it, a colon, the text; "end" with the span's bytes
# and the numbers of the tokens that hold them. The stop string is STOP.
TABLE = """
text
    a      b
    x0:a   x1:b   -

a token without bytes is delivered where it stands
    a      .      b
    x0:a   x1:    x2:b   -

a control token is not shown
    a      [eot]  b
    x0:a   x1:    x2:b   -

a thought
    a      <t>    hm     </t>                 b
    x0:a   t1:    t2:hm  t3:,end<t>hm</t>123  x4:b   -

markers that share their tokens with text
    a<t>h      m</t>b
    x0:a,t:h   t1:m,end<t>hm</t>01,x:b    -

a marker in two tokens
    a<     t>     h      </     t>
    x0:a   t1:    t2:h   -      t34:,end<t>h</t>01234   -

what only looked like a marker
    a<     b
    x0:a   x1:<b  -

a marker that is a control token
    [<t>]  h      [</t>]
    t0:    t1:h   t2:,end<t>h</t>012   -

a call with a payload, in which its end marker means nothing
    <c>    f<p>     </c>      </p>     </c>
    c0:    c1:f<p>  c2:</c>   c3:</p>  c4:,end<c>f<p></c></p></c>01234   -

a reply that ends inside a thought
    <t>    h
    t0:    t1:h   end<t>h01

text is held back while it may be a stop
    a      ST     x
    x0:a   x1:    x2:STx   -

a stop string
    a      ST     OP     b
    x0:a   x1:    x2:    x3:   -

no stop string inside a thought
    <t>    STOP     </t>                     STOP   a
    t0:    t1:STOP  t2:,end<t>STOP</t>012    x3:    x4:   -

a span separates the texts before and after it
    ST     <t>         </t>             OP
    x0:    x:ST,t1:    t2:,end<t></t>12     x3:OP   -
"""


def _cases() -> list[object]:
    cases = []
    for block in TABLE.strip().split("\n\n"):
        name, tokens, expected = block.splitlines()
        cases.append(pytest.param(tokens.split(), expected.split(), id=name))
    return cases


def _fields(token: str) -> tuple[bytes, bytes]:
    """Visible and written bytes."""
    if token == ".":
        return b"", b""
    if token.startswith("["):
        return b"", token[1:-1].encode()
    raw = token.replace("_", " ").encode()
    return raw, raw


def _words(parts: list[Delta | Span]) -> str:
    words = []
    for part in parts:
        numbers = "".join(map(str, part.tokens))
        if isinstance(part, Span):
            words.append(f"end{part.content.decode()}{numbers}")
        else:
            words.append(f"{LETTERS[part.kind]}{numbers}:{part.text}")
    return ",".join(words) or "-"


@pytest.mark.parametrize(("tokens", "expected"), _cases())
def test_what_each_token_of_a_reply_gives(tokens: list[str], expected: list[str]) -> None:
    stream = ReplyParser(("STOP",), thinking=THINK, tool_call=CALL)
    given = [_words(stream.feed(n, *_fields(token))) for n, token in enumerate(tokens)]
    assert [*given, _words(stream.finish())] == expected


# ── positions ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Naive:
    """The same by looking at every byte."""

    tokens: list[tuple[bytes, bytes]]

    def owners(self) -> list[tuple[int, bool]]:
        """Of each written byte: its token, and whether it is visible."""
        return [
            (n, bool(visible))
            for n, (visible, written) in enumerate(self.tokens)
            for _ in visible or written
        ]


def test_two_ways_of_counting() -> None:
    """Tokens: "ab", a control token written "<x>", one without bytes, "c"."""
    positions = Positions()
    for n, (visible, written) in enumerate([(b"ab", b""), (b"", b"<x>"), (b"", b""), (b"c", b"")]):
        positions.add(n, visible, written)
    visible_at = [positions.visible_at(Written(at)) for at in range(7)]
    assert visible_at == [0, 1, 2, 2, 2, 2, 3]
    assert [positions.ending_by(Visible(seen)) for seen in range(4)] == [0, 0, 3, 4]
    assert positions.holding(Written(1), Written(3)) == (0, 1)
    assert positions.holding(Written(2), Written(2)) == ()
    assert positions.visible_part(Written(0), b"ab<x") == b"ab"
    assert positions.visible_part(Written(4), b">c") == b"c"
    assert positions.take_before(Written(2)) == (0,)
    assert positions.take_before(Written(3)) == (1,)
    assert positions.take_empty(Written(5)) == (2,)
    assert positions.take_all() == (3,)


TOKENS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=3).map(lambda raw: (raw, raw)),
        st.binary(max_size=3).map(lambda raw: (b"", raw)),
    ),
    max_size=12,
)


@given(TOKENS, st.lists(st.integers(0, 40), max_size=6))
def test_positions_are_what_looking_at_every_byte_finds(
    tokens: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    positions, owners = Positions(), Naive(tokens).owners()
    for n, (visible, written) in enumerate(tokens):
        positions.add(n, visible, written)
    data = b"".join(visible or written for visible, written in tokens)
    borders = sorted({0, len(data), *(min(one, len(data)) for one in cuts)})
    for at in borders:
        assert positions.visible_at(Written(at)) == sum(shown for _, shown in owners[:at])
    for start, end in pairwise(borders):
        held = tuple(range(owners[start][0], owners[end - 1][0] + 1))
        assert positions.holding(Written(start), Written(end)) == held
        shown = bytes(data[at] for at in range(start, end) if owners[at][1])
        assert positions.visible_part(Written(start), data[start:end]) == shown
    taken = [positions.take_before(Written(at)) for at in borders]
    assert sum(taken, ()) + positions.take_all() == tuple(range(len(tokens)))
    assert len(positions) == len(tokens)
