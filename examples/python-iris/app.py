"""Which iris is this? A classifier of a table, written in Python.

Takes rows of four measures in centimetres; answers with the name of the species and the probability of each.
"""

from math import isfinite

from windrose_guest import DataType, Graph, InvalidInput, Request, Strings, Tensor, export

MEASURES = ("sepal length", "sepal width", "petal length", "petal width")
SPECIES = ("setosa", "versicolor", "virginica")
# Centimetres. No iris is larger: a row in millimetres is refused and not answered with nonsense.
LARGEST = 30.0


@export(
    inputs={"features": (DataType.FP32, [None, len(MEASURES)])},
    outputs={"label": (DataType.BYTES, [None]), "probabilities": (DataType.FP32, [None, len(SPECIES)])},
)
def infer(request: Request) -> dict[str, Tensor | Strings]:
    features = request.tensor("features")
    check(features)
    computed = Graph.by_name("model").compute({"features": features})
    labels = Strings([SPECIES[index] for index in computed["label"].to_flat()])
    return {"label": labels, "probabilities": computed["probabilities"]}


def check(features: Tensor) -> None:
    """Refuses what cannot be the measures of a flower, with the place of the first such number."""
    rows = features.to_list()
    if not rows:
        raise InvalidInput('input "features" has no rows')
    for number, row in enumerate(rows):
        for measure, value in zip(MEASURES, row):
            if not isfinite(value) or not 0 < value <= LARGEST:
                raise InvalidInput(
                    f'input "features", row {number}: {measure} is {value:g}; it must be above 0 and at most {LARGEST:g} cm'
                )
