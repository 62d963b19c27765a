//! Integers that a loop carries and changes by a step in each turn, and by how much they can have changed at its end.

use std::collections::HashMap;

use super::declared::value_type;
use super::element::Element;
use super::infer::Call;
use super::node::Node;
use super::value::{Bound, Scope, Value};
use super::weight;
use super::wire::Message;
use crate::EngineError;

/// A sum or difference inside the loop: what it makes, of what.
struct Sum<'a> {
    subtracts: bool,
    of: [&'a str; 2],
}

/// The graph inside a loop, as far as counters go.
#[derive(Default)]
struct Body<'a> {
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    sums: HashMap<&'a str, Sum<'a>>,
    /// What is known of what the loop itself makes: of its constants, their bound.
    own: HashMap<&'a str, Option<Bound>>,
}

/// The bounds of a loop's counters, by their positions among the inputs of the graph inside it. A value is one where the
/// next turn's is it and a step, which is a constant or comes from outside.
pub(super) fn bounds<'a>(
    call: &Call,
    body: Message<'a>,
    outside: &Scope<'a, Value>,
) -> Result<HashMap<usize, Bound>, EngineError> {
    let mut found = HashMap::new();
    if call.op != "Loop" {
        return Ok(found);
    }
    let body = Body::read(body)?;
    let turns = turns(call);
    for (position, name) in body.inputs.iter().enumerate().skip(2) {
        // Of what is handed in, the first is how often; of what is handed out, the first is whether to go on.
        let Some(start) = call.inputs.get(position).copied().flatten() else { continue };
        let next = body.outputs.get(position - 1).and_then(|next| body.sums.get(next));
        let step = next.and_then(|sum| body.step(sum, name, outside));
        let Some(step) = step.filter(|_| start.element == Some(Element::INT64)) else { continue };
        if let Some(bound) = counted(start.bound, turns, step) {
            found.insert(position, bound);
        }
    }
    Ok(found)
}

/// How often a loop turns at most. One that turns more often than there are sizes does not end while a call may last.
pub(super) fn turns(call: &Call) -> Bound {
    match call.inputs.first().copied().flatten().map(|times| times.bound.ends().1) {
        Some(most) if most <= f64::from(i32::MAX) => Bound::Within(0.0, most.max(0.0)),
        _ => Bound::Size,
    }
}

/// Where a counter can be after all turns, if that stays within 32 bits.
fn counted(start: Bound, turns: Bound, step: Bound) -> Option<Bound> {
    let (low, high) = step.ends();
    let bound = match turns {
        // As many steps as there are sizes, none of them more than one.
        Bound::Size if low >= -1.0 && high <= 1.0 => Bound::Size.plus(start),
        Bound::Size => return None,
        Bound::Within(..) => start.plus(turns.times(step)),
    };
    bound.fits().then_some(bound)
}

impl<'a> Body<'a> {
    fn read(mut graph: Message<'a>) -> Result<Body<'a>, EngineError> {
        let mut body = Body::default();
        while let Some(field) = graph.next()? {
            match field.number {
                1 => body.node(Node::read(field.message("node")?)?)?,
                5 => {
                    let weight = weight::read(field.message("weight")?)?;
                    body.makes(weight.name, Some(weight.value.bound));
                }
                11 => body.inputs.push(value_type(field.message("input")?)?.0),
                12 => body.outputs.push(value_type(field.message("output")?)?.0),
                _ => {}
            }
        }
        Ok(body)
    }

    fn node(&mut self, node: Node<'a>) -> Result<(), EngineError> {
        let constant = match node.op {
            Some("Constant") => constant(&node)?,
            _ => None,
        };
        for output in &node.outputs {
            self.makes(output, constant);
        }
        if let (Some(op @ ("Add" | "Sub")), [output], [a, b]) = (node.op, &node.outputs[..], &node.inputs[..]) {
            self.sums.insert(output, Sum { subtracts: op == "Sub", of: [a, b] });
        }
        Ok(())
    }

    /// A name that is given twice means nothing.
    fn makes(&mut self, name: &'a str, bound: Option<Bound>) {
        if self.own.insert(name, bound).is_some() {
            self.own.insert(name, None);
            self.sums.remove(name);
        }
    }

    /// By how much the sum differs from `counter`.
    fn step(&self, sum: &Sum<'a>, counter: &str, outside: &Scope<'a, Value>) -> Option<Bound> {
        let step = match sum.of {
            [a, b] if a == counter && b != counter => b,
            [a, b] if b == counter && a != counter && !sum.subtracts => a,
            _ => return None,
        };
        let bound = match self.own.get(step) {
            Some(own) => (*own)?,
            None if self.inputs.contains(&step) => return None,
            None => outside.get(step)?.bound,
        };
        Some(if sum.subtracts { bound.negated() } else { bound })
    }
}

/// The bound of a constant that a node holds as one tensor or one integer.
fn constant(node: &Node<'_>) -> Result<Option<Bound>, EngineError> {
    let [mut attribute] = node.attributes[..] else { return Ok(None) };
    let (mut name, mut bound) = (None, None);
    while let Some(field) = attribute.next()? {
        match field.number {
            1 => name = Some(field.text("an attribute's name")?),
            3 => {
                let value = field.integer()? as f64;
                bound = Some(Bound::Within(value, value));
            }
            5 => bound = Some(weight::read(field.message("tensor of an attribute")?)?.value.bound),
            _ => {}
        }
    }
    Ok(bound.filter(|_| matches!(name, Some("value" | "value_int"))))
}
