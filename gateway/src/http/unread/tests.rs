use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::Full;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Counts the answers that are in memory.
#[derive(Clone, Default)]
struct Held(Arc<()>);

struct Answer {
    bytes: Vec<u8>,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Held {
    fn answer(&self, length: usize) -> Bytes {
        Bytes::from_owner(Answer { bytes: vec![7; length], _held: self.0.clone() })
    }

    /// Beside what counts them here and what makes them at the server.
    fn count(&self) -> usize {
        Arc::strong_count(&self.0) - 2
    }
}

/// A connection to a server whose answers are as long as their paths say, with streams whose windows begin like this.
async fn connected(window: u32) -> (h2::client::SendRequest<Bytes>, Held) {
    let (here, there) = tokio::io::duplex(1 << 20);
    let held = Held::default();
    let answers = held.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let length = request.uri().path()[1..].parse().unwrap();
        let body = answers.answer(length);
        async move { Ok::<_, Infallible>(Response::new(Paced::new(Full::new(body)))) }
    });
    let server =
        http2::Builder::new(Streams(PATIENCE)).timer(TokioTimer::new()).serve_connection(TokioIo::new(there), service);
    tokio::spawn(server);
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(1 << 24)
        .handshake::<_, Bytes>(here)
        .await
        .unwrap();
    tokio::spawn(connection);
    (client.ready().await.unwrap(), held)
}

async fn ask(client: &mut h2::client::SendRequest<Bytes>, length: usize) -> h2::RecvStream {
    let request = Request::get(format!("http://test/{length}")).body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["content-length"], length.to_string());
    answer.into_body()
}

/// Takes what comes, and makes no room for more.
async fn take(body: &mut h2::RecvStream) -> Result<usize, h2::Error> {
    let mut taken = 0;
    while let Some(data) = body.data().await {
        taken += data?.len();
    }
    Ok(taken)
}

#[tokio::test(start_paused = true)]
async fn a_stream_for_which_its_client_makes_no_room_is_reset_and_the_connection_goes_on() {
    for (window, length) in [(0, 1), (0, 100), (1, 2), (99, 100), (16 << 10, 1 << 20), (50_000, 50_001)] {
        let (mut client, held) = connected(window).await;
        let before = Instant::now();
        let mut body = ask(&mut client, length).await;
        let error = take(&mut body).await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{window} {length}");
        assert!((PATIENCE..PATIENCE * 2).contains(&before.elapsed()), "{:?}", before.elapsed());
        assert_eq!(held.count(), 0, "{window} {length}");
        if window > 0 {
            let mut other = ask(&mut client, 1).await;
            assert_eq!(take(&mut other).await.unwrap(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_which_there_is_room_ends_at_once() {
    for length in [1, 2, PIECE, PIECE + 1, 2 * PIECE + 1, 1 << 20] {
        let (mut client, held) = connected(1 << 20).await;
        let before = Instant::now();
        let mut body = ask(&mut client, length).await;
        assert_eq!(take(&mut body).await.unwrap(), length);
        assert_eq!((before.elapsed(), held.count()), (Duration::ZERO, 0), "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_something_in_time_gets_all_of_it() {
    let (mut client, held) = connected(16 << 10).await;
    let mut body = ask(&mut client, 100_000).await;
    let mut taken = 0;
    while let Some(data) = body.data().await {
        let length = data.unwrap().len();
        taken += length;
        tokio::time::sleep(PATIENCE * 2 / 3).await;
        body.flow_control().release_capacity(length).unwrap();
    }
    assert_eq!((taken, held.count()), (100_000, 0));
}

/// A connection of which the client reads nothing.
async fn pair() -> (Taken, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (Taken::new(server.unwrap().0, PATIENCE), client.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_client_reads_nothing_fails() {
    let (mut stream, _client) = pair().await;
    let before = Instant::now();
    let error = stream.write_all(&vec![0; 64 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(before.elapsed() >= PATIENCE);
}

/// The kernel may say so only once there is a lot of room.
#[tokio::test(start_paused = true)]
async fn a_connection_where_there_is_a_little_room_goes_on() {
    let (mut stream, mut client) = pair().await;
    let before = Instant::now();
    for _ in 0..3 {
        assert_eq!(poll_fn(|cx| stream.judge(cx, Poll::Pending, b"more")).await.unwrap(), 4);
    }
    assert!(before.elapsed() >= PATIENCE * 3);
    drop(stream);
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "more".repeat(3));
}
