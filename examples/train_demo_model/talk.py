"""Talk: users' turns and the storyteller's answers, in chat turns and in plain text."""

from __future__ import annotations

from random import Random

from examples.train_demo_model.grammar import expand
from examples.train_demo_model.tales import Tale, person, tale
from examples.train_demo_model.words import CREATURES, FACTS, HOW_TO, OTHERS, ROYALS, UNKNOWN

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

SYSTEMS = (
    "You are a [storyteller|kind storyteller|friendly storyteller][.| who tells short stories.]",
    "You are a [helpful|friendly|kind] assistant.",
    "You [tell|write] short stories [for children|about animals|about friends].",
    "You answer questions about [stories|a story].",
    "Answer in [one sentence|short sentences|simple words].",
    "[Be kind and helpful|Be short|Be friendly].",
)
REQUESTS = (
    (
        "[Tell me|Please tell me|Write|Can you tell me|I want to hear|Tell us|Write me] "
        "[a story|a story|a short story|a little story|a tale] about {about}[.||!]"
    ),
    (
        "[Tell me|Please tell me|Can you tell me|I want to hear|Write] [a story|a short "
        "story|another "
        "story][.||!|, please.]"
    ),
    "[A story about {about}, please.|Do you know a story about {about}?|story about {about}]",
)
GREETINGS = (
    (
        "[Hello|Hi|Hello there|Good morning|Hey][!|.|]",
        (
            "[Hello! How are you?|Hello! Would you like to hear a story?|Hi! What can I do "
            "for you?|"
            "Hello! I am glad to see you.]"
        ),
    ),
    (
        "[Who are you|What are you|What is your name][?|]",
        "I am a [little|small] storyteller. [I tell short stories.|I can tell you a story.]",
    ),
    (
        "[What can you do|What do you know|How can you help me][?|]",
        "I can tell short stories and answer simple questions about them.",
    ),
    (
        "How are you[ today|]?",
        "[I am very well, thank you.|I am fine, thank you. And how are you?]",
    ),
    ("[I am|I feel] [sad|lonely][.|]", "I am sorry to hear that. A story may cheer you up."),
    ("[I am|I feel] [happy|glad][.|]", "That is good to hear! I am happy for you."),
    ("[I am|I feel] tired[.|]", "Then you should rest. Lie down and close your eyes."),
    ("[I am|I feel] bored[.|]", "Then let me tell you a story. What should it be about?"),
)
THANKS = (
    (
        "[Thank you|Thanks|Thank you very much|That was nice|I like that story][!|.|]",
        "[You are welcome!|I am glad that you liked it.|You are very welcome.]",
    ),
    (
        "[Goodbye|Bye|See you][!|.|]",
        "[Goodbye! Come back soon.|Goodbye, and have a nice day!]",
    ),
    ("Good night[!|.|]", "Good night! Sleep well."),
)
DUNNO = "[I do not know that.|I am sorry, I do not know.] I only know small stories."
_KINDS = (*CREATURES, *OTHERS, *ROYALS, "girl", "boy")


def request(rng: Random, plots: int = 1) -> tuple[str, Tale]:
    """A wish for a story, and a story that fulfils it: the hero or the matter wished for."""
    kind = rng.choice(_KINDS)
    told = tale(rng, kind, plots)
    hero = told.hero
    about = rng.choice(
        (
            f"a {kind}",
            f"a {kind}",
            f"a {hero.mood} {kind}",
            f"a {kind} named {hero.name}",
            f"{hero.name} and {told.friend.name}",
            f"a {kind} and a {told.friend.kind}",
            told.topic,
            hero.name,
        )
    )
    return expand(rng.choice(REQUESTS), rng, {"about": about}), told


def questions(rng: Random, told: Tale, count: int) -> list[tuple[str, str]]:
    """Questions about a story; now and then one that the story cannot answer."""
    drawn = rng.sample(told.asks, min(count, len(told.asks)))
    if rng.random() < 0.12:
        other = person(rng).name
        if other not in told.text:
            drawn.append((f"Who is {other}?", f"The story does not say who {other} is."))
    return drawn


def small_talk(rng: Random) -> tuple[str, str]:
    """One question or remark without a story, and its answer."""
    draw = rng.random()
    if draw < 0.35:
        question, answer = rng.choice(FACTS)
        return (question if rng.random() < 0.8 else question[:-1].lower()), answer
    if draw < 0.6:
        how, answer = rng.choice(HOW_TO)
        asked = f"[How do I {how}?|How can I {how}?|Tell me how to {how}.|How to {how}?]"
        return expand(asked, rng, {}), answer
    if draw < 0.8:
        said, answer = rng.choice(GREETINGS)
        return expand(said, rng, {}), expand(answer, rng, {})
    topic = rng.choice(UNKNOWN)
    asked = (
        f"[What is {topic}?|Tell me about {topic}.|What do you know about {topic}?|"
        f"Explain {topic}.|Can you help me with {topic}?|Who is the best in {topic}?|Where is "
        f"{topic}?]"
    )
    return expand(asked, rng, {}), expand(DUNNO, rng, {})


def say(role: str, text: str) -> str:
    """One turn as the chat template writes it; ``role`` is one of the special tokens."""
    return f"{role}\n{text}{END}\n"


def chat(rng: Random) -> str:
    """A conversation of several turns; its statements about a story are true of that story."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.25:
        said, answer = rng.choice(GREETINGS)
        turns.append((expand(said, rng, {}), expand(answer, rng, {})))
    draw = rng.random()
    if draw < 0.45:
        wish, told = request(rng, rng.choice((1, 1, 1, 2)))
        turns.append((wish, told.text))
        turns += questions(rng, told, rng.choice((0, 1, 2, 3, 4)))
    elif draw < 0.75:
        told = tale(rng, None, rng.choice((1, 1, 2, 3)))
        asked = questions(rng, told, rng.choice((1, 2, 3, 4, 5)))
        first, answer = asked[0]
        lead = rng.choice(("Here is a story. ", "Read this story. ", "", "", "Story: "))
        gap = rng.choice(("\n\n", "\n\n", "\n", " "))
        opened = first + gap + told.text if rng.random() < 0.15 else lead + told.text + gap + first
        turns.append((opened, answer))
        turns += asked[1:]
    else:
        turns += [small_talk(rng) for _ in range(rng.choice((1, 2, 3, 4)))]
    if rng.random() < 0.3:
        said, answer = rng.choice(THANKS)
        turns.append((expand(said, rng, {}), expand(answer, rng, {})))
    lines = []
    if rng.random() < 0.5:
        lines.append(say(SYSTEM, expand(rng.choice(SYSTEMS), rng, {})))
    lines += [say(USER, user) + say(ASSISTANT, answer) for user, answer in turns]
    return "".join(lines)
