"""The grid for other engines: what may come next follows from the place alone, through both interfaces of vLLM."""

import ast
import importlib.util
import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from hub_upload.doors import codebook_grid
from hub_upload.doors.codebook_grid import Grid, GridLogitsProcessor
from tests.tiny import tiny_config, tiny_model, tiny_prompts

GRID = Grid.of_config(tiny_config())
VLLM = SimpleNamespace(model_config=SimpleNamespace(hf_config=tiny_config()))
VOCABULARY = tiny_config().vocab_size


class MoveDirectionality(Enum):
    """As in `vllm.v1.sample.logits_processor`."""

    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class BatchUpdate:
    """As in `vllm.v1.sample.logits_processor`."""

    batch_size: int
    removed: list[int] = field(default_factory=list)
    added: list[tuple[int, None, list[int], list[int]]] = field(default_factory=list)
    moved: list[tuple[int, int, MoveDirectionality]] = field(default_factory=list)


def prompt(frames: int) -> list[int]:
    return tiny_prompts([frames], tiny_config())["input_ids"][0].tolist()


def legal(frames: int, clean: int) -> set[int]:
    """Derived anew: the ids of the codebook whose turn it is, or the end."""
    if clean == 3 * frames:
        return {2}
    return {5 + 16 * (clean % 3) + code for code in range(16)}


def allowed(logits: torch.Tensor) -> set[int]:
    return set(logits.isfinite().nonzero()[:, 0].tolist())


def test_it_is_one_file_of_torch_and_vllm():
    tree = ast.parse(Path(codebook_grid.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "vllm"}


def test_every_id_that_the_model_generates_is_legal_and_no_other_codebook_is():
    prompts = tiny_prompts([5], tiny_config())
    ids = tiny_model().generate(**prompts)[0].tolist()
    start = prompts["input_ids"].shape[1]
    for clean, token in enumerate(ids[start:]):
        assert set(range(*GRID.legal_ids(15, clean))) == legal(5, clean)
        assert token in legal(5, clean)


def test_a_model_that_does_not_state_its_layout_is_refused():
    with pytest.raises(ValueError, match="the model has 53 ids, but 9 codebooks of 1024 codes .* make 9221"):
        Grid.of_config(SimpleNamespace(vocab_size=53))
    assert Grid.of_config(SimpleNamespace(vocab_size=9221)) == Grid()  # the released checkpoint states none


def test_requests_that_come_leave_and_change_places_keep_their_grid():
    """Against a list of requests that is kept by hand, through 300 steps of a batch."""
    processor = GridLogitsProcessor(VLLM, torch.device("cpu"), False)
    generator, rows = np.random.default_rng(0), []
    for _ in range(300):
        update = BatchUpdate(0)
        if rows and generator.random() < 0.3:  # one leaves, and the last takes its row
            gone = int(generator.integers(len(rows)))
            update.removed = [gone]
            if gone < len(rows) - 1:
                update.moved.append((len(rows) - 1, gone, MoveDirectionality.UNIDIRECTIONAL))
                rows[gone] = rows[-1]
            rows.pop()
        if not update.removed and generator.random() < 0.5:
            frames = int(generator.integers(1, 9))
            rows.append((frames, []))
            update.added = [(len(rows) - 1, None, prompt(frames), rows[-1][1])]
        if len(rows) > 1 and not update.removed and generator.random() < 0.3:
            update.moved.append((0, len(rows) - 1, MoveDirectionality.SWAP))
            rows[0], rows[-1] = rows[-1], rows[0]
        update.batch_size = len(rows)
        processor.update_state(update if update.removed or update.added or update.moved else None)
        if not rows:
            continue
        logits = processor.apply(torch.zeros(len(rows), VOCABULARY))
        for (frames, answer), row in zip(rows, logits, strict=True):
            assert allowed(row) == legal(frames, min(len(answer), 3 * frames))
            answer.append(int(generator.choice(sorted(allowed(row)))))
    assert not processor.is_argmax_invariant()


def test_a_prompt_that_is_none_of_ours_is_left_alone_or_ends():
    processor = GridLogitsProcessor(VLLM, torch.device("cpu"), False)
    processor.update_state(BatchUpdate(2, added=[(1, None, [0, 5, 6], [])]))
    logits = processor.apply(torch.zeros(2, VOCABULARY))
    assert len(allowed(logits[0])) == VOCABULARY  # a row that nobody has taken
    assert allowed(logits[1]) == {GRID.eos_token_id}


def test_a_function_for_each_request_through_the_adapter(monkeypatch):
    class AdapterLogitsProcessor:
        """As in `vllm.v1.sample.logits_processor`: makes a function of (prompt, output, logits) for each request."""

        def __init__(self, vllm_config, device, is_pin_memory):
            assert (vllm_config, is_pin_memory) == (VLLM, False)

    interface = ModuleType("vllm.v1.sample.logits_processor")
    interface.AdapterLogitsProcessor, interface.LogitsProcessor = AdapterLogitsProcessor, object
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.sample.logits_processor", interface)
    spec = importlib.util.spec_from_file_location("codebook_grid", codebook_grid.__file__)
    door = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "codebook_grid", door)
    spec.loader.exec_module(door)
    processor = door.RequestGridLogitsProcessor(VLLM, torch.device("cpu"), False)
    assert isinstance(processor, AdapterLogitsProcessor) and not processor.is_argmax_invariant()
    request, answer = processor.new_req_logits_processor(None), []
    for clean in range(2 * 3 + 1):
        logits = request(prompt(2), answer, torch.zeros(VOCABULARY))
        assert allowed(logits) == legal(2, clean)
        answer.append(min(allowed(logits)))
