"""Short names of modules stay different, and keep their numbers."""

import pytest

from gradexp.history.short_names import short_names, shown_name

BERT = [
    f"bert.encoder.layer.{block}.{role}"
    for block in range(12)
    for role in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
DENSE = [
    f"features.denseblock{block}.denselayer{layer}.conv{conv}"
    for block in range(1, 5)
    for layer in range(1, 25)
    for conv in (1, 2)
]


@pytest.mark.parametrize("names", [BERT, DENSE])
@pytest.mark.parametrize("width", [12, 18, 24, 40])
def test_no_two_names_become_alike_and_all_numbers_stay(names, width):
    short = short_names(names, width)
    assert len(set(short)) == len(names)
    for name, shown in zip(names, short, strict=True):
        numbers = [part for part in name.split(".")[:-1] if part[-1].isdecimal()]
        assert all(number.lstrip("abcdefghijklmnopqrstuvwxyz") in shown for number in numbers)


@pytest.mark.parametrize("names", [BERT, DENSE])
def test_names_are_as_long_as_the_room_allows(names):
    for width in (24, 30, 60):
        for name, shown in zip(names, short_names(names, width), strict=True):
            assert len(shown) == min(width, len(name))


def test_names_without_dots_keep_both_ends():
    assert short_names(["a_very_long_name_of_one_part"], 11) == ["a_ver…_part"]


def test_names_that_differ_in_the_middle_stay_whole():
    names = [f"{'a' * 20}{index}{'b' * 20}" for index in range(3)]
    assert short_names(names, 12) == names


def test_further_calls_of_a_module_have_their_numbers():
    assert [shown_name("cell", call) for call in (0, 1, 499)] == ["cell", "cell #2", "cell #500"]
