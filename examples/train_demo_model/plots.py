"""Plots about things: lost, broken, shared, given, hidden, found.

A plot draws its facts first and then tells them, so what is lost is what is found. ``{h}`` is the
hero, ``{f}`` the friend, ``{g}`` a grown-up; ``{t}`` is the thing with its colour, ``{n}`` its bare
name, ``{p}`` the place with its preposition.
"""

from __future__ import annotations

from examples.train_demo_model.grammar import Story
from examples.train_demo_model.words import COLOURS, MENDING, SPOTS, THINGS, TREASURES

SAD = (
    "{h} [felt very sad|was very sad|was so sad that {h.he} began to cry|sat down and cried|"
    "felt a lump in {h.his} throat]."
)
GLAD = (
    "{h} [was very happy|was so happy that {h.he} danced|laughed with joy|felt warm and happy|"
    "smiled from ear to ear|jumped up and down with joy]."
)
THANKS = (
    '"[Thank you, {f}|Thank you so much, {f}|You are a true friend, {f}|Oh, thank you]!" '
    "[said {h}|cried {h}|{h} said]."
)
ENDING = (
    "[From that day on, {h} and {f} were best friends|{h} and {f} went home together, tired and "
    "happy|That night, {h} fell asleep with a smile|They laughed and played until the sun went "
    "down|And they all lived happily ever after|It was the best day of the year|{h} never forgot "
    "that day|They walked home hand in hand]."
)


def lesson(story: Story, words: str) -> None:
    story.maybe(
        0.5, f"[{{h}} had learned that|{{h}} knew now that|And everyone remembered that] {words}."
    )


def thing(story: Story, made_of: tuple[str, ...] = ()) -> str:
    """Draw the thing of the story: sets ``{t}``, ``{n}``, ``{use}``; returns its material."""
    fits = [t for t in THINGS if not made_of or t.made_of in made_of]
    drawn = story.rng.choice(fits)
    colour = story.pick("colour", COLOURS)
    story.names |= {"n": drawn.name, "t": f"{colour} {drawn.name}", "use": drawn.use}
    story.topic = f"a {drawn.name}"
    return drawn.made_of


def _lose(story: Story) -> None:
    """How the thing is lost decides where it is found: sets ``{spot}`` and ``{why}``."""
    way = story.rng.randrange(4)
    story.pick("spot", SPOTS)
    story.pick("wrong", SPOTS)
    if way == 0:
        story.names["spot"] = "in a tall tree"
        story.say(
            "[Suddenly|All at once|Then], a strong wind [came|blew] and [took|carried away] "
            "the {n}."
        )
        story.names["why"] = "the wind carried it away"
    elif way == 1:
        story.say(
            "{h} [put|laid] the {n} down [to pick some flowers|to eat a snack|"
            "to watch a butterfly].",
            "[Then {h.he} walked on and forgot it|But {h.he} forgot to pick it up again].",
        )
        story.names["why"] = "{h.he} put it down and forgot it"
    elif way == 2:
        story.say(
            "[On the way|Along the path], the {n} fell out of {h.his} [bag|basket].",
            "{h} did not [notice|see] it.",
        )
        story.names["why"] = "it fell out on the way"
    else:
        story.pick("thief", ("magpie", "puppy", "monkey", "goat"))
        story.say(
            "[A cheeky|A playful|A naughty] {thief} [took the {n} and ran off with it|grabbed the "
            "{n} and hid it] {spot}.",
            "{h} did not see [it|that].",
        )
        story.names["why"] = "a {thief} took it"


def lost(story: Story) -> None:
    thing(story)
    story.topic = story.topic.replace("a ", "a lost ", 1)
    story.say(
        "{h} had [a {t}|a beautiful {t}|a {t} that {h.he} loved more than anything].",
        "[It was a gift from {h.his} {g}.|{h.He} took it everywhere.|]",
        "One [sunny|windy|cool|bright] [morning|day|afternoon], {h} took the {n} and "
        "[went to play|went for a walk|played] {p}.",
    )
    _lose(story)
    story.turn()
    story.say(
        "[After a while|Soon|When it was time to go home], {h} [looked for|wanted to {use}] the "
        "{n}, but it was gone.",
        '"[Oh no! Where is my {n}|Where is my {t}|My {n} is gone! Where can it be]?" '
        "[cried {h}|said {h}|{h} called].",
        SAD,
    )
    story.maybe(
        0.5,
        "{h.He} looked [here and there|up and down|everywhere], but {h.he} could not find it.",
    )
    story.turn()
    story.say(
        '{f} [came by|saw {h}|heard {h} crying] and asked, "[What is wrong|Why are you sad|'
        'What happened], {h}?"',
        '"I lost my {t}," [said {h}|{h} answered].',
        '"[Do not worry|Do not cry|Do not be sad]," said {f}. "[I will help you|We will find it '
        'together|Let us look for it together]."',
    )
    story.maybe(
        0.6,
        "They looked [{wrong}|{wrong} first], but [the {n} was not there|there was only a "
        "[snail|frog|leaf|beetle]].",
    )
    story.say(
        "[Then|At last|After a long time], {f} [looked|searched] {spot}.",
        '"[Look! Here it is|I found it|Here is your {n}, {h}]!" [called {f}|{f} shouted].',
        "[The {t} was {spot}|There was the {t}, {spot}].",
        GLAD,
        THANKS,
    )
    story.turn()
    lesson(story, "[it is easier to search with a friend|a good friend is better than any {n}]")
    story.say(ENDING)
    story.ask("Who lost the {t}?", "{h} lost the {t}.")
    story.ask("What did {h} lose?", "{h} lost a {t}.")
    story.ask("Who found the {n}?", "{f} found the {n}.")
    story.ask("Where was the {n}?", "The {n} was {spot}.")
    story.ask("Where did {f} find the {t}?", "{f} found the {t} {spot}.")
    story.ask("Why was {h} sad?", "{h} was sad because {h.he} lost {h.his} {t}.")
    story.ask("Who helped {h}?", "{f} helped {h}.")
    story.ask("How was the {n} lost?", "The {n} was lost because {why}.")


def broken(story: Story) -> None:
    made_of = thing(story)
    story.topic = story.topic.replace("a ", "a broken ", 1)
    story.names["broke"], story.names["state"], story.names["tool"] = MENDING[made_of]
    story.say(
        "{f} had a {t}.",
        "[{f} loved it very much.|It was very old and very dear to {f}.|]",
        'One day, {h} [asked|said], "[May I {use} your {n}|Can I {use} the {n} for a while]?"',
        '"Yes, but [please be careful|be careful with it]," [said {f}|{f} answered].',
    )
    story.say(
        "{h} [was careful at first|took the {n} and smiled], but then {h.he} "
        "[ran too fast and fell|slipped on a wet stone|was not careful and dropped it].",
        "[Crack|Oh no|Oops]! The {n} {broke}.",
    )
    story.turn()
    story.say(
        "{h} [felt very bad|felt sorry|was ashamed].",
        "[{h.He} wanted to hide the {n}.|{h.He} thought about running away.|]",
        "But {h.he} [knew that it was better to tell the truth|wanted to be honest].",
        'So {h.he} went to {f} and said, "[I am so sorry. I broke your {n}|Your {n} is {state}, '
        'and it was me. I am sorry]."',
        "{f} was [sad|sad at first|quiet for a moment].",
        'Then {f.he} said, "[Thank you for telling me the truth|You were brave to tell me]. '
        '[Let us mend it|We can mend it together|Maybe we can mend it]."',
    )
    story.turn()
    story.say(
        "They [went to|asked] {h.possessive} {g}, who had {tool}.",
        "[Together|Slowly and carefully|Bit by bit], they mended the {n} with {tool}.",
        "[Soon the {n} was as good as new|It did not look new, but it worked again].",
        "[{f} smiled|{f} was happy again|{f} laughed] and {h} was [glad|happy] too.",
        '"[Next time I will be more careful|I will always be careful]," [said {h}|{h} promised].',
    )
    lesson(
        story, "[telling the truth is brave|it is good to be honest|broken things can be mended]"
    )
    story.maybe(0.5, ENDING)
    story.ask("Who broke the {n}?", "{h} broke the {n}.")
    story.ask("What did {h} break?", "{h} broke a {t}.")
    story.ask("Whose {n} was it?", "It was {f.possessive} {n}.")
    story.ask("How did they mend the {n}?", "They mended the {n} with {tool}.")
    story.ask("What did {h} do after the {n} {broke}?", "{h} told {f} the truth.")
    story.ask("Who had the {t}?", "{f} had the {t}.")


def shared(story: Story) -> None:
    thing(story)
    story.topic = "sharing"
    story.say(
        "[One day|One morning], {h} and {f} [were playing|met] {p}.",
        "They [saw|found] a {t} [there|on the ground|{spot}].",
        '"[I saw it first! It is mine|It is mine|I want to {use} it]!" [said {h}|cried {h}].',
        '"[No, it is mine|No, I want it|But I saw it first]!" [said {f}|cried {f}].',
        "They both pulled [at the {n}|the {n} hard], and soon they were [angry|very angry].",
    )
    story.turn()
    story.say(
        "{h.possessive} {g} [heard the noise and came|came to see what was wrong].",
        '"[Stop, you two|Please stop]! [If you pull, the {n} will break|A {n} is no fun when you '
        'fight]," said the {g}. "[You can take turns.|You can share it.|Why do you not share it?]"',
        "{h} looked at {f}, and {f} looked at {h}.",
        '"[I am sorry|You are right]," said {h}. "You can {use} the {n} first."',
        '"[Thank you|That is kind]," said {f}. "[After me, it is your turn|Then it is your turn]."',
    )
    story.turn()
    story.say(
        "[So they took turns|They shared the {n} all day], and [nobody was angry any more|it was "
        "much more fun].",
        ENDING,
    )
    lesson(story, "[sharing is more fun than fighting|things are nicer when you share them]")
    story.ask("What did {h} and {f} find?", "They found a {t}.")
    story.ask("Why were {h} and {f} angry?", "They were angry because they both wanted the {t}.")
    story.ask("Who told them to share?", "{h.possessive} {g} told them to share.")
    story.ask("Who could {use} the {n} first?", "{f} could {use} the {n} first.")
    story.ask("Where were {h} and {f}?", "They were {p}.")


def gift(story: Story) -> None:
    made = story.rng.random() < 0.5
    thing(story)
    story.topic = "a birthday"
    if made:
        story.names["t"] = story.names["n"] = story.pick(
            "cake", ("cake", "picture", "card", "paper star")
        )
    story.say(
        "[It was {f.possessive} birthday|The next day was {f.possessive} birthday].",
        "{h} wanted to give {f.him} [something special|a nice gift|a surprise].",
    )
    if made:
        story.say(
            "But {h} had no money.",
            '"[I will make something|I can make a gift]," {h.he} [thought|said].',
            "{h} worked [all morning|for a long time|very hard] and made a {n} for {f}.",
        )
    else:
        story.say(
            "{h} had [three|four|five|ten] coins, so {h.he} went to the market.",
            "[There|At the market], {h.he} saw a {t}.",
            '"[{f} will love it|This is just right for {f}]," {h.he} thought, and {h.he} bought '
            "the {n}.",
        )
    story.turn()
    story.say(
        "[In the afternoon|Later|Then], {h} [knocked on {f.possessive} door|went to see {f}].",
        '"[Happy birthday, {f}|Surprise, {f}]!" [said {h}|called {h}].',
        "{f} [looked at the {n} and smiled|could not believe {f.his} eyes].",
        '"A {t}! [This is the best gift|I love it|It is beautiful]," [said {f}|cried {f}]. '
        '"[Thank you, {h}|You are so kind, {h}]."',
        "Then they [ate {food} and drank {drink}|sang and danced|ate {food} and told stories].",
        ENDING,
    )
    story.ask("Whose birthday was it?", "It was {f.possessive} birthday.")
    story.ask("What did {h} give {f}?", "{h} gave {f} a {t}.")
    story.ask("Who gave {f} a {n}?", "{h} gave {f} a {n}.")
    if not made:
        story.ask("Where did {h} buy the {n}?", "{h} bought the {n} at the market.")


def treasure(story: Story) -> None:
    story.topic = "a treasure"
    story.pick("gold", TREASURES)
    story.pick("old", ("an old chest", "a dusty box", "an old book", "a glass bottle"))
    story.say(
        "One day, {h} found a map in {old}.",
        "[The map showed the way to a treasure|On the map there was a big red cross].",
        '{h} [ran to|went to see] {f}. "[Look, a treasure map! Will you come with me|Shall we look '
        'for the treasure]?" {h.he} asked.',
        '"[Yes, let us go|Of course|I love adventures]!" said {f}.',
        "They packed {food} and [a rope|a lamp|a spade], and [off they went|began to walk].",
    )
    story.turn()
    story.say(
        "First they [walked through a dark forest|climbed a steep hill|followed a narrow path].",
        "Then they came to a [wide|deep|wild] river, and there was no bridge.",
        '"How can we get to the other side?" asked {f}.',
    )
    way = story.rng.choice(("a boat", "a fallen tree", "a turtle", "big stones"))
    story.names["way"] = way
    crossed = {
        "a boat": "{h} saw a small boat, and they rowed across",
        "a fallen tree": "{h} saw a fallen tree, and they walked across on it",
        "a turtle": "A big turtle heard them and carried them across on its back",
        "big stones": "{h} saw big stones in the water, and they jumped from stone to stone",
    }
    story.say(crossed[way] + ".")
    story.turn()
    story.say(
        "On the other side, they [looked {spot}|dug a hole {spot}].",
        "[There it was|And there was the treasure], a [chest|box] full of {gold}!",
        GLAD,
        '"[What shall we do with the treasure|What shall we do with it]?" asked {f}.',
    )
    end = story.rng.choice(("share", "village", "both"))
    said = {
        "share": ('"We will share it," said {h}.', "{h} and {f} shared it."),
        "village": (
            '"We will give it to the people in the village," said {h}.',
            "They gave it to the people in the village.",
        ),
        "both": (
            '"We will keep a little and give the rest away," said {h}.',
            "They kept a little and gave the rest away.",
        ),
    }[end]
    story.say(said[0], "And so they did.", ENDING)
    story.ask("What did {h} find in {old}?", "{h} found a map in {old}.")
    story.ask("Where was the map?", "The map was in {old}.")
    story.ask("What was the treasure?", "The treasure was a lot of {gold}.")
    story.ask("Where was the treasure?", "The treasure was {spot}.")
    story.ask("How did they cross the river?", "They crossed the river with the help of {way}.")
    story.ask("Who went with {h}?", "{f} went with {h}.")
    story.ask("What did they do with the treasure?", said[1])


def cookies(story: Story) -> None:
    story.topic = "telling the truth"
    story.pick("sweet", ("cookies", "cake", "pancakes", "berries"))
    story.say(
        "{h.possessive} {g} made {sweet} for [the guests|the party|the evening].",
        '"[Please do not eat them yet|They are for later]," said the {g}.',
        "The {sweet} smelled [so good|wonderful], and {h} was hungry.",
        "[When nobody was looking|When {h} was alone], {h.he} ate [one, and then another one|some "
        "of the {sweet}|nearly all of the {sweet}].",
    )
    story.turn()
    story.say(
        '"Who ate the {sweet}?" asked the {g}.',
        '"[It was the cat|I do not know|It was not me]," said {h}.',
        "But {h} [felt bad|had a bad feeling in {h.his} tummy] because that was [not true|a lie].",
        '[After a while|At last|In the evening], {h} said, "[It was me. I am sorry|I ate the '
        '{sweet}. I am sorry that I lied]."',
        'The {g} [smiled|was not angry|gave {h.him} a hug]. "[I am glad that you told me the truth|'
        'Thank you for being honest]. [Now help me make more|Let us make new ones together]."',
        "So {h} and the {g} made more {sweet}, and {h} [did not eat any until later|waited].",
    )
    lesson(story, "[it feels good to tell the truth|the truth is better than a lie]")
    story.ask("Who ate the {sweet}?", "{h} ate the {sweet}.")
    story.ask("What did {h} eat?", "{h} ate the {sweet}.")
    story.ask("Who made the {sweet}?", "{h.possessive} {g} made the {sweet}.")
    story.ask("Why did {h} feel bad?", "{h} felt bad because {h.he} had told a lie.")


THING_PLOTS = (lost, lost, broken, shared, gift, treasure, cookies)
