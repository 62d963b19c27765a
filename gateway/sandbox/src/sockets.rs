//! `wasi:sockets` within the network grants: names only of granted hosts, connections only to what they resolved to.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wasmtime::component::{Accessor, HasData, Linker, Resource};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{self as p2, ResolveAddressStream};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddress, Network as NetworkHandle};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtxView};
use wasmtime_wasi::{WasiCtxBuilder, WasiView};

use crate::net::Network;
use crate::state::State;

/// Addresses that a guest learns: enough for any honest one.
const ADDRESSES: usize = 256;

/// What the names that one call looked up resolved to.
#[derive(Clone, Default)]
pub(crate) struct Lookups(Arc<Mutex<Found>>);

#[derive(Default)]
struct Found {
    /// Lookups under way: the resource and its name.
    open: Vec<(u32, String)>,
    /// Addresses with the name that they are known by.
    known: Vec<(IpAddr, String)>,
}

impl Lookups {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, ip: IpAddr, name: String) {
        let mut found = self.found();
        if found.known.len() < ADDRESSES {
            found.known.push((ip.to_canonical(), name));
        }
    }

    /// Whether the guest may connect there, by a name that it looked up or by a literal that was granted.
    fn allow(&self, network: &Network, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        network.allows(address, None)
            || self.found().known.iter().any(|(known, name)| *known == ip && network.allows(address, Some(name)))
    }
}

/// Opens TCP connections within `network`, and nothing else.
pub(crate) fn grant(builder: &mut WasiCtxBuilder, network: Arc<Network>, lookups: Lookups) {
    builder.allow_tcp(true).allow_udp(false).allow_ip_name_lookup(true).socket_addr_check(move |address, using| {
        let allowed = match using {
            SocketAddrUse::TcpConnect => lookups.allow(&network, address),
            // The implicit bind before a connection.
            SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
            _ => false,
        };
        Box::pin(async move { allowed })
    });
}

/// Puts our name lookup in the place of the one that resolves every name.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p2::add_to_linker::<State, Named>(linker, |state| View { state })?;
    p3::add_to_linker::<State, Named>(linker, |state| View { state })?;
    linker.allow_shadowing(false);
    Ok(())
}

struct Named;

impl HasData for Named {
    type Data<'a> = View<'a>;
}

/// The store's data, as the name lookup sees it.
pub(crate) struct View<'a> {
    state: &'a mut State,
}

impl View<'_> {
    fn granted(&self, name: &str) -> bool {
        self.state.network().is_some_and(|network| network.names(name))
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut WasiSocketsCtxView<'_>) -> R) -> R {
        let view = self.state.ctx();
        f(&mut WasiSocketsCtxView { ctx: view.ctx.sockets(), table: view.table })
    }
}

// === impl wasi:sockets 0.2 ===

impl network::HostNetwork for View<'_> {
    fn drop(&mut self, handle: Resource<NetworkHandle>) -> wasmtime::Result<()> {
        self.with(|view| network::HostNetwork::drop(view, handle))
    }
}

impl network::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        self.with(|view| network::Host::network_error_code(view, error))
    }
}

impl p2::Host for View<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<NetworkHandle>,
        name: String,
    ) -> Result<Resource<ResolveAddressStream>, SocketError> {
        if !self.granted(&name) {
            return Err(ErrorCode::AccessDenied.into());
        }
        if !self.state.opened().one_more_name() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        let stream = self.with(|view| p2::Host::resolve_addresses(view, network, name.clone()))?;
        self.state.lookups.found().open.push((stream.rep(), name));
        Ok(stream)
    }
}

impl p2::HostResolveAddressStream for View<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<ResolveAddressStream>,
    ) -> Result<Option<IpAddress>, SocketError> {
        let rep = stream.rep();
        let address = self.with(|view| p2::HostResolveAddressStream::resolve_next_address(view, stream))?;
        let name = self.state.lookups.found().open.iter().find(|(open, _)| *open == rep).map(|(_, name)| name.clone());
        if let (Some(address), Some(name)) = (&address, name) {
            let ip = match *address {
                IpAddress::Ipv4((a, b, c, d)) => IpAddr::from([a, b, c, d]),
                IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => IpAddr::from([a, b, c, d, e, f, g, h]),
            };
            self.state.lookups.learn(ip, name);
        }
        Ok(address)
    }

    fn subscribe(&mut self, stream: Resource<ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        self.with(|view| p2::HostResolveAddressStream::subscribe(view, stream))
    }

    fn drop(&mut self, stream: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        let rep = stream.rep();
        self.state.lookups.found().open.retain(|(open, _)| *open != rep);
        self.with(|view| p2::HostResolveAddressStream::drop(view, stream))
    }
}

// === impl wasi:sockets 0.3 ===

impl p3::Host for View<'_> {}

impl<T> p3::HostWithStore<T> for Named {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<types::IpAddress>, p3::ErrorCode>> {
        let lookups = store.with(|mut access| {
            let view = access.get();
            if !view.granted(&name) {
                return Err(p3::ErrorCode::AccessDenied);
            }
            if !view.state.opened().one_more_name() {
                return Err(p3::ErrorCode::Other(Some("this call has looked up as many names as it may".into())));
            }
            Ok(view.state.lookups.clone())
        });
        let lookups = match lookups {
            Ok(lookups) => lookups,
            Err(code) => return Ok(Err(code)),
        };
        let Ok(found) = tokio::net::lookup_host((name.as_str(), 0)).await else {
            return Ok(Err(p3::ErrorCode::NameUnresolvable));
        };
        let found: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
        for ip in &found {
            lookups.learn(*ip, name.clone());
        }
        Ok(Ok(found.into_iter().map(Into::into).collect()))
    }
}
