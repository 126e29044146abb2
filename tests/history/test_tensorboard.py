"""A training's curves in TensorBoard: each step once, however often they are written."""

import gc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from gradexp import GradientProbe
from gradexp.history.history import History


class Writer:
    """Keep what is written."""

    def __init__(self):
        self.scalars = {}
        self.events = Counter()

    def add_scalar(self, tag, value, step):
        self.scalars.setdefault(tag, {})[step] = value
        self.events[tag, step] += 1

    def flush(self):
        pass


def recorded(steps, names=("a", "b"), seed=0, **further):
    """Return a history whose numbers follow from the label of the step."""
    drift = np.array(steps, float)[:, None, None]
    values = np.random.default_rng(seed).normal(size=(1, 1, len(names))) + drift / 8
    ok = np.zeros(values.shape, np.int8)
    quantities = {"output_grad": values, "weight_grad": values - 1}
    status = dict.fromkeys(quantities, ok)
    return History("train", list(names), list(steps), [0], quantities, status, **further)


def test_a_history_written_after_every_step_is_written_once():
    writer, once = Writer(), Writer()
    for count in range(1, 120):
        recorded(range(count)).to_tensorboard(writer)
        recorded(range(count)).to_tensorboard(writer)
    recorded(range(119)).to_tensorboard(once)
    assert set(writer.events.values()) == {1}
    curves = {tag: values for tag, values in writer.scalars.items() if not tag.startswith("profile/")}
    assert curves == {tag: values for tag, values in once.scalars.items() if not tag.startswith("profile/")}
    assert [*writer.scalars["log10_output_grad/a"]] == [*range(119)]


def test_profiles_of_later_steps_have_tags_of_their_own_and_stay_few():
    writer = Writer()
    for count in range(1, 150):
        recorded(range(count)).to_tensorboard(writer)
    tags = [tag for tag in writer.scalars if tag.startswith("profile/log10_output_grad")]
    ends = ("", "/step_000009", "/step_000099")
    assert tags == [f"profile/log10_output_grad{end}" for end in ends]
    recorded(range(150)).to_tensorboard(writer, step=120)
    assert writer.scalars["profile/log10_output_grad/step_000120"].keys() == {1, 2}
    assert set(writer.events.values()) == {1}


def test_a_call_looks_only_at_new_steps():
    writer = Writer()
    history = recorded(range(50))
    history.to_tensorboard(writer)
    longer = recorded(range(53))
    asked = []
    longer.ratio_over_steps = lambda quantity, begin=0: asked.append(begin) or np.zeros(53 - begin)
    longer.to_tensorboard(writer)
    assert asked == [50]


def test_labels_that_come_again_are_written_once():
    writer = Writer()
    recorded([0, 1, 1, 2, 0]).to_tensorboard(writer)
    recorded([0, 1, 1, 2, 0, 3]).to_tensorboard(writer)
    assert [*writer.scalars["gradient/zero_layers"]] == [0, 1, 2, 3]
    assert set(writer.events.values()) == {1}


def test_the_relative_update_follows_when_it_is_known():
    torch.manual_seed(0)
    model, writer = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), Writer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for step in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().mean().backward()
            probe.collect(step)
            probe.history.to_tensorboard(writer)
            optimizer.step()
    probe.history.to_tensorboard(writer)
    expected = probe.history.log10["update"] - probe.history.log10["weight"]
    for name, row in (("0", 0), ("2", 1)):
        curve = writer.scalars[f"log10_update_ratio/{name}"]
        assert [*curve] == [*range(5)]
        np.testing.assert_allclose([*curve.values()], expected[:, 0, row])
    assert set(writer.events.values()) == {1}


def test_a_deep_model_has_a_curve_for_each_role_which_is_the_mean_over_blocks():
    names = ["embed", *(f"h.{block}.{role}" for block in range(30) for role in ("attn.q", "mlp")), "head"]
    writer, history = Writer(), recorded(range(3), names)
    history.to_tensorboard(writer)
    tags = [tag for tag in writer.scalars if tag.startswith("log10_output_grad/")]
    assert tags == [f"log10_output_grad/{name}" for name in ("embed", "h.attn.q", "h.mlp", "head")]
    mean = history.log10["output_grad"][:, 0, 1:-1:2].mean(axis=1)
    np.testing.assert_allclose([*writer.scalars["log10_output_grad/h.attn.q"].values()], mean)


def test_the_number_of_curves_is_bounded():
    names = [f"part_{chr(97 + index % 26)}{chr(97 + index // 26)}" for index in range(500)]
    writer = Writer()
    recorded(range(2), names).to_tensorboard(writer)
    assert len(writer.scalars) < 80


def test_layers_are_chosen_by_patterns_of_names():
    names = [f"h.{block}.{role}" for block in range(30) for role in ("attn.q", "mlp")]
    writer, history = Writer(), recorded(range(3), names)
    history.to_tensorboard(writer, layers=["h.0.**", "h.29.mlp"])
    tags = [tag for tag in writer.scalars if tag.startswith("log10_output_grad/")]
    assert tags == [f"log10_output_grad/{name}" for name in ("h.0.attn.q", "h.0.mlp", "h.29.mlp")]
    with pytest.raises(ValueError, match=r"^layers: 'h\.\*' matches none of the 60 rows, such as 'h\.29\.mlp'$"):
        history.to_tensorboard(writer, layers="h.*")
    history.to_tensorboard(writer)  # other curves start from the first step
    assert [*writer.scalars["log10_output_grad/h.mlp"]] == [0, 1, 2]


def test_statistics_the_spread_over_samples_and_the_total_have_curves():
    shape = (3, 1, 2)
    samples = np.random.default_rng(1).normal(size=(*shape, 8))
    further = {"stats": {"output.dead": np.full(shape, 0.5)}, "samples": samples, "total_grad": np.ones((3, 1))}
    writer = Writer()
    recorded(range(3), **further).to_tensorboard(writer)
    assert [*writer.scalars["output.dead/a"].values()] == [0.5] * 3
    assert [*writer.scalars["gradient/log10_total"].values()] == [1.0] * 3
    spread = samples.std(axis=-1, ddof=1)[:, 0, 1]
    np.testing.assert_allclose([*writer.scalars["samples_sd/b"].values()], spread)


def test_two_models_share_a_writer_by_prefixes_and_not_by_chance():
    writer = Writer()
    recorded(range(3)).to_tensorboard(writer, prefix="generator")
    recorded(range(3), seed=1).to_tensorboard(writer, prefix="discriminator")
    assert [*writer.scalars["generator/log10_output_grad/a"]] == [0, 1, 2]
    assert [*writer.scalars["discriminator/log10_output_grad/a"]] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^the writer has other numbers of step 0 already, .* prefix="):
        recorded(range(3), seed=2).to_tensorboard(writer, prefix="generator")


def test_a_training_that_goes_on_with_another_probe_goes_on_in_the_writer():
    writer = Writer()
    recorded(range(3)).to_tensorboard(writer)
    recorded(range(3, 6)).to_tensorboard(writer)
    assert [*writer.scalars["log10_output_grad/a"]] == [*range(6)]


def test_a_writer_is_not_kept_alive():
    writer = Writer()
    recorded(range(2)).to_tensorboard(writer)
    gone = weakref.ref(writer)
    del writer
    gc.collect()
    assert gone() is None


def test_a_writer_without_weak_references_has_each_step_once_too():
    class Closed:
        __slots__ = ("events",)
        add_scalar, flush = Writer.add_scalar, Writer.flush

        def __init__(self):
            self.events = Counter()

        @property
        def scalars(self):
            return {}

    writer = Closed()
    for count in (1, 2, 3):
        recorded(range(count)).to_tensorboard(writer)
    assert set(writer.events.values()) == {1}


@pytest.mark.slow
def test_the_table_of_numbers_has_what_is_drawn():
    pytest.importorskip("pandas")
    names = ["embed", "h.0.attn.q", "h.1.attn.q"]
    shape = (2, 1, 3)
    history = recorded(range(2), names, stats={"output.dead": np.arange(6.0).reshape(shape)})
    history.samples = np.random.default_rng(1).normal(size=(*shape, 8))
    frame = history.to_dataframe()
    assert frame["stack"].tolist() == ["embed", "h", "h"] * 2
    assert frame["block"].isna().tolist() == [True, False, False] * 2
    assert frame["block"].dropna().tolist() == [0, 1] * 2
    assert frame["role"].tolist() == ["", "attn.q", "attn.q"] * 2
    assert frame["output.dead"].tolist() == [*range(6)]
    np.testing.assert_allclose(frame["samples_sd"], history.samples.std(axis=-1, ddof=1).ravel())
