"""What a benchmark ran on, in one line beside its numbers."""

import platform
import subprocess
from pathlib import Path

import torch
import transformers


def describe_machine() -> str:
    """Processor, threads, load, accelerator, versions and commit."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    load = Path("/proc/loadavg").read_text().split()[0]
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        f"{names[0]} x {len(names)}, {torch.get_num_threads()} torch threads, load {load}, {accelerator}; Python"
        f" {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; {commit}"
    )
