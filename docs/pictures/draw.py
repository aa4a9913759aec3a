"""Draws the pictures of the explanations: python docs/pictures/draw.py

Colours are the site's where a picture is part of a page, and those of a light page where it stands alone.
"""

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH = 520
TEXT, PAGE, LINE = "var(--dacse-text, #1e293b)", "var(--dacse-page, #ffffff)", "var(--dacse-line, #94a3b8)"
FAINT, ACCENT = "var(--dacse-faint, #e2e8f0)", "var(--dacse-accent, #0f766e)"
CODEBOOKS = ("#0d9488", "#2563eb", "#9333ea", "#db2777")  # white text reads on each of them


def text(x: float, y: float, words: str, size: int = 15, anchor: str = "middle", fill: str = TEXT, bold=False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}"{weight}>{escape(words)}</text>'


def box(
    x: float, y: float, width: float, height: float, fill: str = FAINT, stroke: str = "none", dash: str = ""
) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<rect {place} fill="{fill}" stroke="{stroke}"{dashes}/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{LINE}" stroke-width="2" marker-end="url(#tip)"/>'


def wave(x: float, y: float, width: float, noise: float) -> str:
    """Two syllables; `noise` of 0 to 1 roughens them."""
    points = []
    for step in range(int(width)):
        level = (
            20 * max(0.0, math.sin(step / width * 2 * math.pi)) ** 2 + 20 * max(0, -math.sin(step / width * 6.28)) ** 2
        )
        rough = noise * 8 * math.sin(step * 12.9898) * math.sin(step * 78.233)
        points.append(f"{x + step:g},{y + level * math.sin(step * 0.9) + rough:.1f}")
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{ACCENT}" stroke-width="1.2"/>'


def code(x: float, y: float, codebook: int, label: str = "", size: float = 26) -> str:
    cell = box(x, y, size - 2, size - 2, CODEBOOKS[codebook])
    return cell + (text(x + size / 2 - 1, y + size / 2 + 4, label, 12, fill="#ffffff") if label else "")


def method() -> tuple[int, str]:
    """From the recording to tokens, through the language model, and back."""
    parts = [wave(12, 50, 120, 1.0), text(72, 100, "noisy recording", 14), arrow(138, 50, 176, 50)]
    parts += [box(182, 26, 130, 48), text(247, 55, "DAC encoder"), arrow(316, 50, 350, 50)]
    for frame in range(5):
        parts += [code(364 + 22 * frame, 10 + 22 * codebook, codebook, size=22) for codebook in range(4)]
    parts += [text(419, 120, "codes (codebook, frame)", 14)]
    parts += [arrow(419, 130, 419, 156), text(431, 148, "in one row", 13, "start")]
    parts += [token_row(16, 166, 4, 5), text(260, 214, "noisy tokens, frame by frame", 14), arrow(260, 222, 260, 244)]
    parts += [box(120, 250, 280, 54, ACCENT), text(260, 283, "one plain LLaMA", 18, fill=PAGE, bold=True)]
    parts += [arrow(260, 306, 260, 328), token_row(16, 336, 4, 5), text(260, 384, "clean tokens", 14)]
    parts += [arrow(424, 392, 424, 414), box(356, 420, 136, 48), text(424, 449, "DAC decoder")]
    parts += [arrow(352, 444, 300, 444), wave(170, 444, 120, 0.0), text(230, 494, "enhanced, 44.1 kHz", 14)]
    return 510, "".join(parts)


def token_row(x: float, y: float, num_codebooks: int, num_frames: int) -> str:
    places = range(num_codebooks * num_frames)
    size = (WIDTH - 2 * x) / len(places)
    return "".join(code(x + size * place, y, place % num_codebooks, size=size) for place in places)


def patterns() -> tuple[int, str]:
    """The same codes in the flattened and in the delayed order."""
    names = [[f"{frame + 1}{'abc'[codebook]}" for frame in range(4)] for codebook in range(3)]
    parts = [text(20, 24, "codes: four frames, codebooks a, b and c", 14, "start")]
    for codebook, row in enumerate(names):
        parts += [code(20 + 34 * frame, 36 + 34 * codebook, codebook, row[frame], 34) for frame in range(4)]
    parts.append(text(20, 172, "flattened: one token a step, twelve steps", 14, "start"))
    order = [(frame, codebook) for frame in range(4) for codebook in range(3)]
    parts += [
        code(20 + 34 * step, 184, codebook, names[codebook][frame], 34) for step, (frame, codebook) in enumerate(order)
    ]
    parts.append(text(20, 254, "delayed: codebook b waits one step, c waits two; six steps", 14, "start"))
    for frame, codebook in order:
        parts.append(code(20 + 34 * (frame + codebook), 266 + 34 * codebook, codebook, names[codebook][frame], 34))
    return 380, "".join(parts)


def prompt() -> tuple[int, str]:
    """What the language model reads and writes, and what may come next."""
    size, y = 29.0, 40
    row = [
        ("bos", None),
        *[("", k) for k in (0, 1, 2) * 2],
        ("start", None),
        *[("", k) for k in (0, 1, 2) * 2],
        ("eos", None),
    ]
    parts, x = [], 12.0
    for label, codebook in row:
        wide = size if codebook is not None or label != "start" else 46
        if codebook is None:
            parts += [box(x, y, wide - 3, size - 3, FAINT), text(x + wide / 2 - 1.5, y + 18, label, 12)]
        else:
            parts.append(code(x, y, codebook, size=size))
        x += wide
    parts += [text(115, 26, "noisy tokens", 14), text(344, 26, "clean tokens", 14)]
    parts += [text(12, 108, "what may come next, of all ids:", 14, "start")]
    for step in range(7):
        top = 120 + 26 * step
        parts.append(text(116, top + 16, f"clean token {step + 1}" if step < 6 else "after the last", 13, "end"))
        for index in range(4):
            left, wide = (128, 60) if index == 0 else (192 + 104 * (index - 1), 100)
            legal = index == (0 if step == 6 else step % 3 + 1)
            fill = FAINT if not legal else CODEBOOKS[index - 1] if index else ACCENT
            parts.append(box(left, top, wide, 22, fill))
            if legal:
                name = "eos" if index == 0 else f"codebook {index}"
                parts.append(text(left + wide / 2, top + 16, name, 12, fill="#ffffff" if index else PAGE))
    parts += [
        text(158, 318, "special", 12),
        text(346, 318, "ids of codes, codebook after codebook", 12),
    ]
    return 330, "".join(parts)


def windows() -> tuple[int, str]:
    """Where windows lie, and which of their frames are kept."""
    parts = [text(12, 22, "a recording", 14, "start"), box(12, 32, 496, 18, FAINT)]
    spans = [(12, 212, 12, 196), (180, 380, 196, 344), (308, 508, 344, 508)]
    names = ("window 1", "window 2", "the last window, shifted back to end with it")
    for index, ((start, stop, first, last), name) in enumerate(zip(spans, names, strict=True)):
        y = 84 + 62 * index
        parts += [
            box(start, y, stop - start, 24, "none", LINE, "4 3"),
            box(first, y, last - first, 24, CODEBOOKS[index]),
        ]
        side = ("start", 12) if index == 0 else ("middle", 280) if index == 1 else ("end", 508)
        parts.append(text(side[1], y - 8, name, 13, side[0]))
    parts += [text(12, 268, "kept", 14, "start")]
    parts += [box(first, 278, last - first, 18, CODEBOOKS[index]) for index, (_, _, first, last) in enumerate(spans)]
    return 308, "".join(parts)


PICTURES: dict[str, tuple[Callable[[], tuple[int, str]], str]] = {
    "method": (method, "From the noisy recording to codes, to tokens in one row, through one plain LLaMA, and back"),
    "patterns": (patterns, "The same twelve codes in the flattened and in the delayed order"),
    "prompt": (prompt, "A prompt, and for each clean token the ids that may come"),
    "windows": (windows, "Three overlapping windows over a recording, and the frames that each of them keeps"),
}


def draw(name: str) -> str:
    """A picture as SVG."""
    make, title = PICTURES[name]
    height, content = make()
    tip = f'<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker>'  # noqa: E501
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="system-ui, sans-serif">'  # noqa: E501
    page = f'<rect width="{WIDTH}" height="{height}" fill="{PAGE}"/>'
    return f"{head}<title>{escape(title)}</title><defs>{tip}</defs>{page}{content}</svg>\n"


if __name__ == "__main__":
    for name in PICTURES:
        (FOLDER / f"{name}.svg").write_text(draw(name))
