"""What the page says in numbers and sentences."""

import time

import pytest

from webui.words import count, duration, gigabytes, moment, sentence


@pytest.mark.parametrize(
    ("clause", "told"),
    [
        ("the name is empty: give one", "The name is empty: give one."),
        ("won't do", "Won't do."),
        ("Done.", "Done."),
        ("is it there?", "Is it there?"),
        ("holiday.png does not say how it was drawn", "holiday.png does not say how it was drawn."),
        ("train.steps = 0: give more", "train.steps = 0: give more."),
        ("/tmp/x is not there", "/tmp/x is not there."),
        ("", "."),
    ],
)
def test_a_clause_becomes_a_sentence(clause: str, told: str) -> None:
    """A file's name or a setting's key is told as it is spelt, or nobody finds it."""
    assert sentence(clause) == told


def test_times_and_sizes_are_said_as_a_person_says_them() -> None:
    said = [duration(seconds) for seconds in (0.68, 3.14, 12, 310, 1500, 5400, 7200)]
    assert said == ["0.68 s", "3.1 s", "12 s", "5 min 10 s", "25 min", "1 h 30 min", "2 h"]
    assert [gigabytes(round(size * 2**30)) for size in (0.5, 8.1, 12)] == ["0.5", "8.1", "12"]
    assert [count(number, "picture") for number in (0, 1, 1200)] == ["0 pictures", "1 picture", "1,200 pictures"]


def test_a_moment_names_the_day_unless_it_is_today() -> None:
    now = time.time()
    assert moment(now).startswith("today ")
    assert "today" not in moment(now - 3 * 86400)
    assert str(time.localtime(now - 800 * 86400).tm_year) in moment(now - 800 * 86400)
