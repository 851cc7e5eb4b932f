"""What a machine's CPUs, memory, disk, network and GPUs do, by MLflow's own monitors and under its names."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any


class SystemMetrics:
    """The monitors of this machine: CPU, memory, disk and network, and NVIDIA's GPUs where nvidia-ml-py sees any.

    Args:
        prefix: of the metrics' names.
    """

    def __init__(self, prefix: str = "system/") -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._prefix = prefix
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no nvidia-ml-py, no driver, or no GPU
            self._monitors.append(GPUMonitor())

    @staticmethod
    def are_available() -> bool:
        """Whether psutil is installed, which the monitors read."""
        return importlib.util.find_spec("psutil") is not None

    def read(self) -> dict[str, float]:
        """Their values now; some are since the last reading."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {self._prefix + name: float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
