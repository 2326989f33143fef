"""`from_esm` gives a model that is ESM-2 until it learns to use coordinates; the paper's weights compute the same."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, make_esm, make_esm_batch, make_model, pad_rows, random_chain
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    EsmForMaskedLM,
    EsmModel,
    EsmTokenizer,
)

from coordformer import CoordformerForTokenClassification, build_tokenizer
from coordformer.data.rows import load_rows
from coordformer.inference.evaluate import evaluate
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.processing_coordformer import letter_ids
from coordformer.training.arguments import parse_arguments
from coordformer.training.conversion import (
    behind_esm,
    esm_tokenizer,
    from_esm,
    from_paper_state_dict,
    read_state_dict,
)
from coordformer.training.point_clouds import PointCloudAttention
from coordformer.training.train import train
from coordformer_command import main


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("coords", [True, False], ids=["with coords", "without coords"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"position_embedding_type": "absolute", "emb_layer_norm_before": True}, {"token_dropout": False}],
    ids=["esm2", "esm1b", "no token dropout"],
)
def test_equals_esm_at_first(fields, coords, attention):
    esm = make_esm(**fields, attn_implementation=attention)
    model = from_esm(esm)
    assert model.config._attn_implementation == attention
    batch = make_esm_batch()
    xyz = batch.pop("coords")
    expected = esm(**batch, output_hidden_states=True)
    actual = model(**batch, coords=xyz if coords else None, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert (actual.logits - expected.logits)[real].abs().max() < 5e-6
    assert len(actual.hidden_states) == len(expected.hidden_states) == 5
    for left, right in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert (left - right)[real].abs().max() < 5e-6


def test_coordinates_get_a_gradient():
    model = from_esm(make_esm())
    batch = make_esm_batch()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.coordformer.coordinate_embedding.weight.grad.abs().max() > 0


def test_reads_a_folder_and_keeps_dtype(tmp_path):
    esm = make_esm().to(torch.bfloat16)
    esm.save_pretrained(tmp_path)
    model = from_esm(tmp_path, coordinate_embedding="quadratic", coordinate_atoms=("N", "CA", "C"))
    assert model.dtype == torch.bfloat16
    assert model.coordformer.coordinate_embedding.weight.shape == (64, 15)
    assert model.config.token_dropout


def test_another_head_starts_from_the_saved_model(tmp_path):
    esm = make_esm()
    from_esm(esm).save_pretrained(tmp_path)
    model = CoordformerForTokenClassification.from_pretrained(tmp_path, num_labels=3)
    batch = make_esm_batch()
    expected = esm.esm(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    actual = model.coordformer(**batch).last_hidden_state
    assert (actual - expected)[batch["attention_mask"].bool()].abs().max() < 1e-5


def test_an_encoder_gets_a_new_head():
    esm = make_esm(EsmModel)
    model = from_esm(esm, lm_head="linear")
    batch = make_esm_batch()
    expected = esm(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    actual = model.coordformer(**batch).last_hidden_state
    assert (actual - expected)[batch["attention_mask"].bool()].abs().max() < 5e-6


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="BertModel cannot be converted"):
        from_esm(BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)))
    with pytest.raises(ValueError, match="coordinate_embeding: no field of CoordformerConfig"):
        from_esm(make_esm(), coordinate_embeding="quadratic")
    with pytest.raises(ValueError, match="overrides {'hidden_size': 32} do not fit"):
        from_esm(make_esm(), hidden_size=32)
    with pytest.raises(ValueError, match="overrides {'lm_head': 'linear'} do not fit.*lm_head.dense"):
        from_esm(make_esm(), lm_head="linear")


# --- vocabularies of ESM's that are not ESM-2's ---

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
# Each residue with a letter of its local structure; six nucleotides; one residue in an order of its own.
WITH_STRUCTURE = (*SPECIAL, *map("".join, product("ACDEFGHIKLMNPQRSTVWY#", "pynwrqhgdlvtmfsaeikc#")))
NUCLEOTIDES = (*SPECIAL[1:], *map("".join, product("ACGT", repeat=6)), *"ACGTN")
RESIDUES = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", *AMINO_ACIDS[::-1], "X", "<extra>")


def save_esm(folder: Path, vocabulary, tokenizer: str | None = "slow", **fields) -> EsmForMaskedLM:
    """An ESM of this vocabulary, with or without the tokenizer that goes with it."""
    ids = {f"{name}_token_id": vocabulary.index(f"<{name}>") for name in ("pad", "mask")}
    size = len(vocabulary) + len(vocabulary) % 2
    esm = make_esm(**{"vocab_size": size, **ids, "eos_token_id": vocabulary.index("<eos>"), **fields})
    esm.save_pretrained(folder)
    if tokenizer == "slow":  # as all ESMs on the Hub have it
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    elif tokenizer == "fast":
        build_tokenizer(vocabulary).save_pretrained(folder)
    return esm


@pytest.mark.parametrize("vocabulary", [WITH_STRUCTURE, NUCLEOTIDES], ids=["446", "4105"])
def test_vocabularies_without_a_token_for_each_amino_acid_are_refused(vocabulary, tmp_path, capsys):
    number = {446: "446", 4105: "4,105"}[len(vocabulary)]
    eos = {} if vocabulary is WITH_STRUCTURE else {"eos_token_id": None}
    for name, tokenizer, message in (
        ("none", None, f"none has {number[:-1]}[0-9] tokens, where ESM-2 has 33, and no tokenizer that says which"),
        ("own", "slow", "own has [0-9,]+ tokens, none of them for .* of the 20 amino acids; only a model with a"),
    ):
        esm = save_esm(tmp_path / name, vocabulary, tokenizer, **eos)
        assert main(["convert", str(tmp_path / name), str(tmp_path / "out"), "--kind", "esm"]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coordformer: ")]
        assert re.search(message, line) and not (tmp_path / "out").exists()
        with pytest.raises(ValueError, match=message):
            from_esm(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            behind_esm(tmp_path / name, **SMALL)
        with pytest.raises(ValueError, match=f"EsmForMaskedLM has {number[:-1]}[0-9] tokens, where ESM-2 has 33; give"):
            from_esm(esm)


@pytest.mark.parametrize("kind", ["slow", "fast"])
def test_a_vocabulary_of_single_residues_is_taken_with_its_tokenizer(kind, tmp_path):
    """It lies beside the model, and all that names residues by tokens goes by it."""
    esm = save_esm(tmp_path / "esm", RESIDUES, kind)
    assert main(["convert", str(tmp_path / "esm"), str(tmp_path / "out"), "--kind", "esm"]) == 0
    model, processor = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / "out"),
        AutoProcessor.from_pretrained(tmp_path / "out"),
    )
    assert letter_ids(processor.tokenizer) == {letter: RESIDUES.index(letter) for letter in AMINO_ACIDS}
    special = {name: getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    assert special == {"bos": 1, "eos": 2, "pad": 0, "mask": 4} and processor.tokenizer.bos_token_id == 1
    theirs = AutoTokenizer.from_pretrained(tmp_path / "esm")
    sequence = "MKV<mask>LAXWYC"
    batch = processor(sequence)
    assert batch["input_ids"][0].tolist() == theirs(sequence)["input_ids"]
    torch.testing.assert_close(model(**batch).logits, esm(**theirs(sequence, return_tensors="pt")).logits)

    # Masked residues are counted by its letters: those of a model that is sure of W are right where W is.
    with torch.no_grad():
        model.lm_head.decoder.bias[RESIDUES.index("W")] = 100.0
    model.save_pretrained(tmp_path / "out")
    report = evaluate(
        tmp_path / "out", CHAINS, split="valid", protocols=("masked15",), num_mask_samples=1, progress=False
    )
    assert set(letter for letter, share in report["masked15"]["recovery_by_residue"].items() if share) == {"W"}


def test_training_starts_from_a_vocabulary_of_its_own(tmp_path):
    save_esm(tmp_path / "esm", RESIDUES)
    small = ["--data", str(CHAINS), "--max_steps", "1", "--max_length", "20", "--use_cpu", "--report_to", "none"]
    behind = ["--sequence_encoder", "esm", "--lm_head", "linear", "--hidden_size", "40"]
    for name, start in {"from": ["--init_from", "esm"], "behind": behind, "again": ["--init_from", "from"]}.items():
        start[1] = str(tmp_path / start[1])
        train(*parse_arguments([*start, *small, "--output_dir", str(tmp_path / name)]))
        vocabulary = AutoProcessor.from_pretrained(tmp_path / name).tokenizer.get_vocab()
        assert vocabulary == {token: number for number, token in enumerate(RESIDUES)}
        config = AutoModelForMaskedLM.from_pretrained(tmp_path / name).config
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.mask_token_id) == (1, 2, 0, 4)


def test_from_esm_takes_a_tokenizer_that_fits(tmp_path):
    esm = save_esm(tmp_path / "esm", RESIDUES)
    tokenizer = esm_tokenizer(tmp_path / "esm")
    with pytest.raises(
        ValueError, match=r"esm has a vocabulary of its own, of 27 tokens; give `tokenizer=esm_tokenizer"
    ):
        from_esm(tmp_path / "esm")
    for source in (esm, tmp_path / "esm"):
        assert from_esm(source, tokenizer=tokenizer).config.bos_token_id == 1
    for other, message in (
        (build_tokenizer(), r"<pad> is 1 to the tokenizer and 0 to the config \(pad_token_id\)"),
        (build_tokenizer((*RESIDUES, *"BZ")), "the tokenizer has the token id 28 and the model 28 tokens"),
        (build_tokenizer([*RESIDUES[:5], *AMINO_ACIDS[1:]]), "none of them for A; only a model with a token for each"),
    ):
        with pytest.raises(ValueError, match=message):
            from_esm(esm, tokenizer=other)
    # ESM-2's own, in a table that was filled up, is none of its own.
    assert from_esm(make_esm(vocab_size=40), tokenizer=build_tokenizer()).config.mask_token_id == 32


# --- a new model behind ESM-2 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [EsmForMaskedLM, EsmModel])
def test_the_esm_in_front_is_the_checkpoint_and_stays_as_it_is(cls, tmp_path):
    """Its states, no gradient, and no dropout, which its config has; one copy of it is saved, which comes back."""
    esm = make_esm(cls, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    esm.save_pretrained(tmp_path / "esm")
    model = behind_esm(tmp_path / "esm", **SMALL)
    assert model.config.sequence_encoder.hidden_dropout_prob == 0.3 and model.config.lm_head == "linear"
    batch = make_esm_batch()
    real = batch["attention_mask"].bool()
    expected = esm.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state

    def check(model):
        front = model.train().coordformer.sequence_encoder
        assert not any(module.training for module in front.modules()) and model.coordformer.esm.training
        states = front(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        assert (states - expected)[real].abs().max() < 5e-6
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (not parameter.requires_grad) == (".sequence_encoder." in name), name

    check(model)
    model.save_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert len(saved) == len(model.state_dict())
    assert sum(tensor.numel() for tensor in saved.values()) == sum(t.numel() for t in model.state_dict().values())
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    theirs = {name: tensor for name, tensor in esm.base_model.state_dict().items() if "encoder.layer" in name}
    ours = reloaded.coordformer.sequence_encoder.esm.state_dict()
    assert len(theirs) == 64 and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    check(reloaded)


def test_what_cannot_be_put_in_front_is_named(tmp_path):
    make_model().save_pretrained(tmp_path / "coordformer")
    BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "bert")
    make_esm().save_pretrained(tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["esm.encoder.layer.2.output.dense.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    for name, message in (
        ("coordformer", "coordformer holds a coordformer model; give an ESM-2 checkpoint"),
        ("bert", "bert holds a bert model; give an ESM-2 checkpoint"),
        ("part", "part lacks esm.encoder.layer.2.output.dense.weight; give a whole ESM-2 checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            behind_esm(tmp_path / name, **SMALL)
    with pytest.raises(ValueError, match="color: no field of CoordformerConfig"):
        behind_esm(tmp_path / "part", color="red")


# --- the paper's weights: a network of plain torch modules under the published names ----------------------------------

LETTERS = "ACDEFGHIKLMNPQRSTVWYX[]~_-"
ALIASES = {"<cls>": "[", "<eos>": "]", "<mask>": "~", "<pad>": "-", "<null_1>": "_"}
ESM_TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
COLUMN = {ALIASES.get(token, token): token_id for token_id, token in enumerate(ESM_TOKENS) if token != "-"}
COLUMNS = [COLUMN[letter] for letter in LETTERS]  # of ESM's vocabulary, in the paper's order


def make_encoder(width: int, heads: int, activation: str, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout=0.0, activation=activation, norm_first=True, batch_first=True
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def shake(model: nn.Module) -> nn.Module:
    """Weights of which each is felt in the outputs: biases, norms and layers of one origin differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


class PublishedModel(nn.Module):
    """Section 2 of the paper, in plain torch."""

    def __init__(self, width=48, heads=12, layers=3, longest=2000, with_coords=True):
        super().__init__()
        self.with_coords = with_coords
        self.embed = nn.Embedding(26, width)
        self.coords_embed = nn.Linear(4, width)
        self.positional_encoding = nn.Module()
        position, pair = np.arange(longest)[:, None], np.arange(width // 2)
        angle = position / 10000 ** (2 * pair / width)
        table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(longest, 1, width)
        self.positional_encoding.register_buffer("pos_embedding", torch.tensor(table, dtype=torch.float32))
        self.encoder = make_encoder(width, heads, "gelu", layers)
        self.norm = nn.LayerNorm(width)
        self.generator = nn.Linear(width, 26)

    def forward(self, letters, coords, missing, padding):
        """Letters (batch, length), centered coords, Å (batch, length, 3), which are missing, which are padding."""
        states = self.embed(letters)
        if self.with_coords:
            states = states + self.coords_embed(torch.cat([coords, missing.unsqueeze(-1).float()], dim=-1) / 16)
        states = states + self.positional_encoding.pos_embedding[: letters.shape[1], 0]
        return self.generator(self.norm(self.encoder(states, src_key_padding_mask=padding)))


def published_inputs(batch):
    """The paper's view of a padded batch: its letters, its centering, its (0, 0, 0, 1) where nothing was observed."""
    tokens = [[ALIASES.get(ESM_TOKENS[token], ESM_TOKENS[token]) for token in row] for row in batch["input_ids"]]
    letters = torch.tensor([[LETTERS.index(letter) for letter in row] for row in tokens])
    padding = batch["attention_mask"] == 0
    letters = letters.masked_fill(padding, LETTERS.index("-"))
    observed = ~batch["coords"].isnan().any(dim=-1) & ~padding
    coords = batch["coords"].clone()
    for row, seen in zip(coords, observed, strict=True):
        row -= row[seen].mean(dim=0)
    coords[~observed] = 0
    return letters, coords, ~observed & ~padding, padding


def protein_batch(lengths=(70, 41)):
    """Random proteins with missing residues, masks, an X, and padding."""
    batch = pad_rows([random_chain(length, missing=7) for length in lengths])
    batch["input_ids"][:, 3:9] = 32
    batch["input_ids"][0, 11] = 24
    return batch


@pytest.mark.parametrize("with_coords", [True, False])
def test_pretrained_computes_what_the_published_network_does(with_coords):
    published = shake(PublishedModel(with_coords=with_coords))
    overrides = {} if with_coords else {"coordinate_embedding": "none"}
    model = from_paper_state_dict(published.state_dict(), "pretrained", **overrides)
    batch = protein_batch()
    with torch.no_grad():
        expected, actual = published(*published_inputs(batch)), model(**batch).logits
        without = model(**batch | {"coords": None}).logits
    real = batch["attention_mask"].bool()
    assert expected.std() > 0.3
    assert (actual[..., COLUMNS] - expected)[real].abs().max() < 1e-5
    assert ((without - actual)[real].abs().max() > 0.1) == with_coords
    # A softmax over the whole vocabulary is the paper's: what it lacks has no share.
    probabilities = actual.softmax(dim=-1)
    assert (probabilities[..., COLUMNS] - expected.softmax(dim=-1))[real].abs().max() < 1e-6
    lacking = [column for column in range(33) if column not in COLUMNS]
    assert len(lacking) == 7 and probabilities[..., lacking].max() == 0


def test_letters_that_the_paper_lacks_are_read_as_unknown_residues():
    model = from_paper_state_dict(shake(PublishedModel(layers=1)).state_dict(), "pretrained")
    tokens = torch.tensor([[0, 5, 24, 20, 2]])
    expected = model(tokens).logits
    for token in "BUZO":
        assert torch.equal(model(tokens.where(tokens != 24, ESM_TOKENS.index(token))).logits, expected)


def test_number_of_heads_is_given_where_it_is_not_the_papers():
    published = shake(PublishedModel(width=40, heads=4))
    batch = protein_batch()
    real = batch["attention_mask"].bool()
    expected = published(*published_inputs(batch))
    model = from_paper_state_dict(published.state_dict(), "pretrained", num_attention_heads=4)
    assert (model(**batch).logits[..., COLUMNS] - expected)[real].abs().max() < 1e-5
    other = from_paper_state_dict(published.state_dict(), "pretrained", num_attention_heads=2)
    assert (other(**batch).logits[..., COLUMNS] - expected)[real].abs().max() > 1e-3


class PublishedPoints(nn.Module):
    """Section 1 of the paper, in plain torch."""

    def __init__(self, width=32, heads=4, dim=3):
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.encoder = make_encoder(width, heads, "relu", layers=2)
        self.pa = nn.Module()
        self.pa.key_map = nn.Linear(width, width // heads)
        self.pa.query_map = nn.Linear(width, width // heads)
        self.pa.norm = nn.LayerNorm(width)

    def forward(self, points):
        states = self.pa.norm(self.encoder(self.embed(points / 16)))
        logits = torch.einsum("bie,bje->bij", self.pa.query_map(states), self.pa.key_map(states))
        logits = logits / self.pa.key_map.out_features**0.5
        return torch.exp(logits - logits.amax(dim=-1, keepdim=True))


@pytest.mark.parametrize(("heads", "dim"), [(4, 3), (1, 2)])
def test_simulated_computes_what_the_published_network_does(heads, dim, tmp_path):
    published = shake(PublishedPoints(heads=heads, dim=dim))
    points = 200 * torch.rand(20, 5, dim)
    points = points - points.mean(dim=1, keepdim=True)
    model = from_paper_state_dict(published.state_dict(), "simulated")
    with torch.no_grad():
        expected, actual = published(points), model(points)
        assert (actual - expected).abs().max() < 1e-5 and expected.std() > 0.1
        model.save_pretrained(tmp_path)
        assert torch.equal(PointCloudAttention.from_pretrained(tmp_path)(points), actual)


class PublishedConditioned(nn.Module):
    """Section 5 of the paper, with the layers of Transformers' ESM-2 in the place of fair-esm's."""

    def __init__(self, with_coords=True):
        super().__init__()
        self.with_coords = with_coords
        self.front, self.layers = make_esm(), make_esm(EsmModel)
        self.layers.encoder.emb_layer_norm_after = nn.Identity()
        self.coords_embed, self.connector = nn.Linear(3, 64), nn.Linear(64, 64)
        self.norm, self.generator = nn.LayerNorm(64), nn.Linear(64, 33)

    def published_weights(self):
        """Under fair-esm's names, with what the published file holds and does not use."""
        weights = {}
        for module, prefix in ((self.front.esm, "esm_model."), (self.layers, "encoder.")):
            for name, tensor in module.state_dict().items():
                for ours, theirs in (
                    ("embeddings.word_embeddings", "embed_tokens"), ("encoder.layer.", "layers."),
                    ("attention.self.query", "self_attn.q_proj"), ("attention.self.key", "self_attn.k_proj"),
                    ("attention.self.value", "self_attn.v_proj"), ("attention.output.dense", "self_attn.out_proj"),
                    ("attention.LayerNorm", "self_attn_layer_norm"), ("intermediate.dense", "fc1"),
                    ("output.dense", "fc2"), (".LayerNorm", ".final_layer_norm"), ("encoder.emb_", "emb_"),
                ):  # fmt: skip
                    name = name.replace(ours, theirs)
                if "rotary" not in name and "pooler" not in name:
                    weights[prefix + name] = tensor
            for part, shape in (("dense.weight", (64, 64)), ("dense.bias", 64), ("layer_norm.weight", 64),
                                ("layer_norm.bias", 64), ("weight", (33, 64)), ("bias", 33)):  # fmt: skip
                weights[f"{prefix}lm_head.{part}"] = torch.randn(shape)
            for layer in range(4):
                weights[f"{prefix}layers.{layer}.self_attn.rot_emb.inv_freq"] = 10000 ** -(torch.arange(0, 16, 2) / 16)
            weights[f"{prefix}contact_head.regression.weight"] = torch.randn(1, 16)
            weights[f"{prefix}contact_head.regression.bias"] = torch.randn(1)
        for part in ("weight", "bias"):
            weights[f"encoder.emb_layer_norm_after.{part}"] = torch.randn(64)
        for name in ("coords_embed", "connector", "norm", "generator"):
            weights |= {f"{name}.{part}": tensor for part, tensor in getattr(self, name).state_dict().items()}
        return {name: tensor.detach() for name, tensor in weights.items()}

    def forward(self, tokens, mask, coords):
        """Tokens of ESM's vocabulary; centered coords, Å, zero where there are none."""
        states = self.connector(self.front.esm(tokens, mask).last_hidden_state)
        if self.with_coords:
            states = states + self.coords_embed(coords / 16)
        states = self.layers(inputs_embeds=states, attention_mask=mask).last_hidden_state
        return self.generator(self.norm(states))


@pytest.mark.parametrize("with_coords", [True, False])
def test_esm_conditioned_computes_what_the_published_network_does(with_coords, tmp_path):
    published = shake(PublishedConditioned(with_coords))
    overrides = {} if with_coords else {"coordinate_embedding": "none"}
    model = from_paper_state_dict(published.published_weights(), "esm_conditioned", **overrides)
    batch = protein_batch()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = published(batch["input_ids"], batch["attention_mask"], published_inputs(batch)[1])
        assert expected.std() > 0.1 and expected.isfinite().all()
        assert (model(**batch).logits - expected)[real].abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded(**batch).logits, model(**batch).logits)
    reloaded(**batch, labels=batch["input_ids"]).loss.backward()
    frozen = [name for name, parameter in reloaded.named_parameters() if parameter.grad is None]
    assert frozen and all(".sequence_encoder." in name for name in frozen)
    assert not any(parameter.requires_grad for parameter in reloaded.coordformer.sequence_encoder.parameters())


def test_a_tensor_too_few_too_many_or_of_another_shape_is_named():
    weights = shake(PublishedModel(layers=1)).state_dict()
    for fault, message in (
        ({"norm.bias": None}, "norm.bias is missing"),
        ({"head.bias": torch.zeros(3)}, "head.bias is unexpected"),
        ({"embed.weight": torch.zeros(33, 48)}, r"embed.weight has shape \(33, 48\) and not \(26, 48\)"),
        ({"encoder.layers.0.linear1.weight": None}, "no encoder.layers.0.linear1.weight with 2 axes"),
        ({"positional_encoding.pos_embedding": torch.zeros(2000, 48)}, "pos_embedding with 3 axes"),
        ({"positional_encoding.pos_embedding": torch.zeros(2000, 1, 48)}, "pos_embedding differs by 1 from"),
    ):
        faulty = {name: tensor for name, tensor in (weights | fault).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            from_paper_state_dict(faulty, "pretrained")
    with pytest.raises(ValueError, match="no pa.query_map.weight"):
        from_paper_state_dict(weights, "simulated")
    with pytest.raises(ValueError, match="embed.weight is missing.*and [0-9]+ more"):
        from_paper_state_dict({"encoder.layers.0.linear1.weight": torch.zeros(8, 4),
                               "positional_encoding.pos_embedding": torch.zeros(5, 1, 4)}, "pretrained")  # fmt: skip


def test_bad_arguments_of_the_papers_weights_are_named():
    weights = shake(PublishedModel(layers=1)).state_dict()
    with pytest.raises(ValueError, match="`kind` is 'esm'; choose one of pretrained, simulated"):
        from_paper_state_dict(weights, "esm")
    with pytest.raises(ValueError, match="num_heads: no field of CoordformerConfig"):
        from_paper_state_dict(weights, "pretrained", num_heads=4)
    with pytest.raises(ValueError, match="overrides {'coordinate_embedding': 'quadratic'} do not fit"):
        from_paper_state_dict(weights, "pretrained", coordinate_embedding="quadratic")
    with pytest.raises(ValueError, match="overrides {'coordinate_embedding': 'none'} do not fit"):
        from_paper_state_dict(PublishedPoints().state_dict(), "simulated", coordinate_embedding="none")


@pytest.mark.parametrize("content", ["module", "list", "checkpoint", "text", "empty"])
def test_a_file_that_is_no_state_dict_is_named(content, tmp_path):
    path = tmp_path / "weights.pt"
    if content in ("text", "empty"):
        path.write_text("no weights" * (content == "text"))
    else:
        weights = {"a": torch.zeros(1)}
        torch.save({"module": nn.Linear(1, 1), "list": [1], "checkpoint": {"state_dict": weights}}[content], path)
    with pytest.raises(ValueError, match=r"weights.pt (does not load with weights_only=True|holds (list|state_dict) )"):
        read_state_dict(path)


def test_damaged_safetensors_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("no weights")
    with pytest.raises(ValueError, match="weights.safetensors does not load"):
        read_state_dict(path)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_command_makes_a_folder_of_the_pretrained_model(suffix, tmp_path, capsys):
    published = shake(PublishedModel())
    source, output = tmp_path / f"weights.{suffix}", tmp_path / "new" / "model"
    (torch.save if suffix == "pt" else save_file)(published.state_dict(), source)
    assert main(["convert", str(source), str(output), "--kind", "pretrained", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "CoordformerForMaskedLM"
    model, processor = AutoModelForMaskedLM.from_pretrained(output), AutoProcessor.from_pretrained(output)
    batch = processor(chains=list(load_rows(CHAINS, "valid").select(range(2))))
    assert batch["coords"].isnan().any(dim=-1).sum() > 4
    with torch.no_grad():
        difference = model(**batch).logits[..., COLUMNS] - published(*published_inputs(batch))
    assert difference[batch["attention_mask"].bool()].abs().max() < 1e-5


def test_command_converts_the_other_kinds(tmp_path):
    torch.save(PublishedPoints().state_dict(), tmp_path / "points.pth")
    assert main(["convert", str(tmp_path / "points.pth"), str(tmp_path / "points"), "--kind", "simulated"]) == 0
    assert AutoModel.from_pretrained(tmp_path / "points").config.position_embedding_type == "none"
    torch.save(PublishedConditioned().published_weights(), tmp_path / "conditioned.pt")
    assert main(["convert", str(tmp_path / "conditioned.pt"), str(tmp_path / "c"), "--kind", "esm_conditioned"]) == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "c").config.sequence_encoder.num_hidden_layers == 4
    esm = make_esm()
    esm.save_pretrained(tmp_path / "esm")
    arguments = ["convert", str(tmp_path / "esm"), str(tmp_path / "out"), "--kind", "esm", "--without_coords"]
    assert main(arguments) == 0
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.config.coordinate_embedding == "none"
    batch = make_esm_batch()
    expected = esm(batch["input_ids"], batch["attention_mask"]).logits
    assert (model(**batch).logits - expected)[batch["attention_mask"].bool()].abs().max() < 1e-5


def test_command_names_what_is_wrong(tmp_path, capsys):
    weights = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, weights)
    for arguments, message in (
        ([tmp_path / "none.pt", tmp_path / "out"], "none.pt: no such file; check the name"),
        ([weights, tmp_path / "out"], "no encoder.layers.0.linear1.weight"),
        ([weights, weights], "weights.pt is a file; give another folder"),
    ):
        assert main(["convert", *map(str, arguments), "--kind", "pretrained"]) == 1
        assert message in capsys.readouterr().err
