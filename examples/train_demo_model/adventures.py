"""Plots about deeds: making friends, helping, learning, being brave, growing, racing.

The names are those of :mod:`examples.train_demo_model.plots`.
"""

from __future__ import annotations

from examples.train_demo_model.grammar import Story
from examples.train_demo_model.plots import ENDING, GLAD, SAD, lesson
from examples.train_demo_model.words import PLANTS, SKILLS


def friend(story: Story) -> None:
    story.topic = "a new friend"
    story.say(
        "{h} was [lonely|often alone], because [there was nobody to play with|{h.he} was new in "
        "that place|{h.he} was too shy to talk to anyone].",
        SAD,
        "One day, {h} [met|saw] {f} {p}.",
        "{f} was [sitting alone|looking at the clouds|eating {food}].",
        "At first, {h} was [afraid|too shy] to [say hello|speak].",
    )
    first = story.rng.random() < 0.5
    story.names["opened"] = story.names["h"] if first else story.names["f"]
    story.names["other"] = story.names["f"] if first else story.names["h"]
    story.turn()
    story.say(
        'But then {opened} [smiled and said|took a deep breath and said], "Hello, I am {opened}. '
        '[What is your name|Who are you]?"',
        '"[My name is|I am] {other}," said {other}. "[Do you want to play with me|Would you like '
        'some {food}|Shall we play together]?"',
        '"[Yes, please|I would love to|Oh yes]!" said {opened}.',
        "They [played|talked and laughed|played hide and seek] [all day|until it was dark], and "
        "they shared {food}.",
    )
    story.turn()
    story.say(
        '[When it was time to go home|In the evening], {h} asked, "[Will you come again tomorrow|'
        'Can we meet again tomorrow]?"',
        '"[Of course|Yes, I will], {h}," said {f}. "[We are friends now|You are my friend]."',
        "{h} was not lonely any more.",
        ENDING,
    )
    lesson(story, "[a small hello can make a big friend|it is good to be brave and say hello]")
    story.ask("Who said hello first?", "{opened} said hello first.")
    story.ask("Who did {h} meet?", "{h} met {f}.")
    story.ask("Where did {h} meet {f}?", "{h} met {f} {p}.")
    story.ask("Why was {h} sad?", "{h} was sad because {h.he} was lonely.")
    story.ask("What did they share?", "They shared {food}.")


#: A character in need: who, the trouble, the help, how it was done, and the thanks.
RESCUES = (
    ("kitten", "was stuck in a tall tree", "a ladder", "climbed up and carried it down"),
    ("bird", "had a hurt wing", "a soft cloth", "wrapped the wing and kept the bird warm"),
    ("duckling", "had lost its mother", "some bread", "led it back to the pond with the bread"),
    ("lamb", "had fallen into a hole", "a rope", "pulled it out with the rope"),
    ("puppy", "was lost and hungry", "some soup", "fed it and took it home"),
    ("beetle", "was lying on its back", "a small stick", "turned it over with the stick"),
    ("fish", "was caught in a net", "a pair of scissors", "cut the net and set the fish free"),
    ("hedgehog", "was cold in the snow", "a warm blanket", "wrapped it in the blanket"),
)


def rescue(story: Story) -> None:
    who, trouble, tool, how = story.rng.choice(RESCUES)
    story.names |= {"who": who, "trouble": trouble, "tool": tool, "how": how}
    story.names["now"] = trouble.replace("was ", "is ").replace("had ", "has ")
    story.topic = f"a {who} in trouble"
    story.say(
        "One [morning|day|evening], {h} was walking {p} when {h.he} heard a [small|strange|sad] "
        "sound.",
        "It was a [little|tiny|poor] {who}. The {who} {trouble}.",
        '"[Poor little {who}|Do not be afraid, little {who}]," said {h}. "[I will help you|I must '
        'do something]."',
        "But {h} could not do it alone, so {h.he} [ran to|called] {f}.",
    )
    story.turn()
    story.say(
        '"{f}, [come quickly|please help me]! A {who} {now}," said {h}.',
        '"[We need {tool}|I have {tool} at home|Let us get {tool}]," said {f}.',
        "They brought {tool}, and {h} {how}.",
        "The {who} was [safe|safe at last], and it looked at them with [bright|happy] eyes.",
        GLAD,
    )
    story.turn()
    story.maybe(
        0.5,
        "The next day, the {who} came back [and brought a flower|to say thank you|to play].",
    )
    lesson(
        story, "[even a small friend needs help sometimes|it is good to help|kindness comes back]"
    )
    story.say(ENDING)
    story.ask("Who needed help?", "A {who} needed help.")
    story.ask("What was wrong with the {who}?", "The {who} {trouble}.")
    story.ask("What did {h} and {f} need?", "They needed {tool}.")
    story.ask("How did {h} help the {who}?", "{h} {how}.")
    story.ask("Who helped {h}?", "{f} helped {h}.")
    story.ask("Who did {h} call?", "{h} called {f}.")


def skill(story: Story) -> None:
    what, fail, tip = story.rng.choice(SKILLS)
    story.names |= {"what": what, "fail": fail, "tip": tip}
    story.topic = "learning something new"
    story.say(
        "[More than anything|All summer], {h} wanted to {what}.",
        "[{f} could already do it very well|{f} was very good at it].",
        "{h} tried [once|for the first time], but {fail}.",
        "{h} tried again, but {fail} again.",
        '["I will never learn it," said {h}|{h} wanted to give up|{h} sat down and was sad].',
    )
    story.turn()
    story.say(
        '"[Do not give up|Everybody falls at first|You are doing well]," said {f}. "The secret is '
        'to {tip}."',
        "{h} [listened|nodded|thought about it].",
        "[The next morning|The next day|After a rest], {h.he} tried once more and remembered to "
        "{tip}.",
        "[And this time it worked|And then it happened]! {h} could {what}!",
        GLAD,
        '"[You did it|Well done], {h}!" [called|cried|said] {f}.',
        '"[I did it because you helped me|Thank you for your help], {f}," said {h}.',
    )
    story.turn()
    lesson(story, "[you learn when you try again|nobody can do everything at once]")
    story.maybe(0.6, ENDING)
    story.ask("What did {h} want to do?", "{h} wanted to {what}.")
    story.ask("What did {h} learn?", "{h} learned to {what}.")
    story.ask("Who helped {h}?", "{f} helped {h}.")
    story.ask("What was the secret?", "The secret was to {tip}.")
    story.ask("What happened the first time?", "The first time, {fail}.")


#: A noise at night: what it sounded like, and what it was.
NOISES = (
    ("scratch, scratch", "a branch at the window"),
    ("tap, tap, tap", "the rain on the roof"),
    ("bump, bump", "the cat on the stairs"),
    ("hoo, hoo", "an owl in the tree"),
    ("squeak, squeak", "a mouse in the kitchen"),
    ("whoosh, whoosh", "the wind in the chimney"),
)


def night(story: Story) -> None:
    sound, cause = story.rng.choice(NOISES)
    story.names |= {"sound": sound, "cause": cause}
    story.topic = "a noise in the night"
    story.say(
        "It was [late|a dark night|night], and {h} lay in bed.",
        "[The moon was behind the clouds|The house was very quiet|Everybody was asleep].",
        'Suddenly {h} heard a noise. "{sound}!"',
        "{h} was [very afraid|so afraid that {h.he} hid under the blanket|frightened].",
        '"[Is it a monster|What can that be]?" {h.he} [thought|whispered].',
    )
    story.turn()
    story.say(
        "[Then {h} thought of {f}|{h} remembered what {f} had said]: "
        '"[When you are afraid, turn on the light|Be brave and look, and the fear goes away]."',
        "So {h} [took a lamp|turned on the light|took a deep breath] and went to look.",
        '"{sound}!" There it was again.',
        "{h} looked, and then {h.he} [laughed|began to laugh]. It was only {cause}!",
        "There was no monster at all.",
        "[{h} went back to bed|{h} drank some {drink} and went back to bed] and [slept well|slept "
        "until the morning].",
    )
    story.turn()
    story.say(
        "The next day, {h} told {f} [the story|about the noise].",
        '"[You were very brave|I am proud of you]," said {f}.',
    )
    lesson(story, "[things in the dark are often small|looking is better than being afraid]")
    story.ask("What was the noise?", "The noise was {cause}.")
    story.ask("What did {h} hear?", "{h} heard {cause}.")
    story.ask("Why was {h} afraid?", "{h} was afraid because {h.he} heard a noise at night.")
    story.ask("Was it a monster?", "No, it was only {cause}.")
    story.ask("Who did {h} tell about it?", "{h} told {f} about it.")


def garden(story: Story) -> None:
    story.pick("plant", PLANTS)
    story.topic = "a garden"
    story.say(
        "In spring, {h.possessive} {g} gave {h.him} a [small|tiny] seed.",
        '"[What will grow from it|What is it]?" asked {h}.',
        '"[Plant it and wait|Wait and see|If you are patient, you will see]," said the {g}.',
        "{h} [dug a hole|made a small hole] in the garden and put the seed into it.",
        "Every day, {h} gave it water, but nothing [happened|came up].",
        '[{h} was sad|{h} wanted to give up|"It will never grow," said {h}].',
    )
    story.turn()
    story.say(
        '"[Be patient|Good things take time|Wait a little longer]," said {f}, and {f.he} helped '
        "{h} [to carry the water|every day].",
        "Then one morning, [there was a green leaf|a tiny green leaf came up]!",
        "It grew and grew, [day after day|week after week], and in summer it was a [big|beautiful] "
        "{plant}.",
        GLAD,
        '"[Look, it is a {plant}|It is a {plant}|A {plant}, a real {plant}]!" said {h}.',
        "{h} [showed it to everyone|gave a part of it to {f}|invited {f} to a little feast].",
    )
    lesson(story, "[good things take time|you must be patient]")
    story.maybe(0.5, ENDING)
    story.ask("What did the {g} give {h}?", "The {g} gave {h} a seed.")
    story.ask("What grew from the seed?", "A {plant} grew from the seed.")
    story.ask("Who helped {h} in the garden?", "{f} helped {h} in the garden.")
    story.ask("Who gave {h} the seed?", "{h.possessive} {g} gave {h} the seed.")


def race(story: Story) -> None:
    story.topic = "a race"
    story.pick("goal", ("the old tree", "the bridge", "the lake", "the red barn", "the mill"))
    story.say(
        '"[I am the fastest|Nobody is faster than me|I always win]," said {f} [one day|every day].',
        '"[Then let us have a race|Shall we have a race]," said {h}. "[The first at {goal} wins|We '
        'will run to {goal}]."',
        '"[Ha! That will be easy|I will win for sure]," said {f}.',
        "[One, two, three, go|Ready, steady, go]! {f} ran [as fast as the wind|very fast], and {h} "
        "was soon far behind.",
    )
    story.turn()
    slept = story.rng.random() < 0.5
    if slept:
        story.say(
            "[Half way|In the middle of the way], {f} looked back and could not see {h}.",
            '"[I have a lot of time|I can rest a little]," {f.he} said, lay down and fell asleep.',
            "{h} was slow, but {h.he} did not stop.",
            "When {f} woke up, {h} was already at {goal}.",
            "{h} had won the race!",
            '"[I was too proud|I should not have boasted], and you won," said {f}.',
        )
        story.names |= {"won": story.names["h"], "cause": "{f} fell asleep"}
    else:
        story.say(
            "[Half way|In the middle of the way], {f} fell and hurt {f.his} [knee|foot].",
            "{h} [came near and stopped|saw it and stopped at once]. {h.He} [did not run past|"
            "could have won], but {h.he} helped {f} to get up.",
            "[Slowly|Step by step], they walked to {goal} together.",
            "Nobody won the race, but nobody lost it.",
            '"[I was too proud|I should not have boasted], and you were kind," said {f}.',
        )
        story.names |= {"won": "Nobody", "cause": "{f} fell and {h} helped {f.him}"}
    story.say(
        '"[A race is only a game|We can race again tomorrow]," said {h}, and they both laughed.',
        ENDING,
    )
    story.ask("Who won the race?", "{won} won the race.")
    story.ask("Where did they run?", "They ran to {goal}.")
    story.ask("Who said that {f.he} was the fastest?", "{f} said that {f.he} was the fastest.")
    who = "nobody" if story.names["won"] == "Nobody" else "{won}"
    story.ask(f"Why did {who} win?", "{won} won because {cause}.")


def storm(story: Story) -> None:
    story.topic = "a storm"
    story.pick("shelter", ("a cave", "an old barn", "a small hut", "a hollow tree", "a tent"))
    story.say(
        "{h} and {f} were [walking|playing] {p}.",
        "[Dark clouds came up|The sky grew dark], and [it began to rain|a storm began].",
        "[Boom, went the thunder|The thunder was loud|The wind was strong], and {h} was [afraid|"
        "very afraid].",
        '"[Come, we must find a dry place|Quick, let us run]!" [called|said] {f}.',
        "[Soon|Not far away], they found {shelter} and [went|ran] inside.",
    )
    story.turn()
    story.say(
        "[It was dry and warm there|There they were safe].",
        '{h} held {f.possessive} hand. "[Are you not afraid|Is the storm dangerous], {f}?" asked '
        "{h}.",
        '"[A little, but we are together|Not when you are here]," said {f}. "[Let us sing a song|'
        'Let us tell stories|Let us count until it stops]."',
        "[So they did|And so they did], and {h} [forgot to be afraid|was not afraid any more].",
        "When the rain stopped, they saw a rainbow [over the hill|in the sky|above the trees].",
        '"[How beautiful|Look at all the colours]!" said {h}.',
        ENDING,
    )
    story.ask("Where did they hide from the storm?", "They hid in {shelter}.")
    story.ask("Who was afraid of the storm?", "{h} was afraid of the storm.")
    story.ask("What did they see after the rain?", "They saw a rainbow after the rain.")
    story.ask("Where were they when the rain came?", "They were {p}.")


def song(story: Story) -> None:
    """A village problem solved by the hero's small gift."""
    story.topic = "a brave deed"
    problem, deed, result = story.rng.choice(
        (
            ("the well was dry", "dug a new well", "there was water again"),
            ("the bridge was broken", "built a new bridge", "everyone could cross the river"),
            ("the fire had gone out", "lit a new fire", "everyone was warm again"),
            ("the bell did not ring", "climbed the tower and freed the bell", "the bell rang"),
            ("a big rock lay on the road", "rolled the rock away", "the road was free"),
            ("the mill did not turn", "cleaned the wheel", "there was bread for everyone"),
        )
    )
    story.names |= {"problem": problem, "deed": deed, "result": result}
    story.say(
        "One [day|winter|morning], there was a problem in the village: {problem}.",
        "[Everybody was worried|The people were sad|Nobody knew what to do].",
        '"[Who can help us|What shall we do]?" asked [the people|the old baker|the queen].',
        '"[I will try|I can help]," said {h}.',
        '"[You are too small|You cannot do that]," said [the people|the old baker].',
        'But {f} said, "[I believe in you, {h}. I will come with you|Let us try it together]."',
    )
    story.turn()
    story.say(
        "So {h} and {f} worked [all day|from morning till night|very hard].",
        "It was [hard|not easy], but they did not give up.",
        "In the end, they {deed}, and {result}.",
        "[All the people cheered|Everyone clapped and cheered].",
        '"[Thank you, {h} and {f}|You saved the village]!" they [called|cried].',
        GLAD,
        "There was a big feast with {food} and {drink}.",
        ENDING,
    )
    story.ask("What was the problem?", "The problem was that {problem}.")
    story.ask("What did {h} and {f} do?", "They {deed}.")
    story.ask("Who believed in {h}?", "{f} believed in {h}.")
    story.ask("Who came with {h}?", "{f} came with {h}.")
    story.ask("What did they eat at the feast?", "They ate {food} at the feast.")


DEED_PLOTS = (friend, rescue, skill, night, garden, race, storm, song)
