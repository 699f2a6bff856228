"""What to tell somebody who types to pocket: its words, that it is a toy, and where the real ones are."""

from diffusion_lora.families.pocket.words import pocket_words

TOY = """\
pocket is a toy world: a word that is not on this list is only letters to it. Photographs of your own want a real base,
a Stable Diffusion 1 or 2 model from the Hugging Face hub or in a folder (a graphics card is advised):
  diffusion-lora generate PROMPT --base HUB_ID_OR_FOLDER
  diffusion-lora train sd15-style --set dataset.path=FOLDER --set model.base=HUB_ID_OR_FOLDER"""


def word_lists() -> dict[str, tuple[str, ...]]:
    """The words by kind, in the order in which they are told. Raises BaseModelError."""
    words = pocket_words()
    return {
        "objects": words.objects,
        "colours": words.colours,
        "backgrounds": words.backgrounds,
        "styles": words.styles,
    }


def told_words() -> str:
    """The lists, one a line, and what they do not hold."""
    lists = "\n".join(f"{kind + ':':<13}{', '.join(words)}" for kind, words in word_lists().items())
    return f"{lists}\n\n{TOY}"
