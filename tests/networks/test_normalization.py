import pytest
import torch
import torch.nn.functional as F
from cases import few

from gradexp.networks.normalization import DIMENSIONS, normalize, pull_back, standardize

KINDS = tuple(DIMENSIONS)
CENTRED = ("batch", "layer")


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_formula_is_that_of_torch_without_epsilon():
    z = 3 + 2 * drawn(4, 9, 7)
    layer = F.layer_norm(z, (7,), eps=0.0)
    batch = torch.stack([F.batch_norm(part, None, None, training=True, eps=1e-300) for part in z])
    torch.testing.assert_close(normalize(z, "layer"), layer, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(normalize(z, "batch"), batch, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(normalize(z, "rms"), F.rms_norm(z, (7,), eps=1e-300), rtol=1e-13, atol=1e-13)
    assert normalize(z, "none") is z


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [
        (torch.float64, 2.0**-1000, 1e-13),
        (torch.float64, 2.0**1000, 1e-13),
        (torch.float32, 2.0**-120, 2e-6),
        (torch.float32, 2.0**120, 2e-6),
        (torch.bfloat16, 2.0**-110, 1e-2),
        (torch.float16, 2.0**-8, 2e-3),
        (torch.float16, 2.0**12, 2e-3),
    ],
    ids=str,
)
def test_the_size_of_z_does_not_matter(kind, dtype, scale, tolerance):
    """Up to the format's own rounding: squares of these numbers are 0 or infinite in it."""
    z = drawn(2, 9, 7, dtype=dtype)
    expected = normalize(z.double(), kind)
    got = normalize((z * scale).requires_grad_(), kind)
    assert got.dtype is dtype
    torch.testing.assert_close(got.detach().double(), expected, rtol=0, atol=3 * tolerance)


@pytest.mark.parametrize(
    ("kind", "value"), [*((kind, value) for kind in CENTRED for value in (0.0, 0.1, -1e-30, 1e30)), ("rms", 0.0)]
)
def test_what_does_not_vary_becomes_exactly_0_and_takes_no_gradient(kind, value):
    for dtype in (torch.float32, torch.float64):
        z = drawn(3, 11, 7, dtype=dtype)
        z[0] = value
        z.requires_grad_()
        normal = normalize(z, kind)
        (gradient,) = torch.autograd.grad((normal * drawn(3, 11, 7, seed=2, dtype=dtype)).sum(), z)
        assert not normal[0].any()
        assert not gradient[0].any()
        assert gradient.isfinite().all()
        assert (gradient[1:] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", few([1e3, 1.0, 1e-3]))
def test_the_gradient_is_right(kind, scale):
    z = (scale * (1 + drawn(2, 5, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: normalize(z, kind), z, eps=1e-6 * scale, atol=1e-6 / scale)
    assert torch.autograd.gradgradcheck(lambda z: normalize(z * scale, kind), z.detach() / scale + 0 * z, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_grows_as_z_shrinks(kind):
    """N is homogeneous of degree 0, so that its derivative is of degree -1."""
    z, cotangent = drawn(2, 5, 4), drawn(2, 5, 4, seed=2)
    (ordinary,) = torch.autograd.grad((normalize(z.requires_grad_(), kind) * cotangent).sum(), z)
    tiny = (z.detach() * 2.0**-1000).requires_grad_()
    (large,) = torch.autograd.grad((normalize(tiny, kind) * cotangent).sum(), tiny)
    torch.testing.assert_close(large * 2.0**-1000, ordinary, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_pulling_back_is_what_autograd_does(kind):
    z, cotangent = (3 + drawn(2, 5, 4)).requires_grad_(), drawn(2, 5, 4, seed=2)
    (expected,) = torch.autograd.grad((normalize(z, kind) * cotangent).sum(), z)
    normal, inverse, exponent = standardize(z.detach(), kind)
    got = pull_back(cotangent, normal, inverse * torch.exp2(-exponent), kind)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", CENTRED)
@pytest.mark.parametrize("size", [1, 2])
def test_two_values_become_plus_and_minus_1_and_one_becomes_0_without_a_gradient(kind, size):
    shape = (3, size, 5) if kind == "batch" else (3, 5, size)
    z = drawn(*shape).requires_grad_()
    normal = normalize(z, kind)
    torch.testing.assert_close(normal.abs(), torch.full(shape, size - 1.0).double(), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad((normal * drawn(*shape, seed=2)).sum(), z)
    assert not gradient.any()
    normal, inverse, _ = standardize(z.detach(), kind)
    assert not pull_back(drawn(*shape), normal, inverse, kind).any()


def test_one_value_over_its_root_mean_square_is_its_sign_without_a_gradient():
    z = drawn(3, 5, 1).requires_grad_()
    normal = normalize(z, "rms")
    torch.testing.assert_close(normal, z.sign(), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad((normal * drawn(3, 5, 1, seed=2)).sum(), z)
    assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so_and_keeps_to_itself(kind):
    z = drawn(2, 5, 4)
    z[0, 1, 2] = torch.inf
    normal = normalize(z, kind)
    assert normal[0].isnan().sum() == {"batch": 5, "layer": 4, "rms": 1}[kind]  # inf / inf
    assert normal[1].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_a_stack_is_normalised_on_its_own(kind):
    z = drawn(3, 5, 4)
    assert torch.equal(normalize(z, kind)[1], normalize(z[1], kind))
