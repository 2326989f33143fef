"""score, design and evaluate say in one line which of their proteins the checkpoint was trained on."""

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from conftest import STRUCTURES, make_model, train_adapter

from coordformer import CoordformerProcessor, read_chains
from coordformer.data.training_sequences import FILE, TrainingSequences
from coordformer.inference.checkpoints import describe_trained_on, trained_on, training_sequences_of
from coordformer.inference.design import describe as describe_designs
from coordformer.inference.design import design_files
from coordformer.inference.score import describe as describe_scores
from coordformer.inference.score import score

CRO, PEPTIDE = STRUCTURES / "1orc.pdb.gz", STRUCTURES / "1A8O.cif.gz"
DESIGN = {"num_samples": 1, "figures": False, "progress": False}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    make_model().save_pretrained(tmp_path / "small")
    CoordformerProcessor().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return [read_chains(path)[0].sequence for path in (CRO, PEPTIDE)]


@pytest.fixture
def lines(caplog):
    """What was said of training, since the last time."""

    def take() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return [text for text in said if "training sequence" in text]

    return take


def relative_of(sequence: str) -> str:
    """With six other letters at its end."""
    return sequence[:-6] + "".join("W" if letter != "W" else "A" for letter in sequence[-6:])


def test_a_protein_that_was_trained_on_is_named(checkpoint, sequences, tmp_path, lines):
    for number, (known, answer, text) in enumerate(
        (
            (sequences[0], "same", "1ORC_A was among the training sequences of small: scores say how well it is known"),
            (
                relative_of(sequences[0]),
                "similar",
                "1ORC_A is nearly identical (about 90 % or more) to a training sequence of small: "
                "scores say how well it is known",
            ),
            (sequences[1], "no", ""),
        )
    ):
        TrainingSequences.of([known]).write(checkpoint / FILE)
        output = tmp_path / f"scores {number}"
        summary = score(checkpoint, CRO, output, mutants=["A52G"] if number else None, progress=False)
        assert lines() == [text] * bool(text)
        assert summary["trained_on"] == summary["chains"][0]["trained_on"] == answer
        assert summary["trained_on_sequences"] == {"same": 0, "similar": 0, "unknown": 0} | (
            {answer: 1} if answer != "no" else {}
        )
        assert json.loads((output / "score.json").read_text()) == summary
        assert "1ORC_A: " in describe_scores(summary)
        designs = tmp_path / f"designs {number}"
        report = design_files(checkpoint, CRO, designs, **DESIGN)
        expected = text.replace("1ORC_A", "1ORC").replace("scores", "recoveries and scores")
        assert lines() == [expected] * bool(text)
        assert report["proteins"][0]["trained_on"] == answer
        assert report["trained_on_sequences"] == summary["trained_on_sequences"]
        assert json.loads((designs / "design.json").read_text())["proteins"] == report["proteins"]
        assert "1ORC: " in describe_designs(report)


def test_several_proteins_are_one_line_however_many_parts_there_are(checkpoint, sequences, tmp_path, lines):
    TrainingSequences.of([sequences[0], relative_of(sequences[1])]).write(checkpoint / FILE)
    text = "1 of 2 proteins was among the training sequences of small and 1 more is nearly identical (about 90 %"
    text += " or more) to one"
    for again in range(2):  # the second time nothing is computed
        summary = score(
            checkpoint, [CRO, PEPTIDE], tmp_path / "scores", entries_per_part=1, method="wild_type_marginal",
            progress=False,
        )  # fmt: skip
        assert sorted(report["trained_on"] for report in summary["chains"]) == ["same", "similar"], again
        (line,) = lines()
        assert line.startswith(f"{text} (1A8O_A, 1ORC_A)") or line.startswith(f"{text} (1ORC_A, 1A8O_A)")
        assert line.endswith(": scores say how well they are known")


def test_sequences_on_a_structure_are_looked_up_and_so_is_its_own(checkpoint, sequences, tmp_path, lines):
    own = sequences[0]
    given = tmp_path / "given.fasta"
    other = "".join("A" if letter != "A" else "G" for letter in own)
    given.write_text(f">1ORC_1\n{other}\n")
    for number, (known, answer) in enumerate(((own, "same"), (other, "same"), (sequences[1], "no"))):
        TrainingSequences.of([known]).write(checkpoint / FILE)
        summary = score(checkpoint, CRO, tmp_path / f"{number}", sequences=given, progress=False)
        assert summary["proteins"][0]["trained_on"] == answer and len(lines()) == (answer == "same")


def test_nobody_knows_what_is_not_recorded(checkpoint, sequences, tmp_path, lines):
    assert training_sequences_of(checkpoint) is None
    summary = score(checkpoint, CRO, tmp_path / "without", mutants=["A52G"], progress=False)
    assert summary["trained_on"] is None and not lines()
    TrainingSequences.of([sequences[1]], ["somebody/some-model"]).write(checkpoint / FILE)
    summary = score(checkpoint, CRO, tmp_path / "in part", mutants=["A52G"], progress=False)
    assert summary["trained_on"] is None and summary["trained_on_sequences"]["unknown"] == 1 and not lines()
    record = training_sequences_of(checkpoint)
    assert trained_on(record, [[sequences[1]], [sequences[0]], [sequences[0], sequences[1]]]) == ["same", None, "same"]


def test_a_broken_record_is_named_before_anything_is_computed(checkpoint, tmp_path):
    (checkpoint / FILE).write_bytes(b"nothing")
    for verb in (score, design_files):
        with pytest.raises(ValueError, match=f"{FILE} cannot be read .*; copy it again, make it by"):
            verb(checkpoint, CRO, tmp_path / "output", progress=False)
    assert not (tmp_path / "output").exists()


def test_the_line_counts_and_names_the_first():
    def line(same: int, similar: int, number: int, names: str = "") -> str | None:
        return describe_trained_on("m", {"same": same, "similar": similar}, number, "chain", "so", names.split())

    known, alike = "so how well they are known", "nearly identical (about 90 % or more) to"
    assert line(0, 0, 5) is None
    assert line(2, 0, 5) == f"2 of 5 chains were among the training sequences of m: {known}"
    assert line(0, 1, 5) == f"1 of 5 chains is {alike} a training sequence of m: {known}"
    text = f"1,200 of 5,000 chains were among the training sequences of m and 3 more are {alike} one"
    assert line(1200, 3, 5000, "a b c d") == f"{text} (a, b, c, ...): {known}"


def test_an_adapter_knows_what_its_base_does(checkpoint, sequences, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["query"]))
    train_adapter(adapted)
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(checkpoint)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert training_sequences_of(adapter) is None
    TrainingSequences.of([sequences[0]]).write(checkpoint / FILE)
    record = training_sequences_of(adapter)
    assert record.unknown == ("adapter",)
    assert trained_on(record, [[sequences[0]], [sequences[1]]]) == ["same", None]
    TrainingSequences.of([sequences[1]]).write(adapter / FILE)  # what whoever trained it made
    assert trained_on(training_sequences_of(adapter), [[sequences[1]]]) == ["same"]


def test_a_name_on_the_hub_is_read_from_the_cache(sequences, tmp_path, monkeypatch):
    folder = tmp_path / "models--someone--small"
    snapshot = folder / "snapshots" / "0a"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert training_sequences_of("someone/small") is None
    TrainingSequences.of(sequences).write(tmp_path / FILE)
    shutil.copy(tmp_path / FILE, snapshot)
    assert trained_on(training_sequences_of("someone/small"), [[sequences[0]]]) == ["same"]
    assert training_sequences_of("someone/else") is None


def test_chains_of_a_complex_that_are_known_are_named(checkpoint, sequences, tmp_path, lines):
    """Of 1BD2's five chains two, and of a file with one chain none."""
    chains = read_chains(STRUCTURES / "1BD2.cif.gz")
    known = [chains[0].sequence, relative_of(chains[3].sequence), sequences[0]]
    TrainingSequences.of(known).write(checkpoint / FILE)
    options = {"as_complex": True, "figures": False, "progress": False, "method": "wild_type_marginal"}
    summary = score(checkpoint, STRUCTURES / "1BD2.cif.gz", tmp_path / "many", **options)
    assert (summary["trained_on"], summary["trained_on_chains"]) == ("same", ["A", "D"])
    assert lines() == [
        "chains A, D of 1BD2 were among the training sequences of small: scores say how well they are known"
    ]
    summary = score(checkpoint, CRO, tmp_path / "one", **options)
    assert summary["trained_on"] == "same" and "trained_on_chains" not in summary
    assert lines() == ["1ORC was among the training sequences of small: scores say how well it is known"]
