"""What `dataset stats` prints: frequencies in columns, lengths and shapes as bars. No torch, nothing computed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from diffusion_lora.data.stats import Stats, histogram

_BAR = 40  # characters


def show_stats(found: Stats, top: int) -> None:
    """The statistics of a set."""
    console = Console()

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"{found.pictures:,} pictures, {found.captions:,} with a caption")
    for name, counts in (("words", found.words), ("tags", found.tags)):
        if counts:
            say(f"\n{name} ({len(counts):,} different)")
            for line in bars([(word, count) for word, count in counts.most_common(top)]):
                say(f"  {line}")
    if found.lengths:
        say(f"\ntokens in a caption (the base reads {found.room} at once)")
        for line in bars([(f"{low}-{high}", count) for low, high, count in histogram(found.lengths)]):
            say(f"  {line}")
    if found.too_long:
        say(f"  longer than {found.room}: {', '.join(found.too_long[:5])}" + (", ..." if found.too_long[5:] else ""))
    say("\npictures in each bucket")
    for line in bars([(f"{width} x {height}", count) for (width, height), count in sorted(found.shapes.items())]):
        say(f"  {line}")
    for title, pairs in (("to look at", found.hints), ("problems", found.problems)):
        if pairs:
            say(f"\n{title}")
            for picture, text in pairs:
                say(f"  {text}" if picture in text else f"  {picture} {text}")


def bars(rows: Sequence[tuple[str, int]]) -> list[str]:
    """Lines of label, bar and number; the longest bar is the largest number."""
    if not rows:
        return []
    wide, most = max(len(label) for label, _ in rows), max(count for _, count in rows) or 1
    return [f"{label:<{wide}}  {'█' * max(count > 0, round(_BAR * count / most)):<{_BAR}} {count:,}"
            for label, count in rows]  # fmt: skip
