"""Trains the embedded model from a corpus of speech, noise and rooms, stage by stage; each goes on where it stopped.

python examples/train_tiny --data CORPUS --output runs/tiny                 # all stages
python examples/train_tiny --data CORPUS --output runs/tiny --stage codec   # then stage1, package, evaluate, card
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from transformers import DacConfig

from hub_upload.card import model_card
from hub_upload.facts import Evaluation, Facts
from hub_upload.stage import open_checkpoint, stage_evaluations
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import AudioEnhancementPipeline
from processing_dacse import DacSeProcessor
from training_dacse.codec import CodecTrainer, CodecTrainingArguments
from training_dacse.segments import CodecSegments
from training_dacse.sources import find_clips

HERE = Path(__file__).parent
CLEAN_SPEECH = (
    "kind == 'speech' and split == 'train' and bandwidth_hz >= 14000 and snr_db >= 28 and hf_dynamic_db >= 18"
)
CLEAN_TEST_SPEECH = "bandwidth_hz >= 14000 and snr_db >= 28"
NOISE = "kind == 'noise' and split == 'train'"


def train_codec(data: str, output: Path) -> None:
    """Waveforms -> `output/codec/codec`."""
    settings = yaml.safe_load((HERE / "codec.yaml").read_text())
    config = DacConfig(**settings["codec"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = CodecTrainer(config, CodecTrainingArguments(str(output / "codec"), **settings["training"]), device)
    speech, noise = find_clips(data, CLEAN_SPEECH), find_clips(data, NOISE)
    trainer.train(CodecSegments(speech, noise, config.sampling_rate, device))


def train_stage1(data: str, output: Path) -> None:
    """Token cache, then the language model on the mixture of all tasks -> `output/stage1`."""
    script = HERE.parent / "train_stage1.py"
    options = {"--config": HERE / "stage1.yaml", "--data": data, "--codec": output / "codec/codec"}
    options |= {"--output": output / "stage1"}
    arguments = [str(part) for pair in options.items() for part in pair]
    subprocess.run([sys.executable, script, *arguments], check=True, cwd=HERE.parents[1])


def package(data: str, output: Path) -> None:
    """One repository of model, codec and code -> `output/package`: half precision on disk, full when loaded."""
    model = DacSeForEnhancement.from_pretrained(output / "stage1", dtype=torch.bfloat16)
    processor = DacSeProcessor.from_codec(output / "codec/codec")
    AudioEnhancementPipeline(model=model, processor=processor).save_pretrained(output / "package")
    config = DacSeConfig.from_pretrained(output / "package")
    config.dtype = "float32"
    config.save_pretrained(output / "package")


def evaluate(data: str, output: Path) -> None:
    """The packaged model against its input and its codec, on held-out speech and on the example recordings."""
    package, audio = output / "package", HERE.parent / "audio"
    spoiled = [
        "--recipe",
        HERE.parent / "configs/recipe_tiny.yaml",
        "--clips-per-task",
        8,
        "--where",
        CLEAN_TEST_SPEECH,
    ]
    codec = ["--systems", f"noisy,codec:{package},dacse:{package}", "--metrics", "dnsmos,pesq,stoi"]
    alone = ["--systems", f"noisy,dacse:{package}", "--metrics", "dnsmos"]
    for name, options in (("test", ["-t", data, *spoiled, *codec]), ("examples", ["-t", audio, *alone])):
        command = ["dacse", "evaluate", *options, "-o", output / "evaluation" / name, "-p", 2]
        subprocess.run([str(part) for part in command], check=True)


def write_card(data: str, output: Path) -> None:
    """The card of `output/package`, from `card.yaml` and the evaluations."""
    package = output / "package"
    shutil.rmtree(package / "evaluation", ignore_errors=True)
    runs = [Evaluation(str(output / "evaluation" / name), f"dacse:{package}") for name in ("test", "examples")]
    facts = stage_evaluations(output, package, replace(Facts.read(HERE), evaluations=runs))
    enhance = open_checkpoint(str(package))
    (package / "README.md").write_text(model_card("dacse/tiny", enhance.model, enhance.processor, facts, package))


STAGES = {"codec": train_codec, "stage1": train_stage1, "package": package, "evaluate": evaluate, "card": write_card}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MANIFEST.tsv")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--stage", choices=["all", *STAGES], default="all")
    args = parser.parse_args()
    for name, stage in STAGES.items():
        if args.stage in ("all", name):
            stage(str(args.data.resolve()), args.output.resolve())


if __name__ == "__main__":
    main()
