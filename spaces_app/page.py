"""The page: what a visitor sees, and what happens when a button is pressed. Knows no model and no audio."""

import html
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from comparison import DNSMOS_SECONDS, Comparison, score
from offer import BASE_MODEL, KEEP_RECORDING, MOST_CANDIDATES

if TYPE_CHECKING:
    from app import Space

HERE = Path(__file__).parent
EXAMPLES = {path.stem.replace("_", " "): path for path in sorted((HERE / "examples").glob("*.flac"))}
WAITING_PLACES = 20
KEPT_SECONDS = 3600
MODEL_QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}  # two recordings at once would both be slow
INTRODUCTION = """# Clean speech from noisy recordings
DAC-SE1 takes noise, echo, drop-outs and dull sound out of speech, at the full 44.1 kHz. \
Listen to both sides at the same loudness, and see where the model had to guess."""
KEEP_LABELS = {
    "default": "As the model was made for",
    "yes": "The recording, filtered, with its gaps filled",
    "no": "All of it generated",
}
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
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    checkbox_label_background_fill_hover_dark="*neutral_600",
    checkbox_label_text_color_selected="white",
    checkbox_label_text_color_selected_dark="white",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
)


def build_page(space: "Space") -> gr.Blocks:
    """The page over a Space, with its events and its API endpoint `/enhance`, which is an MCP tool as well."""
    with gr.Blocks(title="DAC-SE1", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        excerpts = gr.State()
        status = gr.HTML(message("status", "The result will appear here."), elem_id="dacse-status", render=False)
        player = gr.HTML(
            None,
            html_template=(HERE / "player.html").read_text(),
            js_on_load=(HERE / "player.js").read_text(),
            elem_id="dacse-result",
            render=False,
        )
        gr.Markdown(INTRODUCTION)
        with gr.Row(elem_classes="dacse-columns"):
            with gr.Column():
                audio = _recording(space)
                examples = _examples(space, audio, [status, player, excerpts])
                choices = _choices(space)
                start = gr.Button("Enhance", variant="primary", elem_id="dacse-start")
                cancel = gr.Button("Cancel", visible=False, elem_id="dacse-cancel")
            with gr.Column():
                status.render()
                player.render()
                scores = gr.HTML(elem_id="dacse-scores")
        _connect(space, [audio, *choices], start, cancel, status, player, scores, excerpts)
        examples.load_input_event.then(_scores, excerpts, scores, show_progress="hidden", api_visibility="private")
        # For programs. Through components, unlike `gr.api`, Gradio takes only files that were uploaded.
        endpoint, enhanced = gr.Button(visible=False), gr.File(visible=False)
        endpoint.click(space.enhance, [audio, *choices], enhanced, api_name="enhance", **MODEL_QUEUE)
    return page.queue(max_size=WAITING_PLACES)


def _recording(space: "Space") -> gr.Audio:
    audio = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Noisy recording",
        editable=False,
        buttons=[],
        elem_id="dacse-recording",
    )
    gr.Markdown(
        f"Up to {span(60 * space.settings.max_minutes)}, mono or stereo, in nearly any format. "
        "Recording and result stay on the machine that runs this page, for an hour.",
        elem_classes="dacse-hint",
    )
    return audio


def _examples(space: "Space", audio: gr.Audio, outputs: list) -> gr.Examples:
    return gr.Examples(
        [[str(path)] for path in EXAMPLES.values()],
        audio,
        outputs,
        space.show_example,
        run_on_click=True,
        cache_examples=False,  # by Gradio; they are enhanced as the Space starts
        label="Examples",
        example_labels=list(EXAMPLES),
        api_visibility="private",
    )


def _choices(space: "Space") -> list:
    """Components in the order of `Choices`."""
    models = list(space.pipelines)
    adapters = sorted({name for names in space.adapters.values() for name in names})
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
        keep_recording = gr.Radio(
            [(KEEP_LABELS[name], name) for name in KEEP_RECORDING], value="default", label="What is heard"
        )
        do_sample = gr.Checkbox(label="Sample", info="Draw each token by chance instead of taking the likeliest one.")
        temperature = gr.Slider(0.1, 1.5, 1, step=0.05, label="Temperature", info="Lower is more cautious.")
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, info="The same seed draws the same tokens; none draws anew."
        )
        candidates = gr.Slider(
            1,
            MOST_CANDIDATES,
            1,
            step=1,
            label="Candidates",
            info="Answers drawn to each stretch of the recording; the surest is kept. More take longer.",
        )
    return [model, adapter, strength, do_sample, temperature, seed, keep_recording, candidates]


def _connect(
    space: "Space",
    inputs: list,
    start: gr.Button,
    cancel: gr.Button,
    status: gr.HTML,
    player: gr.HTML,
    scores: gr.HTML,
    excerpts: gr.State,
) -> None:
    """What follows when a button is pressed. The player keeps what it has: earlier takes can still be heard."""
    at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    cleared = start.click(_clear, None, [start, cancel, status, excerpts, scores], **at_once)
    running = cleared.then(
        space.run,
        inputs,
        [status, player, excerpts],
        show_progress="minimal",
        show_progress_on=status,
        api_visibility="private",
        **MODEL_QUEUE,
    )
    ready = running.success(lambda: _busy(False), None, [start, cancel], **at_once)
    ready.then(_scores, excerpts, scores, show_progress="hidden", api_visibility="private")
    failed = message("alert", "The server failed, or too many are waiting. Try again later; its log says why.")
    running.failure(lambda: (*_busy(False), failed), None, [start, cancel, status], **at_once)
    cancelled = message("status", "Cancelled. What was done until then can be heard.")
    cancel.click(lambda: (*_busy(False), cancelled), None, [start, cancel, status], cancels=[running], **at_once)


def _busy(busy: bool) -> tuple[gr.Button, gr.Button]:
    """The buttons `Enhance` and `Cancel`, of which one is there."""
    return gr.Button(visible=not busy), gr.Button(visible=busy)


def _clear() -> tuple:
    """Buttons, status, excerpts and scores before a new enhancement."""
    return *_busy(True), message("status", "Waiting for the model …"), None, ""


def _scores(excerpts: list | None) -> str:
    """The table of DNSMOS before and after, where it can be had."""
    rows = score(excerpts) if excerpts else []
    if not rows:
        return ""
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td>{before:.2f}</td><td>{after:.2f}</td></tr>'
        for name, before, after in rows
    )
    return f"""<table class='dacse-scores'>
<caption>DNSMOS: the ratings of listeners as a model predicts them, over the first {DNSMOS_SECONDS} seconds of the newest take.</caption>
<thead><tr><th scope='col'>Score, 1 to 5</th><th scope='col'>Before</th><th scope='col'>After</th></tr></thead>
<tbody>{cells}</tbody></table>"""  # noqa: E501


def message(role: str, text: str, progress: str = "") -> str:
    """HTML that a screen reader speaks: at once for role "alert", in passing for "status"."""
    return f'<div class="dacse-message" role="{role}">{html.escape(text)}{progress}</div>'


def progress(comparison: Comparison, elapsed: float) -> str:
    """How far an enhancement is, after `elapsed` seconds."""
    seconds, done = comparison.shown["seconds"], comparison.shown["confidence"]["seconds"]
    if not done:
        return message("status", f"Enhancing {span(seconds)} of audio …", "<progress></progress>")
    text = f"{span(done)} of {span(seconds)} enhanced, about {span(elapsed * (seconds - done) / done)} left."
    return message("status", text, f'<progress max="{seconds}" value="{done}"></progress>')


def span(seconds: float) -> str:
    """A length of time in words.

    >>> span(3.21), span(75), span(600)
    ('3.2 s', '1 min 15 s', '10 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
