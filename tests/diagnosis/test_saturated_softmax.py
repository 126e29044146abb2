"""Softmax that is one-hot, mostly of attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

SAMPLES, LENGTH, WIDTH = 8, 12, 32
X = torch.randn(SAMPLES, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
Y = torch.arange(SAMPLES) % 5


def plain(q, k, v, mask):
    logits = q @ k.transpose(2, 3)
    return (logits if mask is None else logits.masked_fill(~mask, -1e9)).softmax(-1) @ v


def added(q, k, v, mask):
    logits = torch.einsum("nhqd,nhkd->nhqk", q, k)
    logits = logits if mask is None else logits + torch.zeros(()).masked_fill(~mask, -1e4)
    return torch.einsum("nhqk,nhkd->nhqd", F.softmax(logits, -1), v)


def fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, is_causal=mask is not None)


FORMS = [plain, added, fused, causal]


class Attention(nn.Module):
    def __init__(self, form, deviation, mask=None, heads=4):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.form, self.mask, self.heads = form, mask, heads
        for module in (self.q_proj, self.k_proj):
            nn.init.normal_(module.weight, std=deviation)

    def forward(self, x):
        q, k, v = (
            each(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out(self.form(q, k, v, self.mask).transpose(1, 2).reshape(x.shape))


class Net(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.attn, self.head = attn, nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = x + self.attn(x)
        return self.head(x.mean(1))


def saturated(model, loss_fn=F.cross_entropy, target=Y):
    return [finding for finding in measure(model, loss_fn, (X, target)).findings[0] if finding.kind == "saturated"]


def slope_of_attention(model, mask):
    """Return the mean of p (1 - p), the slope of softmax, in float64."""
    q, k = (
        each(X).double().view(SAMPLES, LENGTH, 4, -1).transpose(1, 2)
        for each in (model.attn.q_proj, model.attn.k_proj)
    )
    logits = q @ k.transpose(2, 3) * (1 if model.attn.form in (plain, added) else q.shape[-1] ** -0.5)
    p = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    return (p * (1 - p)).mean().item()


TRIANGLE = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


@pytest.mark.parametrize("mask", [None, TRIANGLE], ids=["all", "causal"])
@pytest.mark.parametrize("form", FORMS)
def test_large_queries_and_keys_are_named_and_the_remedy_brings_their_gradient_back(form, mask):
    torch.manual_seed(0)
    model = Net(Attention(form, 8, mask))
    (found,) = saturated(model)
    assert found.severity == 2
    assert found.modules == ("attn.q_proj", "attn.k_proj")
    assert "the softmax in attn is one-hot" in found.text

    before = slope_of_attention(model, mask)
    exec(found.remedy.partition("weights: ")[2], {"model": model})
    assert slope_of_attention(model, mask) > 10 * before
    assert saturated(model) == []


@pytest.mark.parametrize("form", [plain, fused])
def test_share_and_difference_of_logits_are_right(form):
    torch.manual_seed(0)
    model = Net(Attention(form, 2.0))
    q, k = (
        each(X).double().view(SAMPLES, LENGTH, 4, -1).transpose(1, 2)
        for each in (model.attn.q_proj, model.attn.k_proj)
    )
    logits = q @ k.transpose(2, 3) * (1 if form is plain else q.shape[-1] ** -0.5)
    logits = logits if form is plain else logits[:2]  # of fused attention a few samples are looked at
    share = (logits.softmax(-1).amax(-1) > 0.999).double().mean().item()
    spread = (logits.amax(-1) - logits.amin(-1)).max().item()
    (found,) = saturated(model)
    assert f"for {100 * share:.0f} % of rows" in found.text
    assert f"{float(f'{spread:.3g}'):,.0f}" in found.text


@pytest.mark.parametrize("mask", [None, TRIANGLE, torch.eye(LENGTH, dtype=torch.bool)], ids=["all", "causal", "one"])
@pytest.mark.parametrize("form", FORMS)
def test_ordinary_attention_is_no_fault_even_if_masks_leave_one_entry(form, mask):
    torch.manual_seed(0)
    assert saturated(Net(Attention(form, WIDTH**-0.5, mask))) == []


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_named_itself_and_its_remedy_works(need_weights):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Linear(WIDTH, WIDTH)
            self.mha = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

        def forward(self, x):
            x = self.emb(x)
            return self.mha(x, x, x, need_weights=need_weights)[0]

    torch.manual_seed(0)
    model = Net(Mixed())
    assert saturated(model) == []
    model.attn.mha.in_proj_weight.data[: 2 * WIDTH] *= 60
    (found,) = saturated(model)
    assert found.modules == ("attn.mha",)
    assert "the softmax in attn.mha is" in found.text
    exec(found.remedy.partition("weights: ")[2], {"model": model})
    assert saturated(model) == []


def test_a_router_is_told_if_it_is_saturated():
    class Mixture(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.router = nn.Linear(WIDTH, 4)
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.scale = scale

        def forward(self, x):
            p = (self.scale * self.router(x)).softmax(-1)
            top, which = p.max(-1, keepdim=True)
            return sum(torch.where(which == i, top, 0) * expert(x) for i, expert in enumerate(self.experts))

    torch.manual_seed(0)
    assert saturated(Net(Mixture(1))) == []
    (found,) = saturated(Net(Mixture(1000)))
    assert found.modules == ("attn.router",)


def test_a_confident_output_is_no_fault_of_attention():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * WIDTH, 5), nn.Softmax(-1))
    classifier[1].weight.data *= 1000
    assert saturated(classifier, lambda p, y: F.nll_loss(p.clamp(min=1e-8).log(), y)) == []


def test_attention_of_a_model_that_is_right_is_no_fault():
    torch.manual_seed(0)
    model = Net(Attention(plain, 8))
    model.head = nn.Linear(WIDTH, 5)
    with torch.no_grad():
        model.head.weight.zero_()
        features = (X + model.attn(X)).mean(1)
        model.head.weight.copy_(20 * torch.linalg.lstsq(features, F.one_hot(Y, 5).float()).solution.T)
        model.head.bias.zero_()
    assert saturated(model) == []


def test_a_model_that_cannot_run_twice_is_left_alone():
    class Once(Net):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("only once")
            return super().forward(x)

    assert saturated(Once(Attention(plain, 8))) == []
