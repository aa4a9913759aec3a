"""Public test sets by name: where each is to be had, and how its files lie once it is downloaded. Knows no samples."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DatasetPreset:
    """A data set on the Hub with columns `noisy` and `clean`."""

    hub_id: str
    split: str
    speaker: Callable[[str], str | None] = lambda name: None  # of a clip, by its name


@dataclass(frozen=True)
class FolderPreset:
    """Recordings in a folder, as their authors' archive or script leaves them."""

    origin: str  # where they are to be had
    noisy: str  # pattern of the recordings to enhance, below the folder
    clean: str | None = None  # pattern of the references, where there are any
    clip: Callable[[Path], str] = lambda path: path.stem  # what a recording and its reference have in common
    task: Callable[[Path], str] = lambda path: "all"
    speaker: Callable[[Path], str | None] = lambda path: None

    def find(self, folder: Path) -> Iterator[dict]:
        """`name`, `task`, `noisy` and `clean` recording and `speaker` of every clip, in the order of their paths.

        Raises:
            FileNotFoundError: no recordings, or one without its reference.
        """
        noisy = sorted(folder.glob(self.noisy))
        if not noisy:
            raise FileNotFoundError(f"{folder} holds no {self.noisy}; get the test set from {self.origin}")
        clean = {self.clip(path): path for path in folder.glob(self.clean)} if self.clean else {}
        for path in noisy:
            clip, task = self.clip(path), self.task(path)
            if clean and clip not in clean:
                raise FileNotFoundError(f"{path}: its reference {clip!r} is not among {folder / self.clean}")
            name = clip if task == "all" else f"{task}-{clip}"
            about = {"name": name, "task": task, "speaker": self.speaker(path)}
            yield {**about, "noisy": path, "clean": clean.get(clip)}


@dataclass(frozen=True)
class SpeechPreset:
    """Clean speech for a recipe, listed line by line as JSON (`audio_filepath`, `duration`, `speaker`, `set`)."""

    hub_id: str  # of the list
    origin: str  # what fetches the recordings
    listing: str  # in the folder
    audio: str  # folder of the recordings, in the folder

    def find(self, folder: Path) -> list[tuple[Path, float, str]]:
        """Path, seconds and speaker of every recording of the test sets ("test_seen", "test_unseen").

        Raises:
            FileNotFoundError: no list.
        """
        listing = folder / self.listing
        if not listing.exists():
            raise FileNotFoundError(f"{listing} is missing; get the corpus from {self.origin}")
        rows = (json.loads(line) for line in listing.read_text().splitlines())
        chosen = (row for row in rows if row["set"].startswith("test"))
        return [
            (folder / self.audio / row["audio_filepath"], float(row["duration"]), str(row["speaker"]))
            for row in chosen
        ]


PRESETS = {
    "voicebank-demand": DatasetPreset(
        "JacobLinCool/VoiceBank-DEMAND-16k",
        "test",
        speaker=lambda name: name.split("_")[0],  # p232_001
    ),
    "ears-wham-v2": FolderPreset(
        "github.com/sp-uhh/ears_benchmark (generate_ears_wham.py --copy_clean)",
        "test/noisy/*/*.wav",
        "test/clean/*/*.wav",
        clip=lambda path: path.stem.split("_")[0],  # 00042_3.1dB.wav and 00042.wav
        speaker=lambda path: path.parent.name,
    ),
    "dns5-blind": FolderPreset(
        "github.com/microsoft/DNS-Challenge (V5_BlindTestSet.zip)",
        "Track*/noisy/*.wav",
        task=lambda path: path.parents[1].name,
    ),
    "plc-2022": FolderPreset(
        "github.com/microsoft/PLC-Challenge (blind.tar.gz and blind_set_reference.tar.gz, unpacked into one folder)",
        "**/lossy_signals/*.wav",
        "**/X_CleanReference/*.wav",
    ),
    "hifitts-2": SpeechPreset(
        "nvidia/hifitts-2",
        "huggingface.co/datasets/nvidia/hifitts-2 with NeMo-speech-data-processor (hifitts2/config_44khz.yaml)",
        "manifest_filtered_44khz.json",
        "audio_44khz",
    ),
}


def split_preset(source: str) -> tuple[DatasetPreset | FolderPreset | SpeechPreset | None, str]:
    """The preset a source names (`NAME` or `NAME:FOLDER`), None if it names none, and the rest.

    >>> split_preset("plc-2022:downloads/plc")[1], split_preset("downloads/plc")
    ('downloads/plc', (None, 'downloads/plc'))

    Raises:
        ValueError: the preset needs a folder and none is given.
    """
    name, _, folder = source.partition(":")
    preset = PRESETS.get(name)
    if preset is None:
        return None, source
    if not folder and not isinstance(preset, DatasetPreset):
        raise ValueError(f"{name} is no data set on the Hub: get it from {preset.origin} and give {name}:FOLDER")
    return preset, folder
