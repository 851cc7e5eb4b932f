"""A real language model, and a poor one, as endpoint: what it says is asked for, read and held to the reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm import MODEL, available, smollm

from brgsa.summaries import load_style, read_findings
from brgsa.summaries.llm.claims import read_answer
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.summaries import asking
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending
from brgsa_platform.summaries.summarize import checked_summary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="`make setup` installs SmolLM2 and its server"),
]
REPORTS = [
    "There is a nodule of 6 mm in the right lung. No pleural effusion.",
    "Emphysema in both lungs. Heart size is normal.",
]
STYLE = """
form: statements
say: [present, absent]
names: [Lung nodule, Pleural effusion, Emphysema, Cardiomegaly]
closed: true
backend: openai
model: {model}
instruction: "Read the chest CT report and say of each finding whether it is present or absent, {{names}}."
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with smollm() as url:
        yield url


def test_a_small_model_answers_in_the_schema_and_is_held_to_the_report(endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(STYLE.format(model=MODEL))
    style = load_style(file)
    options = LlmOptions(endpoint=endpoint, answer_tokens=80, concurrency=1)
    spending = Spending()
    asked = asking.questions(REPORTS, style, masked=False)
    backend = asking.make_backend(style, options, spending)
    answers = asking.ask(asked, backend, asking.cache_of(Folder(tmp_path), style, MODEL, options), "test")
    assert spending.requests == len(REPORTS)
    assert spending.answered > 20
    for report in REPORTS:
        assert read_answer(answers[report].content, style).fault == ""
        for policy in ("replace", "drop"):
            said = read_findings(checked_summary(report, [answers[report]], style, policy).summary)
            assert said.items() <= read_findings(report).items(), "what the report does not say is not in the summary"
