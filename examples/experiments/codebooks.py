"""The first codebooks against all, at training and at inference; reduced models get processors of their own:

python examples/experiments/codebooks.py --config examples/experiments/small.yaml --corpus CORPUS --tokens TOKENS \\
    --output docs/experiments/codebooks

In full: --config examples/experiments/full.yaml, first 3 of 9 codebooks.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from score import BEST, ExperimentArguments, Listener, remarks

from processing_dacse import DacSeProcessor
from training_dacse.experiments.arms import Arm, Generate, generate_with, train_arm
from training_dacse.experiments.results import Results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.tokens.encode import first_codebooks


@dataclass
class CodebookArguments:
    first: int = field(default=3, metadata={"help": "codebooks of the small variant"})
    bases: list[str] | None = field(default=None, metadata={"help": "models of the first and of all, to go on with"})


def first_of(generate: Generate, count: int) -> Generate:
    """The first codebooks of what is generated."""
    return lambda noisy: generate(noisy)[:, :count]


def main():
    types = ExperimentArguments, CodebookArguments, DataArguments, DacSeTrainingArguments
    experiment, codebooks, data, args = parse_arguments(*types)
    folder, first = Path(args.output_dir), codebooks.first
    listener = Listener(experiment, replace(data, num_codebooks=None), folder)
    whole = listener.processor
    small = DacSeProcessor.from_codec(first_codebooks(whole.audio_tokenizer, first))
    every, both = whole.num_codebooks, {name: best for name, best in BEST.items() if name != "loss"}
    results = Results(folder, "Codebooks at training and at inference", both)
    arms = [f"trained on {first}", f"trained on {every}", f"trained on {every}, heard {first}"]
    arms += [f"codec alone, {first}, clean in", f"codec alone, {every}, clean in"]
    for seed in range(experiment.seeds):
        for number, (count, processor) in enumerate(((first, small), (every, whole))):
            if results.has(name := arms[number], seed):
                continue
            existing = {"model": codebooks.bases[number], "model_overrides": None} if codebooks.bases else {}
            arm = Arm(existing | {"num_codebooks": None if existing else count})
            model, losses = train_arm(arm, data, args, seed, folder / "runs" / f"{count}-{seed}")
            generate = generate_with(model, processor)
            results.add(name, seed, losses | listener.score(generate, processor))
            if count == every:  # the same model, of whose answer the first codebooks are decoded
                results.add(arms[2], seed, listener.score(first_of(generate, first), whole, small))
    for name, processor in zip(arms[3:], (small, whole), strict=True):
        if not results.has(name, 0):
            results.add(name, 0, listener.score(lambda codes: codes, processor, clean=True))
    bases = " and ".join(Path(base).name for base in codebooks.bases or [])
    results.write(arms, remarks(args, data, bases))


if __name__ == "__main__":
    main()
