import math
from fractions import Fraction

import mpmath
import pytest
import torch

from gradexp.numerics import norms
from gradexp.numerics.norms import log10_norm, rescale, scaled_norm, scaled_norms, scaled_rows, times_power_of_two

SIZES = {
    torch.float32: (1e-45, 1e-38, 1e-30, 2e-23, 1e-7, 1.0, 3e19, 1e30, 3.4e38),
    torch.bfloat16: (1e-40, 1e-38, 1e-30, 2e-23, 1e-7, 1.0, 3e19, 1e30, 3.3e38),
    torch.float16: (6e-8, 1e-6, 1e-3, 1.0, 300.0, 65504.0),
    torch.float64: (5e-324, 1e-310, 1e-200, 1e-100, 1.0, 1e100, 1e200, 1.7e308),
}
CASES = [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes]


@pytest.fixture(params=["by torch", "in C"], autouse=True)
def square_sum(request, monkeypatch):
    """Hold every test to both ways to add up squares."""
    function = request.getfixturevalue("in_c") if request.param == "in C" else None
    monkeypatch.setattr(norms, "_square_sum", function)


def exact_log10_norm(x):
    """Square and add in 60 decimal digits and with any exponent."""
    with mpmath.workdps(60):
        return float(mpmath.log10(mpmath.fsum(mpmath.mpf(v) ** 2 for v in x.double().flatten().tolist())) / 2)


def assert_is_the_exact_norm(x):
    assert log10_norm(x).item() == pytest.approx(exact_log10_norm(x), rel=1e-14, abs=1e-14)


def mixed(size, dtype, device="cpu", shape=(7, 3)):
    """Draw numbers of both signs whose sizes differ by a factor of up to four."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signs = 1 - 2 * (torch.arange(drawn.numel(), dtype=torch.float64).reshape(shape) % 2)
    return (signs * size * (1 - 0.75 * drawn)).to(dtype).to(device)


@pytest.mark.parametrize(("dtype", "size"), CASES, ids=str)
def test_norm_is_right_over_the_whole_range_of_a_format(dtype, size, device):
    x = mixed(size, dtype, device)
    assert x.isfinite().all()
    assert x.any()
    assert_is_the_exact_norm(x)


@pytest.mark.parametrize(("dtype", "size"), CASES, ids=str)
def test_norm_of_a_single_element_is_its_magnitude(dtype, size):
    x = torch.tensor([-size], dtype=dtype)
    with mpmath.workdps(40):
        exact = float(mpmath.log10(abs(mpmath.mpf(x.item()))))
    assert log10_norm(x).item() == pytest.approx(exact, rel=1e-14, abs=1e-14)


def test_norm_is_right_where_torch_gives_0_or_inf():
    """If torch gets this right one day (pytorch issue 193006), the documentation must change."""
    small, large = torch.full((4,), 2e-23), torch.full((4,), 2e19)
    assert torch.linalg.vector_norm(small) == 0
    assert torch.linalg.vector_norm(large) == math.inf
    assert log10_norm(small).item() == pytest.approx(math.log10(4e-23), rel=1e-8)
    assert log10_norm(large).item() == pytest.approx(math.log10(4e19), rel=1e-8)


def test_norm_of_elements_that_differ_by_more_than_the_range_is_that_of_the_larger():
    assert log10_norm(torch.tensor([1e300, 1e-300], dtype=torch.float64)).item() == pytest.approx(300, rel=1e-15)
    assert log10_norm(torch.tensor([1e38, 1e-45])).item() == pytest.approx(38, rel=1e-8)


@pytest.mark.parametrize("dtype", SIZES)
def test_exact_zeros_have_log_norm_minus_infinity(dtype, device):
    assert log10_norm(torch.zeros(5, dtype=dtype, device=device)).item() == -math.inf


@pytest.mark.parametrize("size", [20, 100_000])
@pytest.mark.parametrize("dtype", SIZES)
def test_one_infinity_or_nan_is_not_hidden(dtype, size, device):
    x = torch.ones(size, dtype=dtype, device=device)
    x[size // 2] = -math.inf
    assert log10_norm(x).item() == math.inf
    x[size // 3] = math.nan
    assert math.isnan(log10_norm(x).item())


def test_nothing_at_all_has_log_norm_minus_infinity():
    assert log10_norm(torch.empty(0)).tolist() == [-math.inf]
    assert log10_norm(torch.empty(3, 0), networks=3).tolist() == [-math.inf] * 3


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_count_with_their_magnitude(dtype):
    x = torch.tensor([3e-30 + 4e-30j, 0j], dtype=dtype)
    for same in (x, x.conj(), -x):
        assert log10_norm(same).item() == pytest.approx(math.log10(5e-30), rel=1e-8)


@pytest.mark.parametrize("dtype", SIZES)
def test_memory_layout_does_not_matter(dtype):
    x = mixed(1.0, dtype, shape=(6, 8))
    for view in (x.mT, x[:, ::2], x[1::2].mT, x[:1].expand(4, -1)):
        assert_is_the_exact_norm(view)


def test_zeros_that_take_no_memory_have_log_norm_minus_infinity():
    """Forward-mode autograd makes such tensors, which have no address to read from."""
    assert log10_norm(torch._efficientzerotensor(3)).item() == -math.inf


def test_a_number_without_dimensions_has_a_norm():
    assert log10_norm(torch.tensor(-1000.0)).item() == pytest.approx(3)


def test_norm_takes_no_part_in_autograd():
    assert not log10_norm(torch.ones(3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("shape", [(3, 4), (6, 2, 2), (3,)])
def test_each_network_has_the_norm_of_its_own_part(dtype, shape, device):
    x = mixed(1.0, dtype, device, shape)
    own = len(x) // 3
    x[:own] *= 1e-4
    x[-own:] *= 100
    norms = log10_norm(x, networks=3)
    assert norms.shape == (3,)
    assert norms.dtype == torch.float64
    assert norms.device == x.device
    expected = [exact_log10_norm(x[n * own : (n + 1) * own]) for n in range(3)]
    assert norms.tolist() == pytest.approx(expected, rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [(1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_003])
def test_norm_of_a_large_tensor_is_right(dtype, count):
    size = 1e-6 if dtype == torch.float16 else 1e-30
    x = mixed(size, dtype, shape=(2, count))
    x[1] *= 7
    exact = [math.log10(math.sqrt(math.fsum(v * v for v in row))) for row in x.double().tolist()]
    assert log10_norm(x, networks=2).tolist() == pytest.approx(exact, rel=1e-14)


def test_the_last_element_of_a_large_tensor_counts():
    x = torch.zeros(100_003)
    x[-1] = 1e-40
    assert log10_norm(x).item() == pytest.approx(-40, abs=1e-5)  # 1e-40 is subnormal: 16 bits are left


ROWS = [
    [5e-324, -1e-310, 0.0],
    [1.7e308, -1.0, 1e10],
    [0.1, -0.7, 3.0],
    [1.0, 0.5, 0.25],
    [2.0**-1022, 2.0**-1074, -(2.0**-1040)],
    [-1.7976931348623157e308, 2.0**1023, 1e300],
]


@pytest.mark.parametrize("row", ROWS)
def test_rescaling_is_exact_and_brings_the_largest_to_half_or_more(row, device):
    mantissas, exponents = rescale(torch.tensor([row], dtype=torch.float64, device=device), dim=1)
    assert exponents.shape == (1, 1)
    assert exponents.dtype == torch.float64
    assert 0.5 <= mantissas.abs().max().item() < 1
    for mantissa, value in zip(mantissas[0].tolist(), row, strict=True):
        assert Fraction(mantissa) * Fraction(2) ** int(exponents.item()) == Fraction(value)
        assert math.ldexp(mantissa, int(exponents.item())) == value


def test_each_slice_has_an_exponent_of_its_own(device):
    x = torch.tensor([[[1e-200, 3.0]], [[1e200, 0.0]]], dtype=torch.float64, device=device)
    mantissas, exponents = rescale(x, dim=2)
    assert exponents.flatten().tolist() == [math.frexp(3.0)[1], math.frexp(1e200)[1]]
    mantissas, exponents = rescale(x, dim=(0, 1))
    assert exponents.flatten().tolist() == [math.frexp(1e200)[1], math.frexp(3.0)[1]]
    assert mantissas[1, 0, 0].item() == math.frexp(1e200)[0]


def test_a_slice_of_zeros_or_infinities_keeps_exponent_0(device):
    rows = [[0.0, -0.0], [math.inf, 1.0], [math.nan, 1.0], [-math.inf, 1e-300]]
    x = torch.tensor(rows, dtype=torch.float64, device=device)
    mantissas, exponents = rescale(x, dim=1)
    assert exponents.flatten().tolist() == [0, 0, 0, 0]
    assert torch.equal(mantissas.nan_to_num(9.0, math.inf, -math.inf), x.nan_to_num(9.0, math.inf, -math.inf))


@pytest.mark.parametrize("exponent", [-2200, -2098, -1500, -1074, -1, 0, 1, 1074, 1500, 2040])
@pytest.mark.parametrize("value", [1.0, -0.75, 5e-324, 1.7976931348623157e308, 2.0**-1022])
def test_multiplying_by_a_power_of_two_equals_ldexp(value, exponent, device):
    product = times_power_of_two(
        torch.tensor([value], dtype=torch.float64, device=device),
        torch.tensor([float(exponent)], dtype=torch.float64, device=device),
    )
    try:
        expected = math.ldexp(value, exponent)
    except OverflowError:
        expected = math.copysign(math.inf, value)
    assert product.item() == expected


@pytest.mark.parametrize("exponent", [2200.0, -2200.0, 1e6, -1e6, math.inf, -math.inf])
def test_no_power_of_two_turns_zero_into_nan(exponent, device):
    zeros = torch.tensor([0.0, -0.0], dtype=torch.float64, device=device)
    product = times_power_of_two(zeros, torch.tensor(exponent, dtype=torch.float64, device=device))
    assert product.tolist() == [0.0, 0.0]


def test_a_large_power_of_two_overflows_and_a_small_one_underflows():
    ones = torch.ones(2, dtype=torch.float64)
    exponents = torch.tensor([2200.0, -2200.0], dtype=torch.float64)
    assert times_power_of_two(ones, exponents).tolist() == [math.inf, 0.0]


def test_exp2_of_a_whole_number_is_exact(device):
    """Every exactness claim of the library rests on this property of the device's exp2."""
    exponents = torch.arange(-1074, 1024, dtype=torch.float64)
    expected = torch.tensor([math.ldexp(1.0, e) for e in range(-1074, 1024)], dtype=torch.float64)
    assert torch.equal(torch.exp2(exponents.to(device)).cpu(), expected)


def test_a_sparse_tensor_has_the_norm_of_its_sum() -> None:
    indices = torch.tensor([[0, 2, 2]])
    sparse = torch.sparse_coo_tensor(indices, torch.tensor([3.0, 1.0, 3.0]), (5,), check_invariants=True)
    assert log10_norm(sparse).item() == pytest.approx(math.log10(5), abs=1e-15)


@pytest.mark.parametrize("dtype", SIZES)
def test_norms_of_many_tensors_are_those_of_each(dtype, device):
    shapes = [(3, 4), (5,), (), (3, 4), (0, 2), (3, 4), (400, 400), (300, 300), (300, 300)]
    for size in (SIZES[dtype][0], 1.0, SIZES[dtype][-1]):
        tensors = [mixed(size, dtype, device, shape) for shape in shapes]
        tensors += [tensors[0].t(), torch.complex(tensors[0].float(), tensors[0].float()), tensors[0].to_sparse()]
        for (together, exponent), x in zip(scaled_norms(tensors), tensors, strict=True):
            alone, alone_exponent = scaled_norm(x)
            assert float(together) == pytest.approx(float(alone), rel=1e-14)
            assert float(exponent) == float(alone_exponent)


def test_float32_rows_can_be_scaled_where_a_device_has_no_float64():
    for size in SIZES[torch.float32]:
        x = mixed(size, torch.float32, shape=(2, 12))
        norms, exponents = scaled_rows(x)
        for row, norm, exponent in zip(x, norms.double(), exponents.double(), strict=True):
            assert math.log10(norm) + exponent * math.log10(2) == pytest.approx(exact_log10_norm(row), abs=1e-6)


def test_a_tensor_without_values_is_refused():
    with pytest.raises(TypeError, match=r"^a tensor of type Tensor on device meta holds no values$"):
        scaled_norm(torch.ones(3, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_whose_memory_is_given_back_has_no_values(dtype):
    x = torch.ones(5, 4, dtype=dtype)[2:]  # a part of it, as of a flat parameter
    assert norms.has_values(x)
    x.untyped_storage().resize_(0)  # as FSDP does between uses
    assert not norms.has_values(x)
    assert norms.has_values(torch.empty(0, 4, dtype=dtype))
    assert norms.has_values(torch._efficientzerotensor((3,), dtype=dtype))
