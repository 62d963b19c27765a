//! Bodies to requests and answers.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use windrose_engine::{DataType, Tensor};

use super::data::{self, DataFault, MAX_RANK};
use super::json::{Cursor, Syntax};
use super::number;
use super::{AnswerFormat, CodecError, Decoded, Envelope, Memory};
use crate::request::{Parameter, Response};

/// Inputs or outputs of one body.
const MAX_TENSORS: usize = 1024;

/// Members of one `parameters` object.
const MAX_PARAMETERS: usize = 256;

/// The longest name of a tensor or of a parameter, bytes.
const MAX_NAME: usize = 1024;

type Result<T> = std::result::Result<T, CodecError>;

/// Where in the body a value stands: `inputs[2].shape`.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The member of the body.
    list: &'a str,
    /// The item, where the member is a list.
    index: Option<usize>,
    /// The member of the item, and the member of that.
    member: &'a str,
    inner: &'a str,
}

impl<'a> Place<'a> {
    const fn of(list: &'a str) -> Place<'a> {
        Place { list, index: None, member: "", inner: "" }
    }

    const fn item(self, index: usize) -> Place<'a> {
        Place { index: Some(index), ..self }
    }

    const fn member(self, member: &'a str) -> Place<'a> {
        Place { member, ..self }
    }

    const fn inner(self, inner: &'a str) -> Place<'a> {
        Place { inner, ..self }
    }

    #[cold]
    fn invalid(self, what: impl std::fmt::Display) -> CodecError {
        CodecError::Invalid(format!("{self}: {what}"))
    }

    #[cold]
    fn syntax(self, syntax: Syntax) -> CodecError {
        CodecError::Malformed(format!("{self}: malformed JSON: {syntax}"))
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.list.is_empty() { "request" } else { clipped(self.list) })?;
        if let Some(index) = self.index {
            write!(f, "[{index}]")?;
        }
        for part in [self.member, self.inner] {
            if !part.is_empty() {
                write!(f, ".{}", clipped(part))?;
            }
        }
        Ok(())
    }
}

/// One object of `inputs` or `outputs` in the making.
#[derive(Default)]
struct Item<'a> {
    name: Option<Cow<'a, str>>,
    datatype: Option<DataType>,
    shape: Option<Box<[usize]>>,
    data: ItemData,
    parameters: Vec<(String, Parameter)>,
    seen_parameters: bool,
}

#[derive(Default)]
enum ItemData {
    #[default]
    Absent,
    /// Where `data` begins; it came before the type or the shape.
    Later(usize),
    Parsed(Tensor),
}

/// What tensors are made of, beside the JSON.
struct Source<'m> {
    /// The binary data that is left.
    rest: Bytes,
    memory: Memory<'m>,
}

/// See [`super::decode_request`].
pub(super) fn request(body: &Bytes, json_length: Option<usize>, memory: Memory) -> Result<Decoded> {
    let (json, rest) = split(body, json_length)?;
    let mut cursor = Cursor::new(json);
    let mut decoded = Decoded::default();
    let (mut inputs, mut seen_outputs, mut seen_parameters) = (None, false, false);
    let mut source = Source { rest, memory };
    object(&mut cursor, Place::of(""), |cursor, key| {
        match key {
            "id" => once(Place::of("id"), &mut decoded.request.id, optional_text(cursor, Place::of("id"))?)?,
            "inputs" => once(Place::of("inputs"), &mut inputs, tensors(cursor, Place::of("inputs"), &mut source)?)?,
            "outputs" => {
                flag_once(Place::of("outputs"), &mut seen_outputs)?;
                outputs(cursor, &mut decoded)?;
            }
            "parameters" => {
                flag_once(Place::of("parameters"), &mut seen_parameters)?;
                let place = Place::of("parameters");
                decoded.request.parameters = parameters(cursor, place)?;
            }
            _ => skip(cursor, Place::of(key))?,
        }
        Ok(())
    })?;
    cursor.end().map_err(|s| Place::of("").syntax(s))?;
    surplus(&source.rest)?;
    decoded.request.inputs = inputs.ok_or_else(|| Place::of("inputs").invalid("is missing"))?;
    take_protocol_parameters(&mut decoded)?;
    Ok(decoded)
}

/// See [`super::decode_response`].
pub(super) fn response(body: &Bytes, json_length: Option<usize>) -> Result<(Envelope, Response)> {
    let (json, rest) = split(body, json_length)?;
    let mut source = Source { rest, memory: &mut |_| true };
    let mut cursor = Cursor::new(json);
    let (mut envelope, mut response) = (Envelope::default(), Response::default());
    let (mut name, mut outputs) = (None, None);
    object(&mut cursor, Place::of(""), |cursor, key| {
        match key {
            "model_name" => once(Place::of(key), &mut name, optional_text(cursor, Place::of(key))?)?,
            "model_version" => {
                once(Place::of(key), &mut envelope.model_version, optional_text(cursor, Place::of(key))?)?
            }
            "id" => once(Place::of(key), &mut envelope.id, optional_text(cursor, Place::of(key))?)?,
            "parameters" => response.parameters = parameters(cursor, Place::of("parameters"))?,
            "outputs" => once(Place::of(key), &mut outputs, tensors(cursor, Place::of("outputs"), &mut source)?)?,
            _ => skip(cursor, Place::of(key))?,
        }
        Ok(())
    })?;
    cursor.end().map_err(|s| Place::of("").syntax(s))?;
    surplus(&source.rest)?;
    response.outputs = outputs.ok_or_else(|| Place::of("outputs").invalid("is missing"))?;
    envelope.model_name = name.unwrap_or_default();
    Ok((envelope, response))
}

/// The JSON of a body, and the binary data behind it.
fn split(body: &Bytes, json_length: Option<usize>) -> Result<(&[u8], Bytes)> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        let what = format!("Inference-Header-Content-Length: {length} is beyond the {} bytes of the body", body.len());
        return Err(CodecError::Malformed(what));
    }
    Ok((&body[..length], body.slice(length..)))
}

fn surplus(rest: &Bytes) -> Result<()> {
    match rest.len() {
        0 => Ok(()),
        n => Err(CodecError::Malformed(format!(
            "body: {n} bytes of binary data are left over: no binary_data_size names them"
        ))),
    }
}

/// Walks an object, calling `each` at every member's value.
fn object<'a>(
    cursor: &mut Cursor<'a>,
    place: Place,
    mut each: impl FnMut(&mut Cursor<'a>, &str) -> Result<()>,
) -> Result<()> {
    let syntax = |s| place.syntax(s);
    if cursor.peek() != b'{' {
        return Err(match cursor.skip() {
            Ok(_) => place.invalid("is not an object"),
            Err(s) => place.syntax(s),
        });
    }
    cursor.bump();
    if cursor.accept(b'}') {
        return Ok(());
    }
    loop {
        let key = cursor.string().map_err(syntax)?;
        cursor.expect(b':', "expected ':'").map_err(syntax)?;
        each(cursor, &key)?;
        if cursor.accept(b'}') {
            return Ok(());
        }
        cursor.expect(b',', "expected ',' or '}'").map_err(syntax)?;
    }
}

/// Walks an array, calling `each` at every item.
fn array<'a>(
    cursor: &mut Cursor<'a>,
    place: Place,
    max: usize,
    mut each: impl FnMut(&mut Cursor<'a>, usize) -> Result<()>,
) -> Result<()> {
    let syntax = |s| place.syntax(s);
    if cursor.peek() != b'[' {
        return Err(match cursor.skip() {
            Ok(_) => place.invalid("is not an array"),
            Err(s) => place.syntax(s),
        });
    }
    cursor.bump();
    if cursor.accept(b']') {
        return Ok(());
    }
    for index in 0..max {
        each(cursor, index)?;
        if cursor.accept(b']') {
            return Ok(());
        }
        cursor.expect(b',', "expected ',' or ']'").map_err(syntax)?;
    }
    Err(place.invalid(format!("has more than {max} items")))
}

fn skip(cursor: &mut Cursor, place: Place) -> Result<()> {
    cursor.skip().map(|_| ()).map_err(|s| place.syntax(s))
}

/// Fills a slot that may be filled only once. An explicit `null` counts as absent.
fn once<T>(place: Place, slot: &mut Option<T>, value: impl Into<Option<T>>) -> Result<()> {
    if slot.is_some() {
        return Err(twice(place));
    }
    *slot = value.into();
    Ok(())
}

fn flag_once(place: Place, seen: &mut bool) -> Result<()> {
    if std::mem::replace(seen, true) { Err(twice(place)) } else { Ok(()) }
}

#[cold]
fn twice(place: Place) -> CodecError {
    CodecError::Malformed(format!("{place}: appears twice"))
}

fn text<'a>(cursor: &mut Cursor<'a>, place: Place) -> Result<Cow<'a, str>> {
    if cursor.peek() != b'"' {
        return Err(match cursor.skip() {
            Ok(_) => place.invalid("is not a string"),
            Err(s) => place.syntax(s),
        });
    }
    cursor.string().map_err(|s| place.syntax(s))
}

fn optional_text(cursor: &mut Cursor, place: Place) -> Result<Option<String>> {
    if cursor.word("null") {
        return Ok(None);
    }
    text(cursor, place).map(|t| Some(t.into_owned()))
}

/// A name that is no longer than names may be.
fn name<'a>(cursor: &mut Cursor<'a>, place: Place) -> Result<Cow<'a, str>> {
    let name = text(cursor, place)?;
    check_name(place, &name)?;
    Ok(name)
}

fn check_name(place: Place, name: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(place.invalid(format!("{:?}... is longer than the {MAX_NAME} bytes of a name", clipped(name))));
    }
    Ok(())
}

/// Notes a name that may appear once.
fn unique<'a>(place: Place, seen: &mut HashSet<Cow<'a, str>>, name: Cow<'a, str>) -> Result<()> {
    match seen.replace(name) {
        None => Ok(()),
        Some(name) => Err(place.member("name").invalid(format!("{:?} appears twice", clipped(&name)))),
    }
}

/// `inputs` of a request or `outputs` of an answer.
fn tensors(cursor: &mut Cursor, place: Place, source: &mut Source) -> Result<Vec<(String, Tensor)>> {
    let (mut tensors, mut seen) = (Vec::new(), HashSet::new());
    array(cursor, place, MAX_TENSORS, |cursor, index| {
        let place = place.item(index);
        let mut item = Item::default();
        object(cursor, place, |cursor, key| member(cursor, place, key, &mut item, source))?;
        let (name, tensor) = finish(cursor, place, item, source)?;
        unique(place, &mut seen, name.clone())?;
        tensors.push((name.into_owned(), tensor));
        Ok(())
    })?;
    Ok(tensors)
}

/// One member of an input or output.
fn member<'a>(
    cursor: &mut Cursor<'a>,
    place: Place,
    key: &str,
    item: &mut Item<'a>,
    source: &mut Source,
) -> Result<()> {
    match key {
        "name" => once(place.member("name"), &mut item.name, name(cursor, place.member("name"))?),
        "datatype" => once(place.member("datatype"), &mut item.datatype, datatype(cursor, place)?),
        "shape" => once(place.member("shape"), &mut item.shape, shape(cursor, place)?),
        "parameters" => {
            flag_once(place.member("parameters"), &mut item.seen_parameters)?;
            item.parameters = parameters(cursor, place.member("parameters"))?;
            Ok(())
        }
        "data" => {
            if !matches!(item.data, ItemData::Absent) {
                return Err(twice(place.member("data")));
            }
            if let (Some(datatype), true) = (item.datatype, item.shape.is_some()) {
                let shape = item.shape.clone().unwrap_or_default();
                let name = item.name.as_deref().unwrap_or_default();
                item.data = ItemData::Parsed(parse_data(cursor, place, name, (datatype, shape), source)?);
            } else {
                cursor.peek();
                item.data = ItemData::Later(cursor.position());
                skip(cursor, place.member("data"))?;
            }
            Ok(())
        }
        _ => skip(cursor, place.member(key)),
    }
}

/// The tensor of a complete item.
fn finish<'a>(cursor: &Cursor, place: Place, item: Item<'a>, source: &mut Source) -> Result<(Cow<'a, str>, Tensor)> {
    let name = item.name.ok_or_else(|| place.member("name").invalid("is missing"))?;
    let datatype = item.datatype.ok_or_else(|| place.member("datatype").invalid("is missing"))?;
    let shape = item.shape.ok_or_else(|| place.member("shape").invalid("is missing"))?;
    let size = match item.parameters.iter().find(|(key, _)| key == "binary_data_size") {
        None => None,
        Some((_, Parameter::Integer(size))) if *size >= 0 => Some(*size as u64),
        Some(_) => {
            let place = place.member("parameters").inner("binary_data_size");
            return Err(place.invalid("is not a size"));
        }
    };
    let tensor = match (item.data, size) {
        (ItemData::Absent, Some(size)) => binary(place, &name, (datatype, shape), size, &mut source.rest)?,
        (ItemData::Parsed(tensor), None) => tensor,
        (ItemData::Later(start), None) => {
            let mut cursor = cursor.clone();
            cursor.seek(start);
            parse_data(&mut cursor, place, &name, (datatype, shape), source)?
        }
        (ItemData::Absent, None) if item.parameters.iter().any(|(key, _)| key.starts_with("shared_memory")) => {
            return Err(place
                .member("parameters")
                .inner("shared_memory_region")
                .invalid("shared memory is not served"));
        }
        (ItemData::Absent, None) => {
            let name = clipped(&name);
            return Err(place.member("data").invalid(format!("is missing for {name:?}, and so is binary_data_size")));
        }
        (_, Some(_)) => {
            let name = clipped(&name);
            return Err(place.member("data").invalid(format!("{name:?} has it beside binary_data_size")));
        }
    };
    Ok((name, tensor))
}

/// The next `size` bytes of binary data as a tensor.
fn binary(
    place: Place,
    name: &str,
    (datatype, shape): (DataType, Box<[usize]>),
    size: u64,
    rest: &mut Bytes,
) -> Result<Tensor> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > rest.len() {
        let place = place.member("parameters").inner("binary_data_size");
        let left = rest.len();
        return Err(CodecError::Malformed(format!(
            "{place}: {size} for {:?}, and only {left} bytes of binary data are left",
            clipped(name)
        )));
    }
    let taken = rest.split_to(size);
    check_size(place, datatype, &shape, name)?;
    data::binary(datatype, shape, taken).map_err(|fault| data_fault(place.member("data"), name, fault))
}

fn parse_data(
    cursor: &mut Cursor,
    place: Place,
    name: &str,
    (datatype, shape): (DataType, Box<[usize]>),
    source: &mut Source,
) -> Result<Tensor> {
    check_size(place, datatype, &shape, name)?;
    data::parse(cursor, datatype, shape, source.memory).map_err(|fault| data_fault(place.member("data"), name, fault))
}

/// Refuses a shape whose elements could not be addressed, a zero among its dimensions or not.
fn check_size(place: Place, datatype: DataType, shape: &[usize], name: &str) -> Result<()> {
    if data::element_count(datatype, shape).is_some() {
        return Ok(());
    }
    Err(place.member("shape").invalid(format!("{:?} has too many elements with {shape:?}", clipped(name))))
}

#[cold]
fn data_fault(place: Place, name: &str, fault: DataFault) -> CodecError {
    let named = if name.is_empty() { String::new() } else { format!("{:?} ", clipped(name)) };
    match fault {
        DataFault::Syntax(syntax) => CodecError::Malformed(format!("{place}: {named}is malformed JSON: {syntax}")),
        DataFault::Invalid(what) => CodecError::Invalid(format!("{place}: {named}{what}")),
        DataFault::NoMemory => CodecError::NoMemory,
    }
}

fn datatype(cursor: &mut Cursor, place: Place) -> Result<DataType> {
    let place = place.member("datatype");
    let name = text(cursor, place)?;
    DataType::from_name(&name).ok_or_else(|| place.invalid(format!("{:?} is not a data type", clipped(&name))))
}

fn shape(cursor: &mut Cursor, place: Place) -> Result<Box<[usize]>> {
    let place = place.member("shape");
    let mut shape = Vec::with_capacity(4);
    array(cursor, place, MAX_RANK, |cursor, index| {
        let text = cursor.skip().map_err(|s| place.syntax(s))?;
        let dimension = <u64 as number::Number>::read(text, 0).ok().filter(|(_, end)| *end == text.len());
        let Some(dimension) = dimension.and_then(|(value, _)| usize::try_from(value).ok()) else {
            return Err(place.invalid(format!("dimension {index} is not a size")));
        };
        // Modules are told dimensions of 32 bits. Beside a zero, a larger one has no elements that would be too many.
        if u32::try_from(dimension).is_err() {
            return Err(place.invalid(format!("dimension {index} is over {}", u32::MAX)));
        }
        shape.push(dimension);
        Ok(())
    })?;
    Ok(shape.into())
}

/// The members of a `parameters` object.
fn parameters(cursor: &mut Cursor, place: Place) -> Result<Vec<(String, Parameter)>> {
    let mut parameters: Vec<(String, Parameter)> = Vec::new();
    if cursor.word("null") {
        return Ok(parameters);
    }
    let mut seen = HashSet::new();
    object(cursor, place, |cursor, key| {
        let fail = |what: &str| CodecError::Invalid(format!("{place}.{}: {what}", clipped(key)));
        check_name(place, key)?;
        if seen.len() == MAX_PARAMETERS {
            return Err(place.invalid(format!("has more than {MAX_PARAMETERS} members")));
        }
        if !seen.insert(key.to_owned()) {
            return Err(CodecError::Malformed(format!("{place}.{}: appears twice", clipped(key))));
        }
        if let Some(value) = parameter(cursor, place)?.map_err(fail)? {
            parameters.push((key.to_owned(), value));
        }
        Ok(())
    })?;
    Ok(parameters)
}

/// One parameter; `None` for `null`.
fn parameter(cursor: &mut Cursor, place: Place) -> Result<std::result::Result<Option<Parameter>, &'static str>> {
    if cursor.peek() == b'"' {
        return Ok(Ok(Some(Parameter::Text(cursor.string().map_err(|s| place.syntax(s))?.into_owned()))));
    }
    Ok(match cursor.skip().map_err(|s| place.syntax(s))? {
        b"true" => Ok(Some(Parameter::Boolean(true))),
        b"false" => Ok(Some(Parameter::Boolean(false))),
        b"null" => Ok(None),
        [b'[' | b'{', ..] => Err("is not a string, a number or a boolean"),
        text => match number::integer_or_float(text) {
            Ok(Ok(integer)) => Ok(Some(Parameter::Integer(integer))),
            Ok(Err(float)) => Ok(Some(Parameter::Number(float))),
            Err(_) => Err("is not a finite number"),
        },
    })
}

/// The outputs that a request asks for.
fn outputs(cursor: &mut Cursor, decoded: &mut Decoded) -> Result<()> {
    if cursor.word("null") {
        return Ok(());
    }
    let (list, mut names) = (Place::of("outputs"), HashSet::new());
    array(cursor, list, MAX_TENSORS, |cursor, index| {
        let place = list.item(index);
        let (mut named, mut wanted, mut seen) = (None, Vec::new(), false);
        object(cursor, place, |cursor, key| match key {
            "name" => once(place.member("name"), &mut named, name(cursor, place.member("name"))?),
            "parameters" => {
                flag_once(place.member("parameters"), &mut seen)?;
                wanted = parameters(cursor, place.member("parameters"))?;
                Ok(())
            }
            _ => skip(cursor, place.member(key)),
        })?;
        let name = named.ok_or_else(|| place.member("name").invalid("is missing"))?;
        unique(place, &mut names, name.clone())?;
        let name = name.into_owned();
        output_parameters(place, &name, wanted, &mut decoded.format)?;
        decoded.request.outputs.push(name);
        Ok(())
    })
}

/// What the parameters of one requested output ask for.
fn output_parameters(
    place: Place,
    name: &str,
    parameters: Vec<(String, Parameter)>,
    format: &mut AnswerFormat,
) -> Result<()> {
    let place = place.member("parameters");
    for (key, value) in parameters {
        match (key.as_str(), value) {
            ("binary_data", Parameter::Boolean(binary)) => format.outputs.push((name.to_owned(), binary)),
            ("binary_data", _) => return Err(place.inner("binary_data").invalid("is not a boolean")),
            ("classification", Parameter::Integer(0)) => {}
            ("classification", _) => return Err(place.inner("classification").invalid("is not served")),
            ("shared_memory_region", _) => {
                return Err(place.inner("shared_memory_region").invalid("shared memory is not served"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes out the request's parameters that the protocol itself gives a meaning.
fn take_protocol_parameters(decoded: &mut Decoded) -> Result<()> {
    let place = Place::of("parameters");
    let parameters = &mut decoded.request.parameters;
    if parameters.is_empty() {
        return Ok(());
    }
    let mut take = |name: &str| {
        let index = parameters.iter().position(|(key, _)| key == name)?;
        Some(parameters.remove(index).1)
    };
    match take("binary_data_output") {
        None => {}
        Some(Parameter::Boolean(binary)) => decoded.format.binary = binary,
        Some(_) => return Err(place.member("binary_data_output").invalid("is not a boolean")),
    }
    match take("timeout") {
        None | Some(Parameter::Integer(0)) => {}
        Some(Parameter::Integer(micros)) if micros > 0 => {
            decoded.timeout = Some(Duration::from_micros(micros.unsigned_abs()));
        }
        Some(_) => return Err(place.member("timeout").invalid("is not a number of microseconds")),
    }
    Ok(())
}

/// A caller's text, short enough for a message.
fn clipped(text: &str) -> &str {
    let end = (0..=64.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}
