"""Distillation: the loss of `coordformer train --teachers`.

A student learns from the probabilities of larger or of several models beside the letters themselves (Hinton, Vinyals
and Dean 2015, arXiv 1503.02531). They say more of a residue than its letter does, so that gradients scatter less: a
model that is good already gets better in few updates of small batches.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, Trainer

from ..model.modeling_coordformer import IGNORED_LABEL
from ..model.packing import segment_numbers, segment_runs


def load_teachers(folders: Sequence[str], student: PreTrainedModel) -> list[PreTrainedModel]:
    """Teachers of a student, frozen, in evaluation mode and in float32.

    Args:
        folders: Hub names or folders of masked-LM Coordformers that read the student's atoms and tokens.

    Raises:
        ValueError: a teacher reads other atoms or tokens than the student.
        OSError: a teacher cannot be loaded.
    """
    teachers = []
    for folder in folders:
        teacher = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name in ("coordinate_atoms", "vocab_size"):
            theirs, ours = getattr(teacher.config, name, None), getattr(student.config, name)
            if theirs != ours:
                raise ValueError(
                    f"--teachers: {folder} has `{name}` {theirs}, the model that is trained {ours}; give a teacher "
                    "that reads what it reads."
                )
        teachers.append(teacher.requires_grad_(False))
    return teachers


def chain_numbers(inputs: dict[str, Tensor]) -> Tensor:
    """Number the chains of a batch from 0, (batch, sequence); of padding the numbers mean nothing."""
    tokens, ids = inputs["input_ids"], inputs.get("sequence_id")
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand_as(tokens)
    if ids is None:
        return rows
    mask = inputs.get("attention_mask")
    segments = segment_numbers(segment_runs(ids, mask), mask)
    return rows * (segments.max() + 1) + segments


def mean_of_teachers(log_probabilities: Tensor, labels: Tensor, chains: Tensor) -> Tensor:
    """Log-probabilities (n, vocabulary) of what is to be learned.

    The mean of the teachers' probabilities, of each chain with the weights that Bayes' rule gives to its teachers by
    how they predict all of its `labels`: a teacher that cannot read the chain's coordinates, as one of exact ones where
    they are noisy, does not count.

    Args:
        log_probabilities: (teachers, n, vocabulary).
        labels, chains: (n,), token ids and numbers of the chains from 0.
    """
    likelihoods = log_probabilities.gather(-1, labels.expand(len(log_probabilities), -1).unsqueeze(-1)).squeeze(-1)
    sums = likelihoods.new_zeros(len(likelihoods), int(chains.max()) + 1).index_add(1, chains, likelihoods)
    weights = sums.log_softmax(dim=0)[:, chains]
    return (log_probabilities + weights.unsqueeze(-1)).logsumexp(dim=0)


class DistillingTrainer(Trainer):
    """A `Trainer` whose loss in training is (1 - w) cross-entropy + w Kullback-Leibler divergence to the teachers.

    Args:
        teachers: of `load_teachers`; they read what the student reads.
        weight: w.
        temperature: by which the teachers' logits are divided; below 1 it makes good for label smoothing, with which
            ProteinMPNN was trained.
        arguments, options: of `Trainer`.
    """

    def __init__(
        self,
        *arguments: Any,
        teachers: Sequence[PreTrainedModel],
        weight: float,
        temperature: float = 1.0,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.teachers: list[Any] = [teacher.to(self.args.device) for teacher in teachers]  # type: ignore[arg-type]
        self.weight, self.temperature = weight, temperature

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            divergence = self._divergence(inputs, outputs["logits"], num_items_in_batch)
            loss = (1 - self.weight) * loss + self.weight * divergence
        return (loss, outputs) if return_outputs else loss

    def _divergence(self, inputs: dict[str, Any], logits: Tensor, num_items_in_batch: Any) -> Tensor:
        asked = inputs["labels"] != IGNORED_LABEL
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad(), self.accelerator.autocast():
            theirs = []
            for teacher in self.teachers:
                told = given if teacher.config.noise_conditioning else {**given, "noise_level": None}
                theirs.append(teacher(**told).logits[asked].float())
        known = (torch.stack(theirs) / self.temperature).log_softmax(dim=-1)
        wanted = mean_of_teachers(known, inputs["labels"][asked], chain_numbers(inputs)[asked])
        ours = logits[asked].float().log_softmax(dim=-1)
        total = (wanted.exp() * (wanted - ours)).sum()
        if num_items_in_batch is None:
            return total / asked.sum().clamp(min=1)
        # As `Trainer` scales the other part.
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
