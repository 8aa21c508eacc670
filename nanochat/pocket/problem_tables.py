"""The words of the word problems: tables only, read by `problems` and `events`."""

# Sentences with a number that has nothing to do with the question; those of persons are for
# tellings that name them.
NEUTRAL_DISTRACTORS = """
It is {z} degrees outside.
The month has {z} rainy days.
There are {z} clouds in the sky.
The street has {z} houses.
It is {z} o'clock.
The next town has {z} shops.
"""
PERSON_DISTRACTORS = """
{n} has {z} cousins.
{n} lives at number {z}.
{n} gets up at {z} in the morning.
{n} knows {z} songs.
{n} has worn the same hat for {z} days.
{n} sleeps {z} hours a night.
"""
THINGS = """
marbles stamps books pencils stickers cards shells buttons toys balls stones feathers keys pens
ribbons crayons beads rings photos cups plates hats flowers nails bricks candles dolls kites letters
maps bells brushes spoons sticks leaves lamps chairs socks
"""
EXTRA_THINGS = """
apples pears oranges cakes plums peaches cookies carrots buns nuts bananas melons biscuits pies eggs
stamps tickets baskets plates loaves jars bottles shoes ropes pencils towels coats drums combs
"""
VEHICLES = "bus train ship boat"
# Persons without a name: as they stand in a sentence, and whether they are women.
ROLES = {
    "the baker": False, "the farmer": False, "the teacher": True, "the king": False,
    "the queen": True, "the old man": False, "the boy": False, "the girl": True,
    "my brother": False, "my sister": True, "my friend": False, "the cook": False,
}  # fmt: skip
FOODS = """
an apple, a pear, an orange, a cake, a plum, a peach, a cookie, a carrot, a bun, a nut, a banana,
a melon, a biscuit, a pie, an egg
"""
CONTAINERS = "box bag basket sack crate"
FARM_ANIMALS = "cows sheep horses goats pigs hens ducks geese"
