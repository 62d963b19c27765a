//! A `wasi:http` component that does what it must not, by path; a fixture of the sandbox's tests.
use std::io::{Read, Write};

use wasip2::filesystem::preopens;
use wasip2::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};
use wasip2::sockets::network::{ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::{instance_network, ip_name_lookup, tcp_create_socket};

struct Hostile;

impl wasip2::exports::http::incoming_handler::Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, rest) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/silent" => {}
            "/loop" => spin(),
            "/loop-after-head" => answer(out, &[b"begun"], || spin()),
            "/trap-after-head" => answer(out, &[b"begun"], || std::process::abort()),
            "/flood" => {
                let chunk = [b'x'; 4096];
                answer(out, &vec![&chunk[..]; 100_000], || ());
            }
            "/length" => match length(request) {
                Some(length) => answer(out, &[length.to_string().as_bytes()], || ()),
                None if rest == "trap" => std::process::abort(),
                None => fail(out),
            },
            "/headers" => {
                let text = headers(request);
                answer(out, &[text.as_bytes()], || ());
            }
            "/fetch" => {
                let text = fetch(rest).unwrap_or_else(|error| format!("refused: {error}"));
                answer(out, &[text.as_bytes()], || ());
            }
            "/connect" => {
                let text = connect(rest).unwrap_or_else(|error| format!("refused: {error}"));
                answer(out, &[text.as_bytes()], || ());
            }
            "/connect-each" => answer(out, &[connect_each(rest).as_bytes()], || ()),
            "/files" => answer(out, &[hoard_files().as_bytes()], || ()),
            "/sockets" => answer(out, &[hoard_sockets().as_bytes()], || ()),
            "/names" => answer(out, &[hoard_names(rest).as_bytes()], || ()),
            "/requests" => answer(out, &[hoard_requests(rest).as_bytes()], || ()),
            "/words" => answer(out, &[hoard_words(rest).as_bytes()], || ()),
            "/bodies" => answer(out, &[hoard_bodies().as_bytes()], || ()),
            _ => answer(out, &[b"well"], || ()),
        }
    }
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// Sends an answer in chunks; `before_end` runs while it is unfinished.
fn answer(out: ResponseOutparam, chunks: &[&[u8]], before_end: impl FnOnce()) {
    let response = OutgoingResponse::new(Fields::new());
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    let Ok(mut stream) = body.write() else { return };
    for chunk in chunks {
        if stream.write_all(chunk).is_err() || stream.flush().is_err() {
            return;
        }
    }
    before_end();
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// An error of its own.
fn fail(out: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    if response.set_status_code(500).is_ok() {
        ResponseOutparam::set(out, Ok(response));
    }
}

/// How long the body of a request is; nothing where it breaks off.
fn length(request: IncomingRequest) -> Option<u64> {
    let body = request.consume().ok()?;
    let mut stream = body.stream().ok()?;
    std::io::copy(&mut stream, &mut std::io::sink()).ok()
}

/// The names of all headers of a request and of its trailers, a line each.
fn headers(request: IncomingRequest) -> String {
    let mut names: Vec<String> = request.headers().entries().into_iter().map(|(name, _)| name).collect();
    let Ok(body) = request.consume() else { return "the body is gone".to_owned() };
    if let Ok(mut stream) = body.stream() {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    if let Some(Ok(Ok(Some(trailers)))) = trailers.get() {
        names.extend(trailers.entries().into_iter().map(|(name, _)| name));
    }
    names.join("\n")
}

/// Gets `http://AUTHORITY/`.
fn fetch(target: &str) -> Result<String, String> {
    let (scheme, authority) = match target.strip_prefix("https:") {
        Some(authority) => (Scheme::Https, authority),
        None => (Scheme::Http, target),
    };
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&scheme)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    request.set_path_with_query(Some("/")).map_err(|()| "path")?;
    let pending = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    pending.subscribe().block();
    let response = match pending.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(code))) => return Err(format!("{code:?}")),
        _ => return Err("no answer".to_owned()),
    };
    let body = response.consume().map_err(|()| "body")?;
    let mut stream = body.stream().map_err(|()| "stream")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Opens a connection to `HOST:PORT`, over IPv4.
fn connect(target: &str) -> Result<String, String> {
    let (host, port) = target.split_once(':').ok_or("no port")?;
    let port = port.parse().map_err(|_| "no port")?;
    let octets: Vec<u8> = host.split('.').filter_map(|octet| octet.parse().ok()).collect();
    let address = match octets[..] {
        [a, b, c, d] => (a, b, c, d),
        _ => *resolve(host).map_err(|code| format!("{code:?}"))?.first().ok_or("no address")?,
    };
    open(Ipv4SocketAddress { port, address }).map_err(|code| format!("{code:?}"))
}

/// Opens a connection to each IPv4 address of `NAME:PORT`, and says how that went, a line each.
fn connect_each(target: &str) -> String {
    let Some((name, port)) = target.split_once(':') else { return "no port".to_owned() };
    let (Ok(port), Ok(addresses)) = (port.parse(), resolve(name)) else { return "no address".to_owned() };
    let lines = addresses.into_iter().map(|address @ (a, b, c, d)| {
        let how = open(Ipv4SocketAddress { port, address }).unwrap_or_else(|code| format!("{code:?}"));
        format!("{a}.{b}.{c}.{d} {how}\n")
    });
    lines.collect()
}

/// Opens an asset and keeps it.
fn hoard_files() -> String {
    let folders = preopens::get_directories();
    let Some((folder, _)) = folders.first() else { return "no folder".to_owned() };
    let mut kept = Vec::new();
    loop {
        match folder.open_at(PathFlags::empty(), "names.txt", OpenFlags::empty(), DescriptorFlags::READ) {
            Ok(file) => kept.push(file),
            Err(code) => return format!("{} files, then {code:?}", kept.len()),
        }
    }
}

/// Opens sockets and keeps them.
fn hoard_sockets() -> String {
    let mut kept = Vec::new();
    loop {
        match tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4) {
            Ok(socket) => kept.push(socket),
            Err(code) => return format!("{} sockets, then {code:?}", kept.len()),
        }
    }
}

/// Looks a name up again and again, and keeps what would tell the addresses.
fn hoard_names(name: &str) -> String {
    let mut kept = Vec::new();
    loop {
        match ip_name_lookup::resolve_addresses(&instance_network::instance_network(), name) {
            Ok(found) => kept.push(found),
            Err(code) => return format!("{} names, then {code:?}", kept.len()),
        }
    }
}

/// Sends requests until one is refused.
fn hoard_requests(target: &str) -> String {
    for count in 0.. {
        if let Err(error) = fetch(target) {
            return format!("{count} requests, then {error}");
        }
    }
    String::new()
}

/// Has the host keep fields, or words of requests, of 32 KiB each; 3,000 of them, as far as it lets this.
fn hoard_words(what: &str) -> String {
    let (word, mut kept, mut requests) = ("a".repeat(32 << 10), Vec::new(), Vec::new());
    let list = || Fields::from_list(&[("a".to_owned(), word.clone().into_bytes())]);
    let Ok(first) = list() else { return "no fields".to_owned() };
    for _ in 0..3_000 {
        let fields = Fields::new();
        let request = OutgoingRequest::new(Fields::new());
        let done = match what {
            "list" => list().map(|more| kept.push(more)).is_ok(),
            "set" => fields.set("a", &[word.clone().into_bytes()]).is_ok(),
            "append" => fields.append("a", word.as_bytes()).is_ok(),
            // A copy that has changed is one.
            "clone" => {
                let copy = first.clone();
                let changed = copy.append("b", b"b").is_ok();
                kept.push(copy);
                changed
            }
            "method" => request.set_method(&Method::Other(word.clone())).is_ok(),
            "path" => request.set_path_with_query(Some(&format!("/{word}"))).is_ok(),
            _ => request.set_authority(Some(&word)).is_ok(),
        };
        if !done {
            return "refused".to_owned();
        }
        kept.push(fields);
        requests.push(request);
    }
    format!("{} kept", kept.len() + requests.len())
}

/// Fills the bodies of 2,000 requests that it does not send; how much they hold, MiB.
fn hoard_bodies() -> String {
    let (mut kept, mut held) = (Vec::new(), 0);
    for _ in 0..2_000 {
        let request = OutgoingRequest::new(Fields::new());
        let Ok(body) = request.body() else { return "no body".to_owned() };
        let Ok(stream) = body.write() else { return "no stream".to_owned() };
        while let Ok(room @ 1..) = stream.check_write() {
            let chunk = vec![0; room as usize];
            if stream.write(&chunk).is_err() {
                return "refused".to_owned();
            }
            held += chunk.len();
        }
        kept.push((stream, body, request));
    }
    (held >> 20).to_string()
}

/// The IPv4 addresses of a name.
fn resolve(name: &str) -> Result<Vec<(u8, u8, u8, u8)>, ErrorCode> {
    let stream = ip_name_lookup::resolve_addresses(&instance_network::instance_network(), name)?;
    let mut found = Vec::new();
    loop {
        stream.subscribe().block();
        match stream.resolve_next_address() {
            Ok(Some(IpAddress::Ipv4(address))) => found.push(address),
            Ok(Some(_)) | Err(ErrorCode::WouldBlock) => {}
            Ok(None) => return Ok(found),
            Err(code) => return Err(code),
        }
    }
}

fn open(address: Ipv4SocketAddress) -> Result<String, ErrorCode> {
    let socket = tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)?;
    socket.start_connect(&instance_network::instance_network(), IpSocketAddress::Ipv4(address))?;
    loop {
        socket.subscribe().block();
        match socket.finish_connect() {
            Ok(_) => return Ok("connected".to_owned()),
            Err(ErrorCode::WouldBlock) => {}
            Err(code) => return Err(code),
        }
    }
}

wasip2::http::proxy::export!(Hostile);
