import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.tiny import tiny_model, tiny_pipeline, tiny_prompts


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder's scripts import each other by their bare names."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield
    for name in ("machine", "naive", "speed", "speed_page", "speed_row", "speed_rows_audio", "speed_rows_decoding"):
        sys.modules.pop(name, None)


def test_the_baseline_says_the_ids_of_the_package(benchmarks):
    from naive import naive_generate, plain_llama

    model = tiny_model()
    prompt = tiny_prompts([6], model.config)["input_ids"]
    ids = model.generate(prompt)[:, prompt.shape[1] : -1]
    assert torch.equal(naive_generate(plain_llama(model), model.config, prompt), ids)


def test_a_guess_saves_the_passes_of_the_ids_that_are_right(benchmarks):
    from naive import passes_with_draft

    clean = list(range(12))
    assert passes_with_draft(clean, clean, 3) == 3  # three of the guess and one more each
    assert passes_with_draft(clean, [-1] * 12, 3) == 12
    assert passes_with_draft(clean, [0, 1, -1, 3, 4, 5, 6, 7, -1, 9, 10, 11], 24) == 3


def test_packets_that_are_lost_are_the_regions(benchmarks):
    from speed_rows_audio import LOSS, PACKET_SECONDS, lose_packets

    damaged, regions = lose_packets(np.ones(8_000, np.float32), 1000)
    lost = [stop - start for start, stop in regions]
    assert sum(lost) == pytest.approx((damaged == 0).sum() / 1000)
    assert 0.5 * LOSS < np.mean(damaged == 0) < 1.5 * LOSS and max(lost) <= PACKET_SECONDS + 1e-9


def test_tokens_of_a_corpus_are_the_naive_loops(benchmarks, tmp_path, monkeypatch):
    import speed_row
    import speed_rows_audio

    tiny_pipeline().processor.save_pretrained(tmp_path / "codec")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(speed_rows_audio.tempfile, "mkdtemp", lambda: str(tmp_path))
    scale = dataclasses.replace(speed_row.QUICK, clips=2, clip_seconds=0.1)
    row = speed_rows_audio.corpus_row(scale, "cpu", str(tmp_path / "codec"), "tiny", "3 x")
    for call in row.calls.values():
        call()
    (shard,) = (tmp_path / "tokens").glob("*.arrow")
    made = Dataset.from_file(str(shard))
    assert len(made) == 2
    for number, clip in enumerate(made):
        naive = np.load(tmp_path / f"{number}.npz")
        for side in ("noisy", "clean"):
            assert clip[side] == naive[side][0].T.flatten().tolist()


def test_a_share_of_the_baseline_is_scaled_and_what_was_not_measured_says_so(benchmarks, monkeypatch):
    import speed
    import speed_row
    import speed_rows_audio

    seconds = iter(range(100))
    row = speed_rows_audio.file_row(0.03, tiny_pipeline(), "tiny", "fast")
    assert row.facts["windows"] == 4 and row.baseline_share == 0.25  # 30 ms in windows of 10 that share 2
    calls = {"baseline": lambda: None, "dacse": lambda: None, "dacse int8": lambda: None}
    row = speed_row.Row(row.what, row.goal, calls, baseline_share=0.25, audio_seconds=2.0)
    monkeypatch.setitem(speed.CPU_ROWS, "file", lambda scale, device: row)
    result = speed.measure("file", True, "cpu", 2, lambda: next(seconds))
    assert result["ratios"] == {"dacse": [4.0, 4.0], "dacse int8": [4.0, 4.0]}
    assert result["facts"] == {"baseline timed on": "25.0% of it", "real-time factor": 0.5}
    page = speed.make_page({"file": result | {"measured": "a machine"}})
    assert page.count("not measured | not measured") == len(speed.CPU_ROWS | speed.GPU_ROWS) - 1 == 16
    assert page.count("--device cuda --rows gpu_") == len(speed.GPU_ROWS)
    assert "| 4.00 x (4.00 to 4.00) |" in page and "a machine" in page and "| 1B | int8 | 0.934 |" in page


def test_the_page_is_what_its_figures_give(benchmarks):
    import speed

    results = {result["row"]: result for result in json.loads(speed.PAGE.with_suffix(".json").read_text())}
    assert results.keys() <= (speed.CPU_ROWS | speed.GPU_ROWS).keys()
    table, _, _ = speed.make_page(results).partition("## Memory")  # which follows the embedded model
    assert speed.PAGE.read_text().startswith(table)
