"""docs/rank.md and its plots, from the figures of bench/results/rank.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.rank.plots import bars, plot

_PARTS = ("weights", "gradients", "moments")


def page(facts: Mapping[str, Any]) -> dict[str, str]:
    """The text of each file, by its path below docs/."""
    return {
        "rank.md": _text(facts),
        "rank/quality.svg": _quality(facts),
        "rank/size-and-time.svg": _size(facts),
        "rank/coupling.svg": _coupling(facts),
        "rank/spectrum.svg": _spectrum(facts),
        "rank/memory.svg": _memory(facts),
    }


def _quality(facts: Mapping[str, Any]) -> str:
    rows = facts["ranks"]
    lines = {
        "style": [row["judged"]["present"] for row in rows],
        "object": [row["judged"]["object"] for row in rows],
    }
    return plot("Judged right, % of the pictures", "rank", _names(rows), lines)


def _size(facts: Mapping[str, Any]) -> str:
    rows = facts["ranks"]
    last = rows[-1]
    lines = {
        "file": [100 * row["bytes"] / last["bytes"] for row in rows],
        "a step's time": [100 * row["seconds_a_step"] / last["seconds_a_step"] for row in rows],
    }
    return plot(f"Size of the file and time of a step, % of rank {last['rank']}'s", "rank", _names(rows), lines)


def _coupling(facts: Mapping[str, Any]) -> str:
    pairs = [row for row in facts["coupled"]["rows"] if row["on_the_diagonal"]]
    window = min(12, facts["plan"]["coupled_steps"])
    lines = {_pair(row): _smooth(row["course"], window) for row in pairs}
    length = min(map(len, lines.values()))
    return plot(
        f"Loss, mean of {window} steps: the same alpha / rank x learning rate", "step",
        [str(number + window) for number in range(length)], {name: line[:length] for name, line in lines.items()},
    )  # fmt: skip


def _spectrum(facts: Mapping[str, Any]) -> str:
    curves = facts["spectrum"]["curves"]
    longest = facts["spectrum"]["rank"] + 1  # beyond it the LoRA has nothing
    lines = {
        name: [100 * (curves[key] + [curves[key][-1]] * longest)[rank] for rank in range(longest)]
        for name, key in ((f"LoRA of rank {facts['spectrum']['rank']}", "lora"), ("full fine-tuning", "full"))
    }
    return plot("Energy kept when every layer is cut, %", "rank", [str(rank) for rank in range(longest)], lines)


def _memory(facts: Mapping[str, Any]) -> str:
    rows = {
        f"{what}, {bits}-bit Adam": facts["memory"][f"SD 1.5, {what}, {bits}-bit Adam"]
        for what in ("all weights", "LoRA, rank 16")
        for bits in (32, 8)
    }
    sizes = {name: {part: row[part] / 2**30 for part in _PARTS} for name, row in rows.items()}
    return bars("SD 1.5's UNet: what is trained", sizes, "GiB")


def _text(facts: Mapping[str, Any]) -> str:
    plan, versions = facts["plan"], facts["versions"]
    return f"""# What the rank is worth

Measured on pocket, the small base that is shipped, on {facts["date"]}: {facts["hardware"]},
torch {versions["torch"]}. It is a toy world of drawings: on another base the numbers are others.

    python -m bench.rank make --work DIR --write    # trains, measures, writes this page
    python -m bench.rank write                      # this page again, from bench/results/rank.json

## Rank, quality, size, time

`pocket-style` for {plan["steps"]} steps of two pictures, alpha 16, all ranks side by side in one pass over the base (a
`[sweep]`), so that they saw the same pictures, noise and timesteps. Judged at strength 1 on {plan["prompts"]} prompts
outside the set. A step's time is that of the rank by itself, the median of {plan["timed_steps"] - 3}.

![quality](rank/quality.svg)

{_table(("rank", "style %", "object %", "both %", "loss", "change", "file", "step"), map(_rank_row, facts["ranks"]))}

{_said_of_ranks(facts["ranks"], plan["prompts"])}

![size and time](rank/size-and-time.svg)

{_of_coupling(facts)}

{_of_spectra(facts["spectrum"])}

## Memory of what is trained

Weights in fp32, a gradient for each, and Adam's two moments. Pocket's moments are the bytes of the optimizers' own
tensors (torch's AdamW, bitsandbytes' AdamW8bit) after a step; SD 1.5's are counted from its weights. The frozen base
and the activations come on top.

![memory](rank/memory.svg)

{_table(("trained", *_PARTS, "sum"), [(name, *(_mib(row[part]) for part in (*_PARTS, "sum"))) for name, row in facts["memory"].items()])}
"""  # noqa: E501


def _rank_row(row: Mapping[str, Any]) -> Sequence[object]:
    judged = row["judged"]
    return (
        row["rank"], *(f"{judged[name]:.1f}" for name in ("present", "object", "style and object")),
        f"{row['loss']:.4f}", f"{row['change']:.2f}", f"{row['bytes'] / 1e6:.2f} MB", f"{row['seconds_a_step']:.3f} s",
    )  # fmt: skip


def _of_coupling(facts: Mapping[str, Any]) -> str:
    coupled = facts["coupled"]
    rows = [
        (
            f"{row['alpha']:g}", f"{row['lr']:g}", f"{row['alpha'] / coupled['middle']['rank'] * row['lr']:g}",
            "same" if row["on_the_diagonal"] else "", f"{row['loss']:.4f}", f"{row['change']:.2f}",
            f"{row['likeness']:.2f}", f"{row['judged']['present']:.1f}", f"{row['judged']['object']:.1f}",
        )
        for row in coupled["rows"]
    ]  # fmt: skip
    head = ("alpha", "learning rate", "product", "", "loss", "change", "likeness", "style %", "object %")
    return f"""## Alpha and the learning rate

A LoRA's change is `alpha / rank x up x down`. At the start `up` is zero, and Adam moves every number by about the
learning rate whatever the gradient's size, so at first the change grows with `alpha / rank x learning rate`: one knob,
not two. `down`, however, moves by the learning rate alone, and turns further where the rate is high. Rank 16, the UNet
alone, {facts["plan"]["coupled_steps"]} steps. Likeness is the cosine between the change and that of alpha 16 at
{coupled["middle"]["lr"]:g}; the rows marked "same" have one and the same product.

![coupling](rank/coupling.svg)

{_table(head, rows)}"""


def _of_spectra(facts: Mapping[str, Any]) -> str:
    lora, full = facts["curves"]["lora"], facts["curves"]["full"]
    rows = [
        (rank, f"{100 * lora[min(rank, len(lora) - 1)]:.1f} %", f"{100 * full[rank]:.1f} %")
        for rank in (1, 2, 4, 8, 16, 32, 64)
        if rank < len(full)
    ]
    return f"""## The spectrum, beside a full fine-tuning

The attention projections of the UNet, trained as they are ({facts["steps"]} steps of two pictures, AdamW at
{facts["lr"]:g}, loss {facts["first_loss"]:.3f} at first and {facts["last_loss"]:.3f} at last, means of 25 steps),
beside the same layers of the LoRA of rank {facts["rank"]} above: the share of the change's energy that is left when
every layer is cut to a rank.

![spectrum](rank/spectrum.svg)

{_table(("rank kept", "LoRA", "full fine-tuning"), rows)}"""


def _said_of_ranks(rows: Sequence[Mapping[str, Any]], prompts: int) -> str:
    def right(row: Mapping[str, Any]) -> float:
        return float(row["judged"]["style and object"])

    best = max(rows, key=lambda row: (right(row), -row["rank"]))
    least = next(row for row in rows if right(row) >= 0.95 * right(best))
    return (
        f"Most pictures are right in both at rank {best['rank']}; the lowest rank within a twentieth of that is "
        f"{least['rank']}, with\n{least['bytes'] / rows[-1]['bytes']:.0%} of the bytes of rank {rows[-1]['rank']}. "
        f"One picture of {prompts} is {100 / prompts:.0f} %, so differences of that size say nothing."
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


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
