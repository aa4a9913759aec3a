"""A network as an ONNX file, by its path or out of a repository on the Hub. Knows no metric."""

import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download


class OnnxModel:
    """Runs on one core: processes share the work, and threads would only fight over the cores.

    Args:
        model: path of an `.onnx` file, or the repository that holds `file`.
        file: in the repository.
    """

    def __init__(self, model: str, file: str = ""):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = model if model.endswith(".onnx") else hf_hub_download(model, file)
        self.session = onnxruntime.InferenceSession(path, options)

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        """The network's first output."""
        return self.session.run(None, inputs)[0]
