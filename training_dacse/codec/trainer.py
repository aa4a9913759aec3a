"""Trains a small `DacModel` from a lapped transform: codebooks, losses, the loop.

Knows waveforms and the codec; knows no token layout and no language model.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel

from .codebooks import CodebookWatch, fit_codebooks
from .discriminators import Discriminators, discriminator_loss, generator_losses
from .losses import ComplexSpectrumLoss, MultiScaleMelLoss
from .start import initialize_codec

BETAS = (0.8, 0.99)  # of Adam, for codec and discriminators (DAC, arXiv 2306.06546, section 4.2)
FRAMES_PER_CODE = 40  # of the latents to which the codebooks of a new codec are fitted


@dataclass
class CodecTrainingArguments:
    """One codec run; every value is checked when the run is described, not when it is used."""

    output_dir: str  # checkpoints and the finished codec
    max_seconds: float = 3600.0  # wall-clock budget of the whole run, over all restarts
    max_steps: int | None = None  # ends the run earlier
    start_from: str | None = None  # folder of a codec whose weights the run starts with; else a lapped transform
    decoder_only: bool = False  # encoder and codebooks, and so the codes of a recording, stay as they are
    batch_size: int = 8
    segment_seconds: float = 0.5
    learning_rate: float = 6e-4  # peak; warm-up over `warmup_steps`, then cosine over the wall-clock budget
    warmup_steps: int = 200
    mel_weight: float = 15.0  # DAC, arXiv 2306.06546, section 3.5, as the adversarial ones
    spectrum_weight: float = 45.0  # of complex spectrograms: what keeps phases
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0  # of the distance of discriminator features
    adversarial_from: float = 1.0  # fraction of the budget after which discriminators join; 1 for never
    discriminator_width: int = 32  # channels of their first convolutions; cost and weights grow with its square
    discriminator_learning_rate: float = 2e-4  # peak, of the same schedule
    max_grad_norm: float = 10.0
    restart_every: int = 25  # steps between restarts of codes that were not used since the last one
    restart_until: float = 0.7  # fraction of the budget after which codes are left alone
    save_every_seconds: float = 180.0
    bf16: bool = False  # autocast of all convolutions: pays on a GPU, not on a CPU
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("max_seconds", "batch_size", "segment_seconds", "learning_rate", "warmup_steps", "restart_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.adversarial_from <= 1:
            raise ValueError(f"adversarial_from is {self.adversarial_from}; it is a fraction of the budget, 0 to 1")


def schedule(step: int, progress: float, warmup_steps: int) -> float:
    """The share of the peak learning rate: linear warm-up in steps, half a cosine over the budget, to a hundredth.

    >>> schedule(4, 0.0, 10), round(schedule(50, 1.0, 10), 3)
    (0.5, 0.01)
    """
    return min(1.0, (step + 1) / warmup_steps) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class CodecTrainer:
    """Trains a `DacModel` until its wall-clock budget is used up; goes on from the checkpoint of an earlier run.

    Reconstruction is trained from the first step; the discriminators join at `adversarial_from` of the budget, when
    there is something to judge. A run that was stopped goes on as if it had not been.

    Args:
        config: shape of the codec; its `quantizer_dropout` is the share of a batch that is decoded from only the first
            few codebooks.
        args: the run.
        device: where to train.
    """

    def __init__(self, config: DacConfig, args: CodecTrainingArguments, device: str = "cpu"):
        torch.manual_seed(args.seed)
        self.args, self.device = args, torch.device(device)
        self.output_dir = Path(args.output_dir)
        self.checkpoint_path = self.output_dir / "checkpoint.pt"
        self.generator = torch.Generator().manual_seed(args.seed)
        self.model = DacModel(config)
        initialize_codec(self.model, self.generator)
        if args.start_from:
            self.model.load_state_dict(DacModel.from_pretrained(args.start_from).state_dict())
        if args.decoder_only:
            self.model.encoder.requires_grad_(False)
            self.model.quantizer.requires_grad_(False)
        self.model.to(device).train()
        self.optimizer = self._optimizer(self.model, args.learning_rate)
        self.discriminators = self.discriminator_optimizer = None
        if args.adversarial_from < 1:
            self.discriminators = Discriminators(args.discriminator_width).to(device)
            self.discriminator_optimizer = self._optimizer(self.discriminators, args.discriminator_learning_rate)
        self.encoder = torch.compile(self.model.encoder) if args.compile else self.model.encoder
        self.decoder = torch.compile(self.model.decoder) if args.compile else self.model.decoder
        self.mel_loss = MultiScaleMelLoss(config.sampling_rate).to(device)
        self.spectrum_loss = ComplexSpectrumLoss(config.sampling_rate).to(device)
        self.watch = CodebookWatch(self.model)
        self.step, self.spent, self.averages = 0, 0.0, {}
        if self.checkpoint_path.exists():
            self._load()

    @property
    def progress(self) -> float:
        """The part of the budget, in seconds or steps, that is used up."""
        return min(1.0, max(self.spent / self.args.max_seconds, self.step / (self.args.max_steps or math.inf)))

    def train(self, segments: Callable[[int, int, int, int], Iterator[Tensor]]) -> DacModel:
        """Trains to the end of the budget.

        Args:
            segments: called with (batch size, samples, seed, first); the waveforms (batch, sample) of batch `first` of
                an endless sequence, then those behind it.

        Returns:
            The codec in evaluation mode, also saved as `output_dir/codec`.

        Raises:
            FloatingPointError: the loss is not a number.
        """
        args, hop = self.args, self.model.config.hop_length
        self.output_dir.mkdir(parents=True, exist_ok=True)
        samples = round(args.segment_seconds * self.model.config.sampling_rate / hop) * hop
        started, saved_at = time.monotonic() - self.spent, time.monotonic()
        if self.step == 0 and not args.start_from:
            self._fit_codebooks(segments(args.batch_size, samples, args.seed + 1, 0))
        for batch in segments(args.batch_size, samples, args.seed, self.step):
            self.spent = time.monotonic() - started
            if self.progress == 1.0:
                break
            projected_latents = self._update(batch.to(self.device))
            if self.step % args.restart_every == 0:
                self._look_after_codebooks(projected_latents)
            if time.monotonic() - saved_at > args.save_every_seconds:
                self._save()
                saved_at = time.monotonic()
        self._save()
        return self.model.eval()

    @torch.no_grad()
    def _fit_codebooks(self, batches: Iterator[Tensor]) -> None:
        """Fits the codebooks of a new codec to what its encoder makes of these batches."""
        wanted, latents = FRAMES_PER_CODE * self.model.config.codebook_size, []
        while sum(map(len, latents)) < wanted:
            hidden = self.model.encoder(next(batches).to(self.device)[:, None])
            latents.append(hidden.transpose(1, 2).flatten(0, 1))
        fit_codebooks(self.model, torch.cat(latents), self.generator)

    def _update(self, batch: Tensor) -> Tensor:
        """One step of codec and discriminators on waveforms (batch, sample); returns the batch's projected latents."""
        args = self.args
        estimate, codes, projected, losses = self._reconstruct(batch)
        loss = args.mel_weight * losses["mel"] + args.spectrum_weight * losses["spectrum"] + losses["quantizer"]
        if self.progress >= args.adversarial_from:
            losses |= self._judge(estimate, batch)
            loss = loss + args.adversarial_weight * losses["adversarial"] + args.feature_weight * losses["features"]
        self._descend(loss, self.model, self.optimizer, args.learning_rate)
        self.watch.observe(codes)
        self.step += 1
        for name, value in losses.items():
            self.averages[name] = 0.95 * self.averages.get(name, value.detach()) + 0.05 * value.detach()
        return projected.detach()

    def _reconstruct(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The batch through the codec: estimate, codes, projected latents, losses of the reconstruction."""
        config = self.model.config
        with self._autocast():
            latents = self.encoder(batch[:, None])
        # the choice of a code is a comparison of near neighbours: full precision
        quantized, codes, projected, commitment, codebook = self.model.quantizer(latents.float())
        with self._autocast():
            estimate = self.decoder(quantized).squeeze(1)
        estimate = estimate.float()
        losses = {
            "mel": self.mel_loss(estimate, batch),
            "spectrum": self.spectrum_loss(estimate, batch),
            "quantizer": config.commitment_loss_weight * commitment.mean()
            + config.codebook_loss_weight * codebook.mean(),
        }
        return estimate, codes, projected, losses

    def _judge(self, estimate: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """Trains the discriminators by a step, then has them judge; the codec's losses carry its gradient."""
        judges = self.discriminators
        with self._autocast():
            features = judges(torch.cat([batch, estimate.detach()]))
        real, fake = ([[layer[part] for layer in judge] for judge in features] for part in self._halves(batch))
        discriminator = discriminator_loss(real, fake)
        self._descend(discriminator, judges, self.discriminator_optimizer, self.args.discriminator_learning_rate)
        judges.requires_grad_(False)  # saves the gradients of their weights
        with self._autocast():
            with torch.no_grad():
                real = judges(batch)
            fake = judges(estimate)
        judges.requires_grad_(True)
        adversarial, matching = generator_losses(real, fake)
        return {"discriminator": discriminator, "adversarial": adversarial, "features": matching}

    @staticmethod
    def _halves(batch: Tensor) -> tuple[slice, slice]:
        return slice(None, len(batch)), slice(len(batch), None)

    def _descend(self, loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, peak: float) -> None:
        """One step of an optimizer at the learning rate of the moment."""
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(self.step, self.progress, self.args.warmup_steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
        optimizer.step()

    def _optimizer(self, module: nn.Module, learning_rate: float) -> torch.optim.AdamW:
        fused = self.device.type == "cuda"
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=fused)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16)

    def _look_after_codebooks(self, projected_latents: Tensor) -> None:
        """Logs losses and how many codes are in use and, early in the run, restarts those that are not."""
        used, averages = self.watch.used(), self._finite_averages()
        if self.progress < self.args.restart_until and not self.args.decoder_only:
            self.watch.restart(projected_latents, self.generator)
        self.watch.counts.zero_()
        record = {"step": self.step, "seconds": round(self.spent, 1), **averages, "codes_used": used}
        with open(self.output_dir / "log.jsonl", "a") as log:
            log.write(json.dumps(record) + "\n")

    def _finite_averages(self) -> dict[str, float]:
        """The running means of the losses; a NaN stays in them, so that looking now and then is enough."""
        averages = {name: round(float(value), 4) for name, value in self.averages.items()}
        if broken := [name for name, value in averages.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"the loss is not a number at step {self.step} ({', '.join(broken)}); go on from the last checkpoint "
                f"in {self.output_dir} with a learning rate below {self.args.learning_rate}"
            )
        return averages

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint holds the state of, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        if self.discriminators:
            parts |= {"discriminators": self.discriminators, "discriminator_optimizer": self.discriminator_optimizer}
        return parts

    def _save(self) -> None:
        self._finite_averages()
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"step": self.step, "spent": self.spent, "averages": self.averages, "counts": self.watch.counts}
        state |= {"restarts": self.generator.get_state(), "dropout": torch.get_rng_state()}
        unfinished = self.checkpoint_path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.rename(self.checkpoint_path)
        self.model.save_pretrained(self.output_dir / "codec")

    def _load(self) -> None:
        saved = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.step, self.spent = saved["step"], saved["spent"]
        self.averages = {name: value.to(self.device) for name, value in saved["averages"].items()}
        self.watch.counts = saved["counts"].to(self.device)
        self.generator.set_state(saved["restarts"])
        torch.set_rng_state(saved["dropout"])
