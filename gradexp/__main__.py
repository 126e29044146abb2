"""``python -m gradexp``: list the commands."""

from gradexp._version import __version__
from gradexp.cli.interruptions import leave_at_once

COMMANDS = f"""gradexp {__version__}: vanishing and exploding gradients, shown, measured and explained

  python -m gradexp.run                       build, measure and train one 150-layer network
  python -m gradexp.run init=he depth=150     the same, said in full
  python -m gradexp.run --help                every option
  python -m gradexp.run -m init=he,xavier     a sweep
  python -m gradexp.report multirun/DATE/TIME compare the runs of a sweep once more, or while it runs
  python -m gradexp.predict activation=tanh   what theory says, and what to change, without building anything
  python -m gradexp.phase activation=tanh     phase diagram and critical region, as pictures and numbers
  python -m gradexp.measure train:example     your own model: what is wrong, where, why, and what to do
  python -m gradexp.lesson                    a page with sliders, for those who teach or learn about gradients
  python -m experiments                       papers reproduced and asserted (in a clone of the repository)
  python -m gradexp.board outputs             look at the runs in TensorBoard"""


def run() -> None:
    """Run ``python -m gradexp.run``, as the installed script ``gradexp`` does."""
    leave_at_once()  # before the imports, which take half a second
    from gradexp.run import main  # loads Hydra

    main()


if __name__ == "__main__":
    print(COMMANDS)  # noqa: T201
