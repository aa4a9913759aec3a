"""Runs a staged repository as a stranger would: no room can be imported, no network, an empty cache.

A script of its own that needs nothing of this package: `fresh_process.py FOLDER PROBE.npy OUTPUTS.safetensors`. Its
caller sets `HF_HUB_OFFLINE=1` and an empty `HF_HOME`, and trusts the code in FOLDER.
"""

import socket
import sys

import numpy as np

ROOMS = (
    "dacse",
    "modeling_dacse",
    "processing_dacse",
    "pipeline_dacse",
    "training_dacse",
    "evaluation_dacse",
    "hub_upload",
    "spaces_app",
)


class NoRooms:
    """An import hook before all others: the package is not installed."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        if name.split(".")[0] in ROOMS:
            raise ModuleNotFoundError(f"No module named {name!r} (kept out on purpose)", name=name)


def refuse_connection(self, address):
    raise OSError(f"a connection to {address} was tried where the network is off")


def outputs(model, processor, enhance, probe: np.ndarray) -> dict[str, np.ndarray]:
    """What a checkpoint makes of `probe` (sample,): generated ids, their waveform, the pipeline's audio."""
    ids = model.generate(**processor(audio=probe, sampling_rate=processor.sampling_rate, return_tensors="pt"))
    audio = enhance({"array": probe, "sampling_rate": processor.sampling_rate})["audio"]
    return {"ids": ids.numpy(), "waveform": processor.decode(ids)[0], "audio": audio}


def main(folder: str, probe_path: str, outputs_path: str) -> None:
    sys.meta_path.insert(0, NoRooms)
    socket.socket.connect = refuse_connection

    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    enhance = pipeline("audio-enhancement", model=folder, trust_remote_code=True, device="cpu")
    save_file(outputs(model, processor, enhance, np.load(probe_path)), outputs_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
