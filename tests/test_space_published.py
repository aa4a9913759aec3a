"""The Space as it is published: its files alone, a model from the Hub, and no package of ours to be found."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from transformers import pipeline
from typer.testing import CliRunner

pytest.importorskip("gradio", reason="the Space needs the extra `app`")

import dacse  # noqa: E402, F401  registers the pipeline
from command_dacse.cli import app  # noqa: E402
from tests.loopback_hub import LoopbackHub  # noqa: E402
from tests.tiny import tiny_pipeline  # noqa: E402

# Without `site`, whose .pth files would bring an editable install of the package.
START = """
import runpy, sys
from importlib.util import find_spec
sys.path += sys.argv[1:]
sys.path.insert(0, "")
assert not any(map(find_spec, ("dacse", "pipeline_dacse", "processing_dacse", "modeling_dacse")))
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with a model and two Spaces: one that offers it, one with the model inside the package."""
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(checkpoint)
    with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
        server.attach(patch)
        commands = [
            ["push", str(checkpoint), "user/dac-se1"],
            ["push", "--space", "org/enhance", "--model", "user/dac-se1"],
            ["push", "--space", "org/alone"],
        ]
        for arguments in commands:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        yield server


def checked_out(hub, name, folder):
    """The repository of a Space, as a Space finds it."""
    for path, content in hub.files(name, "space").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture
def folder(hub, tmp_path):
    return checked_out(hub, "org/enhance", tmp_path)


def started(hub, folder, home, **variables) -> subprocess.Popen:
    command = [sys.executable, "-I", "-S", "-c", START, *(place for place in sys.path if "site-packages" in place)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DACSE_", "PYTHON"))}
    environment |= hub.environment(home, token="") | {"GRADIO_ANALYTICS_ENABLED": "False"} | variables
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("name", ["org/enhance", "org/alone"])
def test_the_published_space_starts_without_a_hand_and_enhances_without_the_package(hub, tmp_path, name):
    from gradio_client import Client, handle_file

    folder, home = checked_out(hub, name, tmp_path / "space"), tmp_path / "home"
    noise = 0.1 * np.random.default_rng(0).standard_normal(200)
    soundfile.write(folder / "noisy.wav", noise, 8000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    space = started(hub, folder, home, GRADIO_SERVER_PORT=str(port), **hub.repositories["space", name].variables)
    try:
        deadline = time.monotonic() + 300
        while True:
            assert space.poll() is None and time.monotonic() < deadline, space.stderr.read()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        client = Client(f"http://127.0.0.1:{port}/", verbose=False, download_files=home)
        enhanced, rate = soundfile.read(client.predict(handle_file(folder / "noisy.wav"), api_name="/enhance"))
    finally:
        space.kill()
        space.wait()
    enhance = tiny_pipeline() if name == "org/enhance" else pipeline("audio-enhancement")
    expected = enhance(folder / "noisy.wav")
    assert rate == expected["sampling_rate"]
    np.testing.assert_allclose(enhanced, expected["audio"], atol=2**-20)  # 24 bits; threads change the order of sums


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DACSE_MODELS": "user/dac-se1"}, "trust_remote_code=True"),
        ({"DACSE_MODELS": "user/nothing", "DACSE_TRUST_REMOTE_CODE": "1"}, "user/nothing"),
    ],
)
def test_a_space_that_cannot_start_says_why(hub, folder, tmp_path_factory, variables, message):
    space = started(hub, folder, tmp_path_factory.mktemp("home"), **variables)
    _, said = space.communicate(timeout=300)
    assert space.returncode == 1 and message in said and "Traceback" not in said, said
