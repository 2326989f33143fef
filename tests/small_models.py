"""Small models, and batches for them."""

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from conftest import CHAINS, STRUCTURES
from safetensors.torch import load_file, save
from transformers import EsmConfig, EsmForMaskedLM

from coordformer import (
    CoordformerConfig,
    CoordformerForMaskedLM,
    CoordformerForSequenceClassification,
    CoordformerForTokenClassification,
    CoordformerModel,
)
from coordformer.model.modeling_coordformer import RENAMED_WEIGHTS

HEADS = {
    "base": (CoordformerModel, {}),
    "masked_lm": (CoordformerForMaskedLM, {}),
    "single_label": (CoordformerForSequenceClassification, {"num_labels": 4}),
    "multi_label": (
        CoordformerForSequenceClassification,
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    "regression": (CoordformerForSequenceClassification, {"num_labels": 1}),
    "token": (CoordformerForTokenClassification, {"num_labels": 4}),
}
ESM_2 = {
    "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "position_embedding_type": "rotary", "token_dropout": True,
    "hidden_dropout_prob": 0.1,
}  # fmt: skip
VARIANTS = {
    "paper": {"lm_head": "linear", "position_embedding_type": "sinusoidal"},
    "quadratic, three atoms": {"coordinate_embedding": "quadratic", "coordinate_atoms": ("N", "CA", "C")},
    "absolute, normalized": {"position_embedding_type": "absolute", "emb_layer_norm_before": True},
    "no positions": {"position_embedding_type": "none", "hidden_act": "relu"},
    "without structure": {"coordinate_embedding": "none"},
    "token dropout": {"token_dropout": True},
    "Gaussian start": {"coordinate_embedding": "quadratic", "coordinate_init": "gaussian"},
    "distance bias": {"coordinate_embedding": "none", "num_distance_bins": 8},
    "both, two atoms": {"num_distance_bins": 5, "coordinate_atoms": ("N", "CA")},
    "local": {"coordinate_embedding": "local_frame"},
    "points": {"coordinate_embedding": "none", "num_qk_points": 3},
    "more value points than keys": {"coordinate_embedding": "none", "num_qk_points": 1, "num_v_points": 6},
    "local and points, backbone": {
        "coordinate_embedding": "local_frame",
        "num_qk_points": 2,
        "coordinate_atoms": ("N", "CA", "C"),
    },
    "messages": {"coordinate_embedding": "local_frame", "num_qk_points": 2, "num_neighbors": 5},
    "gated messages": {
        "coordinate_embedding": "local_frame",
        "num_qk_points": 2,
        "num_neighbors": 5,
        "message_gating": True,
    },
    "message attention, edge updates": {
        "coordinate_embedding": "local_frame",
        "num_qk_points": 2,
        "num_neighbors": 5,
        "message_attention": True,
        "edge_updates": True,
    },
    "backbones, told of noise": {
        "coordinate_embedding": "local_frame",
        "num_qk_points": 2,
        "num_neighbors": 5,
        "coordinate_atoms": ("N", "CA", "C", "O"),
        "partial_backbones": True,
        "noise_conditioning": True,
    },
    "points without positions": {"num_qk_points": 2, "position_embedding_type": "none"},
    "ProteinMPNN": {"encoder_type": "proteinmpnn", "num_neighbors": 6},
    "behind ESM-2": {"sequence_encoder": ESM_2, "lm_head": "linear"},
}


def make_config(**fields) -> CoordformerConfig:
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return CoordformerConfig(**shape | fields)


def make_model(head: str = "masked_lm", attention: str = "sdpa", **fields):
    """A model whose weights are large enough that an error would show in the outputs."""
    cls, head_fields = HEADS[head]
    config = make_config(**head_fields | fields)
    config._attn_implementation = attention
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model


def random_chain(length: int, atoms: int = 1, missing: int = 2) -> dict[str, torch.Tensor]:
    """One row: tokens with <cls> and <eos>, and a random walk in Å with some unobserved residues."""
    tokens = torch.randint(4, 24, (1, length + 2))
    tokens[0, 0], tokens[0, -1] = 0, 2
    coords = torch.randn(1, length + 2, atoms, 3).cumsum(dim=1) * 3.8
    coords[0, 1 : 1 + missing] = torch.nan
    coords[0, [0, -1]] = torch.nan
    return {"input_ids": tokens, "coords": coords.squeeze(2) if atoms == 1 else coords}


def pad_rows(rows: list[dict[str, torch.Tensor]], left: bool = False) -> dict[str, torch.Tensor]:
    """A padded batch; the padding holds finite coordinates and random tokens, which must not matter."""
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {
        "input_ids": torch.randint(4, 24, (len(rows), length)),
        "coords": torch.randn(len(rows), length, *rows[0]["coords"].shape[2:]) * 50,
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
    }
    for index, row in enumerate(rows):
        n = row["input_ids"].shape[1]
        place = slice(length - n, length) if left else slice(0, n)
        batch["input_ids"][index, place] = row["input_ids"][0]
        batch["coords"][index, place] = row["coords"][0]
        batch["attention_mask"][index, place] = 1
    return batch


def pack_rows(rows: list[dict[str, torch.Tensor]], padding: int = 0) -> dict[str, torch.Tensor]:
    """One row with a segment per chain, and padding at its end."""
    batch = pad_rows([{name: torch.cat([row[name] for row in rows], dim=1) for name in rows[0]}])
    lengths = [row["input_ids"].shape[1] for row in rows]
    batch["sequence_id"] = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths)).unsqueeze(0)
    if padding:
        batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, padding), value=5)
        batch["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, padding))
        # The padding carries the id of the last chain: it must stay out all the same.
        batch["sequence_id"] = torch.nn.functional.pad(batch["sequence_id"], (0, padding), value=len(rows) - 1)
        extra = torch.full((1, padding, *batch["coords"].shape[2:]), 70.0)
        batch["coords"] = torch.cat([batch["coords"], extra], dim=1)
    return batch


def make_esm(cls=EsmForMaskedLM, **fields):
    shape = {
        "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "intermediate_size": 128, "position_embedding_type": "rotary", "token_dropout": True,
        "layer_norm_eps": 1e-5, "emb_layer_norm_before": False,
    }  # fmt: skip
    attention = fields.pop("attn_implementation", "sdpa")
    model = cls(EsmConfig(**shape | fields, attn_implementation=attention)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms, too
    return model


def make_esm_batch() -> dict[str, torch.Tensor]:
    batch = pad_rows([random_chain(40), random_chain(25)])
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"] == 1, 1)
    batch["input_ids"][0, 3:11] = 32  # masked, so that token dropout rescales
    return batch


def outputs_of(model, batch) -> torch.Tensor:
    output = model(**batch)
    return output.logits if "logits" in output else output.last_hidden_state


def make_labels(head: str, batch, chains: int) -> torch.Tensor:
    if head in ("masked_lm", "token"):
        labels = torch.randint(0, 4, batch["input_ids"].shape)
        return labels.masked_fill(torch.rand(labels.shape) < 0.7, -100)
    return {
        "single_label": torch.randint(0, 4, (chains,)),
        "multi_label": torch.randint(0, 2, (chains, 4)).float(),
        "regression": torch.randn(chains),
    }[head]


# SHA-256 of model.safetensors in the shipped folders of version 0.1.0.
OLD_WEIGHTS = {
    "coordformer-1M-pdb": "b7cb3ad3db8d88cc2fd5060f4a9b4ca83058498c3fe2981195ae4b986789af77",
    "coordformer-7M-pdb": "87bbbe5c2b01d2cc22f682a1a4d0c9b84c3f3ecee13680db62e12a1d1651bb9e",
}


@cache
def old_checkpoints() -> Path:
    """A copy of data/checkpoints whose shipped models have their weights: those of today under the names of 0.1.0.

    They are the files of then, byte for byte, which are not kept a second time.
    """
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(STRUCTURES.parent / "checkpoints", folder, dirs_exist_ok=True)
    for name, digest in OLD_WEIGHTS.items():
        weights = {}
        for key, tensor in load_file(CHAINS.parents[2] / "hub_cards" / name / "model.safetensors").items():
            for old, new in RENAMED_WEIGHTS.items():
                key = key.replace(new, old)
            weights[key] = tensor
        content = save(weights, {"format": "pt"})
        assert hashlib.sha256(content).hexdigest() == digest, name
        (folder / name / "model.safetensors").write_bytes(content)
    return folder


@torch.no_grad()
def train_adapter(adapted: torch.nn.Module) -> None:
    """As if it had been: a new adapter of PEFT is silent."""
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.normal_(std=0.1)
