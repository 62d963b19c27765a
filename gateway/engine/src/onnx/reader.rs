//! The walk over a model: its graph, its nodes, their attributes and subgraphs.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::counters;
use super::declared::{check_size, tensor_type, value_type};
use super::element::Element;
use super::halves::Halves;
use super::infer::{self, Call};
use super::node::Node;
use super::value::{Bound, Scope, Value};
use super::weight::{self, Seen, Weight, is_wide};
use super::wire::{Field, Message, invalid, once};
use super::{MAX_BYTES, MAX_DEPTH, MAX_NAME, MAX_NAMES, MAX_NODES, MAX_VALUES, MAX_WEIGHTS, Model};
use crate::{EngineError, GraphSpec, TensorSpec};

/// The domains whose operators an engine here may have.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Operators that reach outside of the file: a compiled context names a file beside the graph.
const REACH_OUT: [&str; 1] = ["EPContext"];

/// Operators that only move their input's values about: what is too wide for 32 bits is so behind them too.
const MOVERS: [&str; 8] = ["Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];

/// Reads a whole model.
pub(super) fn read(onnx: &[u8]) -> Result<Model, EngineError> {
    if onnx.len() > MAX_BYTES {
        return Err(invalid(format!("the file is over {MAX_BYTES} bytes")));
    }
    let mut message = Message::new(onnx, "ONNX model");
    let (mut version, mut graph) = (None, None);
    while let Some(field) = message.next()? {
        match field.number {
            1 => once(&mut version, field.integer()?, "the format version")?,
            7 => once(&mut graph, field.message("graph")?, "the graph")?,
            20 => return Err(invalid("it holds training information".into())),
            25 => return Err(invalid("it defines local functions: inline them before exporting".into())),
            _ => {}
        }
    }
    let (Some(_), Some(graph)) = (version, graph) else {
        return Err(invalid("it holds no ONNX graph".into()));
    };
    let mut reader = Reader::default();
    let spec = reader.signature(graph)?;
    let halves = reader.elements.contains_key(&Element::FLOAT16);
    Ok(Model {
        spec,
        nodes: reader.nodes,
        operators: reader.operators,
        elements: reader.elements,
        on_bytes: reader.on_bytes,
        weight_bytes: reader.weight_bytes,
        beyond_32_bits: reader.beyond,
        half: reader.halves.into_used().filter(|_| halves),
        may_trap: reader.may_trap,
    })
}

/// What was seen so far, over all subgraphs.
#[derive(Default)]
struct Reader<'a> {
    nodes: usize,
    weights: usize,
    weight_bytes: u64,
    operators: BTreeSet<String>,
    /// The element types, and what has each: the first that was seen.
    elements: BTreeMap<Element, String>,
    /// The operators on integers of 8 bits, with the first type and node of each.
    on_bytes: BTreeMap<String, (Element, String)>,
    /// What is known of the values that a node can name.
    values: Scope<'a, Value>,
    /// The types that the file says values have.
    declared: Scope<'a, Element>,
    /// The first node whose run may end the process.
    may_trap: Option<String>,
    /// Names that a node used before anything made them.
    early: HashSet<&'a str>,
    /// Names of values that hold more than 32 bits. Names are unique over all subgraphs of a valid graph.
    wide: HashSet<&'a str>,
    /// What is made of weights of halves.
    halves: Halves<'a>,
    /// The first use of one that is more than the open end of a slice.
    beyond: Option<String>,
}

/// One attribute as far as it matters.
#[derive(Default)]
struct Attribute<'a> {
    name: Option<&'a str>,
    integer: Option<i64>,
    text: Option<&'a [u8]>,
    wide: bool,
    /// Whether a tensor in it is of halves.
    half: bool,
    /// What its tensor is.
    tensor: Option<Value>,
    /// What its numbers are.
    integers: Seen,
    floats: Seen,
    /// The outputs of its graphs.
    graphs: Vec<Vec<Value>>,
}

impl Attribute<'_> {
    /// The value of a constant that has this attribute alone.
    fn constant(&self) -> Option<Value> {
        match self.name? {
            "value" | "sparse_value" => self.tensor,
            "value_int" | "value_ints" => Some(self.integers.value(Element::INT64)),
            "value_float" | "value_floats" => Some(self.floats.value(Element::FLOAT)),
            "value_string" | "value_strings" => Some(Value::data(Some(Element::STRING))),
            _ => None,
        }
    }
}

impl<'a> Reader<'a> {
    /// Reads the outermost graph and its signature.
    fn signature(&mut self, graph: Message<'a>) -> Result<GraphSpec, EngineError> {
        let constants = self.constants(graph)?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let mut fields = graph;
        while let Some(field) = fields.next()? {
            match field.number {
                11 => self.declared(&field, "input", &mut inputs, &constants)?,
                12 => self.declared(&field, "output", &mut outputs, &HashSet::new())?,
                _ => {}
            }
        }
        if outputs.is_empty() {
            return Err(invalid("it has no output".into()));
        }
        self.types(graph)?;
        self.body(graph, 0)?;
        Ok(GraphSpec { inputs, outputs })
    }

    /// Notes the types that a graph says its values have.
    fn types(&mut self, mut graph: Message<'a>) -> Result<(), EngineError> {
        while let Some(field) = graph.next()? {
            if matches!(field.number, 11..=13) {
                let (name, element) = value_type(field.message("value")?)?;
                if let Some(element) = element {
                    self.declared.set(name, element);
                    bounded(self.declared.len())?;
                }
            }
        }
        Ok(())
    }

    /// Notes what is known of a value. One without a name is nobody's: that is how an input is left out.
    fn name(&mut self, name: &'a str, value: Value) -> Result<(), EngineError> {
        if name.is_empty() {
            return Ok(());
        }
        self.values.set(name, value);
        bounded(self.values.len())
    }

    /// Reads a graph's constants and returns their names.
    fn constants(&mut self, mut graph: Message<'a>) -> Result<HashSet<&'a str>, EngineError> {
        let mut names = HashSet::new();
        while let Some(field) = graph.next()? {
            let weight = match field.number {
                5 => self.weight(field.message("weight")?)?,
                15 => self.sparse(field.message("sparse weight")?)?,
                _ => continue,
            };
            self.halves.weight(weight.element, weight.name);
            if weight.wide {
                self.wide.insert(weight.name);
            }
            self.name(weight.name, weight.value)?;
            if !names.insert(weight.name) {
                return Err(invalid(format!("weight '{}' is given twice", weight.name)));
            }
        }
        Ok(names)
    }

    /// Reads a graph's nodes, and what becomes of values that are too wide.
    fn body(&mut self, graph: Message<'a>, depth: usize) -> Result<(), EngineError> {
        let mut fields = graph;
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                self.node(field.message("node")?, depth)?;
            }
        }
        let mut fields = graph;
        while let Some(field) = fields.next()? {
            if field.number == 12 {
                let (name, _) = value_type(field.message("output")?)?;
                if self.wide.contains(name) {
                    self.found_beyond(name, "an output");
                }
                if self.halves.contains(name) {
                    self.halves.used(|| format!("output '{name}'"));
                }
            }
        }
        Ok(())
    }

    fn node(&mut self, message: Message<'a>, depth: usize) -> Result<(), EngineError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(invalid(format!("it has more than {MAX_NODES} nodes")));
        }
        let node = Node::read(message)?;
        let op = node.op.filter(|op| !op.is_empty()).ok_or_else(|| invalid("a node names no operator".into()))?;
        self.operator(node.domain.unwrap_or_default(), op)?;
        let inputs = node.inputs.iter().map(|name| self.values.get(name)).collect();
        self.early.extend(node.inputs.iter().filter(|name| self.values.get(name).is_none()));
        let mut call = Call { op: op.to_owned(), inputs, ..Call::default() };
        let mut wide = false;
        for attribute in &node.attributes {
            let attribute = self.attribute(*attribute, depth, &call)?;
            wide |= attribute.wide && matches!(op, "Constant" | "ConstantOfShape");
            if attribute.half && op == "Constant" {
                node.outputs.iter().for_each(|name| self.halves.weight(Element::FLOAT16, name));
            } else if attribute.half {
                self.halves.used(|| node.label(op));
            }
            let element = attribute.integer.and_then(Element::from_number);
            match attribute.name {
                Some("to" | "dtype" | "output_dtype") => call.to = element,
                Some("reduction") => call.reduction = attribute.text.map(|t| String::from_utf8_lossy(t).into_owned()),
                _ => {}
            }
            // A constant has one value; engines differ about which of two it is.
            call.constant = attribute.constant().filter(|_| node.attributes.len() == 1);
            call.graphs.extend(attribute.graphs);
        }
        self.follow_wide(op, &node.inputs, &node.outputs, wide);
        self.halves.node(&call, &node.inputs, &node.outputs, || node.label(op));
        self.follow(&call, &node)
    }

    /// Follows what is known of a node's inputs to its outputs.
    fn follow(&mut self, call: &Call, node: &Node<'a>) -> Result<(), EngineError> {
        if self.may_trap.is_none() && infer::may_trap(call) {
            self.may_trap = Some(node.label(&call.op));
        }
        if let Some(to) = call.to {
            self.elements.entry(to).or_insert_with(|| node.label(&call.op));
        }
        let byte = |value: &Value| value.element.filter(|element| element.is_byte());
        let mut bytes = call.inputs.iter().flatten().find_map(byte);
        for (position, name) in node.outputs.iter().enumerate() {
            let mut value = infer::output(call, position);
            value.element = value.element.or_else(|| self.declared.get(name));
            if self.beyond.is_none() {
                let late = value.loose && self.early.contains(name);
                let late = late.then(|| "casts numbers to BOOL that nodes before it use".to_owned());
                let why = infer::lost(call, &value).or(late);
                self.beyond = why.map(|why| format!("{} {why}", node.label(&call.op)));
            }
            if value.element == Some(Element::FLOAT16) && !self.halves.contains(name) {
                self.halves.used(|| node.label(&call.op));
            }
            if let Some(element) = value.element {
                self.elements.entry(element).or_insert_with(|| node.label(&call.op));
            }
            bytes = bytes.or_else(|| byte(&value));
            self.name(name, value.in_its_type())?;
        }
        // As with the operators: a list this long is no engine's.
        if let Some(element) = bytes.filter(|_| self.on_bytes.len() < MAX_VALUES) {
            self.on_bytes.entry(call.op.clone()).or_insert_with(|| (element, node.label(&call.op)));
        }
        Ok(())
    }

    fn operator(&mut self, domain: &str, op: &str) -> Result<(), EngineError> {
        if !DOMAINS.contains(&domain) {
            return Err(EngineError::Unsupported(format!("operator '{op}' is of the unknown domain '{domain}'")));
        }
        if REACH_OUT.contains(&op) {
            return Err(EngineError::Unsupported(format!("operator '{op}' reaches outside of the graph")));
        }
        let own = domain.is_empty() || domain == "ai.onnx";
        let name = if own { op.to_owned() } else { format!("{domain}:{op}") };
        // Every engine's list is shorter; only a hostile file makes this one long.
        if self.operators.len() < MAX_VALUES {
            self.operators.insert(name);
        }
        Ok(())
    }

    /// Follows values that do not fit 32 bits from a node's inputs to its outputs.
    fn follow_wide(&mut self, op: &str, inputs: &[&'a str], outputs: &[&'a str], wide: bool) {
        let mut wide = wide;
        for (position, input) in inputs.iter().enumerate() {
            // As many turns as fit 32 bits are more than a call can wait for, too.
            let open = matches!((op, position), ("Slice", 1..) | ("Loop", 0));
            if !self.wide.contains(input) || open {
                continue;
            }
            if MOVERS.contains(&op) {
                wide = true;
            } else {
                self.found_beyond(input, op);
            }
        }
        if wide {
            self.wide.extend(outputs);
        }
    }

    fn found_beyond(&mut self, name: &str, user: &str) {
        self.beyond.get_or_insert_with(|| format!("constant '{name}', used by {user}, does not fit 32 bits"));
    }

    fn attribute(&mut self, mut message: Message<'a>, depth: usize, call: &Call) -> Result<Attribute<'a>, EngineError> {
        let mut found = Attribute::default();
        let mut single = None;
        while let Some(field) = message.next()? {
            match field.number {
                1 => once(&mut found.name, field.text("an attribute's name")?, "an attribute's name")?,
                2 => field.fixed(|value| found.floats.float(f32::from_le_bytes(value).into()))?,
                3 => {
                    let integer = field.integer()?;
                    once(&mut found.integer, integer, "an attribute's integer")?;
                    found.wide |= is_wide(integer);
                    found.integers.integer(integer);
                }
                4 => found.text = Some(field.bytes()?),
                5 => {
                    once(&mut single, (), "an attribute's value")?;
                    let weight = self.weight(field.message("tensor of an attribute")?)?;
                    found.wide |= weight.wide;
                    found.half |= weight.element == Element::FLOAT16;
                    found.tensor = Some(weight.value);
                }
                6 => {
                    once(&mut single, (), "an attribute's value")?;
                    found.graphs.push(self.subgraph(&field, depth, call)?);
                }
                7 => field.fixed(|value| found.floats.float(f32::from_le_bytes(value).into()))?,
                8 => field.integers(|value| {
                    found.wide |= is_wide(value);
                    found.integers.integer(value);
                })?,
                10 => {
                    let weight = self.weight(field.message("tensor of an attribute")?)?;
                    found.wide |= weight.wide;
                    found.half |= weight.element == Element::FLOAT16;
                }
                11 => found.graphs.push(self.subgraph(&field, depth, call)?),
                22 | 23 => {
                    let weight = self.sparse(field.message("sparse tensor of an attribute")?)?;
                    found.wide |= weight.wide;
                    found.half |= weight.element == Element::FLOAT16;
                    found.tensor = Some(weight.value);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Reads a graph inside a node, and returns what is known of its outputs.
    fn subgraph(&mut self, field: &Field<'a>, depth: usize, call: &Call) -> Result<Vec<Value>, EngineError> {
        if depth == MAX_DEPTH {
            return Err(invalid(format!("subgraphs nest deeper than {MAX_DEPTH}")));
        }
        let graph = field.message("subgraph")?;
        let (values, declared) = (self.values.len(), self.declared.len());
        self.types(graph)?;
        let counters = counters::bounds(call, graph, &self.values)?;
        let mut fields = graph;
        let mut position = 0;
        while let Some(field) = fields.next()? {
            if field.number == 11 {
                let (name, element) = value_type(field.message("input")?)?;
                let mut given = infer::entry(call, position);
                given.bound = counters.get(&position).copied().unwrap_or(given.bound);
                let value = Value { element: element.or(given.element), ..given }.in_its_type();
                if value.element == Some(Element::FLOAT16) {
                    self.halves.used(|| format!("input '{name}'"));
                }
                self.name(name, value)?;
                position += 1;
            }
        }
        self.constants(graph)?;
        self.body(graph, depth + 1)?;
        let mut outputs = Vec::new();
        let mut fields = graph;
        while let Some(field) = fields.next()? {
            if field.number == 12 {
                let (name, element) = value_type(field.message("output")?)?;
                outputs.push(self.values.get(name).unwrap_or(Value::data(element)));
            }
        }
        self.values.leave(values);
        self.declared.leave(declared);
        Ok(outputs)
    }

    fn weight(&mut self, message: Message<'a>) -> Result<Weight<'a>, EngineError> {
        self.weights += 1;
        if self.weights > MAX_WEIGHTS {
            return Err(invalid(format!("it has more than {MAX_WEIGHTS} weights")));
        }
        let weight = weight::read(message)?;
        self.elements.entry(weight.element).or_insert_with(|| format!("weight '{}'", weight.name));
        self.weight_bytes = self.weight_bytes.saturating_add(weight.bytes);
        Ok(weight)
    }

    /// A sparse weight: its values name it.
    fn sparse(&mut self, mut message: Message<'a>) -> Result<Weight<'a>, EngineError> {
        let (mut values, mut indices) = (None, None);
        let mut size = Some(1usize);
        while let Some(field) = message.next()? {
            match field.number {
                1 => once(&mut values, self.weight(field.message("sparse weight")?)?, "a sparse weight's values")?,
                2 => once(&mut indices, self.weight(field.message("sparse weight")?)?, "a sparse weight's indices")?,
                3 => field.integers(|dim| {
                    size = size.and_then(|n| n.checked_mul(usize::try_from(dim).ok()?));
                })?,
                _ => {}
            }
        }
        let weight = values.ok_or_else(|| invalid("a sparse weight has no values".into()))?;
        // An engine may make it dense.
        let dense = size.and_then(|n| n.checked_mul(weight.element.bits().div_ceil(8)));
        if dense.is_none_or(|n| n > MAX_BYTES) {
            return Err(invalid(format!("sparse weight '{}' is too large", weight.name)));
        }
        // What is not given is 0.
        let value = weight.value.or(Value { bound: Bound::Within(0.0, 0.0), divides: false, ..weight.value });
        Ok(Weight { value, ..weight })
    }

    /// Adds a declared input or output, unless it is a constant.
    fn declared(
        &mut self,
        field: &Field<'a>,
        role: &str,
        specs: &mut Vec<TensorSpec>,
        constants: &HashSet<&str>,
    ) -> Result<(), EngineError> {
        let mut message = field.message("input or output")?;
        let (mut name, mut kind) = (None, None);
        while let Some(field) = message.next()? {
            match field.number {
                1 => once(&mut name, field.text("the name of an input or output")?, "a name")?,
                2 => once(&mut kind, field.message("type")?, "a type")?,
                _ => {}
            }
        }
        let name = name.filter(|n| !n.is_empty()).ok_or_else(|| invalid(format!("an {role} has no name")))?;
        if constants.contains(name) {
            return Ok(());
        }
        if name.len() > MAX_NAME {
            return Err(invalid(format!("the name of an {role} is over {MAX_NAME} bytes")));
        }
        if specs.len() == MAX_VALUES {
            return Err(invalid(format!("it has more than {MAX_VALUES} {role}s")));
        }
        let kind = kind.ok_or_else(|| invalid(format!("{role} '{name}' declares no type")))?;
        let (element, shape) = tensor_type(kind, name, role)?;
        self.elements.entry(element).or_insert_with(|| format!("{role} '{name}'"));
        if role == "input" {
            self.name(name, Value::data(Some(element)))?;
        }
        let datatype = element.datatype().ok_or_else(|| {
            EngineError::Unsupported(format!("{role} '{name}' is of type {}, which no client can send", element.name()))
        })?;
        check_size(datatype, shape.as_deref(), name, role)?;
        if specs.iter().any(|s| s.name == name) {
            return Err(invalid(format!("{role} '{name}' is declared twice")));
        }
        specs.push(TensorSpec { name: name.to_owned(), datatype, shape });
        Ok(())
    }
}

/// Refuses more names than any real graph has.
fn bounded(names: usize) -> Result<(), EngineError> {
    if names > MAX_NAMES {
        return Err(invalid(format!("it names more than {MAX_NAMES} values")));
    }
    Ok(())
}
