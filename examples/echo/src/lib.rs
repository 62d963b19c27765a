//! Answers with what it was asked. The numbers stay in the host's memory; the texts pass through the module's.
use windrose_guest::prelude::*;

struct Echo;

impl Model for Echo {
    fn describe() -> Signature {
        Signature::new()
            .input("text", DataType::Bytes, &[ANY])
            .input("x", DataType::Fp32, &[ANY])
            .output("text", DataType::Bytes, &[ANY])
            .output("x", DataType::Fp32, &[ANY])
    }

    fn infer(mut request: Request) -> Result<Response> {
        let (text, x) = (request.strings("text")?, request.tensor("x")?);
        Ok(Response::new().with("text", text).with("x", x))
    }
}

windrose_guest::export!(Echo);
