//! The body of a POST holds four measurements a line; the answer streams back one species a line, as lines come in.
//!
//! A `wasi:http` component of WASI 0.3, whose streams are part of the component model.
use windrose_guest::{Error, Graph, Result, Tensor, numeric};
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

#[allow(unsafe_code, reason = "generated from the contract")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../guest-sdk/wit",
        world: "windrose:model/http-async",
        generate_all,
    });

    use super::Service;
    export!(Service);
}

use bindings::exports::wasi::http0_3_0::handler::Guest;
use bindings::wasi::http0_3_0::types::{ErrorCode, Fields, Method, Request, Response};
use bindings::{wit_future, wit_stream};

const SPECIES: [&str; 3] = ["setosa", "versicolor", "virginica"];
/// Bytes that are read at once, and the longest line.
const CHUNK: usize = 16 * 1024;

struct Service;

impl Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let headers = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())])
            .map_err(|_| ErrorCode::InternalError(None))?;
        let (trailers_out, trailers) = wit_future::new(|| Ok(None));
        if !matches!(request.get_method(), Method::Post) {
            let (response, _sent) = Response::new(headers, None, trailers);
            response.set_status_code(405).map_err(|()| ErrorCode::InternalError(None))?;
            drop(trailers_out);
            return Ok(response);
        }
        let (received, is_received) = wit_future::new(|| Ok(()));
        drop(received);
        let (input, _trailers) = Request::consume_body(request, is_received);
        let (output, body) = wit_stream::new();
        let (response, _sent) = Response::new(headers, Some(body), trailers);
        wit_bindgen::spawn_local(async move {
            answer_lines(input, output).await;
            drop(trailers_out);
        });
        Ok(response)
    }
}

/// Answers line by line until the body ends or nobody listens.
async fn answer_lines(mut input: StreamReader<u8>, mut output: StreamWriter<u8>) {
    let mut pending = Vec::new();
    loop {
        let (status, chunk) = input.read(Vec::with_capacity(CHUNK)).await;
        pending.extend_from_slice(&chunk);
        let ended = !matches!(status, StreamResult::Complete(_));
        let whole = match pending.iter().rposition(|&byte| byte == b'\n') {
            _ if ended => pending.len(),
            Some(end) => end + 1,
            None if pending.len() > CHUNK => pending.len(),
            None => 0,
        };
        let lines: Vec<u8> = pending.drain(..whole).collect();
        let answer: String = String::from_utf8_lossy(&lines).lines().map(answer_line).collect();
        if !output.write_all(answer.into_bytes()).await.is_empty() || ended {
            return;
        }
    }
}

fn answer_line(line: &str) -> String {
    match species(line) {
        Ok(name) => format!("{name}\n"),
        Err(error) if error.is_invalid_input() => format!("error: {error}\n"),
        Err(error) => {
            eprintln!("{error}");
            "error: the model failed\n".to_owned()
        }
    }
}

fn species(line: &str) -> Result<&'static str> {
    let values: Vec<f32> = line.split([',', ' ']).filter_map(|word| word.trim().parse().ok()).collect();
    if values.len() != 4 {
        return Err(Error::invalid_input("a line needs four numbers"));
    }
    let features = Tensor::new(&[1, 4], &values)?;
    let probabilities = Graph::by_name("model")?.compute([("features", features)])?.tensor("probabilities")?;
    let class = numeric::argmax(&probabilities.read::<f32>()?);
    class.and_then(|class| SPECIES.get(class)).copied().ok_or_else(|| Error::internal("no probabilities"))
}
