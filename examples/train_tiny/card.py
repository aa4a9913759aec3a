"""The card of the packaged model, from `card.yaml`, its evaluation and its bars. Knows no weights."""

import json
import shutil
from dataclasses import replace

from lm import NAME
from settings import HERE, Run

from hub_upload.card import model_card
from hub_upload.facts import Evaluation, Facts, Goal
from hub_upload.stage import open_checkpoint, stage_evaluations


def write_card(run: Run) -> None:
    """`evaluation` -> the README of `package`, and its facts, from which it is written again where it is published."""
    shutil.rmtree(run.package / "evaluation", ignore_errors=True)
    system = f"dacse:{run.package_name}"
    runs = [Evaluation(str(run.output / "evaluation" / name), system) for name in ("test", "examples")]
    goals = [Goal(**goal) for goal in json.loads((run.output / "evaluation/bars.json").read_text())]
    facts = replace(Facts.read(HERE), evaluations=runs, goals=goals)
    facts = stage_evaluations(run.output, run.package, facts)
    facts.write(run.package)
    enhance = open_checkpoint(str(run.package))
    (run.package / "README.md").write_text(model_card(NAME, enhance.model, enhance.processor, facts, run.package))
