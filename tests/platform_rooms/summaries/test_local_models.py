"""Language models in folders, on Ray Data's actors; and what is built for a cluster's GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from brgsa.summaries import load_style
from brgsa.summaries.llm.prompts import messages, schema
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.summaries import asking
from brgsa_platform.summaries.backends import NO_ANSWER, Answer
from brgsa_platform.summaries.backends.local import Generator, LocalBackend, fingerprint
from brgsa_platform.summaries.backends.ray_llm import RayLlmBackend, answers_of
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending
from brgsa_platform.summaries.summarize import checked_summary

REPORTS = ["A nodule in the lung.", "No pleural effusion. Heart size is increased.", "word " * 900]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of random weights with room for 512 tokens."""
    return _saved(tmp_path_factory.mktemp("gpt"), seq2seq=False)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART of random weights."""
    return _saved(tmp_path_factory.mktemp("bart"), seq2seq=True)


def _saved(folder: Path, seq2seq: bool) -> Path:
    import torch
    import transformers

    from brgsa.text import train_tokenizer

    torch.manual_seed(0)
    corpus = [one["content"] for report in REPORTS for one in messages(load_style("short"), report)]
    tokenizer = train_tokenizer(corpus, 400)
    tokenizer.save_pretrained(str(folder))
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 2, "eos_token_id": 3}
    if seq2seq:
        model: transformers.PreTrainedModel = transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
                encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=1024,
                decoder_start_token_id=2, forced_eos_token_id=3, **size,
            )
        )  # fmt: skip
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_positions=1024, n_embd=16, n_layer=1, n_head=2, **size)
        )
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_model_answers_a_batch_as_it_answers_one_by_one(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    generator = Generator(str(folder), load_style("short"), answer_tokens=8)
    together = generator({"number": np.arange(3), "text": np.array(REPORTS)})
    assert together["number"] == [0, 1, 2]
    for i in (0, 1):
        alone = generator({"number": np.array([i]), "text": np.array([REPORTS[i]])})
        assert (alone["content"], alone["sent"]) == ([together["content"][i]], [together["sent"][i]])
        assert 0 < together["answered"][i] <= 8
        assert together["sent"][i] > 100
    assert together["sent"][2] == 0, "what is too long for the model is not cut but not answered"


@pytest.mark.ray
def test_reports_go_through_actors_and_the_cache(ray_session: None, causal: Path, tmp_path: Path) -> None:
    style = load_style("short").with_backend("transformers", str(causal))
    options = LlmOptions(answer_tokens=6, batch=2, concurrency=1)
    spending = Spending()
    asked = asking.questions(REPORTS, style, masked=False)
    backend = asking.make_backend(style, options, spending)
    cache = asking.cache_of(Folder(tmp_path), style, backend.model, options)
    answers = asking.ask(asked, backend, cache, "test")
    assert set(answers) == {text for texts in asked.texts.values() for text in texts}
    assert spending.requests == 2
    assert 0 < spending.answered <= 12
    assert len(cache.known(cache.key(text) for text in answers)) == 2
    checked = checked_summary(REPORTS[0], [answers[REPORTS[0]]], style, "replace")
    assert (checked.summary, checked.source) == ("Lung nodule.", "rules"), "noise is no summary"


def test_a_model_is_known_by_its_files(causal: Path, seq2seq: Path, tmp_path: Path) -> None:
    copy = tmp_path / causal.name
    copy.mkdir()
    for file in causal.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(copy) == fingerprint(causal) != fingerprint(seq2seq)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert fingerprint(copy) != fingerprint(causal)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with refused("no-model", field="--model", value=str(tmp_path)):
        LocalBackend(load_style("short").with_backend("transformers", str(tmp_path)), LlmOptions(), Spending())


@pytest.mark.slow
def test_the_clusters_backend_builds_its_pipeline(causal: Path) -> None:
    style = load_style("short").with_backend("ray-llm", str(causal))
    backend = RayLlmBackend(style, LlmOptions(answer_tokens=50, batch=4), Spending())
    stages = backend.processor().list_stage_names()
    assert "vLLMEngineStage" in stages
    assert backend.config().model_source == str(causal)
    question = backend.question({"number": 3, "text": REPORTS[0]})
    assert question["messages"] == messages(style, REPORTS[0])
    assert question["sampling_params"]["structured_outputs"] == {"json": schema(style)}


def test_the_clusters_answers_are_read_row_by_row(causal: Path) -> None:
    style = load_style("short").with_backend("ray-llm", str(causal))
    row = {"number": 3, "generated_text": "{}", "num_input_tokens": 7, "num_generated_tokens": 5}
    for limit, cut in ((5, True), (6, False)):
        answered = RayLlmBackend(style, LlmOptions(answer_tokens=limit), Spending()).answered
        assert answered(row)["cut"] == cut
    columns = [answered(row), {**answered(row), "number": 4}]
    batch = {name: np.array([column[name] for column in columns]) for name in columns[0]}
    assert dict(answers_of(batch)) == {3: Answer("{}", False, 7, 5), 4: Answer("{}", False, 7, 5)}
    batch["__inference_error__"] = np.array(["", "out of memory"])
    assert dict(answers_of(batch)) == {3: Answer("{}", False, 7, 5), 4: NO_ANSWER}


def test_without_vllm_the_cluster_backend_says_what_to_install(causal: Path) -> None:
    style = load_style("short").with_backend("ray-llm", str(causal))
    with refused("no-vllm", field="--backend", value="ray-llm"):
        next(RayLlmBackend(style, LlmOptions(), Spending()).answers(["x"]))


@pytest.mark.ray
def test_a_cluster_without_a_gpu_is_refused_at_once(
    ray_session: None, causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm.py").touch()  # all that the check for vLLM's package looks for
    monkeypatch.syspath_prepend(tmp_path)
    style = load_style("short").with_backend("ray-llm", str(causal))
    with refused("too-few-gpus", field="--backend", value="ray-llm"):
        next(RayLlmBackend(style, LlmOptions(), Spending()).answers(["x"]))
