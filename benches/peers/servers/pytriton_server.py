"""pytriton, which is Triton with its Python backend: pytriton_server.py MODEL PORT"""

import sys

import numpy as np
import work
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MODEL, PORT = sys.argv[1], int(sys.argv[2])
_, GIVEN, WANTED, SHAPE = work.MODELS[MODEL]


def instance():
    engine = work.session(MODEL)
    return lambda requests: [{WANTED: work.answer(engine, MODEL, request[GIVEN])} for request in requests]


if __name__ == "__main__":
    config = TritonConfig(http_address="127.0.0.1", http_port=PORT, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=[instance() for _ in range(work.INSTANCES)],
            inputs=[Tensor(name=GIVEN, dtype=np.float32, shape=(-1, *SHAPE[1:]))],
            outputs=[Tensor(name=WANTED, dtype=np.float32, shape=(-1, -1))],
            config=ModelConfig(batching=False),
        )
        triton.serve()
