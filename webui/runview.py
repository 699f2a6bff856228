"""A run as HTML: its figures, its curve, how it is, its pictures. Text and numbers in, HTML out, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from diffusion_lora.workspace import Workspace
from webui.files import picture_url
from webui.runs import Story
from webui.texts import TRAIN
from webui.words import count, duration, moment, sentence

_POINTS = 500
_SMOOTHING = 0.025
"""Width of the smoothing, as a share of what is drawn."""
_SHOWN_COLUMNS = 8
_TREND_STEPS = 50
"""Fewer steps have no course."""


def figures(story: Story | None) -> str:
    """The head of the live half: what runs, how far, how fast, how long."""
    if story is None:
        return ""
    shown = [(f'<span id="train-progress">{story.step} / {story.steps}</span>', "steps")]
    if story.seconds_a_step is not None and story.step:
        shown.append((duration(story.seconds_a_step), "a step"))
    if story.time_left:
        shown.append((story.time_left, "left"))
    elif story.seconds is not None:
        shown.append((duration(story.seconds), "in all"))
    drawn = "".join(f"<div><b>{value}</b><span>{unit}</span></div>" for value, unit in shown)
    share = story.began.get("share")
    adapter = f"rank {story.config.lora.rank}, alpha {story.config.lora.alpha:g}"
    under = adapter + (f", {share:g}% of the base" if share else "")
    report = f' <a href="report/{quote(story.name)}" target="_blank" rel="noopener">Report</a>' if story.losses else ""
    return (
        f'<div class="figures" data-state="{story.state}"><div class="run-name"><h2 title="{escape(story.name)}">'
        f"{escape(story.name)}</h2><span>{escape(under)}{report}</span></div>{drawn}</div>"
    )


def resume_label(story: Story) -> str:
    """What the button that goes on says."""
    if story.unit == "pictures":
        return "Go on"
    return f"Resume from {story.checkpoint}" if story.checkpoint else "Start again"


def chart(story: Story | None) -> str:
    """The loss: every value faint, the smoothed course over it, and that on held-out pictures."""
    if story is None:
        return ""
    closer = "".join(
        f'<button type="button" class="link" data-act="{act}"{hidden}>{TRAIN[act]}</button>'
        for act, hidden in (("closer", ""), ("whole", " hidden"))
    )
    held = '<i class="of-held"></i>held-out pictures' if story.validation else ""
    head = (
        '<div class="chart-head"><span class="caption-title">Loss</span>'
        f'<span class="legend">{closer if story.losses else ""}<i></i>training, smoothed{held}</span></div>'
    )
    if not story.losses:
        waiting = {
            "waiting": "It waits for its turn; the curve begins with its first step.",
            "running": "Pictures and base are being prepared; the curve begins with the first step.",
        }.get(story.state, "No step was taken.")
        return f'{head}<div class="empty chart-empty">{waiting}</div>'
    points = _binned(story.losses)
    steps, raw = [step for step, _ in points], [loss for _, loss in points]
    smooth = _smoothed(raw)
    low, high, ticks = _scale(raw, [*smooth, *(loss for _, loss in story.validation)])
    across = [tick for tick in _ticks(0, story.steps, 5) if tick <= story.steps]

    def top(value: float) -> float:
        return 100 - 100 * min(1.0, max(0.0, (value - low) / (high - low)))

    def line(pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{1000 * step / story.steps:.1f},{10 * top(value):.1f}" for step, value in pairs)

    grid = "".join(f'<line x1="0" x2="1000" y1="{10 * top(tick):.1f}" y2="{10 * top(tick):.1f}"/>' for tick in ticks)
    left = "".join(f'<span style="top:{top(tick):.2f}%">{_short(tick, ticks)}</span>' for tick in ticks)
    below = "".join(f'<span style="left:{100 * tick / story.steps:.2f}%">{tick:g}</span>' for tick in across)
    now = f"left:{100 * points[-1][0] / story.steps:.2f}%;top:{top(smooth[-1]):.2f}%"
    told = f"Loss {smooth[-1]:.4f} at step {story.step}"
    return (
        f'{head}<div class="chart"><div class="y">{left}</div><div class="plot" data-run="{escape(story.name)}" '
        f'data-steps="{story.steps}" data-low="{low}" data-high="{high}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'<g class="grid">{grid}</g><polyline class="raw" points="{line(points)}"/>'
        f'<polyline class="held" points="{line(story.validation)}"/>'
        f'<polyline class="smooth" points="{line(zip(steps, smooth, strict=True))}"/></svg>'
        f'<i class="now" style="{now}"></i></div>'
        f'<div class="x">{below}</div></div>'
    )


def health(story: Story | None) -> str:
    """How it is, in sentences, the newest state first."""
    if story is None:
        return ""
    lines = [_state_line(story)]
    if story.checkpoint and story.state == "running":
        lines.append(("good", f"Saved at step {story.checkpoint}."))
    pictures = story.began.get("pictures")
    if pictures:
        verb = "learns" if story.is_under_way else "learnt"
        lines.append(("good", f"It {verb} from {count(int(pictures), 'picture')}."))
    trend = _trend(story)
    lines += [trend] if trend else []
    held_out = _held_out(story)
    lines += [held_out] if held_out else []
    lines += [("careful", warning) for warning in story.warnings]
    lines += [("careful", problem) for problem in story.problems]
    lines += [("dim", note) for note in story.notes]
    rows = "".join(f'<li><i class="dot {kind}"></i><span>{escape(sentence(text))}</span></li>' for kind, text in lines)
    return f'<span class="caption-title">Health</span><ul>{rows}</ul>'


def previews(story: Story | None, workspace: Workspace) -> str:
    """The previews: a row a prompt, a column a step, with the columns to come."""
    if story is None:
        return ""
    prompts = story.config.preview.prompts
    every = story.config.preview.every
    planned = list(range(every, story.steps + 1, every)) if every else []
    there = {column.step: column for column in story.columns}
    steps = sorted(set(planned) | there.keys())
    if not prompts or not steps:
        return '<div class="empty">This run draws no previews.</div>'
    steps = _chosen(steps, set(there))
    rows = []
    for number, prompt in enumerate(prompts):
        cells = []
        for step in steps:
            column = there.get(step)
            picture = column.pictures[number] if column and number < len(column.pictures) else None
            if picture is None or not picture.is_file():
                cells.append("<td><span></span></td>")
                continue
            address = picture_url(workspace, picture)
            cells.append(
                f'<td><a href="{address}" target="_blank" rel="noopener"><img src="{address}" '
                f'alt="{escape(prompt)}, step {step}"></a></td>'
            )
        rows.append(
            f'<tr><th scope="row"><span title="{escape(prompt)}">{escape(prompt)}</span></th>{"".join(cells)}</tr>'
        )
    newest = max(there, default=None)
    head = "".join(f'<th scope="col"{" class=newest" if step == newest else ""}>{step}</th>' for step in steps)
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _state_line(story: Story) -> tuple[str, str]:
    saved = f" Everything up to step {story.checkpoint} is saved." if story.checkpoint else ""
    match story.state:
        case "waiting":
            return "dim", story.text or "It waits for its turn in the queue."
        case "running":
            if story.text:
                return "careful", story.text
            return "good", "It trains." if story.step else "It prepares pictures and base."
        case "done":
            when = f", {moment(story.ended)}" if story.ended else ""
            under = "" if story.adapter == story.name else f" as {story.adapter}"
            where = f" It is among your LoRAs{under}." if story.adapter else ""
            return "good", f"Done{when}.{where}"
        case "paused":
            return "careful", f"Paused at step {story.step}.{saved}"
        case "failed":
            return "stopped", (story.text or "It ended in a way it could not tell.")
    return "careful", f"Stopped at step {story.step}: {story.text or 'asked to stop'}.{saved}"


def _trend(story: Story) -> tuple[str, str] | None:
    """Where the training loss goes, by the means of its first and newest fifths; nothing where held-out pictures tell
    it better. A step's loss is mostly the luck of its timesteps: less than twice the means' error says nothing."""
    losses = [loss for _, loss in story.losses if math.isfinite(loss)]
    if len(story.validation) > 1 or len(losses) < _TREND_STEPS:
        return None
    fifth = len(losses) // 5
    (first, first_error), (last, last_error) = _mean(losses[:fifth]), _mean(losses[-fifth:])
    between = f"{last:.3f} on average, {first:.3f} at first"
    if abs(last - first) <= 2 * math.hypot(first_error, last_error):
        return "dim", f"The training loss does not tell yet: {between}, which its noise explains."
    if last < first:
        return "good", f"The training loss {'falls' if story.is_under_way else 'fell'}: {between}."
    return "careful", f"The training loss {'rises' if story.is_under_way else 'rose'}: {between}. A lower rate may do."


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _held_out(story: Story) -> tuple[str, str] | None:
    """What the loss on held-out pictures says: whether it still falls."""
    if len(story.validation) < 2:
        return None
    best, lowest = min(story.validation, key=lambda pair: pair[1])
    step, newest = story.validation[-1]
    if best == step:
        return "good", f"On held-out pictures the loss is at its lowest: {newest:.4f}, step {step}."
    return "careful", (
        f"On held-out pictures the loss was lowest after step {best} ({lowest:.4f}; now {newest:.4f}): "
        "that adapter is kept as best.safetensors."
    )


def _chosen(steps: list[int], there: set[int]) -> list[int]:
    """At most as many columns as fit: the first, and then the newest ones with what comes next."""
    if len(steps) <= _SHOWN_COLUMNS:
        return steps
    newest = max((number for number, step in enumerate(steps) if step in there), default=0)
    end = min(len(steps), max(_SHOWN_COLUMNS, newest + 2))
    return [steps[0], *steps[end - _SHOWN_COLUMNS + 1 : end]]


def _binned(losses: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` means of neighbours: (step, loss)."""
    size = math.ceil(len(losses) / _POINTS)
    bins = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [(sum(step for step, _ in some) / len(some), sum(loss for _, loss in some) / len(some)) for some in bins]


def _smoothed(values: Sequence[float]) -> list[float]:
    """The course of noisy values: each a mean of its neighbours on both sides, so that it does not trail behind."""
    width = max(1.0, len(values) * _SMOOTHING)
    reach = math.ceil(3 * width)
    kernel = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(reach + 1)]
    smooth = []
    for place in range(len(values)):
        around = range(max(0, place - reach), min(len(values), place + reach + 1))
        weights = [kernel[abs(place - other)] for other in around]
        smooth.append(sum(w * values[other] for w, other in zip(weights, around, strict=True)) / sum(weights))
    return smooth


def _scale(raw: Sequence[float], smooth: Sequence[float]) -> tuple[float, float, list[float]]:
    """Bottom, top and ticks. A few wild values do not flatten the rest: they are cut at the edge."""
    ordered = sorted(raw)
    low = min(ordered[int(0.02 * (len(ordered) - 1))], min(smooth))
    high = max(ordered[math.ceil(0.98 * (len(ordered) - 1))], max(smooth))
    ticks = _ticks(low, high if high > low else low + max(1e-6, abs(low) * 0.1), 4)
    return ticks[0], ticks[-1], ticks


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that enclose a range."""
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _short(value: float, ticks: Sequence[float]) -> str:
    """A tick's label, with the digits that its neighbours differ in."""
    digits = next(n for n in range(12) if len({round(tick, n) for tick in ticks}) == len(ticks) and _fits(ticks, n))
    return f"{value:.{digits}f}"


def _fits(ticks: Sequence[float], digits: int) -> bool:
    return all(abs(round(tick, digits) - tick) < 1e-9 for tick in ticks)
