"""Learned words travel in LoRA files under the names that other programs look for, and come back the same."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from diffusion_lora.errors import OutputError
from diffusion_lora.lora.adapter import Adapter, LowRank, read_adapter, write_adapter, write_word
from diffusion_lora.lora.algebra import Term, merge, resize
from diffusion_lora.lora.plain import Cut

SD = {"te": torch.randn(2, 768)}
XL = {"te1": torch.randn(2, 768), "te2": torch.randn(2, 1280)}


def adapter(words: dict[str, dict[str, Tensor]], width: int = 768) -> Adapter:
    key = "unet.down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return Adapter({key: LowRank(torch.randn(4, width), torch.randn(640, 4), 4.0)}, {}, words=words)


@pytest.mark.parametrize(
    ("vectors", "width", "names"),
    [
        (SD, 768, {"bundle_emb.zib.string_to_param.*"}),
        (XL, 2048, {"bundle_emb.zib.clip_l", "bundle_emb.zib.clip_g"}),
    ],
)
def test_a_word_is_bundled_as_a1111_reads_it_and_reads_back(
    tmp_path: Path, vectors: dict[str, Tensor], width: int, names: set[str]
) -> None:
    """A1111 takes what follows `bundle_emb.NAME.` for the content of an embedding file of that name."""
    mine = adapter({"zib": vectors}, width)
    write_adapter(mine, tmp_path / "a.safetensors", dtype="fp32")
    written = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert {name for name in written if not name.startswith("lora_")} == names
    back = read_adapter(tmp_path / "a.safetensors")
    assert back.allclose(mine)
    assert not back.unread
    assert not back.allclose(adapter({}, width))


@pytest.mark.parametrize(("vectors", "names"), [(SD, {"emb_params"}), (XL, {"clip_l", "clip_g"})])
def test_a_word_alone_is_an_embedding_file(tmp_path: Path, vectors: dict[str, Tensor], names: set[str]) -> None:
    write_word(vectors, tmp_path / "embeddings" / "zib.safetensors")
    written = safetensors.torch.load_file(tmp_path / "embeddings" / "zib.safetensors")
    assert written.keys() == names
    assert {tuple(tensor.shape) for tensor in written.values()} == {tuple(tensor.shape) for tensor in vectors.values()}


def test_what_cannot_hold_a_word_says_so_and_what_can_keeps_it(tmp_path: Path) -> None:
    mine, other = adapter({"zib": SD}), adapter({"zib": {"te": torch.zeros(1, 768)}, "zab": SD})
    with pytest.raises(OutputError, match="a PEFT file cannot hold the learned word zib"):
        write_adapter(mine, tmp_path / "a.safetensors", form="peft")
    assert resize(mine, Cut(rank=2)).adapter.words == {"zib": SD}
    merged = merge([Term(mine, 1.0, "mine"), Term(other, 1.0, "other")], "concat")
    assert merged.adapter.words == {"zib": SD, "zab": SD}
    assert "the learned word 'zib' of other is left out: another one has it too" in merged.notes
