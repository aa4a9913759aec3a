"""Tiny models, built in code, that every test shares. They behave as the real ones do, at a thousandth of the cost."""

import torch
from transformers import DacConfig, DacModel

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import AudioEnhancementPipeline
from processing_dacse import DacSeProcessor


def tiny_config(**overrides) -> DacSeConfig:
    """Two layers, hidden 32, three codebooks of 16 codes, a context of 10 frames; any field overridden."""
    fields = {
        "num_codebooks": 3,
        "codebook_size": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # wide enough for the logits to differ clearly: the highest one is never a near-tie
    }
    return DacSeConfig(**(fields | overrides))


def tiny_model(seed: int = 0, **overrides) -> DacSeForEnhancement:
    """A randomly initialised model of `tiny_config`, the same for the same seed, ready for inference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DacSeForEnhancement(tiny_config(**overrides)).eval()


def tiny_prompts(frames: list[int], config: DacSeConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of random codes, one row for each number of frames, left-padded: `input_ids` and `attention_mask`."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for count in frames:
        codes = torch.randint(config.codebook_size, (count, config.num_codebooks), generator=generator)
        offsets = config.first_code_id + config.codebook_size * torch.arange(config.num_codebooks)
        special = torch.tensor([config.bos_token_id]), torch.tensor([config.start_clean_token_id])
        clean = config.make_pattern().arrange((codes + offsets).T[None])[0]
        prompts.append(torch.cat([special[0], clean, special[1]]))
    input_ids = torch.nn.utils.rnn.pad_sequence(
        prompts, batch_first=True, padding_value=config.pad_token_id, padding_side="left"
    )
    return {"input_ids": input_ids, "attention_mask": (input_ids != config.pad_token_id).long()}


def tiny_code_vectors(config: DacSeConfig, seed: int = 0) -> torch.Tensor:
    """Random vectors of the codes, (codebook, code, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(config.num_codebooks, config.codebook_size, 4, generator=generator)


def tiny_codec(seed: int = 0, **overrides) -> DacModel:
    """A randomly initialised codec on the grid of `tiny_config`, 8 kHz, 8 samples a frame; any field overridden."""
    fields = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "downsampling_ratios": [2, 4],
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
        "sampling_rate": 8000,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = DacModel(DacConfig(**(fields | overrides)))
        for name, parameter in codec.named_parameters():  # the library's initial weights would leave hardly any signal
            if parameter.dim() > 1 and "snake" not in name:
                torch.nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)  # and 1.0 would saturate tanh
    return codec.eval()


def tiny_pipeline(seed: int = 0, **parameters) -> AudioEnhancementPipeline:
    """A pipeline of `tiny_model` and `tiny_codec`: windows of at most 10 frames, 10 ms."""
    processor = DacSeProcessor.from_codec(tiny_codec(seed))
    return AudioEnhancementPipeline(model=tiny_model(seed), processor=processor, device="cpu", **parameters)
