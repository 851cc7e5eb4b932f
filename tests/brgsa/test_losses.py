"""The loss against hand-computed numbers, and the same over two processes as in one."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import free_port, run_ranks
from torch.nn.parallel import DistributedDataParallel

from brgsa.config import BankConfig, LossConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.losses import Supervision, brgsa_loss, info_nce, not_negatives
from brgsa.model import BrgSA, Embeddings
from brgsa.temperature import learned_scale
from brgsa.text import train_tokenizer

WORDS = ("a nodule", "fluid", "air", "no change", "a mass", "calcium", "a hernia", "a nodule")
TEXTS = [f"There is {word}." for word in WORDS]
SCANS = torch.tensor([0, 1, 2, 2, 3, 4, 1, 5])  # scan 1 lies on both workers, scan 2 on one
TEXT_CODES = torch.tensor([TEXTS.index(text) for text in TEXTS])  # first and last, on the two workers, read alike


def reference_info_nce(a: np.ndarray, b: np.ndarray, temperature: float, ignore: np.ndarray) -> float:
    """Written out pair by pair."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    total = 0.0
    for left, right in ((a, b), (b, a)):
        losses = []
        for i in range(len(left)):
            logits = {j: left[i] @ right[j] / temperature for j in range(len(right)) if not ignore[i, j]}
            losses.append(-logits[i] + math.log(sum(math.exp(value) for value in logits.values())))
        total += float(np.mean(losses))
    return total


def test_info_nce_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # cosines are the identity: each direction is log(1 + exp(-1/temperature))
    assert info_nce(a, a, 0.5).item() == pytest.approx(2 * math.log(1 + math.exp(-2.0)), rel=1e-6)


def test_info_nce_takes_both_directions() -> None:
    a, b = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # cosines / 0.5: volumes to texts (2, 1.2), (0, 1.6); texts to volumes (2, 0), (1.2, 1.6)
    rows = (math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(-1.6))) / 2
    columns = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(-0.4))) / 2
    assert info_nce(a, b, 0.5).item() == pytest.approx(rows + columns, rel=1e-6)


def test_lengths_do_not_matter_and_temperature_does() -> None:
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(info_nce(7 * a, b / 9, 0.1), info_nce(a, b, 0.1))
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    for temperature in (0.05, 0.1, 1.0):
        ways = (torch.log_softmax(cosines / temperature, axis).diagonal().mean() for axis in (0, 1))
        torch.testing.assert_close(info_nce(a, b, temperature), -sum(ways), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_loss() -> None:
    torch.manual_seed(2)
    parts = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    scans = torch.tensor([0, 1, 1, 2])

    def total(v: torch.Tensor, bridged_v: torch.Tensor, t: torch.Tensor, bridged_t: torch.Tensor) -> torch.Tensor:
        return brgsa_loss(Embeddings(v, bridged_v), Embeddings(t, bridged_t), scans, LossConfig()).total

    assert torch.autograd.gradcheck(total, tuple(parts))


def test_info_nce_against_pairs_written_out() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    ignore = not_negatives(torch.tensor([0, 1, 1, 2, 3, 0]))
    expected = reference_info_nce(a, b, 0.1, ignore.numpy())
    assert info_nce(torch.tensor(a), torch.tensor(b), 0.1, ignore).item() == pytest.approx(expected, rel=1e-9)


def test_reconstructions_of_a_scan_are_not_negatives() -> None:
    mask = not_negatives(torch.tensor([7, 8, 7]), torch.tensor([1, 1, 2]))
    assert mask.tolist() == [[False, True, True], [True, False, False], [True, False, False]]


def test_what_is_ignored_moves_nothing() -> None:
    # Texts along the axes, so that a volume's coordinates are its cosines; the angle turns the first volume from the
    # second text into a direction that no text has: cos(v0, t1) alone changes.
    texts = Embeddings(torch.eye(3, 4, dtype=torch.float64), None)
    rest = torch.nn.functional.normalize(torch.randn(2, 4, dtype=torch.float64), dim=-1)

    def loss_and_slope(scans: list[int], angle: float) -> tuple[float, float]:
        turn = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
        first = torch.stack([torch.tensor(0.6), 0.7 * turn.sin(), torch.tensor(0.3), 0.7 * turn.cos()])
        volumes = Embeddings(torch.cat([first[None], rest]), None)
        total = brgsa_loss(volumes, texts, torch.tensor(scans), LossConfig()).total
        return total.item(), torch.autograd.grad(total, turn)[0].item()

    one_scan, two_scans = [7, 7, 8], [7, 9, 8]
    (low, slope), (high, _) = (loss_and_slope(one_scan, angle) for angle in (0.3, 1.3))
    assert low == pytest.approx(high, rel=1e-12)
    assert slope == pytest.approx(0, abs=1e-12)
    assert abs(loss_and_slope(two_scans, 0.3)[1]) > 1e-3
    assert loss_and_slope(two_scans, 0.3)[0] > low


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.5), (2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.5, 0.25, 4.0)])
def test_total_is_the_weighted_sum(weights: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    volumes, texts = (Embeddings(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(2))
    config = LossConfig(plain=weights[0], bridged=weights[1], reconstruction=weights[2])
    losses = brgsa_loss(volumes, texts, torch.arange(4), config)
    none = np.zeros((4, 4), dtype=bool)
    v, bridged_v, t, bridged_t = (x.double().numpy() for x in (*volumes, *texts) if x is not None)
    plain, bridged = reference_info_nce(v, t, 0.1, none), reference_info_nce(bridged_v, bridged_t, 0.1, none)
    mse = ((v - bridged_v) ** 2).mean() + ((t - bridged_t) ** 2).mean()
    assert [losses.plain.item(), losses.bridged.item(), losses.reconstruction.item()] == pytest.approx(
        [plain, bridged, mse], rel=1e-5
    )
    assert losses.total.item() == pytest.approx(np.dot(weights, [plain, bridged, mse]), rel=1e-5)


def test_the_papers_weights() -> None:
    config = LossConfig()
    assert (config.plain, config.bridged, config.reconstruction, config.temperature) == (1.0, 1.0, 0.5, 0.1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"reconstruction": -1.0}, "reconstruction"),
        ({"plain": 0.0, "bridged": 0.0}, "nothing aligns"),
    ],
)
def test_losses_that_make_no_sense(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LossConfig(**settings)  # type: ignore[arg-type]


def test_without_a_bank_it_is_clip() -> None:
    volumes, texts = (Embeddings(torch.randn(4, 3), None) for _ in range(2))
    losses = brgsa_loss(volumes, texts, torch.arange(4), LossConfig())
    assert losses.total.item() == losses.plain.item() == info_nce(volumes.plain, texts.plain, 0.1).item()
    assert losses.bridged.item() == losses.reconstruction.item() == 0


def test_same_text_is_ignored_when_asked() -> None:
    torch.manual_seed(1)
    volumes, texts = (Embeddings(torch.randn(4, 3), None) for _ in range(2))
    codes, scans = torch.tensor([5, 5, 6, 7]), torch.tensor([0, 1, 2, 3])
    kept = brgsa_loss(volumes, texts, scans, LossConfig(), codes).total
    assert kept == info_nce(volumes.plain, texts.plain, 0.1)
    ignored = brgsa_loss(volumes, texts, scans, LossConfig(same_text="ignore"), codes).total
    as_one_scan = brgsa_loss(volumes, texts, torch.tensor([0, 0, 2, 3]), LossConfig()).total
    assert ignored == as_one_scan < kept
    with pytest.raises(ValueError, match="text_codes"):
        brgsa_loss(volumes, texts, scans, LossConfig(same_text="ignore"))


def test_a_batch_of_one_text_aligns_nothing_and_stays_finite() -> None:
    volumes, texts = (Embeddings(torch.randn(3, 4, requires_grad=True), None) for _ in range(2))
    same = torch.zeros(3, dtype=torch.int64)
    total = brgsa_loss(volumes, texts, torch.arange(3), LossConfig(same_text="ignore"), same).total
    total.backward()
    assert total.item() == 0
    assert volumes.plain.grad is not None
    assert volumes.plain.grad.abs().max() == 0


PROMPTS = ["There is a mass.", "There is a hernia.", "There is fluid."]
LABELS = torch.tensor([[0, 0, 1], [0, 1, 1], [math.nan] * 3, [1, 0, math.nan]] * 2)  # more known on one worker than
LABELS[7] = math.nan  # on the other

# One batch over two processes. A case is: bank or none, and the loss.
CASES = {
    "bank": (True, LossConfig()),
    "no bank": (False, LossConfig()),
    "same text ignored": (True, LossConfig(temperature=0.05, same_text="ignore")),
    "several positives, learned": (False, LossConfig(same_text="positives", learn_temperature=True)),
    "sigmoid, learned, and labels": (
        True,
        LossConfig(
            contrast="sigmoid",
            bias=-2.0,
            learn_temperature=True,
            learn_bias=True,
            same_text="positives",
            supervised=0.5,
        ),
    ),
    "labels": (True, LossConfig(supervised=2.0)),
}


def make_model(case: str) -> BrgSA:
    torch.manual_seed(0)
    bank, loss = CASES[case]
    config = ModelConfig(
        vision=VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16),
        text=TextConfig(width=16, depth=1, heads=2, layers_summed=1, max_tokens=16),
        bank=BankConfig(enabled=bank, size=6),
        embedding=10,
    )
    model = BrgSA(config, tokenizer=train_tokenizer(TEXTS * 2, 100))
    model.scale = learned_scale(loss)
    return model.eval()  # no dropout: the two runs must agree


def loss_and_gradients(model: torch.nn.Module, rows: slice, config: LossConfig) -> dict[str, torch.Tensor]:
    volumes = torch.randn(8, 1, 8, 8, 4, generator=torch.Generator().manual_seed(3))
    inner: BrgSA = getattr(model, "module", model)
    tokens = inner.text.tokenize(TEXTS[rows] + PROMPTS)
    seen, read = model(volumes[rows], tokens)
    texts, prompts = (
        Embeddings(read.plain[part], None if read.bridged is None else read.bridged[part])
        for part in (slice(-len(PROMPTS)), slice(-len(PROMPTS), None))
    )
    losses = brgsa_loss(
        seen,
        texts,
        SCANS[rows],
        config,
        TEXT_CODES[rows],
        learned=inner.scale,
        supervision=Supervision(prompts, LABELS[rows]) if config.supervised else None,
    )
    losses.total.backward()
    gradients = {n: p.grad.clone() for n, p in inner.named_parameters() if p.grad is not None}
    return {name: getattr(losses, name) for name in ("plain", "bridged", "supervised")} | {
        "loss": losses.total.detach(),
        **gradients,
    }


def worker(rank: int, port: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mine, results = slice(4 * rank, 4 * rank + 4), {}
    for name, (_, config) in CASES.items():
        model = make_model(name)
        # This worker's rows alone, though there is a group.
        alone = brgsa_loss(*everything(model, mine), SCANS[mine], config, TEXT_CODES[mine], local=True)
        results[name] = loss_and_gradients(DistributedDataParallel(model), mine, config)
        results[name]["alone"] = alone.total.detach()
        # The reconstruction error is each worker's own: its mean over the workers is the whole batch's.
        dist.all_reduce(results[name]["loss"])
        results[name]["loss"] /= 2
    torch.save(results, f"{out}.{rank}")
    dist.destroy_process_group()


@torch.no_grad()
def everything(model: BrgSA, rows: slice) -> tuple[Embeddings, Embeddings]:
    volumes = torch.randn(8, 1, 8, 8, 4, generator=torch.Generator().manual_seed(3))
    return model.encode_volumes(volumes[rows]), model.encode_texts(TEXTS[rows])


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """The losses and gradients of each of two gloo processes, case by case."""
    out = tmp_path_factory.mktemp("workers") / "results"
    run_ranks(worker, free_port(), str(out), world=2)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one_process(case: str, two_workers: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    _, config = CASES[case]
    whole = loss_and_gradients(make_model(case), slice(None), config)
    assert ("scale.log_temperature" in whole) == config.learn_temperature
    assert (whole["supervised"] > 0) == (config.supervised > 0)
    assert max(float(value.abs().max()) for name, value in whole.items() if "weight" in name) > 1e-2
    for rank, results in enumerate(two_workers):
        assert results[case].keys() - {"alone"} == whole.keys()
        for name, value in whole.items():
            tolerance = 1e-5 * max(1.0, float(value.abs().max()))  # gradients of tens are rounded more
            torch.testing.assert_close(results[case][name], value, atol=tolerance, rtol=0, msg=f"{name} on rank {rank}")
        mine = slice(4 * rank, 4 * rank + 4)
        expected = brgsa_loss(*everything(make_model(case), mine), SCANS[mine], config, TEXT_CODES[mine])
        torch.testing.assert_close(results[case]["alone"], expected.total, atol=1e-5, rtol=0)
        assert abs(results[case]["alone"] - whole["loss"]) > 1e-2  # or the gathering made no difference
