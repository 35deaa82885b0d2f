"""``@frozen``: ``@dataclass(frozen=True, slots=True)`` at a fraction of its cost at import.

``dataclasses`` writes source for six methods of every class and compiles it at once: 0.6 ms a
class, most of the time in which a command of this project starts. Here the methods that need no
source are shared or closures, and ``__init__`` is compiled when the first object is made. All else
is done by ``dataclasses`` itself: ``fields``, ``replace``, ``asdict``, ``field(...)`` and pattern
matching work as usual. ``InitVar``, ``order`` and inherited fields are not supported.

A process that is forked after ``compile_all`` shares the compiled methods with its parent.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from typing import Any, Final, TypeVar, dataclass_transform

__all__ = ["compile_all", "frozen"]

T = TypeVar("T")

_waiting: set[type] = set()
"""Classes whose ``__init__`` is not compiled yet."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """The class as a dataclass with slots whose objects cannot be changed."""
    if any(hasattr(base, "__dataclass_fields__") for base in cls.__mro__[1:]):
        raise TypeError(f"{cls.__qualname__} would inherit fields, which @frozen does not support")
    if cls.__doc__ is None:
        cls.__doc__ = cls.__name__  # else dataclasses asks inspect for a signature: 3 ms
    made = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    params = made.__dict__["__dataclass_params__"]  # what introspection reads
    params.frozen = params.init = params.repr = params.eq = True
    own = made.__dict__
    compared = tuple(one.name for one in fields(made) if one.compare)  # type: ignore[arg-type]
    hashed = tuple(
        one.name
        for one in fields(made)  # type: ignore[arg-type]
        if (one.compare if one.hash is None else one.hash)
    )
    if "__hash__" not in own or own["__hash__"] is None:
        type.__setattr__(made, "__hash__", _hash_of(_values_of(hashed)))
    if "__eq__" not in own:
        type.__setattr__(made, "__eq__", _eq_of(_values_of(compared)))
    for name, method in _SHARED.items():
        if name not in own:
            type.__setattr__(made, name, method)
    if "__init__" not in own:
        type.__setattr__(made, "__init__", _LazyInit(made))
        _waiting.add(made)
    return made


def compile_all() -> None:
    """Compile what waits for its first use; for a process that is about to fork others."""
    for cls in tuple(_waiting):
        _compile_init(cls)


# ── __init__ ───────────────────────────────────────────────────────────────────────────────────


class _LazyInit:
    """Stands for ``__init__`` until it is looked up, then puts the compiled one in its place."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., None]:
        init = _compile_init(self._cls)
        return init if instance is None else init.__get__(instance)  # type: ignore[no-any-return]


class _DefaultFactory:
    """In a signature: this parameter's default is made for each object."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY: Final = _DefaultFactory()


def _compile_init(cls: type) -> Any:
    """The ``__init__`` that ``dataclasses`` would have written, put into the class."""
    scope: dict[str, Any] = {"_FACTORY": _FACTORY}
    plain: list[str] = []
    keyword: list[str] = []
    body: list[str] = []
    for one in fields(cls):
        parameter, line = _parameter(cls, one, scope)
        if one.init:
            (keyword if one.kw_only else plain).append(parameter)
        if line:
            body.append(line)
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    names = ", ".join(["self", *plain, *(["*", *keyword] if keyword else [])])
    source = f"def __init__({names}):\n " + "\n ".join(body or ["pass"])
    exec(source, scope)  # noqa: S102 - names of fields, which are identifiers; as dataclasses does it
    init = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__module__ = cls.__module__
    init.__annotations__ = {one.name: one.type for one in fields(cls) if one.init} | {
        "return": None
    }
    type.__setattr__(cls, "__init__", init)
    _waiting.discard(cls)
    return init


def _parameter(cls: type, one: Field[Any], scope: dict[str, Any]) -> tuple[str, str]:
    """A field's parameter and the line that sets it; what they need goes into ``scope``."""
    name = one.name
    scope[f"_set_{name}"] = getattr(cls, name).__set__
    value = name
    parameter = name
    if one.default is not MISSING:
        scope[f"_default_{name}"] = one.default
        parameter = f"{name}=_default_{name}"
        value = name if one.init else f"_default_{name}"
    elif one.default_factory is not MISSING:
        scope[f"_make_{name}"] = one.default_factory
        parameter = f"{name}=_FACTORY"
        value = f"_make_{name}() if {name} is _FACTORY else {name}"
        if not one.init:
            value = f"_make_{name}()"
    elif not one.init:
        return "", ""
    return parameter, f"_set_{name}(self, {value})"


# ── the other methods ──────────────────────────────────────────────────────────────────────────


def _values_of(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if not names:
        return lambda _one: ()
    if len(names) == 1:
        only = operator.attrgetter(names[0])
        return lambda one: (only(one),)
    return operator.attrgetter(*names)


def _hash_of(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], int]:
    return lambda self: hash(values(self))


def _eq_of(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    return __eq__


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({shown})"


def _refuse_set(_self: Any, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(_self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, one.name) for one in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for one, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, one.name, value)


_SHARED: Final[dict[str, Callable[..., Any]]] = {
    "__repr__": _repr,
    "__setattr__": _refuse_set,
    "__delattr__": _refuse_delete,
    "__getstate__": _get_state,
    "__setstate__": _set_state,
}
