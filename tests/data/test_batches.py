"""Which picture comes when depends on (seed, step) alone, and everyone gets the turns that are theirs."""

from collections import Counter

from diffusion_lora.data.batches import Bucket, Chances, Selection, Share, make_buckets, select

PLAIN = Chances()
SQUARE, TALL = (64, 64), (48, 80)


def one(pictures: int) -> tuple[Bucket, ...]:
    return make_buckets([SQUARE] * pictures, [0] * pictures, [1.0], [False])


def steps(buckets: tuple[Bucket, ...], number: int, count: int, chances: Chances = PLAIN) -> list[Selection]:
    return [select(step, buckets, count=count, seed=0, chances=chances) for step in range(number)]


def test_a_step_is_the_same_whatever_came_before() -> None:
    chances = Chances(flip=True, caption_dropout=0.5, views=4, variants=16)
    buckets = make_buckets([SQUARE] * 5 + [TALL] * 3, [0] * 8, [1.0], [False])
    late = select(17, buckets, count=4, seed=3, chances=chances)
    for step in range(17):
        select(step, buckets, count=4, seed=3, chances=chances)
    assert select(17, buckets, count=4, seed=3, chances=chances) == late
    assert select(17, buckets, count=4, seed=4, chances=chances) != late


def test_the_order_of_a_set_of_one_shape_is_the_one_it_always_had() -> None:
    """Runs that were begun by an earlier version go on with the same pictures."""
    chosen = [select(step, one(5), count=3, seed=7, chances=PLAIN).indices for step in range(4)]
    assert chosen == [(4, 3, 1), (2, 0, 4), (2, 3, 0), (1, 1, 0)]


def test_every_picture_is_seen_equally_often_in_orders_that_differ() -> None:
    """A batch that straddles two rounds, or is larger than the set, must not favour anybody."""
    for count in (3, 5, 12):
        seen = [index for step in steps(one(5), 20, count) for index in step.indices]
        rounds = [tuple(seen[start : start + 5]) for start in range(0, len(seen), 5)]
        assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)
        assert len(set(rounds)) > len(rounds) / 2
        assert set(Counter(seen).values()) == {len(rounds)}


def test_a_step_holds_one_shape_and_shapes_come_in_proportion_and_evenly() -> None:
    buckets = make_buckets([SQUARE] * 9 + [TALL] * 3, [0] * 12, [1.0], [False])
    chosen = steps(buckets, 120, 4)
    for step in chosen:
        assert {index < 9 for index in step.indices} == {step.size == SQUARE}
    seen = Counter(index for step in chosen for index in step.indices)
    assert set(seen.values()) == {40}
    tall = [step.size == TALL for step in chosen]
    assert all(1 <= sum(tall[start : start + 8]) <= 3 for start in range(112))


def test_repeats_are_times_a_round_and_half_of_them_half_the_pictures() -> None:
    buckets = make_buckets([SQUARE] * 6, [0, 0, 1, 1, 2, 2], [1.0, 3.0, 0.5], [False] * 3)
    assert buckets[0].shares == (Share((0, 1), 2), Share((2, 3), 6), Share((4, 5), 1))
    seen = Counter(index for step in steps(buckets, 2, 9) for index in step.indices)
    assert seen == {0: 2, 1: 2, 2: 6, 3: 6, 4: 1, 5: 1}


def test_regularisation_takes_half_of_the_places_whatever_its_number() -> None:
    for kept in (1, 4, 9):
        buckets = make_buckets([SQUARE] * (4 + kept), [0] * 4 + [1] * kept, [2.0, 1.0], [False, True])
        seen = Counter(index for step in steps(buckets, 9, 16) for index in step.indices)
        assert sum(times for index, times in seen.items() if index >= 4) == 72
        assert {times for index, times in seen.items() if index >= 4} == {72 // kept}


def test_mirrors_dropped_captions_views_and_variants_come_at_their_rates_and_not_unasked() -> None:
    asked = Chances(flip=True, caption_dropout=0.1, views=4, variants=5)
    chosen = steps(one(5), 500, 8, asked)
    assert abs(sum(sum(step.mirrored) for step in chosen) / 4000 - 0.5) < 0.03
    assert abs(sum(sum(step.uncaptioned) for step in chosen) / 4000 - 0.1) < 0.02
    for numbers, different in ((Counter(n for step in chosen for n in step.views), 4),
                               (Counter(n for step in chosen for n in step.variants), 5)):  # fmt: skip
        assert sorted(numbers) == list(range(different))
        assert min(numbers.values()) > 0.85 * 4000 / different
    plain = steps(one(5), 1, 8)[0]
    assert not any((*plain.mirrored, *plain.uncaptioned, *plain.views, *plain.variants))


def test_endless_variants_never_come_twice() -> None:
    numbers = [number for step in steps(one(5), 9, 8, Chances(variants=0)) for number in step.variants]
    assert len(set(numbers)) == len(numbers) == 72
