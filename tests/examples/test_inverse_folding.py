"""examples/inverse_folding: means of weights, and models side by side on the same residues."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import CHAINS
from datasets import concatenate_datasets
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from coordformer import CoordformerConfig, CoordformerForMaskedLM, CoordformerProcessor, read_chains
from coordformer.data.rows import chain_to_row, load_rows, rows_to_table
from coordformer.hub.card import training_facts
from coordformer.inference.masked import count_chains, summarize_samples
from coordformer.inference.metrics import COUNT
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.processing_coordformer import letter_ids

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "inverse_folding"))
import architecture
import average
import calibration
import compare
import join_backbone
import noise
import predicted

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from ship import divide_logits


@pytest.fixture
def make_checkpoint(tmp_path):
    def make(name: str, seed: int, **options) -> Path:
        torch.manual_seed(seed)
        config = CoordformerConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                   initializer_range=0.5, **options)  # fmt: skip
        CoordformerForMaskedLM(config).save_pretrained(tmp_path / name)
        CoordformerProcessor().save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_weights_are_averaged_and_of_one_training(make_checkpoint, tmp_path):
    checkpoints = [make_checkpoint(f"checkpoint-{seed}", seed) for seed in range(3)]
    average.average(checkpoints, tmp_path / "mean")
    one, two, three = (load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints)
    for name, mean in load_file(tmp_path / "mean" / "model.safetensors").items():
        torch.testing.assert_close(mean, (one[name] + two[name] + three[name]) / 3)
    assert CoordformerProcessor.from_pretrained(tmp_path / "mean").coordinate_atoms == ("CA",)
    other = make_checkpoint("other", 0, coordinate_embedding="none")
    with pytest.raises(ValueError, match=r"other and .*checkpoint-0 are different models"):
        average.average([checkpoints[0], other], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_models_are_asked_for_the_same_residues_and_counted_once(make_checkpoint, tmp_path, monkeypatch, capsys):
    checkpoints = {
        "reads": make_checkpoint("reads", 0),
        "does not": make_checkpoint("not", 1, coordinate_embedding="none"),
    }
    rows = load_rows(CHAINS, "valid").select(range(4))
    rows = rows.remove_columns(set(rows.column_names) & {"cluster"}).add_column("cluster", [7, 3, 7, 3])
    known = load_rows(CHAINS, "train").select(range(20)).select_columns(rows.column_names[:-1])
    concatenate_datasets([rows, known.add_column("cluster", [9] * 20)]).to_parquet(tmp_path / "chains.parquet")
    results = tmp_path / "results"
    results.mkdir()
    (results / "relatives.csv").write_text("chain,relative\nof_other_data,\n")
    arguments = ["compare.py", "--data", str(tmp_path / "chains.parquet"), "--num_mask_samples", "2",
                 "--output", str(tmp_path / "counts"), "--results", str(results)]  # fmt: skip
    for name, folder in checkpoints.items():
        arguments += ["--model", name, str(folder)]
    monkeypatch.setattr(sys, "argv", arguments)
    compare.main()
    subsets = json.loads((results / "compare.json").read_text())["models"]
    found, first = subsets[compare.ALL], subsets["the first chain of each cluster of held-out chains"]
    guess = found.pop(compare.FREQUENCIES)
    assert set(found) == {"reads", "reads, without coordinates", "does not"}
    # By hand: one answer to all questions, the shares of the residues in the training chains.
    letters = Counter("".join(known["sequence"]))
    asked = np.load(next((tmp_path / "counts").glob("frequencies_train-*")))["counts"][..., COUNT].sum(axis=(0, 1))
    known_residues = sum(letters[letter] for letter in AMINO_ACIDS)
    logarithms = {letter: np.log(letters[letter] / known_residues) for letter in AMINO_ACIDS}
    tokens = letter_ids(CoordformerProcessor().tokenizer)
    loss = -sum(asked[token] * logarithms[letter] for letter, token in tokens.items()) / asked.sum()
    assert guess["masked15"]["perplexity"] == pytest.approx(np.exp(loss))
    assert guess["masked15"]["recovery"] == asked[tokens[max(logarithms, key=logarithms.get)]] / asked.sum()
    assert compare.ALL in subsets and len(subsets) == 2  # nobody looked for relatives of these chains
    for name, protocols in found.items():
        model = AutoModelForMaskedLM.from_pretrained(checkpoints[name.partition(",")[0]]).eval()
        tokenizer = CoordformerProcessor().tokenizer
        counts = count_chains(model, rows, tokenizer, "masked15", num_mask_samples=2, without_coords="without" in name)
        # The interval is over the two clusters, 3 and 7.
        clusters = np.stack([counts[:, [1, 3]].sum(axis=1), counts[:, [0, 2]].sum(axis=1)], axis=1)
        summary = summarize_samples(clusters, letter_ids(tokenizer))
        assert protocols["masked15"]["perplexity_interval"] == pytest.approx(summary["perplexity_interval"])
        measured = summarize_samples(counts, letter_ids(tokenizer))["perplexity"]
        assert protocols["masked15"]["perplexity"] == pytest.approx(measured)
        assert f"| {name} | 0.0M | {measured:.2f} (" in (results / "report.md").read_text()
        alone = summarize_samples(counts[:, :2], letter_ids(tokenizer))["perplexity"]
        assert first[name]["masked15"]["perplexity"] == pytest.approx(alone)
    asked = [np.load(path)["counts"][..., COUNT] for path in (tmp_path / "counts").glob("*-masked15-2.npz")]
    assert len(asked) == 4 and asked[0].sum() > 0 and all(np.array_equal(asked[0], each) for each in asked)
    assert found["reads"]["masked15"]["perplexity"] != found["reads, without coordinates"]["masked15"]["perplexity"]

    def refuse(*_, **__):
        raise AssertionError("counted before")

    before = (results / "compare.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(compare, "count_chains", refuse)
        compare.main()
        assert (results / "compare.json").read_bytes() == before
        make_checkpoint("reads", 2)  # other weights under the same name are counted
        with pytest.raises(AssertionError, match="counted before"):
            compare.main()
        make_checkpoint("reads", 0)
        compare.main()
        rows.select(range(3)).to_parquet(tmp_path / "chains.parquet")  # and so are other data
        with pytest.raises(AssertionError, match="counted before"):
            compare.main()


def run(module, monkeypatch, **options):
    """The `main` of a script, with options of one or several words each."""
    words = [word for name, values in options.items() for word in (f"--{name}", *map(str, np.ravel(values)))]
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    module.main()


def test_backbones_are_joined_to_their_alphas(tmp_path, monkeypatch, capsys):
    chains = read_chains("tests/data/structures/1orc.pdb.gz", atoms=("N", "CA", "C", "O"))
    rows = [chain_to_row(chain) for chain in chains]
    alphas = [chain.coords[:, 1] for chain in chains]
    other = {"id": "other", "sequence": "AC", "length": 2, "observed": 2, "coords": np.zeros(6), "split": "valid"}
    alone = {"atoms": ["CA"], "split": "train"}
    ours = [row | alone | {"coords": ca.ravel()} for row, ca in zip(rows, alphas, strict=True)]
    pq.write_table(rows_to_table([rows[0] | other | {"atoms": ["CA"]}, *ours]), tmp_path / "chains.parquet")
    offsets = {"id": [chain.id for chain in chains] + ["unknown"]}
    for number, atom in {0: "n", 2: "c", 3: "o"}.items():
        for axis, letter in enumerate("xyz"):
            apart = [chain.coords[:, number, axis] - ca[:, axis] for chain, ca in zip(chains, alphas, strict=True)]
            values = [np.nan_to_num(np.round(100 * each), nan=-32768).astype(np.int16) for each in apart]
            values[0][20] = -32768 if atom == "o" else values[0][20]
            offsets[f"{atom}_{letter}"] = pa.array([*values, [1]], pa.list_(pa.int16()))
    pq.write_table(pa.table(offsets), tmp_path / "backbone.parquet")
    paths = {name: tmp_path / f"{name}.parquet" for name in ("chains", "backbone", "output")}
    run(join_backbone, monkeypatch, **paths)
    assert f"{len(chains)} of {len(chains) + 1} chains have a backbone" in capsys.readouterr().out
    joined = load_rows(paths["output"], "train")
    assert joined[0]["atoms"] == ["N", "CA", "C", "O"] and joined["id"][:] == [chain.id for chain in chains]
    coords = np.array(joined[0]["coords"]).reshape(-1, 4, 3)
    assert np.isfinite(chains[0].coords[20]).all() and np.isnan(coords[20]).sum(axis=1).tolist() == [0, 0, 0, 3]
    coords[20, 3] = chains[0].coords[20, 3]
    np.testing.assert_allclose(coords, chains[0].coords, atol=0.0051)
    np.testing.assert_array_equal(coords[:, 1], chains[0].coords[:, 1])
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    monkeypatch.setattr(sys, "argv", ["join_backbone", *words, "--keep_all"])
    join_backbone.main()
    every = load_rows(paths["output"])
    assert {row["id"]: len(row["atoms"]) for row in every} == {chain.id: 4 for chain in chains} | {"other": 1}
    offsets["n_y"] = pa.array([[1]] * len(offsets["id"]), pa.list_(pa.int16()))
    pq.write_table(pa.table(offsets), tmp_path / "backbone.parquet")
    for chains_file, said in (("chains", r"Chain .*: 1 values in n_y for \d+ residues"), ("output", "has more atoms")):
        with pytest.raises(SystemExit):
            run(
                join_backbone,
                monkeypatch,
                **paths | {"chains": paths[chains_file], "output": tmp_path / "none.parquet"},
            )
        assert re.search(said, capsys.readouterr().err) and not (tmp_path / "none.parquet").exists()


def test_noise_is_told_apart_by_half_and_relation(make_checkpoint, tmp_path, monkeypatch):
    """Counts are those of `count_chains`, halves share no cluster, and related predicted chains are apart."""
    model = ["ours", make_checkpoint("ours", 0)]
    rows = load_rows(CHAINS, "valid").select(range(8))
    rows = rows.remove_columns(set(rows.column_names) & {"cluster"}).add_column("cluster", [1, 2, 3, 4] * 2)
    rows.to_parquet(tmp_path / "chains.parquet")
    halves = {noise.half_of(cluster) for cluster in (1, 2, 3, 4)}
    assert halves == {"choose", "test"} and noise.half_of(1) == noise.half_of(np.int64(1))
    few = rows.select(range(4))
    few = few.add_column("max_train_identity", [0.0, 0.9, 0.2, 0.3]).add_column("component", [1, 2, 3, 4])
    few.to_parquet(tmp_path / "predicted.parquet")
    options = {"data": tmp_path / "chains.parquet", "predicted": tmp_path / "predicted.parquet", "model": model}
    options |= {"output": tmp_path / "counts", "results": tmp_path / "noise.json", "noise": [0, 2]}
    run(noise, monkeypatch, **options)
    found = json.loads((tmp_path / "noise.json").read_text())["parts"]
    assert sum(found[half]["chains"] for half in ("choose", "test")) == 8
    assert sum(found[half]["clusters"] for half in ("choose", "test")) == 4
    assert [found[name]["chains"] for name in found if name.startswith("predicted")] == [2, 2]
    loaded, tokenizer = AutoModelForMaskedLM.from_pretrained(model[1]).eval(), CoordformerProcessor().tokenizer
    chosen = rows.select([n for n, each in enumerate(rows["cluster"][:]) if noise.half_of(each) == "choose"])
    for width in (0, 2):
        counts = count_chains(loaded, chosen, tokenizer, num_mask_samples=1, noise=width)
        expected = summarize_samples(counts, letter_ids(tokenizer))["perplexity"]
        measured = found["choose"]["noise"][str(width)]["ours"]["perplexity"]
        assert measured == pytest.approx(expected, rel=1e-5)
    assert found["choose"]["noise"]["0"]["ours"]["perplexity"] != measured
    assert list(found["predicted"]["noise"]) == ["0"]


def test_predicted_chains_by_program_and_confidence(make_checkpoint, tmp_path, monkeypatch, capsys):
    """All residues together are what `count_chains` says, and each is in the bin of its own confidence."""
    folder = make_checkpoint("ours", 0)
    rows = load_rows(CHAINS, "valid").select(range(16))
    lengths = [len(row["sequence"]) for row in rows]
    plddt = [[50] * (length // 2) + [99] * (length - length // 2) for length in lengths[:-1]] + [None]
    rows = rows.add_column("max_train_identity", [0.1] * 10 + [0.5] * 6).add_column("component", [*range(16)])
    rows = rows.remove_columns("method").add_column("method", ["a"] * 6 + ["b"] * 10).add_column("plddt", plddt)
    rows.to_parquet(tmp_path / "predicted.parquet")
    options = {
        "predicted": tmp_path / "predicted.parquet",
        "model": ["ours", folder],
        "results": tmp_path / "found.json",
    }
    run(predicted, monkeypatch, **options)
    report = json.loads(options["results"].read_text())
    assert capsys.readouterr().out.splitlines()[-10:] == predicted.table(report)
    found = report["models"]["ours"]
    alone, related = found["no relatives"], found["relatives of training chains"]
    assert list(alone) == ["all", "a", "pLDDT 0 to 70", "pLDDT 95 to 100"]  # of b there are four
    assert list(related) == ["all", "b", "pLDDT 0 to 70", "pLDDT 95 to 100"]
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), CoordformerProcessor().tokenizer
    counts = count_chains(model, rows.select(range(10)), tokenizer, num_mask_samples=1)
    expected = summarize_samples(counts, letter_ids(tokenizer), [*range(10)])
    for name in ("perplexity", "recovery", "perplexity_interval", "recovery_interval"):
        assert alone["all"][name] == pytest.approx(expected[name], rel=1e-5)
    bins = [alone[name]["residues"] for name in list(alone)[2:]]
    assert sum(bins) == alone["all"]["residues"] and min(bins) > 0.3 * sum(bins)
    bins = [related[name]["residues"] for name in list(related)[2:]]
    assert 0 < sum(bins) < related["all"]["residues"] and related["all"]["components"] == 6


def test_layers_are_told_apart_by_variant_and_seed(tmp_path, monkeypatch, capsys):
    """Counts of both seeds together are those of `count_chains`, and nothing is trained or counted twice."""
    rows = load_rows(CHAINS)
    rows = rows.select([place for place, split in enumerate(rows["split"][:]) if split == "train"][:8])
    valid = load_rows(CHAINS, "valid").select(range(4))
    both = concatenate_datasets([rows, valid])
    both = both.remove_columns(set(both.column_names) & {"cluster"})
    chosen = [number for number in range(50) if noise.half_of(number) == "choose"][:2]
    both.add_column("cluster", [99] * 8 + chosen * 2).to_parquet(tmp_path / "chains.parquet")
    recipe = {"train_split": "train", "max_length": 40, "token_budget": 256, "max_steps": 1, "use_cpu": True}
    recipe |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    variants = {
        "none": {"predicted": "the first", "options": {"coordinate_embedding": "none"}},
        "frames, 2": {"predicted": "better", "with": "none", "options": {"coordinate_embedding": "local_frame"}},
    }
    written = {"recipe": recipe | {"report_to": "none"}, "variants": variants}
    (tmp_path / "few.yaml").write_text(json.dumps(written))
    options = {"data": tmp_path / "chains.parquet", "output": tmp_path / "runs", "results": tmp_path / "few.json"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["architecture", str(tmp_path / "few.yaml"), *words, "--noise", "0", "2"])
    architecture.main()
    found = json.loads(options["results"].read_text())
    assert found["chains"] == 4 and found["clusters"] == 2 and list(found["variants"]) == list(variants)
    held = load_rows(options["data"], "valid")
    for name, folder in (("none", "none"), ("frames, 2", "frames_2")):
        report = found["variants"][name]
        assert report["seeds"] == [0, 1] and report["updates"] == 1 and min(report["cpu_seconds"]) > 0
        models = [
            AutoModelForMaskedLM.from_pretrained(tmp_path / "runs" / f"{folder}-{seed}").eval() for seed in (0, 1)
        ]
        assert report["parameters"] == sum(each.numel() for each in models[0].parameters())
        for width in (0, 2):
            numbers = report["noise"][str(width)]
            tokenizer = CoordformerProcessor().tokenizer
            counts = [
                count_chains(each, held, tokenizer, num_mask_samples=1, noise=width, token_budget=2048)
                for each in models
            ]
            expected = [summarize_samples(each, letter_ids(tokenizer))["perplexity"] for each in counts]
            assert numbers["perplexity_by_seed"] == pytest.approx(expected, rel=1e-5)
            assert numbers["perplexity"] == pytest.approx(np.sqrt(np.prod(expected)), rel=1e-5)
            if name != "none":
                other = found["variants"]["none"]["noise"][str(width)]["perplexity"]
                assert numbers["gain"] == pytest.approx(1 - numbers["perplexity"] / other, abs=1e-6)
    printed = capsys.readouterr().out.splitlines()
    assert architecture.table(found) == printed[-4:] and "| frames, 2 | none | " in printed[-1]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    architecture.main()
    assert json.loads(options["results"].read_text()) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()} == stamps


@pytest.mark.parametrize("name", ["architecture", "teachers"])
def test_the_table_of_layers_is_the_measured_one(name):
    folder = Path(architecture.__file__).parent
    report = json.loads((folder / "results" / f"{name}.json").read_text())
    rows = architecture.table(report)
    assert len(rows) > 7 and set(rows) <= set((folder / "README.md").read_text().splitlines())
    file = yaml.safe_load((folder / f"{name}.yaml").read_text())
    assert report["recipe"] == file["recipe"] and list(report["variants"]) == list(file["variants"])


def test_a_temperature_is_found_and_calibrates():
    """Of letters that are drawn with the probabilities themselves, logits three halves as large are too sure."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 20, generator=generator)
    right = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    assert calibration.fit_temperature(1.5 * logits, right) == pytest.approx(1.5, abs=0.02)
    assert calibration.calibration_error(logits, right) < 0.015
    assert calibration.calibration_error(1.5 * logits, right) > 0.05
    certain = torch.nn.functional.one_hot(torch.zeros(100, dtype=torch.int64), 20) * 100.0
    letters = torch.tensor([0] * 25 + [1] * 75)
    assert calibration.calibration_error(certain, letters) == pytest.approx(0.75)


def test_letters_alone_are_the_twenty():
    letters = [3, 7, 5]
    logits, labels = torch.arange(20.0).reshape(2, 10), torch.tensor([7, 3])
    values, right = calibration.letters_alone([(logits[:1], labels[:1]), (logits[1:], labels[1:])], letters)
    assert values.tolist() == [[3, 7, 5], [13, 17, 15]] and right.tolist() == [1, 0]


def test_calibration_of_two_models(make_checkpoint, monkeypatch, tmp_path, capsys):
    """Perplexities at 1 are those of `evaluate` on the other half; a report has both models, and prints its table."""
    valid, path = load_rows(CHAINS, "valid").select(range(8)), tmp_path / "chains.parquet"
    clusters = [1, 2, 3, 4] * 2
    valid.remove_columns(set(valid.column_names) & {"cluster"}).add_column("cluster", clusters).to_parquet(path)
    models = {name: make_checkpoint(name, seed) for seed, name in enumerate(("a", "b"))}
    words = [word for name, folder in models.items() for word in ("--model", name, str(folder))]
    words += ["--data", str(path), "--results", str(tmp_path / "found.json"), "--noise", "0"]
    monkeypatch.setattr(sys, "argv", ["calibration", *words])
    calibration.main()
    report = json.loads((tmp_path / "found.json").read_text())
    assert capsys.readouterr().out.splitlines()[-4:] == calibration.table(report)
    rows, _ = noise.held_out(str(path), "valid", ["test"], None)["test"]
    for name, folder in models.items():
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        table = count_chains(model, rows, CoordformerProcessor().tokenizer, num_mask_samples=1)
        expected = summarize_samples(table, {})["perplexity"]
        assert report["models"][name]["noise"]["0"]["perplexity"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("atoms", ["backbone", "ca"])
def test_the_tables_of_predicted_chains_are_the_measured_ones(atoms):
    folder = Path(predicted.__file__).parent
    rows = predicted.table(json.loads((folder / "results" / f"predicted_{atoms}.json").read_text()))
    shown = [row for row in rows if "relatives of" not in row]
    assert len(shown) == 11 and set(shown) <= set((folder / "README.md").read_text().splitlines())


def test_the_table_of_calibration_is_the_measured_one():
    folder = Path(calibration.__file__).parent
    lines = set((folder / "README.md").read_text().splitlines())
    for name in ("ca", "backbone", "8M"):
        rows = calibration.table(json.loads((folder / "results" / f"calibration_{name}.json").read_text()))
        assert len(rows) > 3 and set(rows) <= lines


@pytest.mark.parametrize("head", ["esm", "linear"])
def test_shipped_logits_are_divided(head, make_checkpoint, tmp_path):
    """By a temperature, in the weights alone; what the encoder makes of a chain stays as it is."""
    run = make_checkpoint("run", 0, lm_head=head)
    (run / "train.json").write_text('{"steps": 1}')
    divide_logits(run, 1.25, tmp_path / "calibrated")
    before, after = (AutoModelForMaskedLM.from_pretrained(each).eval() for each in (run, tmp_path / "calibrated"))
    batch = CoordformerProcessor()(chains=[load_rows(CHAINS, "valid")[0]])
    with torch.no_grad():
        torch.testing.assert_close(after(**batch).logits, before(**batch).logits / 1.25)
        states = [model.base_model(**batch).last_hidden_state for model in (before, after)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    assert training_facts(tmp_path / "calibrated")["calibrated"] == "logits divided by 1.25"
    assert json.loads((run / "train.json").read_text()) == {"steps": 1}
