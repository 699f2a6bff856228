"""Where on the picture a channel acts, from what the browser says to the library's regions and back. No Gradio.

An area is nothing (everywhere), a part by its name (`region.BOXES`), four numbers, or "painted" with a grey PNG in
base64. Channels with the same area and the same words share a region, so that they meet there as they do everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.region import BOXES, MAX_MASK_CHARS, SOFT, Region, parse_region_argument

PAINTED = "painted"
_MAX_WORDS = 2000


@dataclass(frozen=True)
class Area:
    """A place, and what to show there; `words` are empty for the prompt of the whole picture."""

    place: str = ""
    mask: str = ""
    words: str = ""


EVERYWHERE = Area()


def area_of(entry: Mapping[str, Any]) -> Area:
    """The area of a channel as the browser holds it. Raises PromptError."""
    place = str(entry.get("area") or "").strip()
    if not place:
        return EVERYWHERE
    mask = str(entry.get("mask") or "") if place == PAINTED else ""
    area = Area(place, mask, str(entry.get("words") or "").strip())
    if len(place) > 80 or len(mask) > MAX_MASK_CHARS or len(area.words) > _MAX_WORDS:
        raise PromptError(f"the area of {entry.get('name')} is too long: paint it anew, or say less")
    if place == PAINTED and not mask:
        raise PromptError(f"nothing is painted for {entry.get('name')}: paint where it acts, or choose Everywhere")
    _region(area, "area")
    return area


def regions_of(areas: Iterable[Area]) -> tuple[tuple[Region, ...], dict[Area, str]]:
    """The regions that these areas make, and which of them each is."""
    names: dict[Area, str] = {}
    found: list[Region] = []
    for area in areas:
        if area == EVERYWHERE or area in names:
            continue
        name = area.place if area.place in BOXES and area.place not in names.values() else f"area {len(names) + 1}"
        names[area] = name
        found.append(_region(area, name))
    return tuple(found), names


def area_in(region: Region) -> Area:
    """The area that makes this region, but for the softness of its edge."""
    if region.mask:
        return Area(PAINTED, region.mask, region.prompt)
    named = next((name for name, box in BOXES.items() if box == region.box), "")
    return Area(named or ",".join(f"{side:g}" for side in region.box), "", region.prompt)


def is_held(region: Region) -> bool:
    """Whether an area says all of a region."""
    return bool(region.mask) or region.soft == SOFT


def argument(region: Region, mask: str) -> str:
    """The region as the command line takes it; `mask` is the file of what is painted."""
    place = mask if region.mask else ",".join(f"{side:g}" for side in region.box)
    return f"{region.name}:{place}={region.prompt}" if region.prompt else f"{region.name}:{place}"


def _region(area: Area, name: str) -> Region:
    if area.place == PAINTED:
        return Region(name, area.words, mask=area.mask)
    placed = parse_region_argument(area.place if area.place in BOXES else f"{name}:{area.place}")
    return replace(placed, name=name, prompt=area.words)
