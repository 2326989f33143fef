"""Points: the closed form equals a Gaussian, and stacked training is the training of each model alone."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from coordformer import CoordformerConfig
from coordformer.training.point_clouds import PointCloudAttention

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "point_clouds"))
import point_clouds
import schedules
import stacks
from stacks import (
    Member,
    best_validation,
    gaussian_maps,
    learning_rates,
    make_structures,
    member_rotations,
    peak_rate,
    point_cloud_config,
    target_attention,
    train_stack,
    updates_to_reach,
)


def features(points: torch.Tensor) -> torch.Tensor:
    return torch.cat([points, points.square().sum(-1, keepdim=True), torch.ones(len(points), 1)], dim=-1)


# --- theory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_closed_form_maps_equal_the_gaussian(dim):
    points = 50 * torch.randn(12, dim, dtype=torch.float64)
    gaussian = torch.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / (2 * 30.0**2))
    query, key = gaussian_maps(dim, 30.0, softmax=False)
    assert query.shape == key.shape == (dim + 2, dim + 2)
    attention = ((features(points) @ query.T) @ (features(points) @ key.T).T).exp()
    torch.testing.assert_close(attention, gaussian, atol=1e-12, rtol=0)
    query, key = gaussian_maps(dim, 30.0, softmax=True)
    assert query.shape == key.shape == (dim + 1, dim + 2)
    attention = ((features(points) @ query.T) @ (features(points) @ key.T).T).softmax(dim=-1)
    torch.testing.assert_close(attention, gaussian / gaussian.sum(-1, keepdim=True), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_no_fewer_dimensions_would_do(dim):
    """The logits of many points have rank n + 2; up to a term of each row, n + 1."""
    points = torch.randn(40, dim, dtype=torch.float64)
    logits = -((points[:, None] - points[None]) ** 2).sum(-1)
    assert torch.linalg.matrix_rank(logits) == dim + 2
    # Against a first key, a term of the row is gone: what is left is a map to n + 1 dimensions.
    assert torch.linalg.matrix_rank(logits - logits[:, :1]) == dim + 1


def test_layer_norm_leaves_two_dimensions_less():
    """The image of LayerNorm over k features is a sphere of k - 2 dimensions, which is why k = n + 2 in setting a."""
    for size in (3, 4, 5, 6):
        point = torch.randn(size, dtype=torch.float64)
        norm = nn.LayerNorm(size, eps=0.0, elementwise_affine=False, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(norm, point)
        assert torch.linalg.matrix_rank(jacobian, atol=1e-9) == size - 2


# --- data ------------------------------------------------------------------------------------------------------------


def test_structures_are_centered_and_fill_the_cube():
    structures = make_structures(2000, dim=3, seed=1)
    assert structures.shape == (2000, 5, 3) and structures.mean(dim=1).abs().max() < 1e-4
    # Variance of a uniform number less that of the mean of five.
    assert structures.var().item() == pytest.approx(200**2 / 12 * 4 / 5, rel=0.02)
    assert torch.equal(structures, make_structures(2000, dim=3, seed=1))
    assert not torch.equal(structures, make_structures(2000, dim=3, seed=2))


@pytest.mark.parametrize("exponent", [0.5, 2.0, 4.0])
def test_target_by_hand(exponent):
    points = torch.tensor([[0.0, 0.0], [60.0, 80.0]])
    expected = math.exp(-(0.5**exponent))
    torch.testing.assert_close(target_attention(points, exponent), torch.tensor([[1, expected], [expected, 1]]))


def test_rotations_turn_the_members_own_dimensions_and_drop_the_others():
    members = [Member(dim=2), Member(dim=3), Member(dim=3, rotate=False), Member(dim=2)]
    matrices = member_rotations(members, 6, 4, torch.Generator().manual_seed(0))
    assert matrices.shape == (4, 6, 1, 4, 4)
    for member, matrix in zip(members, matrices[:, :, 0], strict=True):
        own = matrix[:, : member.dim, : member.dim]
        torch.testing.assert_close(own @ own.transpose(-1, -2), torch.eye(member.dim).expand_as(own), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.linalg.det(own), torch.ones(6), atol=1e-5, rtol=0)
        assert matrix.count_nonzero() == own.count_nonzero()
    assert torch.equal(matrices[0], matrices[3]) and not torch.equal(matrices[1], matrices[2])
    assert torch.equal(matrices[2, :, 0, :3, :3], torch.eye(3).expand(6, 3, 3))


# --- model -----------------------------------------------------------------------------------------------------------


def test_the_measured_head_by_hand():
    model = PointCloudAttention(point_cloud_config(16, 2), head_size=4)
    coords = make_structures(3)
    states = model.encoder(coords=coords).last_hidden_state
    logits = torch.einsum("bie,bje->bij", model.query(states), model.key(states)) / 2
    torch.testing.assert_close(model(coords, subtract_max=0.0), logits.exp())
    attention = model(coords)
    torch.testing.assert_close(attention.amax(-1), torch.ones(3, 5))
    torch.testing.assert_close(attention, (logits - logits.amax(-1, keepdim=True)).exp())


def test_one_feature_knows_nothing():
    """LayerNorm over one feature makes it a constant: the loss is that of a matrix of ones (paper, k = 1)."""
    structures = make_structures(64, dim=1)
    model = PointCloudAttention(point_cloud_config(1, 1, dim=1), head_size=1)
    torch.testing.assert_close(model(structures), torch.ones(64, 5, 5))
    many = make_structures(10_000, dim=1)
    assert (1 - target_attention(many)).mean().item() == pytest.approx(0.1116, rel=0.02)  # as published


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"coordinate_embedding": "quadratic", "coordinate_init": "gaussian", "coordinate_scale": 100},
        {"coordinate_embedding": "none", "num_distance_bins": 8, "coordinate_scale": 175},
    ],
    ids=["linear", "gaussian start", "distance bias"],
)
def test_permuting_the_points_permutes_the_matrix(fields):
    model = PointCloudAttention(point_cloud_config(32, 4, **fields), head_size=8)
    if model.bias is not None:
        nn.init.normal_(model.bias.weight, std=0.02)
    coords, order = make_structures(4), torch.randperm(5)
    expected = model(coords)[:, order][:, :, order]
    torch.testing.assert_close(model(coords[:, order]), expected, atol=1e-5, rtol=1e-4)


# --- training --------------------------------------------------------------------------------------------------------

CONFIG = point_cloud_config(16, 2)
STRUCTURES = make_structures(200)
SPLIT = (STRUCTURES[:160], STRUCTURES[160:])
SHORT = {"updates": 30, "warmup": 20, "validate_every": 10}


def train_alone(member: Member, updates: int, config: CoordformerConfig = CONFIG) -> list[float]:
    """The same by torch's own autograd on one model, written independently of the stack."""
    torch.manual_seed(member.seed)
    model = PointCloudAttention(config, 8)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    losses = []
    peak = 0.4 / 16**0.5 / 20**0.5
    for update in range(updates):
        if update % 10 == 0:
            generator = torch.Generator().manual_seed(update)
            turns = member_rotations([member], 160, 3, generator)[0].split(16)
        epoch, batch = divmod(update, 10)
        order = torch.randperm(160, generator=torch.Generator().manual_seed(epoch))[16 * batch : 16 * (batch + 1)]
        coords = SPLIT[0][order]
        turned = coords @ turns[update % 10].squeeze(1).transpose(-1, -2)
        attention = model(turned, subtract_max=float(member.subtract_max))
        loss = (attention - target_attention(coords, member.exponent)).abs().mean()
        optimizer.param_groups[0]["lr"] = peak * min((update + 1) / 20, (20 / (update + 1)) ** 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_stack_trains_each_model_as_if_alone():
    members = [Member(), Member(exponent=0.5, seed=3), Member(subtract_max=False, rotate=False, seed=1)]
    history = train_stack(CONFIG, 8, members, *SPLIT, **SHORT)
    assert [entry["update"] for entry in history] == [10, 20, 30]
    for number, member in enumerate(members):
        losses = train_alone(member, 30)
        for entry, start in zip(history, (0, 10, 20), strict=True):
            # Adam's first updates go by the sign of a gradient, so that rounding is felt.
            assert entry["train"][number] == pytest.approx(sum(losses[start : start + 10]) / 10, rel=1e-2)
    assert history[-1]["train"][0] < 0.7 * history[0]["train"][0]  # it learns


def test_a_stack_with_distance_biases_trains_each_model_as_if_alone():
    config = point_cloud_config(16, 2, coordinate_embedding="none", num_distance_bins=8, coordinate_scale=175)
    history = train_stack(config, 8, [Member(), Member(exponent=0.5)], *SPLIT, **SHORT)
    for number, member in enumerate((Member(), Member(exponent=0.5))):
        losses = train_alone(member, 30, config)
        assert [entry["train"][number] for entry in history] == pytest.approx(
            [sum(losses[start : start + 10]) / 10 for start in (0, 10, 20)], rel=1e-2
        )


def test_dimensions_beyond_a_members_own_do_not_matter():
    structures = make_structures(60, dim=4)
    other = structures.clone()
    other[..., 2:] = 7 * torch.randn(60, 5, 2)
    config = point_cloud_config(16, 2, dim=4)
    runs = [
        train_stack(config, 8, [Member(dim=2)], each[:40], each[40:], updates=5, warmup=5, validate_every=5)
        for each in (structures, other)
    ]
    assert runs[0][0]["valid"] == pytest.approx(runs[1][0]["valid"], rel=1e-4)


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    members = [Member(), Member(seed=1)]
    whole = train_stack(CONFIG, 8, members, *SPLIT, **SHORT)
    state = tmp_path / "state.pt"
    train_stack(CONFIG, 8, members, *SPLIT, **SHORT | {"updates": 20}, state=state)
    assert train_stack(CONFIG, 8, members, *SPLIT, **SHORT, state=state) == whole
    with pytest.raises(ValueError, match=r"state.pt belongs to a training with other settings; delete it"):
        train_stack(CONFIG, 8, members[:1], *SPLIT, **SHORT, state=state)


def test_averaged_weights_lie_between_the_first_and_the_last(monkeypatch):
    monkeypatch.setattr(stacks, "AVERAGING", 0.0)
    last = train_stack(CONFIG, 8, [Member()], *SPLIT, **SHORT)
    assert [entry["averaged"] for entry in last] == [entry["valid"] for entry in last]
    monkeypatch.setattr(stacks, "AVERAGING", 1.0)
    first = {entry["averaged"][0] for entry in train_stack(CONFIG, 8, [Member()], *SPLIT, **SHORT)}
    assert len(first) == 1 and first.pop() > 2 * last[-1]["valid"][0]


def test_the_authors_schedule_by_hand():
    """The published peak: 4e-4 at 4,000 updates for a width of 256; a quarter of the way up, twice as far down."""
    peak = 0.4 / 16 / 4000**0.5
    assert peak_rate(256) == pytest.approx(peak) and peak == pytest.approx(4e-4, rel=0.02)
    rates = learning_rates("inverse_sqrt", peak, 12_600)
    assert [rates(update) for update in (1000, 4000, 16000)] == pytest.approx([peak / 4, peak, peak / 2])


def test_other_schedules_by_hand():
    """Half-way between the warm-up and the end a quarter is left of a quadratic decay, a half of a linear one."""
    quadratic = learning_rates("polynomial", 4e-4, 12_000, power=2)
    assert [quadratic(update) for update in (1000, 4000, 8000)] == pytest.approx([1e-4, 4e-4, 1e-4], rel=1e-2)
    assert quadratic(12_000) < 1e-6
    assert learning_rates("linear", 4e-4, 12_000)(8000) == pytest.approx(2e-4)
    rates = schedules.RUNS["inverse_square"].rates()
    assert [rates(update) / peak_rate(256) for update in (1000, 4000, 8000)] == pytest.approx([0.25, 1, 0.25])


def test_the_rates_that_are_given_are_those_of_the_training():
    """Without any the weights stay."""
    still = train_stack(CONFIG, 8, [Member()], *SPLIT, **SHORT, rates=lambda update: 0.0)
    assert len({entry["valid"][0] for entry in still}) == 1


def test_schedules_may_share_their_warm_up_and_no_more(tmp_path):
    state, options = tmp_path / "state.pt", SHORT | {"warmup": 10}
    short, long = (learning_rates("polynomial", 1e-3, end, warmup=10, power=2) for end in (30, 60))
    train_stack(CONFIG, 8, [Member()], *SPLIT, **options | {"updates": 10}, rates=short, state=state)
    went_on = train_stack(CONFIG, 8, [Member()], *SPLIT, **options, rates=long, state=state)
    assert went_on == train_stack(CONFIG, 8, [Member()], *SPLIT, **options, rates=long)
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        train_stack(CONFIG, 8, [Member()], *SPLIT, **options, rates=short, state=state)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr_scheduler_type", "quadratic"], "quadratic is not a valid SchedulerType, please select one of"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "follows the loss; choose one that follows the updates"),
        (["--lr_scheduler_kwargs", '{"power": 2}'], "inverse_sqrt: .* unexpected keyword argument 'power'"),
    ],
)
def test_schedules_that_are_none_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["point_clouds.py", "--output", str(tmp_path), *words])
    with pytest.raises(SystemExit):
        point_clouds.main()
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_best_and_first_below():
    history = [{"update": u, "valid": [v], "averaged": [2 * v]} for u, v in ((10, 0.5), (20, 0.1), (30, 0.2))]
    assert best_validation(history, 0) == 0.1 and best_validation(history, 0, "averaged") == 0.2
    assert updates_to_reach(history, 0, 0.2) == 20 and updates_to_reach(history, 0, 0.01) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_structures(0), "`count` is 0; it must be at least 1"),
        (lambda: make_structures(2, dim=0), "`dim` is 0"),
        (lambda: gaussian_maps(3, 0.0, True), "`sigma` 0.0; give at least 1 dimension and a positive width"),
        (lambda: train_stack(CONFIG, 8, [], *SPLIT, updates=1), "Each member needs a dimension of 1 to 3"),
        (lambda: train_stack(CONFIG, 8, [Member(dim=4)], *SPLIT, updates=1), "dimension of 1 to 3; the members are"),
        (lambda: train_stack(CONFIG, 8, [Member()], *SPLIT, updates=0), "0 updates of 16 of 160 structures"),
        (
            lambda: train_stack(CONFIG, 8, [Member()], SPLIT[0][..., :2], SPLIT[1], updates=1),
            r"`train` has shape \(160, 5, 2\); \(count, points, 3\) is needed",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- results ---------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")


def test_a_loss_that_falls_as_a_power_is_followed_to_the_papers(tmp_path):
    """Half of what is left after 12,600 updates of 8 / t is reached after twice as many; the warm-up does not count."""
    losses = [{"experiment": "exponents", "exponent": 2, "update": update, "valid": 8 / update if update > 4000 else 9}
              for update in range(600, 12_601, 600)]  # fmt: skip
    row = {"experiment": "exponents", "exponent": 2, "updates": 12_600, "best": 8 / 12_600, "paper": 4 / 12_600}
    write_rows(tmp_path / "history.csv", [*losses, losses[0] | {"experiment": "augmentation", "valid": 1e-9}])
    write_rows(tmp_path / "results.csv", [row, row | {"experiment": "dimensions"}])
    assert schedules.by_exponent(tmp_path)[2:] == ["| 2 | t^-1.00 | 25,200 updates |"]


def test_the_table_of_the_page_is_as_measured():
    folder = Path(point_clouds.__file__).parent
    for table in (schedules.by_exponent, schedules.of_both_schedules):
        rows = table(folder / "results")
        assert len(rows) == 2 + len(point_clouds.EXPONENTS)
        for path in (folder / "README.md", folder / "results" / "schedules.md"):
            assert set(rows) <= set(path.read_text().splitlines())


def test_runs_are_reported_from_the_published_number_of_updates_on(tmp_path):
    """A longer run has a row after the published updates, too; its best losses are those of until then."""
    history = [
        {"update": update, "train": [1.0], "valid": [loss], "averaged": [loss / 2]}
        for update, loss in ((6300, 0.004), (12_600, 0.001), (18_900, 0.0008), (25_200, 0.0009))
    ]
    rows = schedules.collect({"inverse_sqrt": history, "polynomial": history[:2]}, tmp_path)
    assert [(row["run"], row["updates"], row["best"], row["updates_to_paper"]) for row in rows] == [
        ("inverse_sqrt", 12_600, 0.001, None),
        ("inverse_sqrt", 25_200, 0.0008, 18_900),
        ("polynomial", 12_600, 0.001, None),
    ]
    assert len((tmp_path / "schedules_history.csv").read_text().splitlines()) == 1 + 4 + 2
    assert '| `polynomial`, `{"power": 2}` | 12,600 | 0.00100 | 1.22 |' in schedules.markdown(rows)[-1]
