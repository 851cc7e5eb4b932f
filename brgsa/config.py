"""The configuration of a BrgSA model and its loss, as plain dataclasses; the defaults are the paper's (arXiv 2501.03565)
but for the small text tower.

Each raises ValueError, which names the field, for a value that cannot be.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from brgsa.errors import nearest

# For pydantic, when the platform nests these classes: an unknown key is an error there, as are infinity and NaN.
_STRICT = {"extra": "forbid", "allow_inf_nan": False}

TOWERS = ("vision", "text")
VISION_TOWERS = ("vit3d", "cnn3d", "resnet10", "resnet18", "resnet34")
BANK_INITIALISATIONS = ("orthogonal", "gaussian", "xavier", "uniform", "kmeans")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_positive(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= 1, f"{section}.{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower.

    Attributes:
        name: "vit3d" (the paper's), MONAI's "resnet10", "resnet18", "resnet34", or "cnn3d" (small, for coarse grids).
        weights: a file or folder of weights that a training starts from (see `brgsa.weights.vision`); empty: random ones.
        volume: voxels (x, y, z) that the tower is made for.
        windows: HU windows (low, high), each an input channel scaled to [-1, 1]; by default there is one channel,
            HU / 1000, as in the paper.
        mean, std: each channel, scaled to [-1, 1], is standardised by them: (x - mean) / std.
        evaluation: what the tower sees of a volume in validation, evaluation and prediction: "whole", all of it, or
            "centre", the middle `volume` voxels.
        patch, depth, heads, mlp: for the ViT alone: patch voxels (x, y, z), blocks, attention heads, hidden units of the
            MLP.
        positions: for the ViT alone: the position table is "fixed" or "learned".
        coordinates: for the ViT alone: a patch's place along an axis, from which its row of the table is made: "unit", from
            0 for the first patch to 1 for the last, or "index", 0, 1, 2 and so on.
        norm_eps: for the ViT alone: epsilon of the final norm; the blocks' is 1e-6.
        patch_dropout: for the ViT alone: share of the patches that a training step leaves out, drawn anew for each volume;
            half of them take half a step's time and memory.
        width: token width of the ViT; channels of the first stage of the others.
        norm: for all but the ViT: "group" gives the same result however a batch is split over workers, "batch" does not.
        pool: for all but the ViT: "avg", or "avg+max", which keeps small lesions that an average over the volume loses.
        stem_kernel, stem_stride, stem_pool: for the ResNets alone: kernel and stride of the first convolution, and whether
            a max-pool of stride 2 follows it.
    """

    name: str = "vit3d"
    weights: str | None = None
    volume: tuple[int, int, int] = (224, 224, 112)
    windows: tuple[tuple[float, float], ...] = ()
    mean: float = 0.4978
    std: float = 0.2449
    evaluation: Literal["whole", "centre"] = "whole"
    patch: tuple[int, int, int] = (16, 16, 8)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    positions: Literal["fixed", "learned"] = "fixed"
    coordinates: Literal["unit", "index"] = "unit"
    norm_eps: float = 1e-5
    patch_dropout: float = 0.0
    norm: Literal["group", "batch"] = "group"
    pool: Literal["avg", "avg+max"] = "avg+max"
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        _require(self.name in VISION_TOWERS, f"vision.name {self.name!r} is none of {', '.join(VISION_TOWERS)}")
        _require(all(n >= 1 for n in self.volume), f"vision.volume {self.volume} must be positive")
        _require(all(n >= 1 for n in self.patch), f"vision.patch {self.patch} must be positive")
        _require_positive("vision", self, "width", "depth", "heads", "mlp", "stem_kernel", "stem_stride")
        _require(
            all(low < high for low, high in self.windows), f"vision.windows {self.windows}: each needs low < high (HU)"
        )
        for name in ("std", "norm_eps"):
            _require(getattr(self, name) > 0, f"vision.{name} must be above 0, not {getattr(self, name)}")
        _require(0 <= self.patch_dropout < 1, f"vision.patch_dropout must be in [0, 1), not {self.patch_dropout}")
        _require(
            not self.patch_dropout or self.name == "vit3d",
            f"vision.patch_dropout needs vision.name=vit3d: {self.name} has no patches",
        )
        if self.name == "vit3d":
            _require(
                all(n % p == 0 for n, p in zip(self.volume, self.patch, strict=True)),
                f"vision.volume {self.volume} is not a multiple of vision.patch {self.patch}",
            )
            _require(
                self.width % self.heads == 0,
                f"vision.width {self.width} is not a multiple of vision.heads {self.heads}",
            )

    def evaluated(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Voxels (x, y, z) that the tower sees of a volume of `shape` outside training."""
        return shape if self.evaluation == "whole" else self.volume


@dataclass(frozen=True)
class TextConfig:
    """A text tower.

    Attributes:
        name: "small" (a BERT from scratch, whose WordPiece vocabulary is trained on the corpus), or a folder or hub name
            of any BERT-like Hugging Face model.
        weights: a file or folder of weights that a training starts from instead (see `brgsa.weights.text`).
        max_tokens: longer texts are cut.
        layers_summed: number of the last hidden layers that are summed.
        pool: what the sum over a text's tokens is divided by: "positions", always `max_tokens`, as if every text were padded
            to that, so that longer texts have longer embeddings; or "words", the number of the text's words.
        form: the form in which the tower reads every text, of training and prompts alike: "plain", lower case without
            punctuation and without sentences of one word, or "written".
        width, depth, heads, vocabulary: for "small" alone: hidden size, blocks, attention heads, vocabulary size.
    """

    name: str = "small"
    weights: str | None = None
    max_tokens: int = 97
    layers_summed: int = 4
    pool: Literal["positions", "words"] = "positions"
    form: Literal["plain", "written"] = "plain"
    width: int = 256
    depth: int = 4
    heads: int = 4
    vocabulary: int = 4000

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 4, f"text.max_tokens must be at least 4, not {self.max_tokens}")
        _require_positive("text", self, "layers_summed", "width", "depth", "heads", "vocabulary")
        _require(self.width % self.heads == 0, f"text.width {self.width} is not a multiple of text.heads {self.heads}")


@dataclass(frozen=True)
class BankConfig:
    """The Cross-Modal Knowledge Bank; with `enabled` false the model is the plain CLIP baseline.

    Attributes:
        size: number of bank vectors, K.
        init: their first values: "orthogonal" (the paper's), "gaussian", "xavier", "uniform" (±0.1) or "kmeans" (centroids
            of the untrained towers' embeddings).
        scale_logits: divide the logits x Mᵀ by sqrt(D), which the paper does not.
    """

    enabled: bool = True
    size: int = 2048
    init: str = "orthogonal"
    scale_logits: bool = False

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        _require(
            self.size >= 1, f"bank.size must be at least 1, not {self.size}; bank.enabled=false switches the bank off"
        )
        _require(
            self.init in BANK_INITIALISATIONS, f"bank.init {self.init!r} is none of {', '.join(BANK_INITIALISATIONS)}"
        )


@dataclass(frozen=True)
class ModelConfig:
    """The two towers, the bank, and the width D of the space that they share (`embedding`)."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    embedding: int = 768

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        _require_positive("model", self, "embedding")

    def to_dict(self) -> dict[str, Any]:
        """The fields by section, as JSON keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`, also after a round trip through JSON (lists become tuples again).

        Raises:
            KeyError, TypeError: a section is missing, or a field is unknown.
        """
        vision = {k: _tuples(v) for k, v in tree["vision"].items()}
        return cls(
            vision=VisionConfig(**vision),
            text=TextConfig(**tree["text"]),
            bank=BankConfig(**tree["bank"]),
            embedding=tree["embedding"],
        )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class LossConfig:
    """The contrast, its temperature, and the weights of the loss (see `brgsa.losses.brgsa_loss`).

    Attributes:
        contrast: of volumes with texts: "info_nce" (the paper's), or "sigmoid" (SigLIP's, which decides on each pair alone).
        temperature: cosines are divided by it.
        learn_temperature: learn it from there on, within `temperature_bounds`; the default bounds end at CLIP's 0.01.
        bias: of the sigmoid loss, added to a cosine over the temperature; about -log(batch size - 1) makes a pair of unrelated
            embeddings as probable as it is, and the default is that of 64 (SigLIP's -10 is that of 32,000).
        learn_bias: learn it from there on, within `bias_bounds`.
        plain, bridged, reconstruction: weights of the contrast of v with t, of v' with t', and of the bank's reconstruction
            error.
        same_text: two scans of a batch with the very same text are each other's "negatives", as in the paper, the pair is
            left out ("ignore"), which suits summaries (those of many healthy scans are the same), or they are "positives".
        supervised: weight of the labels' term, the binary cross-entropy of prompt scores.
        labels: whose labels these are: the store's ("store"), or those that the rule reader finds in the reports ("rules").
        abnormalities: names of the abnormalities that are supervised; none: all that the training split has both with
            and without.
    """

    contrast: Literal["info_nce", "sigmoid"] = "info_nce"
    temperature: float = 0.1
    learn_temperature: bool = False
    temperature_bounds: tuple[float, float] = (0.01, 1.0)
    bias: float = -4.1
    learn_bias: bool = False
    bias_bounds: tuple[float, float] = (-20.0, 0.0)
    plain: float = 1.0
    bridged: float = 1.0
    reconstruction: float = 0.5
    same_text: Literal["negatives", "ignore", "positives"] = "negatives"
    supervised: float = 0.0
    labels: Literal["store", "rules"] = "store"
    abnormalities: tuple[str, ...] = ()

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"loss.temperature must be above 0, not {self.temperature}")
        for name in ("plain", "bridged", "reconstruction", "supervised"):
            _require(getattr(self, name) >= 0, f"loss.{name} must not be negative")
        _require(self.plain + self.bridged > 0, "loss.plain and loss.bridged are both 0: nothing aligns the towers")
        _require(self.temperature_bounds[0] > 0, f"loss.temperature_bounds {self.temperature_bounds} must be above 0")
        for name, learned in (("temperature", self.learn_temperature), ("bias", self.learn_bias)):
            low, high = getattr(self, f"{name}_bounds")
            value = getattr(self, name)
            _require(low < high, f"loss.{name}_bounds ({low}, {high}): the lower one comes first")
            _require(
                not learned or low <= value <= high,
                f"loss.{name} {value} is learned and begins outside loss.{name}_bounds ({low}, {high})",
            )
        _require(
            not self.learn_bias or self.contrast == "sigmoid",
            f"loss.learn_bias needs loss.contrast=sigmoid: {self.contrast} has no bias",
        )


class Lock(NamedTuple):
    """A tower that a training leaves as it is (`brgsa.locking`) but for its last `free` blocks.

    With 0 of them it is locked as a whole, its final norm too.
    """

    tower: str
    free: int

    @classmethod
    def parse(cls, text: str) -> Lock:
        """From "vision" or "text", or "vision:2" for all but the last 2 blocks.

        Raises:
            ValueError: it names no tower, or no number of blocks from 1 on.
        """
        tower, colon, free = text.partition(":")
        if tower not in TOWERS:
            near = nearest(tower, TOWERS)
            raise ValueError(f"{text!r} names no tower{near}: use vision, text, or vision:2 for all but 2 blocks")
        if colon and (not free.isdecimal() or int(free) < 1):
            raise ValueError(
                f"{text!r} leaves no number of blocks free: use {tower}, or {tower}:2 for all but 2 blocks"
            )
        return cls(tower, int(free) if colon else 0)

    def check(self, blocks: int) -> None:
        """Refuse a lock of all but more blocks than a tower has; a convolutional tower has 0.

        Raises:
            ValueError: the tower has too few.
        """
        if self.free > blocks:
            has = f"{blocks} blocks" if blocks else "no blocks"
            raise ValueError(f"{self} leaves {self.free} blocks free and the {self.tower} tower has {has}")

    def __str__(self) -> str:
        return f"{self.tower}:{self.free}" if self.free else self.tower
