"""A model that a server runs: its answers are those of the model here; what it cannot be asked for is refused."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from command_dacse.cli import app
from hub_upload.doors.served import ServedModel
from pipeline_dacse import EnhanceOptions, Enhancer
from tests.tiny import tiny_config, tiny_pipeline

AUDIO = 0.3 * np.random.default_rng(0).standard_normal((2, 900)).astype(np.float32)
RATE = 8000  # of the tiny codec


class Server(ThreadingHTTPServer):
    """Answers as vLLM does, with a model of ours."""

    request_queue_size = 128

    def __init__(self, model):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.asked, self.answer, self.lock = model, [], None, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, request: dict) -> list[int]:
        prompt = torch.tensor([request["prompt"]])
        sampling = {"do_sample": request["temperature"] > 0}
        if sampling["do_sample"]:
            sampling |= {"row_seeds": torch.tensor([request["seed"]]), "temperature": request["temperature"]}
        with self.lock:
            self.asked.append(request)
            return self.model.generate(input_ids=prompt, **sampling)[0, prompt.shape[1] :].tolist()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        assert self.path == "/v1/models"
        self.reply({"data": [{"id": "the model"}]})

    def do_POST(self):
        assert self.path == "/v1/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert request["model"] == "the model" and request["return_token_ids"]
        ids = self.server.answer or self.server.complete(request)
        if isinstance(ids, str):
            self.send_error(400, ids)
        else:
            self.reply({"choices": [{"token_ids": ids[: request["max_tokens"]]}]})

    def reply(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def server(pipe):
    server = Server(pipe.model)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def served(pipe, server):
    return Enhancer(ServedModel(tiny_config(), server.url), pipe.processor)


def enhanced(enhancer: Enhancer, **options) -> np.ndarray:
    options = EnhanceOptions(sampling_rate=RATE, minimum_risk=False, **options)
    return np.concatenate([piece.audio for piece in enhancer.stream(AUDIO, options)], axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regions": [(0.05, 0.1), (0.105, 0.11)]},
        {"seed": 3, "generate": {"do_sample": True, "temperature": 0.7}},
        {"seed": 3, "candidates": 2, "choose": lambda waveforms, _: np.square(waveforms).mean(1)},
    ],
    ids=["greedy", "regions", "drawn", "the best of two"],
)
def test_a_recording_of_several_windows_comes_back_as_from_weights_here(pipe, server, served, options):
    here = enhanced(Enhancer(pipe.model, pipe.processor), batch_size=5, **options)
    there = enhanced(served, batch_size=5, **options)
    np.testing.assert_array_equal(there, here)
    assert len(server.asked) > 3
    assert all(request["prompt"][0] == pipe.model.config.bos_token_id for request in server.asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum_risk": True}, "pass minimum_risk=False"),
        ({"return_confidence": True}, "leave return_confidence out"),
        ({"candidates": 2}, "choose by something else"),
        ({"generate": {"num_beams": 2}}, "not asked for num_beams"),
        ({"adapter": "dereverb"}, "dereverb"),
    ],
)
def test_what_takes_weights_is_refused(served, options, message):
    with pytest.raises(ValueError, match=message):
        list(served.stream(AUDIO, EnhanceOptions(sampling_rate=RATE, **{"minimum_risk": False} | options)))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([7] * 10_000, ValueError, "leaves the grid of codebooks; start the server with --logits-processors"),
        ([2], ValueError, "leaves the grid"),
        ("so not", OSError, "answered 400: .*so not"),
    ],
)
def test_a_server_that_answers_wrongly_is_named(server, served, answer, error, message):
    server.answer = answer
    with pytest.raises(error, match=message):
        enhanced(served)


def test_a_server_that_is_not_there_is_named(pipe):
    model = ServedModel(tiny_config(), "http://127.0.0.1:9")
    with pytest.raises(OSError, match="the server http://127.0.0.1:9 cannot be reached"):
        enhanced(Enhancer(model, pipe.processor))


def test_the_command_asks_a_server(pipe, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained(tmp_path / "model")
    soundfile.write("in.wav", AUDIO.T, RATE, "FLOAT")
    command = ["enhance", "in.wav", "--model", "model", "--device", "cpu", "--server", server.url]
    result = CliRunner().invoke(app, [*command, "-o", "out.wav"])
    assert result.exit_code == 0, result.output
    assert f"model on {server.url}, up to 64 windows at a time" in result.stderr
    out, _ = soundfile.read("out.wav", dtype="float32", always_2d=True)
    np.testing.assert_array_equal(out.T, enhanced(Enhancer(pipe.model, pipe.processor)))
    for options, message in (
        (["--int8"], "--int8 is for weights that are loaded here"),
        (["--adapter", "a/b"], "--adapter is for weights"),
    ):
        refused = CliRunner().invoke(app, [*command, "-o", "x.wav", *options])
        assert refused.exit_code == 2 and message in refused.stderr
    refused = CliRunner().invoke(app, ["enhance", "in.wav", "-o", "x.wav", "--server", "localhost"])
    assert refused.exit_code == 2 and "give an address such as http://" in refused.stderr
