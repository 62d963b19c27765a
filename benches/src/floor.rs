//! The floor of a server: hyper, which reads the request's body and answers with a constant.

use std::convert::Infallible;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Serves until the process is killed; prints its port first.
pub async fn serve(port: u16, answer_bytes: usize) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("{}", listener.local_addr()?.port());
    let answer = Bytes::from(vec![b' '; answer_bytes]);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| constant(request, answer.clone()));
            let connection = hyper::server::conn::http1::Builder::new();
            // An error here is a client that went away: the load run is over.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn constant(request: Request<Incoming>, answer: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::new(answer)))
}
