//! Which kind of iris is this? Four measurements in centimetres in, the species and how sure the classifier is out.
use windrose_guest::{numeric, prelude::*};

/// The classes in the order of the graph's probabilities.
const SPECIES: [&str; 3] = ["setosa", "versicolor", "virginica"];
/// What the columns are called, for error messages.
const COLUMNS: [&str; 4] = ["sepal length", "sepal width", "petal length", "petal width"];
/// No part of an iris is longer than this, in centimetres.
const LONGEST: f32 = 30.0;

struct Iris;

impl Model for Iris {
    fn describe() -> Signature {
        Signature::new()
            .input("measurements", DataType::Fp32, &[ANY, 4])
            .output("species", DataType::Bytes, &[ANY])
            .output("probability", DataType::Fp32, &[ANY, 3])
    }

    fn infer(mut request: Request) -> Result<Response> {
        let measurements = request.tensor("measurements")?;
        check(&measurements.read::<f32>()?)?;
        let rows = measurements.shape()[0];
        let mut answer = Graph::by_name("model")?.compute([("features", measurements)])?;
        let probability = answer.tensor("probabilities")?;
        let values = probability.read::<f32>()?;
        let species = values.chunks_exact(3).map(|row| SPECIES[numeric::argmax(row).unwrap_or(0)]);
        let species = Strings::new(&[rows], species.map(|name| name.as_bytes().to_vec()).collect())?;
        Ok(Response::new().with("species", species).with("probability", probability))
    }
}

/// Refuses what cannot be the size of a flower's leaf.
fn check(values: &[f32]) -> Result<()> {
    for (index, &value) in values.iter().enumerate() {
        if !(0.0..=LONGEST).contains(&value) {
            let (row, column) = (index / 4, COLUMNS[index % 4]);
            return Err(Error::invalid_input(format!(
                "measurements: row {row}: {column} is {value}, not a length between 0 and {LONGEST} cm"
            )));
        }
    }
    Ok(())
}

windrose_guest::export!(Iris);
