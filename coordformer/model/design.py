# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Sequences for a backbone, drawn from a masked language model that reads its structure.

The residues that are to be designed are masked; all others keep their letters and condition them. A letter is drawn
with P(aa) = softmax((logits + bias) / temperature), over the 20 amino acids.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .chain import AMINO_ACIDS, Chain, split_by_chain
from .configuration_coordformer import check_noise_level
from .coordinates import placed_in
from .predict import model_processor
from .processing_coordformer import CoordformerProcessor, letter_ids
from .residues import ResidueNumbers
from .windows import cut_window, longest_window

ROUNDS = 1
"""Rounds of `design` unless others are asked for; chosen by measurement, see examples/design."""
NOISE_LEVEL = 0.2
"""Å, what `design` tells a model of coordinates unless another is given."""


@dataclass
class DesignTask:
    """What is to be designed of a protein.

    Attributes:
        designed: bool (L,), the residues that get new letters.
        bias: (L, 20), nats that are added to logits, in the order of `AMINO_ACIDS`; -inf for letters that are left out.
        tied: groups of residues, as indices, that get one letter; every designed residue is in one group.
        weights: of each group those of its residues in the mean of their logits, which add up to 1.
    """

    designed: np.ndarray
    bias: np.ndarray
    tied: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)


@dataclass
class Designs:
    """Designed sequences of one protein.

    Scores are mean negative log-likelihoods in nats at temperature 1 without bias, lower is better: over the designed
    residues with all of these masked, and `global` over all residues with all masked. One pass serves all sequences.

    Attributes:
        id, native: of the protein; its letters, one after another.
        chain_lengths: residues of each of its chains.
        designed: bool (L,).
        sequences: L letters each.
        temperatures, samples: of each sequence its temperature, and its number at that temperature, from 1.
        scores, global_scores, recoveries: (sequences,); recovery is the share of designed residues with a known native
            letter that have it, NaN where there are none.
        native_score, native_global_score: of the native letters, NaN where they are not known.
        log_probabilities: (L, 20), nats, of each residue with the designed ones masked, without bias.
        biased: (temperatures, L, 20), probabilities that the first round draws from; NaN where nothing is designed.
        pseudo_scores: (sequences,), mean negative pseudo-log-likelihood of the designed residues, each masked alone in
            the whole sequence; and of the native one, `native_pseudo_score`. NaN unless `design` was told to rescore.
    """

    id: str
    native: str
    chain_lengths: tuple[int, ...]
    designed: np.ndarray
    sequences: list[str]
    temperatures: list[float]
    samples: list[int]
    scores: np.ndarray
    global_scores: np.ndarray
    recoveries: np.ndarray
    native_score: float
    native_global_score: float
    log_probabilities: np.ndarray
    biased: np.ndarray
    pseudo_scores: np.ndarray
    native_pseudo_score: float

    def split(self, sequence: str) -> list[str]:
        """The chains of a sequence."""
        return split_by_chain(sequence, self.chain_lengths)


def plan_design(
    protein: Chain, *, fixed_residues: str | None = None, redesigned_residues: str | None = None,
    chains_to_design: Sequence[str] | None = None, omit_aa: str = "", bias_aa: Mapping[str, float] | None = None,
    omit_per_residue: Mapping[str, str] | None = None,
    bias_per_residue: Mapping[str, Mapping[str, float]] | None = None,
    symmetry_residues: str | None = None, symmetry_weights: str | None = None, homo_oligomer: bool = False,
    pssm: np.ndarray | None = None, numbering: str | None = None, placed: np.ndarray | None = None,
) -> DesignTask:  # fmt: skip
    """What is to be designed of a chain or complex, as users of ProteinMPNN and LigandMPNN write it.

    Args:
        protein: a chain or complex.
        fixed_residues, redesigned_residues: such as `"A10-A20 B52A"`, see `ResidueNumbers.select`; one of them at most.
        chains_to_design: names of chains; the others are kept.
        omit_aa: letters that never appear, such as `"CM"`.
        bias_aa: nats by letter.
        omit_per_residue, bias_per_residue: the same by residue: `{"A12": "CM"}`, `{"A12": {"W": 3.0}}`.
        symmetry_residues: groups of residues that get one letter, `"A1,B1 A2,B2"`; of ranges of one length one after
            another, `"A1-A9,B1-B9"`.
        symmetry_weights: of these, `"0.5,0.5 0.8,0.2"`; equal by default.
        homo_oligomer: all chains get one sequence; they are of one length. What is fixed or chosen in one of them is in
            all, and a residue that was observed in any is designed in all.
        pssm: (L, 20), nats that are added, in the order of `AMINO_ACIDS`.
        numbering: `"file"` or `"sequence"`, see `residues.choose_numbering`.
        placed: bool (L,), residues that the model reads as observed, see `coordinates.placed_in`; by default those with
            any atom.

    Raises:
        ValueError: an argument is unusable; the message names it, the value and the fix. Or nothing is left to design:
            residues that were not observed are kept.
    """
    residues, length = ResidueNumbers(protein, numbering=numbering), len(protein)
    designed: Any = np.ones(length, dtype=bool)
    if fixed_residues is not None and redesigned_residues is not None:
        raise ValueError("Give `fixed_residues` or `redesigned_residues`, not both.")
    if chains_to_design is not None:
        wanted = [chains_to_design] if isinstance(chains_to_design, str) else list(chains_to_design)
        if odd := [name for name in wanted if name not in residues.chain_names]:
            raise ValueError(
                f"`chains_to_design` names {', '.join(odd)}; {protein.id} has {', '.join(residues.chain_names)}."
            )
        designed &= np.isin(np.array(residues.chain_names)[residues.chain_index], wanted)
    if fixed_residues is not None:
        designed[residues.select(fixed_residues)] = False
    if redesigned_residues is not None:
        designed &= np.isin(np.arange(length), residues.select(redesigned_residues))
    observed: Any = protein.observed.any(axis=1) if placed is None else placed
    if homo_oligomer:  # what is said of a residue of one chain holds in all
        copies = _copies(protein, residues)
        chosen = designed[copies]
        alike = chosen.all(axis=1) if fixed_residues is not None else chosen.any(axis=1)
        designed[copies] = (alike & observed[copies].any(axis=1))[:, None]
    else:
        designed &= observed
    if not designed.any():
        raise ValueError(
            f"{protein.id}: nothing is left to design; residues without coordinates are kept, and so are those that "
            "`fixed_residues`, `redesigned_residues` or `chains_to_design` leave out."
        )
    bias = np.zeros((length, len(AMINO_ACIDS)))
    if pssm is not None:
        pssm = np.asarray(pssm, dtype=np.float64)
        if pssm.shape != bias.shape:
            raise ValueError(f"{protein.id}: `pssm` has shape {pssm.shape}; {bias.shape} is right.")
        if not (pssm < np.inf).all():
            raise ValueError(f"{protein.id}: `pssm` has NaN or inf in it; give nats, -inf for what is left out.")
        bias += pssm
    for letter, value in _mapping(bias_aa, "bias_aa").items():
        bias[:, _letters(letter, "bias_aa")] += _number(value, f"bias_aa of {letter}")
    bias[:, _letters(omit_aa, "omit_aa")] = -np.inf
    for name, values in _mapping(bias_per_residue, "bias_per_residue").items():
        for letter, value in _mapping(values, f"bias_per_residue of {name}").items():
            nats = _number(value, f"bias_per_residue of {letter} at {name}")
            bias[residues.find(name), _letters(letter, "bias_per_residue")] += nats
    for name, letters in _mapping(omit_per_residue, "omit_per_residue").items():
        bias[residues.find(name), _letters(letters, "omit_per_residue")] = -np.inf
    if (barred := designed & np.isneginf(bias).all(axis=1)).any():
        raise ValueError(f"{protein.id}: no letter is left for {residues.name(int(barred.argmax()))}; omit fewer.")
    task = DesignTask(designed, bias)
    _tie(task, protein, residues, observed, symmetry_residues, symmetry_weights, homo_oligomer)
    return task


def _mapping(values: Any, option: str) -> Mapping[str, Any]:
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"`{option}` is {values!r}; give names with values, as {{'W': 3.0}} or {{'A12': ...}}.")
    return values or {}


def _letters(text: Any, option: str) -> list[int]:
    if not isinstance(text, str):
        raise ValueError(f"`{option}` has {text!r}; write letters among {AMINO_ACIDS}, such as 'CM'.")
    if odd := sorted(set(text) - set(AMINO_ACIDS)):
        raise ValueError(f"`{option}` has {', '.join(odd)}; letters are among {AMINO_ACIDS}.")
    return [AMINO_ACIDS.index(letter) for letter in text]


def _number(value: Any, what: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError(f"The {what} is {value!r}; give a number of nats.")


def _copies(protein: Chain, residues: ResidueNumbers) -> np.ndarray:
    """Of each residue of a chain its copies in all: (residues, chains)."""
    lengths = residues.chain_lengths
    if len(lengths) < 2 or len(set(lengths)) > 1:
        raise ValueError(
            f"{protein.id}: `homo_oligomer` needs several chains of one length, and they have {lengths}; tie "
            "residues by `symmetry_residues`."
        )
    return np.arange(len(protein)).reshape(len(lengths), -1).T


def _tie(
    task: DesignTask, protein: Chain, residues: ResidueNumbers, observed: np.ndarray, symmetry, weights,
    homo_oligomer: bool,
) -> None:  # fmt: skip
    """Make the groups of residues that get one letter."""
    groups: list[list[int]] = []
    shares: list[list[float]] = []
    if symmetry is not None:
        if homo_oligomer:
            raise ValueError("Give `symmetry_residues` or `homo_oligomer`, not both.")
        lengths: list[int] = []
        for group in symmetry.split():
            members = [residues.select(name) for name in group.split(",")]
            if len(set(map(len, members))) > 1:
                sizes = " and ".join(str(len(each)) for each in members)
                raise ValueError(f"{protein.id}: {group} ties {sizes} residues; give ranges of one length.")
            groups += map(list, zip(*members, strict=True))
            lengths.append(len(members[0]))
        try:
            written = [[float(share) for share in group.split(",")] for group in weights.split()] if weights else []
        except ValueError:
            raise ValueError(f"`symmetry_weights` is {weights!r}; write numbers, such as 0.5,0.5 0.8,0.2.") from None
        if len(written) == len(lengths):  # those of a range are of all its residues
            shares = [share for share, count in zip(written, lengths, strict=True) for _ in range(count)]
        if written and list(map(len, shares)) != list(map(len, groups)):
            raise ValueError(
                "`symmetry_weights` has other groups than `symmetry_residues`; give a weight for each residue."
            )
    elif weights is not None:
        raise ValueError("`symmetry_weights` goes with `symmetry_residues`; give both.")
    if homo_oligomer:
        groups = _copies(protein, residues).tolist()
        shares = observed[np.array(groups)].astype(float).tolist()
    seen: set[int] = set()
    for group in groups:
        if twice := seen.intersection(group) or len(set(group)) < len(group):
            what = residues.name(min(twice)) if isinstance(twice, set) else ", ".join(map(residues.name, group))
            raise ValueError(f"{protein.id}: {what} is tied twice; name each residue once.")
        seen.update(group)
        if len(set(task.designed[group].tolist())) > 1:
            names = ", ".join(map(residues.name, group))
            raise ValueError(
                f"{protein.id}: of the tied residues {names} some are designed and some kept; free or keep all."
            )
    for number, group in enumerate(groups):
        if not task.designed[group[0]]:
            continue
        if np.isneginf(task.bias[group]).any(axis=0).all():
            raise ValueError(
                f"{protein.id}: no letter is left for {residues.name(group[0])} and those tied to it; omit fewer."
            )
        share = np.array(shares[number] if shares else [1.0] * len(group))
        if not 0 < share.sum() < math.inf or (share < 0).any():
            raise ValueError(f"`symmetry_weights` has {shares[number]}; weights are from 0 on, and not all 0.")
        task.tied.append(np.array(group))
        task.weights.append(share / share.sum())
    for index in np.flatnonzero(task.designed).tolist():
        if index not in seen:
            task.tied.append(np.array([index]))
            task.weights.append(np.ones(1))


@torch.no_grad()
def design(
    model: Any, protein: Chain, task: DesignTask | None = None, *, processor: Any = None, num_samples: int = 8,
    temperature: float | Iterable[float] = 0.1, seed: int = 0, rounds: int | str | None = None,
    rescore: bool = False, noise_level: float | None = None, token_budget: int = 8192, **options: Any,
) -> Designs:  # fmt: skip
    """Design sequences for a chain or complex.

    Args:
        model: a masked-LM Coordformer.
        protein: what `read_chains` or `read_complex` returns.
        task: of `plan_design`; or give its `options` here.
        processor: the model's; the default has ESM-2's vocabulary.
        num_samples: sequences at each temperature.
        temperature: one or several; 0 takes the likeliest letter.
        seed: of all draws; with the id, the temperature and the number of a sequence it decides it, whatever else is
            designed beside it.
        rounds: 1 draws all residues at once, each by itself; N draws all in each round, keeps those it is surest of, an
            Nth, and draws the others again; `"all"` draws one residue after another in random order. Default: `ROUNDS`.
        rescore: also score by pseudo-likelihood, which takes a row for each designed residue of each sequence.
        noise_level: standard deviation of noise on the coordinates, Å, that a model with `config.noise_conditioning` is
            told. Default: `NOISE_LEVEL`, since a backbone to design for has no traces of a sequence.
        token_budget: tokens of a batch.

    Raises:
        ValueError: an argument is unusable.

    Examples:
        >>> from coordformer import CoordformerForMaskedLM, design, read_chains
        >>> model = CoordformerForMaskedLM.from_pretrained("hub_cards/coordformer-1M-pdb").eval()
        >>> designs = design(model, read_chains("tests/data/structures/1orc.pdb.gz")[0], num_samples=2, omit_aa="C")
        >>> len(designs.sequences), "C" in designs.sequences[0]
        (2, False)
    """
    if task is None:
        task = plan_design(protein, placed=placed_in(protein, model), **options)
    elif options:
        raise ValueError(f"Give `task`, or its options ({', '.join(options)}), not both.")
    temperatures, rounds = check_drawing(num_samples, temperature, seed, rounds)
    if noise_level is None and model.config.noise_conditioning:
        noise_level = NOISE_LEVEL
    passes = _Passes(model, processor, protein, token_budget, noise_level)
    places, length = np.flatnonzero(task.designed), len(protein)

    # One pass with the designed residues masked and one with all, which score every sequence.
    tokens = np.repeat(passes.tokens[None], 2, axis=0)
    tokens[0, places] = tokens[1, :] = passes.mask
    masked = passes(tokens)
    log_probabilities = _normalized(masked)
    native = np.array([AMINO_ACIDS.find(letter) for letter in protein.sequence])  # -1: X

    def score(letters: np.ndarray, row: int, inside: np.ndarray) -> float:
        known = inside[letters[inside] >= 0]
        return float(-log_probabilities[row, known, letters[known]].mean()) if len(known) else math.nan

    drawn = [
        letters
        for each in temperatures
        for letters in _draw(passes, protein.id, task, each, num_samples, seed, rounds, masked[0])
    ]
    full = [np.where(task.designed, letters, native) for letters in drawn]
    known = places[native[places] >= 0]
    recoveries = [float((letters[known] == native[known]).mean()) if len(known) else math.nan for letters in full]
    biased = np.full((len(temperatures), length, len(AMINO_ACIDS)), np.nan)
    for number, each in enumerate(temperatures):
        shares = _probabilities(_group_means(masked[0] + task.bias, task, np.arange(len(task.tied))), each)
        for group, tied in enumerate(task.tied):
            biased[number, tied] = shares[group]
    everything = np.arange(length)
    pseudo: dict[bytes, float] = {}  # sequences may be equal
    for letters in [*full, native] if rescore else ():
        inside = places[letters[places] >= 0]
        if letters.tobytes() not in pseudo:
            likelihoods = passes.pseudo_likelihoods(letters, inside)
            pseudo[letters.tobytes()] = float(-likelihoods.mean()) if len(inside) else math.nan
    return Designs(
        protein.id,
        protein.sequence,
        getattr(protein, "chain_lengths", None) or (length,),
        task.designed,
        ["".join(AMINO_ACIDS[letter] if letter >= 0 else "X" for letter in letters) for letters in full],
        [each for each in temperatures for _ in range(num_samples)],
        [number for _ in temperatures for number in range(1, num_samples + 1)],
        np.array([score(letters, 0, places) for letters in full]),
        np.array([score(letters, 1, everything) for letters in full]),
        np.array(recoveries),
        score(native, 0, places),
        score(native, 1, everything),
        log_probabilities[0],
        biased,
        np.array([pseudo.get(letters.tobytes(), math.nan) for letters in full]),
        pseudo.get(native.tobytes(), math.nan),
    )


@torch.no_grad()
def score_sequences(
    model: Any, protein: Chain, sequences: Sequence[str], *, residues: Sequence[int] | None = None,
    processor: Any = None, token_budget: int = 8192, bar: Any = None,
) -> list[np.ndarray]:  # fmt: skip
    """Log-likelihoods of the residues of sequences on a structure.

    Args:
        sequences: L letters each, the 20 amino acids and X.
        residues: indices of those that are masked alone, by default all; the others are context.
        model, protein, processor, token_budget: as of `design`.
        bar: of tqdm; is moved on by each residue that was masked alone.

    Returns:
        For each sequence (L, 2), nats, NaN at X: with all residues masked, in one pass for all sequences, as
        `Designs.global_scores`; and each of `residues` masked alone, which takes a row for each, as
        `Designs.pseudo_scores`, NaN for the others.

    Raises:
        ValueError: a sequence has another length than the protein.
    """
    passes = _Passes(model, processor, protein, token_budget)
    one_pass = _normalized(passes(np.full((1, len(protein)), passes.mask)))[0]
    tables = []
    chosen = np.isin(np.arange(len(protein)), np.arange(len(protein)) if residues is None else residues)
    for sequence in sequences:
        if len(sequence) != len(protein):
            raise ValueError(f"{protein.id} has {len(protein)} residues, and a sequence {len(sequence)} letters.")
        letters = np.array([AMINO_ACIDS.find(letter) for letter in sequence])
        known, asked = np.flatnonzero(letters >= 0), np.flatnonzero(chosen & (letters >= 0))
        table = np.full((len(protein), 2), np.nan)
        table[known, 0] = one_pass[known, letters[known]]
        table[asked, 1] = passes.pseudo_likelihoods(letters, asked, bar)
        tables.append(table)
    return tables


def check_drawing(
    num_samples: int, temperature: float | Iterable[float], seed: int, rounds: int | str | None
) -> tuple[list[float], int | str]:
    """The temperatures, and the rounds that are meant.

    Raises:
        ValueError: an argument is unusable.
    """
    given: Any = temperature
    temperatures = np.atleast_1d(np.asarray(given if np.ndim(given) == 0 else list(given), dtype=float)).tolist()
    if not temperatures or any(not 0 <= each < math.inf for each in temperatures):
        raise ValueError(f"`temperature` is {temperature}; give numbers from 0 on.")
    if num_samples < 1:
        raise ValueError(f"`num_samples` is {num_samples}; it must be at least 1.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; it must be at least 0.")
    rounds = ROUNDS if rounds is None else rounds
    if rounds != "all" and not (isinstance(rounds, int) and rounds >= 1):
        raise ValueError(f"`rounds` is {rounds!r}; give a number from 1 on, or 'all'.")
    return temperatures, rounds


class _Passes:
    """Passes of a model over one structure, whose features are computed once."""

    def __init__(self, model: Any, processor: Any, protein: Chain, token_budget: int, noise_level: float | None = None):
        length = len(protein)
        if (longest := longest_window(model.config, max(length, 2))) < length:
            raise ValueError(f"{protein.id} has {length} residues, the model has positions for {longest}; cut it.")
        if token_budget < 1:
            raise ValueError(f"`token_budget` is {token_budget}; it must be at least 1.")
        self.model, self.budget = model.eval(), token_budget
        processor = model_processor(model, (processor or CoordformerProcessor()).tokenizer)
        whole = {name: values[0].numpy() for name, values in processor(chains=[protein]).items()}
        batch = {
            name: torch.from_numpy(values)[None] for name, values in cut_window(whole, 0, length, model.config).items()
        }
        given: dict[str, torch.Tensor] = {
            name: batch[name].to(model.device) for name in ("input_ids", "position_ids", "chain_ids") if name in batch
        }
        self.positions = {name: given[name] for name in ("position_ids",) if name in given}
        if noise_level is not None:
            check_noise_level(noise_level)
            given["noise_level"] = torch.full(given["input_ids"].shape, float(noise_level), device=model.device)
        self.structure = model.base_model.encode_structure(batch["coords"].to(model.device), **given)
        self.ends = given["input_ids"][:, :1], given["input_ids"][:, -1:]
        self.tokens = batch["input_ids"][0, 1:-1].numpy()
        self.mask = processor.tokenizer.mask_token_id
        self.letters = np.array(list(letter_ids(processor.tokenizer).values()))

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (rows, L, 20), float64, of tokens (rows, L); equal rows are computed once."""
        tokens, copies = np.unique(tokens, axis=0, return_inverse=True)
        rows = max(1, self.budget // (tokens.shape[1] + 2))
        parts = [self._logits(tokens[start : start + rows])[:, 1:-1] for start in range(0, len(tokens), rows)]
        return np.concatenate(parts)[copies.reshape(-1)]

    def _logits(self, tokens: np.ndarray, **options: torch.Tensor) -> np.ndarray:
        """Of one batch, `<cls>` and `<eos>` included."""
        rows = torch.from_numpy(tokens).to(self.ends[0].device)
        first, last = (end.expand(len(rows), 1) for end in self.ends)
        given = {"input_ids": torch.cat((first, rows, last), dim=1), "structure": self.structure, **self.positions}
        logits = self.model(**given, **options).logits
        return logits[..., torch.from_numpy(self.letters)].double().cpu().numpy()

    def pseudo_likelihoods(self, letters: np.ndarray, places: np.ndarray, bar: Any = None) -> np.ndarray:
        """Log-likelihoods (places,), nats, of letters (L,), -1 for X, each masked alone, which a bar counts."""
        tokens = np.where(letters >= 0, self.letters[letters], self.tokens)
        if self.model.masks_each and len(places):
            row = torch.from_numpy(tokens)[None].to(self.ends[0].device)
            asked = torch.from_numpy(places + 1).to(row.device)
            input_ids = torch.cat((self.ends[0], row, self.ends[1]), dim=1)
            logits = self.model.predict_each_masked(input_ids, asked, self.structure)
            each = logits[:, torch.from_numpy(self.letters)].double().cpu().numpy()
            if bar is not None:
                bar.update(len(places))
            return _normalized(each)[np.arange(len(places)), letters[places]]
        found, size = np.empty(len(places)), max(1, self.budget // (len(tokens) + 2))
        for start in range(0, len(places), size):
            inside = places[start : start + size]
            rows, each = np.repeat(tokens[None], len(inside), axis=0), np.arange(len(inside))
            rows[each, inside] = self.mask
            kept = torch.from_numpy(inside[:, None] + 1).to(self.ends[0].device)  # <cls> is in front
            found[start : start + size] = _normalized(self._logits(rows, kept_tokens=kept)[:, 0])[each, letters[inside]]
            if bar is not None:
                bar.update(len(inside))
        return found


def _normalized(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits (..., 20)."""
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Of logits (..., 20); at temperature 0 the likeliest has 1."""
    if not temperature:
        return np.eye(logits.shape[-1])[logits.argmax(axis=-1)]
    shares = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return shares / shares.sum(axis=-1, keepdims=True)


def _draw(
    passes: _Passes, name: str, task: DesignTask, temperature: float, num_samples: int, seed: int, rounds: int | str,
    first: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Letters (samples, L) of the designed residues, -1 elsewhere; `first` (L, 20): logits with all of them masked."""
    key = [seed, zlib.crc32(name.encode()), round(1e6 * temperature)]
    generators = [np.random.default_rng([*key, number]) for number in range(num_samples)]
    count = len(task.tied)
    letters = np.full((num_samples, len(first)), -1)
    orders = np.stack([rng.permutation(count) for rng in generators])
    steps = count if rounds == "all" else min(int(rounds), count)
    logits = np.repeat(first[None], num_samples, axis=0)
    undrawn = np.ones((num_samples, count), dtype=bool)
    tokens = np.repeat(passes.tokens[None], num_samples, axis=0)
    tokens[:, task.designed] = passes.mask
    for step in range(steps):
        if step:
            logits = passes(tokens)
        left = count - round(count * (step + 1) / steps)  # groups that are drawn again
        for sample, rng in enumerate(generators):
            uniform = rng.random(count)
            groups = orders[sample, step : step + 1] if rounds == "all" else np.flatnonzero(undrawn[sample])
            mean = _group_means(logits[sample] + task.bias, task, groups)
            shares = _probabilities(mean, temperature)
            # Of rounding, the last sum may be less than 1.
            chosen = (shares.cumsum(axis=-1) < uniform[groups, None]).sum(axis=-1).clip(max=shares.shape[-1] - 1)
            chosen = np.where(shares[np.arange(len(groups)), chosen] > 0, chosen, shares.argmax(axis=-1))
            if rounds != "all" and left:
                sure = _probabilities(mean, 1.0)[np.arange(len(groups)), chosen]
                kept = np.argsort(-sure, kind="stable")[: len(groups) - left]
                groups, chosen = groups[kept], chosen[kept]
            for group, letter in zip(groups, chosen, strict=True):
                letters[sample, task.tied[group]] = letter
                tokens[sample, task.tied[group]] = passes.letters[letter]
            undrawn[sample, groups] = False
    return letters


def _group_means(logits: np.ndarray, task: DesignTask, groups: np.ndarray) -> np.ndarray:
    """Means (groups, 20) of biased logits (L, 20) over tied residues; what one of them omits is omitted."""
    means = np.empty((len(groups), logits.shape[-1]))
    for place, group in enumerate(groups):
        tied = logits[task.tied[group]]
        omitted = np.isneginf(tied).any(axis=0)
        means[place] = np.where(omitted, -np.inf, task.weights[group] @ np.where(omitted, 0, tied))
    return means


__all__ = ["DesignTask", "Designs", "check_drawing", "design", "plan_design", "score_sequences"]
