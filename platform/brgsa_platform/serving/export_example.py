"""Score a CT volume for some texts with the two programs beside this file; needs torch, numpy and tokenizers, not brgsa.

    python example.py volume.npy "There is pleural effusion." "There is cardiomegaly."

The volume is in HU, axes x (to the patient's left), y (to the back), z (to the head), of the size and spacing (mm) in
about.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import normalize

HERE = Path(__file__).resolve().parent


def plain(text: str) -> str:
    """Lower case, without punctuation, and without sentences of one word."""
    sentences = [re.findall(r"\w+", part.lower()) for part in re.split(r"(?<=[.!?])\s+", text.strip())]
    longer = [words for words in sentences if len(words) > 1] or sentences
    return " ".join(word for words in longer for word in words)


def main(file: str, texts: list[str]) -> None:
    """Print each text with its score."""
    about = json.loads((HERE / "about.json").read_text(encoding="utf-8"))
    hu = torch.from_numpy(np.load(file, allow_pickle=False)).float()
    assert list(hu.shape) == about["size"], f"the volume is {list(hu.shape)}, the program takes {about['size']}"
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer" / "tokenizer.json"))
    tokenizer.enable_truncation(about["max_tokens"])
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch([plain(text) if about["form"] == "plain" else text for text in texts])
    ids = torch.tensor([one.ids for one in encoded])
    mask = torch.tensor([one.attention_mask for one in encoded])
    words = torch.tensor([count_words(one.word_ids, one.attention_mask) for one in encoded])
    vision, text = (torch.export.load(HERE / f"{name}.pt2").module() for name in ("vision", "text"))
    with torch.no_grad():
        volume = vision((hu / 1000).clamp(-1, 1)[None, None])  # plain and, of a model with a bank, bridged
        wanted = normalize(text(ids, mask, words)[0])
    scores = torch.stack([normalize(one) @ wanted.T for one in volume]).mean(0)[0]
    for sentence, score in zip(texts, scores.tolist(), strict=True):
        print(f"{score:.4f}\t{sentence}")


def count_words(word_ids: list[int | None], mask: list[int]) -> int:
    """Words of a text; a special token counts as one."""
    kept = [word for word, on in zip(word_ids, mask, strict=True) if on]
    return len({word for word in kept if word is not None}) + kept.count(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", help="a .npy file")
    parser.add_argument("texts", nargs="+")
    given = parser.parse_args()
    main(given.volume, given.texts)
