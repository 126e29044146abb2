"""The alarm of a probe: the first bad step, by name, before the optimizer makes it."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe, measure
from gradexp.probe import watch
from gradexp.probe.alarm import AlarmError

X = torch.linspace(-1, 1, 32).reshape(8, 4)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def mean_square(output):
    return output.float().square().mean()


def build(function=lambda x: x):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), Apply(function), nn.BatchNorm1d(4), nn.Linear(4, 3))


def bad_at(step):
    """Return a batch in which one number is nan at one step."""

    def batch(now):
        x = X.clone()
        x[0, 0] = torch.nan if now == step else x[0, 0]
        return x

    return batch


def train(probe, model, optimizer, batch=lambda _: X, loss=mean_square, steps=6):
    with probe:
        for step in range(steps):
            optimizer.zero_grad()
            loss(model(batch(step))).backward()
            probe.collect(step)
            optimizer.step()
    return probe.history


def armed(model, alarm="raise", **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return GradientProbe(model, optimizer=optimizer, alarm=alarm, **options), optimizer


def is_finite(model):
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_it_raises_at_the_first_bad_step_before_the_weights_are_nan(every):
    model = build()
    probe, optimizer = armed(model, every=every)
    with pytest.raises(
        AlarmError, match=r"^step 3: nonfinite: nan in the input; before, the norm of all gradients was .*$"
    ) as caught:
        train(probe, model, optimizer, bad_at(3))
    assert caught.value.step == 3
    assert is_finite(model)
    history = probe.history
    assert history.steps[-1] == 3
    assert history.findings[-1] == (caught.value.finding,)
    assert history.at().findings == (caught.value.finding,)


def test_a_step_that_would_not_be_recorded_has_its_gradients_in_the_history():
    model = build()
    probe, optimizer = armed(model, every=100)
    with pytest.raises(AlarmError):
        train(probe, model, optimizer, bad_at(3))
    history = probe.history
    assert history.steps == [0, 3]
    assert (history.status["weight_grad"][1] == 3).all()  # nonfinite
    assert (history.status["output_grad"][1] == 7).all()  # hook_missed
    assert history.findings[0] == ()


def test_it_warns_once_for_as_long_as_that_lasts():
    model = build()
    probe, optimizer = armed(model, "warn")
    with pytest.warns(RuntimeWarning, match=r"^step 3: nonfinite: nan in the input") as warned:
        train(probe, model, optimizer, bad_at(3))
    assert len(warned) == 1
    assert [len(findings) for findings in probe.history.findings] == [0, 0, 0, 1, 1, 1]


def test_it_goes_off_again_after_a_good_step():
    model = build()
    alarms = []
    probe, optimizer = armed(model, alarms.append)
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())  # so that no weight becomes nan
    train(probe, model.eval(), optimizer, lambda step: bad_at(step)(step if step in (1, 4) else -1))
    assert [alarm.step for alarm in alarms] == [1, 4]


@pytest.mark.parametrize(
    ("function", "loss", "text", "modules"),
    [
        (
            lambda x: x + (0 * x).square().sum().sqrt(),
            mean_square,
            "backward pass, in SqrtBackward of 2 (Apply)",
            ("2",),
        ),
        (lambda x: (x * 1e30) * 1e30, mean_square, "forward pass, in 2 (Apply), which", ("2",)),
        (lambda x: x, lambda o: (0 * o).square().sum().sqrt(), "backward pass, in the loss", ()),
    ],
)
def test_it_says_the_module_and_the_pass(function, loss, text, modules):
    model = build(function)
    probe, optimizer = armed(model, every=3)
    with pytest.raises(AlarmError) as caught:
        train(probe, model, optimizer, loss=loss)
    assert text in str(caught.value)
    assert caught.value.finding.modules == modules
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_known_to_be_nan_is_told_from_its_gradient():
    model = nn.Linear(4, 3)
    with GradientProbe(model, alarm="raise") as probe:
        loss = (model(X).sum() - model(X).sum()).log() * torch.nan
        loss.backward()
        with pytest.raises(AlarmError, match=r"nan is born in the forward pass, in the loss"):
            probe.collect(0, loss)


def test_looking_for_the_place_changes_neither_buffers_nor_gradients_nor_random_numbers():
    model = build()
    alarms = []
    probe, _ = armed(model, lambda _: alarms.append(state()), every=2)

    def state():
        return (
            [b.clone() for b in model.buffers()],
            [p.grad.clone() for p in model.parameters()],
            torch.get_rng_state(),
        )

    with probe:
        mean_square(model(bad_at(0)(0))).backward()
        buffers, gradients, numbers = state()
        probe.collect(0)
    ((later, gradients_later, numbers_later),) = alarms
    same = [
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(buffers + gradients, later + gradients_later, strict=True)
    ]
    assert all(same)
    assert torch.equal(numbers, numbers_later)


def test_measure_in_the_alarm_gives_the_whole_picture():
    model = build(lambda x: x + (0 * x).square().sum().sqrt())
    pictures = []
    probe, optimizer = armed(model, lambda _: pictures.append(measure(model, mean_square, X)), every=4)
    train(probe, model, optimizer, steps=1)
    assert pictures[0].findings[0][0].modules == ("2",)


@pytest.mark.parametrize("every", [1, 3])
def test_training_under_watch_is_bit_identical(every):
    def weights(is_armed):
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        probe = GradientProbe(model, every=every, alarm="raise" if is_armed else None)
        train(probe, model, optimizer)
        return [p.detach().clone() for p in model.parameters()] + list(model.buffers())

    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(weights(False), weights(True), strict=True))


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1e25), (torch.float64, 1e300), (torch.float16, 5e3)])
def test_large_but_finite_gradients_raise_no_alarm(dtype, factor):
    model = nn.Linear(4, 3).to(dtype)
    probe, _ = armed(model)
    with probe:
        (factor * model(X.to(dtype))).sum().backward()  # whose squares the format does not hold
        probe.collect(0)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "build_model",
    [
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        lambda: nn.Sequential(
            nn.Linear(4, 4), Apply(lambda x: (x + torch.tensor(-torch.inf)).sigmoid()), nn.Linear(4, 3)
        ),
    ],
)
def test_healthy_trainings_raise_no_alarm(build_model):
    torch.manual_seed(0)
    model = build_model()
    probe, optimizer = armed(model)
    mask = nn.Transformer.generate_square_subsequent_mask(8)
    with probe:
        for step in range(5):
            optimizer.zero_grad()
            output = model(X[None], mask) if isinstance(model, nn.TransformerEncoderLayer) else model(X)
            mean_square(output).backward()
            probe.collect(step)
            optimizer.step()
    assert not any(probe.history.findings)


def test_an_optimizer_that_steps_without_a_collect_is_stopped_too():
    model = nn.Linear(4, 3)
    probe, optimizer = armed(model, every=5)
    with probe:
        mean_square(model(bad_at(0)(0))).backward()
        with pytest.raises(AlarmError, match=r"step 0: nonfinite: nan in the input"):
            optimizer.step()
    assert is_finite(model)


def test_the_first_of_several_optimizers_is_stopped():
    model = build()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[4].parameters())]
    with GradientProbe(model, optimizer=optimizers, alarm="raise") as probe:
        mean_square(model(bad_at(0)(0))).backward()
        with pytest.raises(AlarmError):
            optimizers[1].step()
    assert is_finite(model)
    assert probe.history.steps == [0]


def test_an_optimizer_that_steps_in_the_backward_pass_is_stopped():
    model = nn.Sequential(nn.Linear(4, 4), Apply(lambda x: x + (0 * x).square().sum().sqrt()), nn.Linear(4, 3))
    optimizers = []

    def step(optimizer, _parameter):
        optimizer.step()
        optimizer.zero_grad()

    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        optimizers.append(optimizer)
        parameter.register_post_accumulate_grad_hook(partial(step, optimizer))
    with GradientProbe(model, optimizer=optimizers, alarm="raise"), pytest.raises(AlarmError, match=r"of 1 .Apply"):
        mean_square(model(X)).backward()
    assert is_finite(model)


def test_accumulated_batches_are_looked_at_together():
    model = build()
    probe, optimizer = armed(model)
    with probe:
        for step in range(3):
            for part in range(3):
                mean_square(model(bad_at(7)(3 * step + part))).backward()
            if step < 2:
                probe.collect(step)
                optimizer.step()
                optimizer.zero_grad()
        with pytest.raises(AlarmError, match=r"step 2: nonfinite: nan in the input"):
            probe.collect(2)


class HalfLoss(nn.Module):
    """A model whose backward pass is in float16, where a gradient of 1 is close to what a scaler multiplies it by."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x).half()


def scaled(model, loss, steps, alarm="raise", init_scale=2.0**20):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    with GradientProbe(model, optimizer=optimizer, scaler=scaler, alarm=alarm, every=5) as probe:
        for step in range(steps):
            optimizer.zero_grad()
            scaler.scale(loss(model(X))).backward()
            probe.collect(step)
            scaler.step(optimizer)
            scaler.update()
    return scaler.get_scale()


def test_overflow_that_a_scaler_skips_is_ordinary():
    assert scaled(HalfLoss(), lambda o: o.float().sum(), 8) < 2.0**17


def test_overflow_that_no_scale_cures_raises_the_alarm():
    with pytest.raises(AlarmError):
        scaled(HalfLoss(), lambda o: 1e9 * o.float().sum(), 40, init_scale=2.0**10)


def test_nan_that_is_not_the_scalers_raises_the_alarm_at_once():
    model, scaler = HalfLoss(), torch.amp.GradScaler("cpu")
    with GradientProbe(model, scaler=scaler, alarm="raise") as probe:
        scaler.scale(model(bad_at(0)(0)).float().sum()).backward()
        with pytest.raises(AlarmError, match=r"step 0: nonfinite: nan in the input"):
            probe.collect(0)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_device_that_answers_late_is_not_waited_for(monkeypatch, late):
    sent = []

    def to_host(values):
        sent.append(values)
        number = len(sent)
        return values, lambda: len(sent) >= number + late

    monkeypatch.setattr(watch, "can_be_read_later", lambda _: True)
    monkeypatch.setattr(watch, "to_host", to_host)
    model = build()
    probe, optimizer = armed(model, every=100)
    with pytest.raises(AlarmError) as caught:
        train(probe, model, optimizer, bad_at(2))
    if late:
        text = "since step 2 the gradients of all 6 parameters are inf or nan"
        assert caught.value.finding.text.startswith(text)
        assert caught.value.step == 2 + late
    else:
        assert str(caught.value).startswith("step 2: nonfinite: nan in the input")


def test_other_kinds_are_judged_on_recorded_steps():
    torch.manual_seed(0)
    model = nn.Sequential(*[module for _ in range(40) for module in (nn.Linear(4, 4), nn.Sigmoid())])
    probe, optimizer = armed(model, every=2, alarm_on=("nonfinite", "vanishing"))
    with pytest.raises(AlarmError, match=r"step 0: vanishing: ") as caught:
        train(probe, model, optimizer)
    assert caught.value.finding.kind == "vanishing"
    assert caught.value.finding in probe.history.findings[0]
    probe, optimizer = armed(model, alarm_on="exploding")
    train(probe, model, optimizer)


def test_a_model_that_is_called_by_another_method_is_named_by_its_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    probe, _ = armed(model)
    with probe:
        middle = model[0](X)
        (model[1](middle.detach()).sum() + (0 * middle).square().sum().sqrt()).backward()
        with pytest.raises(
            AlarmError,
            match=r"the gradients of 2 of 4 parameters are inf or nan; it begins .* backward pass, from 0.bias down",
        ):
            probe.collect()


def test_a_watched_model_can_be_copied_and_pickled():
    model = nn.Linear(4, 3)
    probe, _ = armed(model)
    with probe:
        copied = copy.deepcopy(model)
        restored = pickle.loads(pickle.dumps(model))
    for other in (copied, restored):
        other(X).sum().backward()
        assert torch.equal(other.weight, model.weight)


def test_hooks_go_with_the_probe():
    model = build()
    probe, optimizer = armed(model)
    with probe:
        assert model._forward_pre_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks
    probe, optimizer = armed(model)
    probe.attach()
    del probe
    assert not model._forward_pre_hooks


def test_nothing_is_watched_without_an_alarm():
    model = build()
    with GradientProbe(model, every=5) as probe:
        mean_square(model(X)).backward()
        probe.collect()
        assert not model._forward_pre_hooks
        mean_square(model(bad_at(0)(0))).backward()
        probe.collect()


def test_the_error_passes_from_process_to_process():
    model = build()
    probe, optimizer = armed(model)
    with pytest.raises(AlarmError) as caught:
        train(probe, model, optimizer, bad_at(2))
    restored = pickle.loads(pickle.dumps(caught.value))
    assert (str(restored), restored.step) == (str(caught.value), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alarm": "shout"}, "alarm must be 'warn', 'raise' or a function, got 'shout'"),
        ({"alarm": 3}, "alarm must be 'warn', 'raise' or a function, got 3"),
        ({"alarm": "warn", "alarm_on": ("boom",)}, "unknown kind 'boom'; choose from nonfinite, dead, vanishing"),
        (
            {"alarm": "warn", "alarm_on": "vanishing", "quantities": "weight_grad"},
            "an alarm on anything but nonfinite needs the quantity 'output_grad'",
        ),
        ({"alarm": "warn", "alarm_on": ()}, "alarm_on is empty; choose from nonfinite"),
    ],
)
def test_wrong_options_are_told_in_a_line(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GradientProbe(nn.Linear(4, 3), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_of_every_format_are_watched(dtype):
    model = nn.Linear(4, 3).to(dtype)
    with GradientProbe(model, alarm="raise") as probe:
        model(X.to(dtype)).abs().sum().backward()
        probe.collect()
        model.zero_grad()
        model(bad_at(0)(0).to(dtype)).abs().sum().backward()
        with pytest.raises(AlarmError):
            probe.collect()


def test_sparse_gradients_are_watched():
    model = nn.Embedding(5, 4, sparse=True)
    with GradientProbe(model, alarm="raise") as probe:
        model(torch.tensor([1, 1, 3])).sum().backward()
        probe.collect()
        model.zero_grad()
        model(torch.tensor([1, 1, 3])).mul(torch.inf).sum().backward()
        with pytest.raises(AlarmError):
            probe.collect()


def test_autocast_is_as_it_was_when_the_pass_is_looked_at_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Apply(lambda x: x * 6e4), nn.Linear(4, 3))
    nn.init.ones_(model[0].weight)
    probe, _ = armed(model)
    with probe:
        with torch.autocast("cpu", torch.float16):
            loss = F.mse_loss(model(X).float(), torch.zeros(8, 3))
        loss.backward()
        with pytest.raises(
            AlarmError, match=r"inf is born in the forward pass, in 1 .Apply."
        ):  # float16 ends at 65504
            probe.collect()


@pytest.mark.slow
@pytest.mark.parametrize("is_compiled_before", [False, True])
def test_a_compiled_model_is_watched_and_stays_in_one_piece(is_compiled_before):
    model = build()
    graphs = []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    if is_compiled_before:
        compiled(X)
    probe, optimizer = armed(compiled, every=3)
    with pytest.raises(AlarmError, match=r"^step 5: nonfinite: "):
        train(probe, compiled, optimizer, bad_at(5))
    assert is_finite(model)
    assert len(graphs) <= 1 + is_compiled_before
