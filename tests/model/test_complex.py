"""Complexes and chains with gaps on their way from files to the model: positions, chains, and who is whose neighbor."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import STRUCTURES, make_model, pack_rows, pad_rows, random_chain
from datasets import Dataset

from coordformer import CoordformerProcessor, read_chains, read_complex
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.pack import PackedChains, write_pack
from coordformer.data.rows import SCHEMA, chain_to_row
from coordformer.model.chain import CHAIN_GAP, Chain, Complex, join_chains
from coordformer.model.neighbor_graph import EdgeFeatures
from coordformer.model.proteins import as_chain

PROCESSOR = CoordformerProcessor()
POINTS = {"coordinate_embedding": "local_frame", "num_qk_points": 2, "num_neighbors": 5, "message_gating": True}


@pytest.fixture(scope="module")
def protease() -> Complex:
    """HIV protease: two chains of 99 residues and one frame."""
    return read_complex(STRUCTURES / "1hvr.pdb.gz")


@pytest.fixture
def gapped() -> Chain:
    """Six residues, between the second and third of which three are missing."""
    coords = np.array([[3.8 * place, place % 2, 0] for place in (0, 1, 5, 6, 7, 8)])[:, None]
    numbers = ("10", "11", "15", "15A", "16", "17")
    return Chain("gapped_A", "MKVLAG", coords, ("CA",), np.ones(6), None, None, np.array([0, 1, 5, 6, 7, 8]), numbers)


def assert_same_batches(one, other) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(torch.as_tensor(values), torch.as_tensor(other[name]), equal_nan=True, msg=name)


def test_the_processor_tells_positions_and_chains(protease, gapped):
    batch = PROCESSOR(chains=[protease, gapped, read_chains(STRUCTURES / "1orc.pdb.gz")[0]])
    assert batch["input_ids"].shape == batch["position_ids"].shape == batch["chain_ids"].shape == (3, 200)
    assert batch["position_ids"][0].tolist() == [*range(100), *range(100 + CHAIN_GAP, 200 + CHAIN_GAP)]
    assert batch["chain_ids"][0].tolist() == [0] * 100 + [1] * 100
    assert batch["position_ids"][1, :8].tolist() == [0, 1, 2, 6, 7, 8, 9, 10]
    assert batch["position_ids"][2, :73].tolist() == [*range(73)] and not batch["chain_ids"][1:].any()
    whole = PROCESSOR(structures=STRUCTURES / "1hvr.pdb.gz", as_complex=True)
    assert_same_batches(whole, PROCESSOR(chains=[protease]))
    assert "position_ids" not in PROCESSOR(structures=STRUCTURES / "1hvr.pdb.gz")
    assert PROCESSOR(structures=STRUCTURES / "1A8O.cif.gz", assembly=1)["chain_ids"].max() == 1
    with pytest.raises(ValueError, match="`as_complex` and `assembly` go with `structures`"):
        PROCESSOR(chains=[protease], as_complex=True)


def test_rows_packs_and_collators_hand_on_what_the_processor_tells(protease, gapped, tmp_path):
    chains = [protease, gapped, read_chains(STRUCTURES / "1orc.pdb.gz")[0]]
    rows = Dataset(pa.Table.from_pylist([chain_to_row(chain) for chain in chains], schema=SCHEMA))
    collate = CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0.0, rotate=False)
    expected = PROCESSOR(chains=chains)
    for records in (chains, fetch_rows(rows, range(3)), fetch_rows(rows, range(3), names=True)):
        batch = collate(records)
        assert (batch.pop("labels") == -100).all()
        assert_same_batches(batch, expected)
    write_pack(rows, tmp_path / "chains.safetensors", progress=False)
    packed = collate(fetch_rows(PackedChains(tmp_path / "chains.safetensors"), range(3)))
    for name in ("input_ids", "position_ids", "chain_ids"):
        assert torch.equal(packed[name], expected[name]), name
    again = [as_chain(record) for record in fetch_rows(rows, range(3), names=True)]
    assert isinstance(again[0], Complex) and again[0].chain_names == ("A", "B") and again[0].chain_lengths == (99, 99)
    for chain, back in zip(chains, again, strict=True):
        assert back.residue_numbers == chain.residue_numbers
        assert back.positions.tolist() == chain.positions.tolist()


def test_a_packed_row_of_complexes_is_as_each_alone(protease, gapped):
    model = make_model(**POINTS)
    rows = Dataset.from_list([chain_to_row(chain) for chain in (gapped, protease)])
    collate = CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0.0, rotate=False)
    (batch,) = ChainBatches(rows, token_budget=256)
    packed = collate(batch)
    with torch.no_grad():
        together = model(**packed).logits[0]
        parts = [model(**PROCESSOR(chains=[as_chain(row)])).logits[0] for row in batch]
        padded = model(**PROCESSOR(chains=[gapped, protease])).logits
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-4, rtol=1e-4)
    by_length = sorted(parts, key=len)
    torch.testing.assert_close(padded[0, :8], by_length[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(padded[1], by_length[1], atol=1e-4, rtol=1e-4)


def test_a_complex_has_one_center_and_neighbors_in_all_chains(protease):
    """Moved as a whole it gives what it gave; its chains apart give something else, and so does not telling them."""
    model = make_model(**POINTS)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0].numpy()
    turn *= np.linalg.det(turn)
    moved = dataclasses.replace(protease, coords=protease.coords @ turn.T + [30, -20, 10])
    second = protease.chain_index == 1
    apart = dataclasses.replace(protease, coords=protease.coords + 500 * second[:, None, None])
    untold = dataclasses.replace(protease, chain_names=("A",), chain_lengths=(198,))

    def logits(chain) -> torch.Tensor:
        with torch.no_grad():
            return model(**PROCESSOR(chains=[chain])).logits[0]

    torch.testing.assert_close(logits(moved), logits(protease), atol=2e-3, rtol=1e-3)
    assert (logits(apart) - logits(protease)).abs().max() > 0.1
    assert (logits(untold) - logits(protease)).abs().max() > 1e-3


def test_the_edge_of_another_chain_starts_as_far_away_as_can_be():
    model = make_model(**POINTS)
    separation = model.coordformer.edge_features.separation.weight
    fresh = type(model)(model.config)
    for module in (each for each in fresh.modules() if isinstance(each, EdgeFeatures)):
        torch.testing.assert_close(module.other_chain, module.separation.weight[[0, -1]].mean(dim=0))
    state = {name: each for name, each in model.state_dict().items() if not name.endswith("other_chain")}
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh.coordformer.edge_features.other_chain, separation[[0, -1]].mean(dim=0))


def test_chains_that_are_split_are_complexes(protease):
    """The collator's cut equals a complex that was made by hand; about the share asked for is cut, anew each epoch."""
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    collate = CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0.0, rotate=False, split_chains=0.5)
    cuts = []
    for epoch in range(200):
        batch = collate([vars(chain) | {"epoch": epoch}])
        index = batch["chain_ids"][0, 1:-1].numpy()
        cuts.append(int((index == 0).sum()))
        if index.any() and epoch < 20:
            halves = [
                Chain("a", chain.sequence[part], chain.coords[part], chain.atoms, chain.b_factor[part])
                for part in (slice(0, cuts[-1]), slice(cuts[-1], None))
            ]
            by_hand = PROCESSOR(chains=[join_chains("a", halves, ("A", "B"))])
            assert_same_batches({name: batch[name] for name in by_hand}, by_hand)
    cut = [each for each in cuts if each < len(chain)]
    assert 70 <= len(cut) <= 130 and len(set(cut)) > 30 and min(cut) >= 1
    whole = collate([vars(chain) | {"epoch": 0, "augment": False}])
    assert not whole["chain_ids"].any(), "an evaluation cuts nothing"
    both = collate([vars(protease) | {"epoch": epoch} for epoch in range(20)])
    assert (both["chain_ids"].max(dim=1).values == 1).all(), "a complex has its own chains"


def test_padding_and_gaps_do_not_meet():
    """Rows without gaps in a batch with others give what they give alone."""
    model = make_model(**POINTS)
    rows = [random_chain(9), random_chain(14)]
    batch = pad_rows(rows)
    positions = torch.arange(16).repeat(2, 1)
    positions[1, 8:] += 7
    with torch.no_grad():
        padded = model(**batch, position_ids=positions, chain_ids=torch.zeros_like(positions)).logits
        alone = model(**rows[0]).logits
        shifted = model(**rows[1], position_ids=positions[1:]).logits
    torch.testing.assert_close(padded[:1, :11], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(padded[1:], shifted, atol=1e-4, rtol=1e-4)
    packed = pack_rows(rows)
    position_ids = torch.cat((torch.arange(11), positions[1]))[None]
    with torch.no_grad():
        together = model(**packed, position_ids=position_ids).logits
    torch.testing.assert_close(together, torch.cat((alone, shifted), dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "fields", [{}, {"num_distance_bins": 8}, {"coordinate_embedding": "local_frame"}, {"num_qk_points": 2}, POINTS]
)
def test_rows_share_a_structure(fields, protease, gapped):
    """Passes with other tokens over one structure give what they give with its coordinates, also again."""
    model = make_model(**fields)
    for chain in (protease, gapped):
        batch = PROCESSOR(chains=[chain])
        layout = {name: batch[name] for name in ("position_ids", "chain_ids")}
        structure = model.base_model.encode_structure(batch["coords"], batch["input_ids"], **layout)
        for rows in (4, 1, 3):
            input_ids = batch["input_ids"].repeat(rows, 1)
            input_ids[:, 1:-1][torch.rand(rows, len(chain)) < 0.3] = 32
            coords = batch["coords"].repeat(rows, 1, 1)
            with torch.no_grad():
                expected = model(
                    input_ids=input_ids, coords=coords, **{k: v.repeat(rows, 1) for k, v in layout.items()}
                )
                shared = model(input_ids=input_ids, structure=structure, position_ids=batch["position_ids"])
            torch.testing.assert_close(shared.logits, expected.logits, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="in place of `coords`"):
        model(input_ids=batch["input_ids"], structure=structure, coords=batch["coords"])


def test_chain_ids_of_another_shape_are_refused():
    model = make_model(**POINTS)
    with pytest.raises(ValueError, match=r"`chain_ids` has shape \(1, 5\)"):
        model(**random_chain(9), chain_ids=torch.zeros(1, 5, dtype=torch.long))
