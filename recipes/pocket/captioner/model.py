"""The captioner's classes, all from transformers: LeViT sees, a small GPT-2 speaks, a word is a token.

LeViT (arXiv 2104.01136) begins with four convolutions, which a small set of pictures and a CPU can teach; of its stages
the first alone is used, so that every sixteenth of the picture keeps a token of its own. What is saved here is loaded
by `AutoModelForImageTextToText`, `AutoImageProcessor` and `AutoTokenizer`, as any other captioner is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LevitConfig,
    LevitModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from recipes.pocket.captioner.words import WORDS
from recipes.pocket.judge.model import Labels, Readings

PICTURE_PX = 128
MAX_TOKENS = 32
_WIDTH, _BLOCKS, _HEADS = 192, 3, 6
_SPEECH_WIDTH, _SPEECH_LAYERS = 128, 2


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; an unknown word is [UNK]."""
    specials = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*specials, *WORDS))}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)])
    words.decoder = decoders.WordPiece(cleanup=True)  # takes the space before a comma away
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]",
                                   unk_token="[UNK]", model_max_length=MAX_TOKENS)


def build(words: PreTrainedTokenizerFast) -> VisionEncoderDecoderModel:
    """The untrained captioner; its random weights come from torch's global seed."""
    eyes = LevitModel(LevitConfig(
        image_size=PICTURE_PX, hidden_sizes=[_WIDTH, _WIDTH], num_attention_heads=[_HEADS], depths=[_BLOCKS],
        key_dim=[_WIDTH // _HEADS], mlp_ratio=[2], attention_ratio=[2], down_ops=[[""]],
        hidden_size=_WIDTH))  # VisionEncoderDecoderModel asks for this name
    mouth = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(words), n_positions=MAX_TOKENS, n_embd=_SPEECH_WIDTH, n_layer=_SPEECH_LAYERS, n_head=4,
        add_cross_attention=True, is_decoder=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id))
    captioner = VisionEncoderDecoderModel(encoder=eyes, decoder=mouth)
    for config in (captioner.config, captioner.generation_config):
        config.decoder_start_token_id = words.bos_token_id
        config.bos_token_id = words.bos_token_id
        config.eos_token_id = words.eos_token_id
        config.pad_token_id = words.pad_token_id
    captioner.generation_config.max_length = MAX_TOKENS
    return captioner


def save(captioner: VisionEncoderDecoderModel, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in fp16, configuration, tokenizer and the picture's preparation."""
    captioner.to(torch.float16).save_pretrained(folder)
    captioner.float()
    words.save_pretrained(folder)
    ViTImageProcessor(size={"height": PICTURE_PX, "width": PICTURE_PX}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                      resample=2).save_pretrained(folder)


class Hints(nn.Module):
    """What the judge is asked, asked of the captioner's eyes while it learns (and never saved).

    Each kind of object has a map over the 8 x 8 tokens, its colour is read where the map is high; background, style and
    character are read from all of them. Words alone teach the same, many times as slowly.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.objects = nn.Linear(_WIDTH, len(labels.objects))
        nn.init.constant_(self.objects.bias, -3.0)  # most kinds are absent
        self.colours = nn.Linear(_WIDTH, len(labels.colours) + 1)
        self.scene = nn.ModuleList(nn.Linear(2 * _WIDTH, len(names) + 1)
                                   for names in (labels.backgrounds, labels.styles, labels.characters))

    def forward(self, seen_BNC: Tensor) -> Readings:
        maps = self.objects(seen_BNC).transpose(1, 2).float()
        where = maps.softmax(-1)
        pooled = torch.cat([seen_BNC.mean(1), seen_BNC.amax(1)], 1)
        background, style, character = (head(pooled).float() for head in self.scene)
        return Readings(objects=(where * maps).sum(-1),
                        colours=torch.einsum("bon,bnc->boc", where, self.colours(seen_BNC).float()),
                        backgrounds=background, styles=style, characters=character, features=pooled)
