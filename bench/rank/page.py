"""docs/rank.md and its plots, from the figures of bench/results/rank.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.rank.plots import bars, plot

_PARTS = ("weights", "gradients", "moments")
_LAST = 64  # rank at which spectra end


def page(facts: Mapping[str, Any]) -> dict[str, str]:
    """The text of each file, by its path below docs/."""
    return {
        "rank.md": _text(facts),
        "rank/quality.svg": _quality(facts),
        "rank/loss.svg": _losses(facts),
        "rank/size.svg": _size(facts),
        "rank/time.svg": _time(facts),
        "rank/coupling.svg": _coupling(facts),
        "rank/spectrum.svg": _spectrum(facts),
        "rank/memory.svg": _memory(facts),
    }


def _quality(facts: Mapping[str, Any]) -> str:
    rows = facts["ranks"]["rows"]
    lines = {
        "style": [row["judged"]["present"] for row in rows],
        "object": [row["judged"]["object"] for row in rows],
    }
    return plot("Judged right, % of the pictures", "rank", _names(rows), lines)


def _losses(facts: Mapping[str, Any]) -> str:
    rows = facts["ranks"]["rows"]
    lines = {
        "drawings it has not seen": [row["held_out"] for row in rows],
        "the last quarter of the training": [row["loss"] for row in rows],
    }
    return plot("Loss", "rank", _names(rows), lines)


def _size(facts: Mapping[str, Any]) -> str:
    rows = facts["ranks"]["rows"]
    return plot("Size of the file, MB", "rank", _names(rows), {"file": [row["bytes"] / 1e6 for row in rows]})


def _time(facts: Mapping[str, Any]) -> str:
    rows = facts["ranks"]["rows"]
    return plot("Time of a step, s", "rank", _names(rows), {"a step alone": [row["seconds_a_step"] for row in rows]})


def _coupling(facts: Mapping[str, Any]) -> str:
    pairs = [row for row in facts["coupled"]["rows"] if row["on_the_diagonal"]]
    window = min(12, facts["plan"]["coupled_steps"])
    lines = {_pair(row): _smooth(row["course"], window) for row in pairs}
    length = min(map(len, lines.values()))
    return plot(
        f"Loss, mean of {window} steps: the same alpha / rank x learning rate", "step",
        _every(10, range(window, window + length)), {name: line[:length] for name, line in lines.items()},
    )  # fmt: skip


def _spectrum(facts: Mapping[str, Any]) -> str:
    curves = {_trained(row): row["curve"] for row in facts["spectrum"]["rows"]}
    ranks = range(_LAST + 1)
    lines = {name: [100 * _kept(curve, rank) for rank in ranks] for name, curve in curves.items()}
    return plot("Energy kept when every layer is cut, %", "rank", _every(4, ranks), lines)


def _every(step: int, numbers: Iterable[int]) -> list[str]:
    """Names of places: round numbers alone."""
    return ["" if number % step else str(number) for number in numbers]


def _kept(curve: Sequence[float], rank: int) -> float:
    return curve[min(rank, len(curve) - 1)]


def _trained(row: Mapping[str, Any]) -> str:
    return "full fine-tuning" if row["rank"] is None else f"LoRA of rank {row['rank']}"


def _memory(facts: Mapping[str, Any]) -> str:
    rows = {name: row for name, row in facts["memory"].items() if name.startswith("SD 1.5")}
    stacks = {
        name.removeprefix("SD 1.5, "): {part: row[part] / 2**20 for part in _PARTS} for name, row in rows.items()
    }
    return bars("SD 1.5's UNet, counted: MiB of what is trained", stacks)


def _text(facts: Mapping[str, Any]) -> str:
    plan, versions = facts["plan"], facts["versions"]
    return f"""# What the rank is worth

Measured on pocket, the small base that is shipped, on {facts["date"]}: {facts["hardware"]},
{", ".join(f"{name} {number}" for name, number in versions.items())}. It is a toy world of drawings: on another base the
numbers are others.

    python -m bench.rank make --work DIR --write    # trains, measures, writes this page
    python -m bench.rank write                      # this page again, from bench/results/rank.json

Every training is `pocket-style` with `{" ".join(plan["settings"])}`,
in a run folder below DIR: `ranks`, `coupled`, `narrow` and `alone-RANK`; `full` is a plain loop over the same pictures.
Losses "unseen" are those on {plan["drawings"]} new drawings in the set's style, each at {facts["held_out"]["timesteps"]}
timesteps with fixed noise; the base without an adapter has {facts["held_out"]["of the base"]:.4f} there. "Loss" alone is
the mean over the last quarter of a training, "change" the Frobenius norm of all that is added to the base's weights.

{_of_ranks(facts)}

{_of_coupling(facts)}

{_of_spectra(facts)}

## Memory of what is trained

Weights in fp32, a gradient for each, and Adam's two moments, of the UNet. Pocket's are the bytes of real tensors after a
step of torch's AdamW and of bitsandbytes' AdamW8bit; SD 1.5's are counted from the shapes of its layers. The LoRA
is that of the attention projections, which the rows between train whole. The frozen base and the activations come
on top: beside a LoRA the base needs neither gradients nor moments, so 8 bits save most where all is trained.

![memory](rank/memory.svg)

{_table(("trained", *_PARTS, "sum"), [(name, *(_mib(row[part]) for part in (*_PARTS, "sum"))) for name, row in facts["memory"].items()])}
"""  # noqa: E501


def _of_ranks(facts: Mapping[str, Any]) -> str:
    plan, rows = facts["plan"], facts["ranks"]["rows"]
    told = [
        (
            row["rank"], _percent(row["judged"]["present"]), _percent(row["judged"]["object"]),
            _percent(row["judged"]["style and object"]), f"{row['loss']:.4f}", f"{row['held_out']:.4f}",
            f"{row['change']:.1f}", f"{row['bytes'] / 1e6:.2f} MB", f"{row['seconds_a_step']:.3f} s",
            f"{plan['steps'] * row['seconds_a_step']:.0f} s",
        )
        for row in rows
    ]  # fmt: skip
    head = ("rank", "style", "object", "both", "loss", "unseen", "change", "file", "step", f"{plan['steps']} steps")
    return f"""## Rank, quality, size, time

All ranks were trained side by side in one pass over the base, to save time (`sweep.lora.rank`, {plan["steps"]} steps,
alpha 16, `wide` targets and the text encoder): they saw the same pictures, noise and timesteps. That pass took
{facts["ranks"]["seconds"]:.0f} s by the run's own clock, not alone on the machine; `bench/side_by_side.py` compares
such a pass with runs one after the other. Judged at strength 1 on {plan["prompts"]} prompts outside the set:
style seen, object right, and both. A step's time is that of the rank by itself, the median of
{plan["timed_steps"] - 3}; "{plan["steps"]} steps" is so many times that.

![quality](rank/quality.svg)

{_table(head, told)}

{_said_of_ranks(rows, plan["prompts"])}

Alpha stays at 16, so the scale, alpha / rank, is 16 at rank 1 and 1/4 at rank 64. Adam moves every number by about the
learning rate: low ranks make larger changes, in fewer directions.

![loss](rank/loss.svg)

![size](rank/size.svg)

![time](rank/time.svg)"""


def _of_coupling(facts: Mapping[str, Any]) -> str:
    coupled = facts["coupled"]
    middle = coupled["middle"]
    rows = [
        (
            f"{row['alpha']:g}", f"{row['lr']:g}", f"{row['alpha'] / middle['rank'] * row['lr']:g}",
            "same" if row["on_the_diagonal"] else "", f"{row['loss']:.4f}", f"{row['held_out']:.4f}",
            f"{row['change']:.1f}", f"{row['likeness']:.2f}", _percent(row["judged"]["present"]),
            _percent(row["judged"]["object"]),
        )
        for row in coupled["rows"]
    ]  # fmt: skip
    head = ("alpha", "learning rate", "product", "", "loss", "unseen", "change", "likeness", "style", "object")
    same = [row for row in coupled["rows"] if row["on_the_diagonal"]]
    least, most = (pick(row["change"] for row in same) for pick in (min, max))
    return f"""## Alpha and the learning rate

Rank {middle["rank"]}, the UNet alone, {facts["plan"]["coupled_steps"]} steps, every alpha with every rate in one sweep.
A LoRA's change is `alpha / rank x up x down`. Adam moves every number by about the learning rate, however large its
gradient is, so a step of `up` changes the weights by about `alpha / rank x learning rate`: where only `up` moved, the
two would be one knob. They are not quite:

- `up` starts at zero, and with it the gradient of `down`: in the first step only `up` moves, and there the two are
  one knob.
- From the second step on `down` moves as well, by the learning rate alone, whatever alpha is. A high rate with a low
  alpha turns `down` further from where it started, which makes the change larger and another one.
- Weight decay takes the learning rate's share of each matrix, and a gradient's norm, by which it is clipped, grows with
  alpha.

In the rows marked "same", of one `alpha / rank x learning rate`, the change's norm goes from {least:.1f} to {most:.1f}.
Likeness is the cosine between a change and that of alpha {middle["alpha"]:g} at {middle["lr"]:g}.

![coupling](rank/coupling.svg)

{_table(head, rows)}"""


def _of_spectra(facts: Mapping[str, Any]) -> str:
    trained, plan = facts["spectrum"]["rows"], facts["plan"]
    table = [
        (rank, *(f"{100 * _kept(row['curve'], rank):.1f} %" for row in trained)) for rank in (1, 2, 4, 8, 16, 32, _LAST)
    ]
    losses = [
        (_trained(row), f"{row['loss']:.4f}", f"{row['held_out']:.4f}", f"{row['change']:.2f}") for row in trained
    ]
    whole = next(row for row in trained if row["rank"] is None)
    return f"""## The spectrum, beside a full fine-tuning

The attention projections of the UNet and nothing else: trained as they are (AdamW at {whole["lr"]:g}, `full`), and by
LoRAs at {_setting(plan["settings"], "optimizer.lr")} (`narrow`), each for {plan["steps"]} steps of
{_setting(plan["settings"], "train.batch_size")} pictures. The share of the change's energy, the sum of squared singular
values, that is left when every layer is cut to a rank:

![spectrum](rank/spectrum.svg)

{_table(("rank kept", *map(_trained, trained)), table)}

{_table(("trained", "loss", "unseen", "change"), losses)}

The rates differ, and with them how far each one went: the shapes of the curves are to be compared, not the losses."""


def _said_of_ranks(rows: Sequence[Mapping[str, Any]], prompts: int) -> str:
    def right(row: Mapping[str, Any]) -> float:
        return float(row["judged"]["style and object"])

    best = max(rows, key=lambda row: (right(row), -row["rank"]))
    least = next(row for row in rows if right(row) >= 0.95 * right(best))
    within = f"rank {least['rank']} is the lowest within a twentieth of it"
    alone = "and no lower one comes within a twentieth of it"
    first, last = rows[0], rows[-1]
    return (
        f"Most pictures are right in both at rank {best['rank']}, "
        f"{alone if least is best else within}; one picture of {prompts} is\n"
        f"{100 / prompts:.0f} %, so small differences say nothing. "
        f"The loss on unseen\ndrawings goes from {first['held_out']:.4f} at rank {first['rank']} to "
        f"{last['held_out']:.4f} at rank {last['rank']}, for {last['bytes'] / first['bytes']:.0f} times the bytes and\n"
        f"{last['seconds_a_step'] / first['seconds_a_step']:.1f} times the time of a step."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(row["rank"]) for row in rows]


def _pair(row: Mapping[str, Any]) -> str:
    return f"alpha {row['alpha']:g}, {row['lr']:g}"


def _smooth(values: Sequence[float], window: int) -> list[float]:
    return [sum(values[at : at + window]) / window for at in range(len(values) - window + 1)]


def _percent(share: float) -> str:
    return f"{share:.0f} %"


def _setting(settings: Sequence[str], key: str) -> str:
    return next(setting.partition("=")[2] for setting in settings if setting.startswith(f"{key}="))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
