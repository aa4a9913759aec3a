"""Cards of enhanced data sets: what the card of the input says about its files, and what was done to them."""

import re

import yaml

from command_dacse.outputs import written_when_done
from command_dacse.remote import hub_dataset, open_remote

KEPT = ("license", "language", "configs", "tags")  # dataset_info counts bytes and states rates that are over


def write_cards(cards: dict[str, str], model: str) -> None:
    """Writes the card of each result, which `datasets` finds splits and configurations by.

    Args:
        cards: where the card of each data set lies, and where that of its result goes.
        model: what it was enhanced with.

    Raises:
        OSError: one cannot be read or written.
    """
    for source, target in cards.items():
        if source != target:
            with open_remote(source) as file:
                card = enhanced_card(file.read().decode(), source.rpartition("/")[0], model)
            with written_when_done(target) as file:
                file.write(card.encode())


def enhanced_card(card: str, source: str, model: str) -> str:
    """The card of a data set that was made of another one.

    >>> print(enhanced_card("---\\nlicense: mit\\npretty_name: A\\n---\\n# A", "hf://datasets/org/a", "dacse/tiny"))
    ---
    license: mit
    source_datasets:
    - org/a
    ---
    <BLANKLINE>
    The audio of `hf://datasets/org/a`, enhanced with `dacse/tiny`; all else is as it is there.
    <BLANKLINE>
    """
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    facts = yaml.safe_load(header[1]) if header else {}
    facts = {name: facts[name] for name in KEPT if name in facts}
    if (name := hub_dataset(source)) is not None:
        facts["source_datasets"] = [name]
    text = f"The audio of `{source}`, enhanced with `{model}`; all else is as it is there."
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n{text}\n"
