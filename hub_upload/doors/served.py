"""A language model that a server of another engine runs, for an `Enhancer` to ask in place of one with weights.

Knows token ids and one request of the OpenAI API, `/v1/completions` with ids in and out, as vLLM has it.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from transformers import GenerationConfig, PreTrainedModel

from modeling_dacse import DacSeConfig

from .codebook_grid import Grid

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class ServedModel(PreTrainedModel):
    """The model that a server runs: `dacse convert --plain-llama` makes what it loads.

        Enhancer(ServedModel.from_config("org/dac-se1", "http://127.0.0.1:8000"), processor)

    It decodes greedily or draws as it is asked; what needs weights here (adapters, confidence, minimum risk) is
    refused.

    Args:
        config: Of the model.
        url: Of the server, without the path.
    """

    config_class = DacSeConfig
    fast_decoder = None
    device, dtype = torch.device("cpu"), torch.float32  # of what is exchanged

    def __init__(self, config: DacSeConfig, url: str):
        super().__init__(config)
        self.generation_config = GenerationConfig.from_model_config(config)
        self.url, self.grid = url.rstrip("/"), Grid.of_config(config)

    @classmethod
    def from_config(cls, place: str | os.PathLike, url: str) -> "ServedModel":
        """The model whose configuration lies at a directory or Hub id, its weights unread.

        Raises:
            ValueError: If it is of a pattern that no other engine is told.
        """
        config = DacSeConfig.from_pretrained(place)
        config.name_or_path = str(place)  # beside which the processor is looked for
        if config.pattern != "flattened":
            raise ValueError(f"{place} has the {config.pattern} pattern; other engines are told the flattened one")
        return cls(config, url)

    def generate(
        self,
        input_ids: torch.LongTensor,
        forced_ids: torch.LongTensor | None = None,
        row_seeds: torch.LongTensor | None = None,
        num_return_sequences: int = 1,
        **asked: Any,
    ) -> torch.LongTensor:
        """Asks for the answers to prompts, all at a time.

        Args:
            input_ids: (batch, token): `[pad ...] [bos] noisy [start_clean]`.
            forced_ids: (batch, clean token): ids that must come, -1 where the model chooses.
            row_seeds: With `do_sample`, the seed of each answer.
            num_return_sequences: Answers to each prompt, one after another.
            asked: `do_sample`, temperature, top_k, top_p, min_p, repetition_penalty; an attention mask says what the
                ids say.

        Returns:
            (answer, token): the prompts, `clean [eos] [pad ...]` after each.

        Raises:
            ValueError: If something else is asked for, or an answer leaves the grid.
            OSError: If the server cannot be reached, or refuses.
        """
        draws = asked.pop("do_sample", False)
        asked.pop("attention_mask", None)
        unknown = asked.keys() - set(SAMPLING)
        if unknown:
            raise ValueError(f"a server is not asked for {', '.join(sorted(unknown))}: leave it out")
        sampling = {"temperature": 1.0} | asked if draws else {"temperature": 0.0}
        input_ids = input_ids.repeat_interleave(num_return_sequences, dim=0)
        if forced_ids is not None:
            forced_ids = forced_ids.repeat_interleave(num_return_sequences, dim=0)
        prompts = [row[row != self.config.pad_token_id].tolist() for row in input_ids]
        forced = [[]] * len(prompts) if forced_ids is None else forced_ids.tolist()
        seeds = [None] * len(prompts) if row_seeds is None else row_seeds.tolist()
        sampling["model"] = self._request("/v1/models")["data"][0]["id"]
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(partial(self._answer, sampling), prompts, forced, seeds))
        width = max(map(len, answers))
        padded = [answer + [self.config.pad_token_id] * (width - len(answer)) for answer in answers]
        return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], dim=1)

    def risk_processor(self, code_vectors: torch.FloatTensor) -> None:
        """Refuses: it would be asked of the server.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a server takes the likeliest code: pass minimum_risk=False")

    def token_probabilities(self, ids: torch.LongTensor) -> None:
        """Refuses: they take weights.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a server's probabilities are not known here: leave return_confidence out, choose by something else"
        )

    def _answer(self, sampling: dict[str, Any], prompt: list[int], forced: list[int], seed: int | None) -> list[int]:
        """The ids after one prompt, asked for from each forced id to the next."""
        noisy, clean = self.grid.missing(prompt)
        forced = forced[:noisy] + [-1] * (noisy - len(forced))
        answer: list[int] = []
        while clean < noisy:
            free = next((place for place in range(clean, noisy) if forced[place] != -1), noisy) - clean
            if free:
                draws = {} if seed is None else {"seed": seed + clean}
                answer += self._continue(sampling | draws, prompt + answer, range(clean, clean + free), noisy)
            else:
                answer.append(forced[clean])
            clean += max(free, 1)
        return [*answer, self.grid.eos_token_id]

    def _continue(self, sampling: dict[str, Any], prompt: list[int], places: range, noisy: int) -> list[int]:
        """The ids of some places of an answer."""
        request = sampling | {"prompt": prompt, "max_tokens": len(places), "return_token_ids": True}
        answer = self._request("/v1/completions", request)["choices"][0]["token_ids"]
        ranges = [self.grid.legal_ids(noisy, place) for place in places]
        if len(answer) != len(ranges) or not all(a <= i < b for i, (a, b) in zip(answer, ranges, strict=True)):
            raise ValueError(
                f"an answer of {self.url} leaves the grid of codebooks; start the server with --logits-processors "
                "codebook_grid:GridLogitsProcessor"
            )
        return answer

    def _request(self, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server says.

        Raises:
            OSError: If that is nothing, or no.
        """
        body = None if content is None else json.dumps(content).encode()
        request = Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request) as response:  # what it takes to answer is the server's affair
                return json.load(response)
        except HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())
            raise OSError(f"the server {self.url} answered {error.code}: {said}") from error
        except (URLError, HTTPException, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(
                f"the server {self.url} cannot be reached ({reason}); is it running there?"
            ) from error
