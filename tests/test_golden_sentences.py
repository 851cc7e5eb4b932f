"""The product's most important refusals, word for word: one sentence each, exit status 2, nothing written.

Everywhere else tests ask a refusal for its code, field and value. This page alone holds the wording, so that it reads as one
hand wrote it, and a change of it is seen.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commandline import brgsa

ROOT = Path(__file__).resolve().parents[1]

# As a user types them in the folder of the fixture `here`, which the sentences call {here}.
# {root} is the repository, and … a list that grows.
SENTENCES = {
    # a configuration
    "brgsa train --data empty --preset papr": "There is no preset 'papr' (did you mean paper?): ….",
    "brgsa train --data empty --preset demo-smoke model.bank.sise=3": (
        "Unknown key model.bank.sise in preset demo-smoke + the command line (did you mean size?); known here: "
        "enabled, size, init, scale_logits."
    ),
    "brgsa train --data empty --preset demo-smoke model.bank.size=0": (
        "model.bank in preset demo-smoke + the command line: bank.size must be at least 1, not 0; "
        "bank.enabled=false switches the bank off."
    ),
    "brgsa train --data empty --preset demo-smoke train.seed=-1": (
        "train.seed in preset demo-smoke + the command line: Input should be greater than or equal to 0."
    ),
    "brgsa train --data empty --preset mine.yaml": (
        "Unknown key optim.rate in preset mine.yaml (did you mean rates?); known here: …."
    ),
    "brgsa train --data empty --preset demo-smoke lr": "'lr' is not of the form section.key=value.",
    # an archive, a store
    "brgsa prepare absent.csv --layout manifest --out new": ("The source absent.csv does not exist: correct the path."),
    "brgsa prepare short.csv --layout manifest --out new": "short.csv has no column 'report'; it has: volume.",
    "brgsa prepare twice.csv --layout manifest --out new": (
        "twice.csv names 1 volume ids more than once (the first in row 1 and row 2): make each id unique."
    ),
    "brgsa prepare outside.csv --layout manifest --out new": (
        "The manifest outside.csv leads out of its own folder in row 1: name the folder where its volumes lie with "
        "--root, or correct the path."
    ),
    "brgsa prepare empty --layout ct-rate --out new": (
        "empty/radiology_text_reports holds no table *reports*.csv: put CT-RATE's there, or give --reports."
    ),
    "brgsa prepare good.csv --layout manifest --out mine": (
        "The folder {here}/mine is not empty and no store: choose another --out."
    ),
    "brgsa summarize empty --style positives": (
        "{here}/empty is not a store (it has no store.json): write one with `brgsa prepare`."
    ),
    # a checkpoint, a search
    "brgsa evaluate empty --data empty": (
        "empty is neither a checkpoint nor a run of `brgsa train` with one: give one of those folders."
    ),
    "brgsa predict broken scan.nii.gz": (
        "broken/model.json cannot be read (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)): the checkpoint is damaged, use another."
    ),
    "brgsa tune --data empty": "A search needs --data STORE and --space NAME, or --resume NAME to go on with one.",
    "brgsa tune --data empty --space cmk": "There is no search space 'cmk' (did you mean cmki?): ….",
    "brgsa tune --data empty --space cmki --sampler tpee": (
        "--sampler takes one of tpe, gp, cmaes, random, qmc, grid, nsga2, not tpee."
    ),
    "brgsa tune --resume nosuch": "There is no search nosuch in {here}/searches: name one of the folders there.",
    # other machines
    "MLFLOW_TRACKING_URI=http://user:secret@127.0.0.1:9 brgsa runs list": (
        "The MLflow server at http://127.0.0.1:9 (MLFLOW_TRACKING_URI) does not answer: start it, correct the "
        "address, or unset MLFLOW_TRACKING_URI to track in a local file."
    ),
    "brgsa jobs list": "Name the cluster: either --ray http://HOST:8265 or --kuberay.",
    "brgsa jobs list --ray http://127.0.0.1:9": (
        "No Ray dashboard answers at http://127.0.0.1:9 ([Errno 111] Connection refused): correct --ray, start the "
        "cluster, or forward its port (kubectl port-forward service/NAME-head-svc 8265)."
    ),
    "brgsa submit --ray head:6379 -- train": (
        "--ray head:6379 is the address of Ray's GCS, which takes no jobs: give the dashboard's, http://head:8265 "
        "unless it was moved."
    ),
    "brgsa submit --ray head -- tran": "brgsa has no verb 'tran' (did you mean train?).",
    "brgsa submit --ray head -- train --data store": (
        "brgsa train: --data is store, which in a job lies in a folder that is deleted with it: give an absolute "
        "path that every node has, or an s3:// URL."
    ),
    "MLFLOW_TRACKING_URI=http://user:secret@mlflow brgsa submit --ray head -- train --data /store --out /run": (
        "MLFLOW_TRACKING_URI holds a name or password, which process lists and logs would show: take it out and "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's nodes."
    ),
    "brgsa submit --kuberay --overlay gpus -- train": (
        "--overlay gpus is not in {root}/k8s/overlays (did you mean gpu?); there are: …."
    ),
    "brgsa doctor --ray http://head:8265": (
        "RAY_ADDRESS is http://head:8265, a dashboard: give HOST:6379 or auto on a node of the cluster, ray://HOST:10001 "
        "from elsewhere, or run the verb there with `brgsa submit`."
    ),
    "brgsa ui --server --host 0.0.0.0": (
        "--host 0.0.0.0 can be reached from other machines: name the hosts that clients may call it by, as in "
        "--allowed-hosts mlflow.example.org, or leave --host out."
    ),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user gets wrong."""
    folder = tmp_path_factory.mktemp("here")
    files = {
        "mine/thesis.txt": "years of work",
        "mine.yaml": "optim: {rate: 1}",
        "good.csv": "volume,report\na.nii.gz,No effusion.\n",
        "short.csv": "volume\na.nii.gz\n",
        "twice.csv": "volume,report\na.nii.gz,No effusion.\na.nii.gz,No effusion.\n",
        "outside.csv": "volume,report\n../a.nii.gz,No effusion.\n",
        "broken/model.json": "{",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("line", SENTENCES)
def test_the_sentence(line: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("RAY_ADDRESS", "")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_AUTH_ADMIN_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    settings, _, words = line.partition("brgsa ")
    for setting in settings.split():
        monkeypatch.setenv(*setting.split("=", 1))
    before = sorted(here.rglob("*"))
    done = brgsa(*shlex.split(words))
    sentence = SENTENCES[line].replace("{here}", str(here)).replace("{root}", str(ROOT))
    assert re.fullmatch(re.escape(f"brgsa: {sentence}\n").replace("…", ".+"), done.err), done.err
    assert (done.status, done.out) == (2, "")
    assert sorted(here.rglob("*")) == before
