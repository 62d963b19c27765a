"""BentoML: `bentoml serve bentoml_service:Scores`, the model in PEER_MODEL."""

import os

import bentoml
import work

MODEL = os.environ["PEER_MODEL"]


@bentoml.service(workers=work.INSTANCES, traffic={"timeout": 60})
class Scores:
    def __init__(self) -> None:
        self.engine = work.session(MODEL)

    @bentoml.api(route="/infer")
    def infer(self, inputs: list) -> dict:
        return work.encode(MODEL, work.answer(self.engine, MODEL, work.decode({"inputs": inputs})))
