"""A language model on the cluster's GPUs, by `ray.data.llm` and vLLM (the extra `[llm]`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from brgsa.errors import UserError
from brgsa.summaries.llm.prompts import messages, schema
from brgsa.summaries.styles import Style
from brgsa_platform.runtime.session import cluster_gpus, set_data_context
from brgsa_platform.summaries.backends import NO_ANSWER, Answer, named_model
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending

ROOM_FOR_REPORT = 4096  # tokens, beside the instruction's and the answer's


class RayLlmBackend:
    """See `Backend`."""

    def __init__(self, style: Style, options: LlmOptions, spending: Spending) -> None:
        self.model = named_model(style, "a folder that every node has or a name on the hub")
        self.spending = spending
        self._style, self._options = style, options

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """See `Backend`."""
        import ray

        if find_spec("vllm") is None:
            raise UserError(
                "The backend ray-llm needs vLLM: pip install 'brgsa-platform[llm]', on nodes with GPUs.",
                code="no-vllm",
                field="--backend",
                value="ray-llm",
            )
        gpus = cluster_gpus()
        if not gpus:
            # The engines' actors would wait for one, for ever and without a word.
            raise UserError(
                "The backend ray-llm runs vLLM on GPUs and the cluster has none: use --backend transformers, or an endpoint.",
                code="too-few-gpus",
                field="--backend",
                value="ray-llm",
            )
        set_data_context()
        dataset = ray.data.from_items([{"number": number, "text": text} for number, text in enumerate(texts)])
        engines = max(1, min(self._options.concurrency, int(gpus)))
        for batch in self.processor(engines)(dataset).iter_batches(batch_size=None, batch_format="numpy"):
            for number, answer in answers_of(batch):
                if answer != NO_ANSWER:
                    self.spending.settle(0, 0, answer.sent, answer.answered)
                yield number, answer

    def config(self, engines: int = 1) -> Any:
        """The engines' configuration; a failure is one row's."""
        from ray.data.llm import vLLMEngineProcessorConfig

        return vLLMEngineProcessorConfig(
            model_source=self.model,
            engine_kwargs={
                "enable_prefix_caching": True,  # the instruction is the same for all
                "max_model_len": ROOM_FOR_REPORT + self._options.answer_tokens,
            },
            concurrency=engines,
            batch_size=self._options.batch,
            should_continue_on_error=True,
        )

    def processor(self, engines: int = 1) -> Any:
        """What turns rows of `number` and `text` into rows of `number` and an answer's fields."""
        from ray.data.llm import build_processor

        return build_processor(self.config(engines), preprocess=self.question, postprocess=self.answered)

    def question(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as the engine takes it."""
        return {
            "number": row["number"],
            "messages": messages(self._style, row["text"]),
            "sampling_params": {
                "temperature": 0.0,
                "max_tokens": self._options.answer_tokens,
                "structured_outputs": {"json": schema(self._style)},
            },
        }

    def answered(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the engine's as a number and an answer's fields; the engine does not hand on the limit of its tokens."""
        answered_tokens = int(row.get("num_generated_tokens") or 0)
        return {
            "number": row["number"],
            "content": row.get("generated_text") or "",
            "cut": answered_tokens >= self._options.answer_tokens,
            "sent": int(row.get("num_input_tokens") or 0),
            "answered": answered_tokens,
        }


def answers_of(batch: dict[str, Any]) -> Iterator[tuple[int, Answer]]:
    """The answers in a batch of the processor's; rows that failed on the engine have `NO_ANSWER`."""
    errors = batch.get("__inference_error__")
    for row, number in enumerate(batch["number"].tolist()):
        failed = errors is not None and bool(errors[row])
        values = [batch[name][row] for name in Answer._fields] if not failed else []
        yield number, Answer(str(values[0]), bool(values[1]), int(values[2]), int(values[3])) if values else NO_ANSWER
