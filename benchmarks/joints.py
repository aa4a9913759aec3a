"""How windows are best joined: as codes, decoded as one piece, or decoded each and cross-faded as audio.

    python benchmarks/joints.py examples/audio/*.wav [--model DIR] [--simulate DB]

Two numbers for each way, both against the same audio away from the joints (1.0 and 0 dB are seamless):
click, the largest second difference within 2 ms of a joint, relative to its median elsewhere; level, the power within
25 ms of a joint, relative to its mean elsewhere. --simulate asks no language model: each window becomes what the codec
makes of it under noise of its own, DB below the audio, so that neighbours differ where they overlap.
"""

import argparse

import numpy as np
import torch
from machine import describe_machine
from transformers import pipeline

import dacse
from pipeline_dacse import EnhanceOptions
from pipeline_dacse.recording_dacse import EnhancedWindow, Recording, Window

MARGIN_FRAMES = 16  # more than a frame of the codec sees


def simulate(enhance, recording: dict, windows: list[Window], decibels: float) -> list[EnhancedWindow]:
    """Windows of the same audio, each encoded under noise of its own."""
    processor, generator = enhance.processor, np.random.default_rng(0)
    audio = processor.resample(recording["array"][None], recording["sampling_rate"], processor.sampling_rate)
    scale = audio.std() * 10 ** (-decibels / 20)
    rows = []
    for window in windows:
        start, stop = max(0, window.span.start - MARGIN_FRAMES), window.span.stop + MARGIN_FRAMES
        piece = audio[:, start * processor.hop_length : stop * processor.hop_length]
        noise = scale * generator.standard_normal(piece.shape).astype(np.float32)
        codes = processor.encode(piece + noise)[0, :, window.span.start - start : window.span.stop - start]
        rows.append(EnhancedWindow(window, codes))
    return rows


def join_codes(enhance, rows) -> np.ndarray:
    """The pipeline's way."""
    codes = [row.owned(row.codes) for row in rows]
    return enhance.processor.decode_codes(torch.cat(codes, dim=-1)[None])[0]


def cross_fade(enhance, rows) -> np.ndarray:
    """The other way: linear fades over each overlap."""
    hop = enhance.processor.hop_length
    audio = np.zeros(rows[-1].window.span.stop * hop)
    weight = np.zeros_like(audio)
    spans = [row.window.span for row in rows]
    for row, span, left, right in zip(rows, spans, [None, *spans], [*spans[1:], None], strict=False):
        samples = enhance.processor.decode_codes(row.codes[None])[0]
        fade = np.ones_like(samples)
        if left is not None:
            length = (left.stop - span.start) * hop
            fade[:length] *= np.linspace(0, 1, length)
        if right is not None:
            length = (span.stop - right.start) * hop
            fade[-length:] *= np.linspace(1, 0, length)
        audio[span.start * hop : span.stop * hop] += fade * samples
        weight[span.start * hop : span.stop * hop] += fade
    return audio / np.maximum(weight, 1e-6)


def measure(audio: np.ndarray, joints: np.ndarray, rate: int) -> tuple[list[float], list[float]]:
    """Click and level at each of the joints (in samples)."""
    bend = np.abs(np.diff(audio, 2))
    near, around = round(0.002 * rate), round(0.025 * rate)
    elsewhere = np.arange(around, len(audio) - around, around)
    elsewhere = elsewhere[np.abs(elsewhere[:, None] - joints).min(axis=1) > 4 * around]

    def peaks(places: np.ndarray) -> np.ndarray:
        return np.array([bend[place - near : place + near].max() for place in places])

    def powers(places: np.ndarray) -> np.ndarray:
        return np.array([np.mean(audio[place - around : place + around] ** 2) for place in places])

    clicks, levels = peaks(joints) / np.median(peaks(elsewhere)), powers(joints) / powers(elsewhere).mean()
    return clicks.tolist(), levels.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--model", default=dacse.default_model())
    parser.add_argument("--window-seconds", type=float, default=1.0, help="short windows: many joints")
    parser.add_argument("--simulate", type=float, metavar="DB")
    args = parser.parse_args()

    enhance = pipeline("audio-enhancement", model=args.model)
    processor, options = enhance.processor, EnhanceOptions(window_seconds=args.window_seconds)
    arguments = enhance.enhancer.check(options)
    ways = {"codes": join_codes, "cross-fade": cross_fade}
    clicks, levels = {way: [] for way in ways}, {way: [] for way in ways}
    for path in args.audio:
        waveform, rate = processor.load_audio(path)
        recording = {"array": waveform[0], "sampling_rate": rate}
        windows = list(Recording(processor, recording, options, enhance.model.config.max_frames).windows())
        if args.simulate is None:
            rows = enhance.enhancer.answer(windows, None, options, arguments)
        else:
            rows = simulate(enhance, recording, windows, args.simulate)
        joints = np.array([row.window.span.last for row in rows[:-1]]) * processor.hop_length
        if not len(joints):
            continue  # one window holds all of it
        for way, join in ways.items():
            click, level = measure(join(enhance, rows), joints, processor.sampling_rate)
            clicks[way] += click
            levels[way] += level
    print(f"{describe_machine()}; {args.model}; {len(clicks['codes'])} joints")
    print("| joined as | click, median | click, 95 % | level |\n|---|---|---|---|")
    for way in ways:
        level = 10 * np.log10(np.mean(levels[way]))
        print(f"| {way} | {np.median(clicks[way]):.2f} | {np.percentile(clicks[way], 95):.2f} | {level:+.2f} dB |")


if __name__ == "__main__":
    main()
