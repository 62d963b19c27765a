//! A model: texts in, their lengths in characters out. Replace it with your own.
use windrose_guest::prelude::*;

struct Lengths;

impl Model for Lengths {
    fn describe() -> Signature {
        Signature::new().input("text", DataType::Bytes, &[ANY]).output("length", DataType::Int32, &[ANY])
    }

    fn infer(mut request: Request) -> Result<Response> {
        // With a graph in windrose.toml: `Graph::by_name("model")?.compute([("input", tensor)])?.tensor("output")?`.
        let texts = request.strings("text")?;
        let lengths: Vec<i32> = texts.texts()?.iter().map(|text| text.chars().count() as i32).collect();
        Ok(Response::new().with("length", Tensor::new(&[lengths.len()], &lengths)?))
    }
}

windrose_guest::export!(Lengths);

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo test` runs on your own machine; `windrose_guest::testing::graph` plays the host where a graph is computed.
    #[test]
    fn characters_are_counted() {
        let mut answer = Lengths::infer(Request::new().with("text", Strings::row(["Grüße", ""]))).unwrap();
        assert_eq!(answer.tensor("length").unwrap().to_vec::<i32>().unwrap(), [5, 0]);
    }
}
