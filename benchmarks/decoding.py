"""How fast recordings are decoded, beside libsndfile where that reads the format.

    PYTHONPATH=. python benchmarks/decoding.py

Two minutes of stereo sound in each format, read whole from memory in blocks of ten seconds. User time of interleaved
rounds, which other work on the machine disturbs least; a ratio above 1 is slower than libsndfile.
"""

import argparse
import io
import statistics
import time

import soundfile
from machine import describe_machine

from processing_dacse.audio_dacse import stream_audio
from tests.sounds import KINDS, encode, speech

SECONDS = 120
FORMATS = ["wav", "wav of 24 bits", "flac", "ogg", "opus", "mp3", "m4a", "webm", "wma", "amr"]


def by_us(content: bytes) -> None:
    for _ in stream_audio(content, block_seconds=10.0).blocks:
        pass


def by_libsndfile(content: bytes) -> None:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        while len(file.read(10 * file.samplerate, dtype="float32")):
            pass


def seconds_of(read, content: bytes) -> float:
    started = time.process_time()
    read(content)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(describe_machine())
    print("| format | times real time | beside libsndfile |\n|---|---|---|")
    for kind in FORMATS:
        form = KINDS[kind]
        content = encode(speech(SECONDS * form.rate, form.rate, form.channels[-1]), kind)
        readers = [by_us] + [by_libsndfile] * form.is_written_by_libsndfile
        rounds = [[seconds_of(read, content) for read in readers] for _ in range(args.rounds)]
        ours, *theirs = (statistics.median(times) for times in zip(*rounds, strict=True))
        beside = f"{ours / theirs[0]:.2f}" if theirs else "-"
        print(f"| {kind} | {SECONDS / ours:.0f} | {beside} |")


if __name__ == "__main__":
    main()
