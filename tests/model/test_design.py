"""Designed sequences: what is fixed, tied, omitted and biased, how letters are drawn, and what conditions them."""

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_model
from scipy.stats import chisquare

from coordformer import CoordformerForMaskedLM, CoordformerProcessor, design, read_chains, read_complex
from coordformer.model.chain import AMINO_ACIDS, Chain, Complex
from coordformer.model.design import Designs, _Passes, _probabilities, plan_design, score_sequences
from coordformer.model.processing_coordformer import letter_ids
from coordformer.model.residues import ResidueNumbers

PROCESSOR = CoordformerProcessor()
LETTERS = list(letter_ids(PROCESSOR.tokenizer).values())
FRAMES = {"coordinate_embedding": "local_frame", "num_qk_points": 2, "num_neighbors": 5}
EVERY_ROUNDS = pytest.mark.parametrize("rounds", [1, 3, "all"])


@pytest.fixture(scope="module")
def model():
    """One that reads coordinates in all ways, and whose outputs depend on the letters around."""
    torch.manual_seed(0)
    return make_model(**FRAMES)


@pytest.fixture(scope="module")
def chain() -> Chain:
    """71 residues of phage λ Cro, 64 observed, numbered with insertion codes."""
    return read_chains(STRUCTURES / "1orc.pdb.gz")[0]


@pytest.fixture(scope="module")
def protease() -> Complex:
    """Two equal chains of 99 residues, all observed."""
    return read_complex(STRUCTURES / "1hvr.pdb.gz")


def part(chain: Chain, start: int, end: int) -> Chain:
    """Some contiguous residues as a chain."""
    fields = {name: getattr(chain, name)[start:end] for name in ("sequence", "coords", "b_factor", "residue_numbers")}
    return dataclasses.replace(chain, **fields, positions=None)


def columns(designs: Designs) -> np.ndarray:
    """Letters (sequences, L)."""
    return np.array([list(sequence) for sequence in designs.sequences])


# --- what is designed ------------------------------------------------------------------------------------------------


@EVERY_ROUNDS
def test_what_is_fixed_never_changes(model, chain, rounds):
    """By the file's own numbers, at a temperature at which all else does; nor do residues that were not observed."""
    native, kept = np.array(list(chain.sequence)), ~chain.observed.any(axis=1)
    assert kept.sum() == 7
    names = ResidueNumbers(chain)
    fixed = np.isin(np.arange(71), [names.find(name) for name in ("10", "11", "12", "56A", "56B", "61")])
    drawn = columns(design(model, chain, fixed_residues="A10-A12 56A-56B A61", temperature=50.0, rounds=rounds))
    assert (drawn[:, fixed | kept] == native[fixed | kept]).all()
    assert (drawn != native)[:, ~(fixed | kept)].any(axis=0).all()

    designs = design(model, chain, redesigned_residues="A10-A12 56A-56B A61", temperature=50.0, rounds=rounds)
    assert (columns(designs)[:, ~fixed] == native[~fixed]).all() and (designs.designed == fixed).all()
    assert (columns(designs) != native)[:, fixed].any(axis=0).all()


@EVERY_ROUNDS
def test_chains_that_are_not_designed_are_kept(model, protease, rounds):
    native = protease.sequence
    for sequence in design(model, protease, chains_to_design=["B"], temperature=2.0, rounds=rounds).sequences:
        assert sequence[:99] == native[:99] and sequence[99:] != native[99:]


def test_everything_with_coordinates_is_designed_if_nothing_is_said(chain):
    task = plan_design(chain)
    np.testing.assert_array_equal(task.designed, chain.observed.any(axis=1))
    assert [group.tolist() for group in task.tied] == [[index] for index in np.flatnonzero(task.designed)]


@EVERY_ROUNDS
def test_omitted_letters_never_appear(model, chain, rounds):
    short = part(chain, 10, 40)
    options = {"omit_aa": "CMW", "omit_per_residue": {"A20": "ADEFGHIKLNPQRSTV"}, "bias_aa": {"W": 1000.0}}
    designs = design(model, short, **options, temperature=[0, 0.1, 1e6], rounds=rounds)
    assert len(designs.sequences) == 24 and not set("CMW") & set("".join(designs.sequences))
    place = ResidueNumbers(short).find("A20")
    assert set(columns(designs)[:, place]) == {"Y"}
    assert (designs.biased[:, :, AMINO_ACIDS.index("W")] == 0).all()
    assert set(columns(designs)[16:, place - 1]) != {"Y"}  # of that residue alone


@EVERY_ROUNDS
def test_a_large_bias_gives_its_letter_everywhere(model, chain, rounds):
    short = part(chain, 10, 40)
    designs = design(model, short, bias_aa={"W": 100.0}, temperature=[0, 0.1, 1.0], rounds=rounds)
    assert set(designs.sequences) == {"W" * 30}
    pssm = np.zeros((30, 20))
    pssm[np.arange(30), [AMINO_ACIDS.index(letter) for letter in "ACDEFGHIKL" * 3]] = 100
    designs = design(model, short, pssm=pssm, bias_per_residue={"A11": {"Y": 200.0}}, rounds=rounds)
    assert set(designs.sequences) == {"Y" + ("ACDEFGHIKL" * 3)[1:]}


@EVERY_ROUNDS
def test_tied_residues_are_equal(model, protease, rounds):
    designs = design(
        model, protease, symmetry_residues="A10,B10 A20,A30,B40", redesigned_residues="A10-A30 B10 B40 B50",
        temperature=1.0, rounds=rounds,
    )  # fmt: skip
    drawn, find = columns(designs), ResidueNumbers(protease).find
    for names in (("A10", "B10"), ("A20", "A30", "B40")):
        tied = [find(name) for name in names]
        assert (drawn[:, tied] == drawn[:, tied[:1]]).all()
        np.testing.assert_array_equal(designs.biased[0, tied], designs.biased[0, tied[:1]].repeat(len(tied), axis=0))
    assert (drawn[:, find("A11")] != drawn[:, find("B10")]).any()


def test_ranges_are_tied_one_residue_after_another(protease):
    chosen = {"redesigned_residues": "A10-A12 B20-B22 A50 B50", "symmetry_weights": "0.25,0.75 1,1"}
    task = plan_design(protease, symmetry_residues="A10-A12,B20-B22 A50,B50", **chosen)
    single = "A10,B20 A11,B21 A12,B22 A50,B50"
    weights = "0.25,0.75 0.25,0.75 0.25,0.75 1,1"
    expected = plan_design(protease, symmetry_residues=single, **chosen | {"symmetry_weights": weights})
    for found, wanted in ((task.tied, expected.tied), (task.weights, expected.weights)):
        assert [each.tolist() for each in found] == [each.tolist() for each in wanted]


@EVERY_ROUNDS
def test_all_chains_of_a_homo_oligomer_get_one_sequence(model, protease, rounds):
    """What is fixed in one of them is in all, and a residue that one of them lacks gets the letter of the others."""
    coords = protease.coords.copy()
    coords[99 + 5] = coords[[7, 99 + 7]] = np.nan
    holed = dataclasses.replace(protease, coords=coords)
    designs = design(model, holed, homo_oligomer=True, fixed_residues="A20 B21", temperature=2.0, rounds=rounds)
    for sequence in designs.sequences:
        assert sequence[:99] == sequence[99:] != protease.sequence[:99]
        assert all(sequence[index] == protease.sequence[index] for index in (7, 19, 20))
    changed = (columns(designs) != list(protease.sequence)).any(axis=0)
    assert changed[5] and changed[104] and not changed[[7, 106, 19, 20, 118, 119]].any()
    one = design(model, holed, homo_oligomer=True, redesigned_residues="A1-A9", chains_to_design="A", rounds=rounds)
    assert np.flatnonzero(one.designed).tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 99, 100, 101, 102, 103, 104, 105, 107]


@torch.no_grad()
def test_weights_of_tied_residues(model, protease):
    """At temperature 0 the letter is the likeliest by the weighted mean of logits; what one omits, none gets."""
    options = {"redesigned_residues": "A10 B50", "symmetry_residues": "A10,B50", "temperature": 0, "num_samples": 1}
    batch = PROCESSOR(chains=[protease])
    places = [9, 99 + 49]
    batch["input_ids"][0, np.array(places) + 1] = PROCESSOR.tokenizer.mask_token_id
    logits = model(**batch).logits[0, 1:-1, LETTERS][places].double().numpy()
    for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 2.0), (0.3, 0.7)):
        designs = design(model, protease, symmetry_weights=f"{weights[0]},{weights[1]}", **options)
        best = int((np.array(weights) @ logits).argmax())
        assert [designs.sequences[0][place] for place in places] == [AMINO_ACIDS[best]] * 2
    omit = {"A10": AMINO_ACIDS[best]}
    designs = design(model, protease, symmetry_weights="0,1", omit_per_residue=omit, **options)
    assert designs.sequences[0][places[0]] == designs.sequences[0][places[1]] != AMINO_ACIDS[best]


# --- how letters are drawn -------------------------------------------------------------------------------------------


@EVERY_ROUNDS
def test_temperature_zero_is_deterministic(model, chain, rounds):
    """Whatever the seed, but for the order in which residues are drawn one after another."""
    designs = [
        design(model, chain, temperature=0, rounds=rounds, seed=seed, num_samples=3).sequences for seed in (0, 0, 1)
    ]
    assert designs[0] == designs[1]
    if rounds != "all":
        assert designs[0] == designs[2] and len(set(designs[0])) == 1


@torch.no_grad()
def test_one_residue_follows_the_distribution_of_the_model(model, chain):
    """Of 2,000 draws at temperature 1, with a bias and without; the model is called as anybody would."""
    batch = PROCESSOR(chains=[chain])
    batch["input_ids"][0, 1 + 19] = PROCESSOR.tokenizer.mask_token_id
    logits = model(**batch).logits[0, 1 + 19, LETTERS].double().numpy()
    for bias in ({}, {"A": 1.5, "L": -2.0}):
        shifted = logits + [bias.get(letter, 0) for letter in AMINO_ACIDS]
        expected = 2000 * _probabilities(shifted, 1.0)
        designs = design(
            model, chain, redesigned_residues="A20", temperature=1.0, num_samples=2000, bias_aa=bias, rounds=1
        )
        drawn = columns(designs)[:, 19]
        counts = np.array([(drawn == letter).sum() for letter in AMINO_ACIDS])
        rare = expected < 5
        assert (~rare).sum() > 5
        observed, predicted = (np.append(each[~rare], each[rare].sum()) for each in (counts, expected))
        assert chisquare(observed[predicted > 0], predicted[predicted > 0]).pvalue > 0.01
        np.testing.assert_allclose(designs.biased[0, 19], expected / 2000, atol=1e-5)
        assert np.isnan(designs.biased[0, np.arange(71) != 19]).all()
    np.testing.assert_allclose(np.exp(designs.log_probabilities[19]), _probabilities(logits, 1.0), atol=1e-5)


def test_colder_is_surer(model, chain):
    designs = design(model, chain, temperature=[0.0, 0.2, 5.0], num_samples=6, rounds=1)
    assert designs.temperatures == [0.0] * 6 + [0.2] * 6 + [5.0] * 6 and designs.samples == [1, 2, 3, 4, 5, 6] * 3
    scores = designs.scores.reshape(3, 6)
    assert scores[0].max() < scores[1].min() and scores[1].max() < scores[2].min()


def test_residues_are_drawn_one_after_another(chain):
    """Each as the model predicts it with those before in their place: by calls of the model, in the order it has."""
    model, short = make_model(**FRAMES), part(chain, 10, 18)
    tokens = {letter: number for letter, number in zip(AMINO_ACIDS, LETTERS, strict=True)}
    found = design(model, short, temperature=0, rounds="all", num_samples=4)
    possible = set()

    @torch.no_grad()
    def follow(ids: torch.Tensor, order: list[int]) -> str:
        for place in order:
            logits = model(**PROCESSOR(chains=[short]) | {"input_ids": ids}).logits[0, place + 1, LETTERS]
            ids[0, place + 1] = tokens[AMINO_ACIDS[int(logits.argmax())]]
        return "".join(AMINO_ACIDS[LETTERS.index(token)] for token in ids[0, 1:-1].tolist())

    for sample in range(4):
        rng = np.random.default_rng([0, zlib.crc32(short.id.encode()), 0, sample])
        ids = PROCESSOR(chains=[short])["input_ids"]
        ids[0, 1:-1] = PROCESSOR.tokenizer.mask_token_id
        possible.add(follow(ids, rng.permutation(8).tolist()))
    assert set(found.sequences) == possible


@torch.no_grad()
def test_equal_rows_are_computed_once(model, protease):
    """At temperature 0 all samples are one; with nothing kept, the two rows that score are one as well."""
    sizes = []
    hook = model.register_forward_pre_hook(
        lambda _, inputs, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        designs = design(model, protease, num_samples=3, temperature=0, rounds=2)
    finally:
        hook.remove()
    assert sizes == [1, 1]
    assert len(designs.sequences) == 3 and len(set(designs.sequences)) == 1
    passes = _Passes(model, PROCESSOR, protease, 8192)
    rng = np.random.default_rng(0)
    tokens = rng.choice(LETTERS, size=(3, len(protease)))[[2, 0, 2, 1, 0]]
    alone = np.concatenate([passes(row[None]) for row in tokens])
    np.testing.assert_allclose(passes(tokens), alone, atol=1e-4)


@EVERY_ROUNDS
def test_a_seed_decides_a_sequence_whatever_is_beside_it(model, chain, protease, rounds):
    """More samples, other temperatures, other proteins, and batches of another size."""
    few = design(model, chain, num_samples=3, temperature=0.5, rounds=rounds, seed=5)
    more = design(model, chain, num_samples=7, temperature=[1.0, 0.5], rounds=rounds, seed=5, token_budget=150)
    design(model, protease, num_samples=1, rounds=1, seed=5)
    again = design(model, chain, num_samples=3, temperature=0.5, rounds=rounds, seed=5)
    assert few.sequences == again.sequences == more.sequences[7:10] and len(set(few.sequences)) == 3
    options = {"num_samples": 3, "temperature": 0.5, "rounds": rounds}
    other = design(model, chain, seed=6, **options)
    renamed = design(model, dataclasses.replace(chain, id="other_A"), seed=5, **options)
    assert not set(few.sequences) & {*other.sequences, *renamed.sequences}


# --- scores ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_are_those_of_masked_residues(model, protease):
    """By one call with the designed residues masked, and one with all; of the native sequence, too."""
    designs = design(model, protease, redesigned_residues="A1-A20", num_samples=2, temperature=1.0, rounds=1)
    batch, places = PROCESSOR(chains=[protease]), np.arange(20)
    batch["input_ids"][0, places + 1] = PROCESSOR.tokenizer.mask_token_id
    tables = [model(**batch).logits[0, 1:-1, LETTERS].double().log_softmax(dim=-1).numpy()]
    batch["input_ids"][0, 1:-1] = PROCESSOR.tokenizer.mask_token_id
    tables.append(model(**batch).logits[0, 1:-1, LETTERS].double().log_softmax(dim=-1).numpy())
    scored = [*zip(designs.sequences, designs.scores, designs.global_scores, strict=True)]
    scored.append((protease.sequence, designs.native_score, designs.native_global_score))
    for sequence, score, global_score in scored:
        letters = np.array([AMINO_ACIDS.index(letter) for letter in sequence])
        assert score == pytest.approx(-tables[0][places, letters[places]].mean(), abs=1e-4)
        assert global_score == pytest.approx(-tables[1][np.arange(198), letters].mean(), abs=1e-4)
    recovered = (columns(designs)[:, :20] == list(protease.sequence[:20])).mean(axis=1)
    np.testing.assert_allclose(designs.recoveries, recovered)
    np.testing.assert_allclose(designs.log_probabilities, tables[0], atol=1e-4)


@torch.no_grad()
def test_pseudo_likelihoods_mask_each_residue_in_its_turn(model, chain):
    """By a call of the model for each; of the designed residues, and of whole sequences by `score_sequences`."""
    short = part(chain, 10, 30)
    short = dataclasses.replace(short, sequence=f"{short.sequence[:4]}X{short.sequence[5:]}")
    designs = design(
        model, short, redesigned_residues="A11-A16", num_samples=3, temperature=1.0, rescore=True, token_budget=60
    )
    sequences = [*designs.sequences, short.sequence]
    tables = score_sequences(model, short, sequences, token_budget=50)
    for sequence, table in zip(sequences, tables, strict=True):
        for index, letter in enumerate(sequence):
            if letter == "X":
                assert np.isnan(table[index]).all()
                continue
            batch = PROCESSOR(chains=[dataclasses.replace(short, sequence=sequence)])
            batch["input_ids"][0, index + 1] = PROCESSOR.tokenizer.mask_token_id
            likelihoods = model(**batch).logits[0, index + 1, LETTERS].double().log_softmax(dim=-1)
            assert table[index, 1] == pytest.approx(float(likelihoods[AMINO_ACIDS.index(letter)]), abs=1e-4)
    for number, table in enumerate(tables[:3]):
        assert designs.pseudo_scores[number] == pytest.approx(-table[:6, 1].mean(), abs=1e-4)
        assert designs.global_scores[number] == pytest.approx(-np.nanmean(table[:, 0]), abs=1e-4)
    assert designs.native_pseudo_score == pytest.approx(-np.nanmean(tables[3][:6, 1]), abs=1e-4)
    assert designs.native_global_score == pytest.approx(-np.nanmean(tables[3][:, 0]), abs=1e-4)
    assert np.isnan(design(model, short, num_samples=1).pseudo_scores).all()
    with pytest.raises(ValueError, match="1ORC_A has 20 residues, and a sequence 3 letters"):
        score_sequences(model, short, ["MKV"])


def test_unknown_residues(model, chain):
    """X gets a letter where there are coordinates, stays X where there are none, and counts in no recovery."""
    sequence = "X" * 10 + chain.sequence[10:]
    designs = design(model, dataclasses.replace(chain, sequence=sequence), num_samples=2)
    seen = chain.observed.any(axis=1)
    for each in designs.sequences:
        assert {each[index] == "X" for index in range(10) if seen[index]} <= {False}
        assert {each[index] for index in range(10) if not seen[index]} <= {"X"}
    nothing_known = design(model, dataclasses.replace(chain, sequence="X" * 71), num_samples=2)
    assert np.isnan(nothing_known.recoveries).all() and np.isnan(nothing_known.native_score)
    assert np.isfinite(nothing_known.scores).all() and np.isfinite(nothing_known.global_scores).all()


# --- what conditions a design ----------------------------------------------------------------------------------------


def turned(chain: Chain, rng) -> Chain:
    """In another frame."""
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix[:, 0] *= np.linalg.det(matrix)
    coords = chain.coords @ matrix.T + rng.normal(size=3) * 30
    return dataclasses.replace(chain, coords=coords.astype(np.float32))


@EVERY_ROUNDS
def test_the_frame_changes_nothing(model, chain, protease, rounds):
    """A model that reads frames, points and neighbors, and absolute coordinates nowhere."""
    rng = np.random.default_rng(0)
    for protein in (chain, protease) if rounds != "all" else (chain,):
        options = {"temperature": [0, 0.1, 1.0], "num_samples": 3, "rounds": rounds}
        designs, same = design(model, protein, **options), design(model, turned(protein, rng), **options)
        assert designs.sequences == same.sequences
        np.testing.assert_allclose(designs.scores, same.scores, atol=1e-3)


def test_a_partner_matters_and_only_where_it_is(protease):
    """The partner taken away, and 500 Å away.

    Two ways lead from one chain to another. Neighbors are near, since each chain has more residues than a residue has
    neighbors; attention has no end, above all that of `<cls>`, which has no place. So a model without attention designs
    a chain with its partner far away as alone; one with attention does not, quite: coordformer-1M-pdb gives 97 of 99
    letters of this chain alike at temperature 0.
    """
    model, length = make_model(**FRAMES | {"num_neighbors": 24}), 99
    alone = dataclasses.replace(protease.chains[0], id=protease.id)
    moved = protease.coords + np.float32(500) * (protease.chain_index == 1)[:, None, None]
    far = dataclasses.replace(protease, coords=moved)

    def designed(protein: Chain) -> tuple[list[str], np.ndarray]:
        chains = None if protein is alone else "A"
        designs = design(model, protein, chains_to_design=chains, temperature=[0, 0.3], num_samples=4, rounds=1)
        return [sequence[:length] for sequence in designs.sequences], designs.log_probabilities[:length]

    def spread(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(np.exp(one) - np.exp(other)).mean())

    (with_partner, near), (without, expected) = designed(protease), designed(alone)
    assert with_partner != without and spread(near, expected) > 0.001
    with torch.no_grad():
        for layer in model.base_model.esm.encoder.layer:
            attention = layer.attention.self
            for weights in (*attention.value.parameters(), attention.output_points.weight):
                weights.zero_()
    (with_partner, near), (without, expected), (far_away, distant) = map(designed, (protease, alone, far))
    assert with_partner != without == far_away
    np.testing.assert_allclose(distant, expected, atol=1e-4)


def test_kept_letters_condition_the_rest(model, chain):
    one = design(model, chain, redesigned_residues="A20-A30", temperature=0, num_samples=1)
    letters = list(chain.sequence)
    letters[35] = "W"
    other = design(
        model, dataclasses.replace(chain, sequence="".join(letters)), redesigned_residues="A20-A30", temperature=0,
        num_samples=1,
    )  # fmt: skip
    assert np.abs(one.log_probabilities - other.log_probabilities).max() > 0.01


def test_the_shipped_model_finds_much_of_a_native_sequence(chain):
    """A model that was trained, on a chain as deposited."""
    model = CoordformerForMaskedLM.from_pretrained("hub_cards/coordformer-1M-pdb", dtype=torch.float32)
    designs = design(model, chain, rounds=1)
    assert designs.recoveries.mean() > 0.25 and designs.scores.mean() < designs.native_score


# --- what is unusable ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed_residues": "A99"}, "Residues 'A99': chain A has no residue A99, its residues are 1 to 66"),
        ({"redesigned_residues": "B10"}, "Residues 'B10': there is no chain B, only 'A'; write it like A1."),
        ({"fixed_residues": "A1", "redesigned_residues": "A2"}, "Give `fixed_residues` or `redesigned_residues`, not"),
        ({"chains_to_design": ["A", "Z"]}, "`chains_to_design` names Z; 1ORC_A has A"),
        ({"redesigned_residues": "A1-A3"}, None),
        ({"fixed_residues": "A"}, "1ORC_A: nothing is left to design"),
        ({"omit_aa": "CB"}, "`omit_aa` has B; letters are among ACDEFGHIKLMNPQRSTVWY"),
        ({"omit_aa": AMINO_ACIDS}, "1ORC_A: no letter is left for A3; omit fewer"),
        ({"bias_aa": {"J": 1.0}}, "`bias_aa` has J;"),
        ({"bias_aa": {"A": "high"}}, "The bias_aa of A is 'high'; give a number"),
        ({"bias_aa": {"A": np.inf}}, "The bias_aa of A is inf; give a number"),
        ({"bias_aa": 3}, "`bias_aa` is 3; give names with values"),
        ({"omit_per_residue": {"A12": 5}}, "`omit_per_residue` has 5; write letters"),
        ({"omit_per_residue": {"A99": "C"}}, "chain A has no residue A99"),
        ({"bias_per_residue": {"A12": 3.0}}, "`bias_per_residue of A12` is 3.0; give names with values"),
        ({"bias_per_residue": {"A12": {"W": "x"}}}, "The bias_per_residue of W at A12 is 'x'"),
        ({"pssm": np.zeros((70, 20))}, r"`pssm` has shape \(70, 20\); \(71, 20\) is right"),
        ({"pssm": np.full((71, 20), np.nan)}, "`pssm` has NaN or inf"),
        ({"symmetry_residues": "A10,A11 A11,A12"}, "1ORC_A: A11 is tied twice"),
        ({"symmetry_residues": "A10,A10"}, "is tied twice; name each residue once"),
        ({"symmetry_residues": "A10-A12,A20-A21"}, "A10-A12,A20-A21 ties 3 and 2 residues; give ranges of one length"),
        ({"symmetry_residues": "A10,A99"}, "chain A has no residue A99"),
        ({"symmetry_residues": "A10,A20", "fixed_residues": "A10"}, "A10, A20 some are designed and some kept"),
        ({"symmetry_residues": "A10,A20", "symmetry_weights": "1"}, "has other groups than `symmetry_residues`"),
        ({"symmetry_residues": "A10,A20", "symmetry_weights": "1,b"}, "`symmetry_weights` is '1,b'; write numbers"),
        ({"symmetry_residues": "A10,A20", "symmetry_weights": "1,-1"}, "weights are from 0 on, and not all 0"),
        ({"symmetry_residues": "A10,A20", "symmetry_weights": "0,0"}, "weights are from 0 on, and not all 0"),
        ({"symmetry_weights": "1,1"}, "`symmetry_weights` goes with `symmetry_residues`; give both"),
        ({"homo_oligomer": True}, "`homo_oligomer` needs several chains of one length"),
        ({"temperature": -0.1}, "`temperature` is -0.1; give numbers from 0 on"),
        ({"temperature": [0.1, np.nan]}, "`temperature` is .*; give numbers from 0 on"),
        ({"temperature": []}, "`temperature` is ..; give numbers from 0 on"),
        ({"num_samples": 0}, "`num_samples` is 0; it must be at least 1"),
        ({"rounds": 0}, "`rounds` is 0; give a number from 1 on, or 'all'"),
        ({"rounds": "many"}, "`rounds` is 'many'; give a number"),
        ({"seed": -1}, "`seed` is -1; it must be at least 0"),
        ({"token_budget": 0}, "`token_budget` is 0; it must be at least 1"),
        ({"numbering": "pdb"}, "`numbering` is 'pdb'; choose one of"),
    ],
)
def test_unusable_options_are_named(model, chain, options, message):
    if message is None:  # nothing of these is observed but A3
        assert np.flatnonzero(plan_design(chain, **options).designed).tolist() == [2]
        return
    with pytest.raises(ValueError, match=message) as caught:
        design(model, chain, **options)
    assert "\n" not in str(caught.value)


def test_tied_residues_of_which_nothing_is_left(protease):
    omit = {"A10": "ACDEFGHIKL", "B10": "MNPQRSTVWY"}
    with pytest.raises(ValueError, match="1HVR: no letter is left for A10 and those tied to it; omit fewer"):
        plan_design(protease, omit_per_residue=omit, symmetry_residues="A10,B10")


def test_a_task_comes_without_its_options(model, chain):
    with pytest.raises(ValueError, match=r"Give `task`, or its options \(omit_aa\), not both"):
        design(model, chain, plan_design(chain), omit_aa="C")


def test_absolute_positions_limit_a_design(chain):
    model = make_model(position_embedding_type="absolute", max_position_embeddings=34)
    with pytest.raises(ValueError, match="1ORC_A has 71 residues, the model has positions for 30; cut it"):
        design(model, chain)
    assert len(design(model, part(chain, 0, 30), num_samples=1).sequences[0]) == 30
