//! A node of a graph.

use super::wire::{Message, once};
use crate::EngineError;

/// A node as it stands in the file.
#[derive(Default)]
pub(super) struct Node<'a> {
    pub inputs: Vec<&'a str>,
    pub outputs: Vec<&'a str>,
    pub name: Option<&'a str>,
    pub op: Option<&'a str>,
    pub domain: Option<&'a str>,
    pub attributes: Vec<Message<'a>>,
}

impl<'a> Node<'a> {
    pub fn read(mut message: Message<'a>) -> Result<Node<'a>, EngineError> {
        let mut node = Node::default();
        while let Some(field) = message.next()? {
            match field.number {
                1 => node.inputs.push(field.text("a node's input")?),
                2 => node.outputs.push(field.text("a node's output")?),
                3 => once(&mut node.name, field.text("a node's name")?, "a node's name")?,
                4 => once(&mut node.op, field.text("an operator's name")?, "an operator's name")?,
                5 => node.attributes.push(field.message("attribute")?),
                7 => once(&mut node.domain, field.text("an operator's domain")?, "an operator's domain")?,
                _ => {}
            }
        }
        Ok(node)
    }

    /// The node for messages: by its name, or by what it makes.
    pub fn label(&self, op: &str) -> String {
        let cut = |name: &str| name.chars().take(200).collect::<String>();
        match (self.name.filter(|name| !name.is_empty()), self.outputs.first()) {
            (Some(name), _) => format!("node '{}' ({op})", cut(name)),
            (None, Some(output)) => format!("the {op} that makes '{}'", cut(output)),
            (None, None) => format!("a node ({op})"),
        }
    }
}
