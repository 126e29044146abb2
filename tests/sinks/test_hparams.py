import json
import math

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig
from gradexp.runs.experiment import run
from gradexp.runs.result import Result
from gradexp.runs.summary import metrics
from gradexp.runs.training import Training
from gradexp.sinks.files import Files
from gradexp.sinks.hparams import VERDICTS, options
from gradexp.sinks.tensorboard import TensorBoard

METRICS = [
    *("log_chi", "log_chi_theory", "z", "log10_first_over_last", "depth_scale", "loss_first", "loss_last"),
    *("train_accuracy", "test_accuracy", "diverged_at", "seconds", "verdict_code"),
]


def small(**options):
    return Config(**({"depth": 4, "width": 8, "steps": 3, "batch_size": 8} | options))


def show(folder):
    """Return what TensorBoard's server tells the HParams tab: the columns, and the runs by name."""
    found = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(found, str(folder))))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=1000,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN],
    )
    ctx, own = RequestContext(), context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(
        ctx, "", include_metrics=True, hparams_run_to_tag_to_content=own, data_provider_hparams=[]
    )
    request.col_params.extend(
        [api_pb2.ColParams(hparam=info.name, include_in_result=True) for info in experiment.hparam_infos]
        + [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    )
    reply = Handler(ctx, context, "", request).run()
    return experiment, {group.sessions[0].name: group for group in reply.session_groups}


def plain(value):
    return getattr(value, value.WhichOneof("kind"))


def hparam_metrics(group):
    return {value.name.tag.removeprefix("summary/"): value.value for value in group.metric_values}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of several schemes, one that diverged and one that failed, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {
        "he": small(widths=[8, 6, 5]),
        "normal": small(init=InitConfig("normal", std=0.5), activation="tanh", normalization="layer"),
        "mean_field": small(
            init=InitConfig("mean_field", sigma_w2=1.5), sigma_b2=0.25, optimizer=OptimizerConfig("adam")
        ),
        "diverged": small(optimizer=OptimizerConfig(lr=1e30)),
        "regression": small(data=DataConfig("ones"), steps=0),
        "failed": small(data=DataConfig("ones"), loss="cross_entropy"),
    }
    results = {}
    for name, config in configs.items():
        own = folder / name
        own.mkdir()
        try:
            results[name] = run(config, [Files(own), TensorBoard(own, subruns=False)], [f"init={config.init.name}"])
        except ValueError:
            results[name] = Result(config)
    return folder, results


def test_every_run_has_the_same_columns_and_is_shown_by_its_own_name(runs):
    folder, results = runs
    experiment, groups = show(folder)
    assert groups.keys() == results.keys()
    assert sorted(info.display_name for info in experiment.metric_infos) == sorted(METRICS)
    for name in results:  # TensorBoard takes the columns from any one run
        alone, _ = show(folder / name)
        assert {(info.name, info.type) for info in alone.hparam_infos} == {
            (info.name, info.type) for info in experiment.hparam_infos
        }
        assert alone.metric_infos == experiment.metric_infos


def test_options_are_shown_as_they_are_typed(runs):
    folder, results = runs
    experiment, groups = show(folder)
    columns = {info.name: info.type for info in experiment.hparam_infos}
    assert columns.keys() == options(Config()).keys() | set(VERDICTS.values())
    assert not [key for key in columns if key.split(".")[0] in ("device", "threads", "quiet", "record")]
    for name, result in results.items():
        shown = {key: plain(value) for key, value in groups[name].hparams.items()}
        given = {key: value for key, value in options(result.config).items() if value is not None}
        if result.verdict:
            given |= {column: getattr(result.verdict, key) for key, column in VERDICTS.items()}
        assert shown == {key: str(value) if key == "widths" else value for key, value in given.items()}
        for key, value in shown.items():
            kind = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING, float: api_pb2.DATA_TYPE_FLOAT64}
            assert columns[key] == kind[type(value)], key
    assert plain(groups["he"].hparams["widths"]) == "[8, 6, 5]"
    assert plain(groups["normal"].hparams["init.std"]) == 0.5
    assert "init.std" not in groups["he"].hparams  # an empty cell
    assert plain(groups["mean_field"].hparams["optimizer"]) == "adam"
    assert plain(groups["diverged"].hparams["Learned"]) == "diverged"


def test_metrics_are_the_numbers_of_the_summary(runs):
    folder, results = runs
    _, groups = show(folder)
    for name in results:
        content = json.loads((folder / name / "summary.json").read_text())
        numbers = {key: value for key, value in metrics(content).items() if key in METRICS and value is not None}
        if results[name].verdict:
            numbers["verdict_code"] = {"vanishing": -1, "stable": 0, "exploding": 1}[results[name].verdict.gradient]
        assert hparam_metrics(groups[name]) == pytest.approx(numbers, rel=1e-6)
    assert {"log_chi", "loss_last", "train_accuracy"} <= hparam_metrics(groups["he"]).keys()
    assert hparam_metrics(groups["diverged"])["diverged_at"] == results["diverged"].training.diverged_at
    assert "train_accuracy" not in hparam_metrics(groups["diverged"])
    assert hparam_metrics(groups["failed"]).keys() == {"seconds"}


@pytest.mark.slow
def test_a_run_that_failed_is_shown_as_failed(runs):
    _, groups = show(runs[0])
    for name, group in groups.items():
        session = group.sessions[0]
        assert session.status == (api_pb2.STATUS_FAILURE if name == "failed" else api_pb2.STATUS_SUCCESS)
        seconds = session.end_time_secs - session.start_time_secs
        assert seconds == pytest.approx(hparam_metrics(group)["seconds"], abs=1e-3)


def test_an_interrupted_run_is_shown_as_failed(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write("end", Result(small(), device="cpu", status="interrupted", training=Training([2.5])))
    sink.close()
    _, groups = show(tmp_path)
    (group,) = groups.values()
    assert group.sessions[0].status == api_pb2.STATUS_FAILURE
    assert hparam_metrics(group) == {"loss_first": 2.5, "loss_last": 2.5}


def first_columns(folder):
    """Return the columns that count as differing, in TensorBoard's order, and the first metrics."""
    typed = ["+experiment=x", "optimizer=sgd", "init.gain=2", "++seed=3", "steps=20"]
    sink = TensorBoard(folder)
    sink.write("end", Result(small(), typed, device="cpu"))
    sink.close()
    experiment, _ = show(folder)
    return [info.name for info in experiment.hparam_infos if info.differs], experiment


def test_verdicts_come_first_and_then_the_options_of_the_command_line(tmp_path):
    names, experiment = first_columns(tmp_path)
    assert names == ["Gradient", "Learned", "Theory", "init.gain", "optimizer", "seed", "steps"]
    assert [info.name for info in experiment.hparam_infos][: len(names)] == names
    # TensorBoard shows five metrics at first.
    first = ["log_chi", "log10_first_over_last", "verdict_code", "loss_last", "test_accuracy"]
    assert [info.display_name for info in experiment.metric_infos][:5] == first


def test_in_a_sweep_only_the_options_in_the_name_of_the_job_differ(tmp_path):
    names, _ = first_columns(tmp_path / "3_init.gain=2,seed=3")
    assert names == ["Gradient", "Learned", "Theory", "init.gain", "seed"]


def test_a_number_that_tensorboard_cannot_hold_is_left_empty(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write("end", Result(small(), device="cpu", training=Training([1e300, math.inf], diverged_at=1)))
    sink.close()
    _, groups = show(tmp_path)
    assert hparam_metrics(next(iter(groups.values()))) == {"diverged_at": 1}
