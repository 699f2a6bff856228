"""Stable Diffusion 1 and 2, pocket and any other base of their architecture: the verbs.

One text encoder (the last hidden state after its final norm; of Stable Diffusion 2's OpenCLIP the last layer was left
out at load), a UNet with cross-attention, a KL autoencoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusion_lora.families.model import Conditioning, Family, Model, Sizes
from diffusion_lora.families.vae import decode, encode_image


def encode_text(model: Model, prompts: Sequence[str]) -> Conditioning:
    """Hidden states [B, tokens, width] of the prompts; what goes beyond the encoder's length is cut off."""
    ids = model.tokenizers["te"](
        list(prompts), padding="max_length", max_length=model.max_tokens + 2, truncation=True, return_tensors="pt"
    ).input_ids
    return encode_ids(model, {"te": ids})


def encode_ids(model: Model, ids: Mapping[str, Tensor], clip_skip: int = 1) -> Conditioning:
    """Hidden states of token ids [B, tokens]: of the last layer, or of the `clip_skip`-th from the end, normed."""
    encoder = model.text_encoders["te"]
    if clip_skip == 1:
        return Conditioning({"hidden_BTC": encoder(ids["te"].to(model.device)).last_hidden_state})
    states = encoder(ids["te"].to(model.device), output_hidden_states=True).hidden_states
    return Conditioning({"hidden_BTC": final_norm(encoder)(states[-min(clip_skip, len(states) - 1)])})


def final_norm(encoder: Any) -> Any:
    """The norm behind the last layer; some versions of transformers nest the encoder once more."""
    return getattr(encoder, "text_model", encoder).final_layer_norm


def predict(model: Model, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
    """The UNet's output [B, C, h, w]: noise or velocity, as the base's scheduler config says."""
    dtype = model.dtype
    hidden_BTC = cond.tensors["hidden_BTC"].to(dtype)
    return model.unet(noisy.to(dtype), timesteps, encoder_hidden_states=hidden_BTC, return_dict=False)[0]


def tokens(model: Model, prompt: str) -> int:
    """How many tokens the prompt has, start and end marks apart."""
    return len(model.tokenizers["te"](prompt, add_special_tokens=False, verbose=False).input_ids)


def with_sizes(model: Model, cond: Conditioning, sizes: Sequence[Sizes]) -> Conditioning:
    """The same: this architecture is told nothing of sizes."""
    return cond


FAMILY = Family(
    name="sd",
    encode_text=encode_text,
    encode_ids=encode_ids,
    encode_image=encode_image,
    decode=decode,
    predict=predict,
    tokens=tokens,
    with_sizes=with_sizes,
)
