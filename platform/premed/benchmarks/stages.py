"""The stages of experiments one after another in this process, without a sweep: no Ray, MLflow, Optuna or driver.

    python -m premed.benchmarks.stages experiment.yaml folder '["finetune.lr=0.01", …]' …

Each further argument is one experiment, as the fields of the YAML that it changes. A stage that several experiments
share is trained once. Prints what val measured of each fine-tuning, in that order.
"""

import json
import sys
from pathlib import Path
from typing import Any

from premed.config.compose import load
from premed.data.datamodule import Tasks
from premed.training.results import read_result
from premed.training.setup import StageJob
from premed.training.stage import run_stage


def main(yaml: str, folder: Path, changes: list[list[str]]) -> list[dict[str, float]]:
    """Trains what is not trained yet; returns the summaries of the fine-tunings."""
    tasks, summaries = Tasks(), []
    for fields in changes:
        experiment, before = load([yaml], [*fields, "test=false"]), None
        result: dict[str, Any] | None = None
        for stage in experiment.stages(lambda kind: ""):
            job = StageJob(stage, before, experiment.train, str(folder / "checkpoints"), folder / "cache")
            run_stage(job, lambda event: None, lambda numbers: None, tasks)  # returns at once if it has a result
            result, before = read_result(job.stage_storage), stage
            if result is None:
                raise ValueError(f"{stage.kind} failed: {job.stage_storage.get_json('failure.json')}")
        assert result is not None
        summaries.append(result["summary"])
    return summaries


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), [json.loads(each) for each in sys.argv[3:]])))
