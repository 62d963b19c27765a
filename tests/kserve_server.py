"""KServe's model server with the work of the other foreign servers: kserve_server.py MODEL PORT"""

import sys

import work
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid

MODEL, PORT = sys.argv[1], int(sys.argv[2])
WANTED = work.MODELS[MODEL][2]


class Scores(Model):
    def load(self) -> bool:
        self.engine = work.session(self.name)
        self.ready = True
        return self.ready

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        output = work.answer(self.engine, self.name, payload.inputs[0].as_numpy())
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=[InferOutput(WANTED, list(output.shape), "FP32", data=output)],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    model = Scores(MODEL)
    model.load()
    ModelServer(http_port=PORT, enable_grpc=False, workers=1).start([model])
