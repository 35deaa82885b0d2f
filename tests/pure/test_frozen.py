"""``@frozen`` against what it stands for, ``@dataclass(frozen=True, slots=True)``."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.frozen import compile_all, frozen

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Plain:
    """All kinds of fields."""

    number: int
    text: str = "x"
    parts: tuple[int, ...] = field(default_factory=tuple)
    noted: float = field(default=0.0, compare=False)
    secret: bytes = field(default=b"", repr=False)
    unhashed: int = field(default=0, hash=False)
    derived: int = field(init=False, default=7)
    only: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")
        object.__setattr__(self, "derived", self.number + 1)


@frozen
class Frozen:
    """All kinds of fields."""

    number: int
    text: str = "x"
    parts: tuple[int, ...] = field(default_factory=tuple)
    noted: float = field(default=0.0, compare=False)
    secret: bytes = field(default=b"", repr=False)
    unhashed: int = field(default=0, hash=False)
    derived: int = field(init=False, default=7)
    only: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")
        object.__setattr__(self, "derived", self.number + 1)


@frozen
class Empty:
    """No field."""


@frozen
class One:
    """One field, and methods of its own."""

    value: Any

    def __repr__(self) -> str:
        return "own"


VALUES = st.fixed_dictionaries(
    {"number": st.integers(0, 3)},
    optional={
        "text": st.sampled_from(["x", "y"]),
        "parts": st.tuples(st.integers(0, 1)),
        "noted": st.sampled_from([0.0, 1.0]),
        "secret": st.sampled_from([b"", b"k"]),
        "unhashed": st.integers(0, 1),
        "only": st.booleans(),
    },
)


@given(VALUES, VALUES)
def test_values_are_made_compared_hashed_and_shown_alike(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    ours, theirs = (Frozen(**first), Frozen(**second)), (Plain(**first), Plain(**second))
    for one, other in zip(ours, theirs, strict=True):
        assert dataclasses.asdict(one) == dataclasses.asdict(other)
        assert repr(one).removeprefix("Frozen") == repr(other).removeprefix("Plain")
        assert hash(one) == hash(other)
    assert (ours[0] == ours[1]) is (theirs[0] == theirs[1])
    assert ours[0] != theirs[0]
    changed = dataclasses.replace(ours[0], text="z")
    assert dataclasses.asdict(changed) == dataclasses.asdict(
        dataclasses.replace(theirs[0], text="z")
    )
    for made in (copy.copy(ours[0]), copy.deepcopy(ours[0]), pickle.loads(pickle.dumps(ours[0]))):
        assert made == ours[0]
        assert dataclasses.asdict(made) == dataclasses.asdict(ours[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda cls: cls(),
        lambda cls: cls(1, "x", (), 0.0, b"", 0, True),
        lambda cls: cls(1, other=2),
        lambda cls: cls(-1),
        lambda cls: setattr(cls(1), "number", 2),
        lambda cls: delattr(cls(1), "number"),
    ],
)
def test_what_is_refused_is_refused_alike(call: Any) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError)) as ours:
        call(Frozen)
    with pytest.raises((TypeError, ValueError, AttributeError)) as theirs:
        call(Plain)
    assert ours.type is theirs.type
    assert str(ours.value).replace("Frozen", "Plain") == str(theirs.value)


def test_a_class_looks_like_a_dataclass() -> None:
    assert dataclasses.is_dataclass(Frozen)
    assert [one.name for one in dataclasses.fields(Frozen)] == [
        one.name for one in dataclasses.fields(Plain)
    ]
    assert Frozen.__match_args__ == Plain.__match_args__  # type: ignore[attr-defined]
    assert Frozen.__slots__ == Plain.__slots__  # type: ignore[attr-defined]
    assert str(inspect.signature(Frozen)) == str(inspect.signature(Plain))
    assert Frozen.__init__.__qualname__ == "Frozen.__init__"
    assert Frozen.__doc__ == Plain.__doc__
    assert not hasattr(Frozen(1), "__dict__")


def test_few_fields_and_methods_of_its_own() -> None:
    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
    assert repr(One(1)) == "own"
    assert One(1) != One(2)
    assert hash(One("x")) == hash(One("x"))
    nan = float("nan")
    assert One(nan) == One(nan)  # the same object, as in tuples


def test_a_value_that_holds_itself_can_be_shown() -> None:
    @frozen
    class Loop:
        """A list that holds its holder."""

        items: list[Any]

    loop = Loop([])
    loop.items.append(loop)
    assert repr(loop).endswith("Loop(items=[...])")


def test_inherited_fields_are_refused_where_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="inherit fields"):

        @frozen
        class _Child(Plain):
            """More of it."""

            more: int = 0


def test_compile_all_leaves_nothing_to_the_first_use() -> None:
    @frozen
    class Late:
        """Not used yet."""

        value: int

    assert type(Late.__dict__["__init__"]).__name__ == "_LazyInit"
    compile_all()
    assert inspect.isfunction(Late.__dict__["__init__"])
    assert Late(3).value == 3


def test_an_import_compiles_nothing() -> None:
    script = (
        "import actors.messages.completion as c; from supervision import frozen\n"
        "assert c.Complete in frozen._waiting, 'compiled at import'\n"
        "c.Cancel('r')\n"
        "assert c.Cancel not in frozen._waiting and c.Complete in frozen._waiting\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)
