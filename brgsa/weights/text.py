"""Text towers that start from a BERT which others trained: Hugging Face's names, whatever stands before them."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from brgsa.errors import UserError
from brgsa.text import DAMAGED, TextTower
from brgsa.weights.fitting import Fitted, another_architecture, put, too_deep
from brgsa.weights.reading import Weights

FIRST = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"


def start_text(tower: TextTower, weights: Weights) -> Fitted:
    """Start a tower from a BERT's weights; of a longer position table the first rows are taken.

    Raises:
        UserError: the file holds no BERT, or one of another size (see `fitting.put`), or a tokenizer beside it has another
            vocabulary ("vocabulary-differs").
    """
    prefix = next((name.removesuffix(FIRST) for name in weights.tensors if name.endswith(FIRST)), None)
    if prefix is None:
        raise another_architecture(weights.path, "BERT (Hugging Face's names)")
    _check_vocabulary(tower, weights.path.parent)
    report = Fitted(weights.path, unused=[n for n in weights.tensors if not n.startswith(prefix)] + weights.skipped)
    theirs = bert_names({n.removeprefix(prefix): t for n, t in weights.tensors.items() if n.startswith(prefix)})
    ours = tower.bert.state_dict()
    if POSITIONS in theirs and POSITIONS in ours and len(theirs[POSITIONS]) > len(ours[POSITIONS]):
        report.fitted.append(f"{len(theirs[POSITIONS])} positions are now the first {len(ours[POSITIONS])}")
        theirs[POSITIONS] = theirs[POSITIONS][: len(ours[POSITIONS])]
    for name in theirs:
        if re.match(r"encoder\.layer\.[0-9]+\.attention\.self\.query\.weight", name) and name not in ours:
            raise too_deep(weights.path, name)
    return put(tower.bert, theirs, report)


def bert_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the first BERTs (gamma, beta) as today's."""
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        renamed[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = value
    return renamed


def _check_vocabulary(tower: TextTower, folder: Path) -> None:
    """The same number of pieces may be other pieces: compare with the tokenizer that lies beside the weights, if one does."""
    folder = folder / "text" if (folder / "text").is_dir() else folder
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).get_vocab()
    except DAMAGED as error:
        raise UserError(
            f"The tokenizer in {folder} cannot be read: the folder is damaged, get it again.",
            code="weights-damaged",
            field=str(folder),
        ) from error
    if theirs != tower.tokenizer.get_vocab():
        raise UserError(
            f"The tokenizer in {folder} has another vocabulary than this run's: set model.text.name to a folder of that model, "
            "or use other weights.",
            code="vocabulary-differs",
            field="model.text.weights",
            value=len(theirs),
        )
