//! A model that answers HTTP itself: a page with a form at `/`, and JSON at `/classify`.
//!
//! It is a standard `wasi:http` component: `wasmtime serve -S nn` runs it as well.
use std::io::Write;

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use windrose_guest::{Error, Graph, Result, Tensor, numeric};

const PAGE: &str = include_str!("page.html");
const COLUMNS: [&str; 4] = ["sepal_length", "sepal_width", "petal_length", "petal_width"];
const SPECIES: [&str; 3] = ["setosa", "versicolor", "virginica"];

/// Status, content type, body.
type Answer = (u16, &'static str, String);

struct Service;

impl wasip2::exports::http::incoming_handler::Guest for Service {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (status, content_type, body) = match path {
            "" | "/" => (200, "text/html; charset=utf-8", PAGE.to_owned()),
            "/classify" => classify(query),
            _ => json_error(404, "there is / and /classify"),
        };
        // Nobody is there to be told when the connection is gone.
        let _ = send(out, status, content_type, body.as_bytes());
    }
}

fn classify(query: &str) -> Answer {
    match measurements(query).and_then(species) {
        Ok((name, probability)) => {
            (200, "application/json", format!("{{\"species\":\"{name}\",\"probability\":{probability}}}"))
        }
        Err(error) if error.is_invalid_input() => json_error(400, error.message()),
        Err(error) => {
            eprintln!("classify: {error}");
            json_error(500, "the model failed")
        }
    }
}

fn json_error(status: u16, message: &str) -> Answer {
    (status, "application/json", format!("{{\"error\":\"{}\"}}", message.replace(['"', '\\'], "'")))
}

/// The four measurements in a query such as `sepal_length=5.1&sepal_width=3.5&…`.
fn measurements(query: &str) -> Result<[f32; 4]> {
    let mut found = [0.0; 4];
    for (value, name) in found.iter_mut().zip(COLUMNS) {
        let text = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let text = text.ok_or_else(|| Error::invalid_input(format!("{name} is missing")))?;
        *value = text.parse().map_err(|_| Error::invalid_input(format!("{name} is not a number")))?;
        if !(0.0..=30.0).contains(value) {
            return Err(Error::invalid_input(format!("{name} is not a length between 0 and 30 cm")));
        }
    }
    Ok(found)
}

fn species(measurements: [f32; 4]) -> Result<(&'static str, f32)> {
    let features = Tensor::new(&[1, 4], &measurements)?;
    let probabilities = Graph::by_name("model")?.compute([("features", features)])?.tensor("probabilities")?;
    let best = numeric::top_k(&probabilities.read::<f32>()?, 1);
    match best.first() {
        Some(&(class, probability)) if class < SPECIES.len() => Ok((SPECIES[class], probability)),
        _ => Err(Error::internal("the graph answered no probabilities")),
    }
}

/// Sends one answer. An error says that the connection is gone.
fn send(out: ResponseOutparam, status: u16, content_type: &str, body: &[u8]) -> std::io::Result<()> {
    let gone = |_| std::io::Error::other("the answer cannot be sent");
    let headers = Fields::from_list(&[("content-type".to_owned(), content_type.as_bytes().to_vec())])
        .map_err(std::io::Error::other)?;
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).map_err(gone)?;
    let outgoing = response.body().map_err(gone)?;
    ResponseOutparam::set(out, Ok(response));
    let mut stream = outgoing.write().map_err(gone)?;
    Write::write_all(&mut stream, body)?;
    Write::flush(&mut stream)?;
    drop(stream);
    OutgoingBody::finish(outgoing, None).map_err(std::io::Error::other)
}

wasip2::http::proxy::export!(Service);
