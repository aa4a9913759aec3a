"""Every format that is read: sample counts, sound, what stands in its header, what is missing or damaged."""

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_dacse.audio_arrays_dacse import AudioWarning
from processing_dacse.audio_dacse import load_audio, stream_audio
from processing_dacse.audio_decoder_dacse import FORMATS, FileDecoder
from tests.sounds import KINDS, add_track, caf, encode, fill_track, speech, video


def read(content: bytes) -> np.ndarray:
    return load_audio(content)[0]


def check_is_as_recorded(kind: str, samples: int, channels: int, rate: int) -> None:
    form = KINDS[kind]
    recorded = speech(samples, rate, channels)
    stream = stream_audio(encode(recorded, kind, rate), block_seconds=0.5)
    waveform = np.concatenate(list(stream.blocks), axis=1)
    assert (stream.sampling_rate, stream.channels, stream.sample_type) == (rate, channels, form.sample_type)
    assert waveform.dtype == np.float32 and waveform.shape[0] == channels
    if form.is_exact:
        assert samples - form.rounding <= waveform.shape[1] <= samples
    if form.error is None:
        return
    heard = waveform[:, max(0, form.delay) :]
    recorded = recorded[:, max(0, -form.delay) :]
    length = min(heard.shape[1], recorded.shape[1])
    assert length > 0.8 * recorded.shape[1]
    difference = heard[:, :length] - recorded[:, :length]
    assert np.sqrt(np.mean(np.square(difference, dtype=np.float64))) <= form.error


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_as_it_was_recorded(kind):
    for channels in KINDS[kind].channels:
        check_is_as_recorded(kind, 30_001, channels, KINDS[kind].rate)
    check_is_as_recorded(kind, KINDS[kind].shortest, 1, KINDS[kind].rate)


def any_recording(longest: int) -> st.SearchStrategy:
    return st.sampled_from(sorted(KINDS)).flatmap(
        lambda kind: st.tuples(
            st.just(kind),
            st.integers(KINDS[kind].shortest, longest),
            st.sampled_from(KINDS[kind].channels),
            st.sampled_from((KINDS[kind].rate, *KINDS[kind].other_rates)),
        )
    )


@given(any_recording(12_000))
@settings(deadline=None, max_examples=40)
def test_so_is_any_length_and_rate_of_any_of_them(recording):
    check_is_as_recorded(*recording)


@pytest.mark.slow
@given(any_recording(200_000))
@settings(deadline=None, max_examples=1500)
def test_so_is_any_length_and_rate_of_any_of_them_in_full(recording):
    check_is_as_recorded(*recording)


def test_rarer_forms_of_the_formats_are_read_too():
    recorded, big_endian = speech(30_000, 44100, 2), io.BytesIO()
    soundfile.write(big_endian, recorded.T, 44100, format="WAV", endian="BIG")
    np.testing.assert_allclose(read(big_endian.getvalue()), recorded, rtol=0, atol=2**-15)
    for container, coding in (("mov", "pcm_s24le"), ("mp2", "mp2"), ("ipod", "alac"), ("matroska", "flac")):
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            fill_track(output, add_track(output, coding, 44100, 2), recorded)
        waveform = read(file.getvalue())
        assert 30_000 <= waveform.shape[1] < 32_000 and waveform.shape[0] == 2, container


@pytest.mark.parametrize("samples", [1, 4096, 4097, 30_000, 44_100])
def test_an_alac_in_a_caf_has_as_many_samples_as_were_recorded(samples):
    recorded, file = speech(samples, 44100), io.BytesIO()
    with av.open(file, "w", format="caf") as output:
        fill_track(output, add_track(output, "alac", 44100), recorded)
    np.testing.assert_allclose(read(file.getvalue()), recorded, rtol=0, atol=2**-23)


def test_an_id3_tag_before_another_format_is_passed_over(recwarn):
    tag = b"ID3\3\0\0\0\0\0\x0fTIT2\0\0\0\5\0\0\0Song"
    content = tag + encode(speech(30_000, 44100), "flac")
    assert read(content).shape == (1, 30_000) and stream_audio(content).tags["title"] == "Song"
    assert read(content + bytes(5000)).shape == (1, 30_000) and read(content * 2).shape == (1, 60_000)
    assert not recwarn.list


RATES = {
    "wav": [1000, 8000, 11025, 44100, 96000, 192000, 384000, 1_000_000],
    "flac": [1000, 8000, 44100, 96000, 192000, 655350],
    "mp3": [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000],
    "opus": [8000, 12000, 16000, 24000, 48000],
    "ogg": [8000, 16000, 44100, 96000, 192000],
}


@pytest.mark.parametrize(("kind", "rate"), [(kind, rate) for kind, rates in RATES.items() for rate in rates])
def test_every_rate_a_format_holds_is_read(kind, rate):
    form, file = KINDS[kind], io.BytesIO()
    soundfile.write(file, speech(2000, rate)[0], rate, form.coding, format=form.container)
    waveform, rate_read = load_audio(file.getvalue())
    kept = 48000 if kind == "opus" else rate  # Opus tells the rate, and decodes at this one (RFC 7845, section 5.1)
    assert (rate_read, waveform.shape[1]) == (kept, 2000 * kept // rate)


@pytest.mark.parametrize("channels", [3, 6, 8, 16])
def test_many_channels_keep_their_order(channels):
    recorded = np.arange(channels, dtype=np.float32)[:, None].repeat(1000, 1) / 32
    waveform = read(encode(recorded, "wav"))
    np.testing.assert_array_equal(waveform, recorded)


@pytest.mark.parametrize(("coding", "container"), [("aac", "ipod"), ("libopus", "opus"), ("flac", "flac")])
def test_so_do_those_of_coded_formats(coding, container):
    levels, file = np.arange(1, 9, dtype=np.float32)[:, None] / 8, io.BytesIO()
    recorded = speech(24_000, 48_000) * levels
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(coding, rate=48_000, layout="7.1")
        interleaved = np.ascontiguousarray(recorded.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout="7.1")
        frame.sample_rate = 48_000
        output.mux([packet for part in (frame, None) for packet in stream.encode(part)])
    heard = read(file.getvalue()).std(axis=1)
    assert (np.abs(heard / recorded.std(axis=1) - 1) < 0.2).all()


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (3, 1, 2, 4, 6, 5), (33, 34), (1, 1)])
def test_channels_that_stand_in_an_order_of_their_own_are_read_in_it(order):
    samples = np.arange(len(order))[:, None] * 1000 + np.arange(500)
    np.testing.assert_array_equal(read(caf(samples, order)) * 2**15, samples)


def test_the_first_sound_of_a_video_is_read():
    first, second = speech(48000, 48000, seed=1), speech(48000, 48000, seed=2)
    waveform = read(video([first, second]))
    assert waveform.shape == (1, 48000)
    assert np.abs(waveform - first).mean() < 0.2 * np.abs(waveform - second).mean()
    assert read(video([first], container="webm", sound="libopus")).shape == (1, 48000)


def test_sound_that_begins_after_the_picture_is_read_from_its_first_sample(recwarn):
    recorded = speech(24000, 48000)
    # FFmpeg writes the delay of the encoder, 1024 samples, as sound here
    assert read(video([recorded], delay=24000)).shape == (1, 24000 + 1024)
    assert not recwarn.list


def test_a_video_without_sound_is_refused():
    with pytest.raises(ValueError, match="the given bytes has no sound, only video; give a recording with sound"):
        read(video([]))


def test_tags_are_read_from_wherever_a_format_has_them():
    for container, coding in (("wav", "pcm_s16le"), ("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame")):
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            output.metadata.update({"title": "Täg", "artist": "Somebody"})
            stream = output.add_stream(coding, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(speech(4800, 48000), format="fltp", layout="mono")
            frame.sample_rate = 48000
            output.mux([packet for part in (frame, None) for packet in stream.encode(part)])
        tags = stream_audio(file.getvalue()).tags
        assert (tags["title"], tags["artist"]) == ("Täg", "Somebody"), container


def test_a_header_gives_an_estimate_or_none():
    assert stream_audio(encode(speech(48000, 48000), "flac")).estimated_samples == 48000
    assert stream_audio(encode(speech(48000, 48000), "webm of a browser")).estimated_samples is None


def test_formats_that_name_other_files_are_not_among_those_that_are_read():
    assert not {"concat", "hls", "dash", "sdp", "image2", "lavfi", "rtsp"} & set(FORMATS.split(","))
    with pytest.raises(ValueError, match="it is of no format that is read"):
        read(b"ffconcat version 1.0\nfile /etc/passwd\n")


LISTED = {
    "WAV": "wav", "RF64": "wav", "RIFX": "wav", "W64": "w64", "AIFF": "aiff", "AU": "au", "CAF": "caf",
    "NIST SPHERE": "nistsphere", "FLAC": "flac", "ALAC": "mov", "MP3": "mp3", "MP2": "mp3", "AAC": "aac",
    "Ogg Vorbis": "ogg", "Opus": "ogg", "WMA": "asf", "AMR": "amr", "MP4": "mov", "M4A": "mov", "MOV": "mov",
    "3GP": "mov", "WebM": "matroska", "Matroska": "matroska", "AVI": "avi", "FLV": "flv", "ASF": "asf",
    "transport streams": "mpegts", "MPEG": "mpeg",
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "first", "last"),
    [("README.md", "It reads ", "from a path"), ("docs/guides/enhance.md", "| samples as they are |", "| from |")],
)
def test_the_pages_for_users_list_every_format_that_is_read_and_no_other(page, first, last):
    assert set(LISTED.values()) == set(FORMATS.split(","))
    text = (Path(__file__).parents[1] / page).read_text().split(first)[1].split(last)[0]
    for name in sorted(LISTED, key=len, reverse=True):
        assert name in text, name
        text = text.replace(name, "")
    assert not re.findall(r"\w*[A-Z]\w*", text)


CUT = [
    kind for kind in KINDS if kind not in ("webm of a browser", "mpegts", "mpeg", "m4a", "alac", "3gp", "mp4 of opus")
]


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_is_read_as_far_as_it_goes_and_called_so(kind):
    form = KINDS[kind]
    content = encode(speech(4 * form.rate, form.rate), kind)
    with pytest.warns(AudioWarning, match="it was cut|may have been cut") as caught:
        waveform = read(content[: len(content) * 5 // 8])
    assert 0.4 < waveform.shape[1] / (4 * form.rate) < 0.7
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["m4a", "alac", "3gp", "mp4 of opus"])
def test_an_mp4_whose_end_with_the_index_was_cut_off_is_refused(kind):
    content = encode(speech(30_000, KINDS[kind].rate), kind)
    with pytest.raises(ValueError, match="cannot be read as audio .its index is missing"):
        read(content[: len(content) // 2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read_without_a_word(kind, recwarn):
    read(encode(speech(30_000, KINDS[kind].rate), kind))
    assert not recwarn.list


JOINED = [kind for kind in KINDS if kind not in ("mkv",)]


@pytest.mark.parametrize("kind", JOINED)
def test_recordings_put_end_to_end_are_read_to_the_last(kind, recwarn):
    form = KINDS[kind]
    parts = [speech(samples, form.rate, seed=seed) for seed, samples in enumerate((20_011, 30_000, 9_000))]
    contents = [encode(part, kind) for part in parts]
    waveform = read(b"".join(contents))
    apart = np.concatenate([read(content) for content in contents], axis=1)
    if kind in ("aac", "mpegts", "mpeg"):  # without a beginning: one stream, which the decoder does not begin anew
        assert abs(waveform.shape[1] - apart.shape[1]) <= 2 * 2048
    else:
        np.testing.assert_array_equal(waveform, apart)
    assert not recwarn.list


def test_parts_that_do_not_fit_together_are_refused():
    mono, stereo = encode(speech(2000, 44100), "wav"), encode(speech(2000, 44100, 2), "wav")
    with pytest.raises(ValueError, match="begins in 44100 Hz with 1 channel, and recording 2 of 2 in it"):
        read(mono + stereo)


def test_sound_that_is_missing_in_the_middle_is_silent_there_and_called_so():
    recorded = speech(10 * 44100, 44100)
    content = bytearray(encode(recorded, "flac"))
    content[len(content) // 2] ^= 1
    with pytest.warns(
        AudioWarning, match="lacks 0.0929 s in one place, at .* s .damaged, or paused.: read as silence"
    ):
        waveform = read(bytes(content))
    assert waveform.shape == recorded.shape
    lost = np.flatnonzero(waveform[0] == 0)
    assert lost[-1] - lost[0] + 1 >= 4096  # a frame of FLAC
    rest = np.ones(recorded.shape[1], bool)
    rest[lost[0] : lost[-1] + 1] = False
    np.testing.assert_allclose(waveform[:, rest], recorded[:, rest], rtol=0, atol=2**-15)


def test_a_page_of_an_ogg_that_is_damaged_is_silent_and_the_rest_stays_in_its_place():
    recorded = speech(20 * 48000, 48000)
    content = bytearray(encode(recorded, "opus"))
    content[len(content) // 2] ^= 1
    with pytest.warns(AudioWarning, match="lacks .* s in one place"):
        waveform = read(bytes(content))
    assert waveform.shape == recorded.shape
    end = slice(18 * 48000, None)
    assert np.sqrt(np.mean((waveform[:, end] - recorded[:, end]) ** 2)) < 0.03


def with_pauses(starts: tuple[int, ...], rate: int) -> bytes:
    """A recording of a call: a fiftieth of a second at each of some seconds, and nothing between them."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start in starts:
            samples = (speech(rate // 50, rate) * 2**15).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start * rate
            output.mux(stream.encode(frame))
    return file.getvalue()


def test_who_was_muted_for_minutes_of_a_call_is_silent_there_which_is_said():
    content = with_pauses((0, 1, 901), 8000)
    with pytest.warns(AudioWarning, match="lacks 901 s in 2 places, first at 0.02 s"):
        waveform = read(content)
    assert waveform.shape == (1, 901 * 8000 + 160)
    np.testing.assert_array_equal(waveform[:, 901 * 8000 :], waveform[:, :160])
    assert waveform.any() and not waveform[:, 8160 : 901 * 8000].any()


def test_more_missing_than_there_is_ends_in_an_error():
    with pytest.raises(ValueError, match="is damaged: 3599.98 s are missing after 0.02 s"):
        read(with_pauses((0, 3600), 8000))


def test_samples_louder_than_any_recording_are_named():
    with pytest.raises(ValueError, match="reaches 12345 at sample 700, where full scale is 1; divide it by its own"):
        waveform = np.zeros((1, 1000), np.float32)
        waveform[0, 700] = 12345
        read(encode(waveform, "wav of floats"))


def test_a_decoder_leaves_the_file_it_is_given_open():
    file = io.BytesIO(encode(speech(1000, 44100), "wav"))
    assert sum(block.shape[1] for block in FileDecoder(file, "it").blocks(0.01)) == 1000
    assert not file.closed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
@pytest.mark.parametrize("reads", [1, 30])
def test_what_goes_wrong_while_a_file_is_read_is_raised_as_it_is(error, reads):
    class Failing(io.BytesIO):
        left = 3 + reads  # some to look where its parts are

        def read(self, *args):
            self.left -= 1
            if self.left < 0:
                raise error
            return super().read(*args)

    with pytest.raises(type(error)):
        list(FileDecoder(Failing(encode(speech(20 * 44100, 44100), "wav")), "it").blocks(1.0))
