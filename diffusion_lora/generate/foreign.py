"""Settings as Fooocus, InvokeAI and ComfyUI write them, as far as they are plain. No torch.

Each reader gives what a request needs and says what it had to leave out. Samplers and LoRAs are known by name alone,
as in an infotext. ComfyUI writes a graph: it is read where one sampler's inputs lead straight to prompts, adapters and
a size; what leads elsewhere is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.samplers import SAMPLERS, sampler_named

MAX_NODES = 5000

_NAMES = {
    "euler_ancestral": "euler_a", "dpm_2": "dpm2", "kdpm_2": "dpm2", "dpm_2_ancestral": "dpm2_a",
    "kdpm_2_a": "dpm2_a", "dpmpp_2m": "dpm++_2m", "dpmpp_2m_sde": "dpm++_2m_sde", "dpmpp_3m_sde": "dpm++_3m_sde",
    "dpmpp_sde": "dpm++_sde", "dpmpp_2s": "dpm++_2s", "uni_pc": "unipc", "pndm": "plms",
}  # fmt: skip


@dataclass
class Found:
    """What was found; `told` are sentences about what was not understood."""

    program: str
    values: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def request(self) -> Request:
        """Raises PromptError when a value cannot be drawn."""
        return Request(**self.values)

    def take_sampler(self, name: object, schedule: object = "") -> None:
        """Ours of another program's names; where there is none the default stays, and that is told."""
        plain = re.sub(r"(_gpu|_cfg_pp)$", "", str(name))
        if plain.endswith("_k"):
            plain, schedule = plain[:-2], "karras"
        ours = _NAMES.get(plain, plain)
        for wanted in (f"{ours}_{str(schedule).replace('sgm_uniform', 'sgm')}", ours):
            if wanted in SAMPLERS:
                self.values["sampler"] = sampler_named(wanted).name
                return
        self.told.append(f"the sampler {name} is not offered here")

    def take(self, name: str, value: object, kind: type) -> None:
        """A number, if it is one."""
        try:
            self.values[name] = kind(value)
        except (TypeError, ValueError, OverflowError):
            self.told.append(f"{name} is {str(value)[:40]!r}, which is no number")

    def take_lora(self, name: object, strength: object, text_strength: object = None) -> None:
        """One adapter by the name of its file."""
        plain = str(name).replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
        try:
            text = None if text_strength is None or text_strength == strength else float(str(text_strength))
            use = LoraUse(plain, Path(f"{plain}.safetensors"), float(str(strength)), text)
        except (ValueError, PromptError):
            self.told.append(f"the strength of the LoRA {plain} is no number")
            return
        self.values["loras"] = (*self.values.get("loras", ()), use)


def read_fooocus(values: Mapping[str, Any]) -> Found:
    """Fooocus' own scheme: one JSON object."""
    found = Found("Fooocus", {"prompt": str(values.get("prompt", "")), "prompt_syntax": "weighted"})
    found.values["negative_prompt"] = str(values.get("negative_prompt", ""))
    _take_numbers(found, values, {"steps": ("steps", int), "seed": ("seed", int), "guidance_scale":
                                  ("guidance_scale", float), "clip_skip": ("clip_skip", int)})  # fmt: skip
    if sides := re.findall(r"\d+", str(values.get("resolution", "")))[:2]:
        found.take("width", sides[0], int)
        found.take("height", sides[-1], int)
    if "sampler" in values:
        found.take_sampler(values["sampler"], values.get("scheduler", ""))
    for entry in _listed(values.get("loras")):
        if isinstance(entry, list) and len(entry) >= 2:
            found.take_lora(entry[0], entry[1])
    for key, value in values.items():
        if key.startswith("lora_combined_"):
            name, _, strength = str(value).rpartition(" : ")
            found.take_lora(name, strength)
    if values.get("styles") not in (None, "[]", []):
        found.told.append("Fooocus' styles added words that are not taken over")
    return found


def read_invokeai(values: Mapping[str, Any]) -> Found:
    """InvokeAI 3 and later: `invokeai_metadata`."""
    found = Found("InvokeAI", {"prompt": str(values.get("positive_prompt") or "")})
    found.values["negative_prompt"] = str(values.get("negative_prompt") or "")
    _take_numbers(found, values, {"steps": ("steps", int), "seed": ("seed", int), "width": ("width", int),
                                  "cfg_scale": ("guidance_scale", float), "height": ("height", int)})  # fmt: skip
    if values.get("scheduler"):
        found.take_sampler(values["scheduler"])
    if isinstance(values.get("clip_skip"), int):
        found.values["clip_skip"] = values["clip_skip"] + 1  # there 0 is the last layer
    for entry in _listed(values.get("loras")):
        if isinstance(entry, dict):
            model = entry.get("model") or entry.get("lora") or {}
            name = model.get("name") or model.get("model_name") if isinstance(model, dict) else model
            found.take_lora(name, entry.get("weight", 1))
    if values.get("generation_mode") not in (None, "txt2img", "sdxl_txt2img"):
        found.told.append(f"it was drawn from another picture ({values['generation_mode']}), which is not in the file")
    return found


def read_comfyui(graph: Mapping[str, Any]) -> Found:
    """ComfyUI's `prompt`: node -> class and inputs. Raises PromptError when no sampler is in it."""
    nodes = {
        str(key): node
        for key, node in list(graph.items())[:MAX_NODES]
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    samplers = [node for node in nodes.values() if str(node.get("class_type", "")).startswith("KSampler")
                and "positive" in node["inputs"]]  # fmt: skip
    if not samplers:
        raise PromptError("the ComfyUI graph has no plain sampler (KSampler) to read settings from")
    found = Found("ComfyUI")
    if len(samplers) > 1:
        found.told.append(f"the graph has {len(samplers)} samplers; the first is taken")
    inputs = samplers[0]["inputs"]
    found.values["prompt"] = _text(nodes, inputs.get("positive"), found, "prompt")
    found.values["negative_prompt"] = _text(nodes, inputs.get("negative"), found, "negative prompt")
    seed = inputs.get("seed", inputs.get("noise_seed"))
    for name, value, kind in (("seed", seed, int), ("steps", inputs.get("steps"), int),
                              ("guidance_scale", inputs.get("cfg"), float)):  # fmt: skip
        if isinstance(value, list):
            found.told.append(f"{name} comes from another node and is not taken over")
        elif value is not None:
            found.take(name, value, kind)
    if isinstance(inputs.get("sampler_name"), str):
        found.take_sampler(inputs["sampler_name"], inputs.get("scheduler", ""))
    for node in _upstream(nodes, inputs.get("model"), ("model",)):
        loader = str(node.get("class_type", ""))
        own = node["inputs"]
        if loader in ("LoraLoader", "LoraLoaderModelOnly"):
            text = own.get("strength_clip", 0.0 if loader.endswith("ModelOnly") else None)
            found.take_lora(own.get("lora_name"), own.get("strength_model", 1), text)
        elif "ckpt_name" not in own:
            found.told.append(f"the node {loader} is not understood")
    found.values["loras"] = found.values.get("loras", ())[::-1]  # the first loader stands farthest up
    _take_size(nodes, inputs.get("latent_image"), found)
    return found


def _take_numbers(found: Found, values: Mapping[str, Any], names: Mapping[str, tuple[str, type]]) -> None:
    for theirs, (ours, kind) in names.items():
        if values.get(theirs) is not None:
            found.take(ours, values[theirs], kind)


def _take_size(nodes: Mapping[str, Any], link: object, found: Found) -> None:
    for node in _upstream(nodes, link, ("samples", "pixels", "image")):
        own = node["inputs"]
        if isinstance(own.get("width"), int) and isinstance(own.get("height"), int):
            found.values["width"], found.values["height"] = own["width"], own["height"]
            if node.get("class_type") != "EmptyLatentImage":
                found.told.append(f"the size comes from the node {node.get('class_type')}")
            return
        if node.get("class_type") in ("VAEEncode", "LoadImage", "VAEEncodeForInpaint"):
            found.told.append("it was drawn from another picture, which is not in the file")
            return


def _text(nodes: Mapping[str, Any], link: object, found: Found, what: str) -> str:
    for node in _upstream(nodes, link, ("conditioning", "text", "conditioning_1", "string", "value")):
        if node.get("class_type") == "CLIPSetLastLayer":
            continue
        for name in ("text", "string", "value", "text_g"):
            if isinstance(node["inputs"].get(name), str):
                clip = node["inputs"].get("clip")
                for layer in _upstream(nodes, clip, ("clip",)):
                    stop = layer["inputs"].get("stop_at_clip_layer")
                    if isinstance(stop, int) and stop < 0:
                        found.values["clip_skip"] = -stop
                return str(node["inputs"][name])
        if str(node.get("class_type", "")).startswith("Conditioning"):
            found.told.append(f"the {what} is put together by {node['class_type']}; its first part is taken")
    found.told.append(f"the {what} is not plain text")
    return ""


def _upstream(nodes: Mapping[str, Any], link: object, names: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """The nodes from a link on, each through the first of these inputs that is a link; circles end."""
    seen: set[str] = set()
    while isinstance(link, list) and link and (key := str(link[0])) in nodes and key not in seen:
        seen.add(key)
        node = nodes[key]
        yield node
        link = next((node["inputs"][name] for name in names if isinstance(node["inputs"].get(name), list)), None)


def _listed(value: object) -> list[Any]:
    """A list, or the JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else []
