"""The page of everything that was measured, docs/speed.md: a table, what it ran on, the memory of each choice."""

import statistics
from types import SimpleNamespace

import torch
from speed_row import FULL

import dacse
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import Enhancer

WINDOW_FRAMES = FULL.window_frames  # 4 s of the released grid
MODELS = {"embedded": None, "1B": "1B"}
GIGABYTE = 1e9


def spread(values: list[float], digits: int = 2) -> str:
    """Median, lowest and highest."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def describe_ratio(values: list[float]) -> str:
    """How many times as fast, round by round."""
    return spread(values).replace(" ", " x ", 1)


def write_table(results: list[dict], missing: dict[str, str]) -> str:
    """The page of everything that was measured, here or on another machine.

    Args:
        results: of rows, as `speed.measure` gives them.
        missing: What the rows are that were not measured, by name.
    """
    lines = [
        "# Speed",
        "",
        "`python benchmarks/speed.py` makes this page. The baseline is `benchmarks/naive.py`: one window at a time",
        "through `LlamaForCausalLM.generate`, a mask built row by row, whole-file codec calls, a corpus one waveform",
        "at a time. Its calls and ours are run in turn, round by round. Seconds and ratios (how many times as fast as",
        "the baseline, in one round) are medians, with the lowest and the highest. A baseline that was timed on a",
        "part is scaled up for the ratio. Only float32 keeps the baseline's ids.",
        "The file is compared as the model generates it, as the baseline does; `with the recording kept` is the",
        "embedded model's default (`keep_recording`).",
        "The memory limit is the time it takes to read what every token needs, weights and what was said so far, as",
        "fast as a copy goes in the same process; the prompt is on top of it. The peak is that of the row's process,",
        "the baseline and every other way included.",
        "",
        "| what | wanted | baseline, s | dacse, s | ratio | peak, GB | besides |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        seconds, ratios = result["seconds"], result["ratios"]
        others = [f"{name} {describe_ratio(ratios[name])}" for name in ratios if name != "dacse"]
        besides = "; ".join([*others, *(f"{name} {value}" for name, value in result["facts"].items())])
        lines.append(
            f"| {result['what']} | {result['goal']} | {spread(seconds['baseline'])} | {spread(seconds['dacse'])} |"
            f" {describe_ratio(ratios['dacse'])} | {result['peak_gigabytes']} | {besides} |"
        )
    for name, what in missing.items():
        command = "python benchmarks/speed.py" + " --device cuda" * name.startswith("gpu") + f" --rows {name}"
        lines.append(f"| {what} | | not measured | not measured | | | `{command}` |")
    lines += ["", "Measured by:", ""]
    for how in dict.fromkeys(result["measured"] for result in results):
        rows = ", ".join(result["row"] for result in results if result["measured"] == how)
        lines.append(f"- {how} (rows {rows})")
    lines += ["", *describe_memory()]
    return "\n".join(lines) + "\n"


def describe_memory() -> list[str]:
    """What each choice of model and dtype takes, computed from the configurations."""
    lines = [
        "## Memory",
        "",
        "Beside half a gigabyte of imports a process holds the weights, and for the windows of a batch their keys and",
        "values: `2 * layers * key-value heads * head size * tokens * bytes`, in the dtype of the model (with int8 in",
        "that of what is not rounded, which on x86 processors before VNNI is float32: twice the figures below). Left",
        "to itself, `batch_size` is as many windows as take half a gigabyte on a CPU, or half of the free memory on a",
        "GPU, and at most 64; `dacse enhance` says which, and `logging` at level info. The codec sees at most four",
        "seconds at a time, whatever the length of the file.",
        "",
        "| model | dtype | weights, GB | keys and values of a window, GB | windows together on a CPU |",
        "|---|---|---|---|---|",
    ]
    for name, size in MODELS.items():
        config = DacSeConfig.from_size(size) if size else DacSeConfig.from_pretrained(dacse.default_model())
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            with torch.device("meta"):
                model = DacSeForEnhancement(config).to(torch.bfloat16 if dtype == torch.int8 else dtype)
            layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
            weights = layers * dtype.itemsize + (model.num_parameters() - layers) * model.dtype.itemsize
            width = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
            frames = min(config.max_frames, WINDOW_FRAMES)
            cache = 2 * width * (2 * frames * config.num_codebooks + 3) * model.dtype.itemsize
            lines.append(
                f"| {name} | {str(dtype).removeprefix('torch.')} | {weights / GIGABYTE:.3f} | {cache / GIGABYTE:.4f} |"
                f" {windows_together(model)} |"
            )
    return lines


def windows_together(model: DacSeForEnhancement) -> int:
    """How many windows the engine takes at a time."""
    return Enhancer(model, SimpleNamespace(**model.config.to_dict(), window_frames=None)).default_batch_size()
