"""Trains the embedded model from a corpus of speech, noise and rooms, stage by stage; each goes on where it stopped.

python examples/train_tiny --data CORPUS --output runs/tiny                        # all stages, on a CPU or one GPU
python examples/train_tiny --data CORPUS --output runs/tiny --stage codec --seconds codec=600
python examples/train_tiny --data CORPUS --output runs/tiny --slice-seconds 540    # exit status 75: run it again

README.md beside this file says what the stages do and where everything lands.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from bars import evaluate
from card import write_card
from lm import build_tokens, train_adapters, train_stage1, train_stage2, train_subsampled
from settings import HERE, Run, add_run_options, read_run, without_budgets
from stages import decode, package, refine_decoder, train_codec

STAGES = {
    "corpus": decode,
    "codec": train_codec,
    "decoder": refine_decoder,
    "tokens": build_tokens,
    "subsampled": train_subsampled,
    "stage1": train_stage1,
    "stage2": train_stage2,
    "package": package,
    "adapters": train_adapters,
    "evaluate": evaluate,
    "card": write_card,
}
TRAINED = ("codec", "decoder", "tokens", "subsampled", "stage1", "stage2", "adapters")  # go on from what is there
UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again


def read_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_options(parser)
    parser.add_argument("--stage", nargs="+", choices=STAGES, help="some alone; else all that are not finished")
    parser.add_argument("--slice-seconds", type=float, help="stop after so long, with exit status 75 if work is left")
    return parser.parse_args(argv)


def run_slice(argv: list[str], seconds: float) -> int:
    """Runs this program with `argv` for at most so long; what is lost is what came after the last checkpoint."""
    process = subprocess.Popen([sys.executable, HERE, *argv, "--slice-seconds", "inf"], start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"{seconds:g} s are over; the same command goes on", flush=True)
        return UNFINISHED
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own processes too
            process.wait()


def read_finished(path: Path) -> dict[str, dict]:
    """The settings of the stages that are done."""
    return json.loads(path.read_text()) if path.exists() else {}


def run_stages(run: Run, chosen: list[str] | None) -> None:
    """Runs chosen stages, or all from the first that was not finished with these settings.

    Raises:
        SystemExit: what would go on was made with other settings than these, budgets aside.
    """
    done_path = run.output / "finished.json"
    done, stale = read_finished(done_path), False
    for name in TRAINED:
        if name in done and without_budgets(done[name]) != without_budgets(run.made_with(name)):
            raise SystemExit(
                f"{run.output}: {name} was made with {without_budgets(done[name])}, and is to go on with "
                f"{without_budgets(run.made_with(name))}; give another --output"
            )
    for name, work in STAGES.items():
        settings = run.made_with(name)
        stale |= done.get(name) != settings
        if name not in chosen if chosen else not stale:
            continue
        print(f"stage {name}", flush=True)
        work(run)
        done = read_finished(done_path) | {name: settings}  # another process may have done others meanwhile
        done_path.write_text(json.dumps(done, indent=2) + "\n")


def main() -> int:
    argv = sys.argv[1:]
    args = read_arguments(argv)
    if args.slice_seconds not in (None, float("inf")):
        return run_slice(argv, args.slice_seconds)
    run = read_run(args)
    run_stages(run, args.stage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
