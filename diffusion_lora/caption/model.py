"""Captioners of transformers: every class behind `AutoModelForImageTextToText`, asked as its kind wants to be asked.

    vision-encoder-decoder   its picture processor and its tokenizer lie side by side; it is not asked anything
    blip, git                a caption; with a prompt, a caption that goes on from these words
    blip-2, instructblip     with a prompt, an answer
    florence2                a task: <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>
    llava, and all that have a chat template (JoyCaption, Qwen-VL, ...): an answer to an instruction

Greedy: the same picture gets the same caption. Code that comes with a model is never run, pickled weights are not read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_lora.caption.captioner import Options
from diffusion_lora.errors import CaptionerError, DeviceError
from diffusion_lora.families.quiet import quiet

FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
INSTRUCTION = "Describe this picture in one sentence."
_PAIR = "vision-encoder-decoder"
_CONTINUES = frozenset({"blip", "git"})  # the caption begins with the prompt
_NEW_TOKENS = 75  # what a text encoder of Stable Diffusion reads at once


class TransformersCaptioner:
    """A loaded model with what prepares its pictures and reads its tokens."""

    def __init__(self, net: Any, processor: Any, words: Any, name: str, options: Options, device: torch.device) -> None:
        self.name, self.device = name, str(device)
        self.kind = type(net).__name__
        self._net, self._processor, self._words = net, processor, words
        self._type = net.config.model_type
        self._ask = _question(self._type, processor, options.prompt, name)
        self._new_tokens = min(options.new_tokens or _NEW_TOKENS, _room(net) or _NEW_TOKENS)

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption for each picture. Raises CaptionerError after `close`."""
        if self._net is None:
            raise CaptionerError(f"the captioner {self.name} is closed")
        asked = {} if self._ask is None else {"text": [self._ask] * len(pictures), "padding": True}
        with told(self.name):
            given = self._processor(images=list(pictures), return_tensors="pt", **asked)
            given = _open_ended(given, self._words) if self._type == "git" else given
            given = given.to(self._net.device, self._net.dtype)
            if self._type == _PAIR:
                given = _seen(self._net, given)
            tokens = self._net.generate(**given, max_new_tokens=self._new_tokens, do_sample=False, num_beams=1)
        asked_BL = given.get("input_ids")
        if asked_BL is not None and self._type not in _CONTINUES:
            length = asked_BL.shape[1]
            if tokens.shape[1] >= length and torch.equal(tokens[:, :length], asked_BL):
                tokens = tokens[:, length:]
        return [" ".join(text.split()) for text in self._words.batch_decode(tokens, skip_special_tokens=True)]

    def close(self) -> None:
        """Give the model's memory back."""
        self._net = self._processor = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load(source: Path | str, name: str, options: Options, device: torch.device) -> TransformersCaptioner:
    """The captioner in a folder or of a hub id. Raises CaptionerError, DeviceError."""
    if options.quantised != "none" and device.type != "cuda":
        raise DeviceError(f"captioners are quantised on CUDA only, not on {device}; leave --quantise out")
    quiet("transformers")
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KINDS

    hub = {"revision": options.revision, "trust_remote_code": False}
    with told(name):
        config = AutoConfig.from_pretrained(source, **hub)
        if config.model_type not in KINDS:
            raise CaptionerError(f"{name} is a {config.model_type} model, which does not write captions")
        if config.model_type == _PAIR:
            processor = AutoImageProcessor.from_pretrained(source, **hub)
            words = AutoTokenizer.from_pretrained(source, **hub)
        else:
            processor = AutoProcessor.from_pretrained(source, **hub)
            words = getattr(processor, "tokenizer", None)
        if words is None or not callable(processor):
            raise CaptionerError(f"{name} has no tokenizer beside its model")
        if not config.is_encoder_decoder:
            words.padding_side = "left"  # what is generated comes after the last token
        net, report = AutoModelForImageTextToText.from_pretrained(
            source, dtype=_dtype(device), output_loading_info=True, use_safetensors=True,
            **({"device_map": {"": device}} if options.quantised != "none" else {}),
            quantization_config=_quantisation(options), **hub,
        )  # fmt: skip
    missing = sorted(report["missing_keys"])
    if missing:
        raise CaptionerError(f"{name} is incomplete: {len(missing)} tensors are missing, {missing[0]} is the first")
    if options.quantised == "none":
        net = net.to(device)
    return TransformersCaptioner(net.eval(), processor, words, name, options, device)


@contextmanager
def told(name: str) -> Iterator[None]:
    """What the library raises for a model that is not there, not whole or not for it, as one sentence."""
    try:
        yield
    except ImportError as error:
        lacking = _library(error)
        raise CaptionerError(f"{name} needs {lacking}: install it with `pip install {lacking}`") from error
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the memory of the device does not hold {name} and its pictures: make --batch smaller, or add --quantise"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        offline = "offline" in str(error).lower() or "connection" in str(error).lower()
        why = "it is not in the hub's cache on this machine, and the hub cannot be reached" if offline else _line(error)
        raise CaptionerError(f"the captioner {name} cannot be used: {why}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("safetensors", "huggingface_hub", "tokenizers"):
            raise CaptionerError(f"the captioner {name} cannot be used: {_line(error)}") from error
        raise


def _question(kind: str, processor: Any, prompt: str, name: str) -> str | None:
    """The text that goes with every picture, or None for a model that is shown pictures alone."""
    if kind == _PAIR:
        if prompt:
            raise CaptionerError(f"{name} is not asked anything: leave --prompt out")
        return None
    if kind == "florence2":
        if prompt and prompt not in FLORENCE_TASKS:
            raise CaptionerError(f"the task {prompt!r} is unknown to Florence-2: say {', '.join(FLORENCE_TASKS)}")
        return prompt or "<DETAILED_CAPTION>"
    if getattr(processor, "chat_template", None):
        turn = {"role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": prompt or INSTRUCTION}]}  # fmt: skip
        return str(processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))
    if kind in ("llava", "vipllava", "llava_next"):
        asked = prompt or INSTRUCTION
        return asked if "<image>" in asked else f"USER: <image>\n{asked} ASSISTANT:"
    return prompt or None


def _seen(net: Any, given: Any) -> dict[str, Any]:
    """What the encoder makes of the pictures: encoders of convolutions report no attentions, which the pair of
    encoder and decoder asks for when it calls them itself."""
    from transformers.modeling_outputs import BaseModelOutput

    return {"encoder_outputs": BaseModelOutput(last_hidden_state=net.encoder(**given)[0])}


def _open_ended(given: Any, words: Any) -> Any:
    """Without the mark that ends a text: the caption is to go on from it."""
    asked_BL = given.get("input_ids")
    if asked_BL is not None and words.sep_token_id is not None and bool((asked_BL[:, -1] == words.sep_token_id).all()):
        given["input_ids"], given["attention_mask"] = asked_BL[:, :-1], given["attention_mask"][:, :-1]
    return given


def _room(net: Any) -> int | None:
    """How many tokens a small text model can say at most."""
    text = getattr(net.config, "decoder", None) or net.config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    return positions - 1 if net.config.model_type == _PAIR and positions else None


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def _quantisation(options: Options) -> Any:
    if options.quantised == "none":
        return None
    from transformers import BitsAndBytesConfig

    if options.quantised == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _library(error: ImportError) -> str:
    text = str(error).lower()
    for library in ("torchvision", "timm", "einops", "sentencepiece", "protobuf", "tiktoken"):
        if library in text:
            return library
    return error.name or _line(error)


def _line(error: BaseException) -> str:
    """The library's own first line, without the advice that follows it."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:200] + "..."
