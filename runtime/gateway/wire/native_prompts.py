"""Prompts in llama-server's forms: texts, token ids, both mixed, objects, and lists of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.gateway.wire.failure import Refused, invalid, unsupported

Prompt = str | list[int] | list[int | str]
"""A text, ids, or ids and texts in one sequence."""

_PARTS: Final = frozenset((int, str))
MAX_PROMPTS: Final = 256
MAX_EMBEDDED: Final = 2048
"""Inputs of one request for embeddings, as OpenAI has it; its clients cut their lists there."""
_FORMS: Final = "a text, token ids, texts and ids mixed, or a list of prompts"


def native_prompts(given: object, name: str = "prompt", most: int = MAX_PROMPTS) -> list[Prompt]:
    """One or several prompts; Refused names the field."""
    if given is None:
        raise invalid(f"{name} is missing; send {_FORMS}", name)
    if not isinstance(given, list) or _is_one(given):
        return [_prompt(given, name)]
    if not given:
        raise invalid(f"{name} is empty; send {_FORMS}", name)
    if len(given) > most:
        raise invalid(f"{len(given)} prompts; at most {most} are taken", name)
    return [_prompt(one, f"{name}[{at}]") for at, one in enumerate(given)]


def _is_one(given: list[Any]) -> bool:
    """A list with an id in it is one prompt; one of texts alone is several."""
    return has_parts_only(given) and int in set(map(type, given))


def has_parts_only(given: list[Any]) -> bool:
    """Whether they are texts and token ids, of which there may be a million; ``true`` is none."""
    return set(map(type, given)) <= _PARTS


def _prompt(given: object, name: str) -> Prompt:
    match given:
        case str():
            return given
        case list() if given and has_parts_only(given):
            return given
        case {"prompt_string": str(), "multimodal_data": [_, *_] | str()}:
            raise _no_media(f"{name}.multimodal_data")
        case {"prompt_string": str(text)}:
            return text
        case {"content": list(parts)}:
            return "".join(_part(one, f"{name}.content[{at}]") for at, one in enumerate(parts))
        case _:
            raise invalid(f"{name} is none of: {_FORMS}", name)


def _part(given: object, name: str) -> str:
    match given:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": str(kind)} if kind in ("image_url", "input_audio", "input_video"):
            raise _no_media(name)
        case _:
            raise invalid(f"{name} is no part that is known; send type text", name)


def _no_media(name: str) -> Refused:
    return unsupported(f"{name}: this node reads text only", name)


def extra_files(given: object, name: str = "input_extra") -> list[tuple[str, str]]:
    """Names and texts of other files, for an infill."""
    if not isinstance(given, list):
        raise invalid(f'{name} is a list of {{"filename": text, "text": text}}', name)
    found = []
    for at, one in enumerate(given):
        where = f"{name}[{at}]"
        match one:
            case Mapping() if isinstance(one.get("text"), str):
                file = one.get("filename", "")
                if not isinstance(file, str):
                    raise invalid(f"{where}.filename is no text", f"{where}.filename")
                found.append((file, one["text"]))
            case _:
                raise invalid(f"{where} has no text: send filename and text", where)
    return found
