"""Names show which layers are alike."""

import pytest

from gradexp.history.roles import Place, merged_roles, places, split


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layer.3.attention.query", ("encoder.layer", 3, "attention.query")),
        ("transformer.h.11.mlp.c_fc", ("transformer.h", 11, "mlp.c_fc")),
        ("layers.0", ("layers", 0, "")),
        ("0", ("", 0, "")),
        ("0.linear", ("", 0, "linear")),
        ("model.layers.2.mlp.experts.5.w1", ("model.layers", 2, "mlp.experts.5.w1")),
        ("lm_head", ("lm_head", None, "")),
        ("wav2vec2.projection", ("wav2vec2.projection", None, "")),
        ("", ("", None, "")),
    ],
)
def test_a_name_is_split_at_its_first_number(name, place):
    assert split(name)[:3] == place


def test_parts_of_a_place_make_the_name_again():
    for name in ("a.3.b.c", "0", "7.x", "blocks.12"):
        stack, block, role, _ = split(name)
        assert ".".join(part for part in (stack, str(block), role) if part) == name


def test_stages_of_different_lengths_are_stacks():
    names = [f"stages.{i}.blocks.{j}.fc" for i, depth in enumerate((3, 3, 9, 3)) for j in range(depth)]
    found = dict(zip(names, places([*names, "stages.1.downsample"]), strict=False))
    assert found["stages.2.blocks.8.fc"] == Place("stages.2.blocks", 8, "fc")
    assert places([*names, "stages.1.downsample"])[-1] == Place("stages", 1, "downsample")


def test_the_only_stack_inside_a_sequence_of_other_things_is_one():
    encoder = [f"1.layers.{block}.{role}" for block in range(6) for role in ("self_attn", "linear1")]
    found = places(["0", *encoder, "2"])
    assert found[3] == Place("1.layers", 1, "self_attn")
    assert (found[0], found[-1]) == (Place("", 0, ""), Place("", 2, ""))
    # Block 1 of a stack that has experts is like the other blocks.
    experts = [f"layers.1.experts.{expert}" for expert in range(6)]
    found = places(["layers.0.attn", "layers.0.fc", "layers.1.attn", *experts])
    assert found[-1] == Place("layers", 1, "experts.5")


def test_experts_and_layers_inside_a_block_are_roles():
    names = [f"layers.{i}.experts.{j}.w" for i in range(4) for j in range(8)]
    assert places(names)[9] == Place("layers", 1, "experts.1.w")
    names = [f"blocks.{i}.mlp.{j}" for i in range(3) for j in (0, 2, 4, 6)]
    assert places(names)[-1] == Place("blocks", 2, "mlp.6")


def test_numbers_at_the_end_of_a_part_count_where_others_are_like_it():
    names = [f"features.denseblock{i}.denselayer{j}.conv{k}" for i in (1, 2) for j in range(1, 13) for k in (1, 2)]
    assert places(names)[-1] == Place("features.denseblock2.denselayer", 12, "conv2")
    assert places(["fc1", "fc2", "head"]) == [Place("fc", 1, ""), Place("fc", 2, ""), Place("head", None, "")]
    assert places(["wav2vec2.projection", "head"])[0] == Place("wav2vec2.projection", None, "")
    lstm = places(["lstm.l0", "lstm.l0_reverse", "lstm.l1", "lstm.l1_reverse"])
    assert lstm[2:] == [Place("lstm.l", 1, ""), Place("lstm.l", 1, "reverse")]


def test_calls_of_a_shared_module_are_its_blocks():
    assert places(["cell"] * 3, [0, 1, 2])[2] == Place("cell", 2, "", is_call=True)
    names = ["groups.0.layers.0.attention.query", "groups.0.layers.0.ffn"] * 3
    assert places(names, [0, 0, 1, 1, 2, 2])[4] == Place("groups.0.layers.0", 2, "attention.query", is_call=True)


def test_roles_of_experts_are_one_and_those_of_few_layers_are_not():
    found = places([f"h.{i}.experts.{j}.w" for i in range(3) for j in range(8)] + ["h.0.mlp.0", "h.0.mlp.2"])
    roles = merged_roles(found)
    assert set(roles[:24]) == {"experts.*.w"}
    assert roles[24:] == ["mlp.0", "mlp.2"]
