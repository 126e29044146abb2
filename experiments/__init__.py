"""What others published, and the lesson this project began with, reproduced: ``python -m experiments`` lists them.

Each experiment is a preset in ``configs/experiment/`` and a module here of the same name, which runs the preset's
networks, compares what they give with what the source claims, and draws the picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """What is known of an experiment before it is run.

    Args:
        question: That it answers.
        source: Where the claim comes from.
        minutes: That it takes on two CPU cores.
        quick: That it takes with ``--quick``.
    """

    question: str
    source: str
    minutes: float
    quick: float


EXPERIMENTS = {
    "he2015": About(
        "Do He's weights let 30 ReLU layers learn, where Xavier's stall?",
        "He, Zhang, Ren & Sun (2015), arXiv:1502.01852, Fig. 2 and 3.",
        minutes=1,
        quick=0.3,
    ),
}
"""Name, which is that of the module and of the preset -> what is known of it."""
