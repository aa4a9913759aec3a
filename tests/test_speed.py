import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_pipeline, tiny_prompts


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder's scripts import each other by their bare names."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield
    for name in ("machine", "naive", "speed", "speed_rows"):
        sys.modules.pop(name, None)


def test_the_baseline_says_the_ids_of_the_package(benchmarks):
    from naive import naive_generate, plain_llama

    model = tiny_model()
    prompt = tiny_prompts([6], model.config)["input_ids"]
    ids = model.generate(prompt)[:, prompt.shape[1] : -1]
    assert torch.equal(naive_generate(plain_llama(model), model.config, prompt), ids)


def test_a_share_of_the_baseline_is_scaled_and_what_was_not_measured_says_so(benchmarks, monkeypatch):
    import speed
    import speed_rows

    seconds = iter(range(100))
    row = speed_rows.file_row(0.03, tiny_pipeline(), "tiny")
    assert row.facts["windows"] == 4 and row.baseline_share == 0.25  # 30 ms in windows of 10 that share 2
    calls = {"baseline": lambda: None, "dacse": lambda: None, "dacse int8": lambda: None}
    row = speed_rows.Row(row.what, row.goal, calls, baseline_share=0.25, audio_seconds=2.0)
    monkeypatch.setitem(speed.CPU_ROWS, "file", lambda scale, device: row)
    result = speed.measure("file", True, "cpu", 1, lambda: next(seconds))
    assert result["ratio"] == 4.0 and result["facts"]["dacse int8"] == "4.0 x"
    assert result["facts"]["baseline timed on"] == "25.0% of it" and result["facts"]["real-time factor"] == 0.5
    table = speed.write_table([result | {"measured": "a machine"}])
    assert table.count("not measured | not measured") == len(speed.GPU_ROWS) == 2
    assert "| 4.0 x |" in table and "a machine" in table and "| 1B | int8 | 0.934 |" in table
