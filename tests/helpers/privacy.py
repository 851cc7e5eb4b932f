"""What a tracking store must never hold: words of a report, names of volumes."""

from __future__ import annotations

import json
from pathlib import Path

from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection


def told_of_patients(store: Path, artifacts: Path, uri: str | None = None) -> list[str]:
    """Beginnings of the store's reports, and its volumes, that the experiment's runs or their JSON files tell.

    Args:
        artifacts: the folder that the tracking store keeps files in.
        uri: of the tracking store; by default MLFLOW_TRACKING_URI.
    """
    texts = Store.open(store).texts("report")
    client = connection.client(uri)
    experiment = client.get_experiment_by_name(connection.experiment_name())
    runs = client.search_runs([experiment.experiment_id])
    told = [json.dumps([run.data.params, run.data.tags, run.info.run_name], default=str) for run in runs]
    told += [path.read_text() for path in artifacts.rglob("*.json")]
    assert len(told) > len(runs) > 0, "there is nothing to look at"
    private = [text[:60] for text in texts.values()] + [f'"{volume}"' for volume in texts]
    return [words for words in private if any(words in text for text in told)]
