"""Labels and batches of chains and their terms."""

import numpy as np
import pytest
from conftest import make_model, make_rows

from coordformer import CoordformerProcessor
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.function import FunctionCollator, label_matrix, log_odds

PROCESSOR = CoordformerProcessor()


@pytest.mark.parametrize("options", [{"packing": False}, {}, {"pad_to_budget": True}])
def test_labels_stand_beside_their_chains(options):
    rows = make_rows([5, 40, 12, 33, 8, 27, 19])
    annotations = {name: [number] for number, name in enumerate(rows["id"][:])}
    collator = FunctionCollator(CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0), annotations, 7)
    sequences = dict(enumerate(rows["sequence"][:]))
    seen = []
    for chains in ChainBatches(rows, token_budget=64, **options):
        batch = collator([chains])
        text = PROCESSOR.tokenizer.decode(batch["input_ids"].flatten()).replace("<pad>", "")
        found = [each.removesuffix("<eos>") for each in text.replace(" ", "").split("<cls>")[1:]]
        padding = batch["labels"][len(found) :]
        assert (padding == -100).all() and len(padding) == (len(found) < len(batch.get("cu_seq_lens_q", [])) - 1)
        assert [sequences[int(row.argmax())] for row in batch["labels"][: len(found)]] == found
        assert (batch["labels"][: len(found)].sum(dim=1) == 1).all()
        seen += found
    assert sorted(seen) == sorted(sequences.values())


def test_the_loss_of_packed_chains_is_that_of_padded_ones():
    rows = make_rows([12, 9, 20])
    model = make_model("multi_label")
    annotations = dict(zip(rows["id"][:], [[0, 2], [], [3]], strict=True))
    collator = FunctionCollator(
        CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0, rotate=False), annotations, 4
    )
    losses = []
    for options in ({"packing": False, "token_budget": 3 * 24}, {"token_budget": 64, "pad_to_budget": True}):
        (batch,) = (collator([chains]) for chains in ChainBatches(rows, **options))
        losses.append(model(**batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_chain_without_an_entry_is_named():
    rows = make_rows([5])
    collator = FunctionCollator(CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0), {}, 2)
    with pytest.raises(ValueError, match="Chain chain 0 has no entry in `annotations`"):
        collator(fetch_rows(rows, [0]))


def test_biases_start_at_the_log_odds():
    labels = label_matrix([[0], [0, 1], [0]], 3)
    assert labels.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(log_odds(labels), np.log([3.5 / 0.5, 1.5 / 2.5, 0.5 / 3.5]), rtol=1e-6)
