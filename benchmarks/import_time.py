"""What `import dacse` costs beside the Auto classes of transformers, which it registers with.

    python benchmarks/import_time.py

Each import in a process of its own, interleaved; user time, which other work on the machine disturbs least.
"""

import argparse
import os
import statistics
import subprocess
import sys

from machine import describe_machine

STATEMENTS = {
    "transformers": "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor",
    "dacse": "import dacse",
}


def import_seconds(statement: str) -> float:
    """User time of a process that does nothing else."""
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{statement!r} failed")
    return usage.ru_utime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds = [{name: import_seconds(code) for name, code in STATEMENTS.items()} for _ in range(args.rounds)]
    medians = {name: statistics.median(seconds[name] for seconds in rounds) for name in STATEMENTS}
    print(describe_machine())
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items()))
    print(f"ratio {medians['dacse'] / medians['transformers']:.3f} (at most 1.1 wanted)")


if __name__ == "__main__":
    main()
