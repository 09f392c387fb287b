"""Hand-made word lists: plain concepts to draw often, and names people would not say.

Names are CLDR's English ones unless a table says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(";"))


CORE_NAMES: tuple[str, ...] = _names("""
    cat; cat face; dog; dog face; fox; wolf; lion; tiger face; bear; panda; koala; rabbit; pig; cow;
    horse; unicorn; elephant; giraffe; monkey; frog; turtle; snake; dragon; sauropod; whale;
    dolphin; fish; octopus; crab; shark; snail; butterfly; honeybee; lady beetle; spider; bird;
    penguin; duck; owl; baby chick; rooster; ewe; rose; sunflower; tulip; hibiscus; cactus;
    evergreen tree; deciduous tree; palm tree; four leaf clover; maple leaf; mushroom; potted plant;
    red apple; green apple; banana; grapes; watermelon; tangerine; lemon; pineapple; pear; peach;
    cherries; strawberry; tomato; avocado; eggplant; carrot; ear of corn; broccoli; hot pepper;
    pizza; hamburger; french fries; hot dog; bread; cheese wedge; egg; doughnut; cookie; birthday
    cake; cupcake; ice cream; lollipop; hot beverage; wine glass; beer mug; sun; sun with face; full
    moon; crescent moon; star; cloud; rainbow; snowflake; snowman; fire; droplet; umbrella; high
    voltage; ringed planet; volcano; snow-capped mountain; globe showing Americas; house; house with
    garden; castle; tent; automobile; taxi; bus; fire engine; police car; ambulance; bicycle;
    locomotive; airplane; helicopter; rocket; flying saucer; sailboat; anchor; delivery truck;
    soccer ball; basketball; tennis; trophy; balloon; wrapped gift; Christmas tree; jack-o-lantern;
    teddy bear; kite; game die; guitar; trumpet; violin; drum; crown; top hat; sunglasses; glasses;
    t-shirt; dress; running shoe; backpack; ring; gem stone; bell; key; locked; light bulb; candle;
    alarm clock; hourglass done; camera; television; laptop; red heart; blue heart; green heart;
    yellow heart; closed book; pencil; scissors; hammer; envelope; magnifying glass tilted left;
    chair; soap; robot; ghost; alien; skull; smiling face with sunglasses; grinning face; bullseye;
    bomb
""")  # fmt: skip
"""Plain, drawable things that most strangers recognise, drawn about thirty times as often."""

REWRITES: Mapping[str, str] = MappingProxyType(
    {
        "automobile": "car",
        "ewe": "sheep",
        "lady beetle": "ladybug",
        "honeybee": "bee",
        "hot beverage": "cup of coffee",
        "wrapped gift": "gift box",
        "high voltage": "lightning bolt",
        "locked": "padlock",
        "unlocked": "open padlock",
        "hourglass done": "hourglass",
        "hourglass not done": "hourglass with flowing sand",
        "cheese wedge": "piece of cheese",
        "globe showing Americas": "globe",
        "globe showing Europe-Africa": "globe showing Europe and Africa",
        "globe showing Asia-Australia": "globe showing Asia and Australia",
        "magnifying glass tilted left": "magnifying glass",
        "magnifying glass tilted right": "magnifying glass pointing right",
        "sauropod": "long-necked dinosaur",
        "T-Rex": "tyrannosaurus",
        "snow-capped mountain": "snowy mountain",
        "locomotive": "steam train",
        "flying saucer": "UFO",
        "fire engine": "fire truck",
        "tennis": "tennis racket",
        "ear of corn": "corn cob",
        "tangerine": "orange",
        "hot pepper": "chili pepper",
        "jack-o-lantern": "carved pumpkin",
        "musical keyboard": "piano keyboard",
        "wine glass": "glass of wine",
        "beer mug": "mug of beer",
        "potted plant": "plant in a pot",
        "evergreen tree": "fir tree",
        "deciduous tree": "tree",
        "game die": "dice",
        "gem stone": "diamond gem",
        "closed book": "book",
        "package": "cardboard box",
        "running shoe": "sneaker",
        "ringed planet": "planet with a ring",
        "spouting whale": "whale spouting water",
        "kiwi fruit": "kiwi",
        "shortcake": "slice of cake",
        "bullseye": "target",
        "droplet": "water drop",
        "crescent moon": "crescent moon",
        "globe with meridians": "grid globe",
        "bellhop bell": "desk bell",
        "sun behind cloud": "sun behind a cloud",
        "anatomical heart": "human heart",
        "meat on bone": "meat on a bone",
        "pile of poo": "pile of poo",
        "collision": "explosion",
        "dashing away": "puff of air",
        "chart increasing": "rising chart",
        "chart decreasing": "falling chart",
        "tear-off calendar": "calendar page",
        "rolled-up newspaper": "rolled newspaper",
        "flag in hole": "golf flag",
        "camping": "campsite",
        "cooking": "fried egg in a pan",
        "martial arts uniform": "judo suit",
        "performing arts": "theatre masks",
        "ZZZ": "sleeping letters",
        "black nib": "pen nib",
        "metro": "subway train",
        "light rail": "light rail train",
        "construction": "roadblock",
        "rosette": "rosette",
        "baguette bread": "baguette",
        "bento box": "lunch box",
        "custard": "pudding",
        "soft ice cream": "ice cream cone",
        "ice cream": "bowl of ice cream",
        "poultry leg": "chicken leg",
        "person in bed": "person in bed",
        "cricket game": "cricket bat and ball",
        "ping pong": "table tennis paddle",
        "badminton": "badminton racket",
        "lacrosse": "lacrosse stick",
        "field hockey": "field hockey stick",
        "ice hockey": "ice hockey stick",
        "bowling": "bowling ball and pins",
        "pool 8 ball": "billiard ball",
        "goal net": "goal net",
        "thong sandal": "flip-flop",
        "chequered flag": "checkered flag",
        "grey heart": "gray heart",
        "volcano": "volcano",
        "chicken": "hen",
    }
)
"""CLDR name -> what a person would call the picture."""

NO_ARTICLE: frozenset[str] = frozenset(_names("""
    grapes; cherries; scissors; glasses; sunglasses; jeans; shorts; french fries; popcorn; bread; fire; soap; books;
    sparkles; socks; gloves; skis; goggles; chopsticks; peanuts; beans; blueberries; pancakes; bacon; butter; salt; ice;
    money; eyes; lungs; maracas; broccoli; garlic; sushi; spaghetti; tropical fish; fireworks; houses; chains; briefs;
    theatre masks; musical notes; bubbles; cooked rice; curry rice; bubble tea; green salad; canned food; ballet shoes;
    fork and knife; paw prints; footprints; crossed swords; two hearts; revolving hearts; playing cards; leafy green;
    sake; mate; fog; hot springs; people holding hands; prayer beads; sleeping letters; oden; dango; falafel; fondue
"""))  # fmt: skip
"""Names said without "a": plurals and stuff."""

PLURALS: Mapping[str, str] = MappingProxyType(
    {
        "mouse": "mice", "mouse face": "mouse faces", "fish": "fish", "tropical fish": "tropical fish",
        "deer": "deer", "sheep": "sheep", "squid": "squid", "goose": "geese", "wolf": "wolves",
        "maple leaf": "maple leaves", "fallen leaf": "fallen leaves", "dice": "dice", "bison": "bison",
        "octopus": "octopuses", "cactus": "cactuses", "tooth": "teeth", "foot": "feet", "person": "people",
        "man": "men", "woman": "women", "child": "children", "glass of wine": "glasses of wine",
        "mug of beer": "mugs of beer", "cup of coffee": "cups of coffee", "piece of cheese": "pieces of cheese",
        "slice of cake": "slices of cake", "bowl of ice cream": "bowls of ice cream", "plant in a pot": "plants in pots",
        "planet with a ring": "planets with rings", "house with garden": "houses with gardens",
        "sun with face": "suns with faces", "whale spouting water": "whales spouting water", "moose": "moose",
        "ox": "oxen", "kitchen knife": "kitchen knives", "smiling face with sunglasses": "smiling faces with sunglasses",
        "rolling pin": "rolling pins", "french fries": "portions of french fries", "bread": "loaves of bread",
        "grapes": "bunches of grapes", "cherries": "pairs of cherries", "scissors": "pairs of scissors",
        "glasses": "pairs of glasses", "sunglasses": "pairs of sunglasses", "popcorn": "boxes of popcorn",
        "fire": "fires", "soap": "bars of soap", "books": "stacks of books", "sparkles": "groups of sparkles",
        "broccoli": "pieces of broccoli", "fork and knife": "forks and knives", "eyes": "pairs of eyes",
    }
)  # fmt: skip
"""Irregular plurals, and counted forms of things without a plural."""

SHAPES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "circle": {
            "de": "Kreis", "fr": "cercle", "es": "círculo", "pt": "círculo", "it": "cerchio", "zh": "圆形",
            "ja": "丸", "ko": "원", "ru": "круг", "ar": "دائرة", "hi": "वृत्त",
        },
        "square": {
            "de": "Quadrat", "fr": "carré", "es": "cuadrado", "pt": "quadrado", "it": "quadrato", "zh": "正方形",
            "ja": "正方形", "ko": "정사각형", "ru": "квадрат", "ar": "مربع", "hi": "वर्ग",
        },
        "triangle": {
            "de": "Dreieck", "fr": "triangle", "es": "triángulo", "pt": "triângulo", "it": "triangolo", "zh": "三角形",
            "ja": "三角形", "ko": "삼각형", "ru": "треугольник", "ar": "مثلث", "hi": "त्रिभुज",
        },
        "star shape": {
            "de": "Stern", "fr": "étoile", "es": "estrella", "pt": "estrela", "it": "stella", "zh": "星形",
            "ja": "星形", "ko": "별 모양", "ru": "звезда", "ar": "نجمة", "hi": "तारा",
        },
        "heart shape": {
            "de": "Herz", "fr": "cœur", "es": "corazón", "pt": "coração", "it": "cuore", "zh": "心形",
            "ja": "ハート", "ko": "하트", "ru": "сердце", "ar": "قلب", "hi": "दिल",
        },
        "diamond shape": {
            "de": "Raute", "fr": "losange", "es": "rombo", "pt": "losango", "it": "rombo", "zh": "菱形",
            "ja": "ひし形", "ko": "마름모", "ru": "ромб", "ar": "معين", "hi": "समचतुर्भुज",
        },
    }
)  # fmt: skip
"""Simple shapes that the project draws itself, named in every language."""
