"""Rows of the speed table that decode ids: windows alone and together, the fast decoder's rivals, large models, GPUs.

Every row is a function of a `Scale` and a device that returns a `Row` of calls which do the same work. Weights are
random where only their size matters.
"""

import copy
import tempfile
from functools import partial

import torch
from naive import naive_generate, plain_llama
from speed_row import FRAME_RATE, Row, Scale
from transformers import CompileConfig

import dacse
from modeling_dacse.fast.decoding import decode_grid
from pipeline_dacse.device_dacse import is_imitated

SIZES = {
    "14M": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
    "30M": {"hidden_size": 512, "num_hidden_layers": 7, "num_attention_heads": 8, "intermediate_size": 2048},
}


def random_model(size: dict, dtype: torch.dtype, device: str):
    """A released-grid model with random weights."""
    config = dacse.DacSeConfig(**size, attention_dropout=0.0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = dacse.DacSeForEnhancement(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def random_prompt(config, frames: int, rows: int = 1) -> torch.LongTensor:
    codes = torch.randint(config.codebook_size, (rows, frames, config.num_codebooks))
    ids = codes + config.first_code_id + config.codebook_size * torch.arange(config.num_codebooks)
    ends = torch.tensor([[config.bos_token_id, config.start_clean_token_id]]).expand(rows, -1)
    return torch.cat([ends[:, :1], ids.flatten(1), ends[:, 1:]], dim=1)


def bytes_of_tokens(model, prompt: torch.Tensor, tokens: int) -> int:
    """What generating one token after the other must read: layers, a codebook's logits, keys and values so far."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters())
    weights += config.codebook_size * config.hidden_size
    remembered = 2 * len(prompt) * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return model.dtype.itemsize * tokens * (weights + remembered * (prompt.shape[1] + tokens // 2))


def in_int8(model):
    """A copy of a model with matrices of 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return dacse.DacSeForEnhancement.from_pretrained(
            folder, quantization_config=dacse.Int8Config(), dtype=model.dtype
        )


def fast(model, prompt: torch.LongTensor, tokens: int) -> torch.LongTensor:
    """Clean ids by the fast decoder."""
    return model.generate(prompt, max_new_tokens=tokens, custom_generate=decode_grid)


def compiled(model, prompts: torch.LongTensor, tokens: int) -> torch.LongTensor:
    """Clean ids by the library's loop with a static cache and a compiled forward, on a GPU in CUDA graphs."""
    config = CompileConfig(mode="default" if prompts.device.type == "cpu" else "reduce-overhead")
    config._compile_all_devices = True  # else the library compiles on a GPU alone
    return model.generate(prompts, max_new_tokens=tokens, cache_implementation="static", compile_config=config)


def rivals(scale: Scale, device: str, rows: int) -> Row:
    """Windows of the embedded model by the fast decoder and by the library's loops, eager and compiled."""
    model = dacse.DacSeForEnhancement.from_pretrained(dacse.default_model()).to(device)
    frames = min(scale.window_frames, model.config.max_frames)
    prompts, llama = random_prompt(model.config, frames, rows).to(device), plain_llama(model)
    tokens = prompts.shape[1] - 2
    calls = {
        "dacse": partial(fast, model, prompts, tokens),
        "the library's loop on all": partial(model.generate, prompts, max_new_tokens=tokens),
        "static cache and torch.compile": partial(compiled, model, prompts, tokens),
    }
    same = [torch.equal(call(), calls["dacse"]()) for call in calls.values()]  # compiles, too
    return Row(
        f"{rows} x {tokens} tokens, embedded model, decoding alone",
        "sooner than torch.compile",
        {"baseline": lambda: naive_generate(llama, model.config, prompts[:1])} | calls,
        baseline_share=1 / rows,
        count=rows * tokens,
        facts={"ids identical": all(same)},
    )


def window(scale: Scale, device: str, name: str) -> Row:
    """One 4 s window of the released grid, alone and whole."""
    model = random_model(SIZES[name], torch.float32, device)
    prompt, llama = random_prompt(model.config, frames=scale.window_frames).to(device), plain_llama(model)
    models, tokens = {"dacse": model}, prompt.shape[1] - 2
    if not is_imitated(torch.bfloat16):
        models["dacse bfloat16"] = copy.deepcopy(model).bfloat16()
    models["dacse int8"] = in_int8(models.get("dacse bfloat16", model))
    generate = {name: partial(fast, one, prompt, tokens) for name, one in models.items()}
    return Row(
        f"4 s window alone, {name} parameters, {tokens} tokens",
        "4 x",
        {"baseline": lambda: naive_generate(llama, model.config, prompt)} | generate,
        count=tokens,
        bytes_read=bytes_of_tokens(model, prompt, tokens),
    )


def window_14m(scale: Scale, device: str) -> Row:
    """4 s window of the released grid alone, 14M parameters."""
    return window(scale, device, "14M")


def window_30m(scale: Scale, device: str) -> Row:
    """4 s window of the released grid alone, 30M parameters."""
    return window(scale, device, "30M")


def rivals_of_one(scale: Scale, device: str) -> Row:
    """One window of the embedded model, against the library's loops."""
    return rivals(scale, device, 1)


def rivals_of_many(scale: Scale, device: str) -> Row:
    """Windows of the embedded model together, against the library's loops."""
    return rivals(scale, device, scale.windows)


def large(scale: Scale, device: str) -> Row:
    """The released model's size in bfloat16, batch 1; a short prompt, which a CPU reads at the speed of its sums."""
    model = random_model({"num_hidden_layers": scale.large_layers}, torch.bfloat16, device)
    prompt, llama = random_prompt(model.config, frames=4).to(device), plain_llama(model)
    small = in_int8(model)
    return Row(
        f"1B bfloat16, batch 1, {scale.large_tokens} tokens",
        "2.5 x, int8 4 x",
        {
            "baseline": lambda: naive_generate(llama, model.config, prompt, scale.large_tokens),
            "dacse": lambda: fast(model, prompt, scale.large_tokens),
            "dacse int8": lambda: fast(small, prompt, scale.large_tokens),
        },
        count=scale.large_tokens,
        bytes_read=bytes_of_tokens(model, prompt, scale.large_tokens),
    )


def gpu_windows(scale: Scale, device: str, rows: int, goal: str) -> Row:
    """Whole windows of the released grid through the released model's size, as many as `rows` together."""
    model = random_model({"num_hidden_layers": scale.large_layers}, torch.bfloat16, device)
    prompts = random_prompt(model.config, frames=scale.window_frames, rows=rows).to(device)
    llama, tokens = plain_llama(model), scale.window_frames * model.config.num_codebooks
    calls = {
        "baseline": lambda: naive_generate(llama, model.config, prompts[:1], scale.window_tokens),
        "dacse": lambda: fast(model, prompts, tokens),
    }
    if rows == 1:
        calls["static cache and torch.compile"] = lambda: compiled(model, prompts, tokens)
        calls["static cache and torch.compile"]()
    return Row(
        f"GPU: 1B bfloat16, {rows} window{'s' * (rows > 1)} of 4 s, {tokens} tokens each",
        goal,
        calls,
        baseline_share=scale.window_tokens / (rows * tokens),
        audio_seconds=rows * scale.window_frames / FRAME_RATE,
        count=rows * tokens,
        bytes_read=bytes_of_tokens(model, prompts, tokens),
    )


def gpu_single(scale: Scale, device: str) -> Row:
    """GPU: 1B bfloat16, one window of 4 s alone, against the first tokens of it with the baseline."""
    return gpu_windows(scale, device, 1, "0.6 of the memory limit")


def gpu_batched(scale: Scale, device: str) -> Row:
    """GPU: 1B bfloat16, 32 windows of 4 s together, against the first tokens of one of them with the baseline."""
    return gpu_windows(scale, device, 32, "real-time factor 0.15")


def gpu_more(scale: Scale, device: str) -> Row:
    """GPU: 1B bfloat16, 64 windows of 4 s together, against the first tokens of one of them with the baseline."""
    return gpu_windows(scale, device, 64, "real-time factor below that of 32")
