"""LoRA adapters: made on any base model, saved with a card, merged into their base. Knows weights; knows no data."""

from pathlib import Path

import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from .arguments import AdapterArguments
from .runs import task_losses
from .trainer import DacSeTrainer

CARD = """---
base_model: {base}
library_name: peft
tags: [dacse, lora, audio-enhancement]
---
# Adapter for {purpose}

LoRA of rank {rank} on {modules} of `{base}`. Held-out loss (nats per token):

| task | base model | with this adapter |
|---|---|---|
{rows}

```bash
dacse enhance noisy.wav -o enhanced.wav --model {base} --adapter {folder}
```
"""


def add_adapter(model: PreTrainedModel, adapter: AdapterArguments) -> PeftModel:
    """Freezes `model` and puts a trainable adapter beside its layers; it starts as no change at all."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.modules)
    )
    return get_peft_model(model, config)


def adapter_losses(trainer: DacSeTrainer) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out loss of every task without and with the adapter, whether it was trained or has just begun."""
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        before = task_losses(trainer)
    return before, task_losses(trainer)


def save_adapter(
    model: PeftModel, folder: str | Path, purpose: str, before: dict[str, float], after: dict[str, float]
) -> None:
    """Writes adapter weights, `card.yaml` (what publishing states about it) and a README with its figures.

    Args:
        model: the base with its adapter.
        folder: of the adapter.
        purpose: what it is for.
        before, after: held-out loss of every task without and with the adapter.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    losses = [{"task": task, "base": float(loss), "adapter": float(after[task])} for task, loss in before.items()]
    (folder / "card.yaml").write_text(yaml.safe_dump({"task": purpose, "losses": losses}, sort_keys=False))
    config = model.peft_config["default"]
    card = CARD.format(
        base=config.base_model_name_or_path,
        purpose=purpose,
        rank=config.r,
        modules=", ".join(sorted(config.target_modules)),
        rows="\n".join(f"| {task} | {loss:.3f} | {after[task]:.3f} |" for task, loss in before.items()),
        folder=folder,
    )
    (folder / "README.md").write_text(card)
