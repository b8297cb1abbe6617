"""
The things of the world: what they are called, which icons show them, what kind they are, and a fact about each.

They were chosen among 301 by how well a small network, trained on some designs, names them in another one
(docs/world.md); the test design had no part in that.
"""

from dataclasses import dataclass


# Kinds that are asked for. Nothing here is of two kinds, and no thing's name means another thing too.
GROUPS = {
    "animal": "animals",
    "fruit": "fruits",
    "vegetable": "vegetables",
    "drink": "drinks",
    "vehicle": "vehicles",
    "plant": "plants",
    "building": "buildings",
    "instrument": "instruments",
    "ball": "balls",
}
PLURALS = {
    "bus": "buses",
    "cactus": "cacti",
    "cherry": "cherries",
    "church": "churches",
    "dress": "dresses",
    "fish": "fish",
    "fox": "foxes",
    "fries": "fries",
    "hourglass": "hourglasses",
    "pants": "pants",
    "snowman": "snowmen",
    "strawberry": "strawberries",
    "trophy": "trophies",
}
_BARE = ("cheese", "corn", "fries", "milk", "pants", "popcorn", "wine")  # without an article

# kind: name (icons, if they are called otherwise): what it does
_TABLE = """
animal
bear: lives in the forest
cat: catches mice
cow: gives milk
crab: walks sideways
dog: barks
elephant: has a trunk
fish (fish tropical-fish): swims in the water
fox: is red and clever
frog: croaks in the pond
horse: carries a rider
lion: has a mane
monkey: climbs on trees
panda: eats bamboo
penguin: lives on the ice
pig: grunts
rabbit: has long ears

fruit
apple (red-apple green-apple): grows on trees
avocado: is green and soft
banana: is long and yellow
cherry (cherries): has a stone
kiwi (kiwi-fruit): is brown outside and green inside
lemon: is sour
pineapple: has a crown of leaves
strawberry: is red and sweet
watermelon: is red inside and green outside

vegetable
corn (ear-of-corn): is yellow and grows in the field
eggplant: is purple
mushroom: grows in the forest
pepper (hot-pepper): burns on the tongue

food
burger (hamburger): is meat in a bun
cheese (cheese-wedge): has holes
donut (doughnut): has a hole in the middle
egg: has a yolk
fries (french-fries): are eaten with ketchup
pizza: comes from italy
popcorn: is eaten at the cinema

drink
beer (beer-mug): has foam
cocktail (cocktail-glass): comes with a straw
milk (glass-of-milk): is white
wine (wine-glass): is made of grapes

vehicle
airplane: flies above the clouds
ambulance: brings people to the hospital
bicycle: has two wheels and pedals
boat (sailboat): sails on the sea
bus: stops at every corner
car (automobile): drives on the road
helicopter: flies with a rotor
rocket: flies to the moon

plant
cactus: grows in the desert
clover (four-leaf-clover shamrock): brings luck
palm (palm-tree): grows at the beach
pine (evergreen-tree): is green in winter
sunflower: turns to the sun
tree (deciduous-tree): has leaves and branches
tulip: comes from holland

building
church: has bells
house (house house-with-garden): is where people live

instrument
drum: is beaten with sticks
saxophone: is played in jazz
violin: is played with a bow

ball
baseball: is hit with a bat
basketball: goes through a hoop
football (american-football): is brown and pointed
soccer ball: is kicked

thing
anchor: holds the ship
balloon: is full of air
bathtub: is full of water
bomb: explodes
bulb (light-bulb): gives light
cart (shopping-cart): is for the supermarket
clock (alarm-clock): wakes people up
diamond (gem-stone): is a precious stone
dress: is made of cloth
envelope: is for a letter
eye: sees
fire: is hot
gamepad (video-game): is for playing
ghost: scares people
globe (globe-showing-europe-africa globe-showing-americas globe-showing-asia-australia): shows the world
hammer: hits nails
hat (top-hat): is worn on the head
heart (red-heart blue-heart green-heart yellow-heart purple-heart): stands for love
hourglass (hourglass-done hourglass-not-done): is full of sand
key: opens the lock
magnifier (magnifying-glass-tilted-left magnifying-glass-tilted-right): makes things look larger
moon (crescent-moon): shines at night
pants (jeans): are worn on the legs
paperclip: holds papers together
pencil: is for writing
rainbow: has seven colors
ring: is worn on the finger
shirt (t-shirt): is worn in summer
snowflake: falls in winter
snowman (snowman snowman-without-snow): is made of snow
star: shines in the sky
sun (sun sun-with-face): gives light and warmth
traffic light (vertical-traffic-light): is red or yellow or green
trophy: is for the winner
tv (television): shows films
umbrella (umbrella umbrella-with-rain-drops): keeps people dry
"""


@dataclass(frozen=True)
class Thing:
    """
    Something that is drawn in every design.

    Args:
        slugs (`tuple[str, ...]`): The icons that show it; each is drawn if the set has it.
        group (`str`): Its kind.
        fact (`str`): What it does, or is, after its name.
        article (`str`): What stands in front of one of it.
    """

    slugs: tuple[str, ...]
    group: str
    fact: str
    article: str


def _read(table: str) -> dict[str, Thing]:
    things = {}
    for paragraph in table.strip().split("\n\n"):
        group, *lines = paragraph.split("\n")
        for line in lines:
            named, fact = line.split(": ")
            name, _, slugs = named.rstrip(")").partition(" (")
            article = "" if name in _BARE else "an" if name[0] in "aeiou" else "a"
            things[name] = Thing(tuple(slugs.split()) or (name.replace(" ", "-"),), group, fact, article)
    return things


THINGS = _read(_TABLE)


def group_of(name: str) -> str | None:
    """Gives the kind of a thing, if it is one that is asked for."""
    group = THINGS[name].group
    return group if group in GROUPS else None
