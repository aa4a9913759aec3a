import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from processing_dacse.codes_dacse import codes_to_ids, ids_to_codes

layouts = {
    "batch": st.integers(1, 3),
    "num_codebooks": st.integers(1, 9),
    "frames": st.integers(0, 7),
    "codebook_size": st.integers(1, 1024),
    "first_code_id": st.integers(0, 10),
}


@given(**layouts, seed=st.integers(0, 99))
def test_ids_are_those_of_a_naive_loop_and_read_back(batch, num_codebooks, frames, codebook_size, first_code_id, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(codebook_size, (batch, num_codebooks, frames), generator=generator)
    ids = codes_to_ids(codes, codebook_size, first_code_id)
    naive = [
        [
            first_code_id + codebook * codebook_size + codes[row, codebook, frame].item()
            for frame in range(frames)
            for codebook in range(num_codebooks)
        ]
        for row in range(batch)
    ]
    assert ids.tolist() == naive
    assert torch.equal(ids_to_codes(ids, num_codebooks, codebook_size, first_code_id), codes)


def test_released_layout_ends_at_the_released_vocabulary():
    codes = torch.full((1, 9, 1), 1023)
    assert codes_to_ids(codes, 1024, 5)[0, -1] == 9221 - 1


@pytest.mark.parametrize("code", [-1, 4])
def test_codes_outside_their_codebook_are_refused(code):
    with pytest.raises(ValueError, match=f"code {code} is outside its codebook; codes go from 0 to 3"):
        codes_to_ids(torch.tensor([[[0, code]]]), codebook_size=4, first_code_id=5)


def test_ids_of_a_broken_frame_are_refused():
    with pytest.raises(ValueError, match="3 tokens is not a multiple of 2 codebooks"):
        ids_to_codes(torch.tensor([[5, 9, 5]]), num_codebooks=2, codebook_size=4, first_code_id=5)


@pytest.mark.parametrize("wrong", [0, 4, 9, 13])
def test_ids_of_another_codebook_are_refused(wrong):
    with pytest.raises(
        ValueError, match=f"token {wrong} at position 2 is off the grid; codebook 0 has the ids 5 to 8"
    ):
        ids_to_codes(torch.tensor([[5, 9, wrong, 9]]), num_codebooks=2, codebook_size=4, first_code_id=5)
