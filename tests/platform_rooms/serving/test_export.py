"""Exported towers: the checkpoint's scores from a process that cannot import brgsa."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from brgsa import checkpoint, zeroshot
from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.model import BrgSA
from brgsa.text import train_tokenizer
from brgsa.volumes import Geometry
from brgsa_platform.cli.main import main
from brgsa_platform.serving import export as exporting

pytestmark = pytest.mark.slow

LABELS = ["Cardiomegaly", "Pleural effusion", "Lung nodule"]
SIZE = (24, 16, 8)  # larger than the crop: the position table is resized within the program
VISION = {
    "vit3d": VisionConfig(volume=(16, 16, 8), patch=(8, 8, 4), width=16, depth=1, heads=2, mlp=32),
    "cnn3d": VisionConfig(name="cnn3d", volume=(16, 16, 8), width=4, windows=((-1000, -200), (-160, 240))),
}


def saved(folder: Path, tower: str, **text: Any) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        vision=VISION[tower],
        text=TextConfig(max_tokens=16, layers_summed=1, width=16, depth=1, heads=2, **text),
        bank=BankConfig(enabled=tower == "vit3d", size=8),
        embedding=12,
    )
    tokenizer = train_tokenizer(zeroshot.prompts(LABELS) * 2, 200)
    data = {"geometry": Geometry((4.0, 4.0, 8.0), SIZE).to_dict(), "style": "report"}
    return checkpoint.save(folder, BrgSA(config, tokenizer=tokenizer), {"data": data, "labels": LABELS})


@pytest.mark.parametrize(("tower", "text"), [("vit3d", {}), ("cnn3d", {"pool": "words", "form": "written"})])
def test_the_example_gives_the_models_scores(tmp_path: Path, tower: str, text: dict[str, Any], capsys: Any) -> None:
    folder, out = saved(tmp_path / "model", tower, **text), tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    main(["export", str(folder), "--out", str(out)])
    assert "example.py" in capsys.readouterr().out
    hu = np.random.default_rng(0).integers(-1500, 1500, SIZE).astype(np.int16)
    np.save(tmp_path / "volume.npy", hu)
    prompts = ["There is pleural effusion.", "Unheard-of words: cardiomegaly, lung nodule. Seen."]
    code = "import sys, runpy; sys.modules['brgsa'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", code, str(out / "example.py"), str(tmp_path / "volume.npy"), *prompts]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = [float(line.split("\t")[0]) for line in done.stdout.splitlines()]
    model = checkpoint.load(folder).model
    volume = torch.from_numpy(hu).float().div(1000).clamp(-1, 1)[None, None]
    expected = zeroshot.scores(model.encode_volumes(volume), model.encode_texts(prompts), "mean")[0].tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert json.loads((out / "about.json").read_text())["labels"] == LABELS
    with refused("folder-not-empty", field="--out"):
        exporting.export(folder, out)


@pytest.mark.parametrize("asked", [[], ["--help"]])
def test_the_example_tells_its_usage(asked: list[str]) -> None:
    example = Path(exporting.__file__).with_name("export_example.py")
    told = subprocess.run([sys.executable, str(example), *asked], capture_output=True, text=True)
    assert "usage: export_example.py" in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


def test_a_program_that_differs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model", "vit3d")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with refused("export-differs"):
        exporting.export(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
