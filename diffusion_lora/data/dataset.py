"""A data set ready for training: every picture with its bucket, its hash and its captions; what each step sees of it.

    table --scan--> items --examine--> hashes --buckets--> Dataset --select(step)--> views, captions, weights

Nothing is encoded here. No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusion_lora.config import DatasetTable, TrainConfig
from diffusion_lora.data.batches import Bucket, Chances, Selection, make_buckets, select
from diffusion_lora.data.buckets import Place, bucket_sizes, place, place_unenlarged
from diffusion_lora.data.captions import CaptionRules
from diffusion_lora.data.examine import Seen, examine
from diffusion_lora.data.folder import Scanned, demand_captions, looking_for, scan_table
from diffusion_lora.data.problems import Problem, Report
from diffusion_lora.data.sources import Item, Source
from diffusion_lora.data.views import Looks, Shown
from diffusion_lora.errors import DatasetError

_WIDEST_STEP_PX = 64
_STEPS_A_SIDE = 8


@dataclass(frozen=True, eq=False)
class Dataset:
    """The pictures a run trains on, and how each step sees them; `items`, `seen` and `places` stand side by side."""

    items: tuple[Item, ...]
    seen: tuple[Seen, ...]
    masks: tuple[str, ...]  # hash of each picture's mask; "alpha" or "" where there is no file
    places: tuple[Place, ...]
    sources: tuple[Source, ...]
    rules: CaptionRules
    looks: Looks
    chances: Chances
    seed: int

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes in use, with what is drawn of each."""
        return make_buckets(
            [each.bucket for each in self.places],
            [item.source for item in self.items],
            [source.repeats for source in self.sources],
            [source.regularisation for source in self.sources],
        )

    def select(self, step: int, count: int) -> Selection:
        """The `count` pictures of a step."""
        return select(step, self.buckets, count=count, seed=self.seed, chances=self.chances)

    def shown(self, selection: Selection) -> list[Shown]:
        """The views of a step's pictures."""
        rows = zip(selection.indices, selection.views, selection.mirrored, strict=True)
        return [
            Shown(
                self.items[index],
                self.seen[index].pixels,
                self.masks[index],
                self.looks.view(self.seed, index, number, selection.size, mirrored),
            )
            for index, number, mirrored in rows
        ]

    def plain_views(self) -> list[Shown]:
        """For each picture the view by which it is measured: its first one, not mirrored."""
        return [
            Shown(item, seen.pixels, mask, self.looks.view(self.seed, index, 0, place.bucket, False))
            for index, (item, seen, mask, place) in enumerate(
                zip(self.items, self.seen, self.masks, self.places, strict=True)
            )
        ]

    def captions(self, selection: Selection) -> list[str]:
        """What a step's pictures are called, empty where the caption is left out."""
        rows = zip(selection.indices, selection.variants, selection.uncaptioned, strict=True)
        return ["" if bare else self.caption(index, variant) for index, variant, bare in rows]

    def caption(self, index: int, variant: int) -> str:
        """One of a picture's captions."""
        captions, rules = self.items[index].captions, self.rules_of(self.items[index])
        return rules.variant(captions, self.seed, index, variant if rules.varies(captions) else 0)

    def rules_of(self, item: Item) -> CaptionRules:
        """How a picture's captions vary: one for regularisation gets no trigger word."""
        if self.rules.trigger and self.sources[item.source].regularisation:
            return self.rules.without_trigger()
        return self.rules

    def weights(self, selection: Selection) -> list[float]:
        """What the losses of a step's pictures count."""
        return [self.sources[self.items[index].source].weight for index in selection.indices]


def open_dataset(
    config: TrainConfig,
    *,
    size_px: int,
    factor: int,
    indices: Path | None = None,
    report: Report = lambda problem: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    scanned: Scanned | None = None,
    gate: bool = True,
) -> Dataset:
    """The data set of a configuration, for a base of `size_px` whose latents are `factor` times smaller.

    `indices` is the folder that keeps what was seen of pictures; `report` gets every problem of a picture. Raises
    DatasetError: no pictures, nothing that can be read; without captions too, unless the `gate` is open.
    """
    table = config.dataset
    scanned = scanned or scan_table(table)
    if gate:
        demand_captions(scanned, looking_for(table), required=table.captions_required)
    for problem in scanned.problems:
        report(problem)
    paths = [item.path for item in scanned.items] + [item.mask for item in scanned.items if item.mask]
    seen = examine(paths, indices, progress=progress)
    kept: list[tuple[Item, Seen, str, Place]] = []
    for item in scanned.items:
        what = seen[item.path]
        where = where_to(item, table, size_px, factor)
        mask = seen[item.mask] if item.mask else None
        trouble = what.problem or (mask.problem if mask else "")
        if trouble:
            report(Problem("unreadable", item.name, trouble, left_out=True))
        elif where is None:
            text = f"{item.name} is only {item.size[0]} x {item.size[1]} px, less than the step between buckets"
            report(Problem("too small", item.name, text, left_out=True))
        else:
            kept.append((item, what, mask.pixels if mask else "alpha" if table.mask == "alpha" else "", where))
    if not kept:
        raise DatasetError(f"none of the {len(scanned.items)} pictures in {scanned.sources[0].folder} can be used")
    items, hashes, masks, places = (tuple(column) for column in zip(*kept, strict=True))
    return Dataset(
        items=items,
        seen=hashes,
        masks=masks,
        places=places,
        sources=scanned.sources,
        rules=caption_rules(config),
        looks=looks_of(table),
        chances=Chances(
            flip=table.flip,
            caption_dropout=table.caption_dropout,
            views=looks_of(table).different,
            variants=table.caption_variants,
        ),
        seed=config.train.seed,
    )


def caption_rules(config: TrainConfig) -> CaptionRules:
    """How a configuration varies captions."""
    table = config.dataset
    return CaptionRules(
        trigger=(config.output.trigger_word or "") if table.add_trigger else "",
        shuffle=table.shuffle,
        separator=table.separator,
        keep_first=table.keep_first,
        keep_separator=table.keep_separator or "",
        tag_dropout=table.tag_dropout,
        wildcards=table.wildcards,
        variants=table.caption_variants,
    )


def looks_of(table: DatasetTable) -> Looks:
    """Which views of pictures a [dataset] table asks for."""
    return Looks(table.crop == "random", table.colour_jitter, table.views)


def where_to(item: Item, table: DatasetTable, size_px: int, factor: int) -> Place | None:
    """The bucket of a picture; None if it is too small for any."""
    if not table.buckets:
        return place(item.size, [(size_px, size_px)])
    step_px = bucket_step_px(table, size_px, factor)
    if table.enlarge:
        return place(item.size, bucket_sizes(size_px, step_px))
    return place_unenlarged(item.size, size_px, step_px)


def bucket_step_px(table: DatasetTable, size_px: int, factor: int) -> int:
    """What the sides of buckets are multiples of: an eighth of the base's size, and whole latents."""
    wanted = table.bucket_step_px or min(_WIDEST_STEP_PX, size_px // _STEPS_A_SIDE)
    return max(factor, wanted // factor * factor)
