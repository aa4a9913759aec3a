"""Degradations do what their parameters say, the same for the same seed, and recipes refuse what makes no sense."""

from pathlib import Path

import numpy as np
import pyroomacoustics
import pytest
import yaml

from tests.tiny_corpus import RATE, voice
from training_dacse.clips import degradations as d
from training_dacse.clips.degradations import KINDS
from training_dacse.clips.recipe import Recipe, lowest_snr
from training_dacse.clips.rooms import SimulatedRooms, simulate_room

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = EXAMPLES / "configs"
CLEAN = np.stack([voice(0, 4.0), voice(1, 4.0)])  # two channels
RNG = np.random.default_rng


def hum(num_samples, sampling_rate, rng):
    return 0.3 * rng.standard_normal((1, num_samples)).astype(np.float32), "hum"


def echo(sampling_rate, rng):
    response = np.zeros(sampling_rate // 4, np.float32)
    response[[30, 30 + sampling_rate // 10]] = 1.0, 0.5
    return response, "echo"


SOURCES = {"noise": hum, "music": hum, "speech": hum, "room": echo, "small_room": echo}
ALL = [cls(SOURCES[source]) if source else cls() for cls, source in KINDS.values()]


def ratio_db(signal, other):
    return 20 * np.log10(d.rms(signal) / d.rms(other))


@pytest.mark.parametrize("degradation", ALL, ids=list(KINDS))
def test_a_degradation_keeps_shape_is_pure_and_follows_its_seed(degradation):
    before = CLEAN.copy()
    first, drawn = degradation(CLEAN, RATE, RNG((3, 5)))
    again, drawn_again = degradation(CLEAN, RATE, RNG((3, 5)))
    other, _ = degradation(CLEAN, RATE, RNG((3, 6)))
    assert first.shape == CLEAN.shape and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(CLEAN, before)
    np.testing.assert_array_equal(first, again)
    assert drawn == drawn_again
    assert not np.array_equal(first, other)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="Other cannot be 'clipping', which is Clipping; choose another name"):
        d.kind("clipping")(type("Other", (d.Clipping,), {}))
    assert d.kind("clipping")(d.Clipping) is KINDS["clipping"][0]  # as a notebook does that runs a cell again


@pytest.mark.parametrize(
    "degradation", [d.WhiteNoise(), d.BackgroundSound(hum), d.Babble(hum, speakers=(2, 4)), d.Reverberation(echo)]
)
def test_what_is_added_stands_at_the_drawn_ratio(degradation):
    for index in range(5):
        noisy, drawn = degradation(CLEAN, RATE, RNG((0, index)))
        low, high = getattr(degradation, "snr_db", None) or degradation.dry_to_wet_db
        expected = lowest_snr({"it": drawn})
        assert low <= expected <= high
        assert ratio_db(CLEAN, noisy - CLEAN) == pytest.approx(expected, abs=0.01)  # float32 sums


def test_packet_loss_drops_whole_packets_at_the_drawn_rate():
    loss = d.PacketLoss((100, 200), (0.1, 0.3))
    waveform = np.ones((1, 600 * RATE), np.float32)
    noisy, drawn = loss(waveform, RATE, RNG(0))
    assert 0.1 <= drawn["drop_probability"] <= 0.3 and 100 <= drawn["packet_ms"] <= 200
    # about 4,000 packets: a standard deviation of 0.007
    assert 1 - noisy.mean() == pytest.approx(drawn["drop_probability"], abs=0.025)
    length = round(drawn["packet_ms"] / 1000 * RATE)
    starts = np.round(np.array(drawn["lost_seconds"]) * RATE).astype(int)
    expected = waveform.copy()
    for start in starts:
        expected[:, start : start + length] = 0
    np.testing.assert_array_equal(noisy, expected)


@pytest.mark.parametrize("name", ["down_sampling", "low_pass"])
def test_nothing_is_left_well_above_the_cut_off(name):
    noise = RNG(0).standard_normal((1, 4 * 44100)).astype(np.float32)
    degradation = {"down_sampling": d.DownSampling(), "low_pass": d.LowPass()}[name]
    noisy, drawn = degradation(noise, 44100, RNG(1))
    cutoff = drawn["rate"] / 2 if "rate" in drawn else drawn["cutoff_hz"]
    power = np.abs(np.fft.rfft(noisy[0])) ** 2
    frequency = np.fft.rfftfreq(noisy.shape[-1], 1 / 44100)
    above, below = power[frequency > 1.6 * cutoff].mean(), power[frequency < 0.6 * cutoff].mean()
    assert 10 * np.log10(above / below) < -20
    assert ratio_db(noise, noise) == 0 and 10 * np.log10(below / (np.abs(np.fft.rfft(noise[0])) ** 2).mean()) > -1


def test_clipping_cuts_at_the_drawn_threshold():
    noisy, drawn = d.Clipping((6.0, 6.0))(CLEAN, RATE, RNG(0))
    threshold = np.abs(CLEAN).max() * 10 ** (-6 / 20)
    assert drawn["below_peak_db"] == 6.0
    assert np.abs(noisy).max() == pytest.approx(threshold)
    np.testing.assert_array_equal(noisy[np.abs(CLEAN) < threshold], CLEAN[np.abs(CLEAN) < threshold])


@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_lossy_codecs_stay_aligned(name):
    noisy, _ = d.LossyCodec((name,), (16000,), (0.6, 0.6))(CLEAN[:1], RATE, RNG(0))
    lags = range(-40, 41)
    score = [np.dot(np.roll(CLEAN[0], lag), noisy[0]) for lag in lags]
    assert abs(lags[int(np.argmax(score))]) <= 1


def test_simulated_rooms_are_reproducible_and_decay():
    rooms = SimulatedRooms(count=2, seed=1)
    response, name = rooms(16000, RNG(0))
    np.testing.assert_array_equal(response, SimulatedRooms(count=2, seed=1)(16000, RNG(0))[0])
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    assert name.startswith("simulated 1/")
    assert energy[len(energy) // 2] < 0.1 * energy[0]


def test_simulated_rooms_do_not_depend_on_the_number_of_cores():
    rooms = []
    for threads in (1, 8):
        pyroomacoustics.constants.set("num_threads", threads)  # its default is the number of cores
        rooms.append([simulate_room(RNG((0, number))) for number in range(30)])
    assert all(np.array_equal(one, eight) for one, eight in zip(*rooms, strict=True))


def test_the_paper_recipe_is_the_released_table():
    recipe = Recipe.from_yaml(CONFIGS / "recipe_paper.yaml", SOURCES)
    table = {  # dac_se1.md: task -> weight, then (kind, probability, ranges)
        "clean": (2, []),
        "white_noise": (1, [("white_noise", 1, {"snr_db": (5, 25)})]),
        "packet_loss": (1, [("packet_loss", 1, {"packet_ms": (100, 200), "drop_probability": (0.1, 0.3)})]),
        "white_noise_packet_loss": (
            1,
            [
                ("white_noise", 1, {"snr_db": (5, 25)}),
                ("packet_loss", 1, {"packet_ms": (50, 200), "drop_probability": (0.02, 0.2)}),
            ],
        ),
        "reverberation": (2, [("reverberation", 1, {"dry_to_wet_db": (0, 15)})]),
        "down_sampling": (2, [("down_sampling", 1, {"rates": tuple(range(3500, 8001, 500))})]),
        "natural_noise": (
            3,
            [("natural_noise", 1, {"snr_db": (-5, 15)}), ("reverberation", 0.1, {"dry_to_wet_db": (0, 15)})],
        ),
        "mixture": (
            10,
            [
                ("down_sampling", 0.25, {}),
                ("white_noise", 0.2, {"snr_db": (-7, 5)}),
                ("packet_loss", 0.05, {"packet_ms": (10, 200), "drop_probability": (0.02, 0.2)}),
                ("natural_noise", 0.7, {"snr_db": (-8, 15)}),
                ("reverberation", 0.05, {"dry_to_wet_db": (-2, 15)}),
            ],
        ),
    }
    assert recipe.clip_seconds == (1, 4)
    assert list(recipe.tasks) == list(table)
    for name, (weight, steps) in table.items():
        task = recipe.tasks[name]
        assert task.weight == weight and len(task.steps) == len(steps)
        for step, (kind, probability, ranges) in zip(task.steps, steps, strict=True):
            assert (step.kind, step.probability) == (kind, probability)
            assert {key: tuple(getattr(step.degradation, key)) for key in ranges} == ranges
    otherwise = recipe.tasks["mixture"].otherwise
    assert (otherwise.kind, otherwise.probability, otherwise.degradation.snr_db) == ("natural_noise", 0.9, (-5, 15))


def test_tasks_are_drawn_by_weight_and_pairs_share_one_gain():
    recipe = Recipe({"tasks": {"clean": {"weight": 3}, "loud": {"weight": 1, "steps": [{"kind": "white_noise"}]}}})
    tasks = []
    for index in range(400):
        noisy, clean, task, _ = recipe.degrade(3 * CLEAN[:1, :100], RATE, RNG((0, index)))
        tasks.append(task)
        assert max(np.abs(noisy).max(), np.abs(clean).max()) <= 1
        if task == "clean":
            np.testing.assert_array_equal(noisy, clean)
    assert tasks.count("clean") == pytest.approx(300, abs=30)  # 3.5 standard deviations


def test_a_pause_silences_the_beginning_the_end_or_all_of_both():
    recipe = Recipe({"pause": 0.5, "tasks": {"clean": {}}})
    clean, rng = np.ones((1, 400), np.float32), np.random.default_rng(0)  # 4 s
    found = []
    for _ in range(800):
        noisy, silenced, _, _ = recipe.degrade(clean, 100, rng)
        np.testing.assert_array_equal(noisy, silenced)
        found.append((silenced.any(), *(silenced[0, [0, -1]] == 0)))
    kinds = ((False, True, True), (True, True, False), (True, False, True))
    whole, begins, ends = (found.count(kind) for kind in kinds)
    # pauses of 9 s on average: 5 of 13 cover the clip, and as many begin in it as end in it
    assert 110 < whole < 200 and 80 < begins < 170 and 80 < ends < 170
    assert found.count((True, False, False)) == pytest.approx(400, abs=60)
    with pytest.raises(ValueError, match=r"pause is 2; it is a probability"):
        Recipe({"pause": 2, "tasks": {"clean": {}}})


def test_noise_goes_on_in_a_pause_as_loud_as_behind_speech():
    silence = np.zeros((1, 4 * RATE), np.float32)
    for degradation in (d.WhiteNoise((10, 10)), d.BackgroundSound(hum, (10, 10))):
        noisy, _ = degradation(silence, RATE, RNG(0))
        assert d.rms(noisy) == pytest.approx(d.SPEECH_RMS * 10**-0.5, rel=1e-3)


def test_sudden_noise_has_its_ratio_while_it_lasts():
    noise, lasting = d.BackgroundSound(hum, (5, 5), sudden=1.0), []
    for index in range(20):
        noisy, drawn = noise(CLEAN, RATE, RNG((0, index)))
        start, stop = (round(drawn[name] * RATE) for name in ("start_seconds", "stop_seconds"))
        added, slope = noisy - CLEAN, round(d.SLOPE_SECONDS * RATE) + 1
        assert not added[:, : max(0, start - slope)].any() and not added[:, stop + slope :].any()
        if stop - start > RATE // 2:
            assert ratio_db(CLEAN, added[:, start:stop]) == pytest.approx(5, abs=0.3)
        lasting.append(stop - start)
    assert min(lasting) < RATE < max(lasting)
    with pytest.raises(ValueError, match="sudden is 3; it is a probability"):
        d.BackgroundSound(hum, sudden=3)


def test_every_shipped_recipe_reads():
    recipes = sorted(CONFIGS.glob("recipe_*.yaml"))
    assert len(recipes) >= 2
    for path in [*recipes, *EXAMPLES.glob("train_tiny/*recipe.yaml")]:
        recipe = Recipe.from_yaml(path, SOURCES)
        assert recipe.fingerprint == Recipe(yaml.safe_load(path.read_text()), SOURCES).fingerprint


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"steps": [{"kind": "white_nose"}]}, "unknown degradation 'white_nose'"),
        ({"steps": [{"kind": "white_noise", "snr_db": [25, 5]}]}, r"snr_db is \[25, 5\]"),
        ({"steps": [{"kind": "white_noise", "snr_db": 5}]}, r"snr_db is 5; give \[lowest, highest\]"),
        ({"steps": [{"kind": "packet_loss", "drop_probability": [0.5, 1.5]}]}, "drop_probability"),
        ({"steps": [{"kind": "down_sampling", "rates": [0]}]}, r"rates is \[0\]"),
        ({"steps": [{"kind": "lossy_codec", "formats": ["aac"]}]}, "some of .*mp3"),
        ({"steps": [{"kind": "white_noise", "probability": 2}]}, "probability is 2"),
        ({"steps": [{"kind": "white_noise", "snr": [0, 5]}]}, "unknown option 'snr'"),
        ({"steps": [{"kind": "natural_noise"}]}, "draws from a noise source and none was given"),
        ({"stepz": []}, "unknown keys"),
        ([{"kind": "white_noise"}], r"task 'mine' is \[.*give it as `steps:"),
        ({"steps": {"kind": "white_noise"}}, "task 'mine' is .*give it as `steps:"),
        ({"steps": ["white_noise"]}, "a step is 'white_noise'; give it as"),
        ({"steps": [{"kind": "white_noise", "probability": "often"}]}, "probability is often"),
        ({"weight": "heavy"}, "weight is 'heavy'; give a number"),
        ({"weight": -1}, "weights"),
    ],
)
def test_an_impossible_recipe_is_refused_by_name(task, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"mine": task}}))
    with pytest.raises(ValueError, match=message) as error:
        Recipe.from_yaml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no tasks"),
        ("tasks: {}", "weights are"),
        ("tasks: [", "line 1"),
        ("clip_seconds: 4\ntasks: {a: }", "clip_seconds is 4"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Recipe.from_yaml(path)
    assert str(path) in str(error.value)
