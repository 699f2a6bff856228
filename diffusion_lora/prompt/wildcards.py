"""`{a|b}` and `__name__`: one of several, taken once a picture. No torch.

What is taken depends on the seed and the place in the prompt alone, so that the same request expands to the same words.
Wildcards are text files, one option a line; `#` begins a line that is none. An option may hold choices and wildcards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from diffusion_lora.errors import PromptError, PromptSyntaxError
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.tree import Choice, Node, Wildcard, children

Lookup = Callable[[str], Sequence[str]]
"""The options of a wildcard's name. Raises PromptError."""

MAX_NESTED = 10
MAX_TAKEN = 1000


def expand(source: str, seed: int, lookup: Lookup | None = None) -> str:
    """The prompt with every choice and wildcard taken; the rest stands as it was, brackets and tags included.

    Without `lookup` wildcards stay as they are. Raises PromptError for a wildcard that `lookup` does not know, one
    without options, and wildcards that name each other without end.
    """
    return _Expansion(random.Random(f"{seed} wildcards"), lookup).of(source, 0)


def files_in(folder: Path) -> Lookup:
    """Wildcards from `folder/NAME.txt`; NAME may have folders in it, but leads nowhere else."""

    def lookup(name: str) -> Sequence[str]:
        root = folder.resolve()
        path = (root / f"{name}.txt").resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise PromptError(f"the wildcard __{name}__ has no file {name}.txt in {folder}")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"the wildcard __{name}__: {path} cannot be read ({error})") from error
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

    return lookup


class _Expansion:
    def __init__(self, chance: random.Random, lookup: Lookup | None) -> None:
        self._chance = chance
        self._lookup = lookup
        self._taken_so_far = 0

    def of(self, source: str, depth: int) -> str:
        if depth > MAX_NESTED:
            raise PromptError(f"wildcards lead to wildcards more than {MAX_NESTED} times: `{source[:40]}`")
        return self._inside(source, parse(source).items, 0, len(source), depth)

    def _inside(self, source: str, nodes: Sequence[Node], start: int, end: int, depth: int) -> str:
        """`source[start:end]` with what is to be taken among these nodes taken."""
        text, place = "", start
        for node in nodes:
            text += source[place : node.start] + self._taken(source, node, depth)
            place = node.end
        return text + source[place:end]

    def _taken(self, source: str, node: Node, depth: int) -> str:
        match node:
            case Choice(options=options):
                option = options[self._chance.randrange(len(options))]
                return self._inside(source, option, option[0].start, option[-1].end, depth) if option else ""
            case Wildcard(name=name) if self._lookup is not None:
                choices = self._lookup(name)
                if not choices:
                    raise PromptSyntaxError(f"the wildcard __{name}__ has no options", source, node.start)
                self._taken_so_far += 1
                if self._taken_so_far > MAX_TAKEN:
                    raise PromptError(f"wildcards lead to more than {MAX_TAKEN} wildcards: `{source[:40]}`")
                return self.of(choices[self._chance.randrange(len(choices))], depth + 1)
            case _:
                return self._inside(source, children(node), node.start, node.end, depth)
