"""A small configuration that trains on the labels of the store `pairs`."""

from __future__ import annotations

from brgsa_platform.config import RunConfig, load_config

NAME = "Pleural effusion"  # the only label of that store
SETTINGS = [
    "data={style: report, shuffle_buffer: 20}",
    "model.vision={name: cnn3d, volume: [16, 16, 8], width: 4}",
    "train={epochs: 1, batch_size: 8, threads: 1, workers: 0}",
]


def config(*more: str) -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, "loss.supervised=0.5", *more])
