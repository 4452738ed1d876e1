"""The series of canary calls."""

from __future__ import annotations

from enum import StrEnum

from exporter.canaries.results import CanaryResult
from exporter.metrics.catalogue import Catalogue


class CanaryStage(StrEnum):
    """A stage of a canary call: the label `stage`."""

    ACCEPTED = "accepted"
    FINISHED = "finished"


class CanaryMetrics:
    """The series of one canary, made at 0."""

    def __init__(self, catalogue: Catalogue, account: str, canary: str) -> None:
        self.success = catalogue.canary_success.labels(account, canary)
        self.runs = {
            result: catalogue.canary_runs.labels(account, canary, result.value)
            for result in CanaryResult
        }
        self.stages = {
            stage: catalogue.canary_stages.labels(account, canary, stage.value)
            for stage in CanaryStage
        }
        self.last_success = catalogue.canary_last_success.labels(account, canary)


def remove_canary(catalogue: Catalogue, canary: str) -> None:
    """Drop a canary's series."""
    for family in catalogue.families():
        family.remove("canary", canary)
