"""How much do the later codebooks matter? The first ones only against all, at training and at inference:

python examples/ablate_codebooks.py --config examples/configs/ablation_tiny.yaml --data CORPUS --codec DIR --output OUT

In full: --config examples/configs/ablation_full.yaml --codec descript/dac_44khz, first 3 of 9 codebooks.
"""

from dataclasses import dataclass, field

from training_dacse.experiments.ablations import mel_distance, train_variant, write_results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.lm.runs import end_training
from training_dacse.tokens.cache import TokenCache, find_codec


@dataclass
class AblationArguments:
    first: int = field(default=3, metadata={"help": "codebooks of the small variant"})
    listened_clips: int = field(default=16, metadata={"help": "held-out clips generated and compared"})


def main():
    ablation, data, args = parse_arguments(AblationArguments, DataArguments, DacSeTrainingArguments)
    codec = find_codec(data.codec)
    every, first = codec.config.n_codebooks, ablation.first
    trainers = {
        f"first {first}": train_variant("first", data, args, codec, num_codebooks=first),
        f"all {every}": train_variant("all", data, args, codec),
    }
    results = {}
    for name, decoded in ((f"first {first}", first), (f"all {every}", every), (f"all {every}", first)):
        trainer = trainers[name]
        clips = TokenCache(trainer.eval_dataset.folder)
        metrics = trainer.evaluate()
        results[f"trained on {name}, decoded {decoded}"] = {
            "mel distance": mel_distance(trainer.model, clips, codec, ablation.listened_clips, decoded),
            **{f"accuracy {n}": metrics[f"eval_accuracy/codebook_{n}"] for n in range(1, first + 1)},
        }
    write_results(args.output_dir, "Codebooks at training and inference", results)
    end_training(*trainers.values())


if __name__ == "__main__":
    main()
