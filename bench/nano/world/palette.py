"""Every colour that the world is painted with, as RGB of 0 to 255."""

Colour = tuple[int, int, int]

# What a creature or a thing can be: its main tone, a darker one for ears and paws, a lighter one for belly and muzzle.
COLOURS: dict[str, tuple[Colour, Colour, Colour]] = {
    "red": ((222, 60, 54), (166, 34, 38), (250, 150, 140)),
    "orange": ((243, 134, 32), (190, 88, 10), (253, 200, 140)),
    "yellow": ((250, 208, 48), (206, 150, 10), (255, 240, 165)),
    "green": ((52, 150, 74), (22, 100, 48), (160, 220, 150)),
    "blue": ((56, 104, 214), (28, 62, 150), (150, 190, 250)),
    "purple": ((138, 78, 190), (92, 42, 138), (205, 165, 240)),
    "pink": ((244, 130, 178), (202, 78, 134), (255, 205, 225)),
    "brown": ((140, 92, 60), (96, 58, 34), (208, 166, 128)),
}
FIXED: dict[str, Colour] = {
    "black": (34, 32, 44),
    "white": (255, 255, 255),
    "gold": (255, 200, 30),
    "beak": (250, 150, 30),
    "blush": (245, 120, 130),
    "bark": (120, 80, 50),
    "glass": (170, 220, 240),
    "stem": (40, 130, 60),
    "steel": (150, 156, 170),
    "cream": (250, 236, 205),
    "violet": (96, 60, 160),
    "rose": (214, 40, 90),
}


def tone(role: str, colour: str) -> Colour:
    """RGB of a part: ``main``, ``dark`` or ``light`` of the object's own colour, or a fixed colour's name."""
    shades = ("main", "dark", "light")
    return COLOURS[colour][shades.index(role)] if role in shades else FIXED[role]
