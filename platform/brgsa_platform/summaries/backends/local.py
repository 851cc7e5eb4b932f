"""A language model in a folder, run by transformers in Ray Data's actors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.summaries.llm.prompts import messages
from brgsa.summaries.styles import Style
from brgsa_platform.runtime.session import set_data_context
from brgsa_platform.summaries.backends import NO_ANSWER, Answer
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending

_PROBE = 2**20  # bytes of a weights file's beginning and end that tell it from another


class LocalBackend:
    """See `Backend`. A causal or a sequence-to-sequence model with its tokenizer, on a GPU where there is one."""

    def __init__(self, style: Style, options: LlmOptions, spending: Spending) -> None:
        self.folder = Path(style.model)
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"There is no model in the folder {style.model!r}: name one of Hugging Face's form with --model.",
                code="no-model",
                field="--model",
                value=style.model,
            )
        self.model = fingerprint(self.folder)
        self.spending = spending
        self._style, self._options = style, options

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """See `Backend`."""
        import ray

        set_data_context()
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        actors = max(1, min(self._options.concurrency, gpus or int(resources.get("CPU", 1)) - 1))
        blocks = -(-len(texts) // self._options.batch)
        dataset = ray.data.from_items(
            [{"number": number, "text": text} for number, text in enumerate(texts)], override_num_blocks=blocks
        )
        dataset = dataset.map_batches(
            Generator,
            fn_constructor_args=(str(self.folder), self._style, self._options.answer_tokens),
            batch_size=self._options.batch,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
        )
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            for row in zip(*(batch[name].tolist() for name in ("number", *Answer._fields)), strict=True):
                answer = Answer(*row[1:])
                if answer.sent:
                    self.spending.settle(0, 0, answer.sent, answer.answered)
                yield row[0], answer


class Generator:
    """A model on one actor, which answers batches of texts.

    Args:
        folder: of the model and its tokenizer.
    """

    def __init__(self, folder: str, style: Style, answer_tokens: int) -> None:
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = kind.from_pretrained(folder, local_files_only=True).eval().to(self._device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._continues = not config.is_encoder_decoder  # its output begins with its input
        self._style, self._answer_tokens = style, answer_tokens
        longest = getattr(config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        self._room = int(longest) - (answer_tokens if self._continues else 0)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The columns `number` and those of `Answer`; a text that is too long for the model has `NO_ANSWER`."""
        prompts = [self._prompt(text) for text in batch["text"].tolist()]
        lengths = [len(self._tokenizer(prompt)["input_ids"]) for prompt in prompts]
        fitting = [i for i, length in enumerate(lengths) if length <= self._room]
        answers = [NO_ANSWER] * len(prompts)
        for i, answer in zip(fitting, self._generated([prompts[i] for i in fitting]), strict=True):
            answers[i] = answer._replace(sent=lengths[i])
        columns = {name: [getattr(answer, name) for answer in answers] for name in Answer._fields}
        return {"number": batch["number"].tolist(), **columns}

    def _prompt(self, text: str) -> str:
        chat = messages(self._style, text)
        if self._tokenizer.chat_template:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        return "\n\n".join(one["content"] for one in chat) + "\n\n"

    def _generated(self, prompts: list[str]) -> list[Answer]:
        import torch

        if not prompts:
            return []
        tokens = self._tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(
            self._device
        )
        with torch.inference_mode():
            output = self._model.generate(
                **tokens,
                max_new_tokens=self._answer_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        written = output[:, tokens["input_ids"].shape[1] :] if self._continues else output[:, 1:]
        lengths = (written != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [
            Answer(text, length >= self._answer_tokens, 0, length) for text, length in zip(texts, lengths, strict=True)
        ]


def fingerprint(folder: Path) -> str:
    """A name that changes with the model's files, wherever they lie."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(_PROBE))
                opened.seek(max(0, size - _PROBE))
                digest.update(opened.read(_PROBE))
    return f"{folder.name}-{digest.hexdigest()[:16]}"
