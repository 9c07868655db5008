"""Scenes in words. Each thing has a usual word, and others that training uses now and then."""

from __future__ import annotations

import random

from .scenes import NUMBERS, Object, Spec

OTHERS_SHARE = 0.35  # of the places where another word than the usual one is taken, in training
OPEN_SHARE = 0.08  # of training captions that leave each of these open: colours, the place, the ground, the sky
ANY = "creature"  # said of one creature in twelve in training, so that it stands for all of them
# The usual word first.
WORDS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "kitten", "kitty", "tomcat"),
    "rabbit": ("rabbit", "bunny", "hare"),
    "bear": ("bear", "teddy bear", "grizzly", "bear cub"),
    "frog": ("frog", "toad", "froggy"),
    "owl": ("owl", "night owl", "owlet"),
    "bird": ("bird", "chick", "parrot", "birdie"),
    "ghost": ("ghost", "spook", "phantom", "spirit"),
    "monster": ("monster", "cyclops", "beast", "one-eyed monster"),
    "house": ("house", "cottage", "home", "cabin"),
    "tree": ("tree", "oak", "apple tree", "leafy tree"),
    "car": ("car", "automobile", "motor car", "vehicle"),
    "tent": ("tent", "camping tent", "wigwam", "teepee"),
    "rocket": ("rocket", "spaceship", "space rocket", "missile"),
    "kite": ("kite", "paper kite", "flying kite"),
    "butterfly": ("butterfly", "moth", "fluttering butterfly"),
    "saucer": ("saucer", "flying saucer", "ufo", "alien ship"),
    "plane": ("plane", "airplane", "aircraft", "jet"),
    "flower": ("flower", "blossom", "daisy", "bloom"),
    "mushroom": ("mushroom", "toadstool", "fungus"),
    "gift": ("gift", "present", "parcel", "gift box"),
    "balloon": ("balloon", "party balloon", "toy balloon"),
    "red": ("red", "crimson", "scarlet", "ruby"),
    "orange": ("orange", "tangerine", "amber"),
    "yellow": ("yellow", "golden", "lemon", "sunny yellow"),
    "green": ("green", "emerald", "grass green", "dark green"),
    "blue": ("blue", "azure", "cobalt", "navy"),
    "purple": ("purple", "lilac", "plum", "mauve"),
    "pink": ("pink", "rosy", "candy pink", "salmon"),
    "brown": ("brown", "chocolate", "chestnut", "tan"),
    "top hat": ("a top hat", "a tall black hat", "a gentleman's hat", "a topper"),
    "crown": ("a crown", "a golden crown", "a royal crown", "a king's crown"),
    "party hat": ("a party hat", "a birthday hat", "a striped paper hat", "a pointed party cap"),
    "wizard hat": ("a wizard hat", "a magic hat", "a witch's hat", "a sorcerer's hat"),
    "standing": ("", "", "standing", "that stands still"),
    "waving": ("waving", "that waves", "greeting", "saying hello"),
    "jumping": ("jumping", "that jumps", "leaping", "hopping"),
    "left": ("at the left", "on the left", "on the left side"),
    "middle": ("in the middle", "in the center", "at the center"),
    "right": ("at the right", "on the right", "on the right side"),
    "day": ("on a sunny day", "by day", "under a blue sky", "in the sunshine", "on a bright morning"),
    "sunset": ("at sunset", "in the evening", "at dusk", "as the sun goes down"),
    "night": ("at night", "under the stars", "by moonlight", "at midnight"),
    "rain": ("in the rain", "on a rainy day", "under a gray sky", "in wet weather"),
    "meadow": ("in a meadow", "on green grass", "in a field", "among green hills"),
    "beach": ("on a beach", "by the sea", "at the seaside", "on the shore"),
    "desert": ("in a desert", "among the dunes", "on orange sand", "in dry land"),
    "snow": ("in the snow", "in the mountains", "in winter", "on white ground"),
    "city": ("in a city", "in a town", "on a street", "among tall buildings"),
}


class Words:
    """Chooses a word for each thing: the usual one without ``rng``, else sometimes another."""

    def __init__(self, rng: random.Random | None = None):
        self.rng = rng

    def __call__(self, name: str) -> str:
        words = WORDS[name]
        return words[0] if self.rng is None or self.rng.random() > OTHERS_SHARE else self.rng.choice(words[1:])

    def leaves_open(self) -> bool:
        """Whether a part of the caption is left out; never without ``rng``."""
        return self.rng is not None and self.rng.random() < OPEN_SHARE

    def one_of(self, *choices: str) -> str:
        """Any of some ways to say the same, the first one without ``rng``."""
        return choices[0] if self.rng is None else self.rng.choice(choices)


def caption(spec: Spec, rng: random.Random | None = None, colours: bool = True, scene: bool = True) -> str:
    """The spec in words: the usual ones, or with ``rng`` as training says it; colours or the scene may be left out."""
    words = Words(rng)
    colours = colours and not words.leaves_open()
    text = _who(spec, words, colours)
    parts = [words(name) for name in (spec.ground, spec.sky) if scene and not words.leaves_open()]
    if words.one_of("", "", "turned"):
        parts.reverse()
    return " ".join([text, *parts])


def _who(spec: Spec, words: Words, colours: bool) -> str:
    """The objects, and where they are."""
    first, last = spec.objects[0], spec.objects[-1]
    if spec.kind == "row":
        colour = f"{words(first.colour)} " if colours else ""
        return f"{NUMBERS[len(spec.objects)]} {colour}{plural(words(first.name))}"
    if spec.kind == "one":
        return named(first, words, colours) + ("" if words.leaves_open() else f" {words(spec.place)}")
    left, right = named(first, words, colours), named(last, words, colours)
    if words.one_of("", "", "other"):
        return f"{left} at the left and {right} at the right"
    return f"{left} left of {right}"


def named(thing: Object, words: Words, with_colour: bool = True) -> str:
    """`a waving red cat with a crown`, or `a red cat with a crown that waves`."""
    pose = words(thing.pose) if thing.is_creature else ""
    ahead = pose if pose.endswith("ing") and " " not in pose else ""
    name = ANY if thing.is_creature and words.leaves_open() else words(thing.name)
    text = " ".join(filter(None, (ahead, words(thing.colour) if with_colour else "", name)))
    if thing.hat:
        text += f" {words.one_of('with', 'wearing', 'in')} {words(thing.hat)}"
    return f"{article(text)} {text}" + (f" {pose}" if pose and not ahead else "")


def plural(noun: str) -> str:
    """flowers, daisies, gift boxes, mushrooms."""
    if noun.endswith("x"):
        return f"{noun}es"
    if noun.endswith("fungus"):
        return "fungi"
    return f"{noun[:-1]}ies" if noun.endswith("sy") else f"{noun}s"


def article(text: str) -> str:
    """a or an, by the first letter."""
    return "an" if text[0] in "aeiou" else "a"
