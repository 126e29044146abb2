import mpmath
import pytest
import torch

from gradexp.exact.scaled import ORDINARY, scaled

SIZES = [0, 3, -3, ORDINARY - 10, ORDINARY + 10, -ORDINARY - 10, 5000, -5000, 2**40]


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_exponents(seed=1, exponents=tuple(SIZES)):
    """One network, with a sample of each size."""
    return scaled(drawn(1, len(exponents), 4, seed=seed), torch.tensor(exponents).double()[None, :, None])


def exact(value, exponent):
    return [
        [mpmath.mpf(v) * mpmath.mpf(2) ** int(e) for v in row]
        for row, e in zip(value[0].tolist(), exponent[0].flatten().tolist(), strict=True)
    ]


def assert_equal(got, expected, rel=1e-14):
    for row, other in zip(exact(got.value, got.exponent), expected, strict=True):
        scale = max(abs(v) for v in other)
        assert all(abs(a - b) <= rel * scale for a, b in zip(row, other, strict=True))


@pytest.fixture(autouse=True)
def _enough_digits():
    with mpmath.workdps(60):
        yield


def test_numbers_of_any_size_are_held_exactly():
    value, exponents = drawn(1, len(SIZES), 4), torch.tensor(SIZES).double()[None, :, None]
    held = scaled(value, exponents)
    assert exact(held.value, held.exponent) == exact(value, exponents)
    assert torch.equal(held.largest, held.value.abs().amax(dim=2, keepdim=True))
    ordinary = exponents.abs() < ORDINARY
    assert not held.exponent[ordinary].any()
    others = held.largest[~ordinary]
    assert ((others >= 0.5) & (others < 1)).all()


@pytest.mark.parametrize("factor", [1.0, -1e300, 1e-300, 5e-324])
def test_products_with_a_number_are_exact_to_rounding(factor):
    held = with_exponents()
    got = held.times(torch.full((1, 1, 1), factor, dtype=torch.float64))
    assert_equal(got, [[v * mpmath.mpf(factor) for v in row] for row in exact(held.value, held.exponent)])


def test_sums_keep_what_the_larger_one_leaves():
    one = with_exponents()
    for shift in range(len(SIZES)):
        other = with_exponents(seed=2, exponents=(*SIZES[shift:], *SIZES[:shift]))
        pairs = zip(exact(one.value, one.exponent), exact(other.value, other.exponent), strict=True)
        assert_equal(one.plus(other), [[a + b for a, b in zip(*rows, strict=True)] for rows in pairs])


def test_nothing_is_a_neutral_element_of_sums_at_any_size():
    one, nothing = with_exponents(), scaled(torch.zeros(1, len(SIZES), 4, dtype=torch.float64))
    for total in (one.plus(nothing), nothing.plus(one)):
        assert exact(total.value, total.exponent) == exact(one.value, one.exponent)
    assert not nothing.plus(nothing).value.any()
    assert not one.times(torch.zeros(1, 1, 1, dtype=torch.float64)).value.any()


def test_mantissas_are_at_most_1_and_samples_together_share_an_exponent():
    one = with_exponents(exponents=(3, 600, 900, -200))
    value, exponent = one.mantissas()
    assert value.abs().max() < 1
    assert exact(value, exponent) == exact(one.value, one.exponent)
    value, exponent = one.with_common_exponent()
    assert exponent.shape == (1, 1, 1)
    assert value.abs().max() < 1
    largest = max(abs(v) for row in exact(one.value, one.exponent) for v in row)
    for row, other in zip(exact(value, exponent.expand(1, 4, 1)), exact(one.value, one.exponent), strict=True):
        # What is 2**1074 times smaller than the largest is lost.
        assert all(abs(a - b) <= largest * mpmath.mpf(2) ** -1073 for a, b in zip(row, other, strict=True))


def test_log10_sizes_are_right_at_any_size():
    one = with_exponents()
    norm, largest = one.log10_sizes()
    rows = exact(one.value, one.exponent)
    norms = [float(mpmath.log10(mpmath.norm(row, 2))) for row in rows]
    assert norm[0].tolist() == pytest.approx(norms, rel=1e-14, abs=1e-13)
    assert largest[0].tolist() == pytest.approx([float(mpmath.log10(max(map(abs, row)))) for row in rows], abs=1e-13)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so_and_keeps_to_its_sample(bad):
    value = drawn(1, 2, 4)
    value[0, 0, 1] = bad
    one = scaled(value, torch.full((1, 2, 1), 5000.0).double())
    for result in (one, one.plus(one), one.times(torch.full((1, 1, 1), 3.0).double())):
        assert not result.value[0, 0].isfinite().all()
        assert result.value[0, 1].isfinite().all()
        assert result.exponent[0, 0] == 0
