"""Trains a small `DacModel` from random weights: initialisation, losses, watch over the codebooks, the loop.

Knows waveforms and the codec; knows no token layout and no language model.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    max_steps: int | None = None  # ends the run earlier
    batch_size: int = 8
    segment_seconds: float = 0.5
    learning_rate: float = 6e-4  # peak; warm-up over `warmup_steps`, then cosine over the wall-clock budget
    warmup_steps: int = 200
    mel_weight: float = 15.0  # DAC, arXiv 2306.06546, section 3.5
    max_grad_norm: float = 10.0
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

    def used(self) -> list[int]:
        """How many codes of each codebook were seen since the counts were last set to zero."""
        return (self.counts > 0).sum(1).tolist()

    @torch.no_grad()
    def restart(self, projected_latents: torch.Tensor, generator: torch.Generator) -> None:
        """Moves each code that was not seen onto a random one of these latents, (batch, codebook * dim, frame)."""
        latents = projected_latents.unflatten(1, (len(self.quantizers), -1))
        for index, quantizer in enumerate(self.quantizers):
            dead = (self.counts[index] == 0).nonzero().squeeze(1)
            pool = latents[:, index].transpose(1, 2).flatten(0, 1)
            picks = torch.randint(len(pool), (len(dead),), generator=generator)
            quantizer.codebook.weight[dead.to(pool.device)] = pool[picks.to(pool.device)]


def budgeted_learning_rate(step: int, elapsed: float, args: CodecTrainingArguments) -> float:
    """Linear warm-up in steps, then half a cosine over the budget, down to a hundredth.

    >>> args = CodecTrainingArguments("out", max_seconds=100.0, learning_rate=1.0, warmup_steps=10)
    >>> budgeted_learning_rate(4, 0.0, args), round(budgeted_learning_rate(50, 100.0, args), 3)
    (0.5, 0.01)
    """
    warmup = min(1.0, (step + 1) / args.warmup_steps)
    progress = min(1.0, max(elapsed / args.max_seconds, step / (args.max_steps or math.inf)))
    return args.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class CodecTrainer:
    """Trains a `DacModel` until its wall-clock budget is used up; goes on from the checkpoint of an earlier run.

    Args:
        config: shape of the codec.
        args: the run.
        device: where to train.
    """

    def __init__(self, config: DacConfig, args: CodecTrainingArguments, device: str = "cpu"):
        torch.manual_seed(args.seed)
        self.args, self.device = args, device
        self.output_dir = Path(args.output_dir)
        self.checkpoint_path = self.output_dir / "checkpoint.pt"
        self.generator = torch.Generator().manual_seed(args.seed)
        self.model = DacModel(config)
        initialize_codec(self.model, self.generator)
        self.model.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.learning_rate, betas=(0.8, 0.99), weight_decay=0.0
        )
        self.encoder = torch.compile(self.model.encoder) if args.compile else self.model.encoder
        self.decoder = torch.compile(self.model.decoder) if args.compile else self.model.decoder
        self.mel_loss = MultiScaleMelLoss(config.sampling_rate).to(device)
        self.watch = CodebookWatch(self.model)
        self.step, self.spent, self.averages = 0, 0.0, {}
        if self.checkpoint_path.exists():
            self._load()

    def train(self, segments: Callable[[int, int, int], Iterator[torch.Tensor]]) -> DacModel:
        """Trains on `segments(batch_size, samples, seed)`, an endless iterator of waveforms (batch, sample).

        Returns:
            The codec in evaluation mode, also saved as `output_dir/codec`.

        Raises:
            FloatingPointError: the loss is not a number.
        """
        args, hop = self.args, self.model.config.hop_length
        self.output_dir.mkdir(parents=True, exist_ok=True)
        samples = round(args.segment_seconds * self.model.config.sampling_rate / hop) * hop
        started, saved_at = time.monotonic() - self.spent, time.monotonic()
        for batch in segments(args.batch_size, samples, args.seed + self.step):
            self.spent = time.monotonic() - started
            if self.spent >= args.max_seconds or self.step == args.max_steps:
                break
            projected_latents = self._update(batch.to(self.device))
            if self.step % args.restart_every == 0:
                self._look_after_codebooks(projected_latents)
            if time.monotonic() - saved_at > args.save_every_seconds:
                self._save()
                saved_at = time.monotonic()
        self._save()
        return self.model.eval()

    def _update(self, batch: torch.Tensor) -> torch.Tensor:
        """One optimizer step on waveforms (batch, sample); returns the projected latents of the batch."""
        config = self.model.config
        for group in self.optimizer.param_groups:
            group["lr"] = budgeted_learning_rate(self.step, self.spent, self.args)
        quantized, codes, projected, commitment, codebook = self.model.quantizer(self.encoder(batch[:, None]))
        estimate = self.decoder(quantized).squeeze(1)
        losses = {
            "mel": self.mel_loss(estimate, batch),
            "waveform": nn.functional.l1_loss(estimate, batch),
            "quantizer": config.commitment_loss_weight * commitment.mean()
            + config.codebook_loss_weight * codebook.mean(),
        }
        loss = self.args.mel_weight * losses["mel"] + losses["waveform"] + losses["quantizer"]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.step}; lower the learning rate ({self.args.learning_rate})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.watch.observe(codes)
        self.step += 1
        for name, value in losses.items():
            self.averages[name] = 0.95 * self.averages.get(name, value.item()) + 0.05 * value.item()
        return projected.detach()

    def _look_after_codebooks(self, projected_latents: torch.Tensor) -> None:
        """Logs how many codes are in use and, early in the run, restarts those that are not."""
        used = self.watch.used()
        if self.spent < self.args.restart_until * self.args.max_seconds:
            self.watch.restart(projected_latents, self.generator)
        self.watch.counts.zero_()
        averages = {name: round(value, 4) for name, value in self.averages.items()}
        record = {"step": self.step, "seconds": round(self.spent, 1), **averages, "codes_used": used}
        with open(self.output_dir / "log.jsonl", "a") as log:
            log.write(json.dumps(record) + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
        }
        unfinished = self.checkpoint_path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.rename(self.checkpoint_path)
        self.model.save_pretrained(self.output_dir / "codec")

    def _load(self) -> None:
        saved = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.spent = saved["step"], saved["spent"]
