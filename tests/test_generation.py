import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria
from transformers.generation.streamers import BaseStreamer

from modeling_dacse.fast.decoding import decode_grid
from modeling_dacse.grid_dacse import MinimumRiskLogitsProcessor, draw_schedule, gumbel_noise
from modeling_dacse.pattern_dacse import PATTERNS
from tests.tiny import tiny_code_vectors, tiny_config, tiny_model, tiny_prompts

FRAMES = [3, 1, 2]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def prompts(model):
    return tiny_prompts(FRAMES, model.config)


@pytest.fixture(scope="module")
def greedy(model, prompts):
    return model.generate(**prompts)


@torch.no_grad()
def naive_loop(model, prompt, config=None, forced=None, vectors=None):
    """Greedy ids of one unpadded prompt: a full forward per token, the highest logit of the codebook that is due.

    With `vectors` the code whose squared distance to all others, each as often as it is expected, is the least.
    """
    config = config or model.config
    ids = prompt.tolist()
    num_noisy = ids.index(config.start_clean_token_id) - 1
    for token in range(num_noisy):
        if forced is not None and forced[token] >= 0:
            ids.append(int(forced[token]))
            continue
        first = config.first_code_id + token % config.num_codebooks * config.codebook_size
        scores = model(torch.tensor([ids])).logits[0, -1, first : first + config.codebook_size]
        if vectors is not None:
            of_codebook = vectors[token % config.num_codebooks]
            scores = -torch.cdist(of_codebook, of_codebook).square() @ scores.softmax(-1)
        ids.append(first + int(scores.argmax()))
    return [*ids, config.eos_token_id]


def strip(row, config):
    """A row's ids without its padding."""
    return [i for i in row.tolist() if i != config.pad_token_id]


def unpadded(prompts, row):
    return prompts["input_ids"][row, prompts["attention_mask"][row].bool()]


def assert_finished(ids, prompts, config):
    """Every row is its prompt, as many clean ids as noisy ones on the codebook grid, eos, then pad."""
    prompt_ids = prompts["input_ids"].repeat_interleave(len(ids) // len(prompts["input_ids"]), dim=0)
    length = prompt_ids.shape[1]
    assert torch.equal(ids[:, :length], prompt_ids)
    for prompt, row in zip(prompt_ids.tolist(), ids[:, length:].tolist(), strict=True):
        count = sum(i >= config.first_code_id for i in prompt)
        clean, rest = row[:count], row[count:]
        assert [(i - config.first_code_id) // config.codebook_size for i in clean] == [
            token % config.num_codebooks for token in range(count)
        ]
        assert rest == [config.eos_token_id] + [config.pad_token_id] * (len(rest) - 1)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_key_value_heads": 2}, {"num_codebooks": 9, "codebook_size": 1024, "max_position_embeddings": 256}],
    ids=["tiny", "grouped-query", "released layout"],
)
def test_greedy_ids_are_those_of_a_naive_loop(overrides):
    model = tiny_model(**overrides)
    prompts = tiny_prompts([2], model.config)
    assert model.generate(**prompts)[0].tolist() == naive_loop(model, prompts["input_ids"][0])


def test_left_padded_rows_are_those_of_a_naive_loop_each(model, prompts, greedy):
    for row in range(len(FRAMES)):
        assert strip(greedy[row], model.config) == naive_loop(model, unpadded(prompts, row))


def test_batch_is_its_rows_one_by_one(model, prompts, greedy):
    for row in range(len(FRAMES)):
        alone = model.generate(unpadded(prompts, row)[None])
        assert strip(greedy[row], model.config) == alone[0].tolist()


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"do_sample": True},
        {"do_sample": True, "top_k": 2},
        {"do_sample": True, "top_k": 0, "top_p": 0.1, "temperature": 3.0},
        {"do_sample": True, "min_p": 0.2, "typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
        {"num_beams": 3, "do_sample": True},
        {"repetition_penalty": 5.0, "renormalize_logits": True},
        {"max_new_tokens": 40},
        {"num_beams": 3, "max_new_tokens": 40},
        {"max_length": 64},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        {"min_new_tokens": 20},
        {"min_new_tokens": 20, "do_sample": True},
        {"min_new_tokens": 20, "num_beams": 2},
        {"suppress_tokens": [2]},
        {"begin_suppress_tokens": list(range(5, 21))},
        {"forced_eos_token_id": 2, "max_new_tokens": 10},
        {"forced_bos_token_id": 0},
        {"bad_words_ids": [[token] for token in range(5, 21)]},
        {"sequence_bias": {(6,): -1e30, (22,): float("inf")}},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"no_repeat_ngram_size": 1},
        {"guidance_scale": 1.5},
        {"remove_invalid_values": True},
    ],
    ids=str,
)
def test_generated_rows_are_finished_and_on_the_grid(model, prompts, mode):
    torch.manual_seed(0)
    ids = model.generate(**prompts, **mode)
    assert_finished(ids if torch.is_tensor(ids) else ids.sequences, prompts, model.config)


@settings(deadline=None, max_examples=20)
@given(frames=st.lists(st.integers(1, 10), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_any_batch_is_finished_and_on_the_grid(model, frames, seed):
    prompts = tiny_prompts(frames, model.config, seed)
    assert_finished(model.generate(**prompts, do_sample=True), prompts, model.config)


def compile_everywhere():
    """Has `generate` compile its step on the CPU too: traced in one graph, without a minute of code generation."""
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": True, "top_k": 1},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "compile_config": compile_everywhere()},
        {"max_new_tokens": 40},
        {"max_time": 600.0},
    ],
    ids=["top-1", "no cache", "static cache", "compiled", "more room than needed", "time limit"],
)
def test_every_way_to_run_gives_the_greedy_ids(model, prompts, greedy, mode):
    assert torch.equal(model.generate(**prompts, **mode), greedy)


@pytest.mark.parametrize("limit", [{}, {"max_new_tokens": 40}], ids=["own length", "more room than needed"])
def test_assisted_ids_are_the_greedy_ids(model, prompts, greedy, limit):
    for row in range(len(FRAMES)):
        prompt, expected = unpadded(prompts, row)[None], strip(greedy[row], model.config)
        assert model.generate(prompt, assistant_model=tiny_model(seed=1), **limit)[0].tolist() == expected
        assert model.generate(prompt, prompt_lookup_num_tokens=4, **limit)[0].tolist() == expected


def test_streamer_is_handed_the_row(model, prompts, greedy):
    class Collect(BaseStreamer):
        ids, ended = [], False

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collect()
    model.generate(unpadded(prompts, 0)[None], streamer=streamer)
    assert streamer.ended and streamer.ids == greedy[0].tolist()


def test_begun_rows_are_continued_to_the_same_end(model, prompts, greedy):
    length = prompts["input_ids"].shape[1]
    for begun in range(FRAMES[0] * model.config.num_codebooks + 1):
        assert torch.equal(model.generate(greedy[:1, : length + begun]), greedy[:1])


def test_rows_begun_to_different_degrees_are_continued_together(model, prompts, greedy):
    length, degrees = prompts["input_ids"].shape[1], [4, 3, 0]
    begun = [greedy[row, : length + degree] for row, degree in enumerate(degrees)]
    begun = [row[row != model.config.pad_token_id] for row in begun]
    ids = torch.nn.utils.rnn.pad_sequence(
        begun, batch_first=True, padding_value=model.config.pad_token_id, padding_side="left"
    )
    continued = model.generate(ids, attention_mask=(ids != model.config.pad_token_id).long())
    for row in range(len(degrees)):
        assert strip(continued[row], model.config) == strip(greedy[row], model.config)


@pytest.mark.parametrize("fast", [False, True], ids=["library", "fast"])
def test_rows_that_have_ended_stay_as_they_are_beside_others(model, prompts, greedy, fast):
    mode = {"custom_generate": decode_grid} if fast else {}
    length = prompts["input_ids"].shape[1]
    for begun in (3, 4, 6, 8, 9, 10):  # rows have 9, 3 and 6 clean tokens
        ids = greedy[:, : length + begun]
        mask = (ids != model.config.pad_token_id).long()
        assert torch.equal(model.generate(ids, attention_mask=mask, **mode)[:, : greedy.shape[1]], greedy)
    out = model.generate(**prompts, max_new_tokens=4, return_dict_in_generate=True)
    mask = (out.sequences != model.config.pad_token_id).long()
    again = model.generate(out.sequences, attention_mask=mask, past_key_values=out.past_key_values)
    assert torch.equal(again, greedy)


@torch.no_grad()
def test_beams_that_cover_every_row_find_the_likeliest(model):
    model = tiny_model(num_codebooks=2, codebook_size=4)
    config = model.config
    prompts = tiny_prompts([1, 1], config)
    clean = torch.tensor(list(itertools.product(range(5, 9), range(9, 13))))
    best = model.generate(**prompts, num_beams=len(clean))
    for row, prompt in enumerate(prompts["input_ids"]):
        ids = torch.cat([prompt.expand(len(clean), -1), clean, torch.full((len(clean), 1), config.eos_token_id)], 1)
        log_probs = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, -3:, 0].sum(-1)
        assert torch.equal(best[row], ids[log_probs.argmax()])


def test_the_grid_outranks_a_users_processor_and_top_k(model, prompts):
    class PreferEos(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, model.config.eos_token_id] = 1e4
            return scores

    ids = model.generate(**prompts, logits_processor=LogitsProcessorList([PreferEos()]), do_sample=True, top_k=1)
    assert_finished(ids, prompts, model.config)


@pytest.mark.parametrize("mode", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
def test_where_all_legal_ids_are_banned_they_are_equal(model, prompts, mode):
    class BanAll(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf)

    ids = model.generate(**prompts, logits_processor=[BanAll()], **mode)
    assert_finished(ids, prompts, model.config)


def test_stopping_criteria_hooks_and_compiled_forwards_mean_what_they_mean_elsewhere(prompts):
    model, length = tiny_model(), prompts["input_ids"].shape[1]
    stops = StoppingCriteriaList([MaxLengthCriteria(max_length=length + 3)])
    assert model.generate(**prompts, stopping_criteria=stops).shape[1] == length + 3
    third = int(model.generate(**prompts)[0, length + 2])
    stops = StoppingCriteriaList([EosTokenCriteria(eos_token_id=third)])
    assert model.generate(**prompts, stopping_criteria=stops)[0, length + 3] == model.config.pad_token_id
    layer, calls = model.model.layers[0], []
    hook = layer.register_forward_hook(lambda _, __, out: (calls.append(1), torch.zeros_like(out))[1])
    changed = model.generate(**prompts)
    hook.remove()
    assert len(calls) == changed.shape[1] - length and not torch.equal(changed, model.generate(**prompts))
    compiled = []
    model.forward = torch.compile(model.forward, backend=lambda graph, _: (compiled.append(1), graph.forward)[1])
    model.generate(**prompts)
    assert compiled


def test_continuous_batching_answers_each_prompt_as_generate_does(model, prompts, greedy):
    answers = model.generate_batch([unpadded(prompts, row).tolist() for row in range(len(FRAMES))])
    length = prompts["input_ids"].shape[1]
    assert list(answers) == [f"req_{row}" for row in range(len(FRAMES))]
    for row, answer in enumerate(answers.values()):
        assert [*answer.generated_tokens, model.config.eos_token_id] == strip(greedy[row, length:], model.config)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_generates_in_its_own_order(pattern):
    model = tiny_model(pattern=pattern)
    prompts, order = tiny_prompts(FRAMES, model.config), model.config.make_pattern()
    ids = model.generate(**prompts, do_sample=True)[:, prompts["input_ids"].shape[1] :]
    for row, frames in zip(ids, FRAMES, strict=True):
        clean = row[: frames * model.config.num_codebooks]
        codebook = (clean - model.config.first_code_id) // model.config.codebook_size
        assert torch.equal(codebook, order.codebooks(frames))


def test_rows_draw_from_streams_of_their_own(model, prompts):
    seeds, mode = torch.tensor([7, 8, 9]), {"do_sample": True, "top_k": 5, "temperature": 1.5}
    state = torch.get_rng_state()
    together = model.generate(**prompts, row_seeds=seeds, **mode)
    assert torch.equal(torch.get_rng_state(), state)
    assert_finished(together, prompts, model.config)
    for row in range(len(FRAMES)):
        prompt = {name: values[row : row + 1] for name, values in prompts.items()}
        alone = model.generate(**prompt, row_seeds=seeds[row : row + 1], **mode)
        assert strip(alone[0], model.config) == strip(together[row], model.config)
    other = model.generate(**prompts, row_seeds=seeds + 1, **mode)
    assert not torch.equal(other, together)
    for wrong in ({}, {"do_sample": True, "num_beams": 2}):
        with pytest.raises(ValueError, match="row_seeds draw one id a token"):
            model.generate(**prompts, row_seeds=seeds, **wrong)


def test_noise_is_the_same_in_any_company_and_of_no_two_rows():
    seeds, ids = torch.tensor([[1], [-5], [2**63 - 1]]), torch.arange(1000)
    noise = gumbel_noise(seeds, 3, ids)
    assert torch.equal(gumbel_noise(seeds[1:2], 3, ids[10:20]), noise[1:2, 10:20])
    assert torch.equal(gumbel_noise(seeds, torch.tensor([[3], [3], [3]]), ids), noise)
    streams = torch.cat([noise, gumbel_noise(seeds, 4, ids), gumbel_noise(seeds + 1, 3, ids)])
    assert streams.isfinite().all()
    assert -3 < streams.min() and streams.max() < 17  # of 23 bits: -log(24 log 2) to 24 log 2
    correlations = torch.corrcoef(streams) - torch.eye(len(streams))
    assert correlations.abs().max() < 0.15  # five standard deviations of 1000 independent pairs


def test_a_users_processor_chooses_among_legal_ids(model, prompts):
    class LastCode(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.arange(scores.shape[1], dtype=scores.dtype).expand_as(scores)

    ids = model.generate(**prompts, logits_processor=LogitsProcessorList([LastCode()]))
    assert_finished(ids, prompts, model.config)
    clean = ids[0, prompts["input_ids"].shape[1] : -1]
    assert set(((clean - model.config.first_code_id) % model.config.codebook_size).tolist()) == {15}


def test_scores_leave_only_the_codebook_that_is_due(model, prompts):
    out = model.generate(**prompts, return_dict_in_generate=True, output_scores=True)
    assert len(out.scores) == out.sequences.shape[1] - prompts["input_ids"].shape[1]
    for token, scores in enumerate(out.scores[:-1]):  # row 0 is the longest; the last of its tokens is eos
        first = model.config.first_code_id + token % model.config.num_codebooks * model.config.codebook_size
        assert scores[0].isfinite().nonzero()[:, 0].tolist() == list(range(first, first + model.config.codebook_size))


def forced_ids(model, seed=0):
    """Random codes for FRAMES, about half of them left free; as wide as the longest row."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = len(FRAMES), max(FRAMES) * config.num_codebooks
    first = config.first_code_id + torch.arange(shape[1]) % config.num_codebooks * config.codebook_size
    forced = first + torch.randint(config.codebook_size, shape, generator=generator)
    return forced.masked_fill(torch.rand(shape, generator=generator) < 0.5, -1)


def test_forced_ids_come_and_the_rest_is_the_naive_loop_around_them(model, prompts):
    forced = forced_ids(model)
    assert (forced < 0).any() and (forced >= 0).any()
    ids = model.generate(**prompts, forced_ids=forced)
    for row in range(len(FRAMES)):
        assert strip(ids[row], model.config) == naive_loop(model, unpadded(prompts, row), forced=forced[row])


@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": True, "top_k": 2, "num_return_sequences": 2},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=str,
)
def test_forced_ids_come_in_every_mode(model, prompts, mode):
    forced = forced_ids(model)
    ids = model.generate(**prompts, forced_ids=forced, **mode)
    assert_finished(ids, prompts, model.config)
    forced = forced.repeat_interleave(len(ids) // len(forced), dim=0)
    length = prompts["input_ids"].shape[1]
    is_code = ids[:, length:-1] >= model.config.first_code_id
    must = is_code & (forced >= 0)
    assert must.any() and torch.equal(ids[:, length:-1][must], forced[must])


def test_forced_ids_reach_an_assistant_and_a_begun_row(model, prompts):
    prompt, forced = unpadded(prompts, 0)[None], forced_ids(model)[:1]
    expected = model.generate(prompt, forced_ids=forced)
    assert torch.equal(model.generate(prompt, forced_ids=forced, assistant_model=tiny_model(seed=1)), expected)
    assert torch.equal(model.generate(expected[:, : prompt.shape[1] + 4], forced_ids=forced), expected)


def test_with_code_vectors_the_code_of_the_least_risk_comes(model, prompts, greedy):
    vectors = tiny_code_vectors(model.config)
    ids = model.generate(**prompts, logits_processor=[MinimumRiskLogitsProcessor(vectors)])
    assert_finished(ids, prompts, model.config)
    assert not torch.equal(ids, greedy)
    for row in range(len(FRAMES)):
        assert strip(ids[row], model.config) == naive_loop(model, unpadded(prompts, row), vectors=vectors)


@pytest.mark.parametrize(
    "mode",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True},
        {"assistant_model": tiny_model(seed=1)},
    ],
    ids=str,
)
def test_code_vectors_and_forced_ids_give_the_same_in_every_mode(model, prompts, mode):
    prompt, forced = unpadded(prompts, 0)[None], forced_ids(model)[:1]
    risk = model.risk_processor(tiny_code_vectors(model.config))
    given = {"input_ids": prompt, "forced_ids": forced, "logits_processor": [risk]}
    out = model.generate(**given, **mode)
    assert torch.equal(out if torch.is_tensor(out) else out.sequences, model.generate(**given))


def test_code_vectors_that_do_not_fit_are_refused(model, prompts):
    for vectors in (torch.zeros(2, 16, 4), torch.zeros(3, 16)):
        with pytest.raises(ValueError, match=r"code_vectors have shape \(.*, but this model speaks 3 codebooks of 16"):
            model.risk_processor(vectors)
    with pytest.raises(ValueError, match="of 2 codebooks of 16 codes, but the model has 48 codes"):
        model.generate(**prompts, logits_processor=[MinimumRiskLogitsProcessor(torch.zeros(2, 16, 4))])


@given(
    num_codebooks=st.integers(1, 4),
    codebook_size=st.integers(1, 9),
    rows=st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=4),
)
def test_schedule_is_that_of_a_naive_loop(num_codebooks, codebook_size, rows):
    config = tiny_config(num_codebooks=num_codebooks, codebook_size=codebook_size)
    noisy = [frames * num_codebooks for frames, _ in rows]
    begun = [int(share * count) for count, (_, share) in zip(noisy, rows, strict=True)]
    width = 2 * max(noisy) + 2
    first = [5 + codebook * codebook_size for codebook in range(num_codebooks)] * 4
    prompts = torch.tensor(
        [[1] * (width - 2 - n - b) + [0] + first[:n] + [3] + first[:b] for n, b in zip(noisy, begun, strict=True)]
    )
    longest = max(count - start for count, start in zip(noisy, begun, strict=True))

    def legal(token, count):
        first = 5 + token % num_codebooks * codebook_size
        return [first, first + codebook_size] if token < count else [2, 3] if token == count else [1, 2]

    expected = [
        [legal(token, count) for token in range(start, start + longest + 2)]
        for count, start in zip(noisy, begun, strict=True)
    ]
    lowest, stop = draw_schedule(prompts, config)
    assert torch.stack([lowest, stop], -1).tolist() == expected


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([0, 5, 21, 37], r"row 0 of the prompt has 0 start_clean tokens \(id 3\)"),
        ([0, 3], "row 0 of the prompt has 0 noisy tokens, not one or more whole frames of 3 codebooks"),
        ([0, 5, 21, 3], "row 0 of the prompt has 2 noisy tokens, not one or more whole frames of 3 codebooks"),
        ([0, *[5, 21, 37] * 11, 3], "11 frames, but a context of 64 tokens holds 10: enhance shorter windows"),
        ([0, 5, 21, 37, 3, 5, 21, 37, 5], "id 5 at token 8 .* comes after as many clean tokens as noisy ones"),
        ([0, 5, 21, 37, 3, 5, 21, 37, 2, 2], "id 2 at token 9 .* comes after as many clean tokens as noisy ones"),
        ([0, 21, 5, 37, 3], "id 21 at token 1 of row 0 of the prompt is not of codebook 0"),
        ([0, 5, 21, 53, 3], "id 53 at token 3 of row 0 of the prompt is not of codebook 2"),
        ([0, 5, 21, 37, 3, 21], "id 21 at token 5 of row 0 of the prompt is not of codebook 0"),
        ([0, 5, 21, 37, 3, 1], "id 1 at token 5 .* padding on the left"),
        ([0, 5, 21, 37, 3, 5, 21, 2], "id 2 at token 7 of row 0 of the prompt is not of codebook 2"),
        ([0, 5, 21, 37, 3, 3], "has 2 start_clean tokens"),
        ([0, 5, 21, 4, 37, 3], "id 21 at token 2 of row 0 of the prompt is not of codebook 0"),
    ],
)
def test_wrong_prompts_are_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))


def test_the_row_that_is_wrong_is_named(model, prompts):
    input_ids = prompts["input_ids"].clone()
    input_ids[2, 5] = 5
    with pytest.raises(ValueError, match="id 5 at token 5 of row 2 of the prompt is not of codebook 1"):
        model.generate(input_ids, attention_mask=prompts["attention_mask"])


@pytest.mark.parametrize("eos_token_id", [None, 7])
def test_another_eos_is_refused(model, prompts, eos_token_id):
    with pytest.raises(ValueError, match=f"eos_token_id is {eos_token_id}, but this model ends a row with 2"):
        model.generate(**prompts, eos_token_id=eos_token_id)


def test_inputs_embeds_are_refused(model, prompts):
    with pytest.raises(ValueError, match="inputs_embeds hide the codes .* give input_ids"):
        model.generate(inputs_embeds=model.get_input_embeddings()(prompts["input_ids"]))


@pytest.mark.parametrize(
    "forced, message",
    [
        ([[-1, -1]], r"forced_ids has shape \(1, 2\), but the prompts' clean tokens make \(1, 3\)"),
        ([[-1, 5, -1]], r"forced_ids\[0, 1\] is 5, but this token's codebook has the ids 21 to 36"),
        ([[-1, -1, -2]], r"forced_ids\[0, 2\] is -2, but this token's codebook has the ids 37 to 52"),
    ],
)
def test_wrong_forced_ids_are_refused(model, forced, message):
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[0, 5, 21, 37, 3]]), forced_ids=torch.tensor(forced))
