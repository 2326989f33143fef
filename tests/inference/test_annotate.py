"""Protein function: DeepFRI's files, scores by hand and against scikit-learn, tuning in three ways, annotation."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model, make_rows

from coordformer import CoordformerForSequenceClassification, CoordformerProcessor, read_chains
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.rows import load_rows
from coordformer.inference.annotate import (
    FunctionCollator,
    annotate,
    label_matrix,
    log_odds,
    match_chains,
    micro_aupr,
    micro_fmax,
    precision_recall,
    predict_probabilities,
    protein_centric_fmax,
    read_annotations,
    read_split,
    score_terms,
)
from coordformer.inference.evaluate import load_checkpoint
from coordformer_command import main

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "function"))
import function as example

PROCESSOR = CoordformerProcessor()
EC = "### EC-numbers\n1.1.1.-\t2.7.11.1\n### PDB-chain\tEC-numbers\n1ABC-A\t2.7.11.1,1.1.1.-\n2XYZ-aA\t2.7.11.1\n"
GO = """\
### GO-terms (molecular_function)
GO:1\tGO:2
### GO-names (molecular_function)
binding\t"5'""-end"
### GO-terms (biological_process)
GO:3
### GO-names (biological_process)
growth
### GO-terms (cellular_component)

### GO-names (cellular_component)

### PDB-chain\tGO-terms (molecular_function)\tGO-terms (biological_process)\tGO-terms (cellular_component)
1ABC-A\tGO:2,GO:1\t\t
2XYZ-B\t\tGO:3\t
"""


# --- scores ----------------------------------------------------------------------------------------------------------


def random_scores(chains: int = 40, terms: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels with chains that have none and a term that nobody has."""
    rng = np.random.default_rng(seed)
    labels = rng.random((chains, terms)) < 0.15
    labels[:, 3] = False
    labels[:5] = False
    return np.round(rng.random((chains, terms)) * 0.5 + 0.4 * labels, 1), labels


def test_micro_aupr_by_hand():
    # From the highest score down: right (1/1, recall 1/2), wrong, right (2/3, recall 1), wrong.
    assert micro_aupr([[0.9, 0.8], [0.7, 0.1]], [[1, 0], [1, 0]]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert micro_aupr([[0.1, 0.9], [0.2, 0.8]], [[0, 1], [0, 1]]) == 1


def test_equal_scores_are_predicted_together():
    precision, recall = precision_recall(np.full((2, 3), 0.4), [[1, 0, 0], [0, 0, 1]])
    assert precision.tolist() == [1 / 3] and recall.tolist() == [1]
    assert micro_aupr([[0.5, 0.5], [0.5, 0.1]], [[1, 0], [0, 1]]) == pytest.approx(0.5 * 1 / 3 + 0.5 * 2 / 4)


def test_micro_fmax_by_hand():
    # F1 of 1/1 and 1/2 is 2/3; of 2/3 and 1 it is 4/5.
    assert micro_fmax([[0.9, 0.8], [0.7, 0.1]], [[1, 0], [1, 0]]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_micro_scores_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = random_scores(seed=seed)
    assert micro_aupr(scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores, average="micro"))
    precision, recall, _ = metrics.precision_recall_curve(labels.ravel(), scores.ravel())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert micro_fmax(scores, labels) == pytest.approx(f1.max())


SCORES, LABELS = np.array([[0.9, 0.2, 0.0], [0.6, 0.0, 0.4]]), np.array([[1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ([0.2], 2 * 0.75 / 1.75),  # the first chain has both terms, the second one right and one wrong
        ([0.3], 0.75),  # precision (1 + 1/2) / 2, recall (1/2 + 1) / 2
        ([0.5], 2 * 0.5 * 0.25 / 0.75),  # precision (1 + 0) / 2, recall (1/2 + 0) / 2
        ([0.9], 0.4),  # nothing of the second chain: precision is that of the first, recall 1/4
        ([0.95], 0.0),
        ([0.95, 0.9, 0.3, 0.2], 6 / 7),
    ],
)
def test_protein_centric_fmax_by_hand(thresholds, expected):
    assert protein_centric_fmax(SCORES, LABELS, thresholds) == pytest.approx(expected)


def test_protein_centric_fmax_tries_whole_hundredths_and_differs_from_micro():
    assert protein_centric_fmax(SCORES, LABELS) == pytest.approx(6 / 7)
    assert micro_fmax(SCORES, LABELS) == pytest.approx(6 / 7)  # 3 right of 4
    scores = np.array([[0.9, 0.2, 0.0], [0.6, 0.5, 0.4]])  # one more wrong term of the second chain
    assert protein_centric_fmax(scores, LABELS) == pytest.approx(0.8)  # (1 + 1/3) / 2 and 1
    assert micro_fmax(scores, LABELS) == pytest.approx(0.75)  # 3 of 5 and 1


@pytest.mark.parametrize("seed", range(3))
def test_protein_centric_fmax_is_that_of_a_loop(seed):
    scores, labels = random_scores(seed=seed)
    scores, labels = scores[5:], labels[5:] | (np.arange(12) == 0)  # each chain has a term
    best = 0.0
    for threshold in np.arange(1, 101) / 100:
        predicted = [set(np.flatnonzero(row >= threshold)) for row in scores]
        true = [set(np.flatnonzero(row)) for row in labels]
        if any(predicted):
            precision = np.mean([len(a & b) / len(a) for a, b in zip(predicted, true, strict=True) if a])
            recall = np.mean([len(a & b) / len(b) for a, b in zip(predicted, true, strict=True)])
            best = max(best, 2 * precision * recall / max(precision + recall, 1e-9))
    assert protein_centric_fmax(scores, labels) == pytest.approx(best)


def test_a_chain_without_terms_counts_in_micro_scores_alone():
    scores, labels = np.vstack([SCORES, [0.99, 0.99, 0.99]]), np.vstack([LABELS, [0, 0, 0]])
    assert protein_centric_fmax(scores, labels) == protein_centric_fmax(SCORES, LABELS)
    assert micro_aupr(scores, labels) < micro_aupr(SCORES, LABELS)


def test_a_term_that_nobody_has_changes_nothing_where_it_scores_low():
    scores, labels = np.pad(SCORES, ((0, 0), (0, 1))), np.pad(LABELS, ((0, 0), (0, 1)))
    assert score_terms(scores, labels) == score_terms(SCORES, LABELS)


@pytest.mark.parametrize("measure", [micro_aupr, micro_fmax, protein_centric_fmax])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 2)), r"`scores` has shape \(2, 3\) and `labels` \(2, 2\)"),
        (np.array([[np.nan]]), np.ones((1, 1)), "`scores` has NaN"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "No chain has a term"),
    ],
)
def test_what_cannot_be_scored(measure, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(scores, labels)


# --- files -----------------------------------------------------------------------------------------------------------


def test_ec_annotations(tmp_path):
    (tmp_path / "annot.tsv").write_text(EC)
    terms, names, chains = read_annotations(tmp_path / "annot.tsv")
    assert (terms, names) == (["1.1.1.-", "2.7.11.1"], ["", ""])
    assert {name: indices.tolist() for name, indices in chains.items()} == {"1ABC_A": [0, 1], "2XYZ_aA": [1]}


def test_go_annotations(tmp_path):
    (tmp_path / "annot.tsv").write_bytes(GO.replace("\n", "\r\n").encode())  # as Python's csv writes
    terms, names, chains = read_annotations(tmp_path / "annot.tsv")
    assert (terms, names) == (["GO:1", "GO:2"], ["binding", "5'\"-end"])
    assert {name: indices.tolist() for name, indices in chains.items()} == {"1ABC_A": [0, 1], "2XYZ_B": []}
    terms, names, chains = read_annotations(tmp_path / "annot.tsv", "biological_process")
    assert (terms, names, chains["2XYZ_B"].tolist()) == (["GO:3"], ["growth"], [0])
    assert read_annotations(tmp_path / "annot.tsv", "cellular_component")[0] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EC.replace("### EC", "EC"), "annot.tsv, line 1: no '### TITLE'"),
        (EC.replace("### PDB-chain\tEC-numbers", "### chains\tEC"), "annot.tsv, line 5: no '### TITLE'"),
        ("### EC-numbers\n1.1.1.-\n", "no line '### PDB-chain'"),
        (EC.replace("1ABC-A\t2.7.11.1", "1ABC-A\t2.7.11.99"), "annot.tsv, line 4: 1ABC-A has the term 2.7.11.99"),
        (EC.replace("2XYZ-aA\t", "2XYZ-aA "), "annot.tsv, line 5: 1 columns in place of 2"),
        (EC.replace("2XYZ-aA", "1ABC-A"), "annot.tsv, line 5: 1ABC-A was there before"),
        (GO.replace("molecular", "nuclear"), "ontology 'molecular_function'; the file has: GO-terms .nuclear"),
        (GO.replace("binding\t", ""), "1 names for 2 terms of GO-terms .molecular_function"),
    ],
)
def test_what_is_no_annotation_file(tmp_path, text, message):
    (tmp_path / "annot.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(tmp_path / "annot.tsv")


def test_a_binary_annotation_file(tmp_path):
    (tmp_path / "annot.tsv").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(ValueError, match="annot.tsv is no annotation file of DeepFRI"):
        read_annotations(tmp_path / "annot.tsv")


def test_split_lists(tmp_path):
    (tmp_path / "train.txt").write_text("1R9W-A\n\n6KMX-aA\n5MRF_EE\n")
    assert read_split(tmp_path / "train.txt") == ["1R9W_A", "6KMX_aA", "5MRF_EE"]
    (tmp_path / "train.txt").write_text("1R9W-A\n1R9WA\n")
    with pytest.raises(ValueError, match="train.txt, line 2: '1R9WA' is no chain"):
        read_split(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="train.txt lists no chain"):
        read_split(tmp_path / "train.txt")


def test_chains_are_matched_by_id_and_by_alias():
    rows = make_rows([5, 6, 7]).remove_columns(["id", "aliases"])
    rows = rows.add_column("id", ["1AAA_A", "1BBB_B", "1CCC_C"])
    rows = rows.add_column("aliases", [["2AAA_A", "1CCC_C"], [], None])
    # An id of one row is stronger than an alias of another; of two names for one row the first counts.
    assert match_chains(rows, ["9ZZZ_Z", "1CCC_C", "2AAA_A", "1AAA_A"]) == {2: "1CCC_C", 0: "2AAA_A"}


# --- batches ---------------------------------------------------------------------------------------------------------


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


# --- prediction ------------------------------------------------------------------------------------------------------


def test_predictions_are_in_the_order_of_the_chains():
    model = make_model("multi_label")
    chains = fetch_rows(load_rows(CHAINS, "valid").select(range(6)), range(6))
    together = predict_probabilities(model, PROCESSOR, chains, token_budget=400)
    alone = [model(**PROCESSOR(chains=chain)).logits.sigmoid()[0].detach().numpy() for chain in chains]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    withheld = predict_probabilities(model, PROCESSOR, chains, without_coords=True)
    alone = model(**PROCESSOR([chain["sequence"] for chain in chains])).logits.sigmoid().detach().numpy()
    np.testing.assert_allclose(withheld, alone, atol=1e-5)
    assert abs(withheld - together).max() > 1e-3


def test_a_long_chain_has_the_mean_of_its_windows():
    model = make_model("multi_label")
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    length = len(chain)
    starts = [0, 20, length - 40]
    pieces = [(chain.sequence[start : start + 40], chain.coords[start : start + 40]) for start in starts]
    assert 40 < length - 20 <= 60  # three windows
    batch = PROCESSOR([sequence for sequence, _ in pieces], coords=[coords for _, coords in pieces])
    expected = model(**batch).logits.sigmoid().mean(dim=0).detach().numpy()
    found = predict_probabilities(model, PROCESSOR, [chain], window=40, token_budget=50)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "GO:0003677 DNA binding", 1: "GO:0003824 catalytic activity", 2: "3.4.21.4", 3: "GO:0005515 x"}
    model = make_model("multi_label", id2label=labels, label2id={label: number for number, label in labels.items()})
    with torch.no_grad():
        model.classifier.out_proj.bias.copy_(torch.tensor([4.0, 0.0, 2.0, -30.0]))
        model.classifier.out_proj.weight.mul_(0.01)
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def test_annotate_prints_and_writes_terms(classifier, tmp_path, capsys):
    structure = STRUCTURES / "1orc.pdb.gz"
    assert main(["annotate", str(classifier), str(structure), "--output", str(tmp_path / "new" / "terms.tsv")]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "new" / "terms.tsv").read_text() == text
    head, *lines = [line.split("\t") for line in text.splitlines()]
    assert head == ["chain", "term", "name", "probability"]
    assert [line[:3] for line in lines] == [
        ["1ORC_A", "GO:0003677", "DNA binding"],
        ["1ORC_A", "3.4.21.4", ""],
        ["1ORC_A", "GO:0003824", "catalytic activity"],
    ]
    model = CoordformerForSequenceClassification.from_pretrained(classifier).eval()
    expected = model(**PROCESSOR(structures=structure)).logits.sigmoid()[0]
    assert [float(line[3]) for line in lines] == pytest.approx(expected[[0, 2, 1]].tolist(), abs=1e-4)


def test_annotate_takes_chains_top_and_threshold(classifier, tmp_path, capsys):
    options = ["--chains", "B", "--top", "1", "--output", str(tmp_path / "terms.json"), "--without_coords"]
    assert main(["annotate", str(classifier), str(STRUCTURES / "1hvr.pdb.gz"), *options]) == 0
    found = json.loads((tmp_path / "terms.json").read_text())
    assert list(found) == ["1HVR_B"] and [each["term"] for each in found["1HVR_B"]] == ["GO:0003677"]
    capsys.readouterr()
    assert main(["annotate", str(classifier), str(STRUCTURES / "1orc.pdb.gz"), "--threshold", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "chain\tterm\tname\tprobability\n"
    assert "1ORC_A has no term of probability 1.0 or more" in printed.err


def test_annotate_reads_sequences(classifier, tmp_path):
    (tmp_path / "one.fasta").write_text(">one\nMKVLAAGW\n")
    found = annotate(classifier, tmp_path / "one.fasta", threshold=0)
    assert [each["term"] for each in found["one"]] == ["GO:0003677", "3.4.21.4", "GO:0003824", "GO:0005515"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0"], "`top` is 0"),
        (["--threshold", "10"], "`threshold` is 10.0"),
        (["--window", "1"], "`window` is 1"),
        (["--token_budget", "0"], "`token_budget` is 0"),
        (["--output", "terms.csv"], "--output is terms.csv; give the name of a file that ends in .tsv or .json"),
        (["--chains", "Q"], "no protein chain Q"),
    ],
)
def test_bad_options_of_annotate(classifier, capsys, options, message):
    assert main(["annotate", str(classifier), str(STRUCTURES / "1orc.pdb.gz"), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("head", ["masked_lm", "single_label"])
def test_annotate_needs_a_classifier_of_several_labels(head, tmp_path, capsys):
    make_model(head).save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    assert main(["annotate", str(tmp_path), str(STRUCTURES / "1orc.pdb.gz")]) == 1
    assert "give a CoordformerForSequenceClassification with 'multi_label_classification'" in capsys.readouterr().err


# --- examples/function -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, 20 real chains with made-up EC numbers, DeepFRI's files for them, and the options of the example."""
    folder = tmp_path_factory.mktemp("function")
    for name in ("linear", "none"):
        make_model(coordinate_embedding=name).save_pretrained(folder / name)
        PROCESSOR.save_pretrained(folder / name)
    rows = load_rows(CHAINS, "valid")
    rows = rows.select([number for number, name in enumerate(rows["id"][:]) if name[4:5] == "_"][:20])
    rows.to_parquet(folder / "chains.parquet")
    names = [name.replace("_", "-") for name in rows["id"][:]]
    lines = [f"{name}\t{('1.1.1.1', '2.2.2.2', '1.1.1.1,2.2.2.2')[number % 3]}" for number, name in enumerate(names)]
    head = ["### EC-numbers", "1.1.1.1\t2.2.2.2\t3.3.3.3", "### PDB-chain\tEC-numbers"]
    (folder / "annot.tsv").write_text("\n".join(head + lines[:-1]) + "\n")  # the last one has no line
    # The first chain is in two lists, and one is not in the data.
    for split, listed in (("train", names[:10]), ("valid", names[10:14]), ("test", [*names[14:], names[0], "9ZZZ-Z"])):
        (folder / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return folder


@pytest.fixture(scope="module")
def task(files):
    splits = [files / f"{split}.txt" for split in example.SPLITS]
    return example.load_task(files / "chains.parquet", files / "annot.tsv", splits, "molecular_function")


OPTIONS = {"num_train_epochs": 1, "learning_rate": 1e-2, "seed": 0, "use_cpu": True}


def test_the_task_has_each_chain_once(task):
    ids = {split: task.rows[split]["id"][:] for split in example.SPLITS}
    assert {split: len(each) for split, each in ids.items()} == {"train": 9, "valid": 4, "test": 6}
    assert not set(ids["train"]) & set(ids["test"])
    assert task.left_out["test"] == {"not in the data": 1, "no term": 1}
    assert task.labels["train"][0].tolist() == [0, 1, 0]  # of the second chain
    assert task.annotations[ids["test"][-1]].tolist() == [0]  # of the first


def test_data_without_the_listed_chains(files, tmp_path):
    (tmp_path / "none.txt").write_text("9ZZZ-Z\n")
    with pytest.raises(ValueError, match="has no chain of .*none.txt with a term of .*annot.tsv"):
        example.load_task(files / "chains.parquet", files / "annot.tsv", [tmp_path / "none.txt"] * 3, "")


def test_chains_that_were_seen_in_pretraining(files, tmp_path):
    rows = load_rows(files / "chains.parquet")
    before = rows.select([0, 2]).remove_columns("id").add_column("id", [rows["id"][0], "another name"])
    before.remove_columns("split").add_column("split", ["train", "train"]).to_parquet(tmp_path / "before.parquet")
    seen = example.seen_in(tmp_path / "before.parquet", rows.select(range(4)))
    assert seen.tolist() == [True, False, True, False]  # the third by its sequence


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_tuned_classifiers_learn_and_are_saved(files, task, tmp_path, tune):
    if tune == "lora":
        pytest.importorskip("peft")
    probabilities, record = example.tune_classifier(task, files / "linear", tune, tmp_path, 700, **OPTIONS)
    assert record["best_epoch"] == 1 and len(record["valid_micro_aupr"]) == 1
    model, processor = load_checkpoint(tmp_path, any_head=True)
    assert model.config.id2label == {0: "1.1.1.1", 1: "2.2.2.2", 2: "3.3.3.3"}
    rows = task.rows["test"]
    again = predict_probabilities(model, processor, fetch_rows(rows, range(len(rows))))
    np.testing.assert_allclose(again, probabilities, atol=1e-5)
    start = example.new_classifier(files / "linear", task).state_dict()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), start[name])]
    whole = sum(parameter.numel() for parameter in model.parameters())
    if tune == "full":
        assert len(changed) > len(start) / 2
        assert record["trained_parameters"] == whole
    else:
        assert all("query" in name or "value" in name or name.startswith("classifier") for name in changed)
        assert record["trained_parameters"] < whole / 2


def test_a_new_head_has_a_rate_of_its_own(files, task):
    model = example.new_classifier(files / "linear", task)
    model.coordformer.esm.embeddings.requires_grad_(False)
    groups = example.make_optimizer(model, 1e-4, 1e-2).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {
        id(parameter): 1e-2 if name.startswith("classifier.") else 1e-4
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert rates == expected and set(rates.values()) == {1e-4, 1e-2}


def test_lora_leaves_the_weights_and_reloads_from_its_adapter(files, task, tmp_path):
    peft = pytest.importorskip("peft")
    model = example.add_lora(example.new_classifier(files / "linear", task))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collator = FunctionCollator(CoordformerDataCollator(PROCESSOR.tokenizer, mlm_probability=0), task.annotations, 3)
    train, valid = (ChainBatches(task.rows[split], 700, packing=False) for split in ("train", "valid"))
    assert len(train) >= 2
    example.fit(model, train, valid, collator, tmp_path, 1, **OPTIONS)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), before[name])}
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
    assert any("lora_B" in name for name in changed)

    model.cpu().eval().save_pretrained(tmp_path / "adapter")
    torch.manual_seed(1)  # another new head, which the adapter's replaces
    reloaded = peft.PeftModel.from_pretrained(example.new_classifier(files / "linear", task), tmp_path / "adapter")
    batch = PROCESSOR(chains=fetch_rows(task.rows["test"], [0, 1]))
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(**batch).logits, model(**batch).logits)


def test_the_example_runs_reports_and_goes_on(files, tmp_path, monkeypatch, capsys):
    options = ["--data", files / "chains.parquet", "--annotations", files / "annot.tsv"]
    options += ["--splits", *(files / f"{split}.txt" for split in example.SPLITS), "--checkpoint", files / "linear"]
    options += ["--baseline", files / "none", "--pretrained_on", CHAINS, "--tune", "frozen", "--epochs", "2"]
    options += ["--seeds", "1", "--output", tmp_path, "--results", tmp_path / "results"]
    monkeypatch.setattr(sys, "argv", ["function.py", *map(str, options)])
    example.main()
    report = (tmp_path / "results" / "report.md").read_text()
    assert "| frozen | not seen (6) | micro AUPR |" in report and str(tmp_path) not in report
    assert "1 have no training chain and" in report
    summary = json.loads((tmp_path / "results" / "results.json").read_text())
    assert summary["chains"] == {"test": 6, "valid": 4, "train": 9}
    assert {row["measure"] for row in summary["differences"]} == {"micro_aupr", "protein_centric_fmax", "micro_fmax"}
    assert (tmp_path / "results" / "terms.csv").read_text().splitlines()[-1] == "3.3.3.3,,0,0,0"
    before = (tmp_path / "frozen_with_coordinates_0" / "predictions.npz").stat().st_mtime_ns
    example.main()
    assert (tmp_path / "frozen_with_coordinates_0" / "predictions.npz").stat().st_mtime_ns == before
    assert (tmp_path / "results" / "report.md").read_text() == report
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--epochs", "3"])
    with pytest.raises(ValueError, match="holds a run with another num_train_epochs; choose another --output"):
        example.main()


def test_coordinates_are_withheld_in_tuning_and_in_the_test(files, tmp_path, monkeypatch):
    """As if the chains had none."""
    table = pq.read_table(files / "chains.parquet")
    nowhere = pa.array([[float("nan")] * len(row) for row in table["coords"]], table.schema.field("coords").type)
    column = table.schema.get_field_index("coords")
    pq.write_table(table.set_column(column, table.schema.field(column), nowhere), tmp_path / "unknown.parquet")
    for tune in ("frozen", "full"):
        for data, extra in ((files / "chains.parquet", ["--withheld"]), (tmp_path / "unknown.parquet", [])):
            options = ["--data", data, "--annotations", files / "annot.tsv", "--checkpoint", files / "linear", *extra]
            options += ["--splits", *(files / f"{split}.txt" for split in example.SPLITS), "--tune", tune]
            options += ["--epochs", "1", "--seeds", "1", "--output", tmp_path / f"{tune}-{data.stem}"]
            monkeypatch.setattr(sys, "argv", ["function.py", *map(str, options)])
            example.main()
        name = f"{tune}_without_coordinates_0", f"{tune}_with_coordinates_0"
        withheld, given = (np.load(tmp_path / f"{tune}-chains" / each / "predictions.npz") for each in name)
        missing = np.load(tmp_path / f"{tune}-unknown" / name[1] / "predictions.npz")
        np.testing.assert_allclose(withheld["probabilities"], missing["probabilities"], atol=1e-6)
        assert np.abs(withheld["probabilities"] - given["probabilities"]).max() > 1e-5


@pytest.mark.slow
def test_the_quick_example_in_every_way(files, tmp_path, monkeypatch):
    options = ["--data", files / "chains.parquet", "--annotations", files / "annot.tsv", "--quick", "--epochs", "2"]
    options += ["--splits", *(files / f"{split}.txt" for split in example.SPLITS), "--checkpoint", files / "linear"]
    options += ["--tune", "full", "frozen", "lora", "--seeds", "2", "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", ["function.py", *map(str, options)])
    example.main()
    report = (tmp_path / "report.md").read_text()
    for tune in ("full", "frozen", "lora"):
        assert f"| {tune} | all (" in report
    assert main(["annotate", str(tmp_path / "lora_with_coordinates_1"), str(STRUCTURES / "1orc.pdb.gz")]) == 0


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(0)
    labels = label_matrix(rng.integers(8, size=(30, 3)), 8)
    noise, perfect = rng.random((2, 30, 8)), np.stack([labels * 0.9, labels * 0.8])
    predictions = {("full", "without coordinates"): noise, ("full", "with coordinates"): perfect}
    scores, differences = example.score_runs(
        predictions, labels, labels.mean(axis=0), {"all": np.ones(30, dtype=bool), "few": np.arange(30) < 5}
    )
    assert len(scores) == 2 * (1 + 4) and len(differences) == 2 * 3
    best = [row["micro_aupr"] for row in scores if row["model"] == "with coordinates"]
    assert best == [1.0] * 4
    expected = 1 - np.mean([micro_aupr(one, labels) for one in noise])
    row = next(row for row in differences if row["measure"] == "micro_aupr" and row["test_chains"] == "all")
    assert 0 < row["low"] < expected < row["high"]
