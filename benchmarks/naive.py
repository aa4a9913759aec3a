"""What the speed of dacse is measured against: the method written down plainly, with the stock parts of transformers.

One window at a time, `LlamaForCausalLM.generate` with its dynamic cache, a logits processor that builds its mask row
by row in Python, and a codec that is called on the whole file. Tokens of a corpus one waveform at a time.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, ProcessorMixin

from pipeline_dacse.windows_dacse import overlap_frames, split_windows, window_frames


def plain_llama(model) -> LlamaForCausalLM:
    """The stock class around the weights of one of our models, which they share."""
    settings = model.config.to_dict()
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig.from_dict(settings | {"model_type": "llama", "eos_token_id": None}))
    llama.load_state_dict(model.state_dict(), assign=True)
    llama.model.rotary_emb = model.model.rotary_emb  # its buffers are in no state_dict
    llama.tie_weights()
    llama.generation_config.update(pad_token_id=model.config.pad_token_id, use_cache=True)
    return llama.eval()


class RowByRow(LogitsProcessor):
    """Masks all ids but those of the codebook that is due, one row after the other."""

    def __init__(self, config, prompt_length: int):
        self.config, self.prompt_length = config, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for row in range(len(scores)):
            codebook = (len(input_ids[row].tolist()) - self.prompt_length) % self.config.num_codebooks
            first = self.config.first_code_id + codebook * self.config.codebook_size
            mask = torch.full_like(scores[row], -torch.inf)
            mask[first : first + self.config.codebook_size] = 0
            scores[row] = scores[row] + mask
        return scores


def naive_generate(llama: LlamaForCausalLM, config, prompt: torch.LongTensor, num_tokens: int | None = None):
    """Greedy clean ids (1, token) after one prompt (1, token): as many as noisy ones, or the first `num_tokens`."""
    return llama.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_tokens or prompt.shape[1] - 2,
        do_sample=False,
        logits_processor=LogitsProcessorList([RowByRow(config, prompt.shape[1])]),
    )[:, prompt.shape[1] :]


@torch.inference_mode()
def naive_enhance(llama: LlamaForCausalLM, config, processor: ProcessorMixin, waveform: np.ndarray) -> np.ndarray:
    """Enhances one channel (sample,) at the codec's rate, in the pipeline's own windows: (sample,)."""
    codec = processor.audio_tokenizer
    samples = torch.from_numpy(waveform)
    padded = torch.nn.functional.pad(samples, (0, -len(samples) % processor.hop_length))
    codes = codec.encode(padded[None, None]).audio_codes
    length = window_frames(None, processor.frame_rate, config.max_frames, processor.window_frames)
    pieces = []
    overlap = overlap_frames(None, processor.frame_rate, length)
    for span in split_windows(lambda stop: min(stop, codes.shape[-1]), length, overlap):
        ids = naive_generate(llama, config, processor.build_prompt(codes[..., span.start : span.stop]))
        pieces.append(processor.clean_codes(ids[0])[..., span.first - span.start : span.last - span.start])
    return codec.decode(audio_codes=torch.cat(pieces, dim=-1)).audio_values[0, : len(waveform)].numpy()


@torch.inference_mode()
def naive_tokens(processor: ProcessorMixin, pairs, numbers: Iterable[int], folder: Path) -> None:
    """Codes of both sides of some pairs, one file a pair."""
    codec = processor.audio_tokenizer
    for number in numbers:
        pair = pairs[number]
        sides = {side: torch.from_numpy(pair[side])[None].to(codec.device) for side in ("noisy", "clean")}
        codes = {side: codec.encode(waveform).audio_codes.cpu().numpy() for side, waveform in sides.items()}
        np.savez(folder / f"{number}.npz", **codes)


def passes_with_draft(clean: Sequence[int], noisy: Sequence[int], length: int) -> int:
    """Passes that greedy decoding takes if each is given the next `length` noisy ids as a guess.

    A pass gives the ids of the guess as far as they are the model's, and one more.

    >>> passes_with_draft([1, 2, 3, 4, 9, 6], [1, 2, 3, 4, 5, 6], length=2)
    3
    """
    place = passes = 0
    while place < len(clean):
        guess = zip(clean[place : place + length], noisy[place : place + length], strict=True)
        right = [said == guessed for said, guessed in guess]
        place += [*right, False].index(False) + 1
        passes += 1
    return passes
