//! Rows of different lengths in one run: the shorter ones are filled up, and their outputs cut back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::Checked;
use crate::{DataType, EngineError, GraphSpec, Tensor};

/// How much larger inputs may become when they are filled up to run together, and what is never too much, bytes. The step
/// alone says little: a row of one element among thousands may have to become as long as the longest.
const GROWTH: usize = 4;
const LITTLE: usize = 4 << 20;

/// How inputs of different lengths may run together, as a manifest says: a text encoder with its mask, for example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Padding {
    /// The axis of the length; not the first, which is that of the rows.
    #[serde(default = "second")]
    pub axis: usize,
    /// Inputs that have the axis, and the number that fills them up.
    pub inputs: BTreeMap<String, i64>,
    /// Outputs that have the axis and are cut back to the length of the inputs.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Lengths that round up to the same multiple of this run together, so that little is computed for nothing.
    #[serde(default = "sixteen")]
    pub step: usize,
}

fn second() -> usize {
    1
}

fn sixteen() -> usize {
    16
}

/// [`Padding`] by position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pads {
    axis: usize,
    step: usize,
    /// What fills up each input that has the axis: the bytes of one element.
    inputs: Vec<Option<Vec<u8>>>,
    /// Whether each output is cut back.
    outputs: Vec<bool>,
}

impl Pads {
    /// What `padding` means for a graph.
    ///
    /// # Errors
    /// [`EngineError::InvalidGraph`] naming what the graph does not have.
    pub fn new(padding: &Padding, spec: &GraphSpec) -> Result<Pads, EngineError> {
        let wrong = |why: String| Err(EngineError::InvalidGraph(format!("padding: {why}")));
        if padding.axis == 0 || padding.step == 0 || padding.inputs.is_empty() {
            return wrong("needs inputs, an axis past the first and a step".into());
        }
        let known = |name: &&String, specs: &[crate::TensorSpec]| specs.iter().any(|spec| spec.name == **name);
        if let Some(name) = padding.inputs.keys().find(|name| !known(name, &spec.inputs)) {
            return wrong(format!("the graph has no input '{name}'"));
        }
        if let Some(name) = padding.outputs.iter().find(|name| !known(name, &spec.outputs)) {
            return wrong(format!("the graph has no output '{name}'"));
        }
        let mut inputs = Vec::with_capacity(spec.inputs.len());
        for input in &spec.inputs {
            let fill = padding.inputs.get(&input.name).map(|fill| element(input.datatype, *fill));
            match fill {
                Some(None) => return wrong(format!("input '{}' of byte strings cannot be filled up", input.name)),
                fill => inputs.push(fill.flatten()),
            }
        }
        let outputs = spec.outputs.iter().map(|output| padding.outputs.contains(&output.name)).collect();
        Ok(Pads { axis: padding.axis, step: padding.step, inputs, outputs })
    }

    /// The length that all inputs with the axis have; `None` where they differ.
    pub fn length(&self, inputs: &[Tensor]) -> Option<usize> {
        let mut lengths = inputs.iter().zip(&self.inputs).filter(|(_, fill)| fill.is_some());
        let (first, _) = lengths.next()?;
        let length = *first.shape().get(self.axis)?;
        lengths.all(|(tensor, _)| tensor.shape().get(self.axis) == Some(&length)).then_some(length)
    }

    /// Whether two jobs may run together as far as their shapes past the first axis go.
    pub fn together(&self, a: &Checked, b: &Checked) -> bool {
        let (Some(one), Some(other)) = (self.length(&a.inputs), self.length(&b.inputs)) else { return false };
        let same = |((a, b), fill): ((&Tensor, &Tensor), &Option<Vec<u8>>)| {
            let dims = a.shape().iter().zip(b.shape()).enumerate().skip(1);
            let free = |axis: usize| fill.is_some() && axis == self.axis;
            a.shape().len() == b.shape().len() && dims.into_iter().all(|(axis, (a, b))| a == b || free(axis))
        };
        one.div_ceil(self.step) == other.div_ceil(self.step)
            && a.inputs.iter().zip(&b.inputs).zip(&self.inputs).all(same)
    }

    /// Tensors of one input as one, each filled up to the longest; `None` where they do not go together, or would take very
    /// much more memory than each alone.
    pub fn stack(&self, input: usize, parts: &[&Tensor]) -> Option<Tensor> {
        let longest = parts.iter().map(|part| part.shape().get(self.axis)).max().flatten();
        match (self.inputs.get(input)?, longest) {
            (Some(fill), Some(&longest)) if parts.iter().any(|part| part.shape().get(self.axis) != Some(&longest)) => {
                let own: usize = parts.iter().map(|part| part.data().len()).sum();
                let whole = parts.iter().try_fold(0usize, |all, part| {
                    let mut others = part.shape().iter().enumerate().filter(|(axis, _)| *axis != self.axis);
                    let one = others.try_fold(longest.checked_mul(fill.len())?, |n, (_, size)| n.checked_mul(*size))?;
                    all.checked_add(one)
                })?;
                if whole > LITTLE.max(own.saturating_mul(GROWTH)) {
                    return None;
                }
                let filled: Vec<Tensor> =
                    parts.iter().map(|part| part.filled(self.axis, longest, fill)).collect::<Option<_>>()?;
                Tensor::stack(&filled.iter().collect::<Vec<_>>())
            }
            _ => Tensor::stack(parts),
        }
    }

    /// The first `length` of inputs; `None` where they have not as much.
    pub fn shortened(&self, inputs: &[Tensor], length: usize) -> Option<Vec<Tensor>> {
        let own = |(tensor, fill): (&Tensor, &Option<Vec<u8>>)| match fill {
            Some(_) => tensor.cut(self.axis, length),
            None => Some(tensor.clone()),
        };
        inputs.iter().zip(&self.inputs).map(own).collect()
    }

    /// One job's rows of an output, cut back to the length of its inputs.
    pub fn cut(&self, output: usize, rows: Tensor, inputs: &[Tensor]) -> Option<Tensor> {
        if !self.outputs.get(output).copied().unwrap_or(false) {
            return Some(rows);
        }
        rows.cut(self.axis, self.length(inputs)?)
    }
}

/// The bytes of one number of a type; `None` for byte strings.
fn element(datatype: DataType, value: i64) -> Option<Vec<u8>> {
    Some(match datatype {
        DataType::Bytes => return None,
        DataType::Bool => vec![u8::from(value != 0)],
        DataType::Fp16 => half::f16::from_f64(value as f64).to_le_bytes().to_vec(),
        DataType::Bf16 => half::bf16::from_f64(value as f64).to_le_bytes().to_vec(),
        DataType::Fp32 => (value as f32).to_le_bytes().to_vec(),
        DataType::Fp64 => (value as f64).to_le_bytes().to_vec(),
        // Two's complement: the low bytes are the smaller integer.
        _ => value.to_le_bytes().get(..datatype.width()?)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Dim, TensorSpec};

    fn spec() -> GraphSpec {
        let symbols = |symbols: &[&str]| Some(symbols.iter().map(|s| Dim::Symbol((*s).into())).collect());
        let tensor = |name: &str, datatype, shape| TensorSpec { name: name.into(), datatype, shape };
        GraphSpec {
            inputs: vec![
                tensor("ids", DataType::Int64, symbols(&["N", "T"])),
                tensor("style", DataType::Fp32, symbols(&["N", "S"])),
            ],
            outputs: vec![tensor("hidden", DataType::Fp32, None), tensor("pooled", DataType::Fp32, None)],
        }
    }

    fn padding() -> Padding {
        serde_json::from_str(r#"{"inputs": {"ids": -1}, "outputs": ["hidden"], "step": 4}"#).expect("a padding")
    }

    fn job(rows: usize, length: usize, style: usize) -> Checked {
        let ids = Tensor::from_vec([rows, length], (0..rows * length).map(|v| v as i64).collect()).expect("ids");
        let style = Tensor::from_vec([rows, style], vec![0f32; rows * style]).expect("a style");
        Checked { inputs: vec![ids, style], outputs: vec![0, 1], rows: Some(rows) }
    }

    #[test]
    fn what_the_graph_does_not_have_is_named() {
        let refused = |edit: &dyn Fn(&mut Padding)| {
            let mut padding = padding();
            edit(&mut padding);
            Pads::new(&padding, &spec()).expect_err("refused").to_string()
        };
        assert!(refused(&|p| p.axis = 0).contains("axis past the first"));
        assert!(refused(&|p| p.inputs.extend([("nobody".into(), 0)])).contains("no input 'nobody'"));
        assert!(refused(&|p| p.outputs.push("nothing".into())).contains("no output 'nothing'"));
        assert!(Pads::new(&padding(), &spec()).is_ok());
    }

    #[test]
    fn lengths_of_one_step_go_together() {
        let pads = Pads::new(&padding(), &spec()).expect("pads");
        for (a, b, expected) in [(1, 4, true), (4, 5, false), (5, 8, true)] {
            assert_eq!(pads.together(&job(1, a, 2), &job(3, b, 2)), expected, "{a} and {b}");
        }
        assert!(!pads.together(&job(1, 3, 2), &job(1, 3, 1)), "the style has another length");
    }

    #[test]
    fn elements_have_the_bytes_of_their_type() {
        assert_eq!(element(DataType::Int16, -1), Some(vec![255, 255]));
        assert_eq!(element(DataType::Fp32, 1), Some(1f32.to_le_bytes().to_vec()));
        assert_eq!(element(DataType::Bool, 7), Some(vec![1]));
        assert_eq!(element(DataType::Bytes, 0), None);
    }

    #[test]
    fn what_would_become_very_much_larger_does_not_go_together() {
        let pads = Pads::new(&padding(), &spec()).expect("pads");
        let (short, long) = (job(4_000, 1, 2), job(1, 100_000, 2));
        assert_eq!(pads.stack(0, &[&short.inputs[0], &long.inputs[0]]), None);
        let (short, long) = (job(4_000, 1, 2), job(1, 100, 2));
        assert!(pads.stack(0, &[&short.inputs[0], &long.inputs[0]]).is_some());
    }

    proptest! {
        #[test]
        fn what_was_filled_up_is_cut_back(shapes in prop::collection::vec((1..4usize, 1..6usize), 1..6)) {
            let pads = Pads::new(&padding(), &spec()).expect("pads");
            let jobs: Vec<Checked> = shapes.iter().map(|(rows, length)| job(*rows, *length, 2)).collect();
            let ids: Vec<&Tensor> = jobs.iter().map(|job| &job.inputs[0]).collect();
            let whole = pads.stack(0, &ids).expect("one tensor");
            let longest = shapes.iter().map(|(_, length)| *length).max().expect("a shape");
            prop_assert_eq!(whole.shape(), [shapes.iter().map(|(rows, _)| rows).sum(), longest]);
            let filled = whole.values::<i64>().expect("integers").iter().filter(|v| **v == -1).count();
            prop_assert_eq!(filled, shapes.iter().map(|(rows, length)| rows * (longest - length)).sum::<usize>());
            let pieces = whole.split(shapes.iter().map(|(rows, _)| *rows)).expect("rows");
            for (piece, job) in pieces.into_iter().zip(&jobs) {
                prop_assert_eq!(pads.cut(1, piece.clone(), &job.inputs), Some(piece.clone()), "not to be cut");
                prop_assert_eq!(pads.cut(0, piece, &job.inputs), Some(job.inputs[0].clone()));
            }
        }
    }
}
