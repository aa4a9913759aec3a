"""The source of batches: every row once, the same for any number of processes, and going on from where it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_config
from tests.training.tiny_tokens import Rows
from training_dacse.tokens.collate import IGNORED, PackingCollator, TokenCollator, sequence_length
from training_dacse.tokens.stream import BATCHINGS, HeldOutBatches, TokenStream

CONTEXT = 64  # of the tiny model: ten frames


def tokens_of(frames):
    return sequence_length(frames, 3)


def stream(rows, batching="rows", batch_size=2, **place):
    return TokenStream(rows, batch_size, batching=batching, tokens=tokens_of, context=CONTEXT, seed=5, **place)


def take(source, count):
    batches = iter(source)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("batching", list(BATCHINGS))
def test_an_epoch_has_every_row_once_and_the_next_another_order(batching):
    rows = Rows(23, frames=(2, 4, 7))
    source = stream(rows, batching)
    epochs = [list(source.batches(epoch)) for epoch in (0, 1, 0)]
    for batches in epochs:
        assert sorted(sum(batches, [])) == list(range(23))
    assert epochs[0] == epochs[2] != epochs[1]
    if batching != "packed":
        assert {len(batch) for batch in epochs[0]} == {2, 1}


@pytest.mark.parametrize("batching", list(BATCHINGS))
@settings(max_examples=20, deadline=None)
@given(world=st.integers(1, 5), stop=st.integers(0, 9), others=st.integers(1, 5))
def test_processes_share_one_sequence_and_any_number_of_others_goes_on(batching, world, stop, others):
    rows = Rows(11, frames=(2, 4, 7))
    count = 60
    whole = take(stream(rows, batching), count)
    ranks = [stream(rows, batching, rank=rank, world_size=world) for rank in range(world)]
    shares = [take(source, count // world) for source in ranks]
    shared = [shares[number % world][number // world] for number in range(count // world * world)]
    assert shared == whole[: len(shared)]
    for _ in range(stop):
        ranks[0].advance()
    place = ranks[0].state_dict()
    resumed = []
    for rank in range(others):
        source = stream(rows, batching, rank=rank, world_size=others)
        source.load_state_dict(place)
        resumed.append(take(source, 12 // others))
    went_on = [resumed[number % others][number // others] for number in range(12 // others * others)]
    assert went_on == whole[stop * world :][: len(went_on)]


def test_going_on_reads_no_row(monkeypatch):
    rows = Rows(400)
    monkeypatch.setattr(Rows, "__getitem__", None)
    source = stream(rows)
    source.load_state_dict({"epoch": 1000, "batch": 150})
    assert len(take(source, 60)) == 60  # of epoch 1000 and the next


def test_rows_of_like_length_come_together_and_epochs_are_mixed():
    rows = Rows(600, frames=(2, 9, 4, 7))
    batches = list(stream(rows, "length", batch_size=4).batches(0))
    spread = [rows.num_frames[batch].max() - rows.num_frames[batch].min() for batch in batches]
    assert sum(value > 0 for value in spread) <= 6  # two pools and their borders
    first = [int(rows.num_frames[batch[0]]) for batch in batches[:20]]
    assert len(set(first)) == 4


def test_packed_rows_fill_the_context():
    rows = Rows(300, frames=(2, 3, 4, 5))
    batches = list(stream(rows, "packed", batch_size=1).batches(0))
    filled = [int(tokens_of(rows.num_frames[batch]).sum()) for batch in batches]
    assert max(filled) <= CONTEXT and sum(filled) / len(filled) > 0.9 * CONTEXT


def test_an_unknown_batching_is_refused():
    with pytest.raises(ValueError, match="batching is 'magic'; choose one of rows, length, packed"):
        stream(Rows(4), "magic")


@pytest.mark.parametrize(("count", "world"), [(5, 1), (5, 2), (5, 4), (8, 2), (1, 3)])
def test_held_out_rows_are_counted_once_and_all_processes_keep_pace(count, world):
    rows = Rows(count, frames=(4, 2, 6, 3, 5))
    parts = [HeldOutBatches(rows, 2, rank, world) for rank in range(world)]
    counted = sum([sum(list(part)[: part.counted], []) for part in parts], [])
    assert sorted(counted) == list(range(count))
    assert len({len(part) for part in parts}) == 1


def test_a_batch_is_bos_noisy_start_clean_eos_with_the_prompt_masked():
    config = tiny_config()
    examples = [
        {"noisy": torch.randint(16, (3, frames)), "clean": torch.randint(16, (3, frames)), "task": frames % 2}
        for frames in (2, 4)
    ]
    expected = []
    for example in examples:  # by hand, token by token
        ids = [config.bos_token_id]
        for side, last in (("noisy", config.start_clean_token_id), ("clean", config.eos_token_id)):
            for frame in range(example[side].shape[1]):
                ids += [5 + 16 * book + int(example[side][book, frame]) for book in range(3)]
            ids.append(last)
        expected.append(ids)
    for side in ("right", "left"):
        batch = TokenCollator(config, padding_side=side)(examples)
        for row, ids in enumerate(expected):
            masked = len(ids) // 2 + 1
            fill = batch["input_ids"].shape[1] - len(ids)
            before, after = (0, fill) if side == "right" else (fill, 0)
            assert batch["input_ids"][row].tolist() == before * [1] + ids + after * [1]
            assert batch["labels"][row].tolist() == (before + masked) * [-100] + ids[masked:] + after * [-100]
            assert batch["attention_mask"][row].tolist() == before * [0] + len(ids) * [1] + after * [0]
        assert batch["task"].tolist() == [0, 0]
    assert "attention_mask" not in TokenCollator(config)(examples[:1])
    packed = PackingCollator(config, flash_attention=True)(examples)
    assert packed["input_ids"].tolist() == [sum(expected, [])]
    lengths = list(map(len, expected))
    assert packed["position_ids"].tolist() == [sum([list(range(length)) for length in lengths], [])]
    assert packed["example"][0].bincount().tolist() == lengths
    assert packed["cu_seq_lens_q"].tolist() == [0, lengths[0], sum(lengths)]
    labels = packed["labels"][0]
    assert (labels[packed["logits_to_keep"] + 1] != IGNORED).all()
    assert len(packed["logits_to_keep"]) == (labels != IGNORED).sum()
