"""What a model learns from teachers: whose probabilities, and that it does."""

import json

import pytest
import torch
from conftest import CHAINS, make_model, pack_rows, pad_rows, random_chain
from transformers import AutoModelForMaskedLM, TrainingArguments

from coordformer.hub.card import training_facts
from coordformer.training.distillation import DistillingTrainer, chain_numbers, load_teachers, mean_of_teachers
from coordformer_command import main

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MASK = 32


def test_a_chain_learns_from_who_predicts_it():
    """Two chains, two teachers: one knows the first chain, the other one the second; of a third both know as much."""
    labels, chains = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    sure = torch.full((7, 3), 0.01).scatter(1, labels.unsqueeze(1), 0.98)
    wrong = torch.full((7, 3), 0.45).scatter(1, labels.unsqueeze(1), 0.10)
    first, second = sure.clone(), wrong.clone()
    first[3:6], second[3:6] = wrong[3:6], sure[3:6]
    first[6], second[6] = torch.tensor([0.5, 0.4, 0.1]), torch.tensor([0.5, 0.1, 0.4])
    found = mean_of_teachers(torch.stack((first, second)).log(), labels, chains).exp()
    share = 0.98**3 / (0.98**3 + 0.10**3)  # Bayes' rule
    torch.testing.assert_close(found[:6], share * sure[:6] + (1 - share) * wrong[:6])
    torch.testing.assert_close(found[6], torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(7))


def test_chains_of_packed_and_padded_rows():
    rows = [random_chain(length) for length in (5, 9, 3)]
    tokens = [row["input_ids"].shape[1] for row in rows]
    padded, packed = pad_rows(rows), pack_rows(rows, padding=2)
    numbers = chain_numbers(padded)[padded["attention_mask"].bool()]
    in_one_row = chain_numbers(packed)[0, : sum(tokens)]
    expected = torch.repeat_interleave(torch.arange(3), torch.tensor(tokens))
    assert numbers.tolist() == expected.tolist() == in_one_row.tolist()


def masked_row() -> dict[str, torch.Tensor]:
    row = random_chain(12)
    labels = torch.full_like(row["input_ids"], -100)
    labels[0, 3:9] = row["input_ids"][0, 3:9]
    row["input_ids"][0, 3:9] = MASK
    return row | {"labels": labels}


def make_trainer(student, teachers, tmp_path, weight, **options):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    return DistillingTrainer(model=student, args=args, teachers=teachers, weight=weight, **options)


def test_the_loss_is_a_share_of_both(tmp_path):
    """Of the divergence: by hand, zero from itself, and at another temperature; in evaluation none of it."""
    student, teacher, inputs = make_model(**SMALL).train(), make_model(**SMALL), masked_row()
    asked = inputs["labels"] != -100
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits[asked] for model in (student, teacher))
        cross_entropy = student(**inputs).loss
    kl = torch.nn.functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    warm = torch.nn.functional.kl_div(ours.log_softmax(-1), (theirs / 2).softmax(-1), reduction="batchmean")
    for weight in (0.0, 0.3, 1.0):
        found = make_trainer(student, [teacher], tmp_path, weight).compute_loss(student, dict(inputs))
        torch.testing.assert_close(found, (1 - weight) * cross_entropy + weight * kl)
    found = make_trainer(student, [teacher], tmp_path, 1.0, temperature=2.0).compute_loss(student, dict(inputs))
    torch.testing.assert_close(found, warm)
    # Of two micro-batches each has its share of all labels.
    part = make_trainer(student, [teacher], tmp_path, 0.3).compute_loss(student, dict(inputs), num_items_in_batch=24)
    torch.testing.assert_close(part, (0.7 * cross_entropy + 0.3 * kl) * int(asked.sum()) / 24)
    itself = make_trainer(student, [student], tmp_path, 1.0).compute_loss(student.train(), dict(inputs))
    assert abs(itself.item()) < 1e-5
    found = make_trainer(student, [teacher], tmp_path, 0.3).compute_loss(student.eval(), dict(inputs))
    torch.testing.assert_close(found, cross_entropy)


def test_the_command_gets_near_to_a_teacher(tmp_path):
    """With nothing else to learn from the divergence falls; packed rows, and the record names the teacher."""
    for name in ("teacher", "student"):
        make_model(**SMALL).save_pretrained(tmp_path / name)
    command = ["train", "--init_from", str(tmp_path / "student"), "--teachers", str(tmp_path / "teacher"), "--quiet"]
    command += ["--distillation_weight", "1", "--masking", "masked15", "--data", str(CHAINS), "--max_length", "60"]
    command += ["--output_dir", str(tmp_path / "run"), "--max_steps", "30", "--token_budget", "512", "--use_cpu"]
    command += ["--learning_rate", "3e-3", "--warmup_steps", "0", "--report_to", "none", "--logging_steps", "10"]
    assert main(command) == 0
    rows = [row.split(",") for row in (tmp_path / "run" / "log.csv").read_text().splitlines()]
    losses = [float(value) for _, metric, value in rows if metric == "loss"]
    assert losses[-1] < 0.1 * losses[0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["training"]["teachers"] == [
        str(tmp_path / "teacher")
    ]
    facts = training_facts(tmp_path / "run")
    assert facts["teachers"] == "teacher: 100 % of the loss is the divergence to them, temperature 1"
    assert facts["not recorded"] == "what student had been trained on"
    after, before = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict() for name in ("run", "teacher"))
    taught = load_teachers([str(tmp_path / "teacher")], make_model(**SMALL))[0].state_dict()
    assert all(torch.equal(values, taught[name]) for name, values in before.items())
    assert not all(torch.equal(values, before[name]) for name, values in after.items())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--masking", "paper"], "give --masking masked15, too"),
        (["--masking", "masked15", "--distillation_weight", "1.5"], "--distillation_weight is 1.5; it is a share"),
        (["--masking", "masked15", "--teacher_temperature", "0"], "--teacher_temperature is 0.0; it is above 0"),
        (["--masking", "masked15"], "has `coordinate_atoms` ('N', 'CA', 'C'), the model that is trained ('CA',); give"),
    ],
)
def test_what_cannot_teach_is_refused(options, message, tmp_path, capsys):
    make_model(**SMALL, coordinate_atoms=("N", "CA", "C")).save_pretrained(tmp_path / "teacher")
    make_model(**SMALL).save_pretrained(tmp_path / "student")
    command = ["train", "--init_from", str(tmp_path / "student"), "--teachers", str(tmp_path / "teacher"), "--use_cpu"]
    command += ["--data", str(CHAINS), "--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--report_to", "none"]
    assert main([*command, *options]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
