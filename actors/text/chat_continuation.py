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


def prompt_text(template: ChatTemplate, chat: Chat) -> str:
    """The prompt; TemplateFailed, UnsupportedRequest where a message cannot be continued."""
    if chat.continuing is None:
        return template.render(chat.variables())
    last = chat.messages[-1]
    thought = last.get(chat.shape.reasoning)  # None as well: it is in the content
    has_thought = bool(chat.sent[-1].get(REASONING))
    if chat.continuing == "reasoning" or not has_thought or chat.shape.keeps_thought:
        text, marked, _ = template.render(chat.variables()).rpartition(CONTINUED)
        is_whole = chat.continuing == "reasoning" or (thought or "").strip() in text
        if marked and is_whole:
            return text
    if thought and chat.shape.marks and isinstance(last["content"], str):
        return _begun(template, chat, thought, last["content"])
    what = "thought" if has_thought else "message"
    raise UnsupportedRequest(
        f"continue_final_message: this model's chat template does not print the {what} that is to "
        "be continued; leave it out, or send the continued text as a prompt"
    )


def _begun(template: ChatTemplate, chat: Chat, thought: str, content: str) -> str:
    """A new reply as the template begins it, with the message's thought and content."""
    earlier = replace(chat, messages=chat.messages[:-1])
    plain = template.render({**earlier.variables(), "add_generation_prompt": False})
    new = template.render({**earlier.variables(), "add_generation_prompt": True})
    start, end = chat.shape.marks
    begins = next((at for at, (a, b) in enumerate(zip(plain, new, strict=False)) if a != b), 0)
    begins = begins or min(len(plain), len(new))
    opened = new.find(start, begins)
    head = new if opened < 0 else new[:opened]
    rest = "\n" if opened < 0 else _space(new[opened + len(start) :], "\n")
    text = f"{head}{start}{rest}{thought}"
    if chat.continuing == "content":
        text = f"{text.rstrip()}\n{end}\n\n{content}"
    return text.removesuffix(CONTINUED)


def _space(text: str, otherwise: str) -> str:
    """The white space that a template prints after the start of a thought."""
    found = text[: len(text) - len(text.lstrip())]
    return found if found or not text.strip() else otherwise
