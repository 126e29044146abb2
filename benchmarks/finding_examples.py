"""A broken model for each kind of finding, and what cures it."""

from collections.abc import Callable

import torch
from broken_models import Blocks, EncoderAndHead, Last, Loop, Mixture, PastHooks, Siamese, Tied, classes, network
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp import GradientProbe, History, initialize, measure
from gradexp.history.clipped import clipped
from gradexp.probe.alarm import AlarmError


def vanishing(is_cured: bool) -> History:
    model = network(nn.ReLU, 20)
    if is_cured:
        initialize(model, "he")
    return measure(model, F.cross_entropy, classes())


def exploding(is_cured: bool) -> History:
    model = network(nn.ReLU, 20)
    initialize(model, lambda weight: nn.init.normal_(weight, std=0.5))
    if is_cured:
        initialize(model, "he")
    return measure(model, F.cross_entropy, classes())


def exploding_activations(is_cured: bool) -> History:
    return measure(Blocks(12**-0.5 if is_cured else 8.0), F.cross_entropy, classes())


def vanishing_over_time(is_cured: bool) -> History:
    lstm = nn.LSTM(8, 32, batch_first=True)
    if is_cured:
        with torch.no_grad():
            lstm.bias_hh_l0[lstm.hidden_size : 2 * lstm.hidden_size] = 5.0
    return measure(Last(lstm, 4), F.cross_entropy, (torch.randn(64, 80, 8), classes()[1]))


def exploding_over_time(is_cured: bool) -> History:
    rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
    nn.init.eye_(rnn.weight_hh_l0).data.mul_(1 if is_cured else 1.5)
    return measure(Last(rnn, 1), F.mse_loss, (torch.randn(64, 40, 8), torch.randn(64, 1)))


def dead(is_cured: bool) -> History:
    (x, _), model = classes(), network(nn.ReLU, 2, outputs=1)
    model.head.bias.data.fill_(-5.0)
    with GradientProbe(model) as probe:  # which knows less than measure: that calls it a dead layer
        output = model(x)
        F.mse_loss(output if is_cured else torch.relu(output), -torch.ones(len(x), 1)).backward()
        probe.collect(0)
    return probe.history


def tiny_gradients(is_cured: bool) -> History:
    def generators(logit: Tensor) -> Tensor:
        return -F.logsigmoid(logit).mean() if is_cured else (1 - torch.sigmoid(logit)).log().mean()

    model = network(nn.ReLU, 2, outputs=1)
    model.head.bias.data.fill_(-60.0)
    return measure(model, generators, classes()[0])


def dead_layer(is_cured: bool) -> History:
    model = network(nn.ReLU, 4)
    model.fc2.bias.data.fill_(-50.0)
    if is_cured:
        initialize(model, "he", sigma_b2=0)
    return measure(model, F.cross_entropy, classes())


def dead_units(is_cured: bool) -> History:
    model = network(nn.ReLU, 4)
    model.fc2.bias.data[:40] = -50.0
    if is_cured:
        initialize(model, "he", sigma_b2=0)
    return measure(model, F.cross_entropy, classes())


def saturated(is_cured: bool) -> History:
    model = network(nn.Tanh, 4)
    model.fc2.weight.data *= 100
    if is_cured:
        initialize(model, "xavier")
    return measure(model, F.cross_entropy, classes())


def cut_over_time(is_cured: bool) -> History:
    return measure(Loop(20 if is_cured else 1), F.cross_entropy, (torch.randn(64, 20, 8), classes()[1]))


def dropout(is_cured: bool) -> History:
    model = nn.Sequential(network(nn.ReLU, 2, outputs=64), nn.Dropout(0.01 if is_cured else 0.99), nn.Linear(64, 4))
    return measure(model, F.cross_entropy, classes())


def missing_log_softmax(is_cured: bool) -> History:
    return measure(network(nn.ReLU, 2), F.cross_entropy if is_cured else F.nll_loss, classes())


def activation_on_the_output(is_cured: bool) -> History:
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4), nn.Identity() if is_cured else nn.ReLU())
    return measure(model, F.cross_entropy, classes())


def softmax_over_samples(is_cured: bool) -> History:
    model = nn.Sequential(network(nn.ReLU, 2), nn.LogSoftmax(dim=-1 if is_cured else 0))
    return measure(model, F.nll_loss, classes())


def shapes(is_cured: bool) -> History:
    x, _ = classes()
    target = x.mean(1)
    return measure(network(nn.ReLU, 2, outputs=1), F.mse_loss, (x, target[:, None] if is_cured else target))


def equal_units(is_cured: bool) -> History:
    model = network(nn.Tanh, 4)
    for layer in (model.fc1, model.fc2, model.fc3, model.head):
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)
    if is_cured:
        initialize(model, "he")
    return measure(model, F.cross_entropy, classes())


def zero_by_initialisation(is_cured: bool) -> History:
    batch, model = classes(), network(nn.ReLU, 3)
    nn.init.zeros_(model.head.weight)
    if is_cured:  # it opens by itself
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    return measure(model, F.cross_entropy, batch)


def cut(is_cured: bool) -> History:
    return measure(EncoderAndHead(is_cut=not is_cured), F.cross_entropy, classes())


def frozen(is_cured: bool) -> History:
    model = network(nn.ReLU, 4)
    model.fc1.requires_grad_(is_cured)
    return measure(model, F.cross_entropy, classes())


def nonfinite(is_cured: bool) -> History:
    def by_hand(logit: Tensor, target: Tensor) -> Tensor:
        probability = torch.sigmoid(logit)
        return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()

    x, label = classes()
    loss = F.binary_cross_entropy_with_logits if is_cured else by_hand
    return measure(nn.Linear(20, 1), loss, (100 * x, (label > 1).float()[:, None]))


def number_format(is_cured: bool) -> History:
    model = network(nn.ReLU, 24)
    x, label = classes()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16 if is_cured else torch.float16):
            return F.cross_entropy(model(x), label)

    return measure(model, loss)


def input_scale(is_cured: bool) -> History:
    x, label = classes()
    x = 128 + 70 * x
    if is_cured:
        x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    return measure(network(nn.ReLU, 4), F.cross_entropy, (x, label))


def inputs_alike(is_cured: bool) -> History:
    x, label = classes()
    return measure(network(nn.ReLU, 4), F.cross_entropy, (x if is_cured else x[:1].expand_as(x), label))


def inputs_collapse(is_cured: bool) -> History:
    model = network(nn.Sigmoid, 6, norm=nn.BatchNorm1d if is_cured else None)
    return measure(model, F.cross_entropy, classes())


def initial_scale(is_cured: bool) -> History:
    model = network(nn.ReLU, 4)
    model.head.weight.data *= 500
    if is_cured:
        initialize(model, "he")
    return measure(model, F.cross_entropy, classes())


def target_scale(is_cured: bool) -> History:
    y = 3e5 + 1e5 * torch.randn(64, 1)
    if is_cured:
        y = (y - y.mean()) / y.std()
    return measure(network(nn.ReLU, 2, outputs=1), F.mse_loss, (classes()[0], y))


def softmax_twice(is_cured: bool) -> History:
    model = network(nn.ReLU, 4)
    return measure(model if is_cured else model.append(nn.Softmax(1)), F.cross_entropy, classes())


def sigmoid_twice(is_cured: bool) -> History:
    model, (x, label) = network(nn.ReLU, 2, outputs=1), classes()
    model = model if is_cured else model.append(nn.Sigmoid())
    return measure(model, F.binary_cross_entropy_with_logits, (x, (label > 1).float()[:, None]))


def guessing_not_beaten(is_cured: bool) -> History:
    def batch() -> tuple[Tensor, Tensor]:
        label = (torch.rand(256) < 0.05).long()
        return torch.randn(256, 20) + 2 * label[:, None] * is_cured, label  # else the inputs say nothing

    model = network(nn.ReLU, 2, outputs=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(300):
        x, label = batch()
        F.cross_entropy(model(x), label).backward()
        optimizer.step()
        optimizer.zero_grad()
    return measure(model, F.cross_entropy, batch())


def updates(is_cured: bool) -> History:
    model, (x, label) = network(nn.ReLU, 4), classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4 if is_cured else 1e-8)
    with GradientProbe(model, optimizer=optimizer) as probe:
        F.cross_entropy(model(x), label).backward()
        probe.collect(0)
        optimizer.step()
    return probe.history


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Callable[[], tuple[Tensor, Tensor]], steps: int
) -> History:
    """Return the history of a training."""
    with GradientProbe(model, optimizer=optimizer) as probe:
        for step in range(steps):
            x, label = batch()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), label)
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
    return probe.history


def diverging(is_cured: bool) -> History:
    model, batch = network(nn.ReLU, 3), classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if is_cured else 1.0)
    return trained(model, optimizer, lambda: batch, 4)


def gradients_pile_up(is_cured: bool) -> History:
    model, (x, label) = network(nn.ReLU, 3), classes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for step in range(10):
            loss = F.cross_entropy(model(x), label)
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
            if is_cured:
                optimizer.zero_grad()
    return probe.history


def unbounded_loss(is_cured: bool) -> History:
    model, (x, label) = network(nn.ReLU, 3), classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for step in range(60):
            log_probability = F.log_softmax(model(x), 1).gather(1, label[:, None]).mean()
            loss = -log_probability if is_cured else log_probability
            optimizer.zero_grad()
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
    return probe.history


def weight_decay(is_cured: bool) -> History:
    model, batch = network(nn.ReLU, 3), classes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3 if is_cured else 5.0)
    return trained(model, optimizer, lambda: batch, 20)


def no_progress(is_cured: bool) -> History:
    model, batch = network(nn.ReLU, 3), classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, maximize=not is_cured)
    return trained(model, optimizer, lambda: batch, 30)


def clipped_gradients(is_cured: bool) -> History:
    model, (x, label) = network(nn.ReLU, 3), classes()
    with GradientProbe(model) as probe:
        (10 * F.cross_entropy(model(x), label)).backward()
        if not is_cured:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        probe.collect(0)
        if not is_cured:
            probe.add_finding(clipped("the Trainer", 1.0))  # as the callback for transformers' Trainer does
    return probe.history


def closed_branches(is_cured: bool) -> History:
    return measure(Blocks(1.0 if is_cured else 1e-5, depth=6), F.cross_entropy, classes())


def rounding_noise(is_cured: bool) -> History:
    model = network(nn.ReLU, 2, norm=nn.BatchNorm1d)
    if is_cured:
        model.fc1.bias = None
    return measure(model, F.cross_entropy, classes())


def tied_weights(is_cured: bool) -> History:
    model, tokens = Tied(), torch.randint(30, (64,))
    if is_cured:
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return measure(model, F.cross_entropy, (tokens, tokens.roll(1)))


def idle_experts(is_cured: bool) -> History:
    return measure(Mixture(used=8 if is_cured else 5), F.cross_entropy, classes())


def unseen(is_cured: bool) -> History:
    return measure(PastHooks(is_past=not is_cured), F.cross_entropy, classes())


def unknown(is_cured: bool) -> History:
    model, (x, label) = network(nn.ReLU, 4), classes()
    return measure(model if is_cured else torch.jit.trace(model, x), F.cross_entropy, (x, label))


def alarm() -> str:
    """Return what an alarm says of a training in which one batch has a pair of equal samples."""
    model, (x, label) = Siamese(), classes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    try:
        with GradientProbe(model, every=10, optimizer=optimizer, alarm="raise") as probe:
            for step in range(100):
                partner = torch.arange(len(x)).roll(1 + step % 9)
                partner[: int(step == 23)] = 0  # one is its own partner
                optimizer.zero_grad()
                loss = F.mse_loss(model(x, x[partner]), (label != label[partner]).float())
                loss.backward()
                probe.collect(step, loss)
                optimizer.step()
    except AlarmError as error:
        return f"AlarmError: {error}"
    raise RuntimeError("no alarm")


EXAMPLES: dict[str, Callable[[bool], History]] = {
    "nonfinite": nonfinite,
    "number format": number_format,
    "cut": cut,
    "dead": dead,
    "dead layer": dead_layer,
    "zero by initialisation": zero_by_initialisation,
    "vanishing": vanishing,
    "exploding": exploding,
    "tiny gradients": tiny_gradients,
    "cut over time": cut_over_time,
    "vanishing over time": vanishing_over_time,
    "exploding over time": exploding_over_time,
    "exploding activations": exploding_activations,
    "dead units": dead_units,
    "saturated": saturated,
    "equal units": equal_units,
    "dropout": dropout,
    "inputs collapse": inputs_collapse,
    "inputs alike": inputs_alike,
    "input scale": input_scale,
    "initial scale": initial_scale,
    "target scale": target_scale,
    "softmax twice": softmax_twice,
    "sigmoid twice": sigmoid_twice,
    "missing log softmax": missing_log_softmax,
    "activation on the output": activation_on_the_output,
    "softmax over samples": softmax_over_samples,
    "shapes": shapes,
    "guessing not beaten": guessing_not_beaten,
    "one class": guessing_not_beaten,
    "updates": updates,
    "diverging": diverging,
    "unbounded loss": unbounded_loss,
    "gradients pile up": gradients_pile_up,
    "weight decay": weight_decay,
    "no progress": no_progress,
    "clipped": clipped_gradients,
    "closed branches": closed_branches,
    "frozen": frozen,
    "tied weights": tied_weights,
    "rounding noise": rounding_noise,
    "idle experts": idle_experts,
    "unseen": unseen,
    "unknown": unknown,
}
"""A kind of finding -> a model that has it, or does not have it any more."""
