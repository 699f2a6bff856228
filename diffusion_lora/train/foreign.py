"""What is being translated: a foreign program's settings, what each became here, and what has no equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

Convert = Callable[[Any], Any]

_NOTHING = (None, "", "None", "null")


@dataclass(eq=False)
class Translation:
    """`settings` are ours, by key ("lora.rank"); `lost` are sentences on what has no equal; `notes` on what to do."""

    given: Mapping[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _used: set[str] = field(default_factory=set)

    def get(self, key: str, convert: Convert = str) -> Any:
        """A foreign setting, converted; None where it is not set. What cannot be converted is told as lost."""
        self._used.add(key)
        value = self.given.get(key)
        if value is None or (isinstance(value, str) and value.strip() in _NOTHING):
            return None
        try:
            return convert(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            self.lost.append(f"{key} = {value!r} is not understood")
            return None

    def take(self, key: str, ours: str, convert: Convert) -> None:
        """Make a foreign setting our own, if it is set."""
        value = self.get(key, convert)
        if value is not None:
            self.settings[ours] = value

    def lose(self, key: str, why: str) -> None:
        """Say that a setting has no equal."""
        self._used.add(key)
        self.lost.append(f"{key} = {self.given.get(key)!r}: {why}")

    def finish(self, without_effect: Collection[str], off: Mapping[str, Any], prefix: str = "") -> None:
        """Tell of every setting that nobody has looked at: those `without_effect` on what is learned say nothing, nor
        do those that are off, by their own value there or because they are nothing, zero or false."""
        for key in sorted(self.given.keys() - self._used):
            value = self.given[key]
            if key in without_effect or not key.startswith(prefix) or _is_off(value, off.get(key)):
                continue
            self.lost.append(f"{key} = {_short(value)}: there is no such setting here")


def yes(value: Any) -> bool:
    """A switch, as JSON or as Python's text. ValueError for anything else."""
    word = str(value).strip().lower()
    if word in ("true", "1", "on"):
        return True
    if word in ("false", "0", "off", "0.0"):
        return False
    raise ValueError(value)


def whole(value: Any) -> int:
    """A whole number, also of "4.0". ValueError."""
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def share(value: Any) -> float:
    """A share from 0 to below 1; ValueError outside."""
    number = float(value)
    if not 0 <= number < 1:
        raise ValueError(value)
    return number


def _is_off(value: Any, off: Any) -> bool:
    if value is None or (isinstance(value, (list, dict)) and not value):
        return True
    word = str(value).strip().lower()
    return word in ("", "none", "null", "false", "0", "0.0", "off", "[]", "{}") or (
        off is not None and word == str(off).lower()
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
