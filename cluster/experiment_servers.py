"""MLflow and Weights & Biases: a run's numbers and settings, sent to where a team keeps them.

A run that is resumed goes on with the same curves. It computes some steps again; those that the
other side has already are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["MLflowRun", "WandbRun"]

PROJECT = "lookalike"
TAG = "lookalike.run"
MAX_METRICS, MAX_PARAMS = 1000, 100
MAX_VALUE_CHARS = 500


class MLflowRun:
    """A run of the MLflow experiment ``lookalike``, found again by a tag.

    Args:
        uri: of the tracking server, or of a database.
        name: of the run.
        uid: identity of the run.
        settings: what it computes.
        artifacts: where a new experiment would keep files, of which lookalike sends none.
    """

    def __init__(
        self, uri: str, name: str, uid: str, settings: Mapping[str, Any], artifacts: str | None
    ) -> None:
        self._uri, self._name, self._uid = uri, name, uid
        self._settings, self._artifacts = settings, artifacts
        self._client: Any = None
        self._run_id = ""

    def open(self) -> int:
        """Begin or go on; returns the last step that is there, -1 without any."""
        # A library that counts its users does so with their consent, or not at all.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        experiment = self._client.get_experiment_by_name(PROJECT)
        if experiment is None:
            home = self._client.create_experiment(PROJECT, artifact_location=self._artifacts)
        else:
            home = experiment.experiment_id
        found = self._client.search_runs([home], filter_string=f"tags.`{TAG}` = '{self._uid}'")
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            history = self._client.get_metric_history(self._run_id, "loss")
            return max((metric.step for metric in history), default=-1)
        made = self._client.create_run(home, run_name=self._name, tags={TAG: self._uid})
        self._run_id = made.info.run_id
        self._log_settings()
        return -1

    def _log_settings(self) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:MAX_VALUE_CHARS]) for key, value in _flat(self._settings)]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])

    def log(self, lines: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        """Send lines, each with its wall time in seconds."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(1000 * wall_s), int(line["step"]))
            for wall_s, line in lines
            for name, value in line.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MAX_METRICS])

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self, *, done: bool) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._run_id, "FINISHED" if done else "KILLED")


class WandbRun:
    """A run of the Weights & Biases project ``lookalike``, known by its id.

    Args:
        name: of the run.
        uid: identity of the run.
        settings: what it computes.
        folder: on a disk, for its files; what an offline run leaves is to be synced from there.
        written_until: the last step that an earlier part of the run wrote, which counts where no
            server can be asked.
    """

    def __init__(
        self, name: str, uid: str, settings: Mapping[str, Any], folder: Path, written_until: int
    ) -> None:
        self._name, self._uid, self._settings = name, uid, settings
        self._folder, self._written_until = folder, written_until
        self._run: Any = None

    def open(self) -> int:
        """Begin or go on; returns the last step that is there, -1 without any."""
        import wandb

        went_before = any((self._folder / "wandb").glob(f"*run-*-{self._uid}"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            name=self._name,
            id=self._uid,
            resume="allow",
            dir=str(self._folder),
            config=dict(self._settings),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        there = int(self._run.starting_step) - 1
        offline = bool(self._run.settings.mode == "offline")
        return max(there, self._written_until) if offline and went_before else there

    def log(self, lines: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        """Send lines; their wall time is W&B's own."""
        for _, line in lines:
            values = {name: value for name, value in line.items() if name != "step"}
            self._run.log(values, step=int(line["step"]))

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self, *, done: bool) -> None:
        """Say how it ended, and wait until all is sent."""
        self._run.finish(exit_code=0 if done else 1)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the innermost settings.

    >>> list(_flat({"epochs": 3, "optim": {"lr": 0.1}}))
    [('epochs', 3), ('optim.lr', 0.1)]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
