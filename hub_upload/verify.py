"""Proves that a staged repository works for a stranger, and gives the very output of the checkpoint it was made of.

Knows no Hub.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import load_file

from pipeline_dacse import AudioEnhancementPipeline

from . import fresh_process
from .doors import handler

CODE_ROOMS = ("modeling_dacse", "processing_dacse", "pipeline_dacse")
PROBE_FRAMES = 4


def verify(folder: Path, enhance: AudioEnhancementPipeline, trust_remote_code: bool = False) -> None:
    """Runs the repository in `folder` in a fresh process and compares its outputs bit for bit with those of `enhance`.

    In that process no room can be imported, the network is off and the cache is empty: configuration, model, processor
    and pipeline come from the folder alone.

    Args:
        folder: a staged repository.
        enhance: the checkpoint it was made of, on the CPU.
        trust_remote_code: runs code in `folder` that differs from this package's.

    Raises:
        PermissionError: there is such code and it is not trusted.
        ValueError: the fresh process fails, or an output differs.
    """
    foreign = foreign_code(folder)
    if foreign and not trust_remote_code:
        raise PermissionError(
            f"{', '.join(foreign)} in {folder} is not this package's code; read it, then pass --trust-remote-code"
        )
    probe = probe_waveform(enhance.processor)
    with torch.inference_mode():
        expected = fresh_process.outputs(enhance.model, enhance.processor, enhance, probe)
    found = outputs_of_a_stranger(folder, probe)
    for name, value in expected.items():
        if value.dtype != found[name].dtype or not np.array_equal(value, found[name]):
            raise ValueError(f"{folder}: loaded as remote code, its {name} differ from the checkpoint's")


def foreign_code(folder: Path) -> list[str]:
    """Names of Python files in `folder` that are not, byte for byte, the travelling files of this installation."""
    travelling = [path for room in CODE_ROOMS for path in Path(find_spec(room).origin).parent.glob("*_dacse.py")]
    own = {path.name: path.read_bytes() for path in (*travelling, Path(handler.__file__))}
    return [path.name for path in sorted(folder.rglob("*.py")) if own.get(path.name) != path.read_bytes()]


def probe_waveform(processor) -> np.ndarray:
    """A few frames of a noisy tone, the same every time, float32 (sample,); ends inside a frame."""
    num_samples = PROBE_FRAMES * processor.hop_length - processor.hop_length // 2
    time = np.arange(num_samples) / processor.sampling_rate
    noise = np.random.default_rng(0).standard_normal(num_samples)
    return (0.3 * np.sin(2 * np.pi * 220 * time) + 0.05 * noise).astype(np.float32)


def outputs_of_a_stranger(folder: Path, probe: np.ndarray) -> dict[str, np.ndarray]:
    with TemporaryDirectory(prefix="dacse-verify-") as home:
        probe_path, outputs_path = Path(home, "probe.npy"), Path(home, "outputs.safetensors")
        np.save(probe_path, probe)
        stranger = {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
        run = subprocess.run(
            [sys.executable, "-P", fresh_process.__file__, folder.resolve(), probe_path, outputs_path],
            cwd=home,
            env=os.environ | stranger,
            capture_output=True,
            text=True,
        )
        if run.returncode:
            reason = [f"exit status {run.returncode}", *run.stderr.strip().splitlines()][-1]
            raise ValueError(f"{folder} does not load in a process without this package: {reason}")
        return load_file(outputs_path)
