"""Whole stories: a cast, an opening, one or more plots, and what can be asked about them."""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

from dataclasses import dataclass
from random import Random

from examples.train_demo_model.adventures import DEED_PLOTS
from examples.train_demo_model.grammar import Person, Plot, Story, expand
from examples.train_demo_model.plots import THING_PLOTS
from examples.train_demo_model.words import (
    BOYS,
    CREATURES,
    DRINKS,
    FOODS,
    GIRLS,
    GROWN,
    HOMES,
    MOODS,
    OTHERS,
    PETS,
    PLACES,
    ROYALS,
    SPOTS,
    TRAITS,
)

PLOTS: tuple[Plot, ...] = THING_PLOTS + DEED_PLOTS

OPENINGS = (
    (
        "[Once upon a time|Once upon a time|Once upon a time|Long ago|Once], there [was|lived] a "
        "{h.mood} {h.kind} named {h}. {h} lived {h.home}."
    ),
    (
        "[Once upon a time|Once upon a time|Once upon a time|A long time ago], {h.home}, there "
        "lived a {h.mood} {h.kind}. {h.His} name was {h}."
    ),
    (
        "[Once upon a time|Once upon a time|Long ago|A long time ago], there was a {h.kind} named "
        "{h}. {h} was [very|always] {h.mood} and lived {h.home}."
    ),
    "{h} was a {h.mood} {h.kind} who lived {h.home}.",
    "There was a {h.mood} {h.kind} {h.home}, and {h.his} name was {h}.",
    "In the [spring|summer|autumn|winter], {h} the {h.mood} {h.kind} was at home {h.home}.",
)
FRIENDS = (
    "{h.His} best friend was {f}, a {f.mood} {f.kind}.",
    "{h} had a [good|dear|best] friend, a {f.mood} {f.kind} named {f}.",
    "{h} and {f} the {f.kind} [were good friends|did everything together|met every day].",
    "Near {h.him} lived {f}, a {f.mood} {f.kind}.",
)
EXTRAS = (
    "{h} liked {food} and {drink}[| more than anything].",
    "[The sun was shining|The birds were singing|It was a fine day][, and the air was warm|].",
    "{h} liked to [play|walk|sing] {p}.",
    "[Everybody liked {h}|All the people knew {h}].",
)
LINKS = (
    (
        "[The next day|The next morning|A few days later|One week later|Some time later], "
        "[something new happened|{h} and {f} met again|{h} woke up early and felt happy|the sun "
        "was shining again]."
    ),
    "[But that is not the end of the story|But there is more to tell].",
)
TITLES = ("{h} and {f}", "{h} the {h.kind}", "The {h.mood} {h.kind}", "A day with {h}")
_SYLLABLES = tuple(
    "ba be bo da di do fa fi ka ki ko la le li lo ma mi mo na ni no ra ri ro ta ti va zu".split()
)


@dataclass(frozen=True, slots=True)
class Tale:
    """A finished story: its text, its cast, what it is about, and question-answer pairs."""

    text: str
    hero: Person
    friend: Person
    topic: str
    asks: tuple[tuple[str, str], ...]


def _name(rng: Random, pronoun: str, *, animal: bool) -> str:
    if rng.random() < 0.06:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).title()
    names = PETS if animal and rng.random() < 0.7 else (GIRLS if pronoun == "she" else BOYS)
    return rng.choice(names)


def person(rng: Random, kind: str | None = None) -> Person:
    """Draw a character; ``kind`` fixes what they are (``girl``, ``dragon``, ``king``, …)."""
    if kind is None:
        draw = rng.random()
        if draw < 0.5:
            kind = rng.choice(("girl", "boy"))
        elif draw < 0.88:
            kind = rng.choice(tuple(CREATURES))
        else:
            kind = rng.choice(tuple(ROYALS) if draw < 0.92 else OTHERS)
    pronoun = rng.choice(("he", "she"))
    pronoun = ROYALS.get(kind, {"girl": "she", "boy": "he", "mermaid": "she"}.get(kind, pronoun))
    child = kind in {"girl", "boy"}
    home = "in a castle" if kind in ROYALS else CREATURES.get(kind, rng.choice(HOMES))
    return Person(_name(rng, pronoun, animal=not child), kind, pronoun, home, rng.choice(MOODS))


def cast(rng: Random, kind: str | None = None) -> tuple[Person, Person]:
    """A hero (of ``kind``) and a friend with another name."""
    hero = person(rng, kind)
    friend = person(rng)
    while friend.name == hero.name:
        friend = person(rng)
    return hero, friend


def begin(rng: Random, hero: Person, friend: Person) -> Story:
    """A story with its cast and scenery drawn, and no sentence yet."""
    grown = rng.choice(tuple(GROWN))
    names = hero.fields("h") | friend.fields("f") | {"g": grown, "g.he": GROWN[grown]}
    story = Story(rng, names)
    for key, values in (("p", PLACES), ("food", FOODS), ("drink", DRINKS), ("spot", SPOTS)):
        story.pick(key, values)
    return story


def introduce(story: Story) -> None:
    story.say(story.rng.choice(OPENINGS))
    story.maybe(0.45, story.rng.choice(EXTRAS))
    if story.names["h.kind"] in TRAITS:
        story.maybe(0.5, TRAITS[story.names["h.kind"]])
    if story.rng.random() < 0.85:
        story.say(story.rng.choice(FRIENDS))
        story.ask("Who is {f}?", "{f} is a {f.kind}.")
    if story.rng.random() < 0.5:
        story.turn()
    story.ask("Who is {h}?", "{h} is a {h.mood} {h.kind}.")


def tale(rng: Random, kind: str | None = None, plots: int = 1, plot: Plot | None = None) -> Tale:
    """One story of ``plots`` plots about one hero."""
    hero, friend = cast(rng, kind)
    story = begin(rng, hero, friend)
    introduce(story)
    asks: list[tuple[str, str]] = list(story.asks)
    texts, topic = [], ""
    for index in range(plots):
        if index:
            story = begin(rng, hero, friend)
            story.say(rng.choice(LINKS))
        (plot or rng.choice(PLOTS))(story)
        topic = topic or story.topic
        texts.append(story.text())
        asks += story.asks
    text = "\n\n".join(texts)
    if rng.random() < 0.3:
        text += "\n\nThe end."
    return Tale(text, hero, friend, expand(topic, rng, story.names), tuple(asks))


def title(rng: Random, told: Tale) -> str:
    made = expand(rng.choice(TITLES), rng, told.hero.fields("h") | told.friend.fields("f"))
    return made[0].upper() + made[1:]


def chapters(rng: Random, count: int) -> tuple[str, list[tuple[str, str]]]:
    """A long document of ``count`` chapters about the same two; and its last chapter's asks."""
    hero, friend = cast(rng)
    parts = [f"The adventures of {hero.name} and {friend.name}"]
    asks: list[tuple[str, str]] = []
    for number in range(1, count + 1):
        story = begin(rng, hero, friend)
        if number == 1:
            introduce(story)
        else:
            story.say(rng.choice(LINKS))
        rng.choice(PLOTS)(story)
        parts.append(f"Chapter {number}\n\n{story.text()}")
        asks = story.asks
    return "\n\n".join(parts), asks
