"""A test set beyond what models of this kind are trained on, in slices: languages, voices and music behind, length.

Knows no system and no metric.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import yaml

from .rendering import render_test_set
from .testsets import TestSet

CLIP_SECONDS = [1.0, 8.0]
NOISE = {"kind": "natural_noise", "snr_db": [0, 10]}
MUSIC_RATE = 44100
PIECES = 12
SEMITONE = 2 ** (1 / 12)
CHORDS = {"major": (0, 4, 7, 12), "minor": (0, 3, 7, 12)}  # semitones over the root


@dataclass(frozen=True)
class Slice:
    """Some of the speech, and what is done to it."""

    steps: tuple[dict, ...]  # of a recipe
    where: str | None = None  # rows of the manifest
    long: bool = False  # sentences of one speaker joined to 35 s


SLICES = {
    "english": Slice((NOISE,), "language == 'en'"),
    "other_languages": Slice((NOISE,), "language != 'en'"),
    "babble": Slice(({"kind": "babble", "snr_db": [0, 10]},)),
    "second_speaker": Slice(({"kind": "babble", "speakers": [1, 1], "snr_db": [0, 10]},)),
    "music": Slice(({"kind": "music", "snr_db": [0, 10]},)),
    "unseen_combination": Slice(({"kind": "clipping"}, NOISE, {"kind": "small_room"}, {"kind": "lossy_codec"})),
    "over_30_s": Slice((NOISE,), long=True),
}


def render_suite(
    corpus: str, folder: Path, clips: int = 20, music: str | None = None, sampling_rate: int = 44100
) -> TestSet:
    """Renders every slice, each a task of one test set.

    Args:
        corpus: folder with a MANIFEST.tsv whose columns kind, split, language and speaker say what its files are.
        folder: for the slices' clips; kept when they are there already.
        clips: of each slice.
        music: folder, manifest or data set of music; chords are plucked where there is none.
        sampling_rate: Hz, of the clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything = []
    for name, part in SLICES.items():
        sources = {"where": part.where}
        if name == "music":
            sources["music"] = music or write_music(folder / "music")
        recipe = folder / f"{name}.yaml"
        tasks = {name: {"steps": list(part.steps)}}
        recipe.write_text(yaml.safe_dump({"clip_seconds": CLIP_SECONDS, "tasks": tasks}))
        options = {"sampling_rate": sampling_rate, "long": part.long}
        everything += render_test_set(corpus, recipe, folder / name, clips, **options, **sources).clips
    return TestSet("robustness", everything)


def write_music(folder: Path) -> str:
    """Writes pieces of music that anybody can make again, and their manifest; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path\tkind\tsplit\tseconds"]
    for number in range(PIECES):
        piece = pluck_chords(np.random.default_rng(number))
        soundfile.write(folder / f"{number}.flac", piece, MUSIC_RATE)
        rows.append(f"{number}.flac\tmusic\ttest\t{len(piece) / MUSIC_RATE:g}")
    (folder / "MANIFEST.tsv").write_text("\n".join(rows) + "\n")
    return str(folder)


def pluck_chords(rng: np.random.Generator, bars: int = 8) -> np.ndarray:
    """Broken chords with a beat of noise, float32 (sample,): tempo, key, chords and order of notes are drawn."""
    beat = round(60 / rng.uniform(80, 140) * MUSIC_RATE)
    seconds = np.arange(beat) / MUSIC_RATE
    key, piece = rng.uniform(110, 220), []
    for _ in range(bars):
        root, chord = key * SEMITONE ** rng.choice([0, 2, 5, 7, 9]), CHORDS[rng.choice(list(CHORDS))]
        for semitones in rng.permutation(chord):
            pitch = root * SEMITONE**semitones
            note = sum(np.sin(2 * np.pi * order * pitch * seconds) / order for order in range(1, 9))
            drum = rng.standard_normal(beat) * np.exp(-60 * seconds)
            piece.append(0.1 * note * np.exp(-3 * seconds) + 0.05 * drum)
    return np.concatenate(piece).astype(np.float32)
