"""A drawn world: scenes of simple things, their pictures in many styles, and their captions."""

from recipes.pocket.world.backgrounds import BACKGROUNDS
from recipes.pocket.world.captions import PHRASINGS, WORDS, caption
from recipes.pocket.world.characters import CHARACTERS
from recipes.pocket.world.draw import draw
from recipes.pocket.world.objects import OBJECTS
from recipes.pocket.world.palette import COLOURS
from recipes.pocket.world.scene import HELD_PAIRS, Scene, Thing, sample_scene
from recipes.pocket.world.styles import HELD_STYLES, STYLES

__all__ = [
           "BACKGROUNDS",
           "CHARACTERS",
           "COLOURS",
           "HELD_PAIRS",
           "HELD_STYLES",
           "OBJECTS",
           "PHRASINGS",
           "STYLES",
           "WORDS",
           "Scene",
           "Thing",
           "caption",
           "draw",
           "sample_scene",
]
