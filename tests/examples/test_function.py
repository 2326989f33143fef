"""examples/function: DeepFRI's files, and tuning a classifier in three ways."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model, make_rows
from safetensors.torch import load_file

from coordformer import CoordformerProcessor
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.function import FunctionCollator, label_matrix
from coordformer.data.rows import load_rows
from coordformer.inference.annotate import annotate, predict_terms
from coordformer.inference.checkpoints import load_checkpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "function"))
import function as example
from deepfri import match_chains, read_annotations, read_split
from ship import ship
from term_metrics import micro_aupr

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


# --- tuning -----------------------------------------------------------------------------------------------------------


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
    again = predict_terms(model, fetch_rows(rows, range(len(rows))), processor.tokenizer)
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


def test_without_coordinates_in_tuning_and_in_the_test(files, tmp_path, monkeypatch):
    """As if the chains had none."""
    table = pq.read_table(files / "chains.parquet")
    nowhere = pa.array([[float("nan")] * len(row) for row in table["coords"]], table.schema.field("coords").type)
    column = table.schema.get_field_index("coords")
    pq.write_table(table.set_column(column, table.schema.field(column), nowhere), tmp_path / "unknown.parquet")
    for tune in ("frozen", "full"):
        for data, extra in ((files / "chains.parquet", ["--without_coords"]), (tmp_path / "unknown.parquet", [])):
            options = ["--data", data, "--annotations", files / "annot.tsv", "--checkpoint", files / "linear", *extra]
            options += ["--splits", *(files / f"{split}.txt" for split in example.SPLITS), "--tune", tune]
            options += ["--epochs", "1", "--seeds", "1", "--output", tmp_path / f"{tune}-{data.stem}"]
            monkeypatch.setattr(sys, "argv", ["function.py", *map(str, options)])
            example.main()
        name = f"{tune}_without_coordinates_0", f"{tune}_with_coordinates_0"
        not_given, given = (np.load(tmp_path / f"{tune}-chains" / each / "predictions.npz") for each in name)
        missing = np.load(tmp_path / f"{tune}-unknown" / name[1] / "predictions.npz")
        np.testing.assert_allclose(not_given["probabilities"], missing["probabilities"], atol=1e-6)
        assert np.abs(not_given["probabilities"] - given["probabilities"]).max() > 1e-5


def test_a_head_for_both_is_tuned_further_and_shipped(files, tmp_path, monkeypatch):
    """On embeddings, with coordinates and without; the next training keeps it; and what is shipped has the numbers."""
    options = ["--data", files / "chains.parquet", "--annotations", files / "annot.tsv", "--seeds", "1", "--both"]
    options += ["--splits", *(files / f"{split}.txt" for split in example.SPLITS)]
    command = [*options, "--checkpoint", files / "linear", "--tune", "head", "--epochs", "3", "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", ["function.py", *map(str, command)])
    example.main()
    run = tmp_path / "head_with_coordinates_0"
    head, start = load_file(run / "model.safetensors"), load_file(files / "linear" / "model.safetensors")
    assert all(torch.equal(head[name], tensor) for name, tensor in start.items() if name.startswith("coordformer."))

    task = example.load_task(
        files / "chains.parquet", files / "annot.tsv", [files / f"{split}.txt" for split in example.SPLITS], ""
    )
    model = example.new_classifier(run, task, "mean")
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="head_with_coordinates_0 was trained with --pooling mean, not cls"):
        example.new_classifier(run, task)

    ship(run, tmp_path / "shipped")
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert "| without coordinates | 50 % of the chains |" in card and "Not measured.\n" not in card
    rows = json.loads((tmp_path / "shipped" / "evaluation.json").read_text())["results"]
    assert [row["model"] for row in rows] == ["term frequencies", "coordinates given", "coordinates not given"]
    chains = fetch_rows(task.rows["test"], range(len(task.rows["test"])))
    for row in rows[1:]:
        without_coords = row["model"] == "coordinates not given"
        probabilities = predict_terms(model.eval(), chains, PROCESSOR.tokenizer, without_coords=without_coords)
        assert row["micro_aupr"] == pytest.approx(micro_aupr(probabilities, task.labels["test"]))
        assert f"| {row['micro_aupr']:.3f} (" in card
    assert annotate(tmp_path / "shipped", STRUCTURES / "1orc.pdb.gz", progress=False)


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
    assert annotate(tmp_path / "lora_with_coordinates_1", STRUCTURES / "1orc.pdb.gz", progress=False)


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
