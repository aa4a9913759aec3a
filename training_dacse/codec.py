"""Trains a small `DacModel` from random weights: initialisation, losses, watch over the codebooks, the loop.

Knows waveforms and the codec; knows no token layout and no language model.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import DacConfig, DacModel
from transformers.audio_utils import mel_filter_bank


@dataclass
class CodecTrainingArguments:
    """One codec run; every value is checked when the run is described, not when it is used."""

    output_dir: str  # checkpoints and the finished codec
    max_seconds: float = 3600.0  # wall-clock budget of the whole run, over all restarts
    batch_size: int = 8
    segment_seconds: float = 0.5
    learning_rate: float = 8e-4  # peak; warm-up over `warmup_steps`, then cosine over the wall-clock budget
    warmup_steps: int = 200
    mel_weight: float = 15.0  # DAC, arXiv 2306.06546, section 3.5
    quantizer_weight: float = 1.0  # DacModel already weighs commitment (0.25) against codebook (1.0)
    restart_every: int = 25  # steps between restarts of codes that were not used since the last one
    restart_until: float = 0.7  # fraction of the budget after which codes are left alone
    save_every_seconds: float = 180.0
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("max_seconds", "batch_size", "segment_seconds", "learning_rate", "restart_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@torch.no_grad()
def initialize_codec(model: DacModel, generator: torch.Generator | None = None) -> None:
    """Gives `model` weights under which a waveform keeps its variance from layer to layer.

    `DacModel` initialises every convolution with a standard deviation of 0.02, which at small widths loses the signal
    layer by layer. Here each convolution keeps the variance of its input (standard deviation `1 / sqrt(fan_in)`), the
    last convolution of a residual unit is damped so that a unit starts near the identity, and codebook k reads and
    writes eight directions of its own, so that the residual shrinks from the first step.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            fan_in = module.in_channels * module.kernel_size[0] / module.stride[0]
        elif isinstance(module, nn.Conv1d):
            fan_in = module.in_channels * module.kernel_size[0]
        else:
            continue
        damping = 0.1 if ".res_unit" in name and name.endswith("conv2") else 1.0
        module.weight.normal_(0.0, damping * fan_in**-0.5, generator=generator)
        if module.bias is not None:
            module.bias.zero_()
    width, dim, count = model.config.hidden_size, model.config.codebook_dim, model.config.n_codebooks
    directions = torch.linalg.qr(torch.randn(width, max(width, dim * count), generator=generator)).Q
    for index, quantizer in enumerate(model.quantizer.quantizers):
        rows = directions[:, (index * dim) % width :][:, :dim].T  # (dim, width), orthonormal
        quantizer.in_proj.weight.copy_(rows[..., None])
        quantizer.out_proj.weight.copy_(rows.T[..., None])
        quantizer.codebook.weight.normal_(0.0, 1.0, generator=generator)


class MultiScaleMelLoss(nn.Module):
    """L1 distance of log-mel spectrograms at several window lengths (DAC, arXiv 2306.06546, section 3.5)."""

    def __init__(
        self,
        sampling_rate: int,
        window_lengths: tuple[int, ...] = (128, 512, 1024, 2048),
        num_mels: tuple[int, ...] = (10, 40, 80, 128),
        floor: float = 1e-4,
    ):
        super().__init__()
        self.window_lengths, self.floor = window_lengths, floor
        for length, bands in zip(window_lengths, num_mels, strict=True):
            filters = mel_filter_bank(
                length // 2 + 1, bands, 0.0, sampling_rate / 2, sampling_rate, mel_scale="slaney"
            )
            self.register_buffer(f"filters_{length}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def log_mel(self, waveform: torch.Tensor, length: int) -> torch.Tensor:
        """(batch, sample) -> (batch, frame, mel), base-10 logarithm of magnitudes."""
        window = getattr(self, f"window_{length}")
        spectrum = torch.stft(waveform, length, length // 4, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)  # abs() of a complex zero has no gradient
        magnitude = (power + self.floor**2).sqrt().transpose(1, 2) / window.sum() * 2
        return (magnitude @ getattr(self, f"filters_{length}") + self.floor).log10()

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean over scales of the mean absolute difference; both waveforms (batch, sample)."""
        losses = [
            nn.functional.l1_loss(self.log_mel(estimate, length), self.log_mel(target, length))
            for length in self.window_lengths
        ]
        return torch.stack(losses).mean()


class CodebookWatch:
    """Counts the use of every code and puts unused ones back among the latents (Jukebox, arXiv 2005.00341, 4.1)."""

    def __init__(self, model: DacModel):
        self.quantizers = model.quantizer.quantizers
        config = model.config
        self.counts = torch.zeros(config.n_codebooks, config.codebook_size, dtype=torch.long)

    @torch.no_grad()
    def observe(self, codes: torch.Tensor) -> None:
        """Adds the codes of one batch, (batch, codebook, frame)."""
        flat = codes.transpose(0, 1).flatten(1).cpu()
        self.counts.scatter_add_(1, flat, torch.ones_like(flat))

    @torch.no_grad()
    def restart(self, projected_latents: torch.Tensor, generator: torch.Generator) -> list[int]:
        """Moves each unused code onto a random latent of this batch; returns how many codes each codebook used."""
        used = (self.counts > 0).sum(1).tolist()
        latents = projected_latents.unflatten(1, (len(self.quantizers), -1))  # (batch, codebook, dim, frame)
        for index, quantizer in enumerate(self.quantizers):
            dead = (self.counts[index] == 0).nonzero().squeeze(1)
            pool = latents[:, index].transpose(1, 2).flatten(0, 1)
            picks = torch.randint(len(pool), (len(dead),), generator=generator)
            quantizer.codebook.weight.data[dead.to(pool.device)] = pool[picks.to(pool.device)]
        self.counts.zero_()
        return used


def budgeted_learning_rate(step: int, elapsed: float, args: CodecTrainingArguments) -> float:
    """Linear warm-up in steps, then half a cosine over the wall-clock budget, down to a hundredth.

    >>> args = CodecTrainingArguments("out", max_seconds=100.0, learning_rate=1.0, warmup_steps=10)
    >>> budgeted_learning_rate(4, 0.0, args), round(budgeted_learning_rate(50, 100.0, args), 3)
    (0.5, 0.01)
    """
    warmup = min(1.0, (step + 1) / args.warmup_steps)
    progress = torch.tensor(min(1.0, elapsed / args.max_seconds))
    return args.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + torch.cos(torch.pi * progress)).item())


def train_codec(
    config: DacConfig,
    segments: Callable[[int, int, int], Iterator[torch.Tensor]],
    args: CodecTrainingArguments,
    device: str = "cpu",
) -> DacModel:
    """Trains a codec until its wall-clock budget is used up and returns it, saved under `args.output_dir`.

    Args:
        config: shape of the codec.
        segments: `(batch_size, segment_length, seed) -> iterator` of waveforms (batch, sample) at `config.sampling_rate`.
        args: the run. A run with a checkpoint in `args.output_dir` goes on from it.
        device: where to train.

    Raises:
        FloatingPointError: the loss is not a number.
    """
    torch.manual_seed(args.seed)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint_path = output_dir / "checkpoint.pt"
    model = DacModel(config)
    generator = torch.Generator().manual_seed(args.seed)
    initialize_codec(model, generator)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.8, 0.99), weight_decay=0.0)
    step, spent = 0, 0.0
    if checkpoint_path.exists():
        saved = torch.load(checkpoint_path, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    encoder = torch.compile(model.encoder) if args.compile else model.encoder
    decoder = torch.compile(model.decoder) if args.compile else model.decoder
    mel_loss = MultiScaleMelLoss(config.sampling_rate).to(device)
    watch = CodebookWatch(model)
    hop = config.hop_length
    length = round(args.segment_seconds * config.sampling_rate / hop) * hop
    started, saved_at, means = time.monotonic() - spent, time.monotonic(), {}

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
        torch.save(state, checkpoint_path.with_suffix(".tmp"))
        checkpoint_path.with_suffix(".tmp").rename(checkpoint_path)
        model.save_pretrained(output_dir / "codec")

    for batch in segments(args.batch_size, length, args.seed + step):
        spent = time.monotonic() - started
        if spent >= args.max_seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = budgeted_learning_rate(step, spent, args)
        batch = batch.to(device)
        latents = encoder(batch[:, None])
        quantized, codes, projected, commitment, codebook = model.quantizer(latents)
        estimate = decoder(quantized).squeeze(1)
        quantizer_loss = (
            config.commitment_loss_weight * commitment.mean() + config.codebook_loss_weight * codebook.mean()
        )
        mel = mel_loss(estimate, batch)
        waveform = nn.functional.l1_loss(estimate, batch)
        loss = args.mel_weight * mel + waveform + args.quantizer_weight * quantizer_loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step}; lower the learning rate ({args.learning_rate})"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        watch.observe(codes)
        step += 1
        now = {"mel": mel, "waveform": waveform, "quantizer": quantizer_loss, "norm": norm}
        means = {key: 0.95 * means.get(key, value.item()) + 0.05 * value.item() for key, value in now.items()}
        if step % args.restart_every == 0:
            if spent < args.restart_until * args.max_seconds:
                used = watch.restart(projected.detach(), generator)
            else:
                used = (watch.counts > 0).sum(1).tolist()
                watch.counts.zero_()
            record = {
                "step": step,
                "seconds": round(spent, 1),
                "codes_used": used,
                **{k: round(v, 4) for k, v in means.items()},
            }
            with open(output_dir / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
        if time.monotonic() - saved_at > args.save_every_seconds:
            save()
            saved_at = time.monotonic()
    save()
    (output_dir / "arguments.json").write_text(json.dumps({**asdict(args), "steps": step}, indent=2) + "\n")
    return model.eval()
