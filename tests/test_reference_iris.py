"""A classifier of a table: the same species and probabilities as scikit-learn, in Rust, Python and JavaScript guests."""

import json
import sys

import numpy as np
import pytest
from harness import ROOT
from sending import close, infer, strings, texts
from sklearn.datasets import load_iris

sys.path.append(str(ROOT / "models"))

# Example -> what it calls its input, the species and the probabilities.
GUESTS = {
    "iris": ("measurements", "species", "probability"),
    "python-iris": ("features", "label", "probabilities"),
}


@pytest.fixture(scope="module")
def reference():
    """Every flower of the data set, and what a freshly trained classifier says of it."""
    import make_iris

    pipeline, data = make_iris.train(), load_iris()
    rows = data.data.astype(np.float32)
    return rows, data.target_names[pipeline.predict(rows)], pipeline.predict_proba(rows)


@pytest.mark.parametrize("example", GUESTS)
def test_all_flowers_at_once(deployed, reference, example):
    (rows, species, probabilities), (given, named, likely) = reference, GUESTS[example]
    answer = infer(deployed.gateway, deployed.example(example), **{given: rows})
    assert texts(answer[named]) == species.tolist()
    close(answer[likely], probabilities)


@pytest.mark.parametrize("example", GUESTS)
def test_flowers_one_by_one_as_json(deployed, reference, example):
    (rows, species, probabilities), (given, named, likely) = reference, GUESTS[example]
    for index in range(0, 150, 7):
        row = slice(index, index + 1)
        answer = infer(deployed.gateway, deployed.example(example), binary=False, **{given: rows[row]})
        assert texts(answer[named]) == species[row].tolist()
        close(answer[likely], probabilities[row])


@pytest.mark.parametrize("example", GUESTS)
def test_no_flower_is_a_metre_long(deployed, example):
    given = GUESTS[example][0]
    refused = deployed.gateway.infer(
        deployed.example(example), [{"name": given, "datatype": "FP32", "shape": [1, 4], "data": [100, 1, 1, 1]}]
    )
    assert refused.status == 400
    assert "sepal length" in refused.json()["error"] and given in refused.json()["error"]


def csv(rows: np.ndarray) -> str:
    lines = [",".join(repr(float(value)) for value in row) for row in rows.round(3).astype(float)]
    return "\n".join(["sepal_length,sepal_width,petal_length,petal_width", *lines]) + "\n"


def test_a_table_as_csv(deployed, reference):
    """The guest in JavaScript: the same flowers as text, in two tables."""
    (rows, species, probabilities), model = reference, deployed.example("js-csv")
    answer = texts(infer(deployed.gateway, model, csv=strings(csv(rows[:100]), csv(rows[100:])))["json"])
    found = [row for table in answer for row in json.loads(table)["rows"]]
    assert [row["species"] for row in found] == species.tolist()
    close(np.array([row["probability"] for row in found]), probabilities.max(axis=1))
    assert json.loads(answer[0])["counts"]["setosa"] == 50


def test_a_table_without_its_columns(deployed):
    refused = deployed.gateway.infer(
        deployed.example("js-csv"), [{"name": "csv", "datatype": "BYTES", "shape": [1], "data": ["a,b\n1,2\n"]}]
    )
    assert refused.status == 400 and "sepal_length" in refused.json()["error"]
