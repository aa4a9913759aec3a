"""The engine a command was asked for, loaded where it is to work: in this process or in one of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_dacse import EnhanceOptions, Enhancer


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made of.

    Attributes:
        model: directory or Hub id.
        codec: directory or Hub id of the codec of a model that has no processor; None for the model's own.
        device: such as "cuda"; None for the best one where it is loaded.
        dtype: precision of the language model.
        int8: whether its matrices are rounded to 8 bits.
        server: where another engine runs the language model; None for here.
        options: of `EnhanceOptions`, by name.
    """

    model: str
    codec: str | None
    device: str | None
    dtype: str
    int8: bool
    server: str | None
    options: dict[str, Any]

    def make_options(self) -> EnhanceOptions:
        """The options of the call, checked.

        Raises:
            ValueError: one has no meaning.
        """
        from pipeline_dacse import EnhanceOptions

        return EnhanceOptions(**self.options)

    def load(self) -> Enhancer:
        """Loads the model and its codec, and checks that the options suit them.

        Raises:
            ValueError: an option, the device, the model or the codec does not suit the others.
            OSError: something is not there.
        """
        import torch
        from transformers.utils import logging

        import dacse
        from pipeline_dacse.device_dacse import check_device
        from pipeline_dacse.layout_dacse import find_processor, new_processor

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is wrong about a model is raised as well
        options = self.make_options()
        check_device(self.device)
        place = self.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        if self.server is None:
            rounding = {"quantization_config": dacse.Int8Config()} if self.int8 else {}
            model = dacse.DacSeForEnhancement.from_pretrained(self.model, dtype=self.dtype, **rounding).to(place)
        else:
            from hub_upload.doors.served import ServedModel

            model = ServedModel.from_config(self.model, self.server)
        processor = find_processor(model) if self.codec is None else new_processor(model, self.codec)
        processor.audio_tokenizer.to(place)
        enhancer = dacse.Enhancer(model, processor)
        enhancer.check(options)
        return enhancer

    def describe(self, enhancer: Enhancer) -> str:
        """A line about what was loaded."""
        options = self.make_options()
        windows = options.batch_size or enhancer.default_windows(options)
        precision = "int8" if self.int8 else str(enhancer.model.dtype).removeprefix("torch.")
        where = f"{enhancer.model.device} in {precision}" if self.server is None else self.server
        return f"{self.model} on {where}, up to {windows} windows at a time"
