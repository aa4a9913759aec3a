"""The Space: a recording in, enhanced speech out, both to be heard. Imports no room, uses `pipeline(...)` alone.

Run with `dacse app`, or `python app.py` where the `DACSE_…` variables of README.md are set.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A folder for the uploads of this process alone: when it ends, Gradio deletes what is there, whoever put it there.
os.environ.setdefault("GRADIO_TEMP_DIR", os.path.join(tempfile.gettempdir(), f"dacse-uploads-{os.getpid()}"))

if importlib.util.find_spec("spaces"):
    import spaces  # ZeroGPU; it has to come before torch
else:
    spaces = None

import gradio as gr
from comparison import Comparison
from offer import BASE_MODEL, KEEP_RECORDING, MOST_CANDIDATES, Choices, Settings, adapters_beside, load_pipelines
from page import EXAMPLES, HERE, KEPT_SECONDS, THEME, build_page, message, progress, span
from recording import UploadedRecording, read_recording

GPU_SECONDS = 30, 0.6  # ZeroGPU's reservation for a recording, and for each of its seconds
TOGETHER = 8  # answers to windows: one alone is heard little sooner, and all of them are done much later


def _gpu_seconds(model: str, path: str, seconds: float, parameters: dict[str, Any]) -> int:
    """What is reserved of a GPU for enhancing the recording at `path`."""
    start, share = GPU_SECONDS
    return round(start + share * seconds * parameters.get("candidates", 1))


class Space:
    """What the page does, over loaded pipelines.

    Args:
        pipelines: "audio-enhancement" pipelines by their names on the page; the first is chosen at the start.
        adapters: for each of them the adapters offered.
        settings: limits of what is taken.
        results: an empty directory for the results, served to whoever knows their random names.
    """

    def __init__(self, pipelines: dict[str, Any], adapters: dict[str, list[str]], settings: Settings, results: Path):
        self.pipelines = pipelines
        self.adapters = adapters
        self.settings = settings
        self.results = results
        self.ready: dict[str, Comparison] = {}  # examples that have been enhanced, by the names of their files
        self.stream = spaces.GPU(duration=_gpu_seconds)(self._stream) if spaces else self._stream

    def _stream(self, model: str, path: str, seconds: float, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        batch_size = max(1, TOGETHER // parameters.get("candidates", 1))
        yield from self.pipelines[model].stream(path, batch_size=batch_size, return_confidence=True, **parameters)

    def compare(self, path: str | None, *choices: Any) -> Iterator[Comparison]:
        """Enhances one recording by `Choices`; yields the same comparison whenever there is more of it.

        Raises:
            ValueError, OSError: the recording or a choice cannot be taken; the message is for the visitor.
        """
        choices = Choices(*choices)
        recording = self._read(path, choices)
        folder = Path(tempfile.mkdtemp(dir=self.results))
        _remove_later(folder)
        yield from self._enhance(path, recording, choices, folder)

    def _read(self, path: str | None, choices: Choices) -> UploadedRecording:
        if choices.model not in self.pipelines:
            raise ValueError(f"There is no model {choices.model!r} here; choose one of {list(self.pipelines)}.")
        adapters = self.adapters[choices.model]
        if choices.adapter not in [BASE_MODEL, *adapters]:
            raise ValueError(
                f"{choices.model} has no specialist {choices.adapter!r}; choose one of {adapters} or none."
            )
        if choices.keep_recording not in KEEP_RECORDING:
            raise ValueError(f"What is heard is {choices.keep_recording!r}; choose one of {list(KEEP_RECORDING)}.")
        if choices.candidates is not None and not 1 <= choices.candidates <= MOST_CANDIDATES:
            raise ValueError(f"Candidates is {choices.candidates}; choose a number from 1 to {MOST_CANDIDATES}.")
        processor = self.pipelines[choices.model].processor
        return read_recording(path, processor.stream_audio, processor.sampling_rate, self.settings)

    def _enhance(
        self, path: str, recording: UploadedRecording, choices: Choices, folder: Path
    ) -> Iterator[Comparison]:
        processor = self.pipelines[choices.model].processor
        comparison = Comparison(folder, recording, choices.label(), processor.sampling_rate, processor.frame_rate)
        yield comparison
        for piece in self.stream(choices.model, path, comparison.shown["seconds"], choices.parameters()):
            comparison.add(piece["audio"], piece["confidence"])
            yield comparison
        comparison.finish()
        yield comparison

    def prepare_examples(self) -> None:
        """Enhances the examples as the page stands when it opens, so that whoever picks one hears a result at once."""
        choices = Choices(next(iter(self.pipelines)))
        for path in EXAMPLES.values():
            folder = Path(tempfile.mkdtemp(dir=self.results))
            *_, self.ready[path.name] = self._enhance(str(path), self._read(str(path), choices), choices, folder)

    def show_example(self, path: str) -> tuple:
        """Status, player and what is to be scored when an example is picked."""
        comparison = self.ready.get(Path(path).name)
        if comparison is None:
            return message("status", "Press Enhance to hear this example."), gr.skip(), None
        text = "This example was enhanced when the page was started. Change a setting and enhance it again to compare."
        return message("status", text), comparison.state(), comparison.excerpts()

    def enhance(
        self,
        audio: str | None,
        model: str,
        adapter: str,
        strength: float,
        do_sample: bool,
        temperature: float,
        seed: int,
        keep_recording: str,
        candidates: int,
    ) -> str:
        """Enhances a recording of speech: takes away noise, reverberation, gaps of lost packets and a narrow band.

        Returns the whole recording, exactly as long as it was, as a WAV file of 24 bits at the model's sampling rate.

        Args:
            audio: the recording, in nearly any format (WAV, FLAC, MP3, M4A, OGG, WebM, ...), mono or stereo.
            model: name of one of the models that this server offers.
            adapter: specialist for one kind of damage, or "none".
            strength: mix from 0 (the recording as it was) to 1 (fully enhanced).
            do_sample: draw each token by chance instead of taking the likeliest; gives another take each time.
            temperature: with do_sample, how bold the draws are: below 1 more cautious, above 1 bolder.
            seed: with do_sample, a whole number; the same number draws the same tokens.
            keep_recording: "yes" filters the recording and generates only what it lacks, "no" generates all of the speech anew, "default" is as the model was made for.
            candidates: how many answers are drawn to each stretch of the recording, of which the surest is kept; more take longer.

        Returns:
            The enhanced recording.
        """  # noqa: E501  Gradio reads one line for each argument
        choices = Choices(model, adapter, strength, do_sample, temperature, seed, keep_recording, candidates)
        try:
            *_, comparison = self.compare(audio, *choices)
        except (ValueError, OSError) as error:
            raise gr.Error(_without_folder(error, audio)) from error
        return str(comparison.download)

    def run(self, path: str | None, *choices: Any) -> Iterator[tuple]:
        """`compare` for the page: yields status, player and what is to be scored after each piece."""
        started = time.monotonic()
        try:
            for comparison in self.compare(path, *choices):
                if not comparison.shown["done"]:
                    elapsed = time.monotonic() - started
                    yield progress(comparison, elapsed), comparison.state(), gr.skip()
        except (ValueError, OSError) as error:
            yield message("alert", _without_folder(error, path)), gr.skip(), gr.skip()
            return
        seconds = time.monotonic() - started
        text = f"Done: {span(comparison.shown['seconds'])} of audio in {span(seconds)}."
        for warning in comparison.warnings:
            text += f" Beware: {warning.replace(str(path), Path(path).name)}."
        yield message("status", text), comparison.state(), comparison.excerpts()

    def blocks(self) -> gr.Blocks:
        """The page, with its events and its API endpoint `/enhance`."""
        return build_page(self)


def _remove_later(folder: Path) -> None:
    timer = threading.Timer(KEPT_SECONDS, shutil.rmtree, [folder], {"ignore_errors": True})
    timer.daemon = True
    timer.start()


def _without_folder(error: Exception, path: str | None) -> str:
    """An error's message that names the visitor's file, not the server's folders."""
    return str(error).replace(str(path), Path(path or "").name)


def _in_one_line(error: Exception) -> str:
    """An error's message without the tracebacks that `pipeline` puts into its own, of which the last line tells most.

    >>> _in_one_line(ValueError("Could not load:\\nTraceback ...\\nOSError: no such file\\n"))
    'OSError: no such file'
    """
    text = str(error).strip()
    return " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())


def launch_options(settings: Settings, results: Path) -> dict[str, Any]:
    """What `launch` is given wherever the page runs."""
    return {
        "theme": THEME,
        "css_paths": HERE / "style.css",
        "max_file_size": round(settings.max_megabytes * 1_000_000),
        "allowed_paths": [str(results), str(HERE / "examples")],
        "footer_links": ["api"],
        "ssr_mode": False,
        "mcp_server": True,
    }


def main() -> None:
    try:
        settings = Settings.from_environment()
        pipelines = load_pipelines(settings)
        adapters = {
            name: [*adapters_beside(pipe.model.name_or_path), *settings.adapters] for name, pipe in pipelines.items()
        }
    except (ValueError, OSError) as error:
        sys.exit(f"error: {_in_one_line(error)}")
    results = Path(tempfile.mkdtemp(prefix="dacse-"))
    space = Space(pipelines, adapters, settings, results)
    if not spaces:  # ZeroGPU lends its device to visitors only
        threading.Thread(target=space.prepare_examples, daemon=True).start()
    try:
        space.blocks().launch(**launch_options(settings, results))
    finally:
        shutil.rmtree(results)


if __name__ == "__main__":
    main()
