"""How good is the codec of a run by now? Scores the newest one on held-out speech, once or every so many seconds:

python examples/train_tiny/codec_curve.py --data CORPUS --output runs/tiny --every 3600

A line for each goes to OUTPUT/codec/curve.jsonl, spectrograms of a few clips beside their recordings to
OUTPUT/codec/curve/STEP.png: tones at multiples of a stride's rate show there before any score tells.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from settings import Run, add_run_options, read_run
from stages import codec_clips, decode
from transformers import DacModel

from evaluation_dacse.metrics import load_metric
from evaluation_dacse.plots import decibels, plt, save
from processing_dacse.codec_dacse import decode_in_pieces, encode_in_pieces
from training_dacse.codec.segments import CodecSegments

CLIPS, SECONDS = 24, 3.0
METRICS = ("stoi", "pesq", "dnsmos", "plcmos")
SCORES = ("stoi", "pesq", "dnsmos_ovrl", "plcmos")
DRAWN = (0, 5)


def held_out(run: Run, rate: int, hop: int) -> torch.Tensor:
    """Stretches of speech nobody was trained on, (batch, sample), whole frames long."""
    segments = CodecSegments(*codec_clips(run, "valid"), rate, noise_probability=0.0, level_db=(0.0, 0.0))
    return next(segments(CLIPS, int(SECONDS * rate / hop) * hop, seed=0))


def scores_of(waveforms: torch.Tensor, clean: torch.Tensor, rate: int) -> dict[str, float]:
    """Mean scores of waveforms (batch, sample) against clean ones."""
    found = {}
    for metric in map(load_metric, METRICS):
        pairs = [
            [{"array": waveform.numpy(), "sampling_rate": rate} for waveform in pair]
            for pair in zip(waveforms, clean, strict=True)
        ]
        measured = [metric.measure(*pair)[0] for pair in pairs]
        found |= {name: float(np.mean([clip[name] for clip in measured])) for name in measured[0] if name in SCORES}
    return found


def draw(waveforms: dict[str, torch.Tensor], rate: int, path: Path) -> None:
    """Spectrograms of some clips, a row for each set of waveforms (batch, sample)."""
    size = 9 * len(DRAWN), 4 * len(waveforms)
    figure, grid = plt.subplots(len(waveforms), len(DRAWN), figsize=size, squeeze=False, layout="constrained")
    for row, (name, clips) in zip(grid, waveforms.items(), strict=True):
        for axes, clip in zip(row, DRAWN, strict=True):
            extent = (0, clips.shape[1] / rate, 0, rate / 2000)
            axes.imshow(decibels(clips[clip].numpy()), origin="lower", aspect="auto", extent=extent)
            axes.set(title=f"{name}, clip {clip}", xlabel="s", ylabel="kHz")
    path.parent.mkdir(exist_ok=True)
    save(figure, path)


def score_newest(run: Run, clean: torch.Tensor) -> dict[str, float]:
    """Scores the codec that the run has saved last, and draws it."""
    folder = run.output / "codec"
    codec = DacModel.from_pretrained(folder / "codec").eval()
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    coded = decode_in_pieces(codec, encode_in_pieces(codec, clean)).clamp(-1, 1)
    rate = codec.config.sampling_rate
    draw({"recording": clean, "codec": coded}, rate, folder / "curve" / f"{last['step']:07}.png")
    return {name: last[name] for name in ("step", "seconds", "mel", "spectrum")} | scores_of(coded, clean, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    parser.add_argument("--every", type=float, help="seconds between two scores; without, once")
    args = parser.parse_args()
    run = read_run(args)
    decode(run)
    codec = run.settings["codec"]["codec"]
    clean = held_out(run, codec["sampling_rate"], int(np.prod(codec["downsampling_ratios"])))
    print("recordings", json.dumps(scores_of(clean, clean, codec["sampling_rate"])), flush=True)
    while True:
        line = json.dumps({name: round(value, 4) for name, value in score_newest(run, clean).items()})
        print(line, flush=True)
        with open(run.output / "codec/curve.jsonl", "a") as curve:
            curve.write(line + "\n")
        if not args.every:
            break
        time.sleep(args.every)


if __name__ == "__main__":
    main()
