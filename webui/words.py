"""Numbers and sentences as a person says them: times, memory, dates. Nothing here knows what they are of."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """0.68 -> "0.68 s", 12 -> "12 s", 310 -> "5 min 10 s", 5400 -> "1 h 30 min"."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 15 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def gigabytes(number: int) -> str:
    """Bytes as "8.1" or "12", in GB as memory is sold."""
    size = number / 2**30
    return f"{size:.0f}" if size >= 10 and abs(size - round(size)) < 0.05 else f"{size:.1f}"


def moment(at: float) -> str:
    """A point in time: "today 10:12", "yesterday 18:00", "14 May 10:12", "14 May 2024"."""
    then, now = time.localtime(at), time.localtime()
    clock = time.strftime("%H:%M", then)
    if then[:3] == now[:3]:
        return f"today {clock}"
    if then[:3] == time.localtime(time.time() - 86400)[:3]:
        return f"yesterday {clock}"
    day = f"{then.tm_mday} {time.strftime('%b', then)}"
    return f"{day} {clock}" if then.tm_year == now.tm_year else f"{day} {then.tm_year}"


def count(number: int, noun: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """A clause of the library as a sentence; a first word that is no plain word (the name of a file) stays as it is."""
    text = text.strip()
    first = text.split(maxsplit=1)[0].rstrip(",:") if text else ""
    opened = text[:1].upper() + text[1:] if first.replace("'", "").isalpha() else text
    return opened + ("" if text.endswith((".", "!", "?")) else ".")
