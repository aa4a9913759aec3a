"""The Space as it is published: its files alone, a model from the Hub, and no package of ours to be found."""

import os
import site
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

pytest.importorskip("gradio", reason="the Space needs the extra `app`")

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
    """A Hub with a model and the Space."""
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(checkpoint)
    with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
        server.attach(patch)
        for arguments in (["push", str(checkpoint), "user/dac-se1"], ["push", "--space", "org/enhance"]):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        yield server


@pytest.fixture
def folder(hub, tmp_path):
    """The Space's repository, as a Space finds it."""
    for name, content in hub.files("org/enhance", "space").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def started(hub, folder, home, **variables) -> subprocess.Popen:
    command = [sys.executable, "-I", "-S", "-c", START, *site.getsitepackages()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DACSE_", "PYTHON"))}
    environment |= hub.environment(home, token="") | {"GRADIO_ANALYTICS_ENABLED": "False"} | variables
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_the_published_space_enhances_with_a_model_of_the_hub_and_without_the_package(hub, folder, tmp_path_factory):
    from gradio_client import Client, handle_file

    noise = 0.1 * np.random.default_rng(0).standard_normal(200)
    soundfile.write(folder / "noisy.wav", noise, 8000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    settings = {"DACSE_MODELS": "user/dac-se1", "DACSE_TRUST_REMOTE_CODE": "1", "GRADIO_SERVER_PORT": str(port)}
    space = started(hub, folder, home, **settings)
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
    expected = tiny_pipeline()(folder / "noisy.wav")
    assert rate == expected["sampling_rate"]
    np.testing.assert_allclose(enhanced, expected["audio"], atol=2**-23)  # a 24-bit file


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "error: no model is given; set DACSE_MODELS"),
        ({"DACSE_MODELS": "user/dac-se1"}, "trust_remote_code=True"),
        ({"DACSE_MODELS": "user/nothing", "DACSE_TRUST_REMOTE_CODE": "1"}, "user/nothing"),
        ({"DACSE_MODELS": "user/dac-se1", "DACSE_MAX_MINUTES": "long"}, "error: DACSE_MAX_MINUTES is 'long'"),
    ],
)
def test_a_space_that_cannot_start_says_why(hub, folder, tmp_path_factory, variables, message):
    space = started(hub, folder, tmp_path_factory.mktemp("home"), **variables)
    _, said = space.communicate(timeout=300)
    assert space.returncode == 1 and message in said and "Traceback" not in said, said
