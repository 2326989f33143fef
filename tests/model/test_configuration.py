"""The config: what it refuses, what it reads of older folders, and that it comes back as it was."""

import json

import pytest
from conftest import ESM_2, make_config

from coordformer import CoordformerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinate_embedding": "cubic"}, "`coordinate_embedding` is 'cubic'; choose one of linear"),
        ({"position_embedding_type": "alibi"}, "`position_embedding_type` is 'alibi'"),
        ({"lm_head": "mlp"}, "`lm_head` is 'mlp'"),
        ({"hidden_act": "sofplus"}, "`hidden_act` is 'sofplus'"),
        ({"hidden_size": 50}, "multiple of `num_attention_heads`"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0; it must be at least 1"),
        ({"hidden_size": 12}, "even head size"),
        ({"coordinate_dim": 0}, "`coordinate_dim` is 0"),
        ({"coordinate_scale": 0}, "`coordinate_scale` is 0"),
        ({"coordinate_atoms": ()}, "`coordinate_atoms` is"),
        ({"coordinate_atoms": ("CA", "CA")}, "name each atom once"),
        ({"coordinate_init": "best"}, "`coordinate_init` is 'best'; choose one of normal, gaussian"),
        ({"coordinate_init": "gaussian"}, "`coordinate_embedding` must be \"quadratic\", not 'linear'"),
        (
            {"coordinate_init": "gaussian", "coordinate_embedding": "quadratic", "num_attention_heads": 24},
            "needs heads of at least `coordinate_dim` . 1 = 4 features; `hidden_size / num_attention_heads` is 2",
        ),
        ({"sequence_encoder": ESM_2}, '`lm_head` must be "linear".*not .esm. and .normal.'),
        ({"num_distance_bins": 1}, "`num_distance_bins` is 1; give at least 2 distances, or 0 for no bias"),
        ({"num_qk_points": -1}, "`num_qk_points` is -1; give a number of points, or 0 for none"),
        (
            {"num_qk_points": 1, "num_neighbors": -1},
            "`num_neighbors` is -1; give a number of residues, or 0",
        ),
        ({"message_gating": "loud"}, "message_gating"),
        ({"num_neighbors": 4}, "`num_neighbors` is 4, but messages are passed beside invariant point attention"),
        ({"edge_updates": True}, "`edge_updates` is True, but without `num_neighbors` there are no messages"),
        ({"message_attention": True}, "`message_attention` is True, but without `num_neighbors`"),
        (
            {"num_qk_points": 1, "num_neighbors": 3, "message_attention": True, "num_attention_heads": 16}
            | {"position_embedding_type": "none"},
            "16 heads .`num_attention_heads`. cannot share messages 24 wide",
        ),
        (
            {"encoder_type": "proteinmpnn", "num_neighbors": 3, "edge_updates": True},
            "`edge_updates` is True, but with `encoder_type=.proteinmpnn",
        ),
        ({"num_v_points": 2}, "`num_qk_points` is 0 and `num_v_points` 2; invariant point attention needs both"),
        ({"num_qk_points": 2, "num_v_points": -2}, "`num_v_points` is -2; give a number of points, or 0 for none"),
        ({"num_qk_points": 2, "coordinate_dim": 2}, "`coordinate_dim` must be 3, not 2"),
        (
            {"coordinate_embedding": "local_frame", "position_embedding_type": "none"},
            "reads the neighbors along the chain",
        ),
        ({"is_decoder": True}, "is an encoder"),
        ({"coordinate_dim": "three"}, "coordinate_dim"),
    ],
)
def test_bad_configs_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        make_config(**fields)


def test_config_round_trips(tmp_path):
    config = make_config(coordinate_atoms=["N", "CA"], coordinate_scale=10.5, position_embedding_type=None)
    config.save_pretrained(tmp_path)
    reloaded = CoordformerConfig.from_pretrained(tmp_path)
    assert reloaded.coordinate_atoms == ("N", "CA") and reloaded.position_embedding_type == "none"
    for name in ("coordinate_atoms", "coordinate_scale", "position_embedding_type", "hidden_act", "lm_head"):
        assert getattr(reloaded, name) == getattr(config, name)


def test_fields_of_older_folders_are_read_and_not_written(tmp_path):
    old = {"distance_bias": 6, "attention_points": 3, "message_neighbours": 8, "message_type": "gated"}
    old |= {"coordinate_embedding": "local", "model_type": "coordformer"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = CoordformerConfig.from_pretrained(tmp_path)
    new = {"num_distance_bins": 6, "num_qk_points": 3, "num_v_points": 3, "num_neighbors": 8, "message_gating": True}
    new |= {"coordinate_embedding": "local_frame"}
    assert {name: getattr(config, name) for name in new} == new
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert new.items() <= written.items() and not (old.keys() - new.keys() - {"model_type"}) & written.keys()


def test_the_number_of_value_points_is_that_of_query_points_unless_given():
    assert make_config(num_qk_points=4).num_v_points == 4
    config = make_config(num_qk_points=4, num_v_points=8)
    assert (config.num_qk_points, config.num_v_points) == (4, 8)
    assert CoordformerConfig(**config.to_dict()).num_v_points == 8
