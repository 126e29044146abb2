"""What the commands share: the config folder, the schema, help, exit codes and one-line errors.

Hydra is imported here and in the commands only, and torch not at all.
"""

import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gradexp import own_parts
from gradexp.choices import CONFIG_DIR, ConfigError
from gradexp.cli.about import RUN, Command
from gradexp.cli.arguments import check_flags
from gradexp.cli.composing import only_our_targets, store_config, to_config, without_hydra
from gradexp.cli.errors import error_line
from gradexp.cli.help import help_text
from gradexp.cli.hydra_internals import set_version_base, version_base
from gradexp.cli.interruptions import Interrupted, Interruptions, line_of
from gradexp.cli.lines import print_error, shortened
from gradexp.config import Config
from gradexp.runs.device import fix_order_of_sums


def command(job: Callable[[Any, Path, list[str], Interruptions], Any], about: Command = RUN) -> Callable[[], None]:
    """Turn a job into a command line: compose its config with Hydra, and report every mistake in a line or two.

    Exit codes are 0, 1 after an error, 130 after Ctrl-C and 143 after SIGTERM. With the environment variable
    HYDRA_FULL_ERROR=1 errors keep their traceback.

    Args:
        job: A function of the checked options, the run's own folder, the overrides and a sink for interruptions;
            what it returns goes to the sweeper.
        about: Name, help and schema.

    Returns:
        The command.
    """

    def main() -> None:
        interruptions = Interruptions(waits_for_files=True)
        fix_order_of_sums()
        wants_traceback = "HYDRA_FULL_ERROR" in os.environ

        named = own_parts.typed(sys.argv[1:])
        mistakes: list[Exception] = []

        def from_hydra(composed: DictConfig) -> Any:
            named.allow()  # in a worker process too
            settings = HydraConfig.get()
            folder = Path(settings.runtime.output_dir)
            overrides = list(settings.overrides.task)
            note = f"what was measured so far is in {folder}" if about.keeps_files else ""
            of_sweep = about.compares and settings.mode is RunMode.MULTIRUN
            try:
                returned = job(
                    _checked(composed, about, folder if of_sweep else None, overrides),
                    folder,
                    overrides,
                    interruptions,
                )
                interruptions.release()
                return returned
            except KeyboardInterrupt as interruption:
                if note and not of_sweep:
                    interruption.add_note(note)
                raise
            except Exception as error:
                if interruptions.pending is not None:  # the import that it cut short has made another error of it
                    if note and not of_sweep:
                        interruptions.pending.add_note(note)
                    raise interruptions.pending from None
                if settings.mode is RunMode.RUN:
                    mistakes.append(error)  # Hydra would add a line that repeats the whole command
                    return None
                if not of_sweep:
                    raise
                # The other jobs go on, and what a worker process raises must be of a kind that can be sent.
                line = error_line(error, about).partition("\n")[0]
                print_error(f"{folder.name}: {traceback.format_exc() if wants_traceback else line}")
                raise ConfigError(line) from None
            finally:
                interruptions.let()

        def run() -> None:
            # Hydra always makes a folder. That of a command without files is gone when it ends.
            temporary = nullcontext() if about.keeps_files else tempfile.TemporaryDirectory(prefix="gradexp-")
            with temporary as scratch:
                if check_flags(sys.argv[1:], about):
                    # Hydra would list all its groups first, whether they are shown or not, which takes half a second.
                    print(help_text(about))  # noqa: T201
                    return
                named.allow()
                store_config(about, scratch, named)
                is_composed = about.schema is Config
                path, name = (str(CONFIG_DIR), "config") if is_composed else (None, about.name)
                with only_our_targets(), warnings.catch_warnings():
                    warnings.showwarning = _show_warning
                    hydra.main(config_path=path, config_name=name, **version_base)(from_hydra)()
                if mistakes:
                    raise mistakes[0]

        with interruptions:
            code = _run_safely(run, about, interruptions, wants_traceback)
        if code:
            sys.exit(code)

    return main


def _checked(composed: DictConfig, about: Command, folder: Path | None, overrides: list[str]) -> Any:
    """Return the options as an object, or leave a summary of the failure in the folder of a job of a sweep."""
    try:
        return to_config(composed, about.schema)
    except (ConfigError, OmegaConfBaseException) as error:
        if folder is not None:
            from gradexp.runs.summary import unstarted_summary  # loads numpy, as does the next
            from gradexp.sinks.files import write_summary

            write_summary(
                folder,
                unstarted_summary(without_hydra(composed), overrides, error_line(error, about).partition("\n")[0]),
            )
        raise


def _is_closed_pipe(error: Exception) -> bool:
    """Return whether the reader of the standard output is gone, as with ``| head``, and with it the wish for more."""
    return isinstance(error, BrokenPipeError) and not error.filename


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the place in the library that gave it."""
    print_error(f"warning: {' '.join(shortened(str(message)).split())}")


def prepare_worker() -> None:
    """Make a worker process compute, and Hydra in it behave, as in the command."""
    fix_order_of_sums()
    set_version_base()


def _run_safely(run: Callable[[], Any], about: Command, interruptions: Interruptions, wants_traceback: bool) -> int:
    """Run a command and return its exit code. From its end on no signal changes that."""
    # Hydra would print errors in its own way and leave; this makes it pass them on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing

    code = 0
    try:
        try:
            run()
            interruptions.hold()
        except Exception as error:
            interruptions.hold()
            if interruptions.pending is None:
                if wants_traceback:
                    raise
                code = 1
                if _is_closed_pipe(error):
                    nowhere = os.open(os.devnull, os.O_WRONLY)  # for what Python writes at its end
                    os.dup2(nowhere, 1)
                    os.close(nowhere)
                else:
                    print_error(error_line(error, about))
        finally:
            interruptions.hold()
            if not wants_traceback:
                del os.environ["HYDRA_FULL_ERROR"]
        interruptions.release()
    except KeyboardInterrupt as raised:
        # A library may have put a plain one in its place.
        interruption = interruptions.pending or Interrupted(signal.SIGINT)
        print_error(line_of(raised))
        code = interruption.exit_code
    return code
