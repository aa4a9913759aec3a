"""Recordings to draw from: a folder, a manifest or a `datasets` data set. Knows crops and levels, no degradation."""

import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas
import soundfile
from datasets import Audio, Dataset, DatasetDict, load_dataset, load_from_disk
from numpy.random import Generator
from tqdm.auto import tqdm

from processing_dacse.audio_dacse import resample

from .degradations import rms

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
SPEAKER_COLUMNS = ("speaker_id", "speaker")  # of manifests and data sets: who speaks
SILENCE_RMS = 1e-3  # -60 dB: a clean crop below this teaches nothing but silence
CROP_ATTEMPTS = 20


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Names the recording and the remedy where it cannot be read.

    Raises:
        FileNotFoundError: it was there when the corpus was listed and is gone.
        OSError: libsndfile cannot read it.
    """
    try:
        yield
    except (soundfile.LibsndfileError, FileNotFoundError) as error:
        if Path(name).is_absolute() and not Path(name).exists():
            raise FileNotFoundError(
                f"{name}: this recording has vanished since the corpus was listed; put it back, or list it no more "
                "and begin a new cache"
            ) from error
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise OSError(f"{name}: cannot be read as audio ({reason}); remove or convert it") from error


def scan(what: str, look: Callable, items: Sequence) -> list:
    """`look` at every item, many at once, with progress if it takes longer than a second."""
    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(look, items), what, len(items), delay=1.0, leave=False))


class Clips:
    """Recordings by index, none of which is held in memory.

    Args:
        files: absolute paths, or a data set with an undecoded `audio` column, of which a process that gets these
            clips gets no more than a handle.
        numbers: which of `files`, in this order; all when left out.
        seconds: how long each of `numbers` lasts, if that is known.
        speakers: who speaks in each of `files`, if that is known.
        root: folder that the names of the recordings are relative to.

    Raises:
        ValueError: no recordings.
    """

    def __init__(
        self,
        files: Sequence[str] | Dataset,
        numbers: np.ndarray | None = None,
        seconds: np.ndarray | None = None,
        speakers: Sequence[str] | None = None,
        root: Path | None = None,
    ):
        self.files, self.seconds, self.speakers, self.root = files, seconds, speakers, root
        self.numbers = np.arange(len(files)) if numbers is None else np.asarray(numbers)
        if not len(self.numbers):
            raise ValueError("no recordings to draw from; check the folder, the manifest or its filter")

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Clips":
        """Some of the recordings, by their indices."""
        indices = np.asarray(indices, dtype=np.int64)
        seconds = None if self.seconds is None else self.seconds[indices]
        return Clips(self.files, self.numbers[indices], seconds, self.speakers, self.root)

    def stored(self, index: int) -> dict:
        """A recording as `datasets` stores it: `{"bytes", "path"}`, of which one may be None."""
        file = self.files[int(self.numbers[index])]
        return file["audio"] if isinstance(file, dict) else {"bytes": None, "path": file}

    def name(self, index: int) -> str:
        """What messages call a recording."""
        return self.stored(index)["path"] or f"row {self.numbers[index]}"

    def short_name(self, index: int) -> str:
        """What caches call a recording: its name without the folder that all are in."""
        name = Path(self.name(index))
        return str(name.relative_to(self.root)) if self.root and name.is_relative_to(self.root) else str(name)

    def open(self, index: int) -> str | io.BytesIO:
        """What soundfile reads."""
        stored = self.stored(index)
        return io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"]

    def duration(self, index: int) -> float:
        """Seconds of a recording, as its header says."""
        with readable(self.name(index)):
            return soundfile.info(self.open(index)).duration

    def at_least(self, seconds: float, skip_broken: bool = False) -> "Clips":
        """The recordings that last at least so long (headers are read where the lengths are not known).

        Raises:
            OSError: a recording that cannot be read, unless broken ones are to be skipped.
            ValueError: none is long enough.
        """

        def look(index: int) -> float:
            try:
                return self.duration(index)
            except FileNotFoundError:
                raise
            except OSError as error:
                if not skip_broken:
                    raise
                logger.warning("skipped: %s", error)
                return 0.0

        if self.seconds is None:
            self.seconds = np.array(scan("headers", look, range(len(self))))
        kept = np.flatnonzero(self.seconds >= seconds)
        if not len(kept):
            raise ValueError(
                f"none of {len(self)} recordings ({self.name(0)}, ...) lasts {seconds} s; lower clip_seconds"
            )
        return self.select(kept)

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


def find_clips(source: str | Path, where: str | None = None) -> Clips:
    """Lists recordings, in the order of their names: the order in a manifest or on a disk means nothing.

    Args:
        source: a folder (searched below), a manifest (`.tsv` or `.csv` with a `path` column, or a folder holding
            `MANIFEST.tsv`), a data set saved by `datasets`, or else the Hub id of one with an `audio` column (its
            split `train`).
        where: which rows of a manifest, as for `pandas.DataFrame.query`: "split == 'train' and snr_db >= 30".

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: nothing found, or `where` without a manifest.
    """
    path = Path(source)
    if manifest := manifest_of(path):
        return clips_of_rows(read_manifest(manifest, where), manifest, where)
    if where:
        raise ValueError(
            f"{source}: the filter {where!r} needs a manifest (.tsv or .csv, or a folder with MANIFEST.tsv)"
        )
    if is_folder_of_files(path):
        root = path.resolve()
        files = sorted(str(file) for file in root.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise ValueError(f"{source}: no audio file in this folder ({', '.join(sorted(AUDIO_SUFFIXES))})")
        return Clips(files, root=root)
    return clips_of_dataset(open_dataset(source)["train"])


def is_folder_of_files(path: Path) -> bool:
    """Whether a path is a folder of recordings, and not of a data set (whose recordings are in Parquet files)."""
    if not path.is_dir() or is_saved_dataset(path):
        return False
    kinds = {file.suffix.lower() for file in path.rglob("*")}
    return bool(kinds & AUDIO_SUFFIXES) or ".parquet" not in kinds


def is_saved_dataset(path: Path) -> bool:
    """Whether `datasets` saved a data set in a folder."""
    return any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))


def manifest_of(path: Path) -> Path | None:
    """The manifest a path is or holds."""
    if path.suffix in (".tsv", ".csv"):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such manifest")
        return path
    return path / "MANIFEST.tsv" if (path / "MANIFEST.tsv").exists() else None


def read_manifest(path: Path, where: str | None = None) -> pandas.DataFrame:
    """The rows of a manifest that satisfy a filter.

    Raises:
        ValueError: no table, or one without paths, or a filter that does not fit it.
    """
    try:
        table = pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a manifest ({str(error).strip()})") from error
    if "path" not in table:
        raise ValueError(f"{path}: a manifest needs a 'path' column; this one has {', '.join(table.columns)}")
    if table["path"].isna().any():
        raise ValueError(f"{path}: row {int(table['path'].isna().argmax()) + 1} has no path")
    return rows_where(table, where, path)


def rows_where(table: pandas.DataFrame, where: str | None, manifest: Path) -> pandas.DataFrame:
    """The rows of a manifest that satisfy a filter.

    Raises:
        ValueError: the filter is none, or speaks of a column that is not there.
    """
    try:
        return table.query(where) if where else table
    except (SyntaxError, NameError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{manifest}: cannot be filtered by {where!r} ({error}); its columns are {', '.join(table.columns)}"
        ) from error


def clips_of_rows(table: pandas.DataFrame, manifest: Path, where: str | None = None) -> Clips:
    """The recordings of some rows of a manifest."""
    if table.empty:
        raise ValueError(f"{manifest}: no row satisfies {where!r}")
    table, root = table.sort_values("path", kind="stable"), manifest.parent.resolve()
    speakers = next((table[name].astype(str).tolist() for name in SPEAKER_COLUMNS if name in table), None)
    seconds = table["seconds"].to_numpy() if "seconds" in table else None
    return Clips([str(root / name) for name in table["path"]], seconds=seconds, speakers=speakers, root=root)


def open_dataset(source: str | Path) -> DatasetDict:
    """A data set by its splits, on disk or on the Hub; one without splits is all `train`.

    Raises:
        FileNotFoundError: a path that does not exist.
    """
    path = Path(source)
    if not path.exists() and (path.is_absolute() or str(source).startswith(".")):
        raise FileNotFoundError(f"{source}: no such folder, manifest or data set")
    dataset = load_from_disk(source) if is_saved_dataset(path) else load_dataset(str(source))
    return dataset if isinstance(dataset, DatasetDict) else DatasetDict(train=dataset)


def clips_of_dataset(dataset: Dataset) -> Clips:
    """The recordings of a data set with an `audio` column, which stays where it is."""
    if "audio" not in dataset.column_names:
        raise ValueError(f"this data set has columns {', '.join(dataset.column_names)}; recordings are in 'audio'")
    speakers = next((list(map(str, dataset[name])) for name in SPEAKER_COLUMNS if name in dataset.column_names), None)
    audio = dataset.select_columns("audio").cast_column("audio", Audio(decode=False))
    return Clips(audio, speakers=speakers)
