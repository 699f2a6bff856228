# ruff: noqa: C408 -- configurations read better as calls
"""Random models of every kind that writes captions, some thousand parameters each, saved as their authors save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion_lora.families.quiet import quiet

quiet("transformers")

import transformers as tf  # noqa: E402 -- after the silence
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402

SIDE = 32
WORDS = ["a", "cat", "dog", "red", "blue", "on", "the", "mat", "big", "small", "with", "hat", "and", "sky", "in", "of"]
SPECIALS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "<image>", "<loc_0>", "<od>", "</od>", "<ocr>", "</ocr>"]
_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TEXT, "num_hidden_layers": 1, "image_size": SIDE}


def words(*, ends: bool = False, **names: Any) -> Any:
    """A tokenizer of one token a word; BERT's kind `ends` every text with a token of its own."""
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIALS, *WORDS])}, unk_token="[UNK]"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    table.decoder = decoders.WordPiece(cleanup=True)
    form = "[BOS] $A [EOS]" if ends else "[BOS] $A"
    table.post_processor = processors.TemplateProcessing(form, special_tokens=[("[BOS]", 1), ("[EOS]", 2)])
    names |= {"sep_token": "[EOS]"} if ends else {}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]",
        additional_special_tokens=SPECIALS[4:], model_max_length=64, **names,
    )  # fmt: skip


def pictures(**settings: Any) -> Any:
    size = {"height": SIDE, "width": SIDE}
    return tf.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, **settings)


def blip() -> tuple[Any, Any]:
    text = dict(**_TEXT, vocab_size=len(SPECIALS + WORDS), encoder_hidden_size=16, bos_token_id=1, eos_token_id=2,
                sep_token_id=2, pad_token_id=0, max_position_embeddings=64)  # fmt: skip
    config = tf.BlipConfig(text_config=text, vision_config={**_VISION, "patch_size": 16}, projection_dim=16)
    return tf.BlipForConditionalGeneration(config), tf.BlipProcessor(pictures(), words(ends=True))


def blip2() -> tuple[Any, Any]:
    config = tf.Blip2Config(
        vision_config={**_VISION, "patch_size": 16},
        qformer_config={**_TEXT, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=dict(model_type="opt", vocab_size=len(SPECIALS + WORDS), hidden_size=16, ffn_dim=32,
                         word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, bos_token_id=1,
                         eos_token_id=2, pad_token_id=0, max_position_embeddings=128),
        num_query_tokens=4, image_token_index=4,
    )  # fmt: skip
    return tf.Blip2ForConditionalGeneration(config), tf.Blip2Processor(pictures(), words(), num_query_tokens=4)


def git() -> tuple[Any, Any]:
    config = tf.GitConfig(
        vision_config={**_VISION, "patch_size": 16}, **_TEXT, vocab_size=len(SPECIALS + WORDS), bos_token_id=1,
        eos_token_id=2, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    return tf.GitForCausalLM(config), tf.GitProcessor(pictures(), words(ends=True))


def florence() -> tuple[Any, Any]:
    config = tf.Florence2Config(
        vision_config=dict(embed_dim=[8, 16], depths=[1, 1], num_heads=[1, 2], num_groups=[1, 2], patch_size=[7, 3],
                           patch_stride=[4, 2], patch_padding=[3, 1], patch_prenorm=[False, True], window_size=4,
                           projection_dim=16, max_temporal_embeddings=4, max_position_embeddings=8),
        text_config=dict(model_type="bart", vocab_size=len(SPECIALS + WORDS), d_model=16, encoder_layers=1,
                         decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                         decoder_ffn_dim=32, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
                         pad_token_id=0, decoder_start_token_id=2, forced_bos_token_id=None, forced_eos_token_id=2),
        image_token_id=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    tokenizer = words(extra_special_tokens={"image_token": "<image>"})
    return tf.Florence2ForConditionalGeneration(config), tf.Florence2Processor(
        pictures(image_seq_length=17), tokenizer
    )


def llava(template: str | None = None) -> tuple[Any, Any]:
    config = tf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "num_hidden_layers": 2, "patch_size": 16},
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(SPECIALS + WORDS), "bos_token_id": 1,
                     "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128},
        image_token_index=4,
    )  # fmt: skip
    tokenizer = words(extra_special_tokens={"image_token": "<image>"})
    return tf.LlavaForConditionalGeneration(config), tf.LlavaProcessor(
        pictures(), tokenizer, patch_size=16, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    )  # fmt: skip


TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} the{% endif %}"
)

KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "blip": blip,
    "blip-2": blip2,
    "git": git,
    "florence2": florence,
    "llava": llava,
    "llava with a template": lambda: llava(TEMPLATE),
}


SEEDS = {"blip": 12, "blip-2": 2, "git": 4, "florence2": 22, "llava": 0, "llava with a template": 2, "pair": 0}
"""With which a miniature says something, and not the same of every picture."""


def pair() -> tuple[Any, list[Any]]:
    """A vision encoder and a text decoder, their picture processor and tokenizer side by side."""
    eyes = tf.ViTModel(tf.ViTConfig(**_VISION, patch_size=16))
    mouth = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=len(SPECIALS + WORDS), n_positions=24, n_embd=16, n_layer=1, n_head=2,
                      add_cross_attention=True, is_decoder=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )  # fmt: skip
    net = tf.VisionEncoderDecoderModel(encoder=eyes, decoder=mouth)
    for config in (net.config, net.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return net, [tf.ViTImageProcessor(size={"height": SIDE, "width": SIDE}), words()]


def save(kind: str, folder: Path) -> Path:
    """A miniature of a kind, with random weights that depend on nothing else."""
    torch.manual_seed(SEEDS.get(kind, 7))
    net, processor = pair() if kind == "pair" else KINDS[kind]()
    for parameter in net.parameters():  # larger than at the start of training: pictures make a difference
        torch.nn.init.normal_(parameter, std=0.4)
    net.save_pretrained(folder)
    for part in processor if isinstance(processor, list) else [processor]:
        part.save_pretrained(folder)
    return folder


def tagger(folder: Path, tags: list[tuple[str, int]], side: int = 16, *, outputs: int = 0) -> Path:
    """A WD14-style tagger: how sure it is of tag i is the sigmoid of a weighted mean of the picture's channels.

    The ONNX file is written by hand (protocol buffers are a tag, a length and bytes), so that no exporter is needed.
    """
    folder.mkdir(parents=True)
    rows = "".join(f"{i},{name},{category},1\n" for i, (name, category) in enumerate(tags))
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows)
    count = outputs or len(tags)
    generator = torch.Generator().manual_seed(3)
    weights = (torch.randn(3, count, generator=generator) / 300).numpy()
    graph = (
        _field(1, _node("ReduceMean", ["x"], ["m"], _field(5, _ints("axes", [1, 2])) + _field(5, _int("keepdims", 0))))
        + _field(1, _node("MatMul", ["m", "w"], ["l"]))
        + _field(1, _node("Sigmoid", ["l"], ["y"]))
        + _field(2, b"g")
        + _field(5, _floats("w", weights.shape, weights.tobytes()))
        + _field(11, _value("x", ["n", side, side, 3]))
        + _field(12, _value("y", ["n", count]))
    )
    model = _number(1, 7) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 13))
    (folder / "model.onnx").write_bytes(model)
    return folder


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _node(kind: str, given: list[str], made: list[str], attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name.encode()) for name in given) + b"".join(_field(2, name.encode()) for name in made)
    return names + _field(4, kind.encode()) + attributes


def _ints(name: str, values: list[int]) -> bytes:
    return _field(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, 7)


def _int(name: str, value: int) -> bytes:
    return _field(1, name.encode()) + _number(3, value) + _number(20, 2)


def _floats(name: str, shape: tuple[int, ...], data: bytes) -> bytes:
    return b"".join(_number(1, side) for side in shape) + _number(2, 1) + _field(8, name.encode()) + _field(9, data)


def _value(name: str, shape: list[int | str]) -> bytes:
    sides = b"".join(
        _field(1, _number(1, side) if isinstance(side, int) else _field(2, side.encode())) for side in shape
    )
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, sides)))
