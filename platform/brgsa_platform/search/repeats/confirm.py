"""`brgsa tune --confirm K`: is the search's best better than its base, or was it lucky?

The best of many trials is partly the luckiest. So the K best configurations and the base are trained anew, each on the same new
seeds, and compared on the validation split. The test split is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brgsa.errors import UserError
from brgsa.files import write_json
from brgsa.protocols import load_protocol
from brgsa_platform.runtime.locks import held
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.search import study as studies
from brgsa_platform.search.repeats.arms import Arm, arm_settings, measure_arms, train_arms, trainings_of
from brgsa_platform.search.repeats.gains import ArmGain, arm_gains, group_columns, seed_means
from brgsa_platform.search.result import SearchResult
from brgsa_platform.search.spaces import drawn_config
from brgsa_platform.search.spec import SearchOptions, SearchSpec, read_spec, trial_name
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking

FOLDER = "confirmation"  # in the search's
BASE = "base"
SPLIT = "validation"
_GROUPS = {"auroc": "macro", "common": "common", "rare": "rare"}  # goal → group of the tables


@dataclass(frozen=True)
class Confirmation:
    """What became of a search's best configurations on new seeds.

    Attributes:
        folder: of the trainings.
        group: whose mean AUROC is compared.
        seeds: of each configuration.
        means: "base" and name of a trial → mean AUROC, a seed each.
        gains: of each configuration over the base; empty where the best trial is the base itself.
    """

    folder: Path
    group: str
    seeds: list[int]
    means: dict[str, list[float]]
    gains: list[ArmGain]

    @property
    def best(self) -> ArmGain | None:
        """The gain of the configuration that is the best on the new seeds."""
        return max(self.gains, key=lambda one: one.gain.value, default=None)

    @property
    def confirmed(self) -> bool:
        """Whether that configuration beats the base beyond chance."""
        return self.best is not None and self.best.beyond_chance

    def summary(self) -> str:
        """Whether the search's best is better than the base, in a line."""
        best = self.best
        if best is None:
            return "Confirmation: the best trial is the base itself, so there is nothing to confirm."
        verdict = "beats the base beyond chance" if self.confirmed else "does not beat the base beyond chance"
        base, own = (float(np.mean(self.means[name])) for name in (BASE, best.arm))
        gain = f"{best.gain.value:+.3f} ({best.gain.low:+.3f} to {best.gain.high:+.3f}), p {best.p_holm:.3f} after Holm"
        return (
            f"Confirmation on {len(self.seeds)} new seeds: {best.arm} {verdict}: validation AUROC {own:.3f} against "
            f"{base:.3f}, gain {gain}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        gains = {
            one.arm: {**one.gain._asdict(), "p": one.p, "p_holm": one.p_holm, "beyond_chance": one.beyond_chance}
            for one in self.gains
        }
        return {
            "split": SPLIT, "group": self.group, "seeds": self.seeds, "means": self.means, "gains": gains,
            "confirmed": self.confirmed,
        }  # fmt: skip


def confirm(searched: SearchResult, options: SearchOptions, best: int, seeds: int) -> Confirmation:
    """Train the `best` best configurations of a finished search and its base anew on `seeds` seeds, and compare them.

    Interrupted, the same call goes on.

    Args:
        options: as the search was run; its cache serves.

    Raises:
        UserError: option-value; cluster-too-small; arm-failed.
    """
    for option, value in (("--confirm", best), ("--confirm-seeds", seeds)):
        if value < 1:
            raise UserError(
                f"{option} must be at least 1, not {value}.", code="option-value", field=option, value=value
            )
    spec = read_spec(searched.out)
    assert spec is not None
    folder = searched.out / FOLDER
    goal = next(iter(spec.method.goals))
    arms = _arms(searched.out, spec, best)
    new_seeds = [spec.base.train.seed + 1 + i for i in range(seeds)]
    if len(arms) == 1:
        return Confirmation(folder, _GROUPS[goal], new_seeds, {}, [])
    folder.mkdir(exist_ok=True)
    trainings = trainings_of(arms, new_seeds)
    with held(folder, "confirm"), ray_session(), tracking.run("confirm", run_id=searched.run_id) as run:
        settings = arm_settings(Store.open(spec.store), spec.base, folder, run.run_id, options, preset=spec.preset)
        train_arms(settings, trainings)
        results = measure_arms(settings, trainings, SPLIT, load_protocol())
        group = _GROUPS[goal]
        gains = arm_gains(results, [(arm.name, BASE) for arm in arms[1:]], group)
        means = {name: seed_means(of, group_columns(of[0], group)) for name, of in results.items()}
        found = Confirmation(folder, group, new_seeds, means, gains)
        write_json(folder / "confirmation.json", found.to_json())
        run.log_artifact(folder / "confirmation.json")
        run.set_tags({"brgsa.confirmed": "yes" if found.confirmed else "no"})
    return found


def _arms(folder: Path, spec: SearchSpec, best: int) -> list[Arm]:
    """The base, and the best configurations that differ from it and from each other, the best first."""
    study = studies.open_study(folder.name, spec, studies.open_storage(folder, spec))
    complete = [trial for trial in studies.own_trials(study) if trial.state.name == "COMPLETE"]
    arms, seen = [Arm(BASE)], [spec.base]
    for trial in sorted(complete, key=lambda trial: (-trial.values[0], trial.number))[:best]:
        values = studies.values_of(trial, spec.parameters)
        config = drawn_config(spec.base, values)
        if config not in seen:
            arms.append(Arm(trial_name(trial.number), values))
            seen.append(config)
    return arms
