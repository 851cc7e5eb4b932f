"""Protocols as files: what is shipped, what a file of a user may say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from refusals import refused

from brgsa.metrics import PAPER_RULE, Drawing
from brgsa.model import Embeddings
from brgsa.protocols import SHIPPED, Prompts, Protocol, load_protocol
from brgsa.zeroshot import Scorer, contrast_scores, prompts, scores

FOLDER = Path(__file__).parents[3] / "brgsa" / "protocols"


def written(path: Path, tree: Any) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def test_every_shipped_file_is_a_protocol_of_its_name() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(SHIPPED)
    for name in SHIPPED:
        protocol = load_protocol(name)
        assert protocol.name == name
        assert protocol.about.endswith(".")


def test_the_paper_s_protocol_is_the_published_code_s() -> None:
    paper = load_protocol("brgsa-paper")
    assert paper.drawing == Drawing(5000, seed=0, seed_each=True)
    assert paper.rule == PAPER_RULE
    assert (paper.threshold, paper.bootstrap.unit, paper.unit) == ("test", "volume", "volume")
    assert len(load_protocol("radfinder-mean7").prompts.contrast) == 7


def test_a_file_of_a_user_changes_what_it_names(tmp_path: Path) -> None:
    path = written(
        tmp_path / "ours.yaml", {"unit": "patient", "bootstrap": {"resamples": 7}, "max_of": {"A": ["B", "C"]}}
    )
    protocol = load_protocol(path)
    assert protocol == load_protocol(str(path))
    assert (protocol.name, protocol.unit, protocol.bootstrap.resamples) == ("ours", "patient", 7)
    assert protocol.threshold == Protocol().threshold
    plain = protocol.to_dict()
    assert plain["max_of"] == {"A": ["B", "C"]}
    name = plain.pop("name")
    assert load_protocol(written(tmp_path / f"{name}.yaml", plain)) == protocol


@pytest.mark.parametrize(
    ("tree", "code", "field"),
    [
        ({"treshold": "test"}, "unknown-key", "treshold"),
        ({"bootstrap": {"unit": "scan", "resample": 3}}, "unknown-key", "bootstrap.resample"),
        ({"name": "mine"}, "unknown-key", "name"),
        ({"prompts": {"template": "There is {abnormality}."}}, "unknown-key", "prompts.template"),
        ({"unit": "hospital"}, "protocol-value", "unit"),
        ({"bootstrap": {"unit": "hospital"}}, "protocol-value", "bootstrap.unit"),
        ({"bootstrap": {"resamples": 0}}, "protocol-value", "bootstrap.resamples"),
        ({"bootstrap": {"resamples": True}}, "protocol-value", "bootstrap.resamples"),
        ({"bootstrap": 3}, "protocol-value", "bootstrap"),
        ({"prompts": {"templates": "There is {abnormality}."}}, "protocol-value", "prompts.templates"),
        ({"prompts": {"templates": []}}, "protocol-value", "prompts.templates"),
        ({"prompts": {"contrast": ["No {abnormality}.", "Not {abnormality}."]}}, "protocol-value", "prompts.contrast"),
        ({"prompts": {"inverse_temperature": 0}}, "protocol-value", "prompts.inverse_temperature"),
        ({"prompts": {"templates": ["There is it."]}}, "prompt-template", "template"),
        ({"max_of": ["Calcification"]}, "protocol-value", "max_of"),
        ({"about": 3}, "protocol-value", "about"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, tree: dict[str, Any], code: str, field: str) -> None:
    with refused(code, field=field):
        load_protocol(written(tmp_path / "wrong.yaml", tree))


def test_an_unknown_key_is_told_the_nearest(tmp_path: Path) -> None:
    with refused("unknown-key") as caught:
        load_protocol(written(tmp_path / "wrong.yaml", {"treshold": "test"}))
    assert "threshold" in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a list", "key: [unclosed", "\x00"])
def test_what_is_no_protocol_at_all_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with refused("unreadable-protocol", value=str(path)):
        load_protocol(path)
    with refused("unreadable-protocol"):
        load_protocol(tmp_path / "absent.yaml")


def test_a_label_takes_the_larger_score_of_its_parts() -> None:
    protocol = Protocol(max_of={"Calcification": ("Arterial", "Coronary")})
    scored = np.array([[1.0, 4.0, 9.0], [3.0, 2.0, 8.0]])
    combined = protocol.combined(["Nodule", "Calcification"], ["Arterial", "Coronary", "Nodule"], scored)
    np.testing.assert_array_equal(combined, [[9, 4], [8, 3]])
    assert protocol.asked(["Nodule", "Calcification", "Arterial"]) == ["Nodule", "Arterial", "Coronary"]
    assert protocol.can_score("Calcification", ["Arterial", "Coronary"])
    assert not protocol.can_score("Calcification", ["Arterial"])
    assert protocol.combined(["Calcification"], ["Arterial", "Calcification"], scored[:, :2]).tolist() == [[4], [2]]


def encode(texts: list[str]) -> Embeddings:
    """An embedding that only the text decides."""
    rows = [torch.randn(6, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return Embeddings(torch.stack(rows), torch.stack(rows) * 0.5 + 1)


VOLUMES = Embeddings(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), torch.randn(5, 6))
NAMES = ["Lung nodule", "Emphysema"]


def test_one_prompt_scores_as_it_always_did() -> None:
    scorer = Scorer.of(NAMES, Prompts(), encode)
    torch.testing.assert_close(scorer(VOLUMES), scores(VOLUMES, encode(prompts(NAMES))))


def test_an_ensemble_averages_embeddings_or_scores() -> None:
    templates = ("There is {abnormality}.", "{abnormality} is seen.")
    each = [encode(prompts(NAMES, template)) for template in templates]
    by_scores = Scorer.of(NAMES, Prompts(templates, ensemble="scores"), encode)(VOLUMES)
    torch.testing.assert_close(by_scores, torch.stack([scores(VOLUMES, one) for one in each]).mean(dim=0))
    by_embeddings = Scorer.of(NAMES, Prompts(templates), encode, "v.t")(VOLUMES)
    mean = torch.stack([one.plain / one.plain.norm(dim=1, keepdim=True) for one in each]).mean(dim=0)
    torch.testing.assert_close(by_embeddings, scores(VOLUMES, Embeddings(mean, None), "v.t"))


def test_synonyms_join_the_ensemble_and_contrast_is_a_softmax_over_the_pair() -> None:
    asked = Prompts(contrast=("No {abnormality}.",), synonyms={"Lung nodule": ("Pulmonary nodule",)}, ensemble="scores")
    made = Scorer.of(NAMES, asked, encode)(VOLUMES)

    def pair(name: str) -> torch.Tensor:
        yes, no = (encode(prompts([name], template)) for template in (*asked.templates, *asked.contrast))
        return contrast_scores(VOLUMES, yes, no)[:, 0]

    torch.testing.assert_close(made[:, 0], (pair("Lung nodule") + pair("Pulmonary nodule")) / 2)
    torch.testing.assert_close(made[:, 1], pair("Emphysema"))


def test_the_page_s_example_is_a_protocol(tmp_path: Path) -> None:
    page = (FOLDER.parents[1] / "docs" / "evaluation.md").read_text()
    path = tmp_path / "example.yaml"
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert load_protocol(path).prompts.synonyms == {"Pleural effusion": ("Fluid in the pleural space",)}
