"""Chunks: nothing is lost, nothing is too long, commas and BREAK cut, inversions stay whole."""

from diffusion_lora.prompt.chunks import Chunk, chunks
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.schedule import wording_at

COMMA = 0


def tokenize(text: str) -> list[int]:
    """A token a word, its length; a comma is 0."""
    return [COMMA if word == "," else len(word) for word in text.replace(",", " , ").split()]


def read(source: str, size: int = 5, **options: object) -> tuple[Chunk, ...]:
    return chunks(wording_at(parse(source), 1, 10), tokenize, size, comma_id=COMMA, **options)  # type: ignore[arg-type]


def test_the_empty_prompt_is_one_empty_chunk() -> None:
    assert read("") == (Chunk(),)


def test_plain_words_are_one_plain_chunk() -> None:
    (chunk,) = read("a bb ccc")
    assert chunk == Chunk((1, 2, 3), (1.0, 1.0, 1.0))
    assert chunk.is_plain


def test_long_prompts_go_on_in_the_next_chunk() -> None:
    read_ids = [chunk.ids for chunk in read("a bb ccc dddd eeeee ffffff a")]
    assert read_ids == [(1, 2, 3, 4, 5), (6, 1)]


def test_a_full_chunk_ends_at_its_last_comma() -> None:
    """A phrase is not torn: the words after the comma move to the next chunk."""
    assert [chunk.ids for chunk in read("a, bb ccc dddd eeeee")] == [(1, COMMA), (2, 3, 4, 5)]


def test_break_begins_a_chunk() -> None:
    assert [chunk.ids for chunk in read("a BREAK bb")] == [(1,), (2,)]
    assert [chunk.ids for chunk in read("a BREAK BREAK bb")] == [(1,), (), (2,)]


def test_weights_go_with_their_tokens() -> None:
    first, second = read("a (bb ccc:1.5) dddd eeeee (ffffff)")
    assert first.weights == (1.0, 1.5, 1.5, 1.0, 1.0)
    assert second == Chunk((6,), (1.1,))
    assert not first.is_plain


def test_an_inversion_is_as_many_tokens_as_it_has_vectors_and_stays_whole() -> None:
    inversions = {"bad-hand": (100, 101, 102)}
    assert [chunk.ids for chunk in read("a (Bad-Hand) bb", inversions=inversions)] == [(1, 100, 101, 102, 2)]
    assert [chunk.ids for chunk in read("a bb ccc bad-hand", inversions=inversions)] == [(1, 2, 3), (100, 101, 102)]
    assert [chunk.ids for chunk in read("xbad-handy", inversions=inversions)] == [(10,)]
