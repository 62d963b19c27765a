#!/usr/bin/env python3
"""Trains a classifier of irises and writes it as an ONNX file: make_iris.py [OUTPUT]

A logistic regression on scikit-learn's bundled data, behind the scaling that it was trained with. `features`, FP32
[batch, 4] (sepal length and width, petal length and width, in centimetres), gives `label`, INT64 [batch], and
`probabilities`, FP32 [batch, 3], in the order setosa, versicolor, virginica. The file is committed as
models/iris/model.onnx; another release of scikit-learn may train slightly other weights.
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

DEFAULT = Path(__file__).resolve().parent / "iris" / "model.onnx"


def train() -> Pipeline:
    data = load_iris()
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data.data, data.target)


def to_onnx(pipeline: Pipeline) -> bytes:
    scaler, classifier = pipeline[0], pipeline[-1]
    constants = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "weights": classifier.coef_.T,
        "bias": classifier.intercept_,
    }
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=-1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "iris",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(v, dtype=np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT).write_bytes(to_onnx(train()))
