"""``gradexp experiments`` and ``python -m experiments``: list the experiments, run one, or all."""

import argparse
import importlib
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import EXPERIMENTS
from experiments.lab.claims import Claim, Findings
from gradexp.choices import ConfigError
from gradexp.cli.errors import error_line
from gradexp.cli.interruptions import Interrupted, Interruptions
from gradexp.cli.lines import Parser
from gradexp.runs.progress import Progress
from gradexp.runs.terminal import Terminal

if TYPE_CHECKING:
    from experiments.lab.results import Record

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code is 0 if every claim holds.

    Args:
        arguments: The command line; None: that of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing
    asked = _parse(arguments)
    console = Terminal()
    names = list(EXPERIMENTS) if asked.all else list(dict.fromkeys(asked.name))
    if not names:
        _list(console)
        return 0
    begin, outcomes = time.perf_counter(), dict[str, bool]()
    with Interruptions() as interruptions:
        try:
            asked.out.mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(names, 1):
                outcomes[name] = _run(name, asked, console, f"[{number} of {len(names)}] ", interruptions)
        except KeyboardInterrupt:
            finished = f"finished: {', '.join(outcomes)}, in {asked.out}" if outcomes else "nothing was finished"
            console.print(f"interrupted; {finished}", markup=False, soft_wrap=True)
            return (interruptions.pending or Interrupted(signal.SIGINT)).exit_code
        except OSError as error:
            console.print(f"cannot write to {error.filename or asked.out}: {error.strerror}", markup=False)
            return 1
    if len(names) > 1:
        _summarise(outcomes, time.perf_counter() - begin, console)
    return 0 if all(outcomes.values()) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="gradexp experiments",
        description="Reproduce published claims about gradients in deep networks. Without a name: list them.",
        epilog="Options of gradexp.run, such as init.gain=0.5, change every network, to see which claims then fail.",
    )
    parser.add_argument("name", nargs="*", help="an experiment, or several, then options of gradexp.run")
    parser.add_argument("--all", action="store_true", help="run all of them")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer networks: about a minute at most")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    parser.add_argument(
        "--out", type=_folder, default=Path("outputs/experiments"), help="where figures and tables go"
    )
    parser.add_argument("--publish", action="store_true", help="also renew RESULTS.md and figures/ in experiments/")
    asked = parser.parse_intermixed_args(arguments)
    asked.overrides = [word for word in asked.name if "=" in word]
    asked.name = [word for word in asked.name if "=" not in word]
    for word in asked.overrides:
        if word.startswith("hydra."):
            parser.error(f"{word} is of a single run; an experiment takes --out FOLDER")
    for name in asked.name:
        if name not in EXPERIMENTS:
            parser.error(f"unknown experiment '{name}'; choose one of {', '.join(EXPERIMENTS)}")
    if asked.all and asked.name:
        parser.error(f"--all runs every experiment, so leave out {', '.join(asked.name)}")
    changes = [*asked.overrides, *(f"--{flag}" for flag in ("quick", "publish") if getattr(asked, flag))]
    if changes and not (asked.name or asked.all):
        parser.error(f"{changes[0]} changes how an experiment is run, and none is named; name one, or give --all")
    if asked.publish and (asked.quick or asked.overrides):
        parser.error("--publish is for the experiments as they are: leave out --quick and changed options")
    if asked.publish and not (HERE / "RESULTS.md").is_file():
        parser.error("--publish renews the files of a clone of the repository, and this is an installed package")
    return asked


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("it must name a folder")
    return Path(text)


def _list(console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("question and source")
    table.add_column("minutes", justify="right", no_wrap=True)
    table.add_column("quick", justify="right", no_wrap=True)
    for name, about in EXPERIMENTS.items():
        question = f"{about.question}\n[dim]{about.source}[/dim]"
        table.add_row(name, question, f"{about.minutes:g}", f"{about.quick:g}")
    console.print(table)
    console.print(
        "\nRun one with gradexp experiments NAME, all of them with --all. Minutes are on\n"
        "two CPU cores; --quick is for smaller and fewer networks.",
        markup=False,
    )


def _run(name: str, asked: argparse.Namespace, console: Console, place: str, interruptions: Interruptions) -> bool:
    """Run one experiment, show its table, and return whether all its claims hold."""
    # Here, since they load torch and matplotlib, which a list of the experiments does without.
    from experiments.lab.lab import Lab
    from experiments.lab.results import Record, publish, save

    about = EXPERIMENTS[name]
    console.print(rf"\{place}[bold]{name}[/bold]  {about.question}" + f"\n[dim]{about.source}[/dim]")
    module = importlib.import_module(f"experiments.{name}")
    progress = Progress(console=console)
    quick = module.QUICK if asked.quick else ()
    lab = Lab(name, quick, asked.overrides, asked.device, progress, [interruptions])
    begin = time.perf_counter()
    try:
        findings: Findings = module.reproduce(lab)
    except Exception as error:
        if "HYDRA_FULL_ERROR" in os.environ:
            raise
        # Without the networks, or the training, that its claims are about an experiment cannot look them up.
        is_left_out = asked.overrides and isinstance(error, LookupError | ValueError | AssertionError)
        is_told = isinstance(error, ConfigError | CompactHydraException | OmegaConfBaseException)
        reason = f"{' '.join(asked.overrides)} leaves out what its claims are about"
        console.print("[red]failed[/red]  ", end="")
        console.print(reason if is_left_out and not is_told else error_line(error), markup=False, soft_wrap=True)
        return False
    finally:
        progress.close()
    options = [*(["--quick"] if asked.quick else []), *asked.overrides]
    record = Record(name, about, findings, time.perf_counter() - begin, lab.device_name, options)
    folder = save(record, asked.out)
    if asked.publish:
        publish(record, HERE)
    _show(record, folder, console)
    return record.holds


_MOST_IN_FULL = 12
_OTHERS = "others"


def _show(record: "Record", folder: Path, console: Console) -> None:
    """Print every claim with its numbers; of many, how many of each group hold, and those that fail."""
    claims = record.findings.claims
    failing = [claim for claim in claims if not claim.holds]
    if len(claims) <= _MOST_IN_FULL:
        _show_claims(claims, console)
    else:
        _show_groups(claims, console)
        if failing:
            _show_claims(failing, console)
    console.print(f"{record.outcome}; {record.seconds:.0f} s", soft_wrap=True)
    console.print(f"look      {folder}   figures, and results.md with every number\n", markup=False, soft_wrap=True)


def _show_groups(claims: Sequence[Claim], console: Console) -> None:
    """Print how many claims hold of those that begin alike."""
    beginnings = [re.split("[:,]", claim.text, maxsplit=1)[0] for claim in claims]
    counts = Counter(beginnings)
    held: dict[str, list[bool]] = {}
    for beginning, claim in zip(beginnings, claims, strict=True):
        held.setdefault(beginning if counts[beginning] > 1 else _OTHERS, []).append(claim.holds)
    if _OTHERS in held:
        held[_OTHERS] = held.pop(_OTHERS)  # last
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("claims about")
    table.add_column("hold", justify="right")
    for beginning, holds in held.items():
        colour = "green" if all(holds) else "bold red"
        table.add_row(Text(beginning), Text(f"{sum(holds)} of {len(holds)}", colour))
    console.print(table)


def _show_claims(claims: Sequence[Claim], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("claim", "measured", "expected", ""):
        table.add_column(column, justify="left" if column == "claim" else "right")
    for claim in claims:
        result = "[green]pass[/green]" if claim.holds else "[bold red]FAIL[/bold red]"
        table.add_row(Text(claim.text), Text(claim.measured), Text(claim.expected), result)
    console.print(table)


def _summarise(outcomes: dict[str, bool], seconds: float, console: Console) -> None:
    failed = [name for name, held in outcomes.items() if not held]
    what = f"these failed: {', '.join(failed)}" if failed else "all claims hold"
    console.print(f"{len(outcomes)} experiments in {seconds / 60:.1f} minutes: {what}")


if __name__ == "__main__":
    sys.exit(main())
