"""WD14-style taggers: `model.onnx` says how sure it is of each tag in `selected_tags.csv`.

The rows' categories are 0 general, 4 characters, 9 ratings. A picture is laid on a white square, shrunk to the model's
size and given as BGR, 0 to 255, as these models were trained. Needs onnxruntime (the extra `tagger`).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusion_lora.caption.captioner import Options
from diffusion_lora.errors import CaptionerError

MODEL, TAGS = "model.onnx", "selected_tags.csv"
_GENERAL, _CHARACTER, _RATING = "0", "4", "9"
_FACES = frozenset({"0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o",
                    "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||"})  # fmt: skip
"""Tags whose underscore is part of a drawn face."""


@dataclass(frozen=True)
class Tag:
    """A tag's name, as it is said, and its category."""

    name: str
    category: str


class Tagger:
    """A loaded tagger. Tags are said in the order of how sure it is, characters first."""

    kind = "tagger"

    def __init__(self, session: Any, tags: Sequence[Tag], name: str, options: Options, device: str) -> None:
        self.name, self.device = name, device
        self._session, self._tags, self._options = session, tags, options
        given = session.get_inputs()[0]
        self._input, self._side = given.name, given.shape[1]
        self._one_by_one = given.shape[0] == 1
        self._unwanted = frozenset(tag.strip().replace("_", " ").lower() for tag in options.blacklist)

    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The tags of each picture, with commas between. Raises CaptionerError after `close`."""
        if self._session is None:
            raise CaptionerError(f"the tagger {self.name} is closed")
        x_BHWC = np.stack([prepared(picture, self._side) for picture in pictures])
        portions = [x_BHWC[i : i + 1] for i in range(len(x_BHWC))] if self._one_by_one else [x_BHWC]
        sure_BT = np.concatenate([self._session.run(None, {self._input: portion})[0] for portion in portions])
        return [", ".join(self._said(sure_T)) for sure_T in sure_BT]

    def close(self) -> None:
        """Give the model's memory back."""
        self._session = None

    def _said(self, sure_T: np.ndarray) -> list[str]:
        limits = {_GENERAL: self._options.threshold, _CHARACTER: self._options.character_threshold}
        if self._options.ratings:
            ratings = [i for i, tag in enumerate(self._tags) if tag.category == _RATING]
            top = max(ratings, key=lambda i: sure_T[i], default=None)
        else:
            top = None
        named = [i for i, tag in enumerate(self._tags) if sure_T[i] > limits.get(tag.category, np.inf)]
        named.sort(key=lambda i: (self._tags[i].category != _CHARACTER, -sure_T[i]))
        said = [self._tags[i].name for i in ([top] if top is not None else []) + named]
        return [name for name in said if name.lower() not in self._unwanted]


def load(model: Path, tags: Path, name: str, options: Options, device: torch.device) -> Tagger:
    """The tagger of two files. Raises CaptionerError."""
    for file in (model, tags):
        if not file.is_file():
            raise CaptionerError(f"the tagger {name} is incomplete: it has no {file.name}")
    known = read_tags(tags)
    try:
        import onnxruntime
    except ImportError as error:
        raise CaptionerError("taggers need onnxruntime: install it with `pip install 'diffusion-lora[tagger]'`"
                             ) from error  # fmt: skip
    wanted = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if device.type == "cuda" else []
    there = set(onnxruntime.get_available_providers())
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model, settings, providers=[*(each for each in wanted if each[0] in there), "CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no common class of their own
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise CaptionerError(f"{model} cannot be read as a tagger ({str(error).strip().splitlines()[0]})") from error
    given, out = session.get_inputs(), session.get_outputs()
    shape = given[0].shape
    if len(given) != 1 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
        raise CaptionerError(f"{model} is no WD14 tagger: it takes {[each.shape for each in given]}, not [B, N, N, 3]")
    if isinstance(out[0].shape[-1], int) and out[0].shape[-1] != len(known):
        raise CaptionerError(f"{tags} names {len(known)} tags, but {model.name} tells of {out[0].shape[-1]}")
    used = session.get_providers()[0].removesuffix("ExecutionProvider").lower()
    return Tagger(session, known, name, options, str(device) if used == device.type else used)


def read_tags(path: Path) -> list[Tag]:
    """The tags of `selected_tags.csv`, in the order of the model's outputs. Raises CaptionerError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Tag(_spoken(row["name"]), row["category"].strip()) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise CaptionerError(f"{path} is no list of tags with the columns name and category ({error!r})") from error


def prepared(picture: Image.Image, side_px: int) -> np.ndarray:
    """A picture as float32 [side, side, 3], BGR in 0 to 255, whole on a white square."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side_px:
        square = square.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def _spoken(name: str) -> str:
    return name if name in _FACES else name.replace("_", " ")
