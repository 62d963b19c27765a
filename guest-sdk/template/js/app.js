// A model: texts in, their lengths in characters out. Replace it with your own.

import { Tensor, model } from "windrose-guest";

export const handler = model({
  inputs: { text: ["bytes", [null]] },
  outputs: { length: ["int32", [null]] },
  infer(request) {
    // With a graph in windrose.toml: `Graph.byName("model").compute({ input: tensor }).output`.
    const texts = request.strings("text").texts();
    return { length: Tensor.from(Int32Array.from(texts, (text) => [...text].length)) };
  },
});
