"""A run's folder: what a training writes there before its first step, and whether an earlier run there may go on.

RUN/run.json         configuration, store, MLflow run
RUN/tokenizer/       the small text tower's vocabulary
RUN/progress.json    how far the run is, while it runs
RUN/stop             asks the training to stop, see parallel/stopping
RUN/checkpoints/     see run_checkpoints
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brgsa import files, zeroshot
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, flatten
from brgsa_platform.runtime import locks
from brgsa_platform.runtime.waiting import patiently
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import query
from brgsa_platform.training import run_checkpoints

PROGRESS = "progress.json"
TOKENIZER = "tokenizer"

# A resumed run may differ in these and is still the same training.
FREE_TO_CHANGE = frozenset(
    {
        *(
            f"train.{key}"
            for key in (
                *("epochs", "stop_after", "workers", "gpu", "threads", "keep", "max_failures", "checkpoint_minutes"),
                *("micro_batch", "checkpoint_activations", "compile", "parallel", "log_every", "system_metrics"),
            )
        ),
        *(f"data.{key}" for key in ("loader", "cpus", "object_store_share")),
    }
)


def default_out(store: Store, config: RunConfig, preset: str | None) -> Path:
    """runs/NAME-HASH, the same for the same store and configuration: the same command goes on with its run.

    What stands at its default is left out, so that a key that a later version brings changes no name.
    """
    defaults = flatten(RunConfig().to_dict())
    chosen = {key: value for key, value in flatten(config.to_dict()).items() if value != defaults.get(key)}
    text = json.dumps([chosen, store.fingerprint], sort_keys=True)
    return Path("runs") / f"{preset or 'train'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def claimed(out: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a run's folder while a training works in it, so that no other training does; it is made where it is missing.

    A training that is refused before it has begun leaves no empty folder behind.

    Args:
        wait_s: seconds to wait for another process to leave the folder.

    Raises:
        UserError: another process trains there ("folder-in-use"), or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(out, error) from error
    try:
        with contextlib.ExitStack() as stack:
            patiently(lambda: stack.enter_context(locks.held(out, "train")), _is_in_use, wait_s)
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            out.rmdir()


def _is_in_use(error: Exception) -> bool:
    return isinstance(error, UserError) and error.code == "folder-in-use"


def previous_run(out: Path, store: Store, config: RunConfig) -> str | None:
    """MLflow run id of the run that began in a folder; None where none did, or MLflow no longer has it.

    Raises:
        UserError: the folder's run has another configuration or other data, or its learning rate ends with another epoch.
    """
    file = out / "run.json"
    if not file.is_file():
        return None
    before = files.read_json(file)
    _check_same(out, before["config"], config)
    if before["data"] != store.fingerprint:
        raise UserError(
            f"{out} holds a run on other data than {store.path}: choose another --out.",
            code="run-of-other-data",
            field="--out",
            value=str(out),
        )
    run_id = str(before["mlflow_run_id"])
    return run_id if query.exists(run_id) else None


def _check_same(out: Path, before: dict[str, Any], config: RunConfig) -> None:
    # A key that an earlier version did not know has the default, which must be what that version did.
    was, now = flatten(RunConfig().to_dict()) | flatten(before), flatten(config.to_dict())
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    for key in changed:
        if key not in FREE_TO_CHANGE:
            raise UserError(
                f"{out} holds a run of another configuration ({key} was {was.get(key)}, now {now.get(key)}): choose another "
                "--out or the same configuration.",
                code="run-of-other-configuration",
                field=key,
                value=now.get(key),
            )
    if "train.epochs" in changed and config.optim.schedule == "cosine":
        raise UserError(
            f"{out} holds a run of train.epochs={was['train.epochs']} whose cosine learning rate falls to 0 at that epoch's "
            f"end; with {now['train.epochs']} it would jump: keep train.epochs, or begin anew with another --out.",
            code="epochs-of-a-cosine",
            field="train.epochs",
            value=now["train.epochs"],
        )


def write_run(out: Path, store: Store, config: RunConfig, run_id: str) -> None:
    """Write run.json, and remove checkpoints that a killed run had not finished.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        (out / run_checkpoints.FOLDER).mkdir(parents=True, exist_ok=True)
        files.write_json(
            out / "run.json",
            {"config": config.to_dict(), "store": store.path, "data": store.fingerprint, "mlflow_run_id": run_id},
        )
        for aside in (out / run_checkpoints.FOLDER).glob(".epoch-*"):
            shutil.rmtree(aside)
    except OSError as error:
        raise not_writable(out, error) from error


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        UserError: "folder-not-empty".
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} is there already: choose another --out.", code="folder-not-empty", field="--out", value=str(out)
        )


def not_writable(out: Path, error: OSError) -> UserError:
    """Why nothing was written into a folder."""
    return UserError(
        f"The folder {out} cannot be written ({error.strerror}): choose another --out.",
        code="run-folder-not-writable",
        field="--out",
        value=str(out),
    )


def make_tokenizer(out: Path, store: Store, config: RunConfig) -> None:
    """Train the small text tower's vocabulary once, on the training split's texts and the zero-shot prompts."""
    if config.model.text.name != "small" or (out / TOKENIZER).is_dir():
        return
    from brgsa.text import as_read, train_tokenizer

    index = store.index(["volume_id", "split"])
    texts = store.texts(config.data.style)
    corpus = [
        texts[volume]
        for volume, split in zip(index["volume_id"].to_pylist(), index["split"].to_pylist(), strict=True)
        if split == "train"
    ]
    # Twice: the vocabulary keeps what it saw at least twice, and a prompt's words must be in it.
    read = as_read(corpus + 2 * zeroshot.prompts(store.labels), config.model.text.form)
    tokenizer = train_tokenizer(read, config.model.text.vocabulary)
    with files.written_aside(out / TOKENIZER) as aside:
        tokenizer.save_pretrained(str(aside))
