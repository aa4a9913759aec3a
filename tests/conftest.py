"""One thread for every test and the processes it starts: tiny models gain nothing from more; sums keep their order."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)
