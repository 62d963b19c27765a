"""MLServer's runtime for a model: the name of the model says which."""

import work
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Scores(MLModel):
    async def load(self) -> bool:
        self.engine = work.session(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        output = work.answer(self.engine, self.name, NumpyCodec.decode_input(payload.inputs[0]))
        encoded = NumpyCodec.encode_output(work.MODELS[self.name][2], output)
        return InferenceResponse(model_name=self.name, outputs=[encoded])
