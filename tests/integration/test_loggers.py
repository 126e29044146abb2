"""A training's curves in real loggers, read back while the training runs and after a kill."""

import csv
import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from logged import (
    TAG,
    curve_of_mlflow,
    curve_of_tensorboard,
    curve_of_wandb,
    events,
    eventually,
    records_of_wandb,
    rows_of_wandb,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from gradexp import Config, GradientProbe
from gradexp.config import DataConfig
from gradexp.history.history import History
from gradexp.history.loggers import PICTURE
from gradexp.runs.experiment import run as run_of_ours
from gradexp.sinks.curves import curves_for

wandb = pytest.importorskip("wandb", reason="wandb is not installed")
mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger  # noqa: E402

from gradexp.integrations import lightning as of_lightning  # noqa: E402
from gradexp.integrations import transformers as of_transformers  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("on_one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),
]

STEPS = 4


def train(log, steps=STEPS, seen=None):
    """Train a small network, the gradient of which is not finite at step 2, and return the probe."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with GradientProbe(model, log=log) as probe:
        for step in range(steps):
            model.zero_grad()
            loss = model(torch.full((2, 3), 0.1 * step)).square().mean() * (float("inf") if step == 2 else 1.0)
            loss.backward()
            probe.collect(step, loss)
            if seen is not None:
                seen.append(step)
    return probe


def expected(probe):
    """Return the numbers of a curve that are not missing, by step."""
    history = probe.history
    values = history.log10["output_grad"][:, 0, history.names.index("0")]
    return {s: x for s, x in zip(history.steps, values.tolist(), strict=True) if x == x}


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory):
    """Keep wandb offline, which reads its environment once for all runs of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DIR", str(tmp_path_factory.mktemp("wandb")))
        yield
        wandb.teardown()


@pytest.fixture
def run(tmp_path):
    """Return an offline run of wandb."""
    with wandb.init(mode="offline", dir=str(tmp_path), project="gradexp") as run:
        yield run


def test_a_run_of_wandb_has_the_curves_and_the_findings(run):
    probe = train(run)
    file = run.settings.sync_file
    run.finish()
    rows = rows_of_wandb(file)
    assert curve_of_wandb(rows) == pytest.approx(expected(probe))
    assert ["nonfinite" in row.get("gradient/findings", "") for row in rows] == [False, False, True, False]


def test_a_run_of_wandb_keeps_what_else_is_logged_there(run):
    class Both(list):
        def append(self, step):
            run.log({"own": step}, step=step)

    train(run, seen=Both())
    file = run.settings.sync_file
    run.finish()
    rows = rows_of_wandb(file)
    assert [int(row["own"]) for row in rows] == [int(row["gradient/step"]) for row in rows] == [*range(STEPS)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return the file of an MLflow store."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.set_experiment("gradexp")
    return path


@pytest.mark.slow  # to start the process that writes takes seconds
def test_mlflow_has_the_curves_as_they_come_and_a_tag_for_a_finding(store):
    expected_steps = [[0], [0, 1], [0, 1], [0, 1, 3]]  # a loss that is infinite is none

    class Reader(list):
        def append(self, step):
            eventually(
                lambda: sorted(curve_of_mlflow(store, run.info.run_id, "gradient/loss")), expected_steps[step].__eq__
            )

    with mlflow.start_run() as run:
        probe = train(mlflow, seen=Reader())
    assert curve_of_mlflow(store, run.info.run_id) == pytest.approx(expected(probe))
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert tags["gradexp.nonfinite"].startswith("step 2: nonfinite: ")


def test_tensorboard_has_the_curves_as_they_come_and_findings_as_text(tmp_path):
    known = []

    class Reader(list):
        def append(self, step):
            known.append(sorted(curve_of_tensorboard(tmp_path, "gradient/zero_layers")))

    with SummaryWriter(str(tmp_path)) as writer:
        probe = train(writer, seen=Reader())
        probe.history.to_tensorboard(writer)
    assert known == [[*range(step + 1)] for step in range(STEPS)]
    assert curve_of_tensorboard(tmp_path) == pytest.approx(expected(probe), rel=1e-6)
    assert len(events(tmp_path).Scalars("gradient/zero_layers")) == STEPS  # none a second time
    (text,) = events(tmp_path).Tensors("gradient/findings/text_summary")
    assert text.step == 2
    assert b"nonfinite" in text.tensor_proto.string_val[0]


# Trainers


class Module(pl.LightningModule):
    def __init__(self, look):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.look = look

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *_):
        self.look()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(16, 3, generator=generator), torch.arange(16) % 2)


def fit(logger, look, epochs=1, **options):
    callback = of_lightning.GradientProbeCallback(every=1, **options)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet["log_every_n_steps"] = 1
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, logger=logger, callbacks=[callback], **quiet)
    trainer.fit(Module(look), DataLoader(data(), batch_size=4))
    return callback


NET = "log10_output_grad/net.0"


def of_net(callback):
    history = callback.history
    return dict(zip(history.steps, history.log10["output_grad"][:, 0, 0].tolist(), strict=True))


def test_the_loggers_of_lightning_have_each_step_while_the_training_runs(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    known = []

    def look():
        with Path(loggers[0].log_dir, "metrics.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        known.append((len(rows), sorted(curve_of_tensorboard(loggers[1].log_dir, NET))))

    callback = fit(loggers, look)
    assert known == [(count, [*range(count)]) for count in (1, 2, 3, 4)]
    with Path(loggers[0].log_dir, "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {int(row["step"]): float(row[NET]) for row in rows} == pytest.approx(of_net(callback))
    assert curve_of_tensorboard(loggers[1].log_dir, NET) == pytest.approx(of_net(callback), rel=1e-6)
    assert "profile/log10_output_grad" in events(loggers[1].log_dir).Tags()["scalars"]


def test_wandb_by_lightning_has_each_step(tmp_path):
    logger = WandbLogger(offline=True, save_dir=str(tmp_path), project="gradexp")
    file = logger.experiment.settings.sync_file
    callback = fit(logger, lambda: None)
    logger.experiment.finish()
    rows = rows_of_wandb(file)
    assert {int(r["trainer/global_step"]): float(r[NET]) for r in rows if NET in r} == pytest.approx(of_net(callback))


def test_a_callback_without_a_log_writes_nothing_while_the_training_runs(tmp_path):
    logger = CSVLogger(tmp_path, "csv")
    fit(logger, lambda: None, log=False)
    assert not Path(logger.log_dir, "metrics.csv").exists()


class Classifier(nn.Module):
    """What the Trainer trains."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, inputs, labels):
        logits = self.net(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Looks(transformers.TrainerCallback):
    """Looks after each step."""

    def __init__(self, look):
        self.look = look

    def on_step_end(self, *_, **__):
        self.look()


def run_trainer(folder, report_to, look=lambda: None, steps=STEPS, **options):
    callback = of_transformers.GradientProbeCallback(every=1, **options)
    quiet = {"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    arguments = transformers.TrainingArguments(
        str(folder), use_cpu=True, max_steps=steps, per_device_train_batch_size=4, report_to=report_to, **quiet
    )
    samples = [{"inputs": x, "labels": y} for x, y in data()]
    trainer = transformers.Trainer(Classifier(), arguments, train_dataset=samples, callbacks=[callback, Looks(look)])
    trainer.train()
    return callback


def test_what_the_trainer_reports_to_has_each_step_and_the_console_none(tmp_path, monkeypatch, store, capsys):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gradexp")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    known, runs = [], []

    def look():
        runs[:] = [mlflow.active_run().info.run_id]
        known.append(sorted(curve_of_tensorboard(tmp_path / "runs", f"train/{NET}")))

    methods = transformers.trainer_callback.CallbackHandler.call_event
    callback = run_trainer(tmp_path, ["tensorboard", "mlflow"], look)
    mlflow.flush_async_logging()  # in which the Trainer's own callback logs
    mlflow.end_run()
    assert known == [[*range(count)] for count in (1, 2, 3, 4)]
    assert curve_of_mlflow(store, runs[0], NET) == pytest.approx(of_net(callback))
    assert NET not in capsys.readouterr().out
    assert transformers.trainer_callback.CallbackHandler.call_event is methods


def test_wandb_by_the_trainer_has_each_step(tmp_path):
    files = []
    callback = run_trainer(tmp_path, ["wandb"], lambda: files.append(wandb.run.settings.sync_file))
    wandb.finish()
    file = files[0]
    tag = f"train/{NET}"
    rows = [row for row in rows_of_wandb(file) if tag in row]
    assert {int(r["train/global_step"]): float(r[tag]) for r in rows} == pytest.approx(of_net(callback))


def test_the_log_of_a_trainer_is_a_target_too(tmp_path):
    logged = []
    trainer = SimpleNamespace(log=logged.append, add_callback=None)
    trainer.add_callback = lambda callback: None
    train(trainer, steps=1)
    assert TAG in logged[0]


# Runs


def result_of(name, folder):
    folder.mkdir()
    options = Config(depth=4, width=8, steps=12, data=DataConfig("gaussian", samples=100))
    return run_of_ours(options, [curves_for(name, folder, "sweep", figures=True)])


def test_each_run_is_one_of_wandb(tmp_path):
    for name in ("a", "b"):
        result = result_of("wandb", tmp_path / name)
        (file,) = (tmp_path / name / "wandb").glob("offline-run-*/*.wandb")
        rows = rows_of_wandb(file)
        losses = {int(row["gradient/step"]): float(row["train/loss"]) for row in rows if "train/loss" in row}
        assert losses == pytest.approx(dict(enumerate(result.training.losses)))
        tag = "profile/log10_output_grad"
        profile = {int(row["profile/layer"]): float(row[tag]) for row in rows if tag in row}
        assert [profile[layer] for layer in (1, 2, 3, 4)] == pytest.approx(result.initial.profile("output_grad"))
        assert len(pictures_of_wandb(file)) == 1
        (own,) = [record.run for record in records_of_wandb(file) if record.HasField("run")][-1:]
        assert (own.display_name, own.run_group) == (name, "sweep")
    assert wandb.run is None


@pytest.mark.slow
def test_each_run_is_one_of_mlflow(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "runs")
    mlflow.set_experiment("runs")
    result = result_of("mlflow", tmp_path / "a")
    assert mlflow.active_run() is None
    (own,) = mlflow.search_runs(experiment_names=["runs"], output_format="list")
    assert (own.info.run_name, own.info.status) == ("a", "FINISHED")
    assert curve_of_mlflow(store, own.info.run_id, "train/loss") == dict(enumerate(result.training.losses))
    assert own.data.params["depth"] == "4"
    assert own.data.metrics["summary/loss_last"] == result.training.losses[-1]
    assert own.data.tags[f"gradexp.{result.verdict.gradient}"].endswith(result.verdict.text)
    mlflow.set_experiment("gradexp")


# Pictures


ENOUGH = 12  # steps for a picture at the end


def pictures_of_tensorboard(folder):
    return [(image.step, image.width, image.height) for image in events(folder).Images(PICTURE)]


def pictures_of_wandb(file):
    """Return the fields of each, which have columns of their own."""
    rows = rows_of_wandb(file)
    columns = {column for row in rows for column in row if column.startswith(f"{PICTURE}.")}
    found = [{column.rpartition(".")[2]: json.loads(row[column]) for column in columns & row.keys()} for row in rows]
    return [picture for picture in found if picture]


def test_tensorboard_takes_a_picture(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        train(writer, ENOUGH)
    assert pictures_of_tensorboard(tmp_path) == [(ENOUGH - 1, 728, 442)]


def test_wandb_takes_a_picture(run):
    train(run, ENOUGH)
    file = run.settings.sync_file
    run.finish()
    (picture,) = pictures_of_wandb(file)
    assert (picture["_type"], picture["width"], picture["height"]) == ("image-file", 728, 442)
    assert (Path(file).parent / "files" / picture["path"]).stat().st_size == picture["size"]


@pytest.mark.slow
def test_mlflow_takes_a_picture_as_an_artifact(store, tmp_path):
    experiment = mlflow.create_experiment("pictures", artifact_location=str(tmp_path))
    with mlflow.start_run(experiment_id=experiment) as run:
        train(mlflow, ENOUGH)
    (picture,) = mlflow.MlflowClient().list_artifacts(run.info.run_id, PICTURE)
    assert picture.path == f"{PICTURE}/{ENOUGH - 1:08}.png"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trackers_of_accelerate_take_a_picture(tmp_path):
    accelerator = accelerate.Accelerator(log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("demo")
    train(accelerator.log, ENOUGH)
    accelerator.end_training()
    assert pictures_of_tensorboard(tmp_path / "demo") == [(ENOUGH - 1, 728, 442)]


@pytest.mark.usefixtures("store")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mlflow_by_accelerate_has_picture_and_findings(tmp_path):
    mlflow.create_experiment("accelerated", artifact_location=str(tmp_path))
    accelerator = accelerate.Accelerator(log_with="mlflow", project_dir=str(tmp_path))
    accelerator.init_trackers("accelerated")
    run = accelerator.trackers[0].tracker.info.run_id
    train(accelerator.log, ENOUGH)
    accelerator.end_training()
    client = mlflow.MlflowClient()
    (picture,) = client.list_artifacts(run, PICTURE)
    assert picture.path == f"{PICTURE}/{ENOUGH - 1:08}.png"
    assert any(tag.startswith("gradexp.") for tag in client.get_run(run).data.tags)


@pytest.mark.parametrize("is_tensorboard", [True, False])
def test_loggers_of_lightning_that_take_a_picture_have_one_at_the_end(tmp_path, is_tensorboard):
    logger = TensorBoardLogger(tmp_path, "board") if is_tensorboard else CSVLogger(tmp_path, "csv")
    fit(logger, lambda: None, epochs=3)
    pictures = pictures_of_tensorboard(logger.log_dir) if is_tensorboard else []
    assert pictures == ([(ENOUGH - 1, 728, 442)] if is_tensorboard else [])


def test_wandb_by_lightning_takes_a_picture(tmp_path):
    logger = WandbLogger(offline=True, save_dir=str(tmp_path), project="gradexp")
    file = logger.experiment.settings.sync_file
    fit(logger, lambda: None, epochs=3)
    logger.experiment.finish()
    (picture,) = pictures_of_wandb(file)
    assert picture["count"] == 1


def test_what_the_trainer_reports_to_takes_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    files = []
    run_trainer(tmp_path, ["tensorboard", "wandb"], lambda: files.append(wandb.run.settings.sync_file), ENOUGH)
    wandb.finish()
    assert pictures_of_tensorboard(tmp_path / "runs") == [(ENOUGH - 1, 728, 442)]
    (picture,) = pictures_of_wandb(files[0])
    assert picture["_type"] == "image-file"


# The page


PAGE = Path(__file__).parents[2] / "docs" / "loggers.md"


def blocks():
    """Return the examples of the page, each with the first word of its library."""
    texts = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names = ("lightning", "transformers", "accelerate", "wandb", "mlflow", "curves.csv", "training.record", "run.csv")
    return {next(name for name in names if name in text): text for text in texts}


@pytest.mark.parametrize(
    "name", ["curves.csv", "training.record", "run.csv", "wandb", "mlflow", "accelerate", "lightning", "transformers"]
)
@pytest.mark.usefixtures("store")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_example_of_the_page_runs_and_logs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Classifier() if name == "transformers" else nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {
        "model": model,
        "optimizer": optimizer,
        "loss_fn": F.cross_entropy,
        "batches": DataLoader(data(), batch_size=4),
        "module": Module(lambda: None),
        "dataset": [{"inputs": x, "labels": y} for x, y in data()],
    }
    exec(blocks()[name], names)
    if "probe" in names and name not in ("curves.csv", "training.record", "run.csv"):  # which no loop follows
        with mlflow.start_run() if name == "mlflow" else nullcontext(), names["probe"] as probe:
            loss = names["model"](torch.ones(2, 3)).square().mean()
            loss.backward()
            probe.collect(0, loss)
            names["optimizer"].step()
    assert NEEDLE[name](tmp_path)


def events_in(folder):
    return any(b"log10_output_grad" in path.read_bytes() for path in folder.rglob("*.tfevents*"))


def in_wandb(_):
    file = wandb.run.settings.sync_file
    wandb.finish()
    return len(curve_of_wandb(rows_of_wandb(file))) == 1


NEEDLE = {
    "curves.csv": lambda folder: "log10_update_ratio" in (folder / "curves.csv").read_text(),
    "training.record": lambda folder: History.load(folder / "training.record").steps == [0],
    "run.csv": lambda folder: "log10_output_grad" in (folder / "run.csv").read_text(),
    "wandb": in_wandb,
    "mlflow": lambda _: TAG in mlflow.last_active_run().data.metrics,
    "accelerate": lambda folder: events_in(folder / "runs"),
    "lightning": lambda folder: any(NET in p.read_text() for p in folder.rglob("metrics.csv")) or events_in(folder),
    "transformers": events_in,
}
"""Where the curves of each example are."""
