"""Stores what the original descript-audio-codec package makes of a tiny random codec, as a golden for our reader.

Needs an environment of its own, for the package brings a torchaudio that does not load beside a CPU build of torch:

    python -m venv descript_venv && . descript_venv/bin/activate
    pip install torch==2.13.0 safetensors argbind einops scipy soundfile pyloudnorm importlib-resources julius ffmpy \
        rich librosa pystoi flatten-dict markdown2 randomname tqdm matplotlib ipython tensorboard
    pip install --no-deps descript-audio-codec==1.0.0 descript-audiotools torchaudio torch-stoi
    rm descript_venv/lib/python3*/site-packages/torchaudio/lib/*.so
    python tests/goldens/make_descript_golden.py

Writes `descript_weights.pth` (as `DAC.save` lays it out) and `descript_golden.safetensors` (audio in, codes, audio
out) beside this file or into a folder given. Further arguments, such as `encoder_rates=[2,4,8,8]`, change the codec.
"""

import ast
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPE = {
    "encoder_dim": 4,
    "encoder_rates": [2, 4],
    "decoder_dim": 16,
    "n_codebooks": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
    "sample_rate": 8000,
}


def random_codec(shape: dict) -> torch.nn.Module:
    """Random in every parameter, so that none can be swapped unseen, and loud enough to use its codebooks."""
    from dac import DAC  # here, so that pytest, which looks for doctests, can import this file without the package

    codec = DAC(**shape, decoder_rates=shape["encoder_rates"][::-1]).eval()
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            kind = name.rsplit(".", 1)[1]
            if kind in ("alpha", "weight_g"):
                parameter.uniform_(0.5, 1.5)
            elif kind == "bias":
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_()
            if name.startswith("decoder.model.") and name.endswith("block.3.weight_g"):
                parameter.mul_(0.2)  # residual branches
        codec.decoder.model[-2].weight_g.mul_(0.1)  # out of the saturation of tanh
    return codec


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    shape = SHAPE | {name: ast.literal_eval(value) for name, value in (arg.split("=") for arg in sys.argv[2:])}
    torch.manual_seed(0)
    codec = random_codec(shape)
    samples = 40 * codec.hop_length - 3  # the last frame is incomplete
    time = torch.arange(samples) / shape["sample_rate"]
    waveform = 0.3 * torch.sin(2 * torch.pi * (200 + 400 * time) * time) + 0.05 * torch.randn(samples)
    with torch.no_grad():
        padded = codec.preprocess(waveform[None, None], shape["sample_rate"])
        quantized, codes, *_ = codec.encode(padded)
        decoded = codec.decode(quantized)
    folder.mkdir(parents=True, exist_ok=True)
    codec.save(folder / "descript_weights.pth", package=False)
    golden = {"waveform": waveform[None], "codes": codes, "decoded": decoded[:, 0]}
    save_file({name: value.contiguous() for name, value in golden.items()}, folder / "descript_golden.safetensors")
    print(f"{codes.shape[-1]} frames, {len(codes.unique())} codes used, audio deviation {decoded.std():.3f}")
