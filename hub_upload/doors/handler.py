"""Serves the model beside it as an Inference Endpoint of the Hub: audio in, enhanced audio out.

The service imports this file from the repository and calls what it finds with each request. It needs nothing but
`requirements.txt`, which the service installs, and the code in the repository that it is a part of, which it trusts.
"""

import base64
import binascii
import io
from typing import Any

import soundfile
from transformers import pipeline


class EndpointHandler:
    """What the service looks for.

    Args:
        path: Of the repository.
    """

    def __init__(self, path: str = ""):
        self.enhance = pipeline("audio-enhancement", model=path, trust_remote_code=True)  # on the best device here

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Answers one request; any number of them at a time.

        Args:
            data: `inputs`, the bytes of an audio file, or their base64 in JSON, never a path or address; `parameters`,
                those of a call of the pipeline.

        Returns:
            As other models answer that take and give audio, and as `InferenceClient.audio_to_audio` reads it: one
            element with `blob`, a FLAC in base64. `confidence` is with it where it was asked for.

        Raises:
            ValueError: If it is no audio, or a parameter has no meaning. The service answers with the message.
        """
        out = self.enhance(_audio_bytes(data["inputs"]), **data.get("parameters") or {})
        file = io.BytesIO()
        soundfile.write(file, out["audio"].T, out["sampling_rate"], "PCM_24", format="FLAC")
        blob = base64.b64encode(file.getvalue()).decode()
        confidence = {"confidence": out["confidence"].tolist()} if "confidence" in out else {}
        return [{"label": "enhanced", "content-type": "audio/flac", "blob": blob} | confidence]


def _audio_bytes(inputs: Any) -> bytes:
    if isinstance(inputs, str):
        try:
            return base64.b64decode(inputs, validate=True)
        except binascii.Error as error:
            raise ValueError(f"inputs is text that is no base64 ({error}); send the bytes of an audio file") from error
    if not isinstance(inputs, bytes):
        raise ValueError(f"inputs is a {type(inputs).__name__}; send the bytes of one audio file, or their base64")
    return inputs
