"""Train with weights sharded by FSDP2 over the processes and with whole ones; started by test_distributed.py.

torchrun --nproc_per_node 2 sharded_update.py REPORT.json
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import make_model, pack_rows, random_chain
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import set_seed


def make_batches() -> list[dict[str, torch.Tensor]]:
    """A packed row for each process, with labels and rotations."""
    set_seed(1)
    batches = []
    for lengths in ((9, 14), (20, 5)):
        batch = pack_rows([random_chain(length) for length in lengths])
        batch["labels"] = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.7, -100)
        batch["rotations"] = torch.eye(3).roll(1, dims=0).expand(1, 2, 3, 3)
        batches.append(batch)
    return batches


def shard(model, mesh, **policy):
    for layer in model.coordformer.esm.encoder.layer:
        fully_shard(layer, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def train(model, batches, items, scale) -> list[float]:
    """Losses of three updates over the batches; `scale` undoes the mean that FSDP takes over the processes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            loss = model(**batch, num_items_in_batch=items).loss
            (loss * scale).backward()
            total += loss.detach()
        if scale != 1:
            dist.all_reduce(total)
        optimizer.step()
        losses.append(float(total))
    return losses


def compare(mesh, attention: str) -> dict:
    batches = make_batches()
    items = sum((batch["labels"] != -100).sum() for batch in batches)
    models = []
    for _ in range(2):
        set_seed(0)
        models.append(make_model(attention=attention).train())
    whole = train(models[0], batches, items, scale=1)
    sharded = train(shard(models[1], mesh), [batches[dist.get_rank()]], items, scale=dist.get_world_size())
    assert all(isinstance(parameter, DTensor) for parameter in models[1].parameters())
    differences = [
        (parameter.full_tensor() - other).abs().max()
        for parameter, other in zip(models[1].parameters(), models[0].parameters(), strict=True)
    ]
    return {"whole": whole, "sharded": sharded, "largest_difference": float(max(differences))}


def cast_to_bfloat16(mesh) -> dict:
    set_seed(0)
    row = random_chain(3, missing=0)
    row["coords"] = torch.tensor([[[0.0] * 3, [300.37, 0, 0], [-300.37, 0, 0], [0, 0, 0], [0.0] * 3]])
    row["labels"] = row["input_ids"]
    model = make_model()
    expected = float(model(**row).loss)
    shard(model, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    captured = {}
    embedding = model.coordformer.coordinate_embedding
    embedding.register_forward_hook(lambda _, inputs, output: captured.update(coords=inputs[0], embedded=output))
    model.coordformer.esm.encoder.layer[0].register_forward_hook(lambda *parts: captured.update(layer=parts[-1]))
    loss = float(model(**row).loss)
    coordinate = float(captured["coords"][0, 1, 0, 0])
    model(row["input_ids"], None, None, None, row["coords"])  # not by name
    assert float(captured["coords"][0, 1, 0, 0]) == coordinate
    inner = make_model("multi_label")
    fully_shard(inner.coordformer, mesh=mesh)
    fully_shard(inner, mesh=mesh)
    inner.coordformer.coordinate_embedding.register_forward_hook(
        lambda _, inputs, output: captured.update(nested=inputs[0])
    )
    inner(**{name: row[name] for name in ("input_ids", "coords")})
    model(**row, rotations=torch.eye(3).roll(1, dims=0).view(1, 1, 3, 3))
    return {
        "frame": frame_of_layer(mesh, row),
        "coordinate": coordinate,
        "nested": float(captured["nested"][0, 1, 0, 0]),
        "turned": captured["coords"][0, 1, 0].tolist(),
        "embedding_dtype": str(captured["embedded"].dtype),
        "layer_dtype": str(captured["layer"].dtype),
        "loss": loss,
        "loss_of_float32": expected,
    }


def frame_of_layer(mesh, row) -> float:
    """Where invariant point attention has the second residue, Å, in a sharded layer."""
    points = make_model(coordinate_embedding="local_frame", num_qk_points=2, num_neighbors=2)
    shard(points, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    frames = []
    points.coordformer.esm.encoder.layer[0].attention.self.register_forward_pre_hook(
        lambda _, arguments, keywords: frames.append(keywords["frames"]), with_kwargs=True
    )
    points(**row).loss.backward()
    return float(frames[0].translations[0, 1, 0]) * points.config.coordinate_scale


def main(output: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    report = {attention: compare(mesh, attention) for attention in ("sdpa", "varlen")}
    report["bfloat16"] = cast_to_bfloat16(mesh)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # threads of gloo can abort an interpreter that ends
