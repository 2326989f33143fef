"""Which sequences a checkpoint was trained on: what is found and what is not, files, unions, starts."""

import json
import re
import time

import numpy as np
import pytest
from conftest import CHAINS, make_rows
from safetensors.numpy import load_file, save_file

from coordformer.data import training_sequences
from coordformer.data.pack import open_chains, write_pack
from coordformer.data.rows import ShardBatches, load_rows
from coordformer.data.training_sequences import (
    FILE,
    NEW,
    SAME,
    SIMILAR,
    TrainingSequences,
    hash_kmers,
    hash_sequence,
    kmers_of,
    main,
    read_training_sequences,
    record_training,
    sequences_of,
)

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def contents(record: TrainingSequences) -> tuple:
    names = ("hashes", "lengths", "sketch_sizes", "sketches")
    return (*(getattr(record, name).tolist() for name in names), record.unknown)


def mutate(sequence: str, identity: float, rng: np.random.Generator) -> str:
    """With other letters at so many residues that just this share is the same."""
    letters = list(sequence)
    for place in rng.choice(len(letters), round((1 - identity) * len(letters)), replace=False):
        letters[place] = rng.choice([each for each in LETTERS if each != letters[place]])
    return "".join(letters)


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return load_rows(CHAINS, "train")["sequence"][:1000]


@pytest.fixture(scope="module")
def record(sequences) -> TrainingSequences:
    return TrainingSequences.of(sequences)


def test_hashes_are_those_of_the_published_functions():
    """Splitmix64 by Python's whole numbers; SHA-256 by its test vector for abc."""
    assert hash_sequence("abc") == 0xBA7816BF8F01CFEA

    def first_output(number: int) -> int:
        number = (number + 0x9E3779B97F4A7C15) % 2**64
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return number ^ number >> 31

    assert first_output(1234567) == 6457827717110365317  # as others publish it
    numbers = [0, 1, 20**7 - 1, 2**64 - 1]
    assert hash_kmers(np.array(numbers, dtype=np.uint64)).tolist() == [first_output(each) >> 32 for each in numbers]


def test_seven_mers_do_not_cross_sequences_or_unknown_residues():
    """Number by number, as a loop over one sequence after another gets them."""
    given = ["ACDEFGHIKL", "", "MKT", "AAAAAAAAAA", "ACDEFGHXACDEFGHI", "XXXXXXXXXX", "WYWYWYW"]
    expected = set()
    for owner, sequence in enumerate(given):
        for start in range(len(sequence) - 6):
            piece = sequence[start : start + 7]
            if "X" not in piece:
                code = sum(LETTERS.index(letter) * 20 ** (6 - place) for place, letter in enumerate(piece))
                expected.add((owner << 32) | int(hash_kmers(np.array([code], dtype=np.uint64))[0]))
    assert kmers_of(given).tolist() == sorted(expected) and len(expected) == 4 + 1 + 2 + 1
    assert kmers_of([]).size == kmers_of(["", "MK"]).size == 0


def test_the_same_sequences_are_found(record, sequences):
    assert (record.find(sequences) == SAME).all()
    assert len(record) == len(set(sequences))


def test_relatives_of_90_percent_are_found_and_distant_ones_are_not(record, sequences):
    """By how many: examples/inverse_folding/known_sequences.py, on real relatives."""
    rng = np.random.default_rng(0)
    long = [sequence for sequence in sequences if len(sequence) >= 100][:300]
    found = {
        identity: (record.find([mutate(sequence, identity, rng) for sequence in long]) == SIMILAR).mean()
        for identity in (0.95, 0.9, 0.7, 0.5)
    }
    assert found[0.95] > 0.95 and found[0.9] > 0.6 and found[0.7] < 0.03 and found[0.5] == 0
    shuffled = ["".join(rng.permutation(list(sequence))) for sequence in long]
    assert (record.find(shuffled) == NEW).all()


def test_chains_of_other_clusters_are_not_found(record):
    """The held-out chains of the examples: none of a cluster at 30 % that was trained on."""
    held_out = load_rows(CHAINS, "valid")["sequence"][:]
    assert (record.find(held_out) != NEW).sum() <= 2


def test_a_chain_that_was_cut_or_tagged_is_found(record, sequences):
    long = [sequence for sequence in sequences if len(sequence) >= 150][:200]
    for change in (
        lambda sequence: sequence[: len(sequence) // 2],
        lambda sequence: f"MGSSHHHHHHSSGLVPRGSH{sequence}",
        lambda sequence: sequence[20:-20] + "GGSGGSGGS",
        lambda sequence: sequence[:40] + "X" + sequence[41:],
    ):
        assert (record.find(list(map(change, long))) == SIMILAR).mean() > 0.98
    # A piece of the query says little of it.
    rest = "".join(np.random.default_rng(0).choice(list(LETTERS), 400))
    assert record.find([long[0] + rest * 2])[0] == NEW


@pytest.mark.parametrize("sequence", ["MKT", "M", "ACDEFG", "XXXXXXXXXXXX", "ACDEFGHIKL", "A" * 60])
def test_short_and_odd_sequences_are_found_if_they_are_the_same(sequence):
    record = TrainingSequences.of([sequence, "MKTAYIAKQRQISFVKSHFSRQ"])
    assert record.find([sequence, "W" + sequence, ""]).tolist()[0] == SAME
    assert record.find(["WWWW", ""]).tolist() == [NEW, NEW]


def test_nothing_is_in_an_empty_record():
    record = TrainingSequences.of(())
    assert len(record) == 0 and record.find(["MKTAYIAKQRQISFVKSHFSRQ", ""]).tolist() == [NEW, NEW]
    assert record.find([]).shape == (0,)


def test_many_are_looked_up_as_one_by_one(record, sequences, monkeypatch):
    rng = np.random.default_rng(1)
    asked = [mutate(sequence, 0.9, rng) for sequence in sequences[:60]] + sequences[:10]
    together = record.find(asked)
    assert [record.find([each])[0] for each in asked] == together.tolist()
    monkeypatch.setattr(training_sequences, "AT_ONCE", 7)
    np.testing.assert_array_equal(record.find(asked), together)
    assert contents(TrainingSequences.of(sequences[:100])) == contents(TrainingSequences.of(sequences[99::-1]))


def test_a_file_holds_what_was_written(record, sequences, tmp_path):
    named = record | TrainingSequences.of((), ["facebook/esm2_t6_8M_UR50D"])
    for name in ("a.safetensors", "b.safetensors"):
        named.write(tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = TrainingSequences.read(tmp_path / "a.safetensors")
    assert contents(read) == contents(named) and read.unknown == ("facebook/esm2_t6_8M_UR50D",)
    assert (tmp_path / "a.safetensors").stat().st_size < 120 * len(sequences)
    letters = b"".join(each.tobytes() for each in load_file(tmp_path / "a.safetensors").values())
    assert not any(sequence[:8].encode() in letters for sequence in sequences)


def test_a_union_is_the_record_of_both(sequences):
    parts = TrainingSequences.of(sequences[:70], ["one"]), TrainingSequences.of(sequences[50:120], ["two", "one"])
    assert contents(parts[0] | parts[1]) == contents(TrainingSequences.of(sequences[:120], ["one", "two"]))
    assert contents(parts[0] | TrainingSequences.of(())) == contents(parts[0])


def test_looking_up_takes_no_time(record, sequences, tmp_path):
    """With a wide margin, and of the processor's time: others may be at work on this machine."""
    record.write(tmp_path / FILE)
    started = time.process_time()
    TrainingSequences.read(tmp_path / FILE).find(sequences)
    assert time.process_time() - started < 2


# --- what a training leaves ------------------------------------------------------------------------------------------


def test_a_start_brings_its_record_or_its_name(sequences, tmp_path):
    rows = load_rows(CHAINS, "valid")
    before, converted = tmp_path / "before", tmp_path / "converted"
    before.mkdir()
    converted.mkdir()
    TrainingSequences.of(sequences[:50], ["of before"]).write(before / FILE)
    record = record_training([rows], [before])
    assert contents(record) == contents(TrainingSequences.of([*sequences[:50], *rows["sequence"][:]], ["of before"]))
    # A checkpoint on the way is of the run, whose file it is.
    (before / "checkpoint-5").mkdir()
    assert contents(record_training([rows], [before / "checkpoint-5"])) == contents(record)
    record = record_training([rows], [converted, "somebody/some-model"])
    assert record.unknown == ("converted", "somebody/some-model") and len(record) == len(set(rows["sequence"][:]))
    assert read_training_sequences(converted) is None


def test_rows_packs_and_shards_have_the_same_sequences(tmp_path):
    rows = load_rows(CHAINS, "valid").select(range(30))
    write_pack(rows, tmp_path / "chains.safetensors", progress=False)
    (tmp_path / "data").mkdir()
    for number in range(3):
        rows.select(range(10 * number, 10 * number + 10)).to_parquet(tmp_path / "data" / f"train-{number}.parquet")
    sources = rows, open_chains(tmp_path / "chains.safetensors"), ShardBatches(tmp_path, 4096)
    for source in sources:
        assert list(sequences_of(source)) == rows["sequence"][:]


def test_a_complex_is_recorded_by_its_chains(tmp_path):
    rows = make_rows([40]).map(lambda row: {"chain_lengths": [25, 15], "chain_names": ["A", "B"]})
    (sequence,) = rows["sequence"][:]
    assert list(sequences_of(rows)) == [sequence[:25], sequence[25:]]


def test_what_is_too_large_is_named(monkeypatch):
    monkeypatch.setattr(training_sequences, "MOST", 20)
    record = record_training([load_rows(CHAINS, "valid")])
    assert len(record) == 0 and record.unknown == ("400 chains, more than are recorded",)


def test_the_command_makes_the_file_of_an_older_checkpoint(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    main([str(tmp_path), str(CHAINS), "--split", "valid", "--init_from", "somebody/some-model"])
    record = read_training_sequences(tmp_path)
    expected = TrainingSequences.of(load_rows(CHAINS, "valid")["sequence"][:], ["somebody/some-model"])
    assert contents(record) == contents(expected)
    assert f"{len(record):,} sequences; not known: somebody/some-model" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "data"), str(CHAINS)])
    assert "holds no checkpoint; give the folder of one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(CHAINS), "--split", "test"])
    assert "No row of" in capsys.readouterr().err


# --- files that are broken -------------------------------------------------------------------------------------------


def broken(change, record, path) -> None:
    arrays = {name: getattr(record, name) for name in training_sequences.TENSORS}
    about = {"format": training_sequences.FORMAT, "unknown": []}
    change(arrays, about)
    save_file(arrays, path, {training_sequences.ABOUT: json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, about: about.update(format="other"), "its format is 'other', not"),
        (lambda arrays, about: about.pop("unknown"), "'unknown'"),
        (lambda arrays, about: arrays.pop("sketches"), "sketches"),
        (lambda arrays, about: arrays.update(sketches=arrays["sketches"][1:]), "7-mers"),
        (lambda arrays, about: arrays.update(lengths=arrays["lengths"][1:]), "hashes, .* lengths"),
        (lambda arrays, about: arrays.update(hashes=arrays["hashes"][::-1].copy()), "are not sorted"),
        (lambda arrays, about: arrays.update(lengths=arrays["lengths"] / 2), "lengths is float64"),
    ],
)
def test_a_broken_file_is_named(change, message, record, tmp_path):
    broken(change, record, tmp_path / FILE)
    fix = "copy it again, make it by `python -m coordformer.data.training_sequences`, or delete it"
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / FILE))} cannot be read .*{message}.*; {fix}"):
        read_training_sequences(tmp_path)


def test_a_file_that_was_cut_off_is_named(record, tmp_path):
    record.write(tmp_path / FILE)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{FILE} cannot be read .*; copy it again"):
        read_training_sequences(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({}))
    with pytest.raises(ValueError, match=f"{FILE} cannot be read .*; copy it again"):
        read_training_sequences(tmp_path)
