//! Checks a job against what its graph declares, before it is queued.

use std::collections::HashMap;

use crate::batch::{common_rows, declared_axis};
use crate::{DataType, Dim, EngineError, GraphSpec, Job, Tensor, TensorSpec};

/// The product of an empty input's other dimensions.
const EMPTY: usize = 1 << 20;

/// A graph's signature, with its names indexed.
#[derive(Debug)]
pub(crate) struct Signature {
    pub spec: GraphSpec,
    /// Whether jobs may run together as far as the declaration goes, or what rules it out.
    pub axis: Result<(), String>,
    inputs: HashMap<String, usize>,
    outputs: HashMap<String, usize>,
}

/// A job that fits its graph.
#[derive(Debug)]
pub(crate) struct Checked {
    /// In declaration order, with the declared types.
    pub inputs: Vec<Tensor>,
    /// Positions in the declaration, in the order asked for.
    pub outputs: Vec<usize>,
    /// The rows that all inputs have, where the graph may have a batch axis.
    pub rows: Option<usize>,
}

impl Signature {
    pub fn new(spec: GraphSpec) -> Signature {
        let index = |specs: &[TensorSpec]| specs.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let (inputs, outputs) = (index(&spec.inputs), index(&spec.outputs));
        Signature { axis: declared_axis(&spec), spec, inputs, outputs }
    }

    /// Puts a job in the graph's order.
    pub fn check(&self, job: Job) -> Result<Checked, EngineError> {
        let inputs = self.inputs(job.inputs)?;
        let rows = self.axis.as_ref().ok().and_then(|()| common_rows(&inputs));
        Ok(Checked { inputs, outputs: self.outputs(&job.outputs)?, rows })
    }

    fn inputs(&self, given: Vec<(String, Tensor)>) -> Result<Vec<Tensor>, EngineError> {
        let mut places: Vec<Option<Tensor>> = vec![None; self.spec.inputs.len()];
        for (name, tensor) in given {
            let Some(&at) = self.inputs.get(&name) else {
                return Err(invalid(format!("unknown input '{name}': the graph takes {}", names(&self.spec.inputs))));
            };
            let (Some(place), Some(spec)) = (places.get_mut(at), self.spec.inputs.get(at)) else { continue };
            if place.replace(as_declared(tensor, spec)?).is_some() {
                return Err(invalid(format!("input '{name}' is given twice")));
            }
        }
        let mut symbols = Symbols::default();
        let mut inputs = Vec::with_capacity(places.len());
        for (place, spec) in places.into_iter().zip(&self.spec.inputs) {
            let tensor = place.ok_or_else(|| invalid(format!("input '{}' is missing", spec.name)))?;
            symbols.check(&tensor, spec)?;
            check_empty(&tensor, &spec.name)?;
            inputs.push(tensor);
        }
        Ok(inputs)
    }

    fn outputs(&self, wanted: &[String]) -> Result<Vec<usize>, EngineError> {
        if wanted.is_empty() {
            return Ok((0..self.spec.outputs.len()).collect());
        }
        let mut outputs = Vec::with_capacity(wanted.len().min(self.spec.outputs.len()));
        for name in wanted {
            let Some(&at) = self.outputs.get(name) else {
                return Err(invalid(format!("unknown output '{name}': the graph has {}", names(&self.spec.outputs))));
            };
            if outputs.contains(&at) {
                return Err(invalid(format!("output '{name}' is asked for twice")));
            }
            outputs.push(at);
        }
        Ok(outputs)
    }
}

/// Refuses a tensor of nothing from which a graph might make very much: the sum over an empty axis has all the others.
fn check_empty(tensor: &Tensor, name: &str) -> Result<(), EngineError> {
    let others = tensor.shape().iter().filter(|size| **size > 0).try_fold(1usize, |all, size| all.checked_mul(*size));
    let is_large = tensor.shape().first() != Some(&0) && others.is_none_or(|others| others > EMPTY);
    match tensor.data().is_empty() && is_large {
        true => {
            Err(invalid(format!("input '{name}' is empty, and its other dimensions are more than {EMPTY} together")))
        }
        false => Ok(()),
    }
}

/// Reads a tensor as the declared type, if its type stands for it.
fn as_declared(tensor: Tensor, spec: &TensorSpec) -> Result<Tensor, EngineError> {
    let (given, declared) = (tensor.datatype(), spec.datatype);
    if given == declared {
        return Ok(tensor);
    }
    if given != declared.carrier() {
        return Err(invalid(format!("input '{}' is of type {declared}, not {given}", spec.name)));
    }
    let name = &spec.name;
    let tensor = tensor.reinterpret(declared).map_err(|e| invalid(format!("input '{name}': {e}")))?;
    match (declared, &spec.shape) {
        // The carrier of byte strings has no shape of theirs.
        (DataType::Bytes, Some(dims)) => fit_strings(tensor, dims, name),
        _ => Ok(tensor),
    }
}

/// Gives a vector of strings the declared rank: the first dimension that is not fixed takes what the others leave, and
/// further ones are 1.
fn fit_strings(tensor: Tensor, dims: &[Dim], name: &str) -> Result<Tensor, EngineError> {
    let count = tensor.len();
    let misfit = || invalid(format!("input '{name}': {count} byte strings do not fill the declared shape"));
    let fixed = dims.iter().try_fold(1usize, |n, dim| match dim {
        Dim::Fixed(size) => n.checked_mul(usize::try_from(*size).ok()?),
        Dim::Symbol(_) => Some(n),
    });
    let mut free = count.checked_div(fixed.ok_or_else(misfit)?);
    let shape: Option<Vec<usize>> = dims
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => usize::try_from(*size).ok(),
            Dim::Symbol(_) => Some(free.replace(1).unwrap_or(0)),
        })
        .collect();
    tensor.reshape(shape.ok_or_else(misfit)?).map_err(|_| misfit())
}

/// The sizes that symbols have in one call.
#[derive(Default)]
struct Symbols<'a> {
    /// Few: a list is faster than a table.
    sizes: Vec<(&'a str, usize, &'a str)>,
}

impl<'a> Symbols<'a> {
    /// Checks rank, fixed dimensions, and that equal symbols are equal sizes.
    fn check(&mut self, tensor: &Tensor, spec: &'a TensorSpec) -> Result<(), EngineError> {
        let Some(dims) = &spec.shape else { return Ok(()) };
        let name = spec.name.as_str();
        let shape = tensor.shape();
        if shape.len() != dims.len() {
            return Err(invalid(format!(
                "input '{name}' has {} dimensions, not {}: the graph declares {}",
                dims.len(),
                shape.len(),
                written(dims)
            )));
        }
        for (dim, &size) in dims.iter().zip(shape) {
            match dim {
                Dim::Fixed(fixed) if *fixed == size as u64 => {}
                Dim::Fixed(_) => {
                    let declared = written(dims);
                    return Err(invalid(format!("input '{name}' is of shape {declared}, not {shape:?}")));
                }
                Dim::Symbol(symbol) if symbol.is_empty() => {}
                Dim::Symbol(symbol) => self.unify(symbol, size, name)?,
            }
        }
        Ok(())
    }

    fn unify(&mut self, symbol: &'a str, size: usize, name: &'a str) -> Result<(), EngineError> {
        match self.sizes.iter().find(|(s, _, _)| *s == symbol) {
            None => self.sizes.push((symbol, size, name)),
            Some((_, first, _)) if *first == size => {}
            Some((_, first, other)) => {
                return Err(invalid(format!(
                    "dimension '{symbol}' is {first} in input '{other}' and {size} in input '{name}'"
                )));
            }
        }
        Ok(())
    }
}

/// Dimensions as a person writes them; what is unknown is -1.
fn written(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// The first names of a list, for messages.
fn names(specs: &[TensorSpec]) -> String {
    let mut names: Vec<String> = specs.iter().take(8).map(|s| format!("'{}'", s.name)).collect();
    match specs.len() {
        0 => names.push("none".into()),
        n if n > 8 => names.push(format!("{} more", n - 8)),
        _ => {}
    }
    names.join(", ")
}

fn invalid(why: String) -> EngineError {
    EngineError::InvalidInput(why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(name: &str, datatype: DataType, dims: Option<&[&str]>) -> TensorSpec {
        let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).to_owned()), Dim::Fixed);
        TensorSpec { name: name.into(), datatype, shape: dims.map(|dims| dims.iter().map(dim).collect()) }
    }

    fn signature() -> Signature {
        Signature::new(GraphSpec {
            inputs: vec![
                spec("pixels", DataType::Fp32, Some(&["N", "3"])),
                spec("labels", DataType::Uint16, Some(&["N"])),
                spec("words", DataType::Bytes, Some(&["", "2", ""])),
                spec("any", DataType::Bool, None),
            ],
            outputs: vec![spec("a", DataType::Fp32, None), spec("b", DataType::Fp32, None)],
        })
    }

    fn job() -> Job {
        let words = Tensor::from_strings([1, 2, 1], &["a", "b"]).expect("words");
        Job {
            inputs: vec![
                ("any".into(), Tensor::from_vec([], vec![1u8]).expect("a byte")),
                ("words".into(), words),
                ("labels".into(), Tensor::from_vec([2], vec![1u16, 2]).expect("labels")),
                ("pixels".into(), Tensor::from_vec([2, 3], vec![0f32; 6]).expect("pixels")),
            ],
            ..Job::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut Job)) -> String {
        let mut job = job();
        change(&mut job);
        match signature().check(job) {
            Err(EngineError::InvalidInput(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_is_put_in_the_order_of_the_graph() {
        let checked = signature().check(job()).expect("a good job");
        let types: Vec<_> = checked.inputs.iter().map(Tensor::datatype).collect();
        assert_eq!(types, [DataType::Fp32, DataType::Uint16, DataType::Bytes, DataType::Bool]);
        assert_eq!(checked.outputs, [0, 1]);
        let mut wanted = job();
        wanted.outputs = vec!["b".into()];
        assert_eq!(signature().check(wanted).expect("one output").outputs, [1]);
    }

    #[test]
    fn carriers_stand_for_declared_types() {
        let mut carried = job();
        let strings = Tensor::from_strings([4], &["w", "x", "y", "z"]).expect("words");
        carried.inputs[1].1 = strings.reinterpret(DataType::Uint8).expect("a carrier");
        let halves = vec![half::f16::from_bits(7); 2];
        carried.inputs[2].1 = Tensor::from_vec([2], halves).expect("a carrier");
        let checked = signature().check(carried).expect("carriers");
        assert_eq!(checked.inputs[1].values::<u16>().as_deref(), Some(&[7, 7][..]));
        assert_eq!(checked.inputs[2].shape(), [2, 2, 1]);
    }

    #[test]
    fn each_refusal_names_the_input() {
        let pixels =
            |shape: &[usize]| Tensor::from_vec(shape.to_vec(), vec![0f32; shape.iter().product()]).expect("pixels");
        assert!(refusal(|j| j.inputs[0].0 = "nobody".into()).contains("unknown input 'nobody'"));
        assert!(refusal(|j| drop(j.inputs.pop())).contains("'pixels' is missing"));
        assert!(refusal(|j| j.inputs.push(j.inputs[0].clone())).contains("'any' is given twice"));
        assert!(refusal(|j| j.inputs[3].1 = pixels(&[6])).contains("'pixels' has 2 dimensions, not 1"));
        assert!(refusal(|j| j.inputs[3].1 = pixels(&[2, 4])).contains("'pixels' is of shape [N, 3], not [2, 4]"));
        assert!(refusal(|j| j.inputs[3].1 = pixels(&[5, 3])).contains("dimension 'N' is 5 in input 'pixels' and 2"));
        let typed = refusal(|j| j.inputs[3].1 = Tensor::from_vec([2, 3], vec![0i32; 6]).expect("integers"));
        assert_eq!(typed, "input 'pixels' is of type FP32, not INT32");
        let not_bool = refusal(|j| j.inputs[0].1 = Tensor::from_vec([], vec![2u8]).expect("a byte"));
        assert!(not_bool.contains("'any'") && not_bool.contains("BOOL"));
        assert!(refusal(|j| j.inputs[1].1 = Tensor::from_vec([3], vec![1u8; 3]).expect("bytes")).contains("'words'"));
        let three = Tensor::from_strings([3], &["a", "b", "c"]).expect("words").reinterpret(DataType::Uint8);
        assert!(refusal(|j| j.inputs[1].1 = three.expect("a carrier")).contains("3 byte strings do not fill"));
        assert!(refusal(|j| j.outputs = vec!["c".into()]).contains("unknown output 'c': the graph has 'a', 'b'"));
        assert!(refusal(|j| j.outputs = vec!["a".into(), "a".into()]).contains("'a' is asked for twice"));
    }

    proptest! {
        #[test]
        fn any_shape_is_checked(shape in prop::collection::vec(0..6usize, 0..4), labels in 0..6usize) {
            let mut job = job();
            job.inputs[2].1 = Tensor::from_vec([labels], vec![0u16; labels]).expect("labels");
            job.inputs[3].1 = Tensor::from_vec(shape.clone(), vec![0f32; shape.iter().product()]).expect("pixels");
            let fits = shape.len() == 2 && shape[1] == 3 && shape[0] == labels;
            prop_assert_eq!(signature().check(job).is_ok(), fits);
        }
    }
}
