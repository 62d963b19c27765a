//! A `wasi:http` component of WASI 0.3 that does what it must not, by path; a fixture of the sandbox's tests.
use wit_bindgen::StreamWriter;

#[allow(unsafe_code, reason = "generated from the contract")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../guest-sdk/wit",
        inline: "
            package windrose:hostile;
            world hostile {
                include wasi:http/service@0.3.0;
                import wasi:filesystem/preopens@0.3.0;
                import wasi:sockets/ip-name-lookup@0.3.0;
            }
        ",
        world: "windrose:hostile/hostile",
        generate_all,
    });

    use super::Hostile;
    export!(Hostile);
}

use bindings::exports::wasi::http0_3_0::handler::Guest;
use bindings::wasi::filesystem0_3_0::preopens;
use bindings::wasi::filesystem0_3_0::types::{DescriptorFlags, OpenFlags, PathFlags};
use bindings::wasi::http0_3_0::types::{ErrorCode, Fields, Method, Request, Response};
use bindings::wasi::sockets0_3_0::ip_name_lookup;
use bindings::wasi::sockets0_3_0::types::{IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};
use bindings::{wit_future, wit_stream};

struct Hostile;

impl Guest for Hostile {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, name) = target.split_once('?').unwrap_or((&target, ""));
        let text = match path {
            "/loop" => spin(),
            "/loop-after-head" | "/trap-after-head" => "begun".to_owned(),
            "/files" => hoard_files().await,
            "/sockets" => hoard_sockets(),
            "/names" => hoard_names(name).await,
            "/connect-each" => connect_each(name).await,
            "/words" => hoard_words(name),
            _ => "well".to_owned(),
        };
        let (trailers_out, trailers) = wit_future::new(|| Ok(None));
        let (mut output, body) = wit_stream::new();
        let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
        let path = path.to_owned();
        wit_bindgen::spawn_local(async move {
            output.write_all(text.into_bytes()).await;
            go_on(&path, &mut output).await;
            drop(trailers_out);
        });
        Ok(response)
    }
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// What it does while its answer is unfinished.
async fn go_on(path: &str, output: &mut StreamWriter<u8>) {
    match path {
        "/loop-after-head" => spin(),
        "/trap-after-head" => std::process::abort(),
        "/flood" => while output.write_all(vec![b'x'; 4096]).await.is_empty() {},
        _ => {}
    }
}

/// Opens an asset and keeps it.
async fn hoard_files() -> String {
    let folders = preopens::get_directories();
    let Some((folder, _)) = folders.first() else { return "no folder".to_owned() };
    let mut kept = Vec::new();
    loop {
        let path = "names.txt".to_owned();
        match folder.open_at(PathFlags::empty(), path, OpenFlags::empty(), DescriptorFlags::READ).await {
            Ok(file) => kept.push(file),
            Err(code) => return format!("{} files, then {code:?}", kept.len()),
        }
    }
}

/// Opens sockets and keeps them.
fn hoard_sockets() -> String {
    let mut kept = Vec::new();
    loop {
        match TcpSocket::create(IpAddressFamily::Ipv4) {
            Ok(socket) => kept.push(socket),
            Err(code) => return format!("{} sockets, then {code:?}", kept.len()),
        }
    }
}

/// Looks a name up again and again.
async fn hoard_names(name: &str) -> String {
    for count in 0.. {
        if let Err(code) = ip_name_lookup::resolve_addresses(name.to_owned()).await {
            return format!("{count} names, then {code:?}");
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
        let (_trailers_out, trailers) = wit_future::new(|| Ok(None));
        let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
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

/// Opens a connection to each IPv4 address of `NAME:PORT`, and says how that went, a line each.
async fn connect_each(target: &str) -> String {
    let Some((name, port)) = target.split_once(':') else { return "no port".to_owned() };
    let Ok(port) = port.parse() else { return "no port".to_owned() };
    let addresses = match ip_name_lookup::resolve_addresses(name.to_owned()).await {
        Ok(addresses) => addresses,
        Err(code) => return format!("{code:?}"),
    };
    let mut lines = String::new();
    for address in addresses {
        let IpAddress::Ipv4(address @ (a, b, c, d)) = address else { continue };
        let how = match TcpSocket::create(IpAddressFamily::Ipv4) {
            Ok(socket) => socket.connect(IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address })).await,
            Err(code) => Err(code),
        };
        let how = how.map_or_else(|code| format!("{code:?}"), |()| "connected".to_owned());
        lines += &format!("{a}.{b}.{c}.{d} {how}\n");
    }
    lines
}
