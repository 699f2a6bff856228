"""What a trained adapter's header says of the pictures it was trained on, in kohya's words. Values are not text yet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_lora.config import DatasetTable

_CHUNK_TOKENS = 75


@dataclass(frozen=True)
class FolderFacts:
    """One source of pictures: its name, how often each comes in a round, a caption for each of them."""

    name: str
    captions: Sequence[str]
    repeats: float = 1.0
    weight: float = 1.0
    regularisation: bool = False


def set_metadata(
    table: DatasetTable, folders: Sequence[FolderFacts], buckets: Mapping[tuple[int, int], int]
) -> dict[str, Any]:
    """The `ss_*` values of a set; `buckets` counts the pictures of each (width, height)."""
    learned = [folder for folder in folders if not folder.regularisation]
    kept = [folder for folder in folders if folder.regularisation]
    shapes = sorted(buckets.items())
    return {
        "ss_num_train_images": sum(len(folder.captions) for folder in learned),
        "ss_num_reg_images": sum(len(folder.captions) for folder in kept),
        "ss_prior_loss_weight": kept[0].weight if kept else None,
        "ss_dataset_dirs": json.dumps(_directories(learned)),
        "ss_reg_dataset_dirs": json.dumps(_directories(kept)),
        "ss_tag_frequency": json.dumps({folder.name: tag_frequency(folder.captions) for folder in folders}),
        "ss_bucket_info": json.dumps(
            {"buckets": {str(i): {"resolution": list(size), "count": count} for i, (size, count) in enumerate(shapes)}}
        ),
        "ss_enable_bucket": table.buckets,
        "ss_bucket_no_upscale": table.buckets and not table.enlarge,
        "ss_shuffle_caption": table.shuffle,
        "ss_keep_tokens": table.keep_first,
        "ss_caption_dropout_rate": table.caption_dropout,
        "ss_caption_tag_dropout_rate": table.tag_dropout,
        "ss_max_token_length": table.caption_tokens if table.caption_tokens > _CHUNK_TOKENS else None,
        "ss_flip_aug": table.flip,
        "ss_color_aug": table.colour_jitter > 0,
        "ss_random_crop": table.crop == "random",
    }


def tag_frequency(captions: Sequence[str]) -> dict[str, int]:
    """How many captions hold each comma-separated tag, lower-cased as kohya does, the commonest first."""
    counts = Counter(tag for caption in captions for part in caption.split(",") if (tag := part.strip().lower()))
    return dict(counts.most_common())


def _directories(folders: Sequence[FolderFacts]) -> dict[str, dict[str, float]]:
    return {
        folder.name: {
            "n_repeats": int(folder.repeats) if folder.repeats == int(folder.repeats) else folder.repeats,
            "img_count": len(folder.captions),
        }
        for folder in folders
    }
