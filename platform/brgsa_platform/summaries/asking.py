"""From reports to a language model's answers: what is asked, what is known already, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brgsa.summaries.llm.doubtful import doubtful
from brgsa.summaries.llm.grounding import is_foreign
from brgsa.summaries.llm.masking import mask
from brgsa.summaries.llm.prompts import instruction, parts, schema
from brgsa.summaries.styles import Style
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.summaries.backends import NO_ANSWER, Answer, Backend
from brgsa_platform.summaries.cache import AnswerCache
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending, estimated_tokens

ANSWERS = "answers"  # the cache's folder in a store


@dataclass(frozen=True)
class Questions:
    """What is asked about some reports.

    Attributes:
        texts: report → the parts of it that are sent, masked; none where nothing needs to be asked.
        masked: kind → how many were replaced.
        sentences, doubted: of a hybrid: sentences of all reports, and those that are asked about.
    """

    texts: dict[str, tuple[str, ...]]
    masked: Counter[str] = field(default_factory=Counter)
    sentences: int = 0
    doubted: int = 0

    @property
    def distinct(self) -> list[str]:
        """Each text once."""
        return list(dict.fromkeys(text for texts in self.texts.values() for text in texts))


def questions(reports: Sequence[str], style: Style, masked: bool, unread: bool = False) -> Questions:
    """What a style asks about distinct reports.

    Args:
        masked: replace what identifies a patient.
        unread: a hybrid asks about the whole of a report in another language.
    """
    texts: dict[str, tuple[str, ...]] = {}
    counts: Counter[str] = Counter()
    sentences = doubted = 0
    for report in reports:
        asked = report
        if style.backend == "hybrid" and not (unread and is_foreign(report)):
            open_part = doubtful(report)
            asked, sentences, doubted = (
                open_part.text,
                sentences + open_part.sentences,
                doubted + open_part.why.total(),
            )
        pieces = []
        for piece in parts(asked):
            if masked:
                piece, found = mask(piece)
                counts += found
            pieces.append(piece)
        texts[report] = tuple(pieces)
    return Questions(texts, counts, sentences, doubted)


def cache_of(store: Folder, style: Style, model: str, options: LlmOptions) -> AnswerCache:
    """Where the answers in a style are kept."""
    asked_with = {
        "model": model,
        "instruction": instruction(style),
        "schema": schema(style),
        "answer_tokens": options.answer_tokens,
    }
    return AnswerCache(Folder(options.cache or store.at(ANSWERS)), asked_with)


def identity(style: Style) -> str:
    """The name of a style's model in the cache: a folder's is made from its files."""
    from brgsa_platform.summaries.backends.local import fingerprint

    return fingerprint(Path(style.model)) if _is_local(style) else style.model


def _is_local(style: Style) -> bool:
    return style.backend in ("transformers", "hybrid") and Path(style.model, "config.json").is_file()


def make_backend(style: Style, options: LlmOptions, spending: Spending) -> Backend:
    """The backend of a style that asks a language model; a hybrid asks a local one where its model is a folder."""
    if style.backend == "ray-llm":
        from brgsa_platform.summaries.backends.ray_llm import RayLlmBackend

        return RayLlmBackend(style, options, spending)
    if style.backend == "transformers" or _is_local(style):
        from brgsa_platform.summaries.backends.local import LocalBackend

        return LocalBackend(style, options, spending)
    from brgsa_platform.summaries.backends.endpoint import EndpointBackend

    return EndpointBackend(style, options, spending)


def ask(asked: Questions, backend: Backend, cache: AnswerCache, what: str) -> dict[str, Answer]:
    """text → answer, of every distinct text: from the cache, else from the backend, and then kept.

    Raises:
        UserError: the backend or the cache fails; what was answered before is kept.
    """
    keys = {text: cache.key(text) for text in asked.distinct}
    known = cache.known(keys.values())
    answers = {text: known[key] for text, key in keys.items() if key in known}
    missing = [text for text in keys if text not in answers]
    if missing:
        cache.check()
        with progress(len(missing), what) as advance:
            for number, answer in backend.answers(missing):
                text = missing[number]
                answers[text] = answer
                if answer != NO_ANSWER:
                    cache.keep(keys[text], answer)
                advance(1, _spent(backend.spending))
    return answers


def _spent(spending: Spending) -> str:
    tokens = f"{spending.sent + spending.answered:,} tokens"
    return f"{tokens}, cost {spending.cost:.4f}" if any(spending.price) else tokens


def dry_run(reports: Sequence[str], style: Style, options: LlmOptions, cache: AnswerCache, examples: int = 3) -> str:
    """What asking would mean: reports, questions, tokens, cost, and some examples as they would be sent."""
    asked = questions(reports, style, options.masks(), options.unread)
    known = cache.known(cache.key(text) for text in asked.distinct)
    missing = [text for text in asked.distinct if cache.key(text) not in known]
    head = estimated_tokens(instruction(style))
    sent = sum(head + estimated_tokens(text) for text in missing)
    answered = len(missing) * options.answer_tokens
    spending = Spending(options.price)
    lines = [
        f"{style.key}: {len(reports)} distinct reports, {len(asked.distinct)} questions, {len(known)} answered already, "
        f"{len(missing)} to ask. About {sent:,} tokens to send, at most {answered:,} to get, "
        f"cost at most {spending.cost_of(sent, answered):.4f}."
    ]
    if asked.sentences:
        lines.append(f"{asked.doubted} of {asked.sentences} sentences are in doubt.")
    if options.masks():
        lines.append("Masked: " + (", ".join(f"{n} {kind}" for kind, n in asked.masked.items()) or "nothing") + ".")
    lines += [f"--- example {number + 1}\n{text}" for number, text in enumerate(missing[:examples])]
    return "\n".join(lines)
