//! Which jobs of a graph may run together, and when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::check::Checked;
use crate::padding::Pads;
use crate::queue::Waiting;
use crate::turnstile::Account;
use crate::{Dim, EngineError, GraphSpec, Tensor, TensorSpec};

/// How jobs of one graph are gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most rows of one run; with 1, each job runs alone.
    pub max_rows: usize,
    /// How long the oldest job may wait for others while there is room in its batch. With none, a session that is free
    /// runs whatever waits.
    pub delay: Duration,
}

impl BatchPolicy {
    /// Each job runs alone.
    pub const OFF: BatchPolicy = BatchPolicy { max_rows: 1, delay: Duration::ZERO };
}

/// Why a batch ran when it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// No further job would have fitted.
    Full,
    /// Its oldest job had waited for the policy's delay.
    Delay,
    /// A session was free, and the policy asks for no delay.
    Idle,
    /// A job's deadline was too near to wait for more.
    Deadline,
}

impl Released {
    /// Every reason, in the order of declaration.
    pub const ALL: [Released; 4] = [Released::Full, Released::Delay, Released::Idle, Released::Deadline];

    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Released::Full => "full",
            Released::Delay => "delay",
            Released::Idle => "idle",
            Released::Deadline => "deadline",
        }
    }
}

/// What a worker runs next. One is used again and again, so that a job alone costs no allocation.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Jobs of one key, whose rows go into one run.
    pub jobs: Vec<Waiting>,
    /// Jobs whose callers have gone or whose deadline has passed: not to be run.
    pub gone: Vec<Waiting>,
    /// Why it runs now; `None` where jobs of this graph run alone.
    pub released: Option<Released>,
    /// How jobs of different lengths run together, where they do.
    pub pads: Option<Arc<Pads>>,
    /// Who is charged for the run.
    pub charges: Vec<Charge>,
    /// When there was something to run; from then on it may have waited for a core.
    pub ready: Instant,
    /// When it left the queue.
    pub taken: Instant,
    /// Whether the queue counts it as under way.
    pub running: bool,
}

/// A caller's part of a run.
#[derive(Debug)]
pub(crate) struct Charge {
    pub account: Arc<Account>,
    pub rows: usize,
    pub weight: u32,
}

impl Batch {
    pub fn new() -> Batch {
        let now = Instant::now();
        Batch {
            jobs: Vec::new(),
            gone: Vec::new(),
            released: None,
            pads: None,
            charges: Vec::new(),
            ready: now,
            taken: now,
            running: false,
        }
    }
}

/// Whether the declaration leaves it open that jobs run together along a common first axis of every input and output.
/// That is necessary and proves nothing: only runs do.
///
/// # Errors
/// Says what rules it out.
pub fn declared_axis(spec: &GraphSpec) -> Result<(), String> {
    let mut common: Option<(&str, &str)> = None;
    for input in &spec.inputs {
        let symbol = first_symbol("input", input)?.ok_or_else(|| format!("input '{}' declares no rank", input.name))?;
        match common {
            _ if symbol.is_empty() => {}
            None => common = Some((symbol, &input.name)),
            Some((other, _)) if other == symbol => {}
            Some((other, first)) => {
                let name = &input.name;
                return Err(format!("the first dimension is '{other}' in input '{first}' and '{symbol}' in '{name}'"));
            }
        }
    }
    for output in &spec.outputs {
        first_symbol("output", output)?;
    }
    if spec.inputs.is_empty() { Err("it has no input".into()) } else { Ok(()) }
}

/// The symbol of the first dimension; `None` where no rank is declared.
fn first_symbol<'a>(what: &str, spec: &'a TensorSpec) -> Result<Option<&'a str>, String> {
    let name = &spec.name;
    match spec.shape.as_deref().map(<[Dim]>::first) {
        None => Ok(None),
        Some(None) => Err(format!("{what} '{name}' is a scalar")),
        Some(Some(Dim::Fixed(size))) => Err(format!("the first dimension of {what} '{name}' is always {size}")),
        Some(Some(Dim::Symbol(symbol))) => Ok(Some(symbol)),
    }
}

/// The rows that all inputs have in common; `None` where they have none, or differ, or are of nothing: what takes no memory
/// may claim to be any number of rows.
pub(crate) fn common_rows(inputs: &[Tensor]) -> Option<usize> {
    let mut rows = None;
    for tensor in inputs {
        let own = *tensor.shape().first()?;
        if tensor.data().is_empty() || rows.is_some_and(|rows| rows != own) {
            return None;
        }
        rows = Some(own);
    }
    rows
}

/// Whether two jobs of one tenant and graph have the same key.
pub(crate) fn same_key(a: &Checked, b: &Checked, pads: Option<&Pads>) -> bool {
    let same_past_first = |(a, b): (&Tensor, &Tensor)| a.shape().get(1..) == b.shape().get(1..);
    let fit = match pads {
        Some(pads) => pads.together(a, b),
        None => a.inputs.iter().zip(&b.inputs).all(same_past_first),
    };
    fit && a.rows.is_some() && b.rows.is_some() && a.outputs == b.outputs
}

/// The inputs of jobs of one key as those of one run.
///
/// # Errors
/// When they do not go together after all.
pub(crate) fn gathered(jobs: &[Waiting], pads: Option<&Pads>) -> Result<Vec<Tensor>, EngineError> {
    let inputs = jobs.first().map_or(0, |first| first.job.inputs.len());
    let misfit = || EngineError::Failed("jobs of one batch do not go together".into());
    let mut stacked = Vec::with_capacity(inputs);
    let mut parts = Vec::with_capacity(jobs.len());
    for at in 0..inputs {
        parts.clear();
        parts.extend(jobs.iter().filter_map(|waiting| waiting.job.inputs.get(at)));
        let whole = match pads {
            Some(pads) => pads.stack(at, &parts),
            None => Tensor::stack(&parts),
        };
        stacked.push(whole.filter(|_| parts.len() == jobs.len()).ok_or_else(misfit)?);
    }
    Ok(stacked)
}

/// Each job's own rows of the outputs of one run.
///
/// # Errors
/// When an output has not one row for each of the inputs'.
pub(crate) fn scattered(
    jobs: &[Waiting],
    outputs: &[Tensor],
    pads: Option<&Pads>,
) -> Result<Vec<Vec<Tensor>>, EngineError> {
    let wanted = jobs.first().map_or(&[][..], |first| &first.job.outputs);
    let mut answers: Vec<Vec<Tensor>> = jobs.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for (output, &position) in outputs.iter().zip(wanted) {
        let misfit = || EngineError::Failed("an output has not one row for each input's".into());
        let pieces = output.split(jobs.iter().map(|waiting| waiting.job.rows.unwrap_or(0))).ok_or_else(misfit)?;
        for ((answer, piece), waiting) in answers.iter_mut().zip(pieces).zip(jobs) {
            answer.push(match pads {
                Some(pads) => pads.cut(position, piece, &waiting.job.inputs).ok_or_else(misfit)?,
                None => piece,
            });
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;

    fn spec(name: &str, dims: Option<&[&str]>) -> TensorSpec {
        let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).to_owned()), Dim::Fixed);
        TensorSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: dims.map(|dims| dims.iter().map(dim).collect()),
        }
    }

    #[test]
    fn a_declaration_can_only_rule_batches_out() {
        let y = || vec![spec("y", Some(&["N", "4"]))];
        let of = |inputs: Vec<TensorSpec>, outputs| declared_axis(&GraphSpec { inputs, outputs });
        assert_eq!(of(vec![spec("x", Some(&["N", "3"])), spec("m", Some(&["", "3"]))], y()), Ok(()));
        assert_eq!(of(vec![spec("x", Some(&["N"]))], vec![spec("y", None)]), Ok(()));
        for (inputs, outputs, why) in [
            (vec![], y(), "no input"),
            (vec![spec("x", None)], y(), "input 'x' declares no rank"),
            (vec![spec("x", Some(&[]))], y(), "input 'x' is a scalar"),
            (vec![spec("x", Some(&["1", "N"]))], y(), "first dimension of input 'x' is always 1"),
            (vec![spec("x", Some(&["N"])), spec("s", Some(&["M"]))], y(), "'N' in input 'x' and 'M' in 's'"),
            (vec![spec("x", Some(&["N"]))], vec![spec("y", Some(&[]))], "output 'y' is a scalar"),
            (vec![spec("x", Some(&["N"]))], vec![spec("y", Some(&["2", "K"]))], "output 'y' is always 2"),
        ] {
            let refused = of(inputs, outputs).expect_err(why);
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn inputs_must_agree_about_their_rows() {
        let tensor = |shape: &[usize]| Tensor::from_vec(shape, vec![0u8; shape.iter().product()]).expect("bytes");
        assert_eq!(common_rows(&[tensor(&[3, 2]), tensor(&[3])]), Some(3));
        for inputs in [
            vec![],
            vec![tensor(&[3]), tensor(&[1])],
            vec![tensor(&[])],
            vec![tensor(&[0, 4])],
            vec![tensor(&[1 << 40, 0])],
        ] {
            assert_eq!(common_rows(&inputs), None);
        }
    }
}
