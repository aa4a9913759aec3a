"""Decodes a corpus once, to WAV at the codec's rate: reading a crop is then a seek. Knows files, no training."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from processing_dacse.audio_dacse import load_audio, resample
from training_dacse.clips.sources import manifest_of, read_manifest

WHERE = "split != 'test'"


def decode_corpus(source: Path, folder: Path, sampling_rate: int) -> None:
    """Writes the training and validation recordings of a corpus, mono 16-bit, and their manifest.

    Args:
        source: folder with a MANIFEST.tsv.
        folder: of the decoded corpus; done when its own manifest stands.
        sampling_rate: in Hz.
    """
    if (folder / "MANIFEST.tsv").exists():
        return
    rows = read_manifest(manifest_of(source), WHERE)
    names = rows["path"].tolist()
    decode = partial(decode_file, source, folder, sampling_rate)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        rows["path"] = list(pool.map(decode, names, chunksize=16))
    unfinished = folder / "MANIFEST.tmp"
    rows.to_csv(unfinished, sep="\t", index=False)
    unfinished.rename(folder / "MANIFEST.tsv")


def decode_file(source: Path, folder: Path, sampling_rate: int, name: str) -> str:
    """Decodes one recording, unless that was done before; returns its new name."""
    target = folder / Path(name).with_suffix(".wav")
    if not target.exists():
        waveform, rate = load_audio(str(source / name))
        mono = resample(waveform.mean(0, keepdims=True), rate, sampling_rate)[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".tmp")
        soundfile.write(unfinished, np.clip(mono, -1, 1), sampling_rate, subtype="PCM_16", format="WAV")
        unfinished.rename(target)
    return str(target.relative_to(folder))
