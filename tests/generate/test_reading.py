"""Settings come out of everybody's pictures, and damaged ones end in a sentence: soon, and in little memory."""

import gzip
import json
import os
import random
import struct
import tracemalloc
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_lora.errors import OutputError, PromptError
from diffusion_lora.generate.company import Company
from diffusion_lora.generate.embedded import exif_of, texts_in
from diffusion_lora.generate.infotext import parse_infotext, to_json, write_infotext
from diffusion_lora.generate.picture import Picture, save_pictures
from diffusion_lora.generate.reading import read_picture, read_request
from diffusion_lora.generate.request import LoraUse, Request
from tests.generate.test_infotext import DATA

CABIN = LoraUse("cabin", Path("cabin.safetensors"), 0.7)
REQUEST = Request("a red cat", "blurry", 7, 25, 6.0, 512, 512, "dpm++_2m_karras", (CABIN,))
INFOTEXT = write_infotext(REQUEST)


def png(path: Path, texts: Mapping[str, str], image: Image.Image | None = None) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    (image or Image.new("RGB", (8, 8))).save(path, pnginfo=info)
    return path


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data is not on this machine")
def test_every_real_file_is_parsed_as_its_maker_means_it() -> None:
    table = json.loads((DATA / "expected.json").read_text())
    for name, row in table.items():
        expected = table[row["same_as"]] if "same_as" in row else row
        if "prompt" not in expected:
            continue
        path = DATA / name
        texts = {"": path.read_text()} if path.suffix == ".txt" else texts_in(path)
        (text,) = [text for text in texts.values() if "Steps: " in text]
        info = parse_infotext(text)
        assert (info.prompt, info.negative_prompt) == (expected["prompt"], expected["negative_prompt"]), name
        assert {key: info.parameters.get(key) for key in expected["params"]} == expected["params"], name


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data is not on this machine")
def test_a_real_graph_of_comfyui_is_read_as_far_as_it_is_plain() -> None:
    reading = read_picture(DATA / "comfyui_img2img_cropped.png")
    assert reading.program == "ComfyUI"
    assert reading.request.prompt
    assert any("another picture" in note for note in reading.told)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_jpeg_and_webp_carry_both_texts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.new("RGB", (16, 16)).save(path, exif=exif_of(INFOTEXT, to_json(REQUEST)))
    assert read_request(path) == REQUEST
    Image.new("RGB", (16, 16)).save(path, exif=exif_of(INFOTEXT, ""))
    reading = read_picture(path)
    assert (reading.request, reading.program) == (REQUEST, "AUTOMATIC1111")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_what_we_save_reads_back_whole(tmp_path: Path, kind: str) -> None:
    request = replace(REQUEST, prompt="a réd cat, 猫", steps=30)
    company = Company(4, True, 0, 0, 2, (("~/x.safetensors", "ab"),))
    picture = Picture(Image.new("RGB", (16, 16)), request, torch.zeros(1), company=company)
    (path,) = save_pictures(tmp_path, [picture], kind)
    assert path.name == f"00001-7.{kind}"
    reading = read_picture(path)
    assert (reading.request, reading.company, reading.program) == (request, company, "diffusion-lora")
    with pytest.raises(OutputError, match="gif"):
        save_pictures(tmp_path, [picture], "gif")


@pytest.mark.parametrize("mode", ["alpha", "alpha packed", "rgb", "rgb packed"])
def test_text_hidden_in_the_pixels_is_found(tmp_path: Path, mode: str) -> None:
    """Written as the extensions write it: column by column, lowest bit, signature, length in bits, text."""
    packed, in_alpha = mode.endswith("packed"), mode.startswith("alpha")
    payload = gzip.compress(INFOTEXT.encode()) if packed else INFOTEXT.encode()
    signature = b"stealth_" + (b"png" if in_alpha else b"rgb") + (b"comp" if packed else b"info")
    bits = np.unpackbits(np.frombuffer(signature + struct.pack(">I", 8 * len(payload)) + payload, np.uint8))
    pixels = np.full((64, 96, 4), 255, np.uint8)
    index = 0
    for x in range(96):
        for y in range(64):
            for channel in (3,) if in_alpha else (0, 1, 2):
                if index < len(bits):
                    pixels[y, x, channel] = pixels[y, x, channel] & 0xFE | bits[index]
                    index += 1
    assert index == len(bits)
    path = tmp_path / "hidden.png"
    Image.fromarray(pixels if in_alpha else pixels[..., :3]).save(path)
    assert read_request(path) == REQUEST


def test_fooocus_and_invokeai_and_comfyui(tmp_path: Path) -> None:
    fooocus = {"prompt": "a cat", "negative_prompt": "dog", "steps": 30, "resolution": "(1152, 896)", "seed": "9",
               "guidance_scale": 4.0, "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "styles": "['Fooocus V2']",
               "loras": [["sd_xl_offset", 0.1, "abc"]]}  # fmt: skip
    reading = read_picture(png(tmp_path / "f.png", {"parameters": json.dumps(fooocus), "fooocus_scheme": "fooocus"}))
    request = reading.request
    assert (request.prompt, request.negative_prompt, request.steps, request.seed) == ("a cat", "dog", 30, 9)
    assert (request.width, request.height, request.sampler) == (1152, 896, "dpm++_2m_sde_karras")
    assert [(use.name, use.strength) for use in request.loras] == [("sd_xl_offset", 0.1)]
    assert any("styles" in note for note in reading.told)

    invoke = {"generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "", "width": 512,
              "height": 768, "seed": 5, "cfg_scale": 7.5, "steps": 20, "scheduler": "dpmpp_2m_k",
              "loras": [{"model": {"name": "ink", "hash": "x"}, "weight": 0.75}]}  # fmt: skip
    request = read_request(png(tmp_path / "i.png", {"invokeai_metadata": json.dumps(invoke)}))
    assert (request.width, request.height, request.guidance_scale) == (512, 768, 7.5)
    assert request.sampler == "dpm++_2m_karras"
    assert [(use.name, use.strength) for use in request.loras] == [("ink", 0.75)]

    def lora(name: str, unet: float, text: float, source: str) -> dict[str, object]:
        inputs = {"lora_name": name, "strength_model": unet, "strength_clip": text}
        return {"class_type": "LoraLoader", "inputs": {**inputs, "model": [source, 0], "clip": [source, 1]}}

    comfy = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler_ancestral",
              "scheduler": "normal", "denoise": 1, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0],
              "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["12", 0]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["12", 0]}},
        "10": lora("first.safetensors", 0.5, 0.5, "4"),
        "11": lora("deep/second.safetensors", -0.5, 0.25, "10"),
        "12": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["11", 1]}},
    }  # fmt: skip
    reading = read_picture(png(tmp_path / "c.png", {"prompt": json.dumps(comfy), "workflow": "{}"}))
    request = reading.request
    assert not reading.told
    assert (request.prompt, request.negative_prompt, request.seed, request.sampler) == ("a cat", "dog", 5, "euler_a")
    assert (request.width, request.height, request.clip_skip, request.guidance_scale) == (512, 640, 2, 8.0)
    assert [(use.name, use.strength, use.text_strength) for use in request.loras] == [
        ("first", 0.5, None), ("second", -0.5, 0.25),
    ]  # fmt: skip
    comfy["10"]["inputs"]["model"] = ["11", 0]  # type: ignore[index]
    assert read_picture(png(tmp_path / "circle.png", {"prompt": json.dumps(comfy)})).request.prompt == "a cat"


def chunk(kind: bytes, data: bytes, *, wrong_sum: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong_sum)


def mutated(chance: random.Random, texts: list[bytes]) -> bytes:
    """A small PNG with damaged text chunks: bits turned, cut, lengths that lie, bombs, garbage around."""
    rows = zlib.compress(b"".join(b"\0" + bytes(24) for _ in range(8)))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))]
    for _ in range(chance.randrange(1, 4)):
        text = bytearray(chance.choice(texts))
        for _ in range(chance.randrange(6)):
            text[chance.randrange(len(text))] = chance.randrange(256)
        if chance.random() < 0.3:
            text = text[: chance.randrange(len(text))]
        kind, keyword = chance.choice((b"tEXt", b"iTXt", b"zTXt", b"eXIf")), chance.choice(
            (b"parameters", b"diffusion_lora", b"prompt", b"invokeai_metadata", b"", b"x" * 90)
        )  # fmt: skip
        if kind == b"zTXt":
            data = keyword + b"\0\0" + zlib.compress(bytes(text[:4000]) * chance.choice((1, 1, 1, 600)), 1)
        elif kind == b"iTXt":
            data = keyword + b"\0" + bytes([chance.randrange(2), 0]) + b"\0\0" + bytes(text)
        else:
            data = keyword + b"\0" + bytes(text) if kind == b"tEXt" else bytes(text)
        made = bytearray(chunk(kind, data, wrong_sum=chance.random() < 0.05))
        if chance.random() < 0.1:
            made[: 4] = struct.pack(">I", chance.randrange(2**32))
        parts.append(bytes(made))
    parts += [chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    if chance.random() < 0.3:
        parts[1], parts[-2] = parts[-2], parts[1]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_damaged_files(tmp_path: Path) -> None:
    """A tenth of the 10 000 that `LORA_DAMAGED_FILES=10000` makes of it; none may end in anything but a sentence."""
    chance = random.Random(11)
    texts = [INFOTEXT.encode(), to_json(REQUEST).encode(), exif_of(INFOTEXT, to_json(REQUEST)), b"{" * 3000,
             json.dumps({"3": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "seed": 1}}}).encode(),
             b'{"positive_prompt": "a", "loras": [{"model": 3}], "steps": "x"}', b"[" * 100_000]  # fmt: skip
    path = tmp_path / "damaged.png"
    count = int(os.environ.get("LORA_DAMAGED_FILES", "1000"))
    read = refused = 0
    sentences = set[str]()
    slowest = 0.0
    tracemalloc.start()
    for _ in range(count):
        path.write_bytes(mutated(chance, texts))
        began = perf_counter()
        try:
            read_picture(path)
            read += 1
        except PromptError as error:
            sentences.add(str(error))
            refused += 1
        slowest = max(slowest, perf_counter() - began)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(read, refused) > count / 50
    assert not [sentence for sentence in sentences if "\n" in sentence]
    assert slowest < 5
    assert peak < 200e6
