//! What a granted network reaches: named hosts, at public addresses that were checked after resolution.
//!
//! A name that was granted opens only addresses of the public internet, so that no name can be pointed at this
//! machine or its neighbours; an address literal that was granted opens that very address. The gateway's own listeners
//! stay closed unless a grant names address and port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use crate::Grants;
use crate::names::Names;

/// Waits that a guest can only shorten.
const CONNECT: Duration = Duration::from_secs(10);
const FIRST_BYTE: Duration = Duration::from_secs(60);
const BETWEEN_BYTES: Duration = Duration::from_secs(60);

/// What a program's network grants open.
#[derive(Debug)]
pub(crate) struct Network {
    rules: Vec<Rule>,
    closed: Vec<SocketAddr>,
    resolver: Names,
}

#[derive(Debug)]
struct Rule {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, PartialEq)]
enum Host {
    Name(String),
    Address(IpAddr),
}

impl Network {
    /// The network that `grants` opens, without the gateway's own listeners.
    pub(crate) fn new(grants: &Grants, closed: &[SocketAddr], resolver: Names) -> Network {
        let rules = grants.network.iter().map(|grant| rule(grant)).collect();
        Network { rules, closed: closed.to_vec(), resolver }
    }

    /// Whether a guest may ask for the addresses of `name`.
    pub(crate) fn names(&self, name: &str) -> bool {
        let host = host(name);
        self.rules.iter().any(|rule| rule.host == host)
    }

    /// The addresses of `name`, whether a guest may connect there or not.
    pub(crate) async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if let Host::Address(ip) = host(name) {
            return Ok(vec![ip]);
        }
        Ok(self.resolver.look_up(name, 0).await?.into_iter().map(|address| address.ip().to_canonical()).collect())
    }

    /// Whether a guest may connect to `address`, which it has as `name` or, without one, as a literal.
    pub(crate) fn allows(&self, address: SocketAddr, name: Option<&str>) -> bool {
        let ip = address.ip().to_canonical();
        let literal =
            self.rules.iter().find(|r| r.host == Host::Address(ip) && r.port.is_none_or(|p| p == address.port()));
        if let Some(rule) = literal {
            return rule.port.is_some() || !self.is_own(ip, address.port());
        }
        let Some(name) = name.map(host) else { return false };
        let named = self.rules.iter().any(|r| r.host == name && r.port.is_none_or(|p| p == address.port()));
        named && is_public(ip) && !self.is_own(ip, address.port())
    }

    /// Whether one of the gateway's own listeners answers there.
    fn is_own(&self, ip: IpAddr, port: u16) -> bool {
        self.closed.iter().filter(|own| own.port() == port).any(|own| {
            let listener = own.ip().to_canonical();
            listener == ip || (listener.is_unspecified() && is_local(ip))
        })
    }

    /// The addresses of `name` that a guest may connect to; an error when any of them is closed to it.
    async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        if let Host::Address(ip) = host(name) {
            let address = SocketAddr::new(ip, port);
            return if self.allows(address, None) { Ok(vec![address]) } else { Err(Error::HttpRequestDenied) };
        }
        if !self.rules.iter().any(|r| r.host == host(name) && r.port.is_none_or(|p| p == port)) {
            return Err(Error::HttpRequestDenied);
        }
        let found = self.resolver.look_up(name, port).await;
        let found = found.map_err(|_| Error::DnsError { rcode: None, info_code: None })?;
        if found.is_empty() {
            return Err(Error::DestinationNotFound);
        }
        if found.iter().any(|address| !self.allows(*address, Some(name))) {
            return Err(Error::DestinationIpProhibited);
        }
        Ok(found)
    }
}

/// A grant as it was written: `host`, `host:port`, `1.2.3.4`, `::1`, `[::1]:port`.
fn rule(grant: &str) -> Rule {
    if let Ok(address) = grant.parse::<SocketAddr>() {
        return Rule { host: Host::Address(address.ip().to_canonical()), port: Some(address.port()) };
    }
    if let Host::Address(ip) = host(grant) {
        return Rule { host: Host::Address(ip), port: None };
    }
    match grant.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => Rule { host: host(name), port: Some(port) },
        _ => Rule { host: host(grant), port: None },
    }
}

impl Grants {
    /// What both grant. A host of the ceiling without a port allows each port of it.
    pub fn min(&self, ceiling: &Grants) -> Grants {
        self.within(ceiling, &[])
    }

    /// As [`Grants::min`], where the gateway's own listeners are `closed`: of them it grants what the ceiling itself names
    /// by address and port.
    pub fn within(&self, ceiling: &Grants, closed: &[SocketAddr]) -> Grants {
        let allowed = |asked: &&String| ceiling.network.iter().any(|most| covers(most, asked, closed));
        let network = self.network.iter().filter(allowed).cloned().collect();
        Grants { network, load: self.load && ceiling.load }
    }
}

/// Whether the grant `most` opens all that the grant `asked` does, where the gateway's own listeners are `closed`.
fn covers(most: &str, asked: &str, closed: &[SocketAddr]) -> bool {
    let (most, asked) = (rule(most), rule(asked));
    // With a port, an address opens the gateway's own listener, too. Which addresses are this machine's may change: one
    // that listens on all of them is taken to listen on any.
    let is_own = |port: u16, ip: IpAddr| {
        let same = |own: IpAddr| own.is_unspecified() || own.to_canonical() == ip;
        closed.iter().any(|own| own.port() == port && same(own.ip()))
    };
    most.host == asked.host
        && match (most.port, asked.port) {
            (None, Some(port)) => !matches!(asked.host, Host::Address(ip) if is_own(port, ip)),
            (most, asked) => most == asked,
        }
}

/// A host as a guest writes it.
fn host(text: &str) -> Host {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Host::Address(ip.to_canonical()),
        Err(_) => Host::Name(text.trim_end_matches('.').to_ascii_lowercase()),
    }
}

/// Whether this machine has the address: only then can a socket be bound to it.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether an address belongs to the public internet.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113))
}

/// Only what is assigned as global unicast (2000::/3), without the ranges in it that hide an IPv4 address or are
/// for documentation.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    (s[0] & 0xe000) == 0x2000
        && !(s[0] == 0x2001 && s[1] < 0x0200)
        && !(s[0] == 0x2001 && s[1] == 0x0db8)
        && s[0] != 0x2002
        && !(s[0] == 0x3fff && s[1] < 0x1000)
}

/// Sends a guest's request to where its grants allow; the second part of the answer drives the connection.
pub(crate) async fn send(
    network: &Network,
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Result<(Response<WasiBody>, impl Future<Output = Result<(), Error>> + Send + use<>), Error> {
    let (name, port) = target(request.uri())?;
    let wait = |own: Option<Duration>, most: Duration| own.unwrap_or(most).min(most);
    let connecting = wait(options.and_then(|o| o.connect_timeout), CONNECT);
    let first = wait(options.and_then(|o| o.first_byte_timeout), FIRST_BYTE);
    let between = wait(options.and_then(|o| o.between_bytes_timeout), BETWEEN_BYTES);

    let connect = async {
        let addresses = network.resolve(&name, port).await?;
        let stream = TcpStream::connect(&*addresses).await.map_err(Error::Connect)?;
        http1::handshake(TokioIo::new(stream)).await.map_err(Error::Hyper)
    };
    let (mut sender, connection) = timeout(connecting, connect).await.map_err(|_| Error::ConnectionTimeout)??;
    // The connection is driven by a task of its own until the guest lets go of it.
    let driver = wasmtime_wasi::runtime::spawn(connection);

    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    *request.uri_mut() = Uri::builder().path_and_query(path).build().map_err(|_| Error::HttpRequestUriInvalid)?;
    let response = timeout(first, sender.send_request(request)).await;
    let response = response.map_err(|_| Error::HttpResponseTimeout)?.map_err(Error::Hyper)?;
    let response = response.map(|body| Timed { body, wait: between, timer: None }.boxed_unsync());
    Ok((response, async move { driver.await.map_err(Error::Hyper) }))
}

/// The host and port that a request is for.
fn target(uri: &Uri) -> Result<(String, u16), Error> {
    if uri.scheme() == Some(&Scheme::HTTPS) {
        return Err(Error::InternalError(Some("TLS is not supported: only http requests leave the sandbox".into())));
    }
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let name = authority.host();
    let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    Ok((name.to_owned(), authority.port_u16().unwrap_or(80)))
}

/// An answer's body that fails when the other side is silent for too long.
struct Timed {
    body: hyper::body::Incoming,
    wait: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.timer = None;
            return Poll::Ready(frame.map(|f| f.map_err(Error::Hyper)));
        }
        let wait = this.wait;
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        timer.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_grant_holds() {
        let grants = |network: &[&str]| Grants { network: network.iter().map(|h| (*h).into()).collect(), load: false };
        let closed = ["127.0.0.1:8001".parse().unwrap(), "0.0.0.0:8000".parse().unwrap(), "[::]:8002".parse().unwrap()];
        let cases = [
            ("example.com", "example.com:80", true),
            ("example.com", "EXAMPLE.com", true),
            ("Example.com.", "example.COM:443", true),
            ("example.com:443", "Example.com:443", true),
            ("example.com:443", "example.com:80", false),
            ("example.com:443", "example.com", false),
            ("example.com", "sub.example.com", false),
            ("example.com", "example.com.evil.org", false),
            ("example.com", "example.com:99999", false),
            ("127.0.0.1", "127.0.0.1:18899", true),
            ("127.0.0.1", "127.0.0.2:18899", false),
            ("::1", "[::1]:9000", true),
            ("[::1]", "::1", true),
            ("::ffff:127.0.0.1", "127.0.0.1:18899", true),
            // The gateway's own.
            ("127.0.0.1", "127.0.0.1:8001", false),
            ("127.0.0.1", "127.0.0.1:8000", false),
            ("::1", "[::1]:8002", false),
            ("127.0.0.1", "[::ffff:127.0.0.1]:8001", false),
            ("127.0.0.1:8001", "127.0.0.1:8001", true),
            ("127.0.0.1", "127.0.0.1", true),
        ];
        for (ceiling, asked, granted) in cases {
            let both = grants(&[asked]).within(&grants(&["other.example", ceiling]), &closed);
            assert_eq!(both.network, if granted { vec![asked] } else { vec![] }, "{asked} under {ceiling}");
        }
    }

    fn network(grants: &[&str], closed: &[&str]) -> Network {
        let network = grants.iter().map(|s| s.to_string()).collect();
        let closed: Vec<_> = closed.iter().map(|a| a.parse().unwrap()).collect();
        Network::new(&Grants { network, load: false }, &closed, Names::of_program(&Names::of_process()))
    }

    #[test]
    fn only_global_addresses_are_public() {
        for closed in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2001::1",
            "100::1",
        ] {
            assert!(!is_public(closed.parse().unwrap()), "{closed}");
        }
        for open in ["1.1.1.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(open.parse().unwrap()), "{open}");
        }
    }

    #[test]
    fn a_name_opens_public_addresses_only() {
        let network = network(&["Example.com", "other.org:8080"], &[]);
        let at = |text: &str| text.parse().unwrap();
        assert!(network.allows(at("1.1.1.1:80"), Some("example.COM.")));
        assert!(!network.allows(at("127.0.0.1:80"), Some("example.com")));
        assert!(!network.allows(at("[::ffff:192.168.0.1]:80"), Some("example.com")));
        assert!(!network.allows(at("1.1.1.1:80"), Some("example.com.evil.org")));
        assert!(!network.allows(at("1.1.1.1:80"), None));
        assert!(!network.allows(at("1.1.1.1:80"), Some("other.org")));
        assert!(network.allows(at("1.1.1.1:8080"), Some("other.org")));
        assert!(network.names("EXAMPLE.com") && !network.names("com"));
    }

    #[test]
    fn a_literal_opens_that_address() {
        let network = network(&["127.0.0.1", "[::1]:90", "10.0.0.1:443"], &["127.0.0.1:8080", "0.0.0.0:9000"]);
        let at = |text: &str| text.parse().unwrap();
        assert!(network.allows(at("127.0.0.1:80"), None));
        assert!(network.allows(at("[::ffff:127.0.0.1]:80"), Some("localhost")));
        assert!(!network.allows(at("127.0.0.1:8080"), None), "our own listener");
        assert!(!network.allows(at("127.0.0.1:9000"), None), "our own listener, on every address");
        assert!(network.allows(at("[::1]:90"), None));
        assert!(!network.allows(at("[::1]:91"), None));
        assert!(!network.allows(at("127.0.0.2:80"), None));
        assert!(!network.allows(at("10.0.0.1:80"), None));
    }

    #[test]
    fn an_own_listener_is_opened_by_its_address_and_port() {
        let network = network(&["127.0.0.1:8080"], &["127.0.0.1:8080"]);
        assert!(network.allows("127.0.0.1:8080".parse().unwrap(), None));
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_refused() {
        let network = network(&["localhost"], &[]);
        assert!(matches!(network.resolve("localhost", 80).await, Err(Error::DestinationIpProhibited)));
        assert!(matches!(network.resolve("127.0.0.1", 80).await, Err(Error::HttpRequestDenied)));
        assert!(matches!(network.resolve("elsewhere.invalid", 80).await, Err(Error::HttpRequestDenied)));
    }

    #[test]
    fn tls_is_refused_in_words() {
        let error = target(&"https://example.com/".parse().unwrap()).unwrap_err();
        assert!(matches!(error, Error::InternalError(Some(text)) if text.contains("TLS")));
        assert!(target(&"http://a@example.com/".parse().unwrap()).is_err());
        assert_eq!(target(&"http://[::1]:8/".parse().unwrap()).unwrap(), ("::1".into(), 8));
    }
}
