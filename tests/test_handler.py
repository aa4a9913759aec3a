"""The Inference Endpoint: loaded as the service loads it, from a staged repository, also without the package."""

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import InferenceClient

from hub_upload import fresh_process
from hub_upload.convert import convert
from hub_upload.doors import handler
from tests.tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]
RATE = 8000  # of the tiny codec
AUDIO = 0.3 * np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    tiny_pipeline().save_pretrained(folder / "model")
    convert(str(folder / "model"), folder / "staged")
    return folder / "staged"


@pytest.fixture(scope="module")
def endpoint(repository):
    """The handler, imported from the repository by its path."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", repository / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(repository))


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, AUDIO, RATE, "FLOAT", format="WAV")
    return file.getvalue()


def heard(answer: list[dict]) -> np.ndarray:
    (element,) = answer
    assert (element["label"], element["content-type"]) == ("enhanced", "audio/flac")
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(element["blob"])), dtype="float32")
    assert rate == RATE
    return audio.T


def expected(**parameters) -> np.ndarray:
    return tiny_pipeline()(wav(), **parameters)["audio"].clip(-1, 1)


@pytest.mark.parametrize("parameters", [None, {}, {"strength": 0.5}, {"do_sample": True, "seed": 1}])
def test_bytes_and_their_base64_are_answered_as_the_pipeline_answers(endpoint, parameters):
    for inputs in (wav(), base64.b64encode(wav()).decode()):
        answer = endpoint({"inputs": inputs, "parameters": parameters})
        json.dumps(answer)  # which the service makes of it
        np.testing.assert_allclose(heard(answer), expected(**parameters or {}), atol=2**-23)  # of 24 bits


def test_confidence_comes_along_where_it_is_asked_for(endpoint):
    (element,) = endpoint({"inputs": wav(), "parameters": {"return_confidence": True}})
    there = tiny_pipeline()(wav(), return_confidence=True)["confidence"]
    np.testing.assert_allclose(element["confidence"], there, rtol=1e-6)  # as text and back


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inputs": "/etc/passwd."}, "inputs is text that is no base64"),
        ({"inputs": "http://127.0.0.1/a.wav"}, "inputs is text that is no base64"),
        ({"inputs": "/etc/passwd/"}, "cannot be read as audio"),  # which is base64
        ({"inputs": {"path": "a.wav"}}, "inputs is a dict; send the bytes"),
        ({"inputs": b"no audio"}, "cannot be read as audio"),
        ({"inputs": wav(), "parameters": {"strenght": 1}}, "did you mean 'strength'"),
    ],
)
def test_what_cannot_be_answered_is_said(endpoint, data, message):
    with pytest.raises(ValueError, match=message):
        endpoint(data)


class Service(BaseHTTPRequestHandler):
    """As the service's web server: the body of an audio type is `inputs`, the answer is JSON."""

    def do_POST(self):
        assert self.headers["Content-Type"].startswith("audio/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps(self.server.endpoint({"inputs": bytes(body)})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


def test_the_hubs_client_takes_the_answer(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "noisy.wav").write_bytes(wav())
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as service:
        service.endpoint = endpoint
        threading.Thread(target=service.serve_forever, daemon=True).start()
        client = InferenceClient(model=f"http://127.0.0.1:{service.server_port}")
        (element,) = client.audio_to_audio(str(tmp_path / "noisy.wav"))
        service.shutdown()
    audio, _ = soundfile.read(io.BytesIO(element.blob), dtype="float32")
    assert (element.content_type, element.label) == ("audio/flac", "enhanced")
    np.testing.assert_allclose(audio.T, expected(), atol=2**-23)


STRANGER = """
import importlib.util, sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]).parent))
from fresh_process import NoRooms
sys.meta_path.insert(0, NoRooms)
spec = importlib.util.spec_from_file_location("handler", Path(sys.argv[2], "handler.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.EndpointHandler(sys.argv[2])({"inputs": Path(sys.argv[3]).read_bytes()})[0]["blob"])
"""


def test_it_needs_none_of_this_package(repository, tmp_path):
    (tmp_path / "noisy.wav").write_bytes(wav())
    command = [sys.executable, "-P", "-c", STRANGER, fresh_process.__file__, repository, tmp_path / "noisy.wav"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    audio, _ = soundfile.read(io.BytesIO(base64.b64decode(run.stdout.splitlines()[-1])), dtype="float32")
    np.testing.assert_allclose(audio.T, expected(), atol=2**-23)


def test_its_requirements_are_the_packages():
    required = Path(handler.__file__).with_name("requirements.txt").read_text().split()
    assert len(required) == 8
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(required) <= set(project["dependencies"])
