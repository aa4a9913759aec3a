"""Verification runs a repository as a stranger would, and finds what would fail there."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hub_upload import fresh_process
from hub_upload.convert import convert
from hub_upload.stage import open_checkpoint
from hub_upload.verify import foreign_code, probe_waveform, verify
from tests.tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "copy")


def test_a_staged_repository_gives_the_same_output_without_the_package_and_the_network(repository):
    verify(repository, tiny_pipeline())


def test_so_does_one_in_bfloat16(repository, tmp_path):
    convert(str(repository), tmp_path / "half", dtype=torch.bfloat16)
    verify(tmp_path / "half", open_checkpoint(str(tmp_path / "half")))


@pytest.mark.parametrize("changed", ["ids", "waveform", "audio"])
def test_any_output_that_differs_is_found_out(repository, monkeypatch, changed):
    enhance = tiny_pipeline()
    found = fresh_process.outputs(enhance.model, enhance.processor, enhance, probe_waveform(enhance.processor))
    monkeypatch.setattr("hub_upload.verify.outputs_of_a_stranger", lambda folder, probe: found)
    verify(repository, enhance)
    last = found[changed][..., -1:]
    last += 1 if changed == "ids" else np.spacing(last)  # the smallest difference there is
    with pytest.raises(ValueError, match=f"its {changed} differ from the checkpoint's"):
        verify(repository, enhance)


def test_code_that_needs_the_package_is_found_out(copy):
    code = copy / "pipeline_dacse.py"
    code.write_text("import pipeline_dacse  # hidden from the library's scan of imports\n" + code.read_text())
    assert foreign_code(copy) == ["pipeline_dacse.py"]
    with pytest.raises(PermissionError, match=r"pipeline_dacse\.py in .* --trust-remote-code"):
        verify(copy, tiny_pipeline())
    with pytest.raises(ValueError, match="does not load in a process without this package: .*pipeline_dacse"):
        verify(copy, tiny_pipeline(), trust_remote_code=True)


def test_only_the_verification_and_the_endpoint_trust_remote_code_by_themselves():
    rooms = [path for room in [*fresh_process.ROOMS] for path in (ROOT / room).rglob("*.py")]
    assert len(rooms) > 40
    trusting = {path.name for path in rooms if re.search(r"trust_remote_code\W*=\s*True", path.read_text())}
    assert trusting == {"fresh_process.py", "handler.py"}  # the latter is a part of what it trusts


def test_the_probe_ends_inside_a_frame():
    processor = tiny_pipeline().processor
    probe = probe_waveform(processor)
    assert probe.dtype == np.float32 and len(probe) % processor.hop_length
    assert len(probe) > 3 * processor.hop_length
