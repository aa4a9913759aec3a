"""Enhances the same few clips at every evaluation and logs them. Knows codes, codec and generation."""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, TrainerCallback

from processing_dacse import DacSeProcessor


class AudioCallback(TrainerCallback):
    """Logs noisy, enhanced and clean audio with spectrograms: to TensorBoard under `OUTPUT/audio`, and to Trackio
    where the run reports to it.

    Args:
        clips: held-out rows (`noisy` and `clean` codes), by name.
        processor: turns codes into prompts and into samples.
        output_dir: of the run.
    """

    def __init__(self, clips: dict[str, dict], processor: DacSeProcessor, output_dir: str | Path):
        self.clips, self.processor = clips, processor
        self.folder, self.writer = Path(output_dir) / "audio", None

    def on_evaluate(self, args, state, control, model, **kwargs):
        # in every process: a model in shards needs them all
        enhanced = {name: enhance_codes(model, self.processor, clip["noisy"]) for name, clip in self.clips.items()}
        if not state.is_world_process_zero:
            return
        first = self.writer is None
        self.writer = self.writer or SummaryWriter(self.folder)
        sounds = {f"{name}/enhanced": codes for name, codes in enhanced.items()}
        for side in ("noisy", "clean") if first else ():
            sounds |= {f"{name}/{side}": clip[side] for name, clip in self.clips.items()}
        waveforms = {name: self.decode(codes) for name, codes in sounds.items()}
        for name, waveform in waveforms.items():
            self.writer.add_audio(name, waveform[None], state.global_step, self.processor.sampling_rate)
            self.writer.add_image(f"{name}/spectrogram", spectrogram(waveform), state.global_step, dataformats="HW")
        self.writer.flush()
        if "trackio" in args.report_to:
            self.report(waveforms, state.global_step)

    def report(self, waveforms: dict[str, Tensor], step: int) -> None:
        """Sends sounds to the Trackio run that the library has begun."""
        import trackio

        rate = self.processor.sampling_rate
        whole = {name: (32767 * waveform).short().numpy() for name, waveform in waveforms.items()}
        sounds = {name: trackio.Audio(samples, sample_rate=rate) for name, samples in whole.items()}
        trackio.log(sounds, step=step)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (codebook, frame) as a waveform (sample,)."""
        return torch.from_numpy(self.processor.decode_codes(codes[None])[0]).clamp(-1, 1)


@torch.no_grad()
def enhance_codes(model: PreTrainedModel, processor: DacSeProcessor, noisy: Tensor) -> Tensor:
    """Greedy clean codes (codebook, frame) for noisy ones of one clip."""
    training = model.training
    model.eval()
    if isinstance(model, FSDPModule):
        model.unshard()  # what is not in a layer: generation may go round the hook that does this before `forward`
    prompt = processor.build_prompt(noisy[None]).to(model.device)
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False)
    model.train(training)
    return processor.clean_codes(generated[0].cpu())[0]


def spectrogram(waveform: Tensor, floor_db: float = -80.0) -> Tensor:
    """Magnitudes in dB below the highest, 0 (floor) to 1, low frequencies at the bottom, (frequency, frame)."""
    length = min(1024, len(waveform))
    spectrum = torch.stft(waveform, length, length // 4, window=torch.hann_window(length), return_complex=True).abs()
    decibels = 20 * torch.log10(spectrum / spectrum.max().clamp(min=1e-8) + 1e-8)
    return (1 - decibels.clamp(min=floor_db) / floor_db).flip(0)
