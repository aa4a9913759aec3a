"""The Space: a recording in, enhanced speech out, both to be heard. Imports no room, uses `pipeline(...)` alone.

Run with `dacse app`, or `python app.py` where the `DACSE_…` variables of README.md are set.
"""

import html
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
import soundfile
from comparison import DNSMOS_SECONDS, Comparison, score
from offer import (
    BASE_MODEL,
    Choices,
    Settings,
    adapters_beside,
    check_recording,
    load_pipelines,
    read_recording,
)

HERE = Path(__file__).parent
EXAMPLES = {path.stem.replace("_", " "): path for path in sorted((HERE / "examples").glob("*.flac"))}
GPU_SECONDS = 30, 0.6  # ZeroGPU's reservation for a recording, and for each of its seconds
WAITING_PLACES = 20
TOGETHER = 8  # windows: one alone is heard little sooner, and all of them are done much later
KEPT_SECONDS = 3600
MODEL_QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model has one active adapter: one at a time
INTRODUCTION = """# Clean speech from noisy recordings
DAC-SE1 takes noise, echo, drop-outs and dull sound out of speech, at the full 44.1 kHz. \
Listen to both sides at the same loudness, and see where the model had to guess."""
THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # fonts of the machine itself: the page calls nobody
    font_mono=["ui-monospace", "monospace"],
).set(  # contrast of at least 4.5 to 1 (WCAG AA), light and dark
    background_fill_primary="*neutral_50",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    block_label_background_fill="*neutral_50",
    block_label_background_fill_dark="*neutral_800",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_200",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
)


def _gpu_seconds(model: str, path: str, parameters: dict[str, Any]) -> int:
    """What is reserved of a GPU for enhancing the recording at `path`."""
    start, share = GPU_SECONDS
    return round(start + share * soundfile.info(path).duration)


class Space:
    """The page over loaded pipelines.

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
        self.stream = spaces.GPU(duration=_gpu_seconds)(self._stream) if spaces else self._stream

    def _stream(self, model: str, path: str, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.pipelines[model].stream(path, batch_size=TOGETHER, return_confidence=True, **parameters)

    def compare(self, path: str | None, *choices: Any) -> Iterator[Comparison]:
        """Enhances one recording by `Choices`; yields the same comparison whenever there is more of it.

        Raises:
            ValueError, OSError: the recording or a choice cannot be taken; the message is for the visitor.
        """
        choices = Choices(*choices)
        check_recording(path, self.settings)
        adapters = self.adapters[choices.model]
        if choices.adapter not in [BASE_MODEL, *adapters]:
            raise ValueError(
                f"{choices.model} has no specialist {choices.adapter!r}; choose one of {adapters} or none."
            )
        recording, rate_in = read_recording(path)
        processor = self.pipelines[choices.model].processor
        folder = Path(tempfile.mkdtemp(dir=self.results))
        _remove_later(folder)
        name, rate, frame_rate = Path(path).name, processor.sampling_rate, processor.frame_rate
        comparison = Comparison(folder, name, recording, rate_in, rate, frame_rate)
        yield comparison
        for piece in self.stream(choices.model, path, choices.parameters()):
            comparison.add(piece["audio"], piece["confidence"])
            yield comparison
        comparison.finish()
        yield comparison

    def enhance(
        self,
        audio: str | None,
        model: str,
        adapter: str,
        strength: float,
        do_sample: bool,
        temperature: float,
        seed: int,
    ) -> str:
        """Enhances a recording (WAV, FLAC, OGG, Opus or MP3, mono or stereo) and returns it as 24-bit WAV."""
        try:
            *_, comparison = self.compare(audio, model, adapter, strength, do_sample, temperature, seed)
        except (ValueError, OSError) as error:
            raise gr.Error(_without_folder(error, audio)) from error
        return str(comparison.download)

    def run(self, path: str | None, *choices: Any) -> Iterator[tuple]:
        """`compare` for the page: yields status, player, download and what is to be scored after each piece."""
        started = time.monotonic()
        try:
            for comparison in self.compare(path, *choices):
                if not comparison.shown["done"]:
                    elapsed = time.monotonic() - started
                    yield _progress(comparison, elapsed), comparison.state(), gr.skip(), gr.skip()
        except (ValueError, OSError) as error:
            yield _message("alert", _without_folder(error, path)), gr.skip(), gr.skip(), gr.skip()
            return
        seconds = time.monotonic() - started
        text = f"Done: {_span(comparison.shown['seconds'])} of audio in {_span(seconds)}."
        download = gr.DownloadButton(value=str(comparison.download), interactive=True)
        yield _message("status", text), comparison.state(), download, comparison.excerpts()

    def blocks(self) -> gr.Blocks:
        """The page, with its events and its API endpoint `/enhance`."""
        with gr.Blocks(title="DAC-SE1", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
            gr.Markdown(INTRODUCTION)
            with gr.Row(elem_classes="dacse-columns"):
                with gr.Column():
                    audio, choices = self._inputs()
                    start = gr.Button("Enhance", variant="primary", elem_id="dacse-start")
                    cancel = gr.Button("Cancel", visible=False, elem_id="dacse-cancel")
                with gr.Column():
                    status = gr.HTML(_message("status", "The result will appear here."), elem_id="dacse-status")
                    player = gr.HTML(
                        None,
                        html_template=(HERE / "player.html").read_text(),
                        js_on_load=(HERE / "player.js").read_text(),
                        elem_id="dacse-result",
                    )
                    download = gr.DownloadButton("Download the enhanced recording", interactive=False)
                    scores = gr.HTML(elem_id="dacse-scores")
            self._connect([audio, *choices], start, cancel, status, player, download, scores)
            # For programs. Through components, unlike `gr.api`, Gradio takes only files that were uploaded.
            endpoint, enhanced = gr.Button(visible=False), gr.File(visible=False)
            endpoint.click(self.enhance, [audio, *choices], enhanced, api_name="enhance", **MODEL_QUEUE)
        return page.queue(max_size=WAITING_PLACES)

    def _connect(
        self,
        inputs: list,
        start: gr.Button,
        cancel: gr.Button,
        status: gr.HTML,
        player: gr.HTML,
        download: gr.DownloadButton,
        scores: gr.HTML,
    ) -> None:
        """What follows when a button is pressed."""
        excerpts = gr.State()
        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        cleared = start.click(_clear, None, [start, cancel, status, player, download, excerpts, scores], **at_once)
        running = cleared.then(
            self.run,
            inputs,
            [status, player, download, excerpts],
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
            **MODEL_QUEUE,
        )
        ready = running.success(lambda: _busy(False), None, [start, cancel], **at_once)
        ready.then(_scores, excerpts, scores, show_progress="hidden", api_visibility="private")
        failed = _message("alert", "The server failed, or too many are waiting. Try again later; its log says why.")
        running.failure(lambda: (*_busy(False), failed), None, [start, cancel, status], **at_once)
        cancelled = _message("status", "Cancelled. What was done until then can be heard.")
        cancel.click(lambda: (*_busy(False), cancelled), None, [start, cancel, status], cancels=[running], **at_once)

    def _inputs(self) -> tuple[gr.Audio, list]:
        """The recording, and the choices in the order of `compare`."""
        models = list(self.pipelines)
        adapters = sorted({name for names in self.adapters.values() for name in names})
        audio = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Noisy recording",
            editable=False,
            buttons=[],
            elem_id="dacse-recording",
        )
        gr.Markdown(
            f"Up to {_span(60 * self.settings.max_minutes)}, mono or stereo, WAV, FLAC, OGG, Opus or MP3. "
            "Recording and result stay on the machine that runs this page, for an hour.",
            elem_classes="dacse-hint",
        )
        gr.Examples(
            [[str(path)] for path in EXAMPLES.values()], audio, label="Examples", example_labels=list(EXAMPLES)
        )
        model = gr.Dropdown(models, label="Model", visible=len(models) > 1)
        adapter = gr.Dropdown(
            [BASE_MODEL, *adapters],
            label="Specialist",
            info="An adapter trained for one kind of damage.",
            visible=bool(adapters),
        )
        strength = gr.Slider(
            0, 1, 1, step=0.05, label="Strength", info="0 is the recording as it was, 1 is fully enhanced."
        )
        with gr.Accordion("Advanced", open=False):
            do_sample = gr.Checkbox(
                label="Sample", info="Draw each token by chance instead of taking the likeliest one."
            )
            temperature = gr.Slider(0.1, 1.5, 1, step=0.05, label="Temperature", info="Lower is more cautious.")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="The same seed draws the same tokens.")
        return audio, [model, adapter, strength, do_sample, temperature, seed]


def _remove_later(folder: Path) -> None:
    timer = threading.Timer(KEPT_SECONDS, shutil.rmtree, [folder], {"ignore_errors": True})
    timer.daemon = True
    timer.start()


def _busy(busy: bool) -> tuple[gr.Button, gr.Button]:
    """The buttons `Enhance` and `Cancel`, of which one is there."""
    return gr.Button(visible=not busy), gr.Button(visible=busy)


def _clear() -> tuple:
    """Buttons, status, player, download, excerpts and scores before a new enhancement."""
    download = gr.DownloadButton(value=None, interactive=False)
    return *_busy(True), _message("status", "Waiting for the model …"), None, download, None, ""


def _scores(excerpts: list | None) -> str:
    """The table of DNSMOS before and after, where it can be had."""
    rows = score(excerpts) if excerpts else []
    if not rows:
        return ""
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td>{before:.2f}</td><td>{after:.2f}</td></tr>'
        for name, before, after in rows
    )
    return (
        f"<table class='dacse-scores'><caption>DNSMOS: the ratings of listeners as a model predicts them, "
        f"over the first {DNSMOS_SECONDS} seconds at most.</caption><thead><tr><th scope='col'>Score, 1 to 5</th>"
        f"<th scope='col'>Before</th><th scope='col'>After</th></tr></thead><tbody>{cells}</tbody></table>"
    )


def _message(role: str, text: str, progress: str = "") -> str:
    """HTML that a screen reader speaks: at once for role "alert", in passing for "status"."""
    return f'<div class="dacse-message" role="{role}">{html.escape(text)}{progress}</div>'


def _progress(comparison: Comparison, elapsed: float) -> str:
    """How far an enhancement is, after `elapsed` seconds."""
    seconds, done = comparison.shown["seconds"], comparison.shown["confidence"]["seconds"]
    if not done:
        return _message("status", f"Enhancing {_span(seconds)} of audio …", "<progress></progress>")
    text = f"{_span(done)} of {_span(seconds)} enhanced, about {_span(elapsed * (seconds - done) / done)} left."
    return _message("status", text, f'<progress max="{seconds}" value="{done}"></progress>')


def _span(seconds: float) -> str:
    """A length of time in words.

    >>> _span(3.21), _span(75), _span(600)
    ('3.2 s', '1 min 15 s', '10 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


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
    try:
        Space(pipelines, adapters, settings, results).blocks().launch(**launch_options(settings, results))
    finally:
        shutil.rmtree(results)


if __name__ == "__main__":
    main()
