//! The probabilities behind a graph's scores: real work on both sides of `compute`, for benches.
use windrose_guest::{Value, numeric, prelude::*};

/// The input and the output of the graphs that it is used with.
const GRAPHS: [(&str, &str); 2] = [("x", "y"), ("input", "output")];

/// Numbers that are checked together.
const LANES: usize = 16;

struct Scores;

impl Model for Scores {
    fn describe() -> Signature {
        Signature::of_graph("model")
    }

    fn infer(mut request: Request) -> Result<Response> {
        let found = GRAPHS.iter().find_map(|names| Some((names, request.optional(names.0)?)));
        let Some((&(input, output), Value::Tensor(tensor))) = found else {
            return Err(Error::invalid_input("a tensor named \"x\" or \"input\" is missing"));
        };
        check(input, &tensor.read::<f32>()?)?;
        let answer = Graph::by_name("model")?.compute([(input, tensor)])?.only()?;
        let shape = answer.shape();
        let mut scores = answer.to_vec::<f32>()?;
        for row in scores.chunks_exact_mut(shape.last().copied().unwrap_or(1).max(1)) {
            numeric::softmax(row);
        }
        Ok(Response::new().with(output, Tensor::new(&shape, &scores)?))
    }
}

/// Refuses what no net answers with sense.
fn check(input: &str, values: &[f32]) -> Result<()> {
    // Sums instead of a branch for each, in lanes that the compiler turns into SIMD: nought when all are finite.
    let blocks = values.chunks_exact(LANES);
    let mut sums = [0.0f32; LANES];
    let rest: f32 = blocks.remainder().iter().map(|value| value * 0.0).sum();
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum += value * 0.0;
        }
    }
    if rest == 0.0 && sums.iter().all(|sum| *sum == 0.0) {
        return Ok(());
    }
    let index = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    Err(Error::invalid_input(format!("{input}: element {index} is not finite")))
}

windrose_guest::export!(Scores);

#[cfg(test)]
mod tests {
    use super::*;
    use windrose_guest::testing;

    fn answer(values: &[f32]) -> Result<Vec<f32>> {
        testing::graph("model", |mut inputs| Ok(Outputs::from([("y", inputs.tensor("x")?)])));
        let shape = [values.len() / 2, 2];
        Scores::infer(Request::new().with("x", Tensor::new(&shape, values)?))?.tensor("y")?.to_vec()
    }

    #[test]
    fn each_row_becomes_probabilities() {
        assert_eq!(answer(&[3.0, 3.0, 0.0, 1e9]).unwrap(), [0.5, 0.5, 0.0, 1.0]);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let error = answer(&[0.0, 1.0, f32::NAN, 1.0]).unwrap_err();
        assert!(error.is_invalid_input() && error.message().contains("element 2"), "{error:?}");
        assert!(answer(&[0.0, f32::INFINITY]).is_err());
        let nameless = Scores::infer(Request::new()).unwrap_err();
        assert!(nameless.is_invalid_input());
    }
}
