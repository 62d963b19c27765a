//! `windrose infer`: one request made of files and words.

use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::client::{Answer, Client, refused};
use super::{Failure, Gateway, npy, out, print_json};
use crate::http::oip::CodecError;
use crate::http::oip::halves::{self, List};

/// Send one request to a model and show its answer.
#[derive(clap::Args)]
#[command(disable_version_flag = true)]
#[command(
    after_help = "Inputs:\n  --input file=@photo.jpg      a file as one byte string (BYTES); for numbers JSON or .npy\n  \
    --input text='some words'    the words themselves; for numbers a JSON array\n  \
    --input text=@lines:file     each line of a file as one byte string, without its end\n  \
    --input text=@npy:names.npy  an array of strings that NumPy saved\n  \
    --json-request request.json  a whole request of the Open Inference Protocol\n  \
                               (FP16 and BF16, for which it has no JSON, are written as numbers, too)\n  \
    --body table.csv             the body for a command or an http component"
)]
pub struct Infer {
    /// The model.
    name: String,
    /// The version [default: the highest that is ready].
    #[arg(long = "version", visible_alias = "model-version", value_name = "VERSION")]
    model_version: Option<String>,
    /// An input. May be repeated.
    #[arg(long = "input", short, value_name = "NAME=VALUE", value_parser = input)]
    inputs: Vec<(String, String)>,
    /// A file with a whole JSON request; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "inputs")]
    json_request: Option<PathBuf>,
    /// A file that is sent as it is, to a command or an http component; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["inputs", "json_request"])]
    body: Option<PathBuf>,
    /// Address of the data listener [default: what the gateway says].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
}

/// Headers of a request.
type Headers = Vec<(&'static str, String)>;

fn input(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE or NAME=@FILE")?;
    Ok((name.to_string(), value.to_string()))
}

fn read(file: &PathBuf) -> Result<Bytes, Failure> {
    let read = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(file)
    };
    read.map(Bytes::from).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}

impl Infer {
    /// Sends the request.
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.client()?;
        let base = match &self.url {
            Some(url) => url.trim_end_matches('/').to_string(),
            None => client.data_url().await?,
        };
        let version = self.model_version.as_ref().map(|version| format!("/versions/{version}")).unwrap_or_default();
        let target = format!("models/{}{version}", self.name);
        if let Some(file) = &self.body {
            return exchange(&client, &format!("{base}/{target}/"), read(file)?).await;
        }
        let model = format!("{base}/v2/{target}");
        let metadata = client.data(&model, Method::GET, &[], Bytes::new()).await?;
        if !metadata.status.is_success() {
            return Err(refused(&metadata));
        }
        let metadata = serde_json::from_slice(&metadata.body).unwrap_or_default();
        let (headers, body) = match &self.json_request {
            Some(file) => whole(read(file)?, &metadata)?,
            None => self.build(&metadata)?,
        };
        let start = Instant::now();
        let answer = client.data(&format!("{model}/infer"), Method::POST, &headers, body).await?;
        let took = start.elapsed();
        if !answer.status.is_success() {
            return Err(refused(&answer));
        }
        let value = halves::answer(&answer.body, answer.json_length);
        let value = value.map_err(|error| Failure::refused(error.to_string()))?;
        if self.gateway.json {
            return print_json(&value);
        }
        print_outputs(&value);
        println!("\nanswered in {:.1} ms", took.as_secs_f64() * 1000.0);
        Ok(())
    }

    /// JSON, with byte strings from files behind it as the protocol's binary extension has them.
    fn build(&self, metadata: &Value) -> Result<(Headers, Bytes), Failure> {
        let declared = metadata["inputs"].as_array().cloned().unwrap_or_default();
        let mut inputs = Vec::new();
        let mut binary = Vec::new();
        for (name, value) in &self.inputs {
            let Some(spec) = declared.iter().find(|spec| spec["name"] == json!(name)) else {
                let names: Vec<&str> = declared.iter().filter_map(|spec| spec["name"].as_str()).collect();
                return Err(Failure::usage(format!(
                    "`{}` has no input `{name}`; it has {}",
                    self.name,
                    names.join(", ")
                )));
            };
            let datatype = spec["datatype"].as_str().unwrap_or("BYTES");
            let rank = spec["shape"].as_array().map_or(1, Vec::len);
            inputs.push(match datatype {
                "BYTES" => bytes_input(name, value, rank, &mut binary)?,
                _ => number_input(name, datatype, (value, rank), &mut binary)?,
            });
        }
        let mut request = json!({ "inputs": inputs });
        halves::ask_for_outputs(&mut request, metadata);
        Ok(framed(&request, binary))
    }
}

/// Posts a body as it is, and shows what comes back.
async fn exchange(client: &Client, url: &str, body: Bytes) -> Result<(), Failure> {
    let start = Instant::now();
    let answer: Answer = client.data(url, Method::POST, &[], body).await?;
    if !answer.status.is_success() {
        return Err(refused(&answer));
    }
    out::say(&answer.body);
    eprintln!("answered in {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

/// A request that somebody wrote: sent as it is, but for what has no JSON form.
fn whole(file: Bytes, metadata: &Value) -> Result<(Headers, Bytes), Failure> {
    // What is no JSON is the gateway's to refuse, in its own words.
    if let Ok(mut request) = serde_json::from_slice::<Value>(&file) {
        let binary = halves::move_behind(&mut request, List::Inputs).map_err(unfit)?;
        if halves::ask_for_outputs(&mut request, metadata) || !binary.is_empty() {
            return Ok(framed(&request, binary));
        }
    }
    Ok((vec![("content-type", "application/json".to_string())], file))
}

/// A number that its type does not hold, or what is no number.
fn unfit(error: CodecError) -> Failure {
    Failure::usage(error.to_string())
}

/// JSON with binary data behind it, where there is any.
fn framed(request: &Value, binary: Vec<u8>) -> (Headers, Bytes) {
    let json = request.to_string();
    let header = match binary.is_empty() {
        true => ("content-type", "application/json".to_string()),
        false => ("inference-header-content-length", json.len().to_string()),
    };
    (vec![header], [json.into_bytes(), binary].concat().into())
}

/// Byte strings: the words, a whole file, or the lines of one.
fn bytes_input(name: &str, value: &str, rank: usize, binary: &mut Vec<u8>) -> Result<Value, Failure> {
    if let Some(path) = value.strip_prefix("@npy:") {
        return array_input(name, "BYTES", (&read(&path.into())?, rank), binary);
    }
    let strings: Vec<Vec<u8>> = match value.strip_prefix('@') {
        Some(path) => match path.strip_prefix("lines:") {
            Some(path) => lines(&read(&path.into())?),
            None => vec![read(&path.into())?.to_vec()],
        },
        None => match serde_json::from_str::<Vec<String>>(value) {
            Ok(strings) => strings.into_iter().map(String::into_bytes).collect(),
            Err(_) => vec![value.as_bytes().to_vec()],
        },
    };
    let before = binary.len();
    for string in &strings {
        let length =
            u32::try_from(string.len()).map_err(|_| Failure::usage(format!("{name}: is larger than 4 GiB")))?;
        binary.extend_from_slice(&length.to_le_bytes());
        binary.extend_from_slice(string);
    }
    let mut shape = vec![1; rank];
    if let Some(last) = shape.last_mut() {
        *last = strings.len();
    }
    let parameters = json!({ "binary_data_size": binary.len() - before });
    Ok(json!({ "name": name, "datatype": "BYTES", "shape": shape, "parameters": parameters }))
}

/// The lines of a file without their ends, the empty ones among them. Behind the last end there is none.
fn lines(file: &[u8]) -> Vec<Vec<u8>> {
    let whole = |line: &[u8]| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line).to_vec()
    };
    file.split_inclusive(|byte| *byte == b'\n').map(whole).collect()
}

/// Numbers: a JSON array, nested or flat within its shape, or an array that NumPy saved.
fn number_input(
    name: &str,
    datatype: &str,
    (value, rank): (&str, usize),
    binary: &mut Vec<u8>,
) -> Result<Value, Failure> {
    let text = match value.strip_prefix('@') {
        Some(path) => {
            let file = read(&path.into())?;
            if npy::is_npy(&file) {
                return array_input(name, datatype, (&file, rank), binary);
            }
            String::from_utf8_lossy(&file).into_owned()
        }
        None => value.to_string(),
    };
    let data: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{name}: {datatype} wants a JSON array of numbers: {error}")))?;
    let shape = shape_of(&data);
    if !is_regular(&data, &shape) {
        return Err(Failure::usage(format!("{name}: the lists in the array differ in length or depth")));
    }
    let shape = with_batch(shape, rank);
    let mut flat = Vec::new();
    flatten(data, &mut flat);
    if halves::is_half(datatype) {
        let bytes = halves::bytes(name, datatype, &flat).map_err(unfit)?;
        let parameters = json!({ "binary_data_size": bytes.len() });
        binary.extend(bytes);
        return Ok(json!({ "name": name, "datatype": datatype, "shape": shape, "parameters": parameters }));
    }
    Ok(json!({ "name": name, "datatype": datatype, "shape": shape, "data": flat }))
}

/// An array that NumPy saved, sent as it lies in the file.
fn array_input(
    name: &str,
    datatype: &str,
    (file, rank): (&[u8], usize),
    binary: &mut Vec<u8>,
) -> Result<Value, Failure> {
    let array = npy::read(file).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    if array.datatype != datatype {
        let is = array.datatype;
        return Err(Failure::usage(format!("{name}: the array is {is}, and the model takes {datatype}")));
    }
    let parameters = json!({ "binary_data_size": array.data.len() });
    binary.extend_from_slice(&array.data);
    let shape = with_batch(array.shape, rank);
    Ok(json!({ "name": name, "datatype": datatype, "shape": shape, "parameters": parameters }))
}

/// One row may come without the batch around it.
fn with_batch(mut shape: Vec<usize>, rank: usize) -> Vec<usize> {
    let missing = rank.saturating_sub(shape.len());
    shape.splice(0..0, std::iter::repeat_n(1, missing));
    shape
}

fn shape_of(value: &Value) -> Vec<usize> {
    match value {
        Value::Array(items) => {
            let mut shape = vec![items.len()];
            shape.extend(items.first().map(shape_of).unwrap_or_default());
            shape
        }
        _ => Vec::new(),
    }
}

/// Whether every part of a value has the shape that its first ones have.
fn is_regular(value: &Value, shape: &[usize]) -> bool {
    match (value, shape) {
        (Value::Array(items), [length, rest @ ..]) => {
            items.len() == *length && items.iter().all(|item| is_regular(item, rest))
        }
        (Value::Array(_), []) => false,
        (_, rest) => rest.is_empty(),
    }
}

fn flatten(value: Value, flat: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.into_iter().for_each(|item| flatten(item, flat)),
        other => flat.push(other),
    }
}

/// The most elements of an output that are shown.
const SHOWN: usize = 16;

fn print_outputs(answer: &Value) {
    for output in answer["outputs"].as_array().into_iter().flatten() {
        let name = output["name"].as_str().unwrap_or("?");
        let datatype = output["datatype"].as_str().unwrap_or("?");
        let mut flat = Vec::new();
        flatten(output["data"].clone(), &mut flat);
        let words: Vec<String> = flat
            .iter()
            .take(SHOWN)
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_string))
            .collect();
        let more = if flat.len() > SHOWN { format!(", ... ({} in all)", flat.len()) } else { String::new() };
        println!("{name:24} {datatype:6} {:12} {}{more}", output["shape"].to_string(), words.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_their_batch_and_strings_their_lengths() {
        let mut binary = Vec::new();
        let numbers = number_input("x", "FP32", ("[1, 2.5]", 2), &mut binary).unwrap();
        assert_eq!(numbers["shape"], json!([1, 2]));
        let words = bytes_input("t", "hi", 1, &mut binary).unwrap();
        assert_eq!(words["parameters"]["binary_data_size"], json!(6));
        assert_eq!(binary, b"\x02\0\0\0hi");
        assert!(number_input("x", "FP32", ("soon", 1), &mut binary).is_err());
    }

    #[test]
    fn each_line_is_a_byte_string_and_an_empty_one_is_too() {
        let cases: [(&str, &[&str]); 6] = [
            ("", &[]),
            ("one", &["one"]),
            ("one\ntwo\n", &["one", "two"]),
            ("one\n\ntwo\n\n", &["one", "", "two", ""]),
            ("one\r\n\r\ntwo", &["one", "", "two"]),
            ("a\rb\n", &["a\rb"]),
        ];
        for (file, expected) in cases {
            let expected: Vec<&[u8]> = expected.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(lines(file.as_bytes()), expected, "{file:?}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\r\n\n").unwrap();
        let mut binary = Vec::new();
        let value = format!("@lines:{}", file.path().display());
        let input = bytes_input("t", &value, 1, &mut binary).unwrap();
        assert_eq!((&input["shape"], binary), (&json!([2]), b"\x01\0\0\0a\0\0\0\0".to_vec()));
    }

    #[test]
    fn ragged_lists_are_refused() {
        for ragged in ["[[1,2,3,4],[1,2,3],[1,2,3,4,5]]", "[[1],2]", "[1,[2]]", "[[[1]],[[1,2]]]", "[[],[1]]"] {
            let refused = number_input("features", "FP32", (ragged, 2), &mut Vec::new()).unwrap_err();
            assert!(refused.message.starts_with("features: "), "{ragged}: {}", refused.message);
        }
        for regular in ["1", "[]", "[[]]", "[[1,2],[3,4]]", "[[[1]],[[2]]]"] {
            assert!(number_input("features", "FP32", (regular, 2), &mut Vec::new()).is_ok(), "{regular}");
        }
    }
}
