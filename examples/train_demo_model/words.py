"""The small world's words: who lives in it, what they own, where they go, what they feel."""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

from dataclasses import dataclass

GIRLS = tuple(
    "Mia Lily Anna Ella Zoe Ruby Nora Lucy Sara Emma Ivy Rose Clara Maya Alice Molly".split()
)
BOYS = tuple("Tom Ben Max Leo Sam Finn Jack Noah Oscar Theo Hugo Adam Luke Milo Eli Dan".split())
PETS = tuple("Pip Dot Rusty Bramble Sunny Pepper Hazel Toby Coco Biscuit Misty Ziggy".split())

#: Kinds of hero that are not children, with the place they live in.
CREATURES = {
    "dragon": "in a warm cave",
    "fox": "in the forest",
    "bear": "in the forest",
    "rabbit": "in the meadow",
    "owl": "in an old tree",
    "mouse": "in a tiny house",
    "cat": "in a blue house",
    "dog": "on a farm",
    "frog": "by the pond",
    "duck": "by the pond",
    "squirrel": "in an old tree",
    "hedgehog": "in the garden",
    "elephant": "by the wide river",
    "lion": "on a sunny hill",
    "turtle": "by the sea",
    "penguin": "in the land of snow",
    "pony": "on a farm",
    "monkey": "in the jungle",
    "unicorn": "in a magic forest",
    "robot": "in a busy town",
    "wizard": "in a tall tower",
    "knight": "in a stone castle",
    "fairy": "in a flower",
    "giant": "on a high mountain",
    "pirate": "on an old ship",
    "bird": "in an old tree",
}
#: More heroes, asked for by name, who may live anywhere.
OTHERS = tuple(
    "tiger wolf horse cow pig sheep goat crab whale bee ant butterfly snail camel panda zebra "
    "giraffe parrot hen deer mole seal ghost mermaid troll elf snowman teacher farmer baker sailor "
    "witch spider snake dinosaur chicken kitten puppy".split()
)
TRAITS = {
    "dragon": "{h.He} had [green|red|golden] scales and could [breathe fire|fly very high].",
    "fox": "{h.He} had a [long red|soft] tail and [quick feet|bright eyes].",
    "bear": "{h.He} loved honey[| and slept all winter].",
    "rabbit": "{h.He} had long ears and could [hop very far|run very fast].",
    "owl": "{h.He} slept all day and was awake at night.",
    "mouse": "{h.He} was so small that {h.he} slept in a [matchbox|teacup].",
    "cat": "{h.He} had soft [black|white|grey] fur and liked to sleep in the sun.",
    "dog": "{h.He} had a [brown|black] nose and a tail that was never still.",
    "frog": "{h.He} could jump higher than [a house|all the other frogs].",
    "elephant": "{h.He} had a long trunk and big ears.",
    "lion": "{h.He} had a [golden|loud] voice, and everybody could hear {h.him}.",
    "turtle": "{h.He} was slow, but {h.he} always [arrived|came home].",
    "penguin": "{h.He} could not fly, but {h.he} could swim very well.",
    "unicorn": "{h.He} had a [silver|golden] horn that shone in the dark.",
    "robot": "{h.He} was made of [metal|tin] and had two [green|blue] lights for eyes.",
    "wizard": "{h.He} had a tall hat and a [long|magic] stick.",
    "knight": "{h.He} had a [shining|heavy] shield and a [white|brown] horse.",
    "giant": "{h.He} was taller than the trees, but {h.he} was very gentle.",
    "pirate": "{h.He} had a [big|black] hat and a parrot[| that could talk].",
    "princess": "{h.He} had a golden crown, but {h.he} liked [the garden|her old boots] more.",
    "king": "{h.He} had a golden crown and a [white|long] beard.",
    "girl": "{h.He} had [brown|black|red] hair and [brown|green|blue] eyes.",
    "boy": "{h.He} had [brown|black|red] hair and [brown|green|blue] eyes.",
}
ROYALS = {"princess": "she", "prince": "he", "king": "he", "queen": "she"}

COLOURS = tuple("red blue green yellow white black brown purple orange pink golden silver".split())
MOODS = tuple("little kind brave clever shy curious cheerful gentle quiet funny".split())
HOMES = (
    "in a small village",
    "in a house near the sea",
    "in a little town",
    "on a farm",
    "near the forest",
    "in a house on the hill",
    "by the river",
)
GROWN = {"mother": "she", "father": "he", "grandmother": "she", "grandfather": "he"}


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to own: its name, what it is made of, and what one does with it."""

    name: str
    made_of: str
    use: str


THINGS = (
    Thing("kite", "paper", "fly"),
    Thing("ball", "rubber", "throw"),
    Thing("hat", "cloth", "wear"),
    Thing("scarf", "cloth", "wear"),
    Thing("book", "paper", "read"),
    Thing("boat", "wood", "sail"),
    Thing("drum", "wood", "play"),
    Thing("flute", "wood", "play"),
    Thing("train", "wood", "push"),
    Thing("doll", "cloth", "hug"),
    Thing("bear", "cloth", "hug"),
    Thing("blanket", "cloth", "hug"),
    Thing("cup", "china", "hold"),
    Thing("bell", "metal", "ring"),
    Thing("key", "metal", "hold"),
    Thing("ring", "metal", "wear"),
    Thing("lamp", "china", "hold"),
    Thing("basket", "wood", "carry"),
    Thing("coat", "cloth", "wear"),
    Thing("bag", "cloth", "carry"),
    Thing("wagon", "wood", "pull"),
    Thing("pencil", "wood", "hold"),
    Thing("whistle", "metal", "blow"),
    Thing("map", "paper", "read"),
)
#: How a thing of each material breaks, is mended, and with what.
MENDING = {
    "paper": ("tore", "torn", "glue"),
    "cloth": ("ripped", "ripped", "a needle and thread"),
    "wood": ("cracked", "cracked", "glue and a small nail"),
    "china": ("broke", "broken", "strong glue"),
    "metal": ("bent", "bent", "a small hammer"),
    "rubber": ("split", "split", "a sticky patch"),
}

PLACES = (
    "in the park",
    "in the garden",
    "in the forest",
    "by the river",
    "on the beach",
    "at the market",
    "on the hill",
    "in the meadow",
    "near the old bridge",
    "at the farm",
    "by the lake",
    "in the village square",
)
SPOTS = (
    "under a bench",
    "behind a big rock",
    "in the tall grass",
    "under a bush",
    "behind the old wall",
    "in a hollow log",
    "next to the well",
    "under a pile of leaves",
    "beside the gate",
    "between two stones",
)
INDOORS = ("under the bed", "behind the door", "on the shelf", "in the kitchen", "under the stairs")
FOODS = ("apples", "bread", "soup", "pancakes", "cookies", "berries", "cake", "carrots", "nuts")
DRINKS = ("warm milk", "cool water", "apple juice", "hot cocoa", "sweet tea")
PLANTS = ("sunflower", "pumpkin", "apple tree", "rose", "carrot", "bean", "strawberry")
SKILLS = (
    ("ride a bike", "the bike fell over", "keep looking ahead"),
    ("swim", "the water got into {h.his} nose", "kick with both feet"),
    ("whistle", "only air came out", "make {h.his} lips small and round"),
    ("climb the big tree", "{h.his} foot slipped", "hold on with both hands"),
    ("skate on the ice", "{h.he} fell on the hard ice", "bend both knees"),
    ("play the flute", "the flute only squeaked", "blow very gently"),
    ("tie a knot", "the string came loose", "make a loop first"),
    ("jump over the stream", "{h.he} landed in the water", "run fast before the jump"),
    ("juggle", "all the balls fell down", "start with only two balls"),
    ("paint a horse", "the horse looked like a potato", "look closely before painting"),
    ("bake bread", "the bread was as hard as a stone", "wait until the dough grows"),
    ("dance", "{h.he} stepped on {h.his} own toes", "listen to the music"),
)
TREASURES = ("gold coins", "old books", "shiny shells", "bright jewels", "seeds of rare flowers")

#: Small true facts of the world: question endings with answers, all whole sentences.
FACTS = (
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is grass?", "Grass is green."),
    ("What colour is snow?", "Snow is white."),
    ("What colour is a strawberry?", "A strawberry is red."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows give us?", "Cows give us milk."),
    ("What do hens lay?", "Hens lay eggs."),
    ("What do rabbits eat?", "Rabbits eat grass and carrots."),
    ("What do squirrels eat?", "Squirrels eat nuts."),
    ("What do birds do?", "Birds sing and fly."),
    ("Where do fish live?", "Fish live in the water."),
    ("Where do birds sleep?", "Birds sleep in a nest."),
    ("Where do bears sleep in winter?", "Bears sleep in a cave in winter."),
    ("Where do dragons live?", "In the stories, dragons live in warm caves."),
    ("When does the sun rise?", "The sun rises in the morning."),
    ("When do the stars come out?", "The stars come out at night."),
    ("When does the snow fall?", "The snow falls in winter."),
    ("When do flowers grow?", "Flowers grow in spring."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many legs does a bird have?", "A bird has two legs."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("What comes after one?", "Two comes after one."),
    ("What is one plus one?", "One plus one is two."),
    ("What is two plus two?", "Two plus two is four."),
    ("Is ice hot or cold?", "Ice is cold."),
    ("Is fire hot or cold?", "Fire is hot."),
    ("Is an elephant big or small?", "An elephant is big."),
    ("Is a mouse big or small?", "A mouse is small."),
    ("Can a penguin fly?", "No, a penguin cannot fly, but it can swim very well."),
    ("Can a bird fly?", "Yes, a bird can fly."),
    ("Can fish swim?", "Yes, fish can swim."),
    ("Why does it rain?", "It rains because the clouds are full of water."),
    ("Why do we sleep?", "We sleep because we are tired and need to rest."),
    (
        "Why do people cry?",
        "People cry because they are sad, and sometimes because they are happy.",
    ),
    ("What does a friend do?", "A friend listens, helps and shares."),
    ("What is a friend?", "A friend is someone who is kind to you and stays with you."),
    ("What is a rainbow?", "A rainbow is a band of colours in the sky after the rain."),
    ("What is a dragon?", "A dragon is a big creature from stories. It can fly and breathe fire."),
    ("What is a kite?", "A kite is a toy that flies in the wind on a long string."),
)
HOW_TO = (
    (
        "fly a kite",
        (
            "First, wait for a windy day. Then hold the string, run into the wind and let go "
            "of the "
            "kite. It will rise into the sky."
        ),
    ),
    (
        "bake bread",
        (
            "First, mix flour, water and salt. Then wait until the dough grows. At last, put "
            "it into "
            "the hot oven."
        ),
    ),
    (
        "make soup",
        (
            "First, wash and cut some carrots. Then put them into a pot of water. Cook the "
            "soup until "
            "it is hot, and add a little salt."
        ),
    ),
    (
        "plant a seed",
        (
            "First, dig a small hole in the ground. Then put the seed into the hole and cover it. "
            "Give it water every day and wait."
        ),
    ),
    (
        "make a friend",
        (
            "First, smile and say hello. Then tell your name and ask a question. Be kind, "
            "share your "
            "things and listen."
        ),
    ),
    (
        "find a lost toy",
        (
            "First, think about where you saw it last. Then go back and look there. If you cannot "
            "find it, ask a friend for help."
        ),
    ),
    (
        "build a snowman",
        (
            "First, roll three big balls of snow. Then put them on top of each other. Give the "
            "snowman a carrot for a nose and a warm hat."
        ),
    ),
    (
        "fall asleep",
        (
            "First, lie down in your warm bed. Then close your eyes and think of something nice. "
            "Breathe slowly, and sleep will come."
        ),
    ),
    (
        "wash my hands",
        (
            "First, hold your hands under warm water. Then rub them with soap. At last, dry "
            "them with "
            "a clean towel."
        ),
    ),
    (
        "make a paper boat",
        (
            "First, take a sheet of paper and fold it in half. Then fold the corners down and pull "
            "the sides out. Put the boat on the water."
        ),
    ),
    (
        "cheer up a sad friend",
        (
            "First, sit next to your friend and listen. Then say something kind. You can "
            "also share "
            "a cookie or play a game."
        ),
    ),
    (
        "draw a cat",
        (
            "First, draw a round head with two ears. Then draw a long body and a tail. Do "
            "not forget "
            "the eyes and the whiskers."
        ),
    ),
)
#: Things that do not exist in the small world, for honest answers.
UNKNOWN = tuple(
    "France|history|computers|money|the news|physics|a computer program|the president|football|"
    "politics|America|the moon landing|Python|mathematics|chemistry|London|Paris|the internet|"
    "cars|the economy|medicine|law|music theory|space|China|science|the future|your code|"
    "the capital of France|a poem in Latin|the weather today|quantum physics|Germany".split("|")
)
