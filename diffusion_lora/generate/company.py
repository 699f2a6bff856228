"""In what company a picture was drawn: what else of its batch leaves a trace in its last bits. No torch.

A row of a batch is the picture drawn alone up to rounding, and rounding follows the shapes that the arithmetic runs
over. With these recorded, `Engine.redraw` runs over the same shapes, and the file comes back byte for byte. Adapters
that only its neighbours had leave their trace too, as rows of zeros: where their files are gone, rounding differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_ROWS, MAX_ADAPTERS = 4096, 64


@dataclass(frozen=True)
class Company:
    """`rows` of the UNet's batch, whether it was `guided` (negative halves were there), the `words` and `parts` of the
    longest row where words were shared out (0 where not), how many pictures were `decoded` at once, the `adapters` of
    the whole batch, (path, SHA-256), and whether the mix was `folded` into the weights."""

    rows: int
    guided: bool
    words: int
    parts: int
    decoded: int
    adapters: tuple[tuple[str, str], ...] = ()
    folded: bool = False

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def company_from_fields(fields: object) -> Company | None:
    """The company that `Company.fields` told of; None for anything else: it is no reason to refuse a picture."""
    if not isinstance(fields, Mapping):
        return None
    numbers = [fields.get(name) for name in ("rows", "words", "parts", "decoded")]
    if not all(isinstance(number, int) and 0 <= number <= MAX_ROWS for number in numbers):
        return None
    rows, words, parts, decoded = numbers
    listed = fields.get("adapters", ())
    adapters = tuple(
        (str(one[0]), str(one[1]))
        for one in (listed[:MAX_ADAPTERS] if isinstance(listed, Sequence) else ())
        if isinstance(one, list | tuple) and len(one) == 2
    )
    guided, folded = bool(fields.get("guided")), bool(fields.get("folded"))
    return Company(rows, guided, words, parts, decoded, adapters, folded)  # type: ignore[arg-type]
