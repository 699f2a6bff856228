"""What the `adapter` commands print: tables for people, one value in, one printed thing out. No torch in here.

The same values give themselves as JSON (`as_dict`); nothing is computed here but sums over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffusion_lora.faces.page import size_in_words
from diffusion_lora.lora.blocks import block_of

if TYPE_CHECKING:
    from diffusion_lora.lora.advice import Advice
    from diffusion_lora.lora.bake import Folding
    from diffusion_lora.lora.compare import Comparison, Meeting
    from diffusion_lora.lora.plain import LayerLoss, Result
    from diffusion_lora.lora.report import LoadReport
    from diffusion_lora.lora.scale import EqualSetting, Setting
    from diffusion_lora.lora.spectrum import LayerSpectrum, Spectrum
    from diffusion_lora.train.calibrate import Calibration


def say(console: Console, text: str) -> None:
    """A line as it is: no markup, no wrapping, no colours guessed from the words."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def show_report(console: Console, report: LoadReport, name: str, size_bytes: int) -> None:
    """Everything that was read of a file, what was not, and how strong it is."""
    say(console, f"{name}, {size_in_words(size_bytes)}")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for label, value in report_rows(report):
        facts.add_row(label, Text(value))
    console.print(facts)
    if report.norms is not None:
        table = _table("block", "norm", "share of the energy")
        for block, norm in report.norms.items():
            share = norm**2 / report.norm**2 if report.norm else 0.0
            table.add_row(block, f"{norm:.4g}", f"{100 * share:.1f} %")
        table.add_section()
        table.add_row("all", f"{report.norm:.4g}", "")
        console.print(table)
    for warning in report.warnings:
        say(console, f"warning: {warning}")
    for tensor, reason in report.unread.items():
        say(console, f"  not read: {tensor} ({reason})")


def show_losses(console: Console, result: Result, *, every_layer: bool) -> None:
    """Rank and error by block, or of every layer, and in total."""
    rows = [(layer.key, [layer]) for layer in result.layers] if every_layer else _by_block(result.layers)
    table = _table("layer" if every_layer else "block", "layers", "rank", "norm", "error", "worst layer")
    for name, layers in rows:
        worst = max(layers, key=lambda layer: layer.relative)
        table.add_row(name, str(len(layers)), _ranks(layers), *_length_and_error(layers), _percent(worst.relative))
    table.add_section()
    worst = max(result.layers, key=lambda layer: layer.relative)
    whole = _length_and_error(result.layers)
    table.add_row("all", str(len(result.layers)), _ranks(result.layers), *whole, _percent(worst.relative))
    console.print(table)
    for note in result.notes:
        say(console, f"note: {note}")


def show_spectrum(console: Console, spectrum: Spectrum, shares: Sequence[float], *, every_layer: bool) -> None:
    """Norms, stable ranks and the smallest ranks that keep the shares; then what a resize would save."""
    columns = [f"{100 * share:.0f} %" for share in shares]
    table = _table("layer" if every_layer else "block", "layers", "rank", "norm", "largest", *columns)
    if every_layer:
        for layer in spectrum.layers:
            table.add_row(layer.key, "1", *_facts([layer]), *(str(layer.rank_for(share)) for share in shares))
    else:
        for name, block in spectrum.by_block().items():
            ranks = (str(block.rank_for(share)) for share in shares)
            table.add_row(name, str(len(block.layers)), *_facts(block.layers), *ranks)
    table.add_section()
    whole = [str(spectrum.rank_for(share)) for share in shares]
    table.add_row("all", str(len(spectrum.layers)), *_facts(spectrum.layers), *whole)
    console.print(table)
    for rank in dict.fromkeys(spectrum.rank_for(share) for share in shares):
        size = 100 * spectrum.size_at(rank) / spectrum.parameters
        kept = 100 * spectrum.kept_by(rank)
        say(console, f"rank {rank} keeps {kept:.1f} % of the energy at {size:.0f} % of the size")
    for note in spectrum.notes:
        say(console, f"note: {note}")


def show_comparison(console: Console, comparison: Comparison) -> None:
    """How two adapters meet, by block and in all, and what to do about it."""
    table = _table("block", "cosine", "A in B", "B in A", "chance", "norm A", "norm B", "", "strengths times")
    for name, meeting in comparison.blocks.items():
        table.add_row(name, *_meeting(meeting))
    table.add_section()
    table.add_row("all", *_meeting(comparison.whole))
    console.print(table)
    say(console, f"A: {comparison.a.name}:{comparison.a.strength:g}   B: {comparison.b.name}:{comparison.b.strength:g}")
    say(console, comparison.advice)
    for note in comparison.notes:
        say(console, f"note: {note}")


def show_looks(console: Console, found: Calibration) -> None:
    """What was measured at each strength, the proposed one marked."""
    table = _table("strength", "effect", "content", "both")
    best = max(found.looks, key=lambda look: look.score)
    for look in found.looks:
        mark = " <" if look is best else ""
        table.add_row(
            f"{look.strength:.2f}", f"{look.effect:.3f}", f"{100 * look.content:.0f} %", f"{look.score:.3f}{mark}"
        )
    console.print(table)


def show_folding(console: Console, folding: Folding) -> None:
    """What was changed, and what the base's dtype made of it."""
    say(console, f"{folding.layers} weights changed by {folding.change:.4g} in all (Frobenius norm)")
    say(console, f"the base's dtype rounds {_percent(folding.relative_rounding)} of its length away")
    for note in folding.notes:
        say(console, f"note: {note}")


def show_equal_settings(console: Console, setting: Setting, equals: Iterable[EqualSetting]) -> None:
    """One effective scale in the words of every trainer."""
    form = "alpha / sqrt(rank)" if setting.rs else "alpha / rank"
    say(
        console,
        f"rank {setting.rank}, alpha {setting.alpha:g}, learning rate {setting.learning_rate:g}: scale {form} = "
        f"{setting.scale:g}, effective rate {setting.effective_rate:.3g}",
    )
    columns = ("rank", "alpha", "learning rate", "at its own alpha", "", "down starts as", "first steps")
    table = _table("the same in", *columns)
    for equal in equals:
        table.add_row(
            equal.trainer,
            f"{equal.rank_name} {equal.rank}",
            f"{equal.alpha_name} {equal.alpha:g}",
            f"{equal.rate_name} {equal.learning_rate:.3g}",
            f"alpha {equal.default_alpha:g}",
            f"{equal.rate_name} {equal.default_rate:.3g}",
            equal.initial,
            f"x {equal.first_steps:.2f}",
        )
    console.print(table)
    say(console, "first steps: how fast a delta grows at first beside this program's, for the start of `down` differs")


def show_advice(console: Console, advice: Advice) -> None:
    """The rank that keeps the share, by kind of layer and for all, and what other ranks would keep and cost."""
    share = f"{100 * advice.share:g} %"
    columns = ("layers", "of the energy", f"rank for {share}", "single layers", "parameters", "fp16")
    table = _table("layers of kind", *columns)
    for kind in advice.by_kind:
        table.add_row(
            kind.kind,
            str(kind.layers),
            f"{100 * kind.energy_share:.1f} %",
            str(kind.choice.rank),
            f"median {kind.median_rank}, at most {kind.most}",
            f"{kind.choice.parameters:,}",
            size_in_words(kind.choice.size_bytes),
        )
    console.print(table)
    ladder = _table("one rank for all", "keeps", "parameters", "fp16", "")
    for choice in advice.ladder:
        mark = f"the smallest that keeps {share}" if choice.rank == advice.choice.rank else ""
        kept = f"{100 * choice.kept:.1f} %"
        ladder.add_row(str(choice.rank), kept, f"{choice.parameters:,}", size_in_words(choice.size_bytes), mark)
    console.print(ladder)
    say(console, f"lora.rank = {advice.choice.rank}")
    if advice.patterns:
        patterns = ", ".join(f"'{pattern}' = {rank}" for pattern, rank in advice.patterns.items())
        say(console, f"or by kind, {advice.parameters:,} parameters: lora.rank_patterns = {{ {patterns} }}")
    for note in advice.notes:
        say(console, f"note: {note}")


def show_size(console: Console, path: str, size_bytes: int, parameters: int) -> None:
    """Where the result lies."""
    say(console, f"{path}: {parameters:,} parameters, {size_in_words(size_bytes)}")


def report_rows(report: LoadReport) -> list[tuple[str, str]]:
    """The facts of a report as (label, value), without those that say nothing."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
    components = ", ".join(f"{count} in {component}" for component, count in report.components.items())
    rows = [
        ("for", report.family or "its layers do not tell"),
        ("trained on", report.base),
        ("names", report.format),
        ("tensors", f"{report.matched} of {report.total} read"),
        ("numbers", f"{report.parameters:,} in {', '.join(report.dtypes)}"),
        ("layers", f"{kinds} ({components})" + (f", {report.dora} with a magnitude (DoRA)" if report.dora else "")),
        ("rank", "-".join(map(str, dict.fromkeys(report.ranks))) if report.ranks else "none: full matrices"),
        ("alpha", _interval(report.alphas)),
        ("effective scale", _interval(report.scales) + _mostly(report)),
        ("trigger words", ", ".join(report.trigger_words)),
    ]
    return [(label, value) for label, value in rows if value]


def _mostly(report: LoadReport) -> str:
    return f", mostly {report.scale:g}" if report.scales[0] != report.scales[1] else ""


def _interval(values: tuple[float, float]) -> str:
    return f"{values[0]:g}" if values[0] == values[1] else f"{values[0]:g} to {values[1]:g}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for other in others:
        table.add_column(other, justify="right")
    return table


def _by_block(layers: Iterable[LayerLoss]) -> list[tuple[str, list[LayerLoss]]]:
    blocks: dict[str, list[LayerLoss]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer.key), []).append(layer)
    return list(blocks.items())


def _ranks(layers: Iterable[LayerLoss]) -> str:
    layers = list(layers)
    before = _range(layer.rank_before for layer in layers)
    after = _range(layer.rank for layer in layers)
    return f"{before} → {after}" if before else after


def _range(values: Iterable[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return f"{known[0]}-{known[-1]}" if len(known) > 1 else "".join(map(str, known))


def _length_and_error(layers: Iterable[LayerLoss]) -> tuple[str, str]:
    layers = list(layers)
    norm = math.hypot(*(layer.norm for layer in layers))
    error = math.hypot(*(layer.error for layer in layers))
    return f"{norm:.4g}", _percent(error / norm if norm else 0.0)


def _facts(layers: Sequence[LayerSpectrum]) -> tuple[str, str, str]:
    """Rank, norm and the largest singular value."""
    norm = math.hypot(*(layer.norm for layer in layers))
    largest = max((layer.values[0] for layer in layers if layer.values), default=0.0)
    return _range(layer.rank for layer in layers), f"{norm:.4g}", f"{largest:.3g}"


def _meeting(meeting: Meeting) -> list[str]:
    if not meeting.energy_a or not meeting.energy_b:
        only = "only in A" if meeting.energy_a else "only in B" if meeting.energy_b else "in neither"
        return ["", "", "", "", f"{meeting.norm_a:.3g}", f"{meeting.norm_b:.3g}", only, ""]
    chance = meeting.chance_a / meeting.energy_a
    return [
        f"{meeting.cosine:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00"),
        f"{100 * meeting.overlap_a:.0f} %",
        f"{100 * meeting.overlap_b:.0f} %",
        f"{100 * chance:.0f} %",
        f"{meeting.norm_a:.3g}",
        f"{meeting.norm_b:.3g}",
        meeting.verdict,
        f"{meeting.factor:.2f}" if meeting.factor is not None else "none helps",
    ]


def _percent(share: float) -> str:
    if share < 1e-6:
        return "none"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.1f} %"
