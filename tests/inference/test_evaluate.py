"""Evaluation: counts under the two protocols, windows of long chains, what is reported."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model

from coordformer import CoordformerForMaskedLM, CoordformerProcessor, read_chains
from coordformer.data.batching import fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.pack import write_pack
from coordformer.data.rows import load_rows
from coordformer.data.training_sequences import FILE, TrainingSequences
from coordformer.hub.card import make_card
from coordformer.inference.evaluate import describe, evaluate
from coordformer.inference.masked import average_frames, count_chains, draw_rotations, predict_masked, summarize_samples
from coordformer.inference.metrics import bootstrap, summarize
from coordformer.model.processing_coordformer import letter_ids
from coordformer.model.windows import window_starts

PROCESSOR = CoordformerProcessor()
TOKENIZER = PROCESSOR.tokenizer


@pytest.fixture(scope="module")
def valid_rows():
    rows = load_rows(CHAINS, "valid")
    return rows.select(range(40))


def test_counts_do_not_depend_on_batches(valid_rows, monkeypatch):
    model = make_model()
    options = {"num_mask_samples": 2, "progress": False}
    expected = count_chains(model, valid_rows, TOKENIZER, "paper", token_budget=300, **options)
    monkeypatch.setattr("coordformer.inference.masked.CHAINS_AT_ONCE", 17)
    actual = count_chains(model, valid_rows, TOKENIZER, "paper", token_budget=5000, **options)
    as_list = count_chains(model, fetch_rows(valid_rows, range(40)), TOKENIZER, "paper", token_budget=5000, **options)
    np.testing.assert_array_equal(as_list, actual)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert expected.shape == (2, 40, 33, 3) and not np.array_equal(expected[0], expected[1])


@pytest.mark.parametrize(("protocol", "candidates"), [("paper", 33), ("masked15", 20)])
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_alphabet(valid_rows, protocol, candidates):
    model = make_model()
    for parameter in model.lm_head.parameters():
        torch.nn.init.zeros_(parameter)
    counts = count_chains(model, valid_rows, TOKENIZER, protocol, num_mask_samples=1, progress=False)
    assert summarize(counts)["perplexity"] == pytest.approx(candidates, rel=1e-5)
    assert 0.12 < summarize(counts)["residues"] / sum(valid_rows["length"][:]) < 0.18


def test_protocols_choose_the_same_residues_with_and_without_coordinates(valid_rows):
    model = make_model()
    with_ = count_chains(model, valid_rows, TOKENIZER, "masked15", num_mask_samples=1, progress=False)
    without = count_chains(
        model, valid_rows, TOKENIZER, "masked15", num_mask_samples=1, without_coords=True, progress=False
    )
    np.testing.assert_array_equal(with_[..., 0], without[..., 0])
    assert not np.allclose(with_[..., 1], without[..., 1])
    with pytest.raises(ValueError, match="`protocol` is 'mlm'"):
        count_chains(model, valid_rows, TOKENIZER, "mlm")
    for name in ("num_mask_samples", "num_rotations", "window", "token_budget"):
        with pytest.raises(ValueError, match=f"`{name}` is 0; it must be at least"):
            count_chains(model, valid_rows, TOKENIZER, **{name: 0})


def test_bfloat16_perplexity_is_near_float32(valid_rows):
    model = make_model()
    options = {"num_mask_samples": 1, "progress": False}
    high = summarize(count_chains(model, valid_rows, TOKENIZER, **options))["perplexity"]
    low = summarize(count_chains(model.to(torch.bfloat16), valid_rows, TOKENIZER, **options))["perplexity"]
    assert low == pytest.approx(high, rel=0.02) and low != high


@torch.no_grad()
def test_masked_residues_are_predicted_as_alone_and_averaged_over_windows(valid_rows):
    """Against windows of the masked chain that are cut by hand: one is longer, one just fits, one is shorter."""
    model = make_model()
    chains = fetch_rows(valid_rows, range(3))
    lengths = [len(chain["sequence"]) for chain in chains]
    window = sorted(lengths)[1]
    asked_for = [int(counts[..., 0].sum()) for counts in count_chains(model, chains, TOKENIZER, progress=False)[0]]
    for token_budget in (1, 10_000):
        options = {"window": window, "token_budget": token_budget}
        found = {number: rest for number, *rest in predict_masked(model, chains, TOKENIZER, **options)}
        assert sorted(found) == [0, 1, 2]
        for number, (truth, frames) in found.items():
            n, sequence = lengths[number], chains[number]["sequence"]
            assert frames.shape == (1, len(truth), 33) and len(truth) == asked_for[number]
            places = masked_places(chains[number])
            assert truth.tolist() == [TOKENIZER.convert_tokens_to_ids(sequence[place]) for place in places]
            text = [("<mask>" if place in places else letter) for place, letter in enumerate(sequence)]
            coords = np.reshape(chains[number]["coords"], (n, 3))
            total, visits = torch.zeros(n, 33), torch.zeros(n, 1)
            for start in window_starts(n, window):
                inside = slice(start, start + window)
                batch = PROCESSOR(["".join(text[inside])], coords=[coords[inside]])
                total[inside] += model(**batch).logits[0, 1:-1]
                visits[inside] += 1
            assert visits.min() == 1 and (visits.max() > 1) == (n > window)
            torch.testing.assert_close(frames[0], (total / visits)[places], atol=1e-5, rtol=0)


def masked_places(chain, sample: int = 0) -> list[int]:
    """Residues that `masked15` chooses, by the collator itself."""
    collator = CoordformerDataCollator(TOKENIZER, masking="masked15", rotate=False)
    labels = collator([{**chain, "epoch": sample}])["labels"][0, 1:-1]
    return np.flatnonzero(labels != -100).tolist()


@torch.no_grad()
def test_frames_are_rotated_chains_whose_probabilities_are_averaged(valid_rows):
    model = make_model()
    (chain,) = chains = fetch_rows(valid_rows, [3])
    ((_, truth, frames),) = predict_masked(model, chains, TOKENIZER, num_rotations=3)
    places = masked_places(chain)
    text = "".join("<mask>" if place in places else letter for place, letter in enumerate(chain["sequence"]))
    coords = torch.tensor(np.reshape(chain["coords"], (-1, 3)))
    rotations = draw_rotations(chain["id"], 3)
    assert torch.equal(rotations[0], torch.eye(3))
    for rotation, logits in zip(rotations, frames, strict=True):
        expected = model(**PROCESSOR([text], coords=[(coords @ rotation.T).numpy()])).logits[0, 1:-1][places]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
    assert (frames[0] - frames[1]).abs().max() > 0.01
    mean = frames.softmax(dim=-1).mean(dim=0).log()
    torch.testing.assert_close(average_frames(frames), mean, atol=1e-5, rtol=0)
    counts = count_chains(model, chains, TOKENIZER, num_mask_samples=1, num_rotations=3, progress=False)
    letters = list(letter_ids(TOKENIZER).values())
    candidates = torch.full_like(mean, -torch.inf)
    candidates[:, letters] = mean[:, letters]
    nll = torch.nn.functional.cross_entropy(candidates, truth, reduction="sum")
    assert counts[..., 1].sum() == pytest.approx(nll.item(), abs=1e-4)


@torch.no_grad()
def test_what_is_done_to_coordinates(valid_rows):
    """Own coordinates gone, some or all of them gone: the model is given just that, and the same residues are asked."""
    model = make_model()
    (chain,) = chains = fetch_rows(valid_rows, [3])
    places = masked_places(chain)
    text = "".join("<mask>" if place in places else letter for place, letter in enumerate(chain["sequence"]))
    coords = np.reshape(chain["coords"], (-1, 3))
    own = coords.copy()
    own[places] = np.nan
    results = {}
    for name, options, expected in (
        ("given", {}, coords),
        ("own", {"without_own_coords": True}, own),
        ("none", {"without_coords": True}, None),
        ("missing", {"missing": 1.0}, None),
    ):
        ((_, truth, frames),) = predict_masked(model, chains, TOKENIZER, **options)
        assert len(truth) == len(places)
        logits = model(**PROCESSOR([text], coords=[expected])).logits[0, 1:-1][places]
        torch.testing.assert_close(frames[0], logits, atol=1e-5, rtol=0)
        results[name] = frames[0]
    torch.testing.assert_close(results["none"], results["missing"])
    assert (results["given"] - results["own"]).abs().max() > 0.01
    ((*_, some),) = predict_masked(model, chains, TOKENIZER, missing=0.5)
    ((*_, noisy),) = predict_masked(model, chains, TOKENIZER, noise=2.0)
    for changed in (some[0], noisy[0]):
        assert all((changed - other).abs().max() > 1e-3 for other in results.values())
    with pytest.raises(ValueError, match="`missing` is 1.5; it is a share between 0 and 1"):
        next(predict_masked(model, chains, TOKENIZER, missing=1.5))


def test_summary_reports_the_spread(valid_rows):
    counts = count_chains(make_model(), valid_rows, TOKENIZER, num_mask_samples=3, progress=False)
    letters = {letter: TOKENIZER.convert_tokens_to_ids(letter) for letter in "ACDEFGHIKLMNPQRSTVWY"}
    summary = json.loads(json.dumps(summarize_samples(counts, letters)))
    assert len(summary["perplexity_by_mask_sample"]) == 3
    weights = counts[..., 0].sum(axis=(1, 2))
    log_mean = np.average(np.log(summary["perplexity_by_mask_sample"]), weights=weights)
    assert math.log(summary["perplexity"]) == pytest.approx(log_mean, rel=1e-9)
    low, high = summary["perplexity_interval"]
    assert low < summary["perplexity"] < high


def test_a_checkpoint_without_a_language_model_is_refused(tmp_path):
    make_model("multi_label").save_pretrained(tmp_path)
    CoordformerProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it lacks lm_head.*so it is no masked language model"):
        evaluate(tmp_path, CHAINS, split="valid", progress=False)


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    make_model().save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def quietly(checkpoint, inputs, **options) -> dict:
    return evaluate(checkpoint, inputs, progress=False, **options)


def test_the_report_is_that_of_the_counts(checkpoint, valid_rows, tmp_path):
    """In several parts or one: of the same sums, and intervals over clusters where all chains have one."""
    rows = valid_rows.select(range(12))
    clusters = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    with_clusters = rows.remove_columns("cluster").add_column("cluster", clusters)
    partly = rows.remove_columns("cluster").add_column("cluster", [None, *clusters[1:]])
    for name, table in (("clusters", with_clusters), ("partly", partly)):
        table.to_parquet(tmp_path / f"{name}.parquet")
    options = {"num_mask_samples": 2, "entries_per_part": 5}
    output = tmp_path / "new" / "report.json"
    report = quietly(checkpoint, tmp_path / "clusters.parquet", output=output, **options)
    assert report == json.loads(output.read_text())
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.json", "report.png"]
    assert (report["data"], report["split"], report["coordinates"]) == ("clusters.parquet", None, "linear")
    assert (report["chains"], report["residues"], report["rejected"]) == (12, sum(rows["length"][:]), 0)
    assert report["clusters"] == 6
    whole = quietly(checkpoint, tmp_path / "clusters.parquet", num_mask_samples=2)
    unclear = quietly(checkpoint, tmp_path / "partly.parquet", **options)
    assert unclear["clusters"] is None
    model = CoordformerForMaskedLM.from_pretrained(checkpoint)
    for protocol in ("paper", "masked15"):
        counts = count_chains(model, with_clusters, TOKENIZER, protocol, num_mask_samples=2, progress=False)
        expected = summarize_samples(counts, letter_ids(TOKENIZER), clusters)
        for found in (report, whole):
            for name in ("perplexity", "recovery", "predictions"):
                assert found[protocol][name] == pytest.approx(expected[name], rel=1e-6)
            for name in ("perplexity_interval", "recovery_interval"):
                assert found[protocol][name] == pytest.approx(expected[name], rel=1e-6)
        over_chains = bootstrap({"model": counts.sum(axis=0)})["model"]["perplexity"]
        assert unclear[protocol]["perplexity_interval"] == pytest.approx(over_chains, rel=1e-6)
        assert over_chains != pytest.approx(report[protocol]["perplexity_interval"], rel=1e-3)
    one = describe(report | {"chains": 1, "clusters": None})
    assert " to " not in one, "an interval over one chain would have no width"
    text = describe(report)
    assert f"12 chains with {report['residues']:,} residues of clusters.parquet; coordinates: linear; float32" in text
    assert f"{report['masked15']['perplexity']:.2f} (" in text and len(text.splitlines()) == 4


def test_clusters_of_two_data_sets_are_different_ones(checkpoint, valid_rows, tmp_path):
    for name, inside in (("a", range(4)), ("b", range(4, 8))):
        rows = valid_rows.select(inside).remove_columns("cluster").add_column("cluster", [0, 0, 1, 1])
        (tmp_path / name).mkdir()
        rows.to_parquet(tmp_path / name / "chains.parquet")
    options = {"protocols": ["masked15"], "num_mask_samples": 1}
    report = quietly(checkpoint, [tmp_path / "a", tmp_path / "b" / "chains.parquet"], **options)
    assert (report["chains"], report["clusters"], report["data"]) == (8, 4, "a, chains.parquet")
    # Files have no clusters.
    mixed = quietly(checkpoint, [tmp_path / "a", STRUCTURES / "1orc.pdb.gz"], **options)
    assert (mixed["chains"], mixed["clusters"]) == (5, None)


def test_a_packed_file_and_structure_files_are_evaluated(checkpoint, valid_rows, tmp_path):
    rows = valid_rows.select(range(6))
    write_pack(rows, tmp_path / "chains.safetensors", progress=False)
    rows.to_parquet(tmp_path / "chains.parquet")
    options = {"protocols": ["masked15"], "num_mask_samples": 1}
    one, two = (quietly(checkpoint, tmp_path / f"chains.{kind}", **options) for kind in ("safetensors", "parquet"))
    assert one["masked15"]["predictions"] == two["masked15"]["predictions"]
    assert one["masked15"]["perplexity"] == pytest.approx(two["masked15"]["perplexity"], rel=1e-2)  # in 0.01 Å
    files = [STRUCTURES / "1orc.pdb.gz", STRUCTURES / "1A8O.cif.gz"]
    chains = [chain for path in files for chain in read_chains(path)]
    report = quietly(checkpoint, files, **options)
    model = CoordformerForMaskedLM.from_pretrained(checkpoint)
    counts = count_chains(model, chains, TOKENIZER, num_mask_samples=1, progress=False)
    assert report["masked15"]["perplexity"] == pytest.approx(summarize(counts)["perplexity"], rel=1e-6)
    assert report["residues"] == sum(map(len, chains)) and report["data"] == "1orc.pdb.gz, 1A8O.cif.gz"


def test_sequences_have_nothing_to_predict_from_coordinates(checkpoint, tmp_path):
    (tmp_path / "one.fasta").write_text(">one\nMKVLAAGW\n")
    with pytest.raises(ValueError, match="Nothing was predicted: no residue of these chains may be chosen"):
        quietly(checkpoint, tmp_path / "one.fasta", protocols=["masked15"])
    assert quietly(checkpoint, tmp_path / "one.fasta", protocols=["paper"])["paper"]["predictions"] >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocols": ["mlm"]}, "`protocol` is 'mlm'; choose one of paper, masked15"),
        ({"num_mask_samples": 0}, "`num_mask_samples` is 0; it must be at least 1"),
        ({"num_rotations": 0}, "`num_rotations` is 0; it must be at least 1"),
        ({"window": 1}, "`window` is 1; it must be at least 2"),
        ({"token_budget": 0}, "`token_budget` is 0; it must be at least 1"),
        ({"output": "report.txt"}, "`output` is report.txt; give the name of a file that ends in .json"),
        ({"shard": "1/2"}, "With `shard` the parts of all jobs have to meet; give `output`, too"),
    ],
)
def test_bad_arguments_are_named(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", **options)


def test_chains_that_were_trained_on_are_marked(tmp_path, caplog):
    """In the report, in words and on the card: by their sequences, in whatever file they are."""
    run = tmp_path / "run"
    model = make_model()
    model.save_pretrained(run)
    CoordformerProcessor().save_pretrained(run)
    rows = load_rows(CHAINS)
    few = [rows["split"][:].index(name) + shift for name in ("train", "valid") for shift in range(3)]
    rows.select(few).to_parquet(tmp_path / "chains.parquet")
    sequences = rows.select(few)["sequence"][:]
    relative = sequences[1][:-9] + "W" * 9
    options = {"protocols": ("masked15",), "num_mask_samples": 1, "progress": False}
    for known, unknown, split, seen, text in (
        (sequences[:3], [], None, (3, 0, 0), "3 of 6 chains were among the training sequences of run: "),
        (sequences[:3], [], "valid", (0, 0, 0), ""),
        ([sequences[0], relative], [], "train", (1, 1, 0), "1 of 5 chains was among the training sequences of run and 1"
         " more is nearly identical (about 90 % or more) to one: "),
        ([relative], [], None, (0, 1, 0), "1 of 6 chains is nearly identical (about 90 % or more) to a"
         " training sequence of run: "),
        (sequences[:2], ["a start"], None, (2, 0, 4), "2 of 6 chains were among the training sequences of run: "),
        ([], ["a start"], None, (0, 0, 6), "whether run was trained on these chains is not recorded"),
        (None, [], None, (0, 0, 6), "whether run was trained on these chains is not recorded"),
    ):  # fmt: skip
        caplog.clear()
        (run / FILE).unlink(missing_ok=True)
        if known is not None:
            TrainingSequences.of(known, unknown).write(run / FILE)
        report = evaluate(run, tmp_path / "chains.parquet", split=split, **options)
        assert report["trained_on_sequences"] == dict(zip(("same", "similar", "unknown"), seen, strict=True))
        said = [record.getMessage() for record in caplog.records if "train" in record.getMessage()]
        assert len(said) == bool(text) and "".join(said).startswith(text)
        card = str(make_card(model, "name", evaluations=[report]))
        found = sum(seen[:2])
        assert (f"(**{found} trained on**)" in card) == ("how well it knows them" in card) == bool(found)
        assert (f"Of {seen[2]} chains it is not recorded" in card) == bool(seen[2])
    (run / FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{FILE} cannot be read .*; copy it again"):
        evaluate(run, tmp_path / "chains.parquet", **options)
