"""Which picture comes when depends on (seed, step) alone, and everyone gets the same turn."""

from collections import Counter

from diffusion_lora.data.batches import select


def test_a_step_is_the_same_whatever_came_before() -> None:
    late = select(17, pictures=5, count=4, seed=3, flip=True, caption_dropout=0.5)
    for step in range(17):
        select(step, pictures=5, count=4, seed=3, flip=True, caption_dropout=0.5)
    assert select(17, pictures=5, count=4, seed=3, flip=True, caption_dropout=0.5) == late
    assert select(17, pictures=5, count=4, seed=4, flip=True, caption_dropout=0.5) != late


def test_every_picture_is_seen_equally_often_in_orders_that_differ() -> None:
    """A batch that straddles two rounds, or is larger than the set, must not favour anybody."""
    for count in (3, 5, 12):
        seen = [index for step in range(20) for index in select(step, pictures=5, count=count, seed=0).indices]
        rounds = [tuple(seen[start : start + 5]) for start in range(0, len(seen), 5)]
        assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)
        assert len(set(rounds)) > len(rounds) / 2
        assert set(Counter(seen).values()) == {len(rounds)}


def test_mirrors_and_dropped_captions_come_at_their_rates_and_not_unasked() -> None:
    steps = [select(step, pictures=5, count=8, seed=0, flip=True, caption_dropout=0.1) for step in range(500)]
    mirrored = sum(sum(step.mirrored) for step in steps) / 4000
    uncaptioned = sum(sum(step.uncaptioned) for step in steps) / 4000
    assert abs(mirrored - 0.5) < 0.03
    assert abs(uncaptioned - 0.1) < 0.02
    plain = select(0, pictures=5, count=8, seed=0)
    assert not any(plain.mirrored)
    assert not any(plain.uncaptioned)
