"""Trains a `DacModel`: the loop, its losses, its checkpoints. Knows waveforms; knows no language model."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import DacConfig, DacModel

from .arguments import CodecTrainingArguments
from .codebooks import MovingCodebooks, fit_codebooks
from .discriminators import Discriminators, discriminator_loss, generator_losses
from .filterbank import Analysis, Synthesis, clear_full_rate, full_rate_parameters
from .losses import SpectralDistances
from .optimizer import CodecOptimizer
from .start import initialize_codec

FRAMES_PER_CODE = 40  # of the latents to which the codebooks of a new codec are fitted
SMOOTHING = 0.98  # of the losses that are logged, a step


class CodecTrainer:
    """Trains a `DacModel` until its budget is used up; goes on from the checkpoint of an earlier run.

    Reconstruction is trained from the first step; the discriminators join at `adversarial_from` of the budget, when
    there is something to judge. A run that was stopped goes on as if it had not been. The learning rate is constant
    until the last part of the budget, and the state before it falls is kept: with a longer budget the same run goes on
    from there.

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
        self.constant_path = self.output_dir / "constant.pt"  # before the learning rate fell
        self.generator = torch.Generator().manual_seed(args.seed)
        self.model = self._new_model(config).to(device).train()
        self.codebooks = MovingCodebooks(self.model)
        if args.decoder_only:
            self.model.encoder.requires_grad_(False)
            self.model.quantizer.requires_grad_(False)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.averaging))
        self.optimizer = CodecOptimizer(self.model, args.learning_rate, args.matrix_learning_rate)
        self.discriminators = self.discriminator_optimizer = None
        if args.adversarial_from < 1:
            self.discriminators = Discriminators(args.discriminator_width).to(device)
            rate = args.discriminator_learning_rate
            self.discriminator_optimizer = CodecOptimizer(self.discriminators, rate, rate)
        self.encode, self.decode = self._networks()
        self.distances = SpectralDistances(config.sampling_rate).to(device)
        self.step, self.spent, self.averages = 0, 0.0, {}
        self._load()

    def _new_model(self, config: DacConfig) -> DacModel:
        """A codec as a run starts with it, but for the codebooks of a new one."""
        args, model = self.args, DacModel(config)
        initialize_codec(model, self.generator)
        if args.start_from:
            model.load_state_dict(DacModel.from_pretrained(args.start_from).state_dict())
        elif args.skip_full_rate:
            clear_full_rate(model)
        if args.skip_full_rate:
            for parameter in full_rate_parameters(model):
                parameter.requires_grad_(False)
        return model

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder as they are run."""
        encoder, decoder = self.model.encoder, self.model.decoder
        networks = (Analysis(encoder), Synthesis(decoder)) if self.args.skip_full_rate else (encoder, decoder)
        return tuple(torch.compile(network) if self.args.compile else network for network in networks)

    @property
    def progress(self) -> float:
        """The part of the budget that is used up."""
        return self.args.progress(self.step, self.spent)

    def train(self, segments: Callable[[int, int, int, int], Iterator[Tensor]]) -> DacModel:
        """Trains to the end of the budget.

        Args:
            segments: called with (batch size, samples, seed, first); the waveforms (batch, sample) of batch `first` of
                an endless sequence, then those after it.

        Returns:
            The codec in evaluation mode, with averaged weights, also saved as `output_dir/codec`.

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
            if 1 - self.progress <= args.decay and not self.constant_path.exists():
                self._save(self.constant_path)
            projected_latents = self._update(batch.to(self.device))
            if self.step % args.restart_every == 0:
                self._look_after_codebooks(projected_latents)
            if time.monotonic() - saved_at > args.save_every_seconds:
                self._save(self.checkpoint_path)
                saved_at = time.monotonic()
        self._save(self.checkpoint_path)
        return self.average.module.eval()

    @torch.no_grad()
    def _fit_codebooks(self, batches: Iterator[Tensor]) -> None:
        """Fits the codebooks of a new codec to what its encoder makes of these batches."""
        wanted, latents = FRAMES_PER_CODE * self.model.config.codebook_size, []
        while sum(map(len, latents)) < wanted:
            hidden = self.model.encoder(next(batches).to(self.device)[:, None])
            latents.append(hidden.transpose(1, 2).flatten(0, 1))
        fit_codebooks(self.model, torch.cat(latents), self.generator)
        self.codebooks.reset()

    def _update(self, batch: Tensor) -> Tensor:
        """One step of codec and discriminators on waveforms (batch, sample); returns the batch's projected latents."""
        args = self.args
        estimate, codes, projected, losses = self._reconstruct(batch)
        loss = args.mel_weight * losses["mel"] + args.spectrum_weight * losses["spectrum"]
        loss = loss + args.long_term_weight * losses["long_term"] + args.commitment_weight * losses["commitment"]
        if self.discriminators and self.progress >= args.adversarial_from:
            losses |= self._judge(estimate, batch)
            loss = loss + args.adversarial_weight * losses["adversarial"] + args.feature_weight * losses["features"]
        self._descend(loss, self.model, self.optimizer)
        if not args.decoder_only:
            self.codebooks.observe(projected, codes)
        self.average.update_parameters(self.model)
        self.step += 1
        for name, value in losses.items():
            self.averages[name] = value.detach().lerp(self.averages.get(name, value.detach()), SMOOTHING)
        return projected.detach()

    def _reconstruct(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The batch through the codec: estimate, codes, projected latents, losses of the reconstruction."""
        with self._autocast():
            latents = self.encode(batch[:, None])
        # the choice of a code is a comparison of near neighbours: full precision
        quantized, codes, projected, *_ = self.model.quantizer(latents.float())
        with self._autocast():
            estimate = self.decode(quantized)
        estimate = estimate.squeeze(1).float()
        losses = self.distances(estimate, batch) | {"commitment": self.codebooks.commitment(projected, codes)}
        return estimate, codes, projected, losses

    def _judge(self, estimate: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """Trains the discriminators by a step, then has them judge; the codec's losses carry its gradient."""
        judges = self.discriminators
        with self._autocast():
            features = judges(torch.cat([batch, estimate.detach()]))
        real, fake = ([[layer[part] for layer in judge] for judge in features] for part in self._halves(batch))
        discriminator = discriminator_loss(real, fake)
        self._descend(discriminator, judges, self.discriminator_optimizer)
        judges.requires_grad_(False)  # saves the gradients of their weights
        with self._autocast():
            fake = judges(estimate)
        judges.requires_grad_(True)
        adversarial, matching = generator_losses(real, fake)
        return {"discriminator": discriminator, "adversarial": adversarial, "features": matching}

    @staticmethod
    def _halves(batch: Tensor) -> tuple[slice, slice]:
        return slice(None, len(batch)), slice(len(batch), None)

    def _descend(self, loss: Tensor, module: nn.Module, optimizer: CodecOptimizer) -> None:
        """One step of an optimizer at the learning rate of the moment."""
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
        optimizer.step(self.args.schedule(self.step, self.progress))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16)

    def _look_after_codebooks(self, projected_latents: Tensor) -> None:
        """Logs losses and, early in the run, restarts codes that are hardly chosen."""
        averages, restarted = self._finite_averages(), 0
        if self.progress < self.args.restart_until and not self.args.decoder_only:
            restarted = self.codebooks.restart_idle(projected_latents, self.generator)
        record = {"step": self.step, "seconds": round(self.spent, 1), **averages, "codes_restarted": restarted}
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

    def _parts(self) -> dict[str, nn.Module | CodecOptimizer | MovingCodebooks]:
        """What a checkpoint holds the state of, by name."""
        parts = {
            "model": self.model,
            "average": self.average,
            "codebooks": self.codebooks,
            "optimizer": self.optimizer,
        }
        if self.discriminators:
            parts |= {"discriminators": self.discriminators, "discriminator_optimizer": self.discriminator_optimizer}
        return parts

    def _save(self, path: Path) -> None:
        """Writes a checkpoint, then the codec with averaged weights."""
        self._finite_averages()
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"step": self.step, "spent": self.spent, "averages": self.averages}
        state |= {"restarts": self.generator.get_state(), "dropout": torch.get_rng_state()}
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.rename(path)
        self.average.module.save_pretrained(self.output_dir / "codec")

    def _load(self) -> None:
        """Goes on from the newest checkpoint, or, where the budget has grown, from before the learning rate fell."""
        if self.constant_path.exists():
            saved = torch.load(self.constant_path, map_location="cpu", weights_only=True, mmap=True)
            if 1 - self.args.progress(saved["step"], saved["spent"]) > self.args.decay:
                self.constant_path.replace(self.checkpoint_path)
        if not self.checkpoint_path.exists():
            return
        saved = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.step, self.spent = saved["step"], saved["spent"]
        self.averages = {name: value.to(self.device) for name, value in saved["averages"].items()}
        self.generator.set_state(saved["restarts"])
        torch.set_rng_state(saved["dropout"])
