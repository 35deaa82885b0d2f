"""Talk with tools: questions that a tool answers, the calls, their results, and the answers.

Pure standard library. The turns are what the ``CHAT_TEMPLATE`` of ``chat_template`` renders,
character for character: tools as JSON lines, then calls, results and answers.
"""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from examples.train_demo_model.chat_template import TOOLS_AFTER, TOOLS_BEFORE
from examples.train_demo_model.grammar import expand
from examples.train_demo_model.talk import (
    ASSISTANT,
    DUNNO,
    SYSTEM,
    SYSTEMS,
    THANKS,
    USER,
    request,
    say,
    small_talk,
)

TOWNS = tuple(
    town.replace("_", " ")
    for town in (
        "Amsterdam Athens Bergen Berlin Bern Bilbao Bologna Bonn Boston Bremen Brussels "
        "Budapest Cairo Chicago Cork Dallas Delhi Denver Dresden Dublin Florence Geneva Genoa "
        "Ghent Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Kiel Krakow Lagos Leeds "
        "Lima Lisbon Liverpool London Lyon Madrid Malta Manila Marseille Miami Milan Monaco "
        "Montreal Moscow Munich Nairobi Naples Oslo Ottawa Oxford Palermo Paris Perth Porto "
        "Prague Quito Reykjavik Riga Rome Rotterdam Salzburg Santiago Seattle Seoul Seville "
        "Sofia Stockholm Sydney Tallinn Tokyo Toronto Trieste Turin Utrecht Valencia Venice "
        "Verona Vienna Vilnius Warsaw York Zagreb Zurich New_York Cape_Town San_Francisco "
        "Buenos_Aires Hong_Kong Los_Angeles"
    ).split()
)
#: Towns that no training text names: what is copied right for them was not learned by heart.
HELD_TOWNS = tuple(
    "Aarhus Antwerp Barcelona Basel Belfast Bristol Calais Cologne Dakar Dover Edinburgh Glasgow "
    "Granada Leipzig Luxembourg Manchester Nantes Osaka Pisa Stuttgart".split()
)
_STARTS = tuple("B Br C D Dr F G Gr H J K L M N P R S St T Tr V W Z A E I O U".split())
_MIDDLES = tuple("a e i o u ai ea ee ou ar or er an en in on al el".split())
_LINKS = tuple("b d g l m n r s t v nd rt st ld ll nn mb ss rk lt".split())
_ENDS = tuple("burg ton ville ford by stad a o ia en um is port field ham wick mouth".split())

SKIES = tuple(
    "sunny|cloudy|rainy|windy|snowy|foggy|clear|stormy|warm and dry|cold and wet|hot|freezing|"
    "light rain|heavy rain|some clouds|blue sky|thunder|snow|fog|sun and wind".split("|")
)
WEATHER_ASKS = (
    "[What is|What's|How is|How's] the weather [like |]in {town}[| today| now| right now]?",
    "[Is it|Is it] [raining|sunny|cold|warm|windy|snowing|hot] in {town}[| today| now]?",
    "[Tell me|Please tell me|Can you tell me|I want to know] the weather in {town}[.||!|, please.]",
    "[Weather|weather] in {town}[|?|, please]",
    "[Do I need|Will I need] [a coat|an umbrella|a hat|a scarf] in {town}[| today]?",
    "[Check|Look up|Get] the weather in {town}[.|| for me.]",
)
TWO_WEATHER_ASKS = (
    "[What is|How is] the weather in {town} and [in |]{other}?",
    "[Is it|Is it] [raining|sunny|cold|warm] in {town} [or|and] in {other}?",
    "[Tell me|Please tell me|Compare|Check] the weather in {town} and {other}[.|, please.]",
)
SUM_ASKS = (
    "What is {a} [plus|plus|+|and] {b}?",
    "[How much is|What's] {a} [plus|+|and] {b}?",
    "[Add|Please add|Can you add] {a} and {b}[.|]",
    "[What is|Tell me|I need|Compute] the sum of {a} and {b}[.|]",
    "{a} [plus|+] {b}[|?|, please]",
    "I have {a} [apples|cookies|coins|stones] and get {b} more. How many do I have?",
)
WEATHER_TEXTS = (
    "The weather in a town",
    "[Get|Look up|Tells] the [current |]weather [in|of|for] a [town|city|place][.|]",
)
SUM_KEYS = (("a", "b"), ("a", "b"), ("a", "b"), ("a", "b"), ("x", "y"))
SUM_TEXTS = ("The sum of two numbers", "[Add|Adds] two [whole |]numbers[.|]")
#: Tools that are offered and never needed: name, parameter, description.
OTHERS = (
    ("clock", "zone", "The time of day in a zone"),
    ("search", "query", "Search the web"),
    ("read_file", "path", "Read a file"),
    ("translate", "text", "Translate a text"),
    ("send_mail", "to", "Send a letter"),
    ("play_song", "title", "Play a song"),
    ("find_book", "author", "Find a book by its author"),
    ("turn_on_lamp", "room", "Turn on a lamp"),
)
SORRY = "I am sorry, I could not find that out."


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one conversation as the prompt lists them, and the two that answer questions."""

    tools: tuple[dict[str, Any], ...]
    weather: tuple[str, str] | None
    """Name and parameter of the tool for the weather."""
    add: tuple[str, str, str] | None
    """Name and parameters of the tool for sums."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the calls that answer it, their results, and the sentence of the answer."""

    text: str
    calls: tuple[str, ...]
    results: tuple[str, ...]
    answer: str


def dumped(value: object) -> str:
    """JSON as the chat template writes it."""
    return json.dumps(value, ensure_ascii=False)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    inner = dumped(arguments)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {inner}}}\n</tool_call>'


def tools_turn(tools: tuple[dict[str, Any], ...], system: str) -> str:
    """The system turn that lists the tools, after the caller's own instruction."""
    head = f"{system}\n\n" if system else ""
    listed = "".join(f"\n{dumped(tool)}" for tool in tools)
    return say(SYSTEM, head + TOOLS_BEFORE + listed + TOOLS_AFTER)


def results_turn(results: tuple[str, ...]) -> str:
    said = "\n".join(f"<tool_response>\n{one}\n</tool_response>" for one in results)
    return say(USER, said)


def _tool(rng: Random, name: str, text: str, parameters: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": parameters}
    if rng.random() < 0.8:
        schema["required"] = list(parameters)
    if rng.random() < 0.15:
        schema["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.9:
        function["description"] = expand(text, rng, {})
    function["parameters"] = schema
    return {"type": "function", "function": function}


def _parameter(rng: Random, kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "description": text} if rng.random() < 0.2 else {"type": kind}


def offer(rng: Random, stage: Stage) -> Offer:
    """Draw tools: those for the weather and for sums, one of them, or with others around them."""
    made: list[dict[str, Any]] = []
    weather = add = None
    kinds = rng.choice(("both", "both", "both", "both", "weather", "add"))
    if kinds != "add":
        weather = ("weather", rng.choice(stage.keys))
        keys = {weather[1]: _parameter(rng, "string", f"Name of the {weather[1]}")}
        made.append(_tool(rng, weather[0], rng.choice(WEATHER_TEXTS), keys))
    if kinds != "weather":
        add = ("add", *rng.choice(SUM_KEYS))
        kind = rng.choice(("integer", "integer", "number"))
        keys = {key: _parameter(rng, kind, f"The {key} number") for key in add[1:]}
        made.append(_tool(rng, add[0], rng.choice(SUM_TEXTS), keys))
    for name, key, text in rng.sample(OTHERS, rng.choice((0, 0, 0, 1))):
        made.append(_tool(rng, name, text, {key: _parameter(rng, "string", f"The {key}")}))
    rng.shuffle(made)
    return Offer(tuple(made), weather, add)


def invented_town(rng: Random) -> str:
    """A name drawn from syllables: it can only be copied, not learned by heart."""
    syllables = rng.choice(_STARTS) + rng.choice(_MIDDLES)
    for _ in range(rng.choice((0, 1, 1, 2))):
        syllables += rng.choice(_LINKS) + rng.choice(_MIDDLES)
    name = syllables + (rng.choice(_LINKS) + rng.choice(_ENDS) if rng.random() < 0.6 else "")
    return name.capitalize()


def crossed_town(rng: Random) -> str:
    """The beginning of one town and the end of another."""
    whole = [town for town in TOWNS if " " not in town]
    first, second = rng.choice(whole), rng.choice(whole)
    start = first[: rng.randrange(2, max(3, len(first) - 1))]
    return (start + second[rng.randrange(2, max(3, len(second) - 1)) :]).capitalize()


def _known_or_new(rng: Random) -> str:
    while (name := invented_town(rng)) in HELD_TOWNS:
        pass
    return name if rng.random() < 0.5 else rng.choice(TOWNS)


def _mostly_new(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.2:
        return rng.choice(TOWNS)
    while (name := crossed_town(rng) if draw < 0.6 else invented_town(rng)) in HELD_TOWNS:
        pass
    return name


def _held_town(rng: Random) -> str:
    return rng.choice(HELD_TOWNS)


@dataclass(frozen=True, slots=True)
class Stage:
    """What the talk of one cycle of training is about."""

    town: Callable[[Random], str]
    keys: tuple[str, ...]
    """Names of the parameter for the town, one of which is drawn."""
    holds_out: bool = True
    """Whether numbers are drawn that are not held out, or only those."""


FIRST = Stage(_known_or_new, ("town", "town", "town", "town", "city"))
SECOND = Stage(_mostly_new, ("town", "city"))
EXAMINED = Stage(_held_town, FIRST.keys, holds_out=False)


def _number(rng: Random) -> int:
    return rng.randrange(100) if rng.random() < 0.95 else rng.randrange(1000)


def is_held_sum(a: int, b: int) -> bool:
    """One pair of numbers in eight is in no training text."""
    return (a * 7 + b * 3) % 8 == 5


def _numbers(rng: Random, stage: Stage) -> tuple[int, int]:
    while True:
        if stage.holds_out:
            a, b = _number(rng), _number(rng)
        else:
            a, b = rng.randrange(100), rng.randrange(100)
        if is_held_sum(a, b) != stage.holds_out:
            return a, b


def _forecast(rng: Random, name: str, key: str, town: str) -> Question:
    """The call for ``town``, a result, and the answer that it leads to; no question yet."""
    result, answer = _sky(rng, town)
    return Question("", (call_text(name, {key: town}),), (result,), answer)


def _sky(rng: Random, town: str) -> tuple[str, str]:
    sky, degrees = rng.choice(SKIES), rng.randrange(-9, 36)
    draw = rng.random()
    if draw < 0.05:
        wrong = rng.choice(("unknown town", "no answer", "time out", "not found"))
        return rng.choice((f"error: {wrong}", dumped({"error": wrong}))), SORRY
    if draw < 0.15:
        rains = rng.random() < 0.5
        said = "is raining" if rains else "is not raining"
        return dumped({"rain": rains}), f"It {said} in {town}."
    if draw < 0.5:
        words = rng.choice((f"{sky}, {degrees} degrees", f"{degrees} degrees, {sky}", sky))
        return words, f"In {town}, the weather is {words}."
    key, heat = rng.choice(("weather", "sky", "condition")), rng.choice(("degrees", "temperature"))
    if draw < 0.6:
        return dumped({key: sky}), f"In {town}, the weather is {sky}."
    answer = f"In {town}, the weather is {sky}, {degrees} degrees."
    return dumped({key: sky, heat: degrees}), answer


def _sum_result(rng: Random, a: int, b: int) -> tuple[str, str]:
    """Now and then the result is not the sum, since the tool's word counts."""
    total = a + b if rng.random() < 0.7 else _number(rng)
    text = str(total) if rng.random() < 0.6 else dumped({rng.choice(("sum", "result")): total})
    return text, f"{a} plus {b} is {total}."


def weather_question(rng: Random, tool: tuple[str, str], stage: Stage) -> Question:
    town = stage.town(rng)
    text = expand(rng.choice(WEATHER_ASKS), rng, {"town": town})
    return replace(_forecast(rng, *tool, town), text=text)


def sum_question(rng: Random, tool: tuple[str, str, str], stage: Stage) -> Question:
    a, b = _numbers(rng, stage)
    result, answer = _sum_result(rng, a, b)
    text = expand(rng.choice(SUM_ASKS), rng, {"a": str(a), "b": str(b)})
    call = call_text(tool[0], {tool[1]: a, tool[2]: b})
    return Question(text, (call,), (result,), answer)


def double_question(rng: Random, tools: Offer, stage: Stage) -> Question:
    """Two calls at once: two towns, or a town and a sum in either order."""
    assert tools.weather
    if tools.add and rng.random() < 0.4:
        both = [weather_question(rng, tools.weather, stage), sum_question(rng, tools.add, stage)]
        rng.shuffle(both)
        then = both[1].text
        then = then if then.startswith("I ") else then[0].lower() + then[1:]
        text = f"{both[0].text.rstrip('?.!')}, and {then}"
    else:
        name, key = tools.weather
        towns = [stage.town(rng), stage.town(rng)]
        both = [_forecast(rng, name, key, town) for town in towns]
        names = {"town": towns[0], "other": towns[1]}
        text = expand(rng.choice(TWO_WEATHER_ASKS), rng, names)
    first, second = both
    answer = f"{first.answer} {second.answer}"
    return Question(text, first.calls + second.calls, first.results + second.results, answer)


def _unaided(rng: Random, tools: Offer, stage: Stage) -> Question:
    """Talk that needs no tool, or a question whose tool is not there."""
    missing = [] if tools.weather else [weather_question(rng, ("", ""), stage).text]
    missing += [] if tools.add else [sum_question(rng, ("", "", "_"), stage).text]
    if missing and rng.random() < 0.5:
        return Question(rng.choice(missing), (), (), expand(DUNNO, rng, {}))
    if rng.random() < 0.2:
        wish, told = request(rng)
        return Question(wish, (), (), told.text)
    while True:
        asked, answer = small_talk(rng)
        if "plus" not in asked and "weather" not in asked:
            return Question(asked, (), (), answer)


def _drawn(rng: Random, tools: Offer, stage: Stage) -> Question:
    draw = rng.random()
    if draw < 0.25 or not tools.tools:
        return _unaided(rng, tools, stage)
    if tools.weather and draw < 0.4:
        return double_question(rng, tools, stage)
    if tools.add and (not tools.weather or draw < 0.68):
        return sum_question(rng, tools.add, stage)
    assert tools.weather
    return weather_question(rng, tools.weather, stage)


def turns(question: Question) -> str:
    """The turns of a question: asked, called, results, answered."""
    asked = say(USER, question.text)
    if not question.calls:
        return asked + say(ASSISTANT, question.answer)
    called = say(ASSISTANT, "\n".join(question.calls))
    return asked + called + results_turn(question.results) + say(ASSISTANT, question.answer)


def repeats(rng: Random, stage: Stage) -> str:
    """Lists to repeat, in words or as JSON: nearly every token of a reply is a copied one."""
    text = ""
    for _ in range(rng.randrange(4, 9)):
        items = [stage.town(rng) if rng.random() < 0.6 else _number(rng) for _ in range(5)]
        items = items[: rng.randrange(1, 6)]
        listed = ", ".join(map(str, items))
        is_json = rng.random() < 0.6
        asked = (
            rng.choice(("As JSON", "A list in JSON")) if is_json else rng.choice(("Say", "Repeat"))
        )
        text += say(USER, f"{asked}: {listed}")
        text += say(ASSISTANT, dumped(items) if is_json else listed)
    return text


def dialogues(seed: int, count: int, stage: Stage = FIRST) -> Iterator[str]:
    """``count`` conversations of ``seed``."""
    return (dialogue(seed, index, stage) for index in range(count))


def dialogue(seed: int, index: int, stage: Stage) -> str:
    """Conversation ``index`` of ``seed``. Without tools, what needs them is not known."""
    rng = Random(f"tools/{seed}/{index}")
    if rng.random() < 0.4:
        return repeats(rng, stage)
    tools = Offer((), None, None) if rng.random() < 0.08 else offer(rng, stage)
    system = expand(rng.choice(SYSTEMS), rng, {}) if rng.random() < 0.3 else ""
    bare = say(SYSTEM, system) if system else ""
    text = tools_turn(tools.tools, system) if tools.tools else bare
    text += "".join(turns(_drawn(rng, tools, stage)) for _ in range(rng.choice((1, 2, 3, 4, 5, 6))))
    if rng.random() < 0.15:
        said, answer = rng.choice(THANKS)
        text += say(USER, expand(said, rng, {})) + say(ASSISTANT, expand(answer, rng, {}))
    return text


def examined(count: int) -> Iterator[tuple[str, Question]]:
    """Held-out prompts, each up to its question, about towns and numbers of no training text."""
    for index in range(count):
        rng = Random(f"tools examined/{index}")
        tools = offer(rng, EXAMINED)
        while not (tools.weather and tools.add):
            tools = offer(rng, EXAMINED)
        ask = (
            sum_question(rng, tools.add, EXAMINED)
            if index % 2
            else weather_question(rng, tools.weather, EXAMINED)
        )
        yield tools_turn(tools.tools, ""), ask
