"""Run two updates of every head with `Trainer` and save losses and weights; started by test_distributed.py.

[accelerate launch ...] one_update.py OUTPUT BATCH_SIZE ACCUMULATION_STEPS
"""

import json
import os
import sys
from pathlib import Path

import torch
from conftest import HEADS, make_model, pad_rows, random_chain
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments, set_seed


def make_examples(head: str) -> list[dict[str, torch.Tensor]]:
    """16 chains; micro-batches have different numbers of labels."""
    set_seed(1)
    examples = []
    for index in range(16):
        row = random_chain(4 + 3 * (index % 7))
        length = row["input_ids"].shape[1]
        if head in ("masked_lm", "token"):
            row["labels"] = torch.randint(0, 4, (1, length)).masked_fill(
                torch.rand(1, length) > 0.1 * (index % 5), -100
            )
        elif head == "multi_label":
            row["labels"] = torch.randint(0, 2, (1, 4)).float()
            row["labels"][0, : index % 4] = -100
        elif head == "single_label":
            row["labels"] = torch.tensor([-100 if index in (1, 2, 6) else index % 4])
        else:
            row["labels"] = torch.randn(1)
        examples.append(row)
    return examples


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = pad_rows([{name: row[name] for name in ("input_ids", "coords")} for row in rows])
    labels = [row["labels"] for row in rows]
    if labels[0].shape == rows[0]["input_ids"].shape:
        length = batch["input_ids"].shape[1]
        labels = [torch.nn.functional.pad(label, (0, length - label.shape[1]), value=-100) for label in labels]
    return batch | {"labels": torch.cat(labels)}


def main(output: Path, batch_size: int, accumulation_steps: int) -> None:
    losses = {}
    for head in HEADS:
        if head == "base":
            continue
        set_seed(0)
        model = make_model(head)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(output / "trainer"),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation_steps,
                train_sampling_strategy="sequential",
                max_steps=2,
                optim="sgd",
                learning_rate=0.05,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                remove_unused_columns=False,
                # Strict: a parameter without a gradient stops the run.
                ddp_find_unused_parameters=False,
            ),
            train_dataset=make_examples(head),
            data_collator=collate,
        )
        trainer.train()
        losses[head] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if trainer.is_world_process_zero():
            output.mkdir(parents=True, exist_ok=True)
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            save_file(weights, output / f"{head}.safetensors")
            (output / "losses.json").write_text(json.dumps({"processes": trainer.args.world_size, "losses": losses}))
        trainer.accelerator.free_memory()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stderr.flush()
    os._exit(0)  # threads of gloo can abort an interpreter that ends
