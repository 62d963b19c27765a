//! `wasi:sockets` within the network grants: names only of granted hosts, connections only to what they resolved to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::IntoIter;

use wasmtime::component::{Accessor, HasData, Linker, LinkerInstance, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network as NetworkHandle, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, poll_noop, spawn};
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{WasiCtxBuilder, async_trait};

use crate::files::shadow;
use crate::net::Network;
use crate::state::State;

/// Addresses that a guest learns: enough for any honest one.
const ADDRESSES: usize = 256;

/// The addresses that one call has learnt, with the names that they are known by.
#[derive(Clone, Default)]
pub(crate) struct Lookups(Arc<Mutex<Vec<(IpAddr, String)>>>);

impl Lookups {
    /// Nothing panics under it.
    fn known(&self) -> MutexGuard<'_, Vec<(IpAddr, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, ip: IpAddr, name: &str) {
        let mut known = self.known();
        if known.len() < ADDRESSES {
            known.push((ip, name.to_owned()));
        }
    }

    /// Whether the guest may connect there, by a name that it looked up or by a literal that was granted.
    fn allow(&self, network: &Network, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        network.allows(address, None)
            || self.known().iter().any(|(known, name)| *known == ip && network.allows(address, Some(name)))
    }
}

/// Opens TCP connections within `network`, and nothing else.
pub(crate) fn grant(builder: &mut WasiCtxBuilder, network: Arc<Network>, lookups: Lookups) {
    builder.allow_tcp(true).allow_udp(false).socket_addr_check(move |address, using| {
        let allowed = match using {
            SocketAddrUse::TcpConnect => lookups.allow(&network, address),
            // The implicit bind before a connection.
            SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
            _ => false,
        };
        Box::pin(async move { allowed })
    });
}

/// Puts our name lookup in the place of the one that resolves every name, as many at a time as guests like.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    shadow(linker, "wasi:sockets/ip-name-lookup@0.2.12", lookup_2)
}

/// The same for WASI 0.3.
pub(crate) fn link_3(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p3::add_to_linker::<State, Named>(linker, |state| View { state })?;
    linker.allow_shadowing(false);
    Ok(())
}

impl State {
    /// What a guest may look `name` up in, which is then counted.
    fn look_up<E>(&mut self, name: &str, denied: E, too_many: E) -> Result<Arc<Network>, E> {
        let network = self.network().filter(|network| network.names(name)).cloned().ok_or(denied)?;
        if self.opened().one_more_name() { Ok(network) } else { Err(too_many) }
    }
}

// === wasi:sockets 0.2 ===

/// A look-up, under way or done.
struct Stream {
    name: String,
    found: Found,
}

enum Found {
    Coming(AbortOnDropJoinHandle<io::Result<Vec<IpAddr>>>),
    Here(IntoIter<IpAddr>),
    Failed,
}

impl From<io::Result<Vec<IpAddr>>> for Found {
    fn from(found: io::Result<Vec<IpAddr>>) -> Found {
        found.map_or(Found::Failed, |addresses| Found::Here(addresses.into_iter()))
    }
}

impl Stream {
    fn next(&mut self) -> Result<Option<IpAddr>, ErrorCode> {
        if let Found::Coming(coming) = &mut self.found {
            let Some(found) = poll_noop(std::pin::Pin::new(coming)) else { return Err(ErrorCode::WouldBlock) };
            self.found = found.into();
        }
        match &mut self.found {
            Found::Here(addresses) => Ok(addresses.next()),
            Found::Coming(_) | Found::Failed => Err(ErrorCode::NameUnresolvable),
        }
    }
}

#[async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {
        if let Found::Coming(coming) = &mut self.found {
            self.found = coming.await.into();
        }
    }
}

fn lookup_2(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.resource("resolve-address-stream", ResourceType::host::<Stream>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<Stream>::new_own(rep))?;
        Ok(())
    })?;
    instance.func_wrap("resolve-addresses", |mut store, (handle, name): (Resource<NetworkHandle>, String)| {
        let state: &mut State = store.data_mut();
        state.table.get(&handle)?;
        let network = match state.look_up(&name, ErrorCode::AccessDenied, ErrorCode::NewSocketLimit) {
            Ok(network) => network,
            Err(code) => return Ok((Err(code),)),
        };
        let coming = spawn({
            let name = name.clone();
            async move { network.look_up(&name).await }
        });
        Ok((Ok(state.table.push(Stream { name, found: Found::Coming(coming) })?),))
    })?;
    instance.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store, (stream,): (Resource<Stream>,)| {
            let state: &mut State = store.data_mut();
            let stream = state.table.get_mut(&stream)?;
            let next = stream.next();
            if let Ok(Some(ip)) = next {
                state.lookups.learn(ip, &stream.name);
            }
            Ok((next.map(|ip| ip.map(IpAddress::from)),))
        },
    )?;
    instance.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store, (stream,): (Resource<Stream>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            let state: &mut State = store.data_mut();
            Ok((subscribe(&mut state.table, stream)?,))
        },
    )
}

// === wasi:sockets 0.3 ===

struct Named;

impl HasData for Named {
    type Data<'a> = View<'a>;
}

/// The store's data, as the name lookup sees it.
pub(crate) struct View<'a> {
    state: &'a mut State,
}

impl p3::Host for View<'_> {}

impl<T> p3::HostWithStore<T> for Named {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<types::IpAddress>, p3::ErrorCode>> {
        let allowed = store.with(|mut access| {
            let state = access.get().state;
            let too_many = p3::ErrorCode::Other(Some("this call has looked up as many names as it may".into()));
            let network = state.look_up(&name, p3::ErrorCode::AccessDenied, too_many)?;
            Ok((network, state.lookups.clone()))
        });
        let (network, lookups) = match allowed {
            Ok(allowed) => allowed,
            Err(code) => return Ok(Err(code)),
        };
        let Ok(found) = network.look_up(&name).await else {
            return Ok(Err(p3::ErrorCode::NameUnresolvable));
        };
        for ip in &found {
            lookups.learn(*ip, &name);
        }
        Ok(Ok(found.into_iter().map(Into::into).collect()))
    }
}
