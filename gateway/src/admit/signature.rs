//! Whether a request fits what the model declares.

use windrose_engine::{Dim, GraphSpec, Tensor, TensorSpec};

use super::clipped;
use crate::request::Request;

/// Checks names, types, ranks and dimensions of the inputs, and the names of the outputs asked for. The message of an
/// error names the input or output.
pub(super) fn check(spec: &GraphSpec, request: &Request) -> Result<(), String> {
    let mut symbols = Symbols::default();
    for (name, tensor) in &request.inputs {
        let Some(declared) = spec.inputs.iter().find(|i| i.name == *name) else {
            let name = clipped(name);
            return Err(format!("input {name:?} is not one of the model's: {}", names(&spec.inputs)));
        };
        check_input(declared, tensor, &mut symbols)?;
    }
    if request.inputs.len() < spec.inputs.len() {
        let missing = spec.inputs.iter().find(|i| request.inputs.iter().all(|(name, _)| *name != i.name));
        if let Some(missing) = missing {
            return Err(format!("input {:?} is missing", missing.name));
        }
    }
    match request.outputs.iter().find(|name| spec.outputs.iter().all(|o| o.name != **name)) {
        Some(unknown) => {
            let unknown = clipped(unknown);
            Err(format!("output {unknown:?} is not one of the model's: {}", names(&spec.outputs)))
        }
        None => Ok(()),
    }
}

/// The sizes that symbols have in this request, with the input that set them.
#[derive(Default)]
struct Symbols<'a>(Vec<(&'a str, usize, &'a str)>);

fn check_input<'a>(declared: &'a TensorSpec, tensor: &Tensor, symbols: &mut Symbols<'a>) -> Result<(), String> {
    let name = &declared.name;
    if tensor.datatype() != declared.datatype {
        return Err(format!("input {name:?}: datatype is {}, declared is {}", tensor.datatype(), declared.datatype));
    }
    let Some(dims) = &declared.shape else { return Ok(()) };
    let shape = tensor.shape();
    if shape.len() != dims.len() {
        return Err(format!(
            "input {name:?}: shape {shape:?} has {} dimensions, declared is {} with {}",
            shape.len(),
            written(dims),
            dims.len()
        ));
    }
    for (axis, (dim, actual)) in dims.iter().zip(shape).enumerate() {
        match dim {
            Dim::Fixed(size) if *size == *actual as u64 => {}
            Dim::Fixed(size) => {
                return Err(format!(
                    "input {name:?}: shape {shape:?} has {actual} in dimension {axis}, declared is {size} of {}",
                    written(dims)
                ));
            }
            Dim::Symbol(symbol) if symbol.is_empty() => {}
            Dim::Symbol(symbol) => symbols.bind(symbol, *actual, (name, axis, shape))?,
        }
    }
    Ok(())
}

impl<'a> Symbols<'a> {
    fn bind(&mut self, symbol: &'a str, size: usize, at: (&'a str, usize, &[usize])) -> Result<(), String> {
        let (name, axis, shape) = at;
        match self.0.iter().find(|(known, ..)| *known == symbol) {
            None => self.0.push((symbol, size, name)),
            Some((_, known, _)) if *known == size => {}
            Some((_, known, other)) => {
                return Err(format!(
                    "input {name:?}: shape {shape:?} has {size} in dimension {axis} ({symbol}), input {other:?} has {known}"
                ));
            }
        }
        Ok(())
    }
}

fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|s| format!("{:?}", s.name)).collect();
    names.join(", ")
}

/// A declared shape as the protocol writes it.
fn written(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|d| match d {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(_) => "-1".to_owned(),
        })
        .collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use windrose_engine::DataType;

    use super::*;

    fn spec() -> GraphSpec {
        let tensor = |name: &str, datatype, shape: &[Dim]| TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: Some(shape.to_vec()),
        };
        let n = || Dim::Symbol("N".to_owned());
        GraphSpec {
            inputs: vec![
                tensor("a", DataType::Fp32, &[n(), Dim::Fixed(2)]),
                tensor("b", DataType::Int64, &[n()]),
                tensor("c", DataType::Int64, &[Dim::Symbol(String::new()), Dim::Symbol(String::new())]),
                TensorSpec { name: "d".to_owned(), datatype: DataType::Bool, shape: None },
            ],
            outputs: vec![tensor("y", DataType::Fp32, &[n()])],
        }
    }

    fn request() -> Request {
        let zeros = |datatype: DataType, shape: &[usize]| {
            let bytes = shape.iter().product::<usize>() * datatype.width().unwrap();
            Tensor::new(datatype, shape, vec![0; bytes].into()).unwrap()
        };
        Request {
            inputs: vec![
                ("b".to_owned(), zeros(DataType::Int64, &[3])),
                ("a".to_owned(), zeros(DataType::Fp32, &[3, 2])),
                ("c".to_owned(), zeros(DataType::Int64, &[4, 5])),
                ("d".to_owned(), zeros(DataType::Bool, &[1, 1, 1])),
            ],
            ..Request::default()
        }
    }

    fn error(change: impl FnOnce(&mut Request)) -> String {
        let mut request = request();
        change(&mut request);
        check(&spec(), &request).unwrap_err()
    }

    #[test]
    fn what_fits_is_taken_in_any_order() {
        check(&spec(), &request()).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let a = |shape: &[usize]| Tensor::from_vec(shape, vec![0f32; shape.iter().product()]).unwrap();
        assert_eq!(error(|r| r.inputs[0].0 = "x".into()), r#"input "x" is not one of the model's: "a", "b", "c", "d""#);
        let long = error(|r| r.inputs[0].0 = "x".repeat(1_000));
        assert_eq!(long.matches('x').count(), 128);
        assert_eq!(error(|r| drop(r.inputs.remove(1))), "input \"a\" is missing");
        assert_eq!(error(|r| r.inputs[0].1 = a(&[3])), "input \"b\": datatype is FP32, declared is INT64");
        assert_eq!(
            error(|r| r.inputs[1].1 = a(&[3])),
            "input \"a\": shape [3] has 1 dimensions, declared is [-1, 2] with 2"
        );
        assert_eq!(
            error(|r| r.inputs[1].1 = a(&[3, 3])),
            "input \"a\": shape [3, 3] has 3 in dimension 1, declared is 2 of [-1, 2]"
        );
        assert_eq!(
            error(|r| r.inputs[1].1 = a(&[4, 2])),
            "input \"a\": shape [4, 2] has 4 in dimension 0 (N), input \"b\" has 3"
        );
        assert_eq!(error(|r| r.outputs = vec!["z".into()]), "output \"z\" is not one of the model's: \"y\"");
    }
}
