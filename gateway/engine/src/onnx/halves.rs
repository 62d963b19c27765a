//! Weights of half floats of which nothing is made but floats: they are moved about, and cast to FLOAT. To an engine
//! that has no halves, and widens them when it loads them, that cast changes nothing; the numbers are the same.

use std::collections::HashSet;

use super::element::Element;
use super::infer::Call;

/// Operators that only move the elements of a weight about, and leave their type.
const MOVERS: [&str; 12] = [
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// What is made of halves.
#[derive(Debug, Default)]
pub(super) struct Halves<'a> {
    /// Weights of halves, and what they were moved to. Names are unique over all subgraphs of a valid graph; where they
    /// are not, too much is refused.
    names: HashSet<&'a str>,
    /// The first place that has a half which is more than such a weight.
    used: Option<String>,
}

impl<'a> Halves<'a> {
    /// A weight of this type stands under this name.
    pub fn weight(&mut self, element: Element, name: &'a str) {
        if element == Element::FLOAT16 {
            self.names.insert(name);
        }
    }

    /// Whether the name is a weight's, or of what a weight was moved to.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Something else has a half.
    pub fn used(&mut self, place: impl FnOnce() -> String) {
        self.used.get_or_insert_with(place);
    }

    /// Follows a node from its inputs to its outputs. `known` is whether all inputs are known: what a node makes that
    /// stands further down cannot be followed.
    pub fn node(&mut self, call: &Call, inputs: &[&'a str], outputs: &[&'a str], label: impl Fn() -> String) {
        let op = call.op.as_str();
        let early = inputs.iter().zip(&call.inputs).any(|(name, value)| !name.is_empty() && value.is_none());
        let takes = inputs.iter().any(|name| self.names.contains(name));
        let widens = op == "Cast" && call.to == Some(Element::FLOAT);
        if takes && MOVERS.contains(&op) {
            self.names.extend(outputs.iter().filter(|name| !name.is_empty()));
        } else if takes && !widens || call.to == Some(Element::FLOAT16) || early {
            self.used(label);
        }
    }

    /// The first place that has a half which is more than a weight that is widened.
    pub fn into_used(self) -> Option<String> {
        self.used
    }
}
