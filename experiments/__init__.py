"""What others published, and the lesson this project began with, reproduced: ``python -m experiments`` lists them.

Each experiment is a preset in ``configs/experiment/`` and a module here of the same name, which runs the preset's
networks, compares what they give with what the source claims, and draws the picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """What is known of an experiment before it is run.

    Args:
        question: The question that it answers.
        source: The publication that makes the claim.
        minutes: Minutes that it takes on two CPU cores.
        quick: Minutes that it takes with ``--quick``.
    """

    question: str
    source: str
    minutes: float
    quick: float


EXPERIMENTS = {
    "lesson": About(
        "What do 150 layers of 1.5 I and 0.5 I do to a gradient, and what of it is general?",
        "The lesson this project began with; experiments/lesson.md.",
        minutes=0.7,
        quick=0.7,
    ),
    "glorot2010": About(
        "Why did five tanh layers train badly, and why do weight gradients not show it?",
        "Glorot & Bengio (2010), AISTATS 9, 249-256, Fig. 6 to 8.",
        minutes=0.2,
        quick=0.1,
    ),
    "pascanu2013": About(
        "Does clipping cure gradients that explode, and those that vanish?",
        "Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063.",
        minutes=0.4,
        quick=0.2,
    ),
    "saxe2014": About(
        "Does a deep linear network have to learn more slowly than a shallow one?",
        "Saxe, McClelland & Ganguli (2014), arXiv:1312.6120, Fig. 6.",
        minutes=1,
        quick=0.4,
    ),
    "he2015": About(
        "Do He's weights let 40 ReLU layers learn, where Xavier's do not start?",
        "He, Zhang, Ren & Sun (2015), arXiv:1502.01852, Fig. 2 and 3.",
        minutes=0.5,
        quick=0.2,
    ),
    "poole2016": About(
        "How soon does a wide tanh network forget an input's length, and its angle?",
        "Poole et al. (2016), arXiv:1606.05340, Fig. 1 and 2.",
        minutes=0.2,
        quick=0.1,
    ),
    "schoenholz2017": About(
        "How deep can a tanh network be trained, and does mean field know?",
        "Schoenholz et al. (2017), arXiv:1611.01232, Fig. 4 and 5.",
        minutes=0.6,
        quick=0.2,
    ),
    "pennington2017": About(
        "What do orthogonal weights add to a gradient that keeps its size?",
        "Pennington, Schoenholz & Ganguli (2017), arXiv:1711.04735.",
        minutes=1.3,
        quick=0.3,
    ),
    "hanin_rolnick2018": About(
        "Does the sum of 1 / width tell which deep ReLU networks start to learn?",
        "Hanin & Rolnick (2018), arXiv:1803.01719; Hanin (2018), arXiv:1801.03744.",
        minutes=0.7,
        quick=0.3,
    ),
    "xiao2018": About(
        "Can a plain convolutional network of 1,000 layers pass a gradient, and with which kernels?",
        "Xiao, Bahri, Sohl-Dickstein, Schoenholz & Pennington (2018), arXiv:1806.05393.",
        minutes=2.5,
        quick=0.8,
    ),
    "yang2019": About(
        "Does batch norm make gradients explode, and spoil what would learn without?",
        "Yang et al. (2019), arXiv:1902.08129.",
        minutes=0.8,
        quick=0.3,
    ),
    "residual": About(
        "How must residual branches be scaled for 100 layers and more to learn?",
        "De & Smith (2020), arXiv:2002.10444; ReZero (2020), arXiv:2003.04887; Fixup (2019), arXiv:1901.09321.",
        minutes=0.5,
        quick=0.2,
    ),
    "xiong2020": About(
        "Why does a transformer with its norms behind the branches begin with large gradients near the output?",
        "Xiong et al. (2020), arXiv:2002.04745, Theorem 1 and Lemma 2.",
        minutes=1.5,
        quick=0.3,
    ),
    "monitors": About(
        "What do monitors of gradients report on 150 layers, beside the truth?",
        "Our own; float32 norms: pytorch/pytorch#193006.",
        minutes=0.1,
        quick=0.1,
    ),
    "ten_thousand": About(
        "Can a gradient pass 10,000 layers, and can its size be told if not?",
        "Xiao et al. (2018), arXiv:1806.05393, of convolutions; exact powers.",
        minutes=0.8,
        quick=0.7,
    ),
}
"""Name, which is that of the module and of the preset -> what is known of it."""
