"""`premed plan`: how many pre-trainings, seeds, patients and labels it takes to separate a difference."""

from pathlib import Path
from typing import Annotated, Any

import typer

from premed.cli.options import Json, loading, print_result, redirect_prints, tell_written
from premed.errors import UserError
from premed.reporting.refusals import refuse_picture
from premed.tracking.client import require_store

Task = Annotated[str | None, typer.Option(help="one task [default: all that the store has]")]
Baseline = Annotated[
    str | None, typer.Option(metavar="NAME", help="what the others are compared with [default: the strategy none]")
]
Allow = Annotated[
    list[str] | None, typer.Option(metavar="FIELD", help="may differ between runs, as finetune.lr; may be repeated")
]
Where = Annotated[list[str] | None, typer.Option(metavar="FIELD=VALUE", help="only runs that have it; may be repeated")]
PartName = Annotated[str | None, typer.Option(help="test or val [default: test where runs have it]")]
Margin = Annotated[float | None, typer.Option(metavar="D", help="plan for this difference [default: the measured one]")]
Power = Annotated[float, typer.Option(metavar="P", help="the chance to show it that is wanted")]
SdPretraining = Annotated[
    float | None, typer.Option(metavar="SD", help="of the difference, from pre-training to pre-training, as stated")
]
SdFinetuning = Annotated[
    float | None, typer.Option(metavar="SD", help="of the difference, from fine-tuning seed to seed, as stated")
]
SdPatients = Annotated[
    float | None, typer.Option(metavar="SD", help="of the difference, from patient to patient; with --n-patients")
]
NPatients = Annotated[
    int | None, typer.Option(metavar="N", help="test patients: plan from guesses alone, without a store")
]
NSeeds = Annotated[int | None, typer.Option(metavar="N", help="pre-trainings, with --n-patients [default: 3]")]
Picture = Annotated[
    Path | None, typer.Option(metavar="FILE", help="the smallest differences over numbers, as .svg or .png")
]


def plan(
    task: Task = None,
    baseline: Baseline = None,
    allow: Allow = None,
    where: Where = None,
    part: PartName = None,
    margin: Margin = None,
    power: Power = 0.8,
    sd_pretraining: SdPretraining = None,
    sd_finetuning: SdFinetuning = None,
    sd_patients: SdPatients = None,
    n_patients: NPatients = None,
    n_seeds: NSeeds = None,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Plan a comparison: the smallest difference it shows, and how many seeds and patients separate the measured one.

    From the runs in the store or, with --n-patients, from guesses; docs/plan.md says how. For example:

    premed plan --n-patients 40 --sd-patients 0.05 --sd-finetuning 0.01 --margin 0.02
    """
    if part not in (None, "test", "val"):
        raise UserError(f"--part {part}: write --part test or --part val")
    selection: dict[str, Any] = {"task": task, "baseline": baseline, "allow": allow, "where": where, "part": part}
    refuse_mixed(selection, {"sd-patients": sd_patients, "n-seeds": n_seeds}, n_patients)
    if picture is not None:
        refuse_picture(picture)
    if n_patients is None:
        require_store()
    with loading():
        from premed.reporting.sample_size import picture as drawing
        from premed.reporting.sample_size import plan, terminal
        from premed.reporting.sample_size.components import Stated
        from premed.reporting.sample_size.settings import PlanSettings
        from premed.tracking.run_store import open_store

    settings = PlanSettings(power, margin, Stated(sd_pretraining, sd_finetuning))
    with redirect_prints(as_json):
        if n_patients is not None:
            result = plan.from_guesses(
                settings, sd_patients, n_patients, **({} if n_seeds is None else {"num_seeds": n_seeds})
            )
        else:
            selection |= {name: selection[name] or () for name in ("allow", "where")}
            result = plan.from_store(open_store(), settings, **selection)
    if picture is not None:
        drawing.write(result, picture)
    print_result(result, as_json, terminal.show)
    tell_written(picture)


def refuse_mixed(selection: dict[str, Any], guesses: dict[str, Any], n_patients: int | None) -> None:
    """Raises UserError if guesses alone are given with a choice of runs, or without the number of patients."""
    chosen = next((name for name, value in selection.items() if value), None)
    guessed = next((name for name, value in guesses.items() if value is not None), None)
    if n_patients is not None and chosen:
        raise UserError(f"--n-patients: plans from guesses alone, and --{chosen} chooses runs; leave one of them out")
    if n_patients is None and guessed:
        raise UserError(f"--{guessed}: is of a plan from guesses; state --n-patients too, or leave it out")
