"""The [sweep] table: settings with several values each, and the adapters that come of it. No torch.

    [sweep]
    lora.rank = [4, 8, 16, 32]              four adapters, rank4 ... rank32
    optimizer.lr = [1e-4, 1e-3]             with the line above eight: rank4-lr0.0001, ...

All are trained side by side, so only what belongs to one adapter can be swept. Whether a value is allowed is `config`'s
to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from diffusion_lora.errors import ConfigError

SWEPT = ("lora.", "optimizer.", "loss.")
"""What an adapter can have of its own: beginnings of keys. The rest (base, pictures, batch, steps) they share."""

_SHARED = ("loss.zero_terminal_snr",)  # of the noise schedule, which is the base's
_MOST = 64
_NOT_IN_WORDS = re.compile(r"[^\w.+-]+")
_LONGEST_WORD = 24


def flattened(table: Any, origin: str) -> dict[str, tuple[Any, ...]]:
    """{"lora": {"rank": [4, 8]}} or {"lora.rank": [4, 8]} as {"lora.rank": (4, 8)}.

    ConfigError for what is no such table, for a key that adapters cannot have of their own, and for an empty list.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{origin}: [sweep] must be a table such as lora.rank = [4, 8], not {table!r}")
    flat: dict[str, tuple[Any, ...]] = {}
    for key, value in table.items():
        below = {f"{key}.{leaf}": item for leaf, item in value.items()} if isinstance(value, Mapping) else {key: value}
        for name, values in below.items():
            if not name.startswith(SWEPT) or name in _SHARED:
                raise ConfigError(
                    f"{origin}: {name} cannot be swept: adapters that are trained side by side share it; what they can "
                    f"have of their own is {', '.join(SWEPT)}"
                )
            if not isinstance(values, (list, tuple)) or not values:
                raise ConfigError(f"{origin}: sweep.{name} = {values!r} must be a list of values, as in [4, 8, 16]")
            flat[name] = tuple(values)
    return flat


def combinations(sweep: Mapping[str, tuple[Any, ...]], origin: str) -> dict[str, dict[str, Any]]:
    """Every combination of the values, by its name: {"rank4-lr0.001": {"lora.rank": 4, "optimizer.lr": 0.001}, ...}.

    ConfigError for values that are there twice, and for more than 64 adapters.
    """
    words = {key: _words(key.rpartition(".")[2], values) for key, values in sweep.items()}
    for key, names in words.items():
        if len(set(names)) < len(names):
            raise ConfigError(f"{origin}: sweep.{key} = {list(sweep[key])!r} holds a value twice")
    found = {
        "-".join(words[key][index] for key, index in zip(sweep, chosen, strict=True)): {
            key: sweep[key][index] for key, index in zip(sweep, chosen, strict=True)
        }
        for chosen in product(*(range(len(values)) for values in sweep.values()))
    }
    if len(found) > _MOST:
        raise ConfigError(f"{origin}: [sweep] makes {len(found)} adapters: {_MOST} side by side are the most")
    return found


def comparison(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of a `sweep` event (see `events`) as a table: aligned lines of text, the head first."""
    lines = [("adapter", "loss", "gradient", "change", "parameters", "KiB")]
    for row in rows:
        if row["diverged_at"] is not None:
            lines.append((row["name"], f"diverged in step {row['diverged_at'] + 1}", "", "", "", ""))
            continue
        numbers = (f"{row[key]:.5g}" for key in ("loss", "grad_norm", "change"))
        lines.append((row["name"], *numbers, f"{row['parameters']:,}", f"{row['bytes'] / 1024:.0f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        f"{name:<{widths[0]}}  {'  '.join(map(str.rjust, cells, widths[1:]))}".rstrip() for name, *cells in lines
    ]


def _words(leaf: str, values: tuple[Any, ...]) -> list[str]:
    """One word for each value, fit for a file's name; numbers where a value is too long for that."""
    words = [_word(leaf, value) for value in values]
    if all(words):
        return [word for word in words if word]
    return [f"{leaf}-{number}" for number in range(1, len(values) + 1)]


def _word(leaf: str, value: Any) -> str | None:
    if isinstance(value, bool):
        return f"{leaf}-{'on' if value else 'off'}"
    if isinstance(value, int | float):
        return f"{leaf}{value:g}" if isinstance(value, float) else f"{leaf}{value}"
    if isinstance(value, str):
        word = _NOT_IN_WORDS.sub("_", value.rpartition("/")[2])
        return f"{leaf}-{word or 'none'}" if len(word) <= _LONGEST_WORD else None
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        word = "_".join(_NOT_IN_WORDS.sub("_", str(item)) for item in value)
        return f"{leaf}-{word or 'none'}" if len(word) <= _LONGEST_WORD else None
    return None
