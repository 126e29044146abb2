"""What hooks see between two collects: passes of a model, calls of its modules, and gradients that come back."""

import sys
from collections.abc import Callable, Container, Iterable, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from gradexp.history.probe_steps import Row
from gradexp.numerics.torch_internals import is_dynamo_loaded, is_recomputing
from gradexp.probe.calls import ModuleCall, ProbeSpec
from gradexp.probe.graph import Feeds, Graph
from gradexp.probe.passes import ForwardPass, Parameters, Passes
from gradexp.probe.readings import PendingStep, TensorSize


class Trace:
    """What the hooks see between two collects.

    Args:
        plan: The numbers to take.
        parameters: The parameters whose ``.grad`` tells which backward passes count.
        graph: What tells which calls feed which; None if that is known already.
    """

    def __init__(self, plan: ProbeSpec, parameters: Parameters, graph: Graph | None = None) -> None:
        self.plan = plan
        self.graph = graph
        self.passes: Passes = Passes(parameters)
        self.eager = False  # compiled code runs eagerly, so that hooks are called
        self.calls: list[ModuleCall] = []
        self.transformed: set[str] = set()  # modules that are compiled for good, or ran inside vmap and the like
        self._pass: ForwardPass | None = None
        self._inside: list[int] = []  # how deep in the stack each running call of the model's own forward is
        self._to_be_rerun: dict[str, ModuleCall | None] = {}  # calls without a graph that a checkpoint may run again
        self._positions: dict[str, int] = {}  # of modules that ran without a graph outside of the model's forward
        self._handles: list[Any] = []

    def close(self) -> None:
        """Stop looking: gradients that arrive later belong to no trace."""
        self.passes.close()
        if self.graph is not None:
            self.graph.close()
        self.calls = []
        for handle in self._handles:
            handle.remove()

    def begin_pass(self, graph: bool, *_: Any) -> None:
        """Begin a new pass (a hook before the model's forward)."""
        if not is_recomputing():
            depth = _stack_depth()
            # torch runs no hook after a call that Ctrl-C has ended; what begins no deeper is not inside of it.
            while self._inside and depth <= self._inside[-1]:
                self._inside.pop()
            if not self._inside:  # or it calls itself
                self._begin_pass(graph)
            self._inside.append(depth)

    def end_pass(self, *_: Any) -> None:
        """Note that the model's own forward is over (a hook after it, also after an exception)."""
        if not is_recomputing() and self._inside:
            self._inside.pop()

    def see_output(self, graph: bool, name: str, module: nn.Module, args: Any, output: Any) -> ModuleCall | None:
        """Measure what a module returned and hook the gradients of its tensors (a hook after its forward).

        Returns:
            The call, if it counts.
        """
        call = self._call_of(name, graph)
        if call is not None:
            self._handles.extend(call.see_output(module, args, output, self.graph))
        return call

    def hidden(self, names: Iterable[str]) -> list[str]:
        """Return the modules that ran where hooks see nothing, or that an unnoticed compilation hides."""
        if self.transformed or self.eager or self.calls or not is_dynamo_loaded():
            return [name for name in names if name in self.transformed]
        return list(names)

    def bypassed(self, names: Iterable[str]) -> list[str]:
        """Return the names of modules whose weights took part in a pass though they were not called.

        As where ``forward`` is called in place of the module, or another module computes with its weights.
        """
        called = {call.name for call in self.calls}
        return [name for name in names if name not in called and self.passes.brought(name, called)]

    def kept_calls(self) -> Sequence[ModuleCall]:
        """Return the calls of passes that count, in the order of the forward pass.

        If a backward pass went through some whose gradients are still there, then those; else those that none
        went through.
        """
        runs = dict.fromkeys(call.run for call in self.calls)
        kept = [run for run in runs if run.is_kept]
        kept = kept or [run for run in runs if not any(backward.is_finished for backward in run.backwards)] or [*runs]
        wanted = set(kept)
        return sorted((call for call in self.calls if call.run in wanted), key=attrgetter("position"))

    def add(
        self, pending: PendingStep, row_of: Callable[[str, int], int], names: Container[str]
    ) -> list[tuple[str, int]]:
        """Add what the hooks saw of some modules to a pending step.

        Returns:
            Name of the row and number of the call, for each call in the order of the forward pass.
        """
        calls = []
        output_rows: list[int] = []
        outputs: list[TensorSize] = []
        gradient_rows: list[int] = []
        gradients: list[TensorSize] = []
        with_gradient: set[int] = set()
        silent: list[tuple[int, ModuleCall]] = []
        for call in self.kept_calls():
            passes = self.passes.counted(call.name)
            if call.inside is not None and not call.is_empty:
                inner = [(name, call.index) for name in call.inside.add(pending, row_of, names, passes)]
                calls += inner
                self._judge_inside(pending, call, [row_of(*row) for row in inner], with_gradient, silent)
            if call.name not in names:
                continue
            row = row_of(call.name, call.index)
            calls.append((call.name, call.index))
            if call.is_empty:
                continue
            for size in call.outputs:
                output_rows.append(row)
                outputs.append(size)
            for name, value in call.stats:
                pending.add_statistic(name, row, value)
            counted = call.counted(passes or ())
            if counted:
                with_gradient.add(row)
                for size, more in counted:
                    gradient_rows.append(row)
                    gradients.append(size)
                    for name, value in more.stats:
                        pending.add_statistic(name, row, value)
                    if more.samples is not None:
                        pending.add_samples(row, more.samples)
            elif counted is None or call.has_failed() or (passes is None and call.arrivals):
                pending.mark("output_grad", row, "hook_missed")
            else:
                silent.append((row, call))
            for quantity in call.missed:
                pending.mark(quantity, row, "hook_missed")
        for row, call in silent:
            # A function with a backward pass of its own may run modules again and differentiate inside of that.
            if call.uncertain or (call.is_passed_by and (call.is_rerun or not self.passes.finished)):
                pending.mark("output_grad", row, "hook_missed")
            elif row not in with_gradient and "output_grad" not in call.missed:
                pending.mark("output_grad", row, "unused" if call.expected else "frozen")
        pending.add_all("output", output_rows, outputs)
        pending.add_all("output_grad", gradient_rows, gradients)
        return calls

    def feeds(self, names: Container[str], loss: Any = None) -> set[tuple[Row, Row]] | None:
        """Return which rows feed which, or None if the graph is not known.

        Args:
            names: Of the rows that are recorded.
            loss: A tensor with its graph, if it is at hand.
        """
        if self.graph is None or not self.graph.is_known:
            return None
        of_loss = self.graph.sources_of(loss) if isinstance(loss, Tensor) else ()

        def rows_of(call: ModuleCall) -> list[list[Row]]:
            layers = call.inside.layers if call.inside is not None else []
            groups = [[(name, call.index) for name in group if name in names] for group in layers]
            if call.name in names:
                groups.append([(call.name, call.index)])
            return [group for group in groups if group]

        return Feeds(self.kept_calls(), rows_of).pairs(of_loss)

    def _judge_inside(
        self,
        pending: PendingStep,
        call: ModuleCall,
        rows: list[int],
        with_gradient: set[int],
        silent: list[tuple[int, ModuleCall]],
    ) -> None:
        """Say of the rows inside of a call whether gradients came back to it."""
        passes = self.passes.counted(call.name)
        gradients = call.counted(passes or ())
        if gradients:
            with_gradient.update(rows)
        elif gradients is None or call.has_failed() or (passes is None and call.arrivals):
            for row in rows:
                pending.mark("output_grad", row, "hook_missed")
        else:
            silent += [(row, call) for row in rows]

    def _call_of(self, name: str, graph: bool) -> ModuleCall | None:
        """Return the call that a forward hook belongs to, or None for one that does not count."""
        if is_recomputing():
            return self._rerun_call(name)
        # Without a graph it is an evaluation, or a part of a training pass that is frozen or checkpointed.
        if not graph and not (self._inside and self._pass is not None and self._pass.with_graph):
            self._positions.setdefault(name, len(self._positions) + len(self.calls))
            return None
        call = self._new_call(name)
        if not graph:
            waiting = self._to_be_rerun.get(name, call)
            if waiting is call or (waiting is not None and waiting.is_rerun):
                self._to_be_rerun[name] = call
            else:
                self._to_be_rerun[name] = None
        return call

    def _begin_pass(self, with_graph: bool) -> ForwardPass:
        if self.passes.finished:
            self.passes.notice()
        self._pass = ForwardPass(with_graph)
        return self._pass

    def _new_call(self, name: str, position: int | None = None) -> ModuleCall:
        run = self._pass
        if run is None or (run.backwards and not self._inside):
            run = self._begin_pass(with_graph=True)
        position = len(self._positions) + len(self.calls) if position is None else position
        call = ModuleCall(name, run, self.plan, self.passes, position)
        self.calls.append(call)
        return call

    def _rerun_call(self, name: str) -> ModuleCall | None:
        """Return the call that a checkpoint runs again, if its gradients are not hooked yet.

        A non-reentrant checkpoint keeps the hooks of the first run, so there is nothing to do. A reentrant one
        ran first without a graph. In what order it reruns several calls of one module cannot be known here.
        """
        if name in self._to_be_rerun:
            call = self._to_be_rerun[name]
            if call is not None:
                call.begin_rerun()
                self.passes.nest(name, call.run)
            else:
                self._distrust(name)
            return call
        if any(call.name == name for call in self.calls):
            return None
        self._to_be_rerun[name] = None  # ran outside of the model's own forward, unseen: trust one run at most
        call = self._new_call(name, self._positions.get(name))
        self.passes.nest(name, call.run)
        return call

    def _distrust(self, name: str) -> None:
        for call in self.calls:
            if call.name == name:
                call.miss_gradient()


def _stack_depth() -> int:
    """Return how many calls of Python functions are running in this thread."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
