"""The verdict on models of the transformers library with random weights: healthy ones raise no alarm."""

import pytest
import torch

from gradexp import measure

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
}
IMAGES = {"pixel_values": (2, 3, 64, 64)}
TOKENS = {"input_ids": (2, 12), "labels": (2, 12)}

CASES = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 12, "n_head": 2}, TOKENS),
    "LlamaForCausalLM": ("LlamaConfig", SMALL, TOKENS),
    "BertForMaskedLM": ("BertConfig", SMALL, TOKENS),
    "AlbertForMaskedLM": ("AlbertConfig", {**SMALL, "embedding_size": 16}, TOKENS),
    "MixtralForCausalLM": ("MixtralConfig", {**SMALL, "num_key_value_heads": 1, "num_local_experts": 4}, TOKENS),
    "RwkvForCausalLM": ("RwkvConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 6}, TOKENS),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 4, "num_heads": 2},
        TOKENS,
    ),
    "ViTForImageClassification": ("ViTConfig", {**SMALL, "image_size": 64, "patch_size": 16}, IMAGES),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [2, 4, 2]},
        IMAGES,
    ),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 4, 2]},
        IMAGES,
    ),
    "SegformerForImageClassification": ("SegformerConfig", {"hidden_sizes": [8, 16, 32, 32]}, IMAGES),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_its_own_initialisation_raises_no_alarm(name):
    config, options, shapes = CASES[name]
    torch.manual_seed(0)
    options = {**options, "decoder_start_token_id": 0} if name.startswith("T5") else options
    model = getattr(transformers, name)(getattr(transformers, config)(**options))
    batch = {
        key: torch.randn(shape) if key == "pixel_values" else torch.randint(100, shape)
        for key, shape in shapes.items()
    }
    if "labels" not in batch:
        batch["labels"] = torch.zeros(2, dtype=torch.long)
    verdict = measure(model, lambda output: output.loss, batch).verdict()
    kinds = {"vanishing", "exploding", "dead", "exploding activations", "nonfinite", "unknown"}
    assert verdict.gradient == "stable"
    assert not [finding for finding in verdict.findings if finding.severity and finding.kind in kinds]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM", "LlamaForCausalLM"])
def test_saturated_attention_is_told_and_the_remedy_works(name, implementation):
    config, options, shapes = CASES[name]
    torch.manual_seed(0)
    layers = {"n_layer": 3} if name.startswith("GPT2") else {"num_hidden_layers": 3}
    options = {**options, **layers, "attn_implementation": implementation}
    model = getattr(transformers, name)(getattr(transformers, config)(**options))
    batch = {key: torch.randint(100, shape) for key, shape in shapes.items()}
    batch["attention_mask"] = torch.ones(2, 12, dtype=torch.long)
    batch["attention_mask"][1, 4:] = 0

    def saturated():
        findings = measure(model, lambda output: output.loss, batch).findings[0]
        return [finding for finding in findings if finding.kind == "saturated"]

    assert saturated() == []
    for part, module in model.named_modules():
        if part.endswith(("c_attn", "query", "key", "q_proj", "k_proj")):
            module.weight.data *= 300
    (found,) = saturated()
    exec(found.remedy.partition("weights: ")[2], {"model": model})
    assert saturated() == []
