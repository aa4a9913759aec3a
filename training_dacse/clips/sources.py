"""Recordings to draw from: a folder, a manifest or a `datasets` data set. Knows crops and levels, no degradation."""

import hashlib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas
import soundfile
from numpy.random import Generator

from processing_dacse.audio_dacse import resample

from .degradations import fit_length, rms

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
SILENCE_RMS = 1e-3  # -60 dB: a clean crop below this teaches nothing but silence
CROP_ATTEMPTS = 20


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Names the recording and the remedy where libsndfile cannot read it; raises OSError."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise OSError(f"{name}: cannot be read as audio ({reason}); remove or convert it") from error


class Clips:
    """Recordings by index, each a path or a `datasets` value `{"bytes", "path"}`; `seconds` if they are known."""

    def __init__(self, files: Sequence[Path | dict], seconds: Sequence[float] | None = None):
        if not len(files):
            raise ValueError("no recordings to draw from; check the folder, the manifest or its filter")
        self.files, self.seconds = files, seconds

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """What messages and caches call a recording."""
        file = self.files[index]
        return str(file["path"] or f"row {index}") if isinstance(file, dict) else str(file)

    def open(self, index: int) -> str | io.BytesIO:
        """What soundfile reads."""
        file = self.files[index]
        return io.BytesIO(file["bytes"]) if isinstance(file, dict) and file["bytes"] else self.name(index)

    def duration(self, index: int) -> float:
        """Seconds of a recording, as its header says."""
        with readable(self.name(index)):
            return soundfile.info(self.open(index)).duration

    def at_least(self, seconds: float, skip_broken: bool = False) -> "Clips":
        """The recordings that last at least so long (headers are read where the lengths are not known)."""
        known = self.seconds
        if known is None:
            known = []
            for index in range(len(self)):
                try:
                    known.append(self.duration(index))
                except OSError as error:
                    if not skip_broken:
                        raise
                    logger.warning("skipped: %s", error)
                    known.append(0.0)
        kept = [index for index, duration in enumerate(known) if duration >= seconds]
        if not kept:
            raise ValueError(
                f"none of {len(self)} recordings ({self.name(0)}, ...) lasts {seconds} s; lower clip_seconds"
            )
        return Clips([self.files[index] for index in kept], [known[index] for index in kept])

    @property
    def fingerprint(self) -> str:
        """Changes with the list of recordings, not with where the folder stands."""
        names = sorted(Path(self.name(index)).name for index in range(len(self)))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def crop(self, index: int, seconds: float, sampling_rate: int, rng: Generator) -> np.ndarray:
        """Reads a random stretch of at most `seconds` as mono float32 (1, sample) at `sampling_rate`."""
        with readable(self.name(index)), soundfile.SoundFile(self.open(index)) as file:
            wanted = math.ceil(seconds * file.samplerate)
            file.seek(int(rng.integers(max(0, file.frames - wanted) + 1)))
            waveform, rate = file.read(wanted, dtype="float32", always_2d=True), file.samplerate
        if not len(waveform) or not np.isfinite(waveform).all():
            raise ValueError(f"{self.name(index)}: empty, NaN or infinite samples; remove the file")
        return resample(waveform.mean(1, dtype=np.float32)[None], rate, sampling_rate)

    def audible_crop(self, index: int, seconds: float, sampling_rate: int, rng: Generator, floor: float) -> np.ndarray:
        """A crop whose RMS is at least `floor`; raises ValueError when none is found."""
        for _ in range(CROP_ATTEMPTS):
            waveform = self.crop(index, seconds, sampling_rate, rng)
            if rms(waveform) >= floor:
                return waveform
        raise ValueError(f"{self.name(index)}: silent (RMS below {floor} in {CROP_ATTEMPTS} crops); remove the file")


class BackgroundClips:
    """Draws background sounds of any length: silent crops are drawn again, short recordings repeated.

    Args:
        clips: the recordings.
        floor: lowest RMS of a crop; the released recipe rejects noise at 0.01 and below.
    """

    def __init__(self, clips: Clips, floor: float = 0.01):
        self.clips, self.floor = clips, floor

    @property
    def fingerprint(self) -> str:
        """Changes with the recordings and the floor."""
        return f"{self.clips.fingerprint} above {self.floor}"

    def __call__(self, num_samples: int, sampling_rate: int, rng: Generator) -> tuple[np.ndarray, str]:
        """Returns a sound (1, sample) and the name of its recording."""
        for _ in range(CROP_ATTEMPTS):
            index = int(rng.integers(len(self.clips)))
            sound = self.clips.crop(index, num_samples / sampling_rate, sampling_rate, rng)
            if rms(sound) > self.floor:
                repeats = math.ceil(num_samples / sound.shape[-1])
                return fit_length(np.tile(sound, repeats), num_samples), self.clips.name(index)
        raise ValueError(
            f"{self.clips.name(index)} and {CROP_ATTEMPTS - 1} draws before it are silent (RMS up to {self.floor}); "
            "remove silent recordings or raise their level"
        )


def find_clips(source: str | Path, where: str | None = None) -> Clips:
    """Lists recordings.

    Args:
        source: a folder (searched below), a manifest (`.tsv` or `.csv` with a `path` column, or a folder holding
            `MANIFEST.tsv`), a data set saved by `datasets`, or else the Hub id of one with an `audio` column.
        where: which rows of a manifest, as for `pandas.DataFrame.query`: "split == 'train' and snr_db >= 30".

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: nothing found, or `where` without a manifest.
    """
    path = Path(source)
    if manifest := manifest_of(path):
        table = read_manifest(manifest, where)
        if table.empty:
            raise ValueError(f"{manifest}: no row satisfies {where!r}")
        seconds = table["seconds"].tolist() if "seconds" in table else None
        return Clips([manifest.parent / name for name in table["path"]], seconds)
    if where:
        raise ValueError(
            f"{source}: the filter {where!r} needs a manifest (.tsv or .csv, or a folder with MANIFEST.tsv)"
        )
    if path.is_dir() and not (path / "dataset_info.json").exists():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise ValueError(f"{source}: no audio file in this folder ({', '.join(sorted(AUDIO_SUFFIXES))})")
        return Clips(files)
    if not path.exists() and (path.is_absolute() or str(source).startswith(".")):
        raise FileNotFoundError(f"{source}: no such folder, manifest or data set")
    return Clips(load_audio_column(source))


def manifest_of(path: Path) -> Path | None:
    """The manifest a path is or holds."""
    if path.suffix in (".tsv", ".csv"):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such manifest")
        return path
    return path / "MANIFEST.tsv" if (path / "MANIFEST.tsv").exists() else None


def read_manifest(path: Path, where: str | None = None) -> pandas.DataFrame:
    """The rows of a manifest that satisfy `where`."""
    table = pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    if "path" not in table:
        raise ValueError(f"{path}: a manifest needs a 'path' column; this one has {', '.join(table.columns)}")
    return table.query(where) if where else table


def load_audio_column(source: str | Path) -> Sequence[dict]:
    """The `audio` column of a data set, undecoded: `{"bytes", "path"}` per row."""
    from datasets import Audio, load_dataset, load_from_disk

    dataset = load_from_disk(source) if Path(source).exists() else load_dataset(str(source), split="train")
    return dataset.cast_column("audio", Audio(decode=False))["audio"]
