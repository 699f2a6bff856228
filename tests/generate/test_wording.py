"""Weighted and long prompts on pocket: plain words keep their bits, weights follow A1111's rule, chunks are joined."""

import torch

from diffusion_lora.families.family import Model, encode_ids, encode_text
from diffusion_lora.families.wording import encode_frames, frames, joined
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.schedule import wording_at


def states(model: Model, source: str, clip_skip: int = 1) -> torch.Tensor:
    """[T, C] of a prompt through the grammar."""
    read = frames(model, wording_at(parse(source), 1, 10))
    with torch.no_grad():
        rows = [encode_frames(model, [frame], clip_skip) for frame in read]
        return joined(read, rows).tensors["hidden_BTC"][0]


def plainly(model: Model, source: str) -> torch.Tensor:
    with torch.no_grad():
        return encode_text(model, [source]).tensors["hidden_BTC"][0]


def test_plain_words_have_the_very_bits_they_had_before_there_was_a_grammar(model: Model) -> None:
    for source in ("", "a big red cat on a sky background, ink style", "zib, - 1/2!", "  a  cat ", "[red::0] (cat:1)"):
        plain = source.replace("[red::0] (cat:1)", " cat")
        assert torch.equal(states(model, source), plainly(model, plain)), source


def test_a_weight_multiplies_its_tokens_and_the_mean_is_restored(model: Model) -> None:
    plain = plainly(model, "a red cat").double()
    weighted = states(model, "a (red:1.5) cat").double()
    factors = torch.ones(len(plain), 1, dtype=torch.float64)
    factors[2] = 1.5  # behind the start mark and "a"
    expected = plain * factors
    expected = expected * (plain.mean() / expected.mean())
    assert torch.allclose(weighted, expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(weighted, plain, atol=1e-3)


def test_break_and_long_prompts_are_frames_one_after_the_other(model: Model) -> None:
    parted = states(model, "a red cat BREAK a blue car")
    assert torch.equal(parted, torch.cat([plainly(model, "a red cat"), plainly(model, "a blue car")]))
    size = model.max_tokens + 2
    long = states(model, " ".join(["cat"] * (model.max_tokens + 5)))
    assert len(long) == 2 * size
    assert torch.equal(long[:size], plainly(model, " ".join(["cat"] * model.max_tokens)))
    assert torch.equal(long[size:], plainly(model, "cat cat cat cat cat"))


def test_clip_skip_reads_an_earlier_layer_under_the_same_norm(model: Model) -> None:
    encoder = model.text_encoders["te"]
    read = frames(model, wording_at(parse("a red cat"), 1, 10))
    ids = {"te": torch.tensor([read[0].ids["te"]])}
    with torch.no_grad():
        given = encoder(ids["te"], output_hidden_states=True)
        last = encode_ids(model, ids).tensors["hidden_BTC"]
        earlier = encode_ids(model, ids, 2).tensors["hidden_BTC"]
    assert torch.equal(last, given.last_hidden_state)
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    assert torch.equal(earlier, norm(given.hidden_states[-2]))
    assert not torch.allclose(earlier, last, atol=1e-3)
