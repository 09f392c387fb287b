"""Common English words of picture prompts, so that a pruned vocabulary keeps them whole."""

from __future__ import annotations

COMMON_WORDS: tuple[str, ...] = tuple(
    """
    a an the and or but of in on at to for with without from by as is are was were be been being it its this that these
    those there here he she they them his her their we you your my our me him who what which when where why how not no
    yes all any both each few more most other some such only own same so than too very can will just should could would
    may might must do does did done have has had make makes made take takes taken get got give gives given go goes went
    see sees seen look looks looking show shows shown showing draw draws drawn drawing paint paints painted painting
    sit sits sitting stand stands standing lie lies lying run runs running fly flies flying jump jumps jumping walk
    walks walking swim swims swimming sleep sleeps sleeping eat eats eating drink drinks drinking play plays playing
    hold holds holding wear wears wearing ride rides riding smile smiles smiling laugh laughs laughing cry crying
    sing sings singing dance dances dancing read reads reading write writes writing written fall falls falling grow
    photo photograph picture image illustration artwork art drawing sketch watercolor oil pencil ink digital poster
    logo icon cartoon anime comic pixel realistic photorealistic cinematic fantasy style styled background foreground
    scene landscape portrait close closeup view top bottom left right center centre middle corner side front behind
    above below under over near next beside between inside outside around across against through into onto upper lower
    big large huge giant small tiny little tall short long wide narrow high low deep thick thin round square flat
    sharp soft hard smooth rough shiny glossy matte bright dark light pale vivid colorful plain simple detailed cute
    beautiful pretty ugly happy sad angry funny scary friendly lovely nice good great new old young ancient modern
    hot cold warm cool wet dry clean dirty empty full open closed broken golden silver metal wooden wood stone glass
    plastic paper gold bronze iron steel leather cotton fur feather ice snow rain wind storm fire water air earth
    sky sea ocean lake river mountain hill valley forest jungle desert beach island field garden park street road
    city town village house home room kitchen bedroom bathroom office school shop market bridge tower wall floor
    ceiling roof window door table chair bed sofa desk lamp clock mirror box bag bottle cup plate bowl knife fork
    spoon pan pot oven book pen paper phone computer screen keyboard camera car bus train plane boat ship bike truck
    man men woman women boy girl child children baby kid people person family friend king queen prince princess
    knight wizard witch pirate astronaut doctor teacher farmer soldier police artist singer dancer hand hands arm
    leg foot feet head face eye eyes ear ears nose mouth hair beard skin body heart bone blood tooth teeth tail wing
    wings horn claw paw animal animals bird birds fish dog dogs cat cats horse horses cow cows pig sheep goat chicken
    duck mouse mice rabbit bear lion tiger elephant monkey snake frog turtle bee butterfly spider ant tree trees
    flower flowers grass leaf leaves plant plants fruit fruits vegetable apple apples banana orange lemon grape
    strawberry cherry peach pear melon tomato potato carrot onion corn bread cake pie cookie cheese meat egg eggs
    rice soup salad pizza burger sandwich chocolate candy sugar salt milk juice coffee tea wine beer red orange
    yellow green blue purple pink brown black white gray grey cyan magenta teal navy beige violet turquoise maroon
    shape circle square triangle rectangle star heart diamond oval line dot pattern stripe stripes striped dots dotted
    checkered color colors colour shadow reflection glow glowing gradient texture zero one two three four five six
    seven eight nine ten hundred first second third many much several pair group row day night morning evening
    sunrise sunset summer winter spring autumn year time today world life love peace music song game sport ball toy
    party birthday gift christmas halloween easter holiday magic dream space planet moon sun stars galaxy rocket robot
    alien monster dragon unicorn ghost angel devil fairy text word words letter letters number sign says saying
    """.split()
)  # fmt: skip
"""A few hundred words that people use in prompts, beyond the names of concepts."""
