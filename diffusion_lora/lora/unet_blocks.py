"""The blocks of a UNet by the names people use for them, IN01 ... MID ... OUT11, and lists of 12, 17 or 26 numbers.

The names count the original input and output blocks of Stable Diffusion; diffusers' path of a layer says which it is
in, the number of resnets a level what the count is (2 in every published model). BASE stands for the text encoders. A
list of 17 numbers (Stable Diffusion 1 and 2) or 12 (XL) is BASE and then the blocks that carry attention; one of 26
(XL: 20) is BASE and all blocks. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from diffusion_lora.errors import ConfigError

BASE = "BASE"
PARTS = {"down": "IN", "mid": "MID", "up": "OUT"}

_INNER = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def block_names(paths: Iterable[str]) -> dict[str, str]:
    """The block of every dotted path of a UNet, in the order of the blocks; time embedding and `conv_out` have none."""
    paths = list(paths)
    inner = [match for path in paths if (match := _INNER.match(path))]
    resnets = 1 + max((int(match[4]) for match in inner if match[1] == "down" and match[3] == "resnets"), default=1)
    found = {path: name for path in paths if (name := _block_name(path, resnets))}
    return dict(sorted(found.items(), key=lambda item: _place(item[1])))


def chosen_blocks(
    names: Mapping[str, str], blocks: Sequence[str] | Sequence[int], setting: str = "lora.blocks"
) -> frozenset[str]:
    """The blocks that a setting asks for, of those in `names` (`block_names` of the UNet's layers).

    Words are "down", "mid", "up" and the blocks' own names; numbers, 0 or 1, are a list as above. BASE is among the
    chosen unless a list leaves it out. ConfigError when a name is unknown here, or a list has another length.
    """
    there = list(dict.fromkeys(names.values()))
    if all(isinstance(block, str) for block in blocks):
        chosen = {BASE}
        for word in map(str, blocks):
            prefix = PARTS.get(word.lower(), "")
            found = [name for name in there if (prefix and name.startswith(prefix)) or name == word.upper()]
            if not found and word.upper() != BASE:
                known = ", ".join([*PARTS, *there])
                raise ConfigError(f'{setting}: "{word}" is no block of this base: use {known}, or a list of numbers')
            chosen.update(found)
        return frozenset(chosen)
    carrying = {name for path, name in names.items() if ".attn1." in path or ".attn2." in path}
    lists = [[BASE, *(name for name in there if name in carrying)], [BASE, *there]]
    for listed in lists:
        if len(listed) == len(blocks):
            return frozenset(name for name, number in zip(listed, blocks, strict=True) if number)
    lengths = " or ".join(dict.fromkeys(str(len(listed)) for listed in lists))
    raise ConfigError(
        f"lora.blocks has {len(blocks)} numbers but this base takes {lengths}: {', '.join(lists[0])} (or all blocks)"
    )


def blocks_apart(names: Mapping[str, str], words: Iterable[str]) -> dict[str, str]:
    """Which of these words each path falls under: its block's own name before "down", "mid" or "up".

    Paths that no word names are left out. ConfigError for a word that is no block of this base.
    """
    by_word = {word: chosen_blocks(names, [word], "optimizer.block_lrs") - {BASE} for word in words}
    if nothing := [word for word, blocks in by_word.items() if not blocks]:
        raise ConfigError(f'optimizer.block_lrs: "{nothing[0]}" is no block of the UNet: use optimizer.text_lr')
    # A word for one block is more exact than one for a part.
    ordered = sorted(by_word, key=lambda word: word.lower() in PARTS)
    found = {path: [word for word in ordered if block in by_word[word]] for path, block in names.items()}
    return {path: matching[0] for path, matching in found.items() if matching}


def block_factors(
    names: Mapping[str, str], wanted: Sequence[float] | Sequence[tuple[str, float]]
) -> tuple[tuple[str, float], ...]:
    """Block -> factor: a list of 12, 17, 20 or 26 numbers as above, or (word, factor) pairs, a later one going before.

    Blocks that are not named are left out, which means 1. ConfigError as in `chosen_blocks`.
    """
    there = list(dict.fromkeys(names.values()))
    factors: dict[str, float] = {}
    if any(isinstance(item, tuple) for item in wanted):
        for word, factor in wanted:  # type: ignore[misc]
            prefix = PARTS.get(word.lower(), "")
            found = [name for name in there if (prefix and name.startswith(prefix)) or name == word.upper()]
            if not found and word.upper() != BASE:
                known = ", ".join([*PARTS, BASE, *there])
                raise ConfigError(f'"{word}" is no block of this base: use {known}, or a list of numbers')
            factors |= dict.fromkeys(found or [BASE], float(factor))
        return tuple(factors.items())
    carrying = {name for path, name in names.items() if ".attn1." in path or ".attn2." in path}
    lists = [[BASE, *(name for name in there if name in carrying)], [BASE, *there]]
    for listed in lists:
        if len(listed) == len(wanted):
            return tuple(zip(listed, map(float, wanted), strict=True))  # type: ignore[arg-type]
    lengths = " or ".join(dict.fromkeys(str(len(listed)) for listed in lists))
    raise ConfigError(
        f"{len(wanted)} numbers for blocks were given but this base takes {lengths}: {', '.join(lists[0])} (or all)"
    )


def _block_name(path: str, resnets: int) -> str | None:
    if path == "conv_in":
        return "IN00"
    if path.startswith("mid_block."):
        return "MID"
    match = _INNER.match(path)
    if match is None:
        return None
    side, level, kind, index = match[1], int(match[2]), match[3], int(match[4])
    if side == "down":
        # A level is its resnets, each with its attention, then the downsampler; `conv_in` is block 0.
        return f"IN{1 + level * (resnets + 1) + (resnets if kind == 'downsamplers' else index):02d}"
    return f"OUT{level * (resnets + 1) + (resnets if kind == 'upsamplers' else index):02d}"


def _place(name: str) -> tuple[int, str]:
    return ("IN", "MI", "OU").index(name[:2]), name
