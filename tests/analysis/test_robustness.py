"""Frames, noise and missing coordinates: planted dependence on the frame, and equality with plain evaluation."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config, make_model

from coordformer import CoordformerProcessor
from coordformer.analysis import robustness
from coordformer.analysis.robustness import (
    LENGTHS,
    class_bins,
    count_frames,
    describe,
    describe_point,
    frame_spread,
    length_bins,
    measure_robustness,
)
from coordformer.data.batching import fetch_rows
from coordformer.data.pack import write_pack
from coordformer.data.rows import load_rows
from coordformer.inference import masked
from coordformer.inference.evaluate import evaluate
from coordformer.inference.masked import average_frames, count_chains, draw_rotations, predict_masked
from coordformer.inference.metrics import CORRECT, COUNT, NLL, summarize
from coordformer.inference.runner import Inputs
from coordformer.model.processing_coordformer import letter_ids
from coordformer_command import main

TOKENIZER = CoordformerProcessor().tokenizer
LETTERS = letter_ids(TOKENIZER)


@pytest.fixture(scope="module")
def rows():
    return fetch_rows(load_rows(CHAINS, "valid"), range(24))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A small model with coordinates, one without, and 30 real chains with classes that are made up."""
    folder = tmp_path_factory.mktemp("robustness")
    for name in ("linear", "none"):
        torch.manual_seed(0)
        make_model(coordinate_embedding=name).save_pretrained(folder / name)
        CoordformerProcessor().save_pretrained(folder / name)
    chains = load_rows(CHAINS, "valid").select(range(30))
    chains.to_parquet(folder / "chains.parquet")
    sccs = ["c.1.2.3", "a.4.5.6", None] * 10
    pq.write_table(pa.table({"id": chains["id"][:], "scop_sccs": sccs}), folder / "labels.parquet")
    return folder


# --- frames ----------------------------------------------------------------------------------------------------------


def test_rotations_are_the_given_frame_and_uniform_ones():
    rotations = torch.stack([draw_rotations(f"chain {i}", 5) for i in range(500)])
    assert torch.equal(rotations[:, 0], torch.eye(3).expand(500, 3, 3))
    others = rotations[:, 1:].reshape(-1, 3, 3)
    torch.testing.assert_close(others @ others.mT, torch.eye(3).expand_as(others), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(others), torch.ones(2000), atol=1e-5, rtol=0)
    # Under the Haar measure an entry has mean 0 and variance 1/3, and the squared trace has mean 1.
    torch.testing.assert_close(others.mean(dim=0), torch.zeros(3, 3), atol=0.06, rtol=0)
    torch.testing.assert_close(others.pow(2).mean(dim=0), torch.full((3, 3), 1 / 3), atol=0.04, rtol=0)
    assert others.diagonal(dim1=1, dim2=2).sum(dim=1).pow(2).mean() == pytest.approx(1, abs=0.1)


def test_rotations_depend_on_the_seed_and_the_chain_alone():
    first, second = (draw_rotations(name, 3) for name in "ab")
    assert torch.equal(draw_rotations("b", 8)[:3], second)
    assert not torch.allclose(first[1:], second[1:])
    assert not torch.allclose(draw_rotations("a", 3, seed=1)[1:], first[1:])
    assert draw_rotations("a", 2, dim=2).shape == (2, 2, 2)


@pytest.mark.parametrize("window", [1024, 40], ids=["whole", "windows"])
def test_turned_chains_and_the_models_rotations_are_the_same(rows, window):
    model = make_model()
    frames = predict_masked(model, rows[:3], TOKENIZER, num_rotations=3, window=window)
    predicted = {number: logits.log_softmax(dim=-1) for number, _, logits in frames}
    for frame in (1, 2):
        turned = []
        for row in rows[:3]:
            coords = row["coords"].reshape(-1, 3) @ draw_rotations(row["id"], 3)[frame].numpy().T
            turned.append(row | {"coords": coords.reshape(-1)})
        for number, _, logits in predict_masked(model, turned, TOKENIZER, window=window):
            expected = logits[0].log_softmax(dim=-1)
            torch.testing.assert_close(predicted[number][frame], expected, atol=1e-4, rtol=0)
            assert not torch.allclose(predicted[number][0], expected, atol=0.1)


def test_averaging_is_that_of_the_probabilities():
    frames = 3 * torch.randn(5, 7, 33)
    torch.testing.assert_close(average_frames(frames).exp(), frames.softmax(dim=-1).mean(dim=0))


def test_averaged_counts_are_those_of_separate_frames(rows):
    """`count_chains` averages frame by frame, `count_frames` all of them at once: two ways to the same numbers."""
    model = make_model()
    options = {"num_mask_samples": 2, "progress": False}
    frames = count_frames(model, rows, TOKENIZER, num_rotations=6, token_budget=900, **options)
    assert sorted(frames["averaged"]) == [1, 2, 4, 6]
    for size, counts in frames["averaged"].items():
        expected = count_chains(model, rows, TOKENIZER, num_rotations=size, **options).sum(axis=(0, 2))
        np.testing.assert_allclose(counts, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(frames["single"][0], frames["averaged"][1].sum(axis=0), rtol=1e-6)
    nll = [frames["averaged"][size][:, NLL].sum() for size in (1, 6)]
    assert nll[1] < nll[0] and frames["histogram"].sum() == frames["single"][0, COUNT]


def test_one_frame_is_plain_evaluation(rows):
    model = make_model()
    options = {"num_mask_samples": 1, "progress": False}
    plain = count_chains(model, rows, TOKENIZER, **options)
    np.testing.assert_array_equal(count_chains(model, rows, TOKENIZER, num_rotations=1, **options), plain)
    two = count_chains(model, rows, TOKENIZER, num_rotations=2, **options)
    np.testing.assert_array_equal(two[..., COUNT], plain[..., COUNT])
    assert not np.allclose(two[..., NLL], plain[..., NLL])


def test_frame_spread_by_hand():
    frames = torch.tensor([[[0.75, 0.25], [0.6, 0.4]], [[0.25, 0.75], [0.6, 0.4]]]).log()
    moved, still = frame_spread(frames, torch.tensor([0, 1])).tolist()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert moved == pytest.approx([math.log(3) ** 2 / 2, math.log(2) - entropy, 1], rel=1e-6)
    assert still == pytest.approx([0, 0, 0], abs=1e-7)
    three = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]], [[0.25, 0.75]]]).log()
    assert frame_spread(three, torch.tensor([0]))[0, 2] == pytest.approx(2 / 3)  # two of the three pairs


def test_a_model_without_coordinates_has_no_spread(rows):
    frames = count_frames(
        make_model(coordinate_embedding="none"), rows, TOKENIZER, num_rotations=4, num_mask_samples=1, progress=False
    )
    np.testing.assert_allclose(frames["spread"], 0, atol=1e-9)
    np.testing.assert_allclose(frames["single"], np.broadcast_to(frames["single"][0], (4, 3)))
    np.testing.assert_allclose(frames["averaged"][4], frames["averaged"][1], rtol=1e-6)


def test_nothing_is_predicted_of_chains_without_coordinates(rows):
    """They count nothing, and no other chain is the worse for it."""
    some = [rows[0], rows[1] | {"coords": np.full_like(rows[1]["coords"], np.nan)}, rows[2]]
    options = {"num_rotations": 2, "num_mask_samples": 1, "token_budget": 10, "progress": False}
    frames = count_frames(make_model(), some, TOKENIZER, **options)
    whole = count_frames(make_model(), [rows[0], rows[2]], TOKENIZER, **options)
    assert (frames["averaged"][2][1] == 0).all() and (frames["spread"][1] == 0).all()
    np.testing.assert_array_equal(frames["averaged"][2][[0, 2], COUNT], whole["averaged"][2][:, COUNT])


class PlantedModel:
    """Prefers A among the amino acids by 3 times the first entry of the rotation, and knows nothing else."""

    device = torch.device("cpu")

    def __init__(self):
        self.config = make_config()

    def eval(self):
        return self

    def __call__(self, input_ids, rotations, **_):
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -30.0)
        logits[..., list(LETTERS.values())] = 0
        logits[..., LETTERS["A"]] = 3 * rotations[:, :, 0, 0]
        return SimpleNamespace(logits=logits)


def test_a_planted_dependence_on_the_frame_is_found(rows):
    count, options = 7, {"num_mask_samples": 1, "progress": False}
    frames = count_frames(PlantedModel(), rows, TOKENIZER, num_rotations=count, seed=5, **options)
    rotations = torch.stack([draw_rotations(row["id"], count, seed=5) for row in rows])
    bias = 3 * rotations[..., 0, 0].double().numpy()  # (chains, frames)
    partition = np.exp(bias) + 19
    plain = count_chains(make_model(), rows, TOKENIZER, **options)[0, ..., COUNT]
    alanines, all_ = plain[:, LETTERS["A"]], plain.sum(axis=1)
    log_a, log_other = bias - np.log(partition), -np.log(partition)
    variance = alanines * log_a.var(axis=1, ddof=1) + (all_ - alanines) * log_other.var(axis=1, ddof=1)
    mean_a, mean_other = np.exp(log_a).mean(axis=1), np.exp(log_other).mean(axis=1)
    divergence = (np.exp(log_a) * (log_a - np.log(mean_a)[:, None])).mean(axis=1)
    divergence += 19 * (np.exp(log_other) * (log_other - np.log(mean_other)[:, None])).mean(axis=1)
    prefer = (bias > 0).sum(axis=1)
    changed = 2 * prefer * (count - prefer) / (count * (count - 1))
    expected = np.stack((variance, all_ * divergence, all_ * changed), axis=1)
    np.testing.assert_allclose(frames["spread"], expected, rtol=1e-4, atol=1e-5)
    nll = -(alanines[:, None] * log_a + (all_ - alanines)[:, None] * log_other).sum(axis=0)
    np.testing.assert_allclose(frames["single"][:, NLL], nll, rtol=1e-5)
    averaged = -(alanines * np.log(mean_a) + (all_ - alanines) * np.log(mean_other))
    np.testing.assert_allclose(frames["averaged"][count][:, NLL], averaged, rtol=1e-5)


# --- noise and missing coordinates -----------------------------------------------------------------------------------


def test_no_noise_and_nothing_missing_is_plain_evaluation(rows):
    model = make_model()
    options = {"num_mask_samples": 2, "progress": False}
    plain = count_chains(model, rows, TOKENIZER, **options)
    np.testing.assert_array_equal(count_chains(model, rows, TOKENIZER, noise=0.0, missing=0.0, **options), plain)
    for condition in ({"noise": 2.0}, {"missing": 0.5}, {"without_own_coords": True}):
        counts = count_chains(model, rows, TOKENIZER, **condition, **options)
        np.testing.assert_array_equal(counts[..., COUNT], plain[..., COUNT])  # the same residues
        assert not np.allclose(counts[..., NLL], plain[..., NLL])
        other = count_chains(model, rows, TOKENIZER, token_budget=700, **condition, **options)
        np.testing.assert_allclose(other, counts, atol=1e-3)
    without = count_chains(model, rows, TOKENIZER, without_coords=True, **options)
    np.testing.assert_allclose(count_chains(model, rows, TOKENIZER, missing=1.0, **options), without, atol=1e-5)


def test_what_is_moved_and_what_is_missing(rows, monkeypatch):
    """Of the rows that the model gets: noise moves what is observed, shares of it are missing, tokens stay."""
    read = []

    def keep(model, given, *arguments, **options):
        read[:] = sorted(given, key=lambda row: row.chain)
        return iter(())

    monkeypatch.setattr(masked, "predict", keep)

    def changed(**condition) -> torch.Tensor:
        assert list(predict_masked(make_model(), rows, TOKENIZER, **condition)) == []
        return torch.from_numpy(np.concatenate([row.inputs["coords"] for row in read]))

    exact, tokens = changed(), np.concatenate([row.inputs["input_ids"] for row in read])
    chosen = torch.zeros(len(tokens), dtype=torch.bool)
    starts = np.cumsum([0, *(len(row.inputs["input_ids"]) for row in read[:-1])])
    chosen[np.concatenate([start + row.places for row, start in zip(read, starts, strict=True)])] = True
    seen = ~exact.isnan().any(dim=-1)
    moved = (changed(noise=2.0) - exact)[seen]
    assert moved.std().item() == pytest.approx(2, rel=0.05) and abs(moved.mean().item()) < 0.1
    torch.testing.assert_close((changed(noise=1.0) - exact)[seen], moved / 2, atol=1e-4, rtol=0)
    few, many = (changed(missing=share).isnan().any(dim=-1) & seen for share in (0.3, 0.6))
    assert (few.sum() / seen.sum()).item() == pytest.approx(0.3, abs=0.03)
    assert (many.sum() / seen.sum()).item() == pytest.approx(0.6, abs=0.03)
    assert (many | ~few).all()  # the same ones and more
    assert (few & chosen).sum() / chosen.sum() == pytest.approx(0.3, abs=0.08)
    own = changed(without_own_coords=True).isnan().any(dim=-1) & seen
    assert torch.equal(own, chosen)
    np.testing.assert_array_equal(np.concatenate([row.inputs["input_ids"] for row in read]), tokens)


# --- bins and points -------------------------------------------------------------------------------------------------


def test_length_bins_partition_the_chains():
    lengths = np.array([1, 49, 50, 51, 99, 100, 299, 300, 999, 1000, 40_000, 3])
    bins = length_bins(lengths)
    assert sorted(np.concatenate(list(bins.values()))) == list(range(len(lengths)))
    assert len(bins) == len(LENGTHS)
    assert bins["below 50"].tolist() == [0, 1, 11] and bins["50 to 99"].tolist() == [2, 3, 4]
    assert bins["1000 and more"].tolist() == [9, 10]


def test_classes_come_from_labels_or_a_column(rows, tmp_path):
    assert class_bins(rows) == {}
    ids = [row["id"] for row in rows]
    sccs = {ids[3]: "c.1.15.3", ids[5]: "a.2.1.1", ids[7]: "c.2.1.1", ids[8]: None, "another chain": "b.1.1.1"}
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"id": list(sccs), "scop_sccs": list(sccs.values())}), path)
    chains = load_rows(CHAINS, "valid").select(range(24))
    write_pack(chains, tmp_path / "chains.safetensors", progress=False)
    chains.add_column("scop_sccs", [sccs.get(name) for name in ids]).to_parquet(tmp_path / "chains.parquet")
    for bins in (
        class_bins(rows, path),
        class_bins(Inputs(tmp_path / "chains.safetensors").read_all(), path),
        class_bins(Inputs(tmp_path / "chains.parquet").read_all()),
    ):
        assert {letter: chains.tolist() for letter, chains in bins.items()} == {"a": [5], "c": [3, 7]}


def test_labels_that_do_not_fit_are_named(rows, tmp_path):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"id": ["x"], "scop_sccs": ["a.1.1.1"]}), path)
    with pytest.raises(ValueError, match="labels.parquet has a class for none of the 24 chains"):
        class_bins(rows, path)
    pq.write_table(pa.table({"id": ["x"]}), path)
    with pytest.raises(
        ValueError, match="labels.parquet cannot be read .*give a Parquet file with the columns id and scop_sccs"
    ):
        class_bins(rows, path)
    path.write_text("id,scop_sccs\n")
    with pytest.raises(ValueError, match="labels.parquet cannot be read .*give a Parquet file"):
        class_bins(rows, path)


def test_points_by_hand():
    rng = np.random.default_rng(0)
    asked = np.append(rng.integers(1, 20, size=40), 0).astype(float)
    reference, counts = np.zeros((41, 3)), np.zeros((41, 3))
    reference[:, COUNT] = counts[:, COUNT] = asked
    reference[:, NLL], counts[:, NLL] = asked * math.log(10), asked * math.log(8)
    counts[:, CORRECT] = asked // 2
    point = describe_point(counts, reference)
    assert (point["chains"], point["predictions"]) == (40, asked.sum())  # of one nothing was asked
    assert point["perplexity"] == pytest.approx(8)
    assert [point[f"gain{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.2, 0.2, 0.2])
    assert point["recovery_gain"] == point["recovery"] == pytest.approx((asked // 2).sum() / asked.sum())
    assert point["recovery_gain_low"] == pytest.approx(point["recovery_low"])  # the reference has none correct
    assert point["recovery_low"] < point["recovery"] < point["recovery_high"]
    same = describe_point(reference, reference)
    assert {value for name, value in same.items() if "gain" in name} == {0.0}
    assert not any("gain" in name for name in describe_point(counts))


def test_intervals_are_over_clusters_where_there_are_some():
    """Of two chains of a cluster the interval is that of one that has the counts of both."""
    rng = np.random.default_rng(0)
    counts = np.stack([np.full(40, 10.0), rng.uniform(10, 30, size=40), rng.integers(0, 11, size=40)], axis=1)
    clusters = np.repeat(np.arange(20), 2)
    sums = counts.reshape(20, 2, 3).sum(axis=1)
    by_cluster, alone = describe_point(counts, counts / 2 + sums[clusters] / 4, clusters), describe_point(counts)
    expected = describe_point(sums, (counts / 2 + sums[clusters] / 4).reshape(20, 2, 3).sum(axis=1))
    names = [name for name in expected if name != "chains"]
    assert [by_cluster[name] for name in names] == pytest.approx([expected[name] for name in names])
    assert by_cluster["perplexity"] == alone["perplexity"] and by_cluster["perplexity_low"] != alone["perplexity_low"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_line(checkpoints, tmp_path, capsys):
    def run(folder):
        assert main([
            "robustness", str(checkpoints / "linear"), str(checkpoints / "chains.parquet"),
            "--baseline", str(checkpoints / "none"), "--labels", str(checkpoints / "labels.parquet"),
            "--num_rotations", "3", "--noise", "0", "2", "--missing", "0", "1", "--num_mask_samples", "1",
            "--output", str(folder), "--quiet",
        ]) == 0  # fmt: skip
        return list(csv.DictReader((folder / "points.csv").open()))

    points = run(tmp_path / "one")
    report = (tmp_path / "one" / "report.md").read_text()
    assert report in capsys.readouterr().out
    assert (tmp_path / "one" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    found = {(point["test"], point["value"], point["model"]): point for point in points}
    assert len(found) == len(points)
    assert {key[:2] for key in found if key[0] in ("frames", "noise", "missing", "class")} == {
        ("frames", "1"), ("frames", "2"), ("frames", "3"), ("noise", "0.0"), ("noise", "2.0"),
        ("missing", "0.0"), ("missing", "1.0"), ("class", "a"), ("class", "c"),
    }  # fmt: skip
    for point in points:  # the report is the table
        assert f"{float(point['perplexity']):.3f} ({float(point['perplexity_low']):.3f} to " in report
        assert float(point["perplexity_low"]) < float(point["perplexity"]) < float(point["perplexity_high"])

    summary = json.loads((tmp_path / "one" / "robustness.json").read_text())
    assert (summary["chains"], summary["chains_with_class"]) == (30, 20)
    assert summary["spread"]["changed"] > 0.1 and len(summary["spread"]["perplexity_by_frame"]) == 3
    kept = sum(int(point["chains"]) for point in points if point["test"] == "length" and point["model"] == "baseline")
    assert kept + sum(chains for name, chains in summary["left_out"].items() if name.startswith("length")) == 30
    assert all(chains < 10 for chains in summary["left_out"].values()) and summary["left_out"]

    options = {"protocols": ("masked15",), "num_mask_samples": 1, "progress": False}
    data = checkpoints / "chains.parquet"
    for key, model, more in (
        (("frames", "1", "checkpoint"), "linear", {}),
        (("frames", "3", "checkpoint"), "linear", {"num_rotations": 3}),
        (("missing", "1.0", "checkpoint"), "linear", {"without_coords": True}),
        (("baseline", "", "baseline"), "none", {}),
    ):
        expected = evaluate(checkpoints / model, data, **options, **more)["masked15"]["perplexity"]
        assert float(found[key]["perplexity"]) == pytest.approx(expected, rel=1e-5)
    alpha, without = found["class", "a", "checkpoint"], found["class", "a", "baseline"]
    gain = 1 - float(alpha["perplexity"]) / float(without["perplexity"])
    assert float(alpha["gain"]) == pytest.approx(gain) and without["gain"] == ""

    run(tmp_path / "two")
    for name in ("points.csv", "robustness.json", "report.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_checkpoint_alone_has_no_gains_in_its_bins(checkpoints, tmp_path):
    inputs = [checkpoints / "chains.parquet", STRUCTURES / "1orc.pdb.gz"]
    summary = measure_robustness(
        checkpoints / "linear", inputs, tmp_path, num_rotations=2, noise=(), missing=(), num_mask_samples=1,
        progress=False,
    )  # fmt: skip
    assert list(summary["models"]) == ["checkpoint"] and summary["chains_with_class"] == 0
    assert (summary["data"], summary["chains"]) == ("chains.parquet, 1orc.pdb.gz", 31)
    assert {point["test"] for point in summary["points"]} == {"frames", "own", "length"}
    assert not any("gain" in point for point in summary["points"] if point["test"] == "length")
    assert summary["clusters"] is None and "bootstrap over chains" in describe(summary)
    assert "over 17 sequence clusters" in describe(summary | {"clusters": 17})


def test_a_quick_run_is_a_part_of_the_whole_and_both_say_how_long(checkpoints, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(robustness, "QUICK_CHAINS", 20)
    monkeypatch.setattr(robustness, "WORTH_TIMING", 1)
    data = checkpoints / "chains.parquet"
    options = {"num_mask_samples": 1, "num_rotations": 5, "noise": (0.0, 1.0, 2.0), "missing": (0.0, 0.5)}
    texts = []
    for name, extra in (("quick", {"quick": True}), ("whole", {})):
        caplog.clear()
        summary = measure_robustness(checkpoints / "linear", data, tmp_path / name, **options, **extra)
        texts.append([record.message for record in caplog.records if "predictions of each" in record.message])
        conditions = [point["value"] for point in summary["points"] if point["test"] in ("noise", "missing")]
        assert (summary["chains"], conditions) == ((20, [0, 2, 0]) if extra else (30, [0, 1, 2, 0, 0.5]))
    (quick,), (whole,) = texts
    # Frames; as it is, the masked ones missing; noise and missing.
    assert quick.startswith(f"{4 + 2 + 1} predictions of each of 20 chains take about ") and "--quick" not in quick
    assert whole.startswith(f"{5 + 2 + 3} predictions of each of 30 chains take about ") and "; --quick makes" in whole


def test_evaluate_averages_over_frames(checkpoints, capsys):
    command = ["evaluate", str(checkpoints / "linear"), str(checkpoints / "chains.parquet"), "--quiet", "--json",
               "--protocols", "paper", "--num_mask_samples", "1", "--num_rotations", "3"]  # fmt: skip
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(checkpoints / "linear")
    counts = count_chains(
        model,
        load_rows(checkpoints / "chains.parquet"),
        TOKENIZER,
        "paper",
        num_mask_samples=1,
        num_rotations=3,
        progress=False,
    )
    assert report["num_rotations"] == 3
    assert report["paper"]["perplexity"] == pytest.approx(summarize(counts)["perplexity"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_rotations", "1"], "`num_rotations` is 1; it must be at least 2"),
        (["--num_mask_samples", "0"], "`num_mask_samples` is 0; it must be at least 1"),
        (["--seed", "-1"], "`seed` is -1; it must be at least 0"),
        (["--window", "1"], "`window` is 1; it must be at least 2"),
        (["--noise", "0", "-1"], "`noise` is 0.0, -1.0; give values from 0 on"),
        (["--missing", "50"], "`missing` is 50.0; give values from 0 to 1"),
        (["--split", "test"], "No row of"),
        (["--labels", "nothing.parquet"], "nothing.parquet"),
        (["--baseline", "LINEAR"], "a model with coordinates (linear); give one without any"),
    ],
)
def test_command_line_says_what_is_wrong_in_one_line(checkpoints, tmp_path, capsys, options, message):
    options = [str(checkpoints / "linear") if option == "LINEAR" else option for option in options]
    data = str(checkpoints / "chains.parquet")
    command = ["robustness", str(checkpoints / "linear"), data, "--output", str(tmp_path), "--quiet"]
    assert main([*command, *options]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coordformer: ")]
    assert len(lines) == 1 and message in lines[0], lines


def test_bad_arguments_of_counting_are_named(rows):
    model = make_model()
    for name, value, message in (
        ("num_rotations", 0, "`num_rotations` is 0; it must be at least 1"),
        ("missing", 1.5, "`missing` is 1.5; it is a share between 0 and 1"),
        ("noise", -1.0, "`noise` is -1.0 Å"),
    ):
        with pytest.raises(ValueError, match=message):
            count_chains(model, rows, TOKENIZER, **{name: value})
