"""What only a GPU shows: kernels that the CPU has not, and steps that never wait for the device."""

import numpy as np
import pytest
import torch
from conftest import make_model, pack_rows, random_chain
from torch.nn.attention import SDPBackend, sdpa_kernel

from coordformer import build_tokenizer
from coordformer.data.collator import CoordformerDataCollator
from coordformer.training.muon import MuonAdamW

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def to_cuda(batch):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}


@pytest.mark.parametrize("fields", [{}, {"hidden_size": 64, "num_attention_heads": 2}], ids=["head 12", "head 32"])
def test_the_kernel_agrees_with_a_mask(fields):
    """bfloat16: outputs and gradients as near to those of sdpa with a block mask as two roundings allow."""
    batch = to_cuda(pack_rows([random_chain(n) for n in (70, 3, 41)], padding=5))
    labels = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape, device="cuda") < 0.5, -100)
    results = []
    for attention in ("sdpa", "varlen"):
        torch.manual_seed(0)
        model = make_model(attention=attention, **fields).cuda().to(torch.bfloat16)
        output = model(**batch, labels=labels)
        output.loss.backward()
        gradient = torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])
        results.append((output.logits.float(), gradient))
    for left, right in zip(*results, strict=True):
        assert (left - right).norm() < 0.02 * left.norm()


@pytest.mark.parametrize(("num_qk_points", "num_v_points"), [(3, 3), (4, 4), (4, 8), (5, 2)])
def test_points_attend_by_a_kernel_that_keeps_no_pair(num_qk_points, num_v_points):
    """It takes heads whose size is a multiple of four alone, which the features of points need not be."""
    batch = to_cuda(pack_rows([random_chain(n) for n in (70, 3, 41)], padding=5))
    torch.manual_seed(0)
    fields = {"num_qk_points": num_qk_points, "num_v_points": num_v_points, "num_neighbors": 6, "message_gating": True}
    model = make_model(coordinate_embedding="local_frame", attention="sdpa", **fields).cuda()
    results = []
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        model.zero_grad()
        with sdpa_kernel(kernel):
            logits = model(**batch).logits
            logits.square().sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results.append((logits.detach(), gradient))
    for left, right in zip(*results, strict=True):
        assert (left - right).norm() < 1e-4 * left.norm()


def test_muon_moves_matrices_as_torchs_does():
    """In bfloat16 on both sides, but in other kernels."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape, device="cuda") for shape in ((64, 32), (64, 32), (32, 64))]
    ours = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    groups = [{"params": ours, "weight_decay": 0.1}, {"params": [torch.nn.Parameter(torch.zeros(1, device="cuda"))]}]
    one = MuonAdamW(groups, lr=0.1)
    two = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for left, right in zip(ours, theirs, strict=True):
        left.grad = torch.randn_like(left)
        right.grad = left.grad.clone()
    one.step()
    two.step()
    for start, left, right in zip(matrices, ours, theirs, strict=True):
        assert (left - right).norm() < 0.02 * (right - start).norm()


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
def test_a_step_never_waits_for_the_device(attention):
    rows = [{"id": str(n), "sequence": "MKV" * n, "coords": np.random.randn(9 * n), "epoch": 0, "packed_length": 512}
            for n in (30, 110)]  # fmt: skip
    batch = to_cuda(CoordformerDataCollator(build_tokenizer(), noise=1.0)(rows))
    items = (batch["labels"] != -100).sum()
    model = make_model(attention=attention).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for step in range(3):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one allocates
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**batch, num_items_in_batch=items).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


def test_memory_of_packed_rows_grows_with_their_tokens():
    """Four times the tokens in chains of one length: at most five times the memory; with a mask it would be sixteen."""
    model = make_model(attention="varlen").cuda().to(torch.bfloat16)
    peaks = []
    for chains in (64, 256):
        batch = to_cuda(pack_rows([random_chain(126) for _ in range(chains)]))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(**batch).logits.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 5 * peaks[0]
