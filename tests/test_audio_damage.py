"""Damaged files of ten formats: each is sound or one clear line; none a crash, a traceback, a wait or much memory."""

import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from processing_dacse.audio_dacse import stream_audio
from tests.sounds import KINDS, encode, speech

FORMATS = ["wav", "aiff", "flac", "ogg", "opus", "mp3", "m4a", "fragmented mp4", "webm", "wma"]
OTHERS = [kind for kind in KINDS if kind not in FORMATS]
EXTREMES = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1"]
MOST_SECONDS = 5.0  # for a file of one second, on a busy machine
MOST_MEGABYTES = 1024


def mutated(content: bytes, seed: int) -> bytes:
    """Bits flipped, headers that lie, ends cut off, pieces taken out or put in twice."""
    random, damaged = np.random.default_rng(seed), bytearray(content)
    how, header = seed % 5, random.choice([0, len(damaged) - 800])  # which some formats have at their end
    if how == 0:
        for place in random.integers(0, len(damaged), random.integers(1, 30)):
            damaged[place] ^= 1 << random.integers(8)
    elif how == 1:
        for place in random.integers(header, header + 200, random.integers(1, 8)):
            damaged[place] = random.integers(256)
    elif how == 2:
        for place in random.integers(header, header + 400, random.integers(1, 4)):
            damaged[place : place + 4] = EXTREMES[random.integers(len(EXTREMES))]
    elif how == 3:
        del damaged[random.integers(len(damaged)) :]
    else:
        first, last = sorted(random.integers(0, len(damaged), 2))
        del damaged[first:last]
        damaged += damaged[: random.integers(0, len(damaged) + 1)]
    return bytes(damaged)


def check_damaged_files(kind: str, seeds: range) -> None:
    content = encode(speech(KINDS[kind].rate, KINDS[kind].rate), kind)
    for seed in seeds:
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stream = stream_audio(mutated(content, seed))
                samples = 0
                for block in stream.blocks:
                    assert block.dtype == np.float32 and np.isfinite(block).all()
                    samples += block.shape[1]
            assert samples < 3600 * 1_000_000, f"{kind} {seed}"
        except ValueError as error:
            assert str(error).startswith("the given bytes ") and "\n" not in str(error), f"{kind} {seed}: {error}"
        assert time.process_time() - started < MOST_SECONDS, f"{kind} {seed}"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_sound_or_one_line(kind):
    check_damaged_files(kind, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS + OTHERS)
def test_a_hundred_of_each_format_are_sound_or_one_line_and_take_little_memory(kind):
    code = (
        "import resource; from tests.test_audio_damage import check_damaged_files\n"
        f"check_damaged_files({kind!r}, range(1000, 1100))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    process = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    assert int(process.stdout) < MOST_MEGABYTES
