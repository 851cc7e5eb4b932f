"""Towers, pooling, encoders and checkpoints of the whole model."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from brgsa import checkpoint, zeroshot
from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.errors import UserError
from brgsa.model import BrgSA
from brgsa.text import TextTower, pretrained_tower, train_tokenizer

CORPUS = ["There is pleural effusion.", "There is cardiomegaly and no lymphadenopathy.", "Sequelae are seen."] * 3
TEXT = TextConfig(width=16, depth=2, heads=2, layers_summed=2, max_tokens=12, vocabulary=60)


def make(bank: bool = True, **bank_settings: int) -> BrgSA:
    torch.manual_seed(0)
    vision = VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16)
    config = ModelConfig(
        vision=vision, text=TEXT, bank=BankConfig(enabled=bank, **{"size": 6, **bank_settings}), embedding=10
    )
    return BrgSA(config, tokenizer=train_tokenizer(CORPUS, TEXT.vocabulary)).eval()


def test_pooling_is_the_sum_of_layers_averaged_over_words() -> None:
    tower = make().text
    text = "There is cardiomegaly and sequelae."
    tokens = tower.tokenize([text, "Seen."])
    pieces = tower.tokenizer.convert_ids_to_tokens(tokens.ids[0].tolist())
    assert any(piece.startswith("##") for piece in pieces), "the case needs a word of several sub-words"
    hidden = tower.bert(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True).hidden_states
    words: list[torch.Tensor] = []
    for position, piece in enumerate(pieces):
        if piece == "[PAD]":
            continue
        vector = sum(layer[0, position] for layer in hidden[-2:])
        if piece.startswith("##"):
            words[-1] = words[-1] + vector
        else:
            words.append(vector)  # type: ignore[arg-type]
    torch.testing.assert_close(tower(tokens)[0], torch.stack(words).mean(0), atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing() -> None:
    model = make()
    alone = model.encode_texts(["Seen."]).plain
    torch.testing.assert_close(model.encode_texts(["Seen.", CORPUS[1]]).plain[:1], alone, atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut() -> None:
    tokens = make().text.tokenize(["effusion " * 50])
    assert tokens.ids.shape == (1, 12)


def test_the_same_corpus_gives_the_same_vocabulary() -> None:
    assert train_tokenizer(CORPUS, 60).get_vocab() == train_tokenizer(CORPUS, 60).get_vocab()
    with pytest.raises(UserError, match="no repeated words"):
        train_tokenizer([], 60)


def test_a_hugging_face_model_by_path(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tokenizer = train_tokenizer(CORPUS, 60)
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertModel(settings).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    tower = pretrained_tower(TextConfig(name=str(tmp_path / "bert"), layers_summed=2))
    assert tower(tower.tokenize(["There is effusion."])).shape == (1, 8)
    assert all(p.requires_grad for p in tower.parameters())
    assert not any("pooler" in name for name, _ in tower.named_parameters())
    with pytest.raises(UserError, match="layers_summed=4"):
        TextTower(tower.bert, tower.tokenizer, TextConfig(layers_summed=4))


def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"text\.name"):
        pretrained_tower(TextConfig(name=str(tmp_path / "nothing")))


def test_bridged_embeddings_go_through_the_bank() -> None:
    model = make()
    assert model.bank is not None
    found = model.encode_volumes(torch.randn(3, 1, 8, 8, 4))
    assert found.bridged is not None
    torch.testing.assert_close(found.bridged, model.bank(found.plain))


def test_without_a_bank_it_is_clip() -> None:
    model = make(bank=False)
    assert not model.has_bank
    volumes, texts = model.encode_volumes(torch.randn(3, 1, 8, 8, 4)), model.encode_texts(CORPUS[:2])
    assert volumes.bridged is None
    cosines = torch.nn.functional.cosine_similarity(volumes.plain[:, None], texts.plain[None], dim=-1)
    torch.testing.assert_close(zeroshot.scores(volumes, texts), cosines)


def test_every_weight_gets_a_gradient() -> None:
    model = make().train()
    volumes, texts = model(torch.randn(2, 1, 8, 8, 4), model.text.tokenize(CORPUS[:2]))
    (volumes.bridged.sum() + texts.bridged.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_checkpoint_gives_the_model_back(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.embed_tokens(model.text.tokenize(CORPUS[:2])).plain.sum().backward()
    optimizer.step()
    folder = checkpoint.save(tmp_path / "c", model, {"labels": ["A"]}, training={"epoch": 3}, optimizer=optimizer)
    loaded = checkpoint.load(folder)
    assert loaded.run == {"labels": ["A"]}
    assert loaded.model.config == model.config
    assert torch.equal(loaded.model.encode_texts(CORPUS).plain, model.encode_texts(CORPUS).plain)
    volumes = torch.randn(2, 1, 8, 8, 4)
    assert torch.equal(loaded.model.encode_volumes(volumes).plain, model.encode_volumes(volumes).plain)
    fresh = torch.optim.Adam(loaded.model.parameters(), lr=0.5)
    assert checkpoint.load_training(folder, fresh) == {"epoch": 3}
    assert fresh.state_dict()["param_groups"][0]["lr"] == 0.1


def test_a_save_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path / "c", make(), {"labels": ["old"]})
    with pytest.raises(TypeError):
        checkpoint.save(folder, make(), {"labels": {("not", "JSON"): 1}})
    assert checkpoint.load(folder).run == {"labels": ["old"]}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path / "c", make(), {})
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path)

    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        checkpoint.load(cut)

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    tree = json.loads((other / "model.json").read_text())
    tree["bank"]["size"] = 7
    (other / "model.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"bank\.vectors is \(6, 10\) there and \(7, 10\)"):
        checkpoint.load(other)

    (other / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json"):
        checkpoint.load(other)


def test_no_checkpoint_runs_code(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    folder = checkpoint.save(tmp_path / "c", model, {}, training={}, optimizer=optimizer)
    target = tmp_path / "owned"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (target,))  # type: ignore[return-value]

    (folder / "optimizer.pt").write_bytes(pickle.dumps({"state": Trap()}))
    with pytest.raises(UserError, match=r"optimizer\.pt"):
        checkpoint.load_training(folder, optimizer)
    assert not target.exists()
