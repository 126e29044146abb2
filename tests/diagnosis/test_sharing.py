import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure


def kinds(history):
    return {finding.kind: finding for finding in history.findings[0]}


class LanguageModel(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens)))


def test_tied_weights_are_named_and_raise_no_alarm():
    tokens = torch.arange(6)
    history = measure(LanguageModel(tie=True), F.cross_entropy, (tokens, tokens))
    finding = kinds(history)["tied weights"]
    assert finding.severity == 0
    assert finding.modules == ("embedding", "head")
    assert "embedding.weight and head.weight are the same tensor" in finding.text
    assert "tied weights" not in kinds(measure(LanguageModel(tie=False), F.cross_entropy, (tokens, tokens)))


class Experts(nn.Module):
    """Each sample goes to one expert."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5, 3))
        self.head = nn.Linear(5, 2)

    def forward(self, x, which):
        return self.head(torch.einsum("boi,bi->bo", self.weight[which], x))


def test_experts_that_no_sample_went_to_are_counted():
    torch.manual_seed(0)
    x, which, y = torch.randn(6, 3), torch.tensor([0, 3, 3, 6, 0, 6]), torch.zeros(6, dtype=torch.long)
    finding = kinds(measure(Experts(), F.cross_entropy, ((x, which), y)))["idle experts"]
    assert finding.text == "5 of the 8 matrices in weight get a gradient of 0 (numbers 1, 2, 4, 5, 7)"
    assert finding.severity == 1


def test_one_idle_expert_is_told_in_the_singular():
    x, which, y = torch.randn(7, 3), torch.arange(7), torch.zeros(7, dtype=torch.long)
    finding = kinds(measure(Experts(), F.cross_entropy, ((x, which), y)))["idle experts"]
    assert finding.text == "1 of the 8 matrices in weight gets a gradient of 0 (number 7)"


def test_experts_that_all_work_and_kernels_of_convolutions_are_no_idle_experts():
    torch.manual_seed(0)
    x, which, y = torch.randn(8, 3), torch.arange(8), torch.zeros(8, dtype=torch.long)
    assert "idle experts" not in kinds(measure(Experts(), F.cross_entropy, ((x, which), y)))
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias[0] = -1  # a kernel that is dead
    assert "idle experts" not in kinds(measure(model, F.cross_entropy, (torch.randn(8, 1, 6), y)))
