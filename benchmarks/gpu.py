"""The paper's training step on one GPU: a rendering of the reference's beside ours, in several ways.

    python benchmarks/gpu.py [--arms NAME,…] [--results FOLDER] [--smoke] [--json]

A step takes a batch of 64 int16 crops of 224×224×112 from pinned host memory, converts and augments it on the device,
encodes it with 3D ViT-B and BERT-base, takes the loss with the bank over all 64, and updates the weights. The data are
random; nothing is downloaded. Needs torch, numpy, transformers and `brgsa/` alone, and ends within 8 minutes on an H100.

First the two models are compared in float32: same weights, same embeddings, loss and gradients. Then each arm's step is
timed by device events (the median of STEPS steps after WARM_UP). Model FLOPs are three times a forward pass's, counted by
torch; what an arm computes twice does not count. MFU is their rate over the device's own rate in a large bfloat16 matrix
product. `--smoke` runs all of it at a small size on a CPU, where its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from card_results import options_of, write_result
from reference_model import ReferenceModel, reference_loss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brgsa.config import BankConfig, LossConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.losses import brgsa_loss
from brgsa.losses.micro_batches import backward_in_micro_batches
from brgsa.model import BrgSA, Embeddings
from brgsa.text import TextTower, Tokens, train_tokenizer
from brgsa.volumes.intensity import Intensity, unit_intensities
from brgsa.volumes.transfer import BatchCopier

ITEMS, EPOCHS = 25_692, 39  # CT-RATE's training scans, and the paper's epochs
WARM_UP, STEPS = 2, 10
SECONDS = 10.0  # of an arm's steps, after which five are enough
CLIP, ADAM = 0.25, {"lr": 5e-5, "betas": (0.5, 0.999), "weight_decay": 1e-6}
AUGMENTATION = {"scale": 0.1, "shift": 20.0, "noise": 20.0}  # HU


@dataclass(frozen=True)
class Size:
    """The model and its batch; the defaults are the paper's."""

    batch: int = 64
    model: ModelConfig = field(default_factory=lambda: ModelConfig(text=TextConfig(layers_summed=4)))
    bert: dict[str, int] = field(default_factory=dict)  # BertConfig's defaults are BERT-base
    matrix: int = 8192


SMOKE = Size(
    batch=4,
    model=ModelConfig(
        vision=VisionConfig(volume=(32, 32, 16), patch=(16, 16, 8), width=48, depth=2, heads=4, mlp=96),
        text=TextConfig(),
        bank=BankConfig(size=16),
        embedding=24,
    ),
    bert={
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    matrix=64,
)


@dataclass(frozen=True)
class Arm:
    """A way to make the step.

    Attributes:
        micro: volumes of a micro batch; 0 for the whole batch at once.
    """

    name: str
    reference: bool = False
    compiled: bool = False
    checkpointed: bool = False
    patch_dropout: float = 0.0
    micro: int = 0


ARMS = [
    Arm("reference", reference=True),
    Arm("eager"),
    Arm("compiled", compiled=True),
    Arm("compiled+checkpointing", compiled=True, checkpointed=True),
    Arm("compiled+patch-dropout-0.5", compiled=True, patch_dropout=0.5),
    Arm("compiled+micro-16", compiled=True, micro=16),
    Arm("compiled+micro-8", compiled=True, micro=8),
    Arm("compiled+micro-8+patch-dropout-0.5", compiled=True, micro=8, patch_dropout=0.5),
]


class Bench:
    """A device, a size, and the batches that all arms share."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.cuda = device.type == "cuda"
        generator = torch.Generator().manual_seed(0)
        shape = (size.batch, *size.model.vision.volume)
        hu = [torch.randint(-1000, 1000, shape, dtype=torch.int16, generator=generator) for _ in range(2)]
        self.volumes = [batch.pin_memory() if self.cuda else batch for batch in hu]
        lengths = torch.randint(5, 98, (size.batch,), generator=generator)
        lengths[0] = 97
        mask = (torch.arange(97)[None] < lengths[:, None]).long()
        vocabulary = size.bert.get("vocab_size", 30_522)
        ids = torch.randint(5, vocabulary, mask.shape, generator=generator) * mask
        self.tokens = Tokens(ids, mask, lengths).to(device)
        self.scans = torch.arange(size.batch, device=device)

    def model(self, patch_dropout: float = 0.0) -> BrgSA:
        """Ours, with random weights from seed 0."""
        config = replace(self.size.model, vision=replace(self.size.model.vision, patch_dropout=patch_dropout))
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["There is a nodule. There is no nodule."], 100)
        with self.device:
            return BrgSA(config, text=TextTower(self.bert("sdpa"), tokenizer, config.text))

    def bert(self, attention: str) -> nn.Module:
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig(**self.size.bert, attn_implementation=attention), add_pooling_layer=False)

    def reference(self, ours: BrgSA) -> ReferenceModel:
        """The rendering of the reference's model, with our model's weights."""
        with self.device:
            model = ReferenceModel(self.size.model, self.bert("eager"))
        model.copy_from(ours)
        return model

    def autocast(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=dtype) if self.cuda else contextlib.nullcontext()

    def forget(self) -> None:
        """Free what the last arm left."""
        gc.collect()
        torch._dynamo.reset()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def equality(bench: Bench) -> dict[str, float]:
    """Relative differences in float32: the reference's model to ours, micro batches to the whole, a device to a CPU."""
    count = 2
    torch.backends.cudnn.allow_tf32 = False  # else the reference's convolution is no float32 one
    ours = bench.model().eval()
    reference = bench.reference(ours).eval()
    tokens = Tokens(*(part[:count] for part in bench.tokens))
    hu = bench.volumes[0][:count].to(bench.device)
    floats = unit_intensities([hu], out=torch.empty(hu.shape, device=bench.device))
    on_cpu = unit_intensities([hu.cpu()], out=torch.empty(hu.shape))

    def loss_of(volumes: Embeddings, texts: Embeddings) -> Any:
        return brgsa_loss(volumes, texts, bench.scans[:count], LossConfig())

    volumes, texts = ours(floats, tokens)
    loss_of(volumes, texts).total.backward()
    whole = _gradients(ours)
    ours.zero_grad()
    by_one = [functools.partial(ours.embed_volumes, floats[part]) for part in _slices(count, 1)]
    backward_in_micro_batches(by_one, [functools.partial(ours.embed_tokens, tokens)], loss_of)
    micro = _gradients(ours)
    with torch.no_grad(), bench.autocast(torch.bfloat16):
        in_16_bits = ours(floats, tokens)[0]
    theirs = reference(floats, tokens)
    reference_loss(*theirs).backward()
    pairs = zip((volumes.plain, texts.plain, volumes.bridged, texts.bridged), theirs, strict=True)
    return {
        "embeddings": max(_difference(a, b) for a, b in pairs),
        "gradients": _difference(whole.norm(), _gradients(reference).norm()),
        "first_block_gradient": _difference(
            ours.vision.blocks[0].attn.qkv.weight.grad, reference.blocks[0].attn.qkv.weight.grad
        ),
        "micro_batch_gradients": _difference(micro, whole),
        "bfloat16_embeddings": _difference(in_16_bits.plain.float(), volumes.plain),
        "conversion_on_device": _difference(floats.cpu(), on_cpu),
    }


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def step_of(bench: Bench, arm: Arm, micro: int) -> Callable[[Tensor], None]:
    """The arm's training step: int16 HU (B, X, Y, Z) on the device in, weights updated."""
    ours = bench.model(arm.patch_dropout)
    model = bench.reference(ours) if arm.reference else ours
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), fused=bench.cuda and not arm.reference, **ADAM)
    update = (
        _reference_backward(bench, model, micro)
        if isinstance(model, ReferenceModel)
        else _ours(bench, model, arm, micro)
    )
    scaler = torch.amp.GradScaler(bench.device.type, enabled=bench.cuda and arm.reference)

    def step(hu: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        update(hu, scaler)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()

    return step


Backward = Callable[[Tensor, torch.amp.GradScaler], None]


def _reference_backward(bench: Bench, model: ReferenceModel, micro: int) -> Backward:
    """In float16, the loss over each micro batch: less work than the loss over all, in the reference's favour."""

    def backward(floats: Tensor, scaler: torch.amp.GradScaler) -> None:
        for part in _slices(len(floats), micro):
            with bench.autocast(torch.float16):
                embedded = model(floats[part].unsqueeze(1), Tokens(*(x[part] for x in bench.tokens)))
            scaler.scale(reference_loss(*embedded)).backward()

    return backward


def _ours(bench: Bench, model: BrgSA, arm: Arm, micro: int) -> Backward:
    """In bfloat16, the loss over the whole batch."""
    if arm.compiled:
        for block in model.vision.blocks:  # type: ignore[union-attr]
            block.compile(backend="inductor" if bench.cuda else "eager")
    model.vision.checkpoint_activations = arm.checkpointed  # type: ignore[assignment]
    floats = torch.empty((bench.size.batch, *bench.size.model.vision.volume), device=bench.device)

    def volumes(part: slice = slice(None)) -> Embeddings:
        with bench.autocast(torch.bfloat16):
            return _float(model.embed_volumes(floats[part].unsqueeze(1)))

    def texts() -> Embeddings:
        with bench.autocast(torch.bfloat16):
            return _float(model.embed_tokens(bench.tokens))

    def loss_of(volumes: Embeddings, texts: Embeddings) -> Any:
        return brgsa_loss(volumes, texts, bench.scans, LossConfig())

    def backward(hu: Tensor, scaler: torch.amp.GradScaler) -> None:
        unit_intensities([hu], Intensity.draw(len(hu), bench.device, **AUGMENTATION), out=floats)
        if micro:
            backward_in_micro_batches(
                [functools.partial(volumes, part) for part in _slices(len(hu), micro)], [texts], loss_of
            )
        else:
            loss_of(volumes(), texts()).total.backward()

    return backward


def _float(embeddings: Embeddings) -> Embeddings:
    return Embeddings(*(None if e is None else e.float() for e in embeddings))


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def run(bench: Bench, arm: Arm, peak: float) -> dict[str, Any]:
    """Figures of an arm; the reference's takes the largest micro batch that fits."""
    sizes = reference_sizes(bench) if arm.reference else [min(arm.micro, bench.size.batch // 2)]
    for micro in sizes:
        bench.forget()
        try:
            seconds, first = timed(bench, arm, micro)
        except torch.cuda.OutOfMemoryError:
            continue
        except RuntimeError as error:  # of a compiler or kernel: the other arms are still worth their time
            return {"failed": f"{type(error).__name__}: {error}"[:300]}
        flops = model_flops(bench, arm.patch_dropout)
        figures = {
            "step_s": seconds,
            "first_step_s": first,
            "samples_per_s": bench.size.batch / seconds,
            "mfu": flops / seconds / peak,
            "model_tflop_per_step": flops / 1e12,
            "hours_for_the_papers_run": ITEMS * EPOCHS / bench.size.batch * seconds / 3600,
        }
        if bench.cuda:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return figures | ({"micro": float(micro)} if micro else {})
    return {"failed": "out of memory"}


def reference_sizes(bench: Bench) -> list[int]:
    """Micro batches to try for the reference, falling: from where its attention's matrices alone would fill the memory."""
    vision = bench.size.model.vision
    patches = [voxels // patch for voxels, patch in zip(vision.volume, vision.patch, strict=True)]
    a_volume = 6 * vision.depth * vision.heads * (1 + math.prod(patches)) ** 2  # bytes: float16 scores, float32 softmax
    memory = torch.cuda.get_device_properties(bench.device).total_memory if bench.cuda else math.inf
    sizes = [bench.size.batch // 2**n for n in range(7) if bench.size.batch // 2**n]
    return [size for size in sizes if size * a_volume <= memory]


def timed(bench: Bench, arm: Arm, micro: int) -> tuple[float, float]:
    """Median seconds of a step, and of the very first, which compiles."""
    step = step_of(bench, arm, micro)
    copier = BatchCopier(bench.device)
    batches = (copier([batch])[0] for batch in _batches(bench, floats=arm.reference))
    started = time.perf_counter()
    step(next(batches))
    if not bench.cuda:
        return time.perf_counter() - started, time.perf_counter() - started
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    ends = [_event_now()]
    started = time.perf_counter()
    while len(ends) <= WARM_UP + (STEPS if time.perf_counter() - started < SECONDS else STEPS // 2):
        step(next(batches))
        ends.append(_event_now())
        ends[-2].synchronize()  # at most one step ahead of the device
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(ends)][WARM_UP:]
    return statistics.median(times), first


def _event_now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _batches(bench: Bench, *, floats: bool) -> Iterator[Tensor]:
    """The same two batches for ever: int16 as ours, or float32 in [-1, 1] as the reference's loader makes them."""
    batches = bench.volumes
    if floats:
        batches = [batch.float().div_(1000) for batch in batches]
        batches = [batch.pin_memory() if bench.cuda else batch for batch in batches]
    yield from itertools.cycle(batches)


@functools.cache
def model_flops(bench: Bench, patch_dropout: float) -> float:
    """Floating-point operations of a step's forward and backward pass, without what is computed twice."""
    model = bench.model(patch_dropout).train()
    volume = torch.zeros((1, 1, *bench.size.model.vision.volume), device=bench.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(volume, Tokens(*(x[:1] for x in bench.tokens)))
    return 3.0 * counter.get_total_flops() * bench.size.batch


def matrix_peak(bench: Bench) -> float:
    """FLOP/s of a large product of random bfloat16 matrices, the median of 20."""
    n = bench.size.matrix
    a, b = (torch.randn(n, n, device=bench.device).bfloat16() for _ in range(2))
    if not bench.cuda:
        started = time.perf_counter()
        a @ b
        return 2 * n**3 / (time.perf_counter() - started)
    times = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * n**3 / statistics.median(times[5:])


def ratios_of(arms: dict[str, dict[str, float]]) -> dict[str, float]:
    """Our fastest step of the same work (no patches dropped) against the reference's, and its MFU."""
    whole = [
        name for name, found in arms.items() if name != "reference" and "step_s" in found and "dropout" not in name
    ]
    if not whole:
        return {}
    best = min(whole, key=lambda name: arms[name]["step_s"])
    ratios = {"mfu": arms[best]["mfu"]}
    if "step_s" in arms.get("reference", {}):
        ratios["vs_reference"] = arms["reference"]["step_s"] / arms[best]["step_s"]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options = options_of(parser, [arm.name for arm in ARMS])

    bench = Bench(SMOKE if options.smoke else Size(), torch.device("cpu" if options.smoke else "cuda"))
    card = "cpu" if options.smoke else torch.cuda.get_device_name()
    peak = matrix_peak(bench)
    figures: dict[str, Any] = {"card": card, "torch": torch.__version__, "matrix_tflops": peak / 1e12}
    figures["relative_differences"] = equality(bench)
    print(json.dumps(figures, indent=1), flush=True)
    figures["arms"] = {}
    for arm in ARMS:
        if arm.name in options.arms.split(","):
            figures["arms"][arm.name] = found = run(bench, arm, peak)
            print(
                f"{arm.name:<36}"
                + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()),
                flush=True,
            )
            result = {"benchmark": "gpu", "ratios": ratios_of(figures["arms"]), "figures": figures}
            if not options.smoke:
                write_result(options.results, result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
