"""Colours: the ten named object colours, the constant accents, the backdrop tones, and colour arithmetic."""

from __future__ import annotations

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (212, 44, 46),
    "orange": (244, 136, 32),
    "yellow": (249, 214, 52),
    "green": (58, 158, 72),
    "cyan": (56, 202, 212),
    "blue": (46, 92, 206),
    "purple": (130, 68, 188),
    "pink": (248, 142, 190),
    "brown": (126, 78, 44),
    "gray": (138, 142, 150),
}

ACCENTS: dict[str, RGB] = {
    "wood": (148, 108, 78),
    "leaf": (108, 152, 92),
    "white": (252, 249, 242),
    "ink": (50, 44, 56),
    "glass": (196, 224, 234),
    "cream": (250, 234, 204),
    "blush": (240, 152, 146),
    "flame": (252, 184, 84),
    "steel": (176, 180, 188),
    "rose": (246, 138, 176),
    "scarf": (52, 128, 168),
    "spike": (206, 112, 40),
}

SKIES: dict[str, tuple[RGB, RGB]] = {
    "sky": ((186, 215, 240), (226, 240, 250)),
    "meadow": (((238, 243, 226)), (226, 238, 214)),
    "beach": ((222, 234, 238), (240, 240, 230)),
    "night": ((30, 32, 62), (52, 54, 92)),
    "snow": ((178, 194, 214), (212, 222, 234)),
    "sunset": ((176, 138, 164), (244, 204, 172)),
    "room": ((232, 220, 212), (226, 212, 202)),
    "paper": ((248, 245, 236), (246, 242, 232)),
}

BACKDROP: dict[str, RGB] = {
    "cloud": (250, 252, 254),
    "hill": (166, 194, 140),
    "far_hill": (194, 214, 170),
    "bush": (146, 178, 124),
    "sea": (142, 184, 200),
    "sand": (234, 218, 184),
    "sun": (250, 232, 172),
    "moon": (240, 234, 206),
    "dark_hill": (24, 26, 48),
    "snow_near": (250, 252, 254),
    "snow_far": (230, 238, 246),
    "low_sun": (250, 222, 164),
    "halo": (240, 186, 158),
    "dusk": (118, 92, 122),
    "floor": (194, 170, 148),
    "frame": (250, 246, 240),
    "pane": (196, 214, 224),
    "rug": (212, 192, 176),
}

WHITE: RGB = (255, 255, 255)
BLACK: RGB = (0, 0, 0)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """The colour `t` of the way from `a` to `b`."""
    return (round(a[0] + (b[0] - a[0]) * t), round(a[1] + (b[1] - a[1]) * t), round(a[2] + (b[2] - a[2]) * t))


def luma(c: RGB) -> float:
    """Brightness, 0 to 1."""
    return (0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]) / 255


def vivid(c: RGB, gain: float) -> RGB:
    """The colour with its distance from gray multiplied by `gain`."""
    grey = luma(c) * 255
    r, g, b = (min(255, max(0, round(grey + (v - grey) * gain))) for v in c)
    return (r, g, b)


def resolve(role: str, base: RGB) -> RGB:
    """The plain colour of a role, for a thing whose own colour is `base`."""
    if role == "main":
        return base
    if role == "dark":
        return mix(base, (40, 20, 60), 0.26)
    if role == "light":
        return mix(base, (255, 250, 235), 0.34)
    return ACCENTS[role] if role in ACCENTS else BACKDROP[role]
