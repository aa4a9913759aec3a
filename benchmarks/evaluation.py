"""Puts a finished run into the documentation: the table in README.md, the whole report in docs/evaluation/.

    dacse evaluate -t CORPUS --recipe examples/configs/recipe_tiny.yaml --clips-per-task 40 \\
        --where "bandwidth_hz >= 14000 and snr_db >= 28" \\
        -s noisy,clean,codec,generated,dacse,noisereduce,rnnoise,deepfilternet -o RUN -p 2
    python benchmarks/evaluation.py RUN
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from evaluation_dacse.report import digest_table, footer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- evaluation -->\n).*?(?=<!-- /evaluation -->)", re.DOTALL)


def publish(run: Path, readme: Path, folder: Path) -> None:
    """Copies the report of `run` into `folder` and writes its digest into the marked block of `readme`."""
    summary = json.loads((run / "summary.json").read_text())
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "summary.json", folder)
    shutil.copy(run / "report.md", folder / "README.md")
    for plot in (run / "plots").iterdir():
        shutil.copy(plot, folder / "plots")
    test_set = summary["test_set"]
    about = (
        f"{test_set['clips']} clips of {len(test_set['tasks'])} tasks, checksum `{test_set['checksum']}`; the best "
        "enhancer of each column is bold, whoever it is; work in seconds of one core per second of audio."
    )
    text = "\n\n".join([digest_table(summary), about, footer(summary)])
    readme.write_text(BLOCK.sub(lambda _: f"{text}\n", readme.read_text()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished `dacse evaluate`")
    publish(parser.parse_args().run, ROOT / "README.md", ROOT / "docs" / "evaluation")
