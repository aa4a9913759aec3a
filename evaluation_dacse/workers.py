"""What runs in the worker processes: one system enhancing clips, or all metrics scoring them.

Every worker computes on one CPU core, so that their number changes no value and times compare.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import soundfile

from .alignment import align
from .metrics import load_metric
from .systems import DacSe, Recordings, load_system
from .testsets import SUBTYPE, Clip, read_clip, read_mono

# Of the workers: one core each, and no bars of transformers' within the benchmark's own progress.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
}


def run_in_workers(
    processes: int, start: Callable, setup: tuple, work: Callable, jobs: Mapping[str, tuple]
) -> Iterator[list[dict]]:
    """Runs `work(*job)` per named job in fresh processes that first run `start(*setup)`; yields results as they come.

    Raises:
        OSError: a worker died.
        Exception: what a job raised, with a note that names it; the jobs that wait are given up.
    """
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)  # read by the libraries as the new processes load them
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=die_at_ctrl_c) as pool:
            names = {pool.submit(started_work, start, setup, work, job): name for name, job in jobs.items()}
            try:
                for future in as_completed(names):
                    if error := future.exception():
                        error.add_note(f"while working on {names[future]}")
                        raise error
                    yield future.result()
            except BrokenProcessPool as error:
                raise OSError("a worker died, perhaps for lack of memory; try fewer processes") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


loaded = {}  # what this worker process was started with


def run_here(start: Callable, setup: tuple, work: Callable, jobs: Mapping[str, tuple]) -> Iterator[list[dict]]:
    """The same in this process, for work whose memory nobody measures."""
    start(*setup)
    for name, job in jobs.items():
        try:
            rows = work(*job)
        except Exception as error:
            error.add_note(f"while working on {name}")
            raise
        yield rows


def die_at_ctrl_c() -> None:
    """Leaves the word to the process that is asked to stop: a worker has nothing to say about it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started_work(start: Callable, setup: tuple, work: Callable, job: tuple):
    """Starts a process with its first job (a pool's own initializer would swallow what is wrong), then works."""
    if not loaded:
        start(*setup)
    return work(*job)


def start_system(spec: str, device: str) -> None:
    """Loads a system once per process."""
    loaded["memory_mb"] = memory_mb("VmRSS")  # of Python and the libraries that read audio
    loaded["system"] = load_system(spec, device)
    # on a CPU the work itself, whatever else the machine is doing; an accelerator's work only shows on the wall clock
    loaded["clock"] = time.process_time if device == "cpu" else time.perf_counter


def enhance_clips(clips: Sequence[Clip], paths: Sequence[Path]) -> list[dict]:
    """Enhances clips together, aligns each result with what was heard and writes it; returns how it went."""
    system, clock = loaded["system"], loaded["clock"]
    recordings = [read_clip(clip) for clip in clips]
    heard = [noisy if system.hears == "noisy" else clean for noisy, clean, _ in recordings]
    inputs = [(waveform[None], rate) for waveform, (_, _, rate) in zip(heard, recordings, strict=True)]
    started = clock()
    if isinstance(system, Recordings):
        outputs = [system.read(clip.name) for clip in clips]
    elif isinstance(system, DacSe):
        outputs = system.enhance_many(inputs)
    else:
        outputs = [system(*recording) for recording in inputs]
    work = clock() - started
    whole = sum(waveform.shape[1] / rate for waveform, rate in inputs)
    rows = []
    for clip, path, waveform, (_, clean, rate), output in zip(clips, paths, heard, recordings, outputs, strict=True):
        channel, fault = usable(output[0][0], len(waveform))
        aligned, delay, gain = align(channel, output[1], waveform, clean, rate)
        temporary = path.with_name(f"{path.stem}.part{path.suffix}")
        soundfile.write(temporary, np.clip(aligned, -1, 1), rate, subtype=SUBTYPE)
        temporary.rename(path)
        seconds = len(waveform) / rate
        rows.append({"clip": clip.name, "seconds": seconds, "work_seconds": work * seconds / whole})
        rows[-1].update(delay_ms=1000 * delay / rate, gain=gain, fault=fault)
        rows[-1]["peak_memory_mb"] = memory_mb("VmHWM") - loaded["memory_mb"]
    return rows


def usable(channel: np.ndarray, num_samples: int) -> tuple[np.ndarray, str | None]:
    """An output (sample,) as it can be written, and what is wrong with it; one that holds no sound becomes silence.

    >>> usable(np.array([0.0, np.nan]), 2)
    (array([0., 0.], dtype=float32), 'NaN or infinite samples')
    """
    fault = None if len(channel) else "no samples"
    if not np.isfinite(channel).all():
        fault = "NaN or infinite samples"
    return (np.zeros(num_samples, np.float32) if fault else channel), fault


def start_metrics(specs: list[str], device: str) -> None:
    """Loads the metrics once per process."""
    loaded["metrics"] = {spec: load_metric(spec, device) for spec in specs}


def score_clip(system: str, clip: Clip, path: Path, specs: list[str]) -> list[dict]:
    """Scores what a system made of a clip by each of the metrics."""
    array, rate = read_mono(path)
    # without a clean recording, the noisy one still tells silence from a short clip
    reference = {"array": read_mono(clip.clean or clip.noisy)[0], "sampling_rate": rate}
    rows = []
    for spec in specs:
        values, reason = loaded["metrics"][spec].measure({"array": array, "sampling_rate": rate}, reference)
        rows.append({"system": system, "clip": clip.name, "metric": spec, "values": values, "reason": reason})
    return rows


def memory_mb(kind: str) -> float:
    """Memory of this process in MB: what it holds (`VmRSS`), or the most it has held at once (`VmHWM`)."""
    if sys.platform == "linux":  # getrusage would count what the parent process held, too
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{kind}:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
