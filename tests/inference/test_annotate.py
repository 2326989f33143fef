"""Terms that a classifier gives chains: its own probabilities, over windows, as a table or JSON."""

import json

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model

from coordformer import CoordformerForSequenceClassification, CoordformerProcessor, read_chains, read_complex
from coordformer.data.batching import fetch_rows
from coordformer.data.rows import load_rows
from coordformer.inference.annotate import annotate, describe, predict_terms
from coordformer_command import main

PROCESSOR = CoordformerProcessor()
STRUCTURE = STRUCTURES / "1orc.pdb.gz"


def test_predictions_are_in_the_order_of_the_chains():
    model = make_model("multi_label")
    chains = fetch_rows(load_rows(CHAINS, "valid").select(range(6)), range(6))
    together = predict_terms(model, chains, PROCESSOR.tokenizer, token_budget=400)
    alone = [model(**PROCESSOR(chains=chain)).logits.sigmoid()[0].detach().numpy() for chain in chains]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    not_given = predict_terms(model, chains, PROCESSOR.tokenizer, without_coords=True)
    alone = model(**PROCESSOR([chain["sequence"] for chain in chains])).logits.sigmoid().detach().numpy()
    np.testing.assert_allclose(not_given, alone, atol=1e-5)
    assert abs(not_given - together).max() > 1e-3


def test_a_complex_is_one_protein():
    model = make_model("multi_label")
    both = read_complex(STRUCTURES / "1hvr.pdb.gz")
    found = predict_terms(model, [both, read_chains(STRUCTURE)[0]], PROCESSOR.tokenizer)
    expected = model(**PROCESSOR(chains=[both])).logits.sigmoid().detach().numpy()
    np.testing.assert_allclose(found[:1], expected, atol=1e-5)
    assert abs(found[0] - predict_terms(model, both.chains[:1], PROCESSOR.tokenizer)[0]).max() > 1e-3


def test_a_long_chain_has_the_mean_of_its_windows():
    model = make_model("multi_label")
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    length = len(chain)
    starts = [0, 20, length - 40]
    pieces = [(chain.sequence[start : start + 40], chain.coords[start : start + 40]) for start in starts]
    assert 40 < length - 20 <= 60  # three windows
    batch = PROCESSOR([sequence for sequence, _ in pieces], coords=[coords for _, coords in pieces])
    expected = model(**batch).logits.sigmoid().mean(dim=0).detach().numpy()
    found = predict_terms(model, [chain], PROCESSOR.tokenizer, window=40, token_budget=50)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


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


def quietly(classifier, inputs, **options) -> dict:
    return annotate(classifier, inputs, progress=False, **options)


def test_terms_come_by_probability(classifier, tmp_path):
    found = quietly(classifier, STRUCTURE, output=tmp_path / "new" / "terms.tsv")
    text = (tmp_path / "new" / "terms.tsv").read_text()
    assert text == describe(found, {"1ORC_A": STRUCTURE.name}) + "\n"
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "terms.tsv"]
    head, *lines = [line.split("\t") for line in text.splitlines()]
    assert head == ["chain", "term", "name", "probability", "file"]
    assert {line[4] for line in lines} == {STRUCTURE.name}
    assert [line[:3] for line in lines] == [
        ["1ORC_A", "GO:0003677", "DNA binding"],
        ["1ORC_A", "3.4.21.4", ""],
        ["1ORC_A", "GO:0003824", "catalytic activity"],
    ]
    model = CoordformerForSequenceClassification.from_pretrained(classifier).eval()
    expected = model(**PROCESSOR(structures=STRUCTURE)).logits.sigmoid()[0]
    assert [float(line[3]) for line in lines] == pytest.approx(expected[[0, 2, 1]].tolist(), abs=1e-4)
    assert [each["probability"] for each in found["1ORC_A"]] == pytest.approx(expected[[0, 2, 1]].tolist(), abs=1e-6)


def test_chains_top_and_threshold(classifier, tmp_path, caplog):
    options = {"chain_ids": ["B"], "top": 1, "output": tmp_path / "terms.json", "without_coords": True}
    found = quietly(classifier, STRUCTURES / "1hvr.pdb.gz", **options)
    assert found == json.loads((tmp_path / "terms.json").read_text())
    assert list(found) == ["1HVR_B"] and [each["term"] for each in found["1HVR_B"]] == ["GO:0003677"]
    assert not caplog.text
    found = quietly(classifier, STRUCTURE, threshold=1)
    assert found == {"1ORC_A": []} and describe(found) == "chain\tterm\tname\tprobability"
    assert "1 chain without a term of probability 1 or more; the first: 1ORC_A" in caplog.text


def test_sequences_have_terms(classifier, tmp_path):
    (tmp_path / "one.fasta").write_text(">one\nMKVLAAGW\n")
    found = quietly(classifier, tmp_path / "one.fasta", threshold=0)
    assert [each["term"] for each in found["one"]] == ["GO:0003677", "3.4.21.4", "GO:0003824", "GO:0005515"]


@pytest.mark.parametrize("entries", [1000, 2])
def test_what_is_left_out_lies_beside_the_table(classifier, tmp_path, caplog, entries):
    """What cannot be read, and chains of one id: told apart in a part; of two parts the later one has no place in a
    table by id. Nothing of an earlier run stays."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in (("a.fasta", ">one\nMKV\n"), ("b.fasta", ">odd\nM1V\n"), ("c.fasta", ">one\nGGGGGGG\n")):
        (folder / name).write_text(text)
    found = quietly(classifier, folder, output=tmp_path / "terms.tsv", entries_per_part=entries)
    alone = quietly(classifier, folder / "a.fasta")
    assert list(found) == (["a/one", "c/one"] if entries == 1000 else ["one"])
    first = next(iter(found.values()))
    assert [each["probability"] for each in first] == pytest.approx(
        [each["probability"] for each in alone["one"]], abs=1e-6
    )
    rejected = [line.split("\t") for line in (tmp_path / "terms.rejected.tsv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rejected] == [["b.fasta", "odd"], ["c.fasta", "one"]][: 1 if entries == 1000 else 2]
    assert all("has this id, too; rename one" in reason for *_, reason in rejected[1:])
    several = {1: "1 file or chain was left out", 2: "2 files or chains were left out; the first"}
    assert f"{several[len(rejected)]}: b.fasta: odd: letters '1'" in caplog.text
    for name in ("b.fasta", "c.fasta"):
        (folder / name).unlink()
    quietly(classifier, folder, output=tmp_path / "terms.tsv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "terms.tsv"]


def test_an_id_with_a_tab_is_one_cell():
    terms = [{"term": "GO:1", "name": "binding", "probability": 0.5}]
    assert describe({"a\tb\nc": terms}).splitlines()[1:] == ["a b c\tGO:1\tbinding\t0.5000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0"], "`top` is 0"),
        (["--threshold", "10"], "`threshold` is 10.0"),
        (["--window", "1"], "`window` is 1"),
        (["--token_budget", "0"], "`token_budget` is 0"),
        (["--output", "terms.csv"], "`output` is terms.csv; give the name of a file that ends in .tsv or .json"),
        (["--chains", "Q"], "1orc.pdb.gz: no protein chain Q"),
        (["--shard", "1/2"], "With `shard` the parts of all jobs have to meet; give `output`, too"),
    ],
)
def test_bad_options_of_annotate(classifier, capsys, options, message):
    assert main(["annotate", str(classifier), str(STRUCTURE), *options]) == 1
    assert message in capsys.readouterr().err


def save_head(folder, head, bias, **fields):
    """A head whose predictions are mostly its biases, with its processor."""
    model = make_model(head, **fields)
    with torch.no_grad():
        model.classifier.out_proj.bias.copy_(torch.tensor(bias))
        model.classifier.out_proj.weight.mul_(0.01)
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return model


FOLDS = {0: "all alpha", 1: "all beta", 2: "alpha/beta", 3: "small"}


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_one_class_of_each_chain(tmp_path, caplog, problem_type):
    """Probabilities sum to 1, the likeliest is there whatever the threshold; labels with spaces stay whole."""
    bias = [1.0, 2.0, -1.0, 0.0]
    model = save_head(tmp_path / "head", "single_label", bias, id2label=FOLDS, problem_type=problem_type)
    found = quietly(tmp_path / "head", STRUCTURE, output=tmp_path / "folds.tsv", threshold=0)
    expected = model(**PROCESSOR(structures=STRUCTURE)).logits.softmax(-1)[0].tolist()
    best = found["1ORC_A"]
    assert [(each["term"], each["name"]) for each in best] == [(FOLDS[n], "") for n in (1, 0, 3, 2)]
    assert [each["probability"] for each in best] == pytest.approx([expected[n] for n in (1, 0, 3, 2)], abs=1e-6)
    assert sum(each["probability"] for each in best) == pytest.approx(1)
    head, line, *_ = (tmp_path / "folds.tsv").read_text().splitlines()
    assert head == "chain\tterm\tname\tprobability\tfile"
    assert line == f"1ORC_A\tall beta\t\t{expected[1]:.4f}\t{STRUCTURE.name}"
    assert quietly(tmp_path / "head", STRUCTURE, threshold=1) == {"1ORC_A": best[:1]}
    assert quietly(tmp_path / "head", STRUCTURE, threshold=0, top=1) == {"1ORC_A": best[:1]}
    # Who trained several labels at once and did not say so in the config learns what was made of it.
    assert ("does not say its `problem_type`: it is taken for one class" in caplog.text) == (problem_type is None)


@pytest.mark.parametrize("names", [{0: "melting temperature"}, {0: "Tm", 1: "pI"}])
def test_values_of_a_regression(tmp_path, names):
    """All of them, as the head gives them; of a long chain the mean over its windows."""
    fields = {"num_labels": len(names), "id2label": names, "problem_type": "regression" if len(names) > 1 else None}
    model = save_head(tmp_path / "head", "regression", [61.5, -3.0][: len(names)], **fields)
    found = quietly(tmp_path / "head", STRUCTURE, output=tmp_path / "values.tsv", threshold=1, top=1)
    expected = model(**PROCESSOR(structures=STRUCTURE)).logits[0].tolist()
    assert [(each["term"], each["name"]) for each in found["1ORC_A"]] == [(name, "") for name in names.values()]
    assert [each["value"] for each in found["1ORC_A"]] == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "values.tsv").read_text().splitlines() == [
        "chain\tterm\tname\tvalue\tfile",
        *(f"1ORC_A\t{each['term']}\t\t{each['value']:.6g}\t{STRUCTURE.name}" for each in found["1ORC_A"]),
    ]
    quietly(tmp_path / "head", STRUCTURE, output=tmp_path / "values.json")
    assert json.loads((tmp_path / "values.json").read_text()) == found
    chain = read_chains(STRUCTURE)[0]
    pieces = [predict_terms(model, [chain], PROCESSOR.tokenizer, window=n)[0] for n in (40, 1024)]
    assert pieces[1] == pytest.approx(expected, abs=1e-4) and (pieces[0] != pieces[1]).any()


def test_an_unknown_problem_type_is_refused():
    model = make_model("single_label")
    model.config.problem_type = "ranking"
    with pytest.raises(ValueError, match="`config.problem_type` is 'ranking'; choose one of multi_label"):
        predict_terms(model, read_chains(STRUCTURE), PROCESSOR.tokenizer)


def test_annotate_needs_a_classifier(tmp_path):
    make_model("masked_lm").save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    message = "has no classifier.*; use hub_cards/coordformer-1M-ec .*, or train one: `python examples/f.*tuning.md"
    with pytest.raises(ValueError, match=message):
        quietly(tmp_path, STRUCTURE)


def test_classes_of_residues_are_not_terms(tmp_path):
    make_model("token").save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    message = (
        r"has no classifier of chains, .*; its classes of residues are predicted in Python \(docs/fine_tuning.md\)"
    )
    with pytest.raises(ValueError, match=message):
        quietly(tmp_path, STRUCTURE)
