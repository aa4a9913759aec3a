"""An adapter leaves its base as it was, starts as no change, learns, and is kept beside others."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.tiny import tiny_model, tiny_prompts
from tests.training.tiny_tokens import Rows, tiny_trainer
from training_dacse.lm.adapters import adapter_losses, add_adapter, save_adapter
from training_dacse.lm.arguments import AdapterArguments
from training_dacse.lm.runs import task_losses


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    model = add_adapter(tiny_model().from_pretrained(base), AdapterArguments(rank=4))
    run = tiny_trainer(path, Rows(16), model, max_steps=20)
    run.train()
    before, after = adapter_losses(run)
    save_adapter(run.model, path, "dereverb", before, after)
    return path, run.model, before, after


def test_the_base_is_bit_equal_afterwards(base, adapter):
    _, model, _, _ = adapter
    original = load_file(base / "model.safetensors")
    with_adapter = model.get_base_model().state_dict()
    assert len(original) > 10
    for name, weight in original.items():
        place = name if name in with_adapter else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(with_adapter[place], weight), name


def test_it_starts_as_no_change_and_learns(base, adapter):
    _, _, before, after = adapter
    fresh = task_losses(tiny_trainer(base / "unused", Rows(16), tiny_model().from_pretrained(base)))
    assert before == pytest.approx(fresh, rel=1e-6)
    assert all(after[task] < before[task] - 0.01 for task in Rows.tasks)


def test_its_files_are_small_and_name_base_task_and_figures(base, adapter):
    path, _, before, after = adapter
    assert {"adapter_config.json", "adapter_model.safetensors", "card.yaml", "README.md"} <= {
        p.name for p in path.iterdir()
    }
    card = (path / "README.md").read_text()
    assert str(base) in card and "dereverb" in card
    assert f"| noise | {before['noise']:.3f} | {after['noise']:.3f} |" in card
    assert (path / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size


def test_merged_weights_generate_what_base_and_adapter_do(base, adapter):
    path, *_ = adapter
    model = PeftModel.from_pretrained(tiny_model().from_pretrained(base), path).eval()
    prompts = tiny_prompts([4], model.config)
    expected = model.generate(**prompts)
    plain = tiny_model().from_pretrained(base).generate(**prompts)
    assert torch.equal(model.merge_and_unload().generate(**prompts), expected)
    assert not torch.equal(plain, expected)
