"""A model: texts in, their lengths in characters out. Replace it with your own."""

from windrose_guest import DataType, Request, Tensor, export


@export(
    inputs={"text": (DataType.BYTES, [None])},
    outputs={"length": (DataType.INT32, [None])},
)
def infer(request: Request) -> dict[str, Tensor]:
    # With a graph in windrose.toml: `Graph.by_name("model").compute({"input": tensor})["output"]`.
    texts = request.strings("text").texts()
    return {"length": Tensor.from_list([len(text) for text in texts], DataType.INT32, [len(texts)])}
