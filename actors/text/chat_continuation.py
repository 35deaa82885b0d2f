"""The text of a prompt as the template prints it; of a message to be continued, up to its end.

A marked word at the end of the message's text is printed where the reply continues; the prompt ends
there, so what a template appends to a message, or trims from it, does not matter. Where a template
drops the thoughts that come before, the beginning of a reply is taken as the template prints it for
a new one, and thought and content follow in the template's own marks.
"""

from __future__ import annotations

from dataclasses import replace

from actors.messages.errors import UnsupportedRequest
from actors.text.chat_form import CONTINUED
from actors.text.chat_messages import REASONING
from actors.text.chat_request import Chat
from actors.text.chat_template import ChatTemplate
from actors.text.template_marks import Mark


def prompt_text(template: ChatTemplate, chat: Chat) -> tuple[str, tuple[Mark, ...]]:
    """The prompt, and where the template's loops stood while it was written.

    TemplateFailed, UnsupportedRequest where a message cannot be continued.
    """
    if chat.continuing is None:
        text, marks = template.render_marked(chat.variables())
        return text, tuple(marks.found)
    return _continued_text(template, chat), ()


def _continued_text(template: ChatTemplate, chat: Chat) -> str:
    shape, last = chat.shape, chat.messages[-1]
    thought = last.get(shape.reasoning) or last.get(REASONING)  # None as well: in the content
    has_thought = bool(chat.sent[-1].get(REASONING))
    text, marked, _ = template.render(chat.variables()).rpartition(CONTINUED)
    if chat.continuing == "reasoning" or not isinstance(last["content"], str):
        is_whole = bool(marked)
    else:
        is_kept = shape.keeps_thought and (thought or "").strip() in text
        is_whole = bool(marked) and (is_kept or not has_thought) and not _is_inside(chat, text)
    if is_whole:
        return text
    if shape.marks and isinstance(last["content"], str) and bool(thought) == has_thought:
        return _begun(template, chat, thought or "", text)
    what = "thought" if has_thought else "message"
    raise UnsupportedRequest(
        f"continue_final_message: this model's chat template does not print the {what} that is to "
        "be continued; leave it out, or send the continued text as a prompt"
    )


def _is_inside(chat: Chat, text: str) -> bool:
    """Whether the content is printed into a thought that the template has begun."""
    content = chat.messages[-1]["content"].removesuffix(CONTINUED).lstrip()
    before = text[: len(text) - len(content)].rstrip()
    return bool(chat.shape.marks) and before.endswith(chat.shape.marks[0].strip())


def _begun(template: ChatTemplate, chat: Chat, thought: str, printed: str) -> str:
    """A new reply as the template begins it, with the message's thought and content.

    ``printed``: what the template makes of the message.
    """
    earlier = replace(chat, messages=chat.messages[:-1])
    plain = template.render({**earlier.variables(), "add_generation_prompt": False})
    new = template.render({**earlier.variables(), "add_generation_prompt": True})
    start, end = chat.shape.marks
    opened = new.find(start.strip(), common_length(plain, new))
    head = new if opened < 0 else new[:opened]
    if chat.continuing == "reasoning":
        return f"{head}{start}{thought.removesuffix(CONTINUED)}"
    content = chat.messages[-1]["content"].removesuffix(CONTINUED)
    rest = printed.removeprefix(head)
    if rest == printed or start.strip() in rest:  # what the template prints before a content
        rest = content
    return f"{head}{start}{thought.strip()}{end}{rest}"


def common_length(first: str, second: str) -> int:
    """How many characters are the same at the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
