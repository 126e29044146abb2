import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure
from gradexp.diagnosis.examination import Observer
from gradexp.diagnosis.guard import Guarded, harmless
from gradexp.diagnosis.nonfinite import Nonfinite
from gradexp.diagnosis.zeros import ZeroInitialised
from gradexp.history.finding import Finding
from gradexp.probe.births import Births

METHODS = ("begin", "see_call", "see_loss", "findings")


class Well(Observer):
    def findings(self, _examination):
        return [Finding("seen", "something", (), "", 1)]


def failing(method):
    def fail(*_):
        raise ZeroDivisionError("of its own\nand more")

    return type("Broken", (Observer,), {method: fail})


def measured(monkeypatch, *observers):
    monkeypatch.setitem(measure.__globals__, "OBSERVERS", observers)
    torch.manual_seed(0)
    return measure(nn.Linear(3, 1), F.mse_loss, (torch.ones(2, 3), torch.zeros(2, 1)))


@pytest.mark.parametrize("method", METHODS)
def test_an_observer_that_fails_costs_its_own_findings_and_is_told(monkeypatch, method):
    monkeypatch.delenv("GRADEXP_STRICT")
    with pytest.warns(RuntimeWarning, match="did not look for what Broken finds.*: ZeroDivisionError: of its own$"):
        history = measured(monkeypatch, failing(method), Well)
    assert [finding.kind for finding in history.findings[0]] == ["seen"]
    assert list(history.profile("weight_grad")) == list(measured(monkeypatch, Well).profile("weight_grad"))


@pytest.mark.parametrize("method", METHODS)
def test_tests_see_the_error_of_an_observer(monkeypatch, method):
    with pytest.raises(ZeroDivisionError):
        measured(monkeypatch, failing(method), Well)


def test_an_observer_that_has_failed_is_asked_no_more(monkeypatch):
    monkeypatch.delenv("GRADEXP_STRICT")
    observer = Guarded(failing("begin")())
    with pytest.warns(RuntimeWarning, match="Broken"):
        observer.begin(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observer.begin(None)
        assert observer.findings(None) == ()


def test_a_hook_that_fails_lets_the_backward_pass_go_on(monkeypatch):
    monkeypatch.delenv("GRADEXP_STRICT")
    x = torch.ones(2, requires_grad=True)
    y = 2 * x
    y.grad_fn.register_hook(harmless(ZeroInitialised, lambda *_: 1 / 0))
    with pytest.warns(RuntimeWarning, match="ZeroInitialised finds.*: ZeroDivisionError"):
        y.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_a_watched_operation_that_cannot_be_read_costs_no_numbers(monkeypatch):
    expected = measured(monkeypatch, Well)

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Births, "_see_operation", fail)
    monkeypatch.delenv("GRADEXP_STRICT")
    with pytest.warns(RuntimeWarning, match="Nonfinite finds.*: ZeroDivisionError"):
        history = measured(monkeypatch, Nonfinite, Well)
    assert list(history.profile("weight_grad")) == list(expected.profile("weight_grad"))
