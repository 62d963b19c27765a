//! For `wasmtime serve -S nn`: four numbers in the query; the answer begins with the path that was asked for.
use std::io::Write;

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

mod nn;

struct Foreign;

impl wasip2::exports::http::incoming_handler::Guest for Foreign {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let answered = nn::open("iris").and_then(|graph| nn::classify(&graph, query));
        let response = OutgoingResponse::new(Fields::new());
        if answered.is_err() {
            let _ = response.set_status_code(500);
        }
        let Ok(body) = response.body() else { return };
        ResponseOutparam::set(out, Ok(response));
        let Ok(mut stream) = body.write() else { return };
        // Whoever asked may be gone.
        let _ = write!(stream, "{path} {}", answered.unwrap_or_else(|error| error));
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

wasip2::http::proxy::export!(Foreign);
