"""Clusters of a real `mmseqs`, and splits that no cluster crosses."""

import os
import shutil
from collections import Counter
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices
from conftest import CHAINS

from coordformer.data.cluster import COMPARABLE, MAX_LENGTH, assign_splits, cluster_sequences
from coordformer.data.prepare import PrepareSettings, assemble, part_path
from coordformer.data.rows import SCHEMA

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SHARES = {"train": 0.5, "valid": 0.3, "test": 0.2}
needs_mmseqs = pytest.mark.skipif(
    shutil.which("mmseqs") is None, reason="needs the program mmseqs (`apt install mmseqs2`)"
)


def mutate(sequence: str, share: float, rng: np.random.Generator) -> str:
    """As many substitutions by another letter as make up this share of the sequence."""
    letters = list(sequence)
    for place in rng.choice(len(letters), round(share * len(letters)), replace=False):
        letters[place] = rng.choice([letter for letter in LETTERS if letter != letters[place]])
    return "".join(letters)


def make_sequences() -> tuple[list[str], dict[str, np.ndarray]]:
    """Real chains with their relatives, in a mixed order, and where each kind is, in the order of the chains."""
    rng = np.random.default_rng(0)
    chains = [chain for chain in pq.read_table(CHAINS)["sequence"].to_pylist() if len(chain) >= 80][::60]
    kinds = {
        "real": chains,
        "identical": list(chains),
        "mutated": [mutate(chain, 0.04, rng) for chain in chains],
        "distant": [mutate(chain, 0.3, rng) for chain in chains],
        "truncated": [chain[: int(0.6 * len(chain))] for chain in chains],
        "unrelated": ["".join(rng.choice(list(LETTERS), len(chain))) for chain in chains],
        "tiny": ["A", "MKV", "A", "MKV", "X", "X" * 40, "X" * 40, "X"],
    }
    order = rng.permutation(sum(map(len, kinds.values())))
    mixed = [sequence for each in kinds.values() for sequence in each]
    places = np.split(np.argsort(order), np.cumsum([len(each) for each in kinds.values()])[:-1])
    return [mixed[index] for index in order], dict(zip(kinds, places, strict=True))


@pytest.fixture(scope="module")
def clustered():
    if shutil.which("mmseqs") is None:
        pytest.skip("needs the program mmseqs (`apt install mmseqs2`)")
    sequences, kinds = make_sequences()
    return sequences, kinds, cluster_sequences(sequences, threads=2)


@pytest.fixture
def fake_mmseqs(tmp_path, monkeypatch):
    """Puts a shell script in place of mmseqs."""

    def install(script: str):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "mmseqs").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "mmseqs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return install


# --- Clusters ----------------------------------------------------------------------------------------------------


def test_labels_are_representatives(clustered):
    sequences, _, labels = clustered
    assert labels.dtype == np.int64 and labels.shape == (len(sequences),)
    assert (labels[labels] == labels).all()
    lengths = np.array([len(sequence) for sequence in sequences])
    assert (lengths[labels] >= lengths).all()


@pytest.mark.parametrize("kind", ["identical", "mutated", "distant", "truncated"])
def test_relatives_are_together(clustered, kind):
    _, kinds, labels = clustered
    assert len(kinds["real"]) > 40
    assert (labels[kinds[kind]] == labels[kinds["real"]]).all()


def test_strangers_are_apart(clustered):
    _, kinds, labels = clustered
    sizes = Counter(labels.tolist())
    assert all(labels[index] == index and sizes[index] == 1 for index in kinds["unrelated"])
    assert len(set(labels[kinds["real"]])) > 0.9 * len(kinds["real"])


def test_tiny_ones_are_clusters_of_their_own(clustered):
    sequences, kinds, labels = clustered
    by_sequence = {}
    for index in kinds["tiny"]:
        by_sequence.setdefault(sequences[index], set()).add(labels[index])
    assert all(len(found) == 1 for found in by_sequence.values())
    assert len(set.union(*by_sequence.values())) == len(by_sequence) == 4


@needs_mmseqs
@pytest.mark.slow
def test_again_with_other_threads_and_folder(clustered, tmp_path):
    sequences, _, labels = clustered
    folder = tmp_path / "a folder"
    folder.mkdir()
    assert (cluster_sequences(sequences, threads=1, folder=folder) == labels).all()
    assert list(folder.iterdir()) == []


@needs_mmseqs
def test_nothing_that_mmseqs_can_search():
    # Alone, these make mmseqs 14 fail for want of k-mers.
    sequences = ["A", "GAT", "A", "GS" * 30, "T" * 20, "GS" * 29, "T" * 20, "ACDEFGX" * 3]
    assert cluster_sequences(sequences).tolist() == [0, 1, 0, 3, 4, 3, 4, 7]


@needs_mmseqs
@pytest.mark.parametrize(("length", "least", "most"), [(10, 0, 0.3), (COMPARABLE, 0.97, 1)])
def test_relatives_of_short_sequences_are_missed_and_the_user_is_warned(length, least, most, caplog):
    """Pairs of peptides that differ by one substitution; the warning begins where all are found."""
    rng = np.random.default_rng(0)
    peptides = ["".join(rng.choice(list(LETTERS), length)) for _ in range(60)]
    labels = cluster_sequences([*peptides, *(mutate(peptide, 1 / length, rng) for peptide in peptides)], threads=1)
    assert least <= (labels[:60] == labels[60:]).mean() <= most
    warned = [f"120 sequences have fewer than 14 residues, such as {peptides[0]}: mmseqs finds few relatives"]
    assert [text[: len(warned[0])] for text in caplog.messages] == warned * (length < COMPARABLE)


@needs_mmseqs
def test_the_datasheet_says_of_which_chains_the_splits_say_little(tmp_path):
    sequences = ["MKWVTFISLL", "MKWVTFISAL", "MKWVXXXXXTFISLL", "MKVLAAGIVGLCAKAYE"]
    rows = [{"id": text, "sequence": text, "length": len(text), "observed": 0, "atoms": ["CA"],
             "coords": [float("nan")] * 3 * len(text)} for text in sequences]  # fmt: skip
    part_path(tmp_path, 0).parent.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    metadata = {"coordformer.rejects": "[]", "files": "0"}
    pq.write_table(table.replace_schema_metadata(metadata), part_path(tmp_path, 0))
    made, text = assemble(tmp_path, PrepareSettings(splits={"train": 0.5, "valid": 0.5})), tmp_path / "README.md"
    assert made["counts"]["too_short_to_cluster"] == 3 and "No cluster is in two splits" in text.read_text()
    assert "says little of the 3 chains with fewer than 14 residues, of which MMseqs2 finds few" in text.read_text()


def test_no_sequences_need_no_mmseqs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    labels = cluster_sequences([])
    assert labels.dtype == np.int64 and labels.shape == (0,)


def test_missing_mmseqs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"mmseqs.*apt install mmseqs2.*conda install -c bioconda mmseqs2"):
        cluster_sequences(["MKVLAAGIVGLCAKAYE"])


def test_failing_mmseqs(fake_mmseqs, tmp_path):
    fake_mmseqs("echo starting; echo 'Cannot write to disk' >&2; echo; echo 'Error: Search died' >&2; exit 3")
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(
        ChildProcessError, match=r"bin/mmseqs failed with exit code 3 on 2 .* disk / Error: Search died$"
    ):
        cluster_sequences(["MKVLAAGIVGLCAKAYE", "ACD", "ACD"], folder=folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("script", ["exit 1", "exit 0"], ids=["fails", "writes nothing"])
def test_mmseqs_without_a_word(fake_mmseqs, script):
    fake_mmseqs(script)
    with pytest.raises(ChildProcessError, match=r"failed with exit code \d on 1 sequences.*memory or disk space"):
        cluster_sequences(["MKVLAAGIVGLCAKAYE"])


def test_mmseqs_that_leaves_sequences_out(fake_mmseqs):
    fake_mmseqs(r"printf '1\t1\n1\t3\n-1\t-1\n' > result_cluster.tsv")
    long = "MKVLAAGIVGLCAKAYE"
    found = cluster_sequences(["AC", long, "X" * 30, long[1:], "AC", "X" * 30 + long[:13]])
    assert found.tolist() == [0, 1, 2, 1, 0, 5]
    with pytest.raises(ChildProcessError, match=r"no cluster to sequences\[2\] \(KVLAAG.*14 residues"):
        cluster_sequences(["AC", long, long[1:15], long[1:]])


def test_arguments_of_mmseqs(fake_mmseqs):
    fake_mmseqs('head -n 2 chains.fasta; echo "$@"; exit 1')
    with pytest.raises(ChildProcessError) as caught:
        cluster_sequences(["MKVL"], 1e-5, 0.9, 3)
    fasta, _, command = str(caught.value).rpartition(" / ")
    assert fasta.endswith(": >0 / MKVL")
    assert command.startswith("easy-cluster chains.fasta ")
    assert command.endswith(" --dbtype 1 --min-seq-id 0.000010 -c 0.900000 --cov-mode 1 --threads 3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity": 0}, "identity is 0; give a share above 0 and at most 1"),
        ({"identity": 30}, "identity is 30; "),
        ({"identity": float("nan")}, "identity is nan; "),
        ({"coverage": -0.1}, "coverage is -0.1; "),
        ({"coverage": 1.01}, "coverage is 1.01; "),
        ({"threads": 0}, "threads is 0; give at least 1"),
        ({"sequences": ["ACD", ""]}, r"sequences\[1\] is empty; remove it"),
        ({"sequences": ["ACD", "AC-D"]}, r"sequences\[1\] has '-' at 2; use capital letters"),
        ({"sequences": ["AC\n>7\nD"]}, r"sequences\[0\] has '\\n' at 2"),
        ({"sequences": ["acd"]}, r"sequences\[0\] has 'a' at 0"),
        ({"sequences": ["A" * (MAX_LENGTH + 1)]}, r"sequences\[0\] has 65536 residues; mmseqs .* 65535, so cut it"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster_sequences(**{"sequences": ["MKVLAAGIVGLCAKAYE"]} | arguments)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder .*nowhere for temporary files does not exist; make it"):
        cluster_sequences(["ACD"], folder=tmp_path / "nowhere")


# --- Splits ------------------------------------------------------------------------------------------------------


def test_no_similar_pair_across_splits(clustered):
    """By another aligner: Smith-Waterman of Biopython, identity over the columns, coverage of the shorter one."""
    sequences, kinds, labels = clustered
    splits = assign_splits(labels, sequences, SHARES)
    aligner = PairwiseAligner(mode="local", open_gap_score=-11, extend_gap_score=-1)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    sample = np.concatenate([kinds[kind][:14] for kind in ("real", "mutated", "distant", "unrelated")])
    assert set(SHARES) == {splits[index] for index in sample}
    similar = 0
    for first, second in combinations(sample, 2):
        alignment = aligner.align(sequences[first], sequences[second])[0]
        counts = alignment.counts()
        aligned = counts.identities + counts.mismatches
        shorter = min(len(sequences[first]), len(sequences[second]))
        if aligned >= 0.8 * shorter and counts.identities > 0.3 * (aligned + counts.gaps):
            similar += 1
            assert splits[first] == splits[second], (sequences[first], sequences[second])
    assert similar >= 14 * 3


def test_shares_are_met():
    count = 5000
    names = [f"chain{index}" for index in range(count)]
    for seed in range(3):
        found = Counter(assign_splits(np.arange(count), names, SHARES, seed))
        assert set(found) == set(SHARES)
        for split, share in SHARES.items():
            assert abs(found[split] - share * count) < 4 * (share * (1 - share) * count) ** 0.5


def test_seeds_are_independent():
    count = 5000
    names = [f"chain{index}" for index in range(count)]
    first, second, again = (np.array(assign_splits(np.arange(count), names, SHARES, seed)) for seed in (0, 1, 0))
    assert (first == again).all()
    expected = sum(share**2 for share in SHARES.values())
    assert abs((first == second).mean() - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_split_is_a_function_of_the_representative_alone():
    rng = np.random.default_rng(0)
    representatives = np.sort(rng.choice(300, 40, replace=False))
    labels = rng.choice(representatives, 300)
    labels[representatives] = representatives
    names = [f"chain{index}" for index in range(300)]
    splits = assign_splits(labels, names, SHARES)
    assert splits == [splits[label] for label in labels] and len(set(splits)) == 3
    # Other chains gone, and the order turned round.
    kept = [index for index in reversed(range(300)) if index in representatives or index % 3 == 0]
    fewer = np.array([kept.index(labels[index]) for index in kept])
    assert assign_splits(fewer, [names[index] for index in kept], SHARES) == [splits[index] for index in kept]


def test_splits_stay_those_of_earlier_versions():
    # `printf 0:1BD2_A | sha256sum` begins with 5ab1, 0.35 of ffff; the others with ad48 (0.68), fa83 and e62c (0.90).
    names = ["1BD2_A", "2OFG_X", "1ORC_A", "é"]
    assert assign_splits(np.arange(4), names, SHARES) == ["train", "valid", "test", "test"]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"all": 1}, {"all"}),
        ({"none": 0, "all": 1.0, "neither": 0.0}, {"all"}),
        ({"a": 0.5 - 5e-7, "b": 0.5}, {"a", "b"}),
        ({"a": 0.5 + 5e-7, "b": 0.5}, {"a", "b"}),
        ({f"fold_{fold}": 0.1 for fold in range(10)}, {f"fold_{fold}" for fold in range(10)}),
    ],
)
def test_odd_shares(shares, expected):
    assert set(assign_splits(np.arange(1000), [str(index) for index in range(1000)], shares)) == expected


def test_last_number_goes_to_a_split_of_a_positive_share():
    name = "3914910"  # `printf 0:3914910 | sha256sum` begins with fffffff01a: less than 1e-8 below 1
    assert assign_splits(np.array([0]), [name], {"a": 1 - 5e-7, "none": 0}) == ["a"]


def test_no_labels():
    assert assign_splits(np.empty(0, np.int64), [], SHARES) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shares": {}}, "sum to 0; make them sum to 1"),
        ({"shares": {"train": 0.8, "valid": 0.1}}, r"shares \{'train': 0.8, 'valid': 0.1\} sum to 0.9; make"),
        ({"shares": {"train": 80, "valid": 20}}, "sum to 100; make"),
        ({"shares": {"train": 1.2, "valid": -0.2}}, r"shares\['valid'\] is -0.2; give a share from 0 to 1"),
        ({"shares": {"train": float("nan")}}, r"shares\['train'\] is nan; "),
        ({"shares": {"hold out": 1.0}}, "split 'hold out'; name it with letters"),
        ({"shares": {"": 1.0}}, "split ''; "),
        ({"names": ["a", "b"]}, r"labels have the shape \(3,\) and there are 2 names; give one name per label"),
        ({"labels": np.zeros((3, 1), int)}, r"the shape \(3, 1\)"),
        ({"labels": np.zeros(3)}, "labels are of type float64; give the integers"),
        ({"labels": np.array([0, 3, 0])}, r"labels\[1\] is 3, which is not the index of a representative"),
        ({"labels": np.array([0, 0, -1])}, r"labels\[2\] is -1, which is not"),
        ({"labels": np.array([1, 2, 2])}, r"labels\[0\] is 1, which is not"),
    ],
)
def test_bad_arguments_of_splits(arguments, message):
    with pytest.raises(ValueError, match=message):
        assign_splits(**{"labels": np.array([0, 0, 2]), "names": ["a", "b", "c"], "shares": SHARES} | arguments)
