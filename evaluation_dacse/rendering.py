"""Test sets rendered from clean speech: spoiled by a training recipe, or joined to long recordings.

What this room knows of training stands here: recipes and the recordings they draw from. Knows no system and no metric.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas

from .presets import SpeechPreset, split_preset
from .testsets import TestSet, write_test_set

SPEAKER_COLUMNS = "speaker", "speaker_or_category"  # of a manifest
LONG_SECONDS = 35.0
PAUSE_SECONDS = 0.3, 0.9


def render_test_set(
    speech: str,
    recipe: str | Path,
    folder: Path,
    clips_per_task: int = 40,
    seed: int = 0,
    sampling_rate: int = 44100,
    split: str = "test",
    long: bool = False,
    **sources,
) -> TestSet:
    """Spoils clean speech by a training recipe, the same everywhere for the same arguments.

    Every task gets recordings of all speakers in turn, none twice before all had their turn.

    Args:
        speech: folder, manifest or data set of clean recordings (of a manifest, the rows of `split`), or a preset.
        recipe: YAML file, as for training; every task gets `clips_per_task` clips.
        folder: where `noisy/`, `clean/` and `clips.json` are written; kept when they hold the same test set already.
        seed: of everything that is drawn.
        sampling_rate: Hz, of the clips.
        long: make clips of 35 s of a speaker's recordings one after the other, with pauses, and spoil those.
        sources: `where`, `noise`, `rooms`, `music` of `corpus_pairs`.
    """
    from training_dacse.clips.corpus import corpus_pairs  # not above: worker processes do without

    preset, rest = split_preset(speech)
    name, hub_id = Path(speech).stem, None
    if isinstance(preset, SpeechPreset):
        name, hub_id = speech.partition(":")[0], preset.hub_id
        speech = write_manifest(folder / "speech.csv", preset.find(Path(rest)), split)
    pairs = corpus_pairs(speech, recipe, sampling_rate, hop_length=1, split=split, seed=seed, **sources)
    recordings = [pairs.speech.name(index) for index in range(len(pairs.speech))]
    known = speakers_of(speech)
    speakers = [known.get(str(Path(recording).resolve())) for recording in recordings]
    usable = list(range(len(recordings))) if not long else of_talkative(speakers, pairs.speech.seconds)

    def rows() -> Iterable[dict]:
        for number, task in enumerate(pairs.tasks):
            turns = in_turn(usable, speakers, np.random.default_rng((seed, number)))
            for clip in range(clips_per_task):
                rng = np.random.default_rng((seed, number, clip))
                first = turns[clip % len(turns)]
                if long:
                    clean = join_sentences(pairs, speakers, speakers[first], sampling_rate, rng)
                else:
                    clean = pairs.crop(pairs.speech, first, rng)
                noisy, clean, _, parameters = pairs.recipe.degrade(clean, sampling_rate, rng, task)
                about = {"name": f"{task}-{clip:03d}", "task": task, "speaker": speakers[first]}
                about |= {"recording": Path(recordings[first]).name, "parameters": parameters}
                yield {**about, "noisy": noisy, "clean": clean, "rate": sampling_rate}

    made_from = [Path(recipe).read_text(), *sorted(Path(recording).name for recording in recordings)]
    made_from += [f"{name}={value}" for name, value in sorted(sources.items())]
    description = {
        "made_from": hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16],
        "clips": clips_per_task * len(pairs.tasks),
        "seed": seed,
        "sampling_rate": sampling_rate,
        "long": long,
    }
    return replace(write_test_set(folder, f"{name}-{Path(recipe).stem}", rows(), description), hub_id=hub_id)


def in_turn(indices: Sequence[int], speakers: Sequence[str | None], rng: np.random.Generator) -> list[int]:
    """The recordings, a speaker after the other: one of each, then a second of each that has more.

    >>> in_turn([0, 1, 2, 3], ["a", "a", "a", "b"], np.random.default_rng(0))
    [3, 2, 0, 1]
    """
    of_speaker = defaultdict(list)
    for index in rng.permutation(indices):
        of_speaker[speakers[index] or index].append(int(index))
    order = rng.permutation(len(of_speaker))
    ranked = sorted(
        (place, order[number], index)
        for number, own in enumerate(of_speaker.values())
        for place, index in enumerate(own)
    )
    return [index for _, _, index in ranked]


def of_talkative(speakers: Sequence[str | None], seconds: Sequence[float]) -> list[int]:
    """The recordings of speakers with enough of them for one long clip.

    Raises:
        ValueError: there are none, or nobody is named.
    """
    total = defaultdict(float)
    for speaker, duration in zip(speakers, seconds, strict=True):
        total[speaker] += duration if speaker else 0.0
    found = [index for index, speaker in enumerate(speakers) if total[speaker] >= LONG_SECONDS]
    if not found:
        raise ValueError(
            f"no speaker has {LONG_SECONDS:g} s of recordings; a manifest with a 'speaker' column names them"
        )
    return found


def join_sentences(pairs, speakers: Sequence, speaker: str | None, sampling_rate: int, rng) -> np.ndarray:
    """A speaker's recordings one after the other in any order, (1, sample), with pauses between them: 35 s or more."""
    own = [index for index, other in enumerate(speakers) if other == speaker]
    parts, samples = [], 0
    while samples < LONG_SECONDS * sampling_rate:
        for index in rng.permutation(own):
            pause = round(rng.uniform(*PAUSE_SECONDS) * sampling_rate)
            sentence = np.pad(pairs.crop(pairs.speech, int(index), rng), ((0, 0), (0, pause)))
            parts.append(sentence)
            samples += sentence.shape[1]
    return np.concatenate(parts, axis=1)[:, : round(LONG_SECONDS * sampling_rate)]


def speakers_of(speech: str) -> dict[str, str]:
    """The speaker of each recording of a manifest, by its resolved path; empty where there is none to read."""
    path = Path(speech) if Path(speech).suffix in (".tsv", ".csv") else Path(speech) / "MANIFEST.tsv"
    if not path.exists():
        return {}
    table = pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    column = next((name for name in SPEAKER_COLUMNS if name in table), None)
    if column is None:
        return {}
    named = zip(table["path"], table[column], strict=True)
    return {str((path.parent / recording).resolve()): str(speaker) for recording, speaker in named}


def write_manifest(path: Path, recordings: Iterable[tuple[Path, float, str]], split: str) -> str:
    """Writes paths, seconds and speakers as training reads them, all of one split; returns the manifest's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(recording.resolve(), seconds, speaker, split) for recording, seconds, speaker in recordings]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "seconds", "speaker", "split"), *rows])
    return str(path)
