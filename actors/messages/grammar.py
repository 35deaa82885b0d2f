"""The rules that a reply must follow, as a payload: those of real tools are 100 KB and more."""

from __future__ import annotations

from dataclasses import replace

from actors.messages.payload import Payload
from supervision.frozen import frozen


@frozen
class Grammar:
    """A grammar, and what its caller gave."""

    rules: Payload
    """GBNF in UTF-8, its first rule named ``root``."""
    option: str = "grammar"
    """The option that it was made of, for error texts: ``grammar`` or ``json_schema``."""

    def with_rules(self, rules: Payload) -> Grammar:
        """The same with its rules in another place."""
        return replace(self, rules=rules)
