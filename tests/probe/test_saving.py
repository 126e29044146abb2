"""``save=``: the record on disk is what the probe has seen, at any time, and after whatever stops a training."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from histories import assert_same
from torch import nn

from gradexp import GradientProbe
from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.probe_steps import Subject
from gradexp.history.record_file import RecordFile
from gradexp.history.step import QUANTITIES, STATUSES
from gradexp.probe.alarm import AlarmError


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def train(model, path, steps=range(4), optimizers=None, after=lambda step: None, probe=None, **options):
    """Return the probe of a training whose batch depends on the step alone."""
    own = [torch.optim.SGD(model.parameters(), lr=0.1)] if optimizers is None else optimizers
    probe = GradientProbe(model, optimizer=own, save=path, **options) if probe is None else probe
    with probe:
        for step in steps:
            model.zero_grad()
            inputs = torch.rand(2, 3, generator=torch.Generator().manual_seed(step))
            loss = model(inputs).square().mean()
            loss.backward()
            probe.collect(step, loss)
            for optimizer in own:
                optimizer.step()
            after(step)
    return probe


def test_the_file_has_exactly_what_the_probe_has(tmp_path):
    model, path = network(), tmp_path / "record"
    stats = {"dead/share": lambda x: (x == 0).double().mean(), "größte": lambda x: x.abs().max()}
    probe = train(model, path, per_sample=True, stats=stats)
    assert probe.history.samples.shape == (4, 1, 2, 2)
    assert probe.history.feeds
    assert probe.history.kinds == ["Linear(4x3)", "Linear(1x4)"]
    assert_same(History.load(path), probe.history)


def test_two_networks_time_steps_and_vectors_come_back(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, path = Reader(), tmp_path / "record"
    with GradientProbe(model, time=True, save=path, quantities=("output_grad", "vector_grad")) as probe:
        for step in range(3):
            model(torch.rand(2, 3 + step, 3)).sum().backward()
            probe.collect(step)
    assert probe.history.time_log10
    assert_same(History.load(path), probe.history)


def test_the_file_can_be_read_after_each_step_of_the_optimizer(tmp_path):
    model, path, read = network(), tmp_path / "record", []
    probe = train(model, path, after=lambda step: read.append(History.load(path)))
    assert [history.steps for history in read] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert_same(read[-1], probe.history)
    for history in read:
        assert np.isfinite(history.log10["update"]).all()


def test_no_step_writes_earlier_ones_again(tmp_path):
    model, path, sizes = network(), tmp_path / "record", []
    train(model, path, range(100, 140), after=lambda step: sizes.append(path.stat().st_size))
    grown = np.diff(sizes)
    assert grown.max() - grown.min() <= 64  # a header of .npy is a multiple of 64 bytes


def test_updates_of_a_second_optimizer_and_late_findings_are_in_the_file(tmp_path):
    model, path = network(), tmp_path / "record"
    optimizers = [torch.optim.SGD(model[index].parameters(), lr=0.1) for index in (0, 2)]
    told = []

    def tell(step):
        if step == 2:
            told.append(Finding("clipped", "by 1.0", ("0",), severity=1))
            probe.add_finding(told[0])

    probe = GradientProbe(model, optimizer=optimizers, save=path)
    train(model, path, optimizers=optimizers, after=tell, probe=probe)
    history = History.load(path)
    assert history.findings[2] == tuple(told)
    assert np.isfinite(history.log10["update"]).all()
    assert_same(history, probe.history)


def test_rows_that_first_appear_later_are_in_the_file(tmp_path):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
            self.uses = 1

        def forward(self, x):
            x = self.a(x)
            for _ in range(self.uses - 1):
                x = self.b(x)
            return self.c(x)

    model, path = Growing(), tmp_path / "record"
    probe = train(model, path, after=lambda step: setattr(model, "uses", step + 1))
    assert list(zip(probe.history.names, probe.history.calls, strict=True)) == [
        ("a", 0),
        ("b", 0),
        ("b", 1),
        ("c", 0),
    ]
    assert_same(History.load(path), probe.history)


@pytest.mark.parametrize("is_clean", [True, False])
def test_a_training_goes_on_in_the_same_record(tmp_path, is_clean):
    """The killed one has recorded two steps after its checkpoint, which come again."""
    whole = train(network(), tmp_path / "whole", range(8)).history
    path, model, states = tmp_path / "record", network(), []
    train(
        model, path, range(6), after=lambda step: states.append({k: v.clone() for k, v in model.state_dict().items()})
    )
    if not is_clean:
        with path.open("ab") as file:  # a step that was written half
            file.write(path.read_bytes()[:200])
    other = network(seed=1)
    other.load_state_dict(states[3])
    probe = train(other, path, range(4, 8))
    assert_same(probe.history, whole)
    assert_same(History.load(path), whole)


def test_the_count_of_collects_is_the_state_of_a_probe(tmp_path):
    whole = train(network(), tmp_path / "whole", range(12), every=4)
    first = train(model := network(), tmp_path / "record", range(6), every=4)
    probe = GradientProbe(
        model, optimizer=(sgd := torch.optim.SGD(model.parameters(), lr=0.1)), every=4, save=tmp_path / "record"
    )
    probe.load_state_dict(first.state_dict())
    train(model, None, range(6, 12), optimizers=[sgd], probe=probe)
    assert probe.history.steps == [0, 4, 8]
    assert_same(History.load(tmp_path / "record"), whole.history)
    with pytest.raises(ValueError, match=r"^the state of a probe has 'collects', got {}$"):
        probe.load_state_dict({})


def test_cut_short_at_any_byte_the_file_has_the_steps_that_are_whole(tmp_path):
    model, path, sizes, rng = network(), tmp_path / "record", [], np.random.default_rng(0)
    train(model, path, after=lambda step: sizes.append(path.stat().st_size))
    data = path.read_bytes()
    begin = History.load(path).steps and data.index(b"\x93NUMPY", 1)
    for size in [*sizes, *(size - 1 for size in sizes), *rng.integers(begin, len(data), 60)]:
        (tmp_path / "cut").write_bytes(data[:size])
        assert History.load(tmp_path / "cut").steps == [*range(sum(end <= size for end in sizes))]


def test_what_comes_after_damage_is_left_out_with_a_warning(tmp_path):
    model, path, sizes = network(), tmp_path / "record", []
    train(model, path, after=lambda step: sizes.append(path.stat().st_size))
    data = bytearray(path.read_bytes())
    data[sizes[1] : sizes[1] + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=f"is damaged at byte {sizes[1]}: what comes after step 1 is left out"):
        assert History.load(path).steps == [0, 1]
    with pytest.raises(ValueError, match=f"is damaged at byte {sizes[1]}; give another path"):
        train(model, path)
    assert path.read_bytes() == data


def test_keep_bounds_what_is_in_memory_and_the_file_has_all(tmp_path):
    model, path = network(), tmp_path / "record"
    whole = train(network(), tmp_path / "whole", range(60)).history
    lengths, logged = [], []
    probe = GradientProbe(
        model,
        optimizer=(sgd := torch.optim.SGD(model.parameters(), lr=0.1)),
        save=path,
        keep=5,
        log=lambda step, numbers: logged.append(step),
    )
    train(model, path, range(60), [sgd], lambda step: lengths.append(len(probe.history.steps)), probe)
    assert logged == [*range(60)]
    assert repr(probe) == "GradientProbe(2 modules, 60 steps recorded, not attached)"
    assert max(lengths) == 10
    kept = probe.history.steps
    assert kept[0] == 0
    assert kept[-5:] == [55, 56, 57, 58, 59]
    assert_same(History.load(path), whole)
    np.testing.assert_array_equal(probe.history.log10["output"], whole.log10["output"][kept])
    restored = GradientProbe(model, optimizer=sgd, save=path, keep=5)
    assert len(restored.history.steps) <= 10
    train(model, path, range(58, 61), [sgd], probe=restored)
    assert History.load(path).steps == [*range(61)]
    assert History.load(path, every=25).steps == [0, 25, 50, 60]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (b"step,loss\n0,1.0\n", "is no record of a training; give another path"),
        (b"abc", "is no record of a training; give another path"),
        (lambda file: np.save(file, np.arange(3.0)), "is no record of a training; give another path"),
        (lambda file: np.savez(file, np.arange(3.0)), "is no record of a training; give another path"),
    ],
)
def test_another_file_is_left_as_it_is(tmp_path, there, message):
    path = tmp_path / "record"
    with path.open("wb") as file:
        file.write(there) if isinstance(there, bytes) else there(file)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        GradientProbe(network(), save=path)
    assert path.read_bytes() == before


def test_the_record_of_another_model_is_left_as_it_is(tmp_path):
    path = tmp_path / "record"
    train(network(), path)
    before = path.read_bytes()
    sgd = {"optimizer": torch.optim.SGD((wider := network(width=5)).parameters(), lr=0.1)}
    with pytest.raises(ValueError, match=r"\(parameters: 21 there, 26 here\); give another path$"):
        GradientProbe(wider, save=path, **sgd)
    with pytest.raises(ValueError, match=r"\(quantities: 'weight' there, None here\)"):
        GradientProbe(network(), save=path)
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"is the record of another training \(names: '2' there, '1' here\)"):
        GradientProbe(other, save=path, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    assert path.read_bytes() == before


def test_wrong_options_are_told_in_one_line(tmp_path):
    with pytest.raises(TypeError, match=r"^save must be a path, got 3$"):
        GradientProbe(network(), save=3)
    with pytest.raises(ValueError, match=r"^keep needs save=, a file for the other steps$"):
        GradientProbe(network(), keep=3)
    with pytest.raises(ValueError, match=r"^keep must be at least 1, got 0$"):
        GradientProbe(network(), save=tmp_path / "record", keep=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        GradientProbe(network(), save=tmp_path / "nowhere" / "record")
    with pytest.raises(IsADirectoryError):
        GradientProbe(network(), save=tmp_path)


def test_on_a_full_disk_the_training_goes_on_and_what_is_missing_comes_later(tmp_path):
    """A limit on the size of files stands for the disk: the step at the limit is written in part."""
    resource = pytest.importorskip("resource", reason="the system has no limits on files")
    model, path, sizes = network(), tmp_path / "record", []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step):
        sizes.append(path.stat().st_size)
        if step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] + 300, limits[1]))
        if step == 4:
            assert History.load(path).steps == [0, 1]
            assert len(set(sizes[1:])) == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    try:
        with pytest.warns(RuntimeWarning, match=r"^step 2 is not saved, but stays in memory") as warned:
            probe = train(model, path, range(7), after=fill, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(warned) == 1
    assert History.load(path).steps == [*range(7)]
    assert probe.history.steps == [0, 6]


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4])])
def test_an_interval_counts_the_steps_that_were_not_replaced(tmp_path, every, steps):
    """After a stop at step 6 the training goes on from a checkpoint at step 3."""
    train(model := network(), tmp_path / "record", range(7))
    probe = train(model, tmp_path / "record", range(3, 5))
    whole, some = probe.history, History.load(tmp_path / "record", every)
    assert some.steps == steps
    assert np.array_equal(some.log10["output"], whole.log10["output"][steps])


def test_steps_that_are_read_share_nothing(tmp_path):
    train(network(), path := tmp_path / "record")
    restored = []
    RecordFile(path, Subject(["0", "2"], [*QUANTITIES], 1, [0]), restored.append)
    restored[1].reading.dtypes.clear()
    restored[1].reading.log10["output"][:] = 0.0
    assert "output" in restored[2].reading.dtypes
    assert (restored[1].reading.log10["output_grad"] != 0.0).all()
    assert (restored[2].reading.log10["output"] != 0.0).all()


def test_an_interval_is_for_records_and_at_least_1(tmp_path):
    history = train(network(), tmp_path / "record").history
    history.save(tmp_path / "saved.npz")
    assert History.load(tmp_path / "record", every=2).steps == [0, 2, 3]
    for name, every in (("record", 0), ("saved.npz", 2)):
        with pytest.raises(
            ValueError, match=f"^every must be at least 1, and is for the record of a probe, got {every}"
        ):
            History.load(tmp_path / name, every)


def test_two_trainings_do_not_write_into_one_record(tmp_path):
    path, models = tmp_path / "record", [network(), network()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    probes = [GradientProbe(models[i], optimizer=optimizers[i], save=path) for i in range(2)]
    train(models[0], None, range(2), [optimizers[0]], probe=probes[0])
    with pytest.warns(RuntimeWarning, match="^step 0 is not saved.*was changed by another program$"):
        train(models[1], None, range(3), [optimizers[1]], probe=probes[1])
    assert_same(History.load(path), probes[0].history)
    assert probes[1].history.steps == [0, 1, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_one_saves(rank, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    probe = train(network(), tmp_path / "record", range(9), keep=2)
    assert (tmp_path / "record").exists() == (rank == 0)
    assert probe.history.steps[-2:] == [7, 8]
    assert len(probe.history.steps) <= 4


def test_what_an_alarm_has_found_is_in_the_file(tmp_path):
    model = network()
    with torch.no_grad():
        model[2].weight[0, 1] = torch.inf
    with pytest.raises(AlarmError) as caught:
        train(model, tmp_path / "record", alarm="raise")
    history = History.load(tmp_path / "record")
    assert history.steps == [0]
    assert caught.value.finding in history.findings[0]


def test_training_is_the_same_bit_for_bit(tmp_path):
    models = [network(), network()]
    train(models[0], tmp_path / "record", keep=1)
    train(models[1], None)
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)


KILLED = """
import sys, torch
from torch import nn
from gradexp import GradientProbe
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with GradientProbe(model, optimizer=optimizer, save=sys.argv[1]) as probe:
    for step in range(100_000):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().mean().backward()
        probe.collect(step)
        print(step, flush=True)
        optimizer.step()
"""


@pytest.mark.slow
def test_a_killed_training_has_lost_at_most_its_last_recorded_step(tmp_path):
    rng = np.random.default_rng(0)
    for attempt in range(3):
        path = tmp_path / f"record{attempt}"
        last = int(rng.integers(1, 300))
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if int(line) == last:
                    process.send_signal(signal.SIGKILL)
                    break
            printed = [last, *map(int, process.stdout.read().split())]
        history = History.load(path)
        assert history.steps == [*range(len(history.steps))]
        assert len(history.steps) >= printed[-1]  # all before the one that was printed last
        assert (history.status["update"] != STATUSES.index("not_called")).all()
