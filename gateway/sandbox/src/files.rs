//! Files and sockets of the host that guests open. They are bounded for one call, for all calls of one program and for
//! all programs together, so that no guest takes the descriptors that connections and other models need.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::component::{Linker, LinkerInstance};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types as files;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode as SocketError, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket;
use wasmtime_wasi::p3::bindings::filesystem::types as files_3;
use wasmtime_wasi::p3::bindings::sockets::types as sockets_3;
use wasmtime_wasi::sockets::WasiSocketsView;

use crate::net::Network;
use crate::program::Inner;
use crate::state::State;

/// Files and sockets that one call may open, what it has closed again included: a stream over a file keeps it open where
/// nobody sees. The child that prepares a deployment has descriptors for one such call.
const CALL: usize = 500;
/// Names that one call may look up.
const LOOKUPS: usize = 256;
/// All guests may have one such part of the process's descriptors, and one program one such part of that.
const GUESTS: usize = 2;
const PROGRAM: usize = 4;

/// A count that does not go beyond a bound.
#[derive(Debug)]
pub(crate) struct Bound {
    taken: AtomicUsize,
    most: usize,
}

impl Bound {
    /// Of `most`, none taken.
    pub(crate) fn new(most: usize) -> Bound {
        Bound { taken: AtomicUsize::new(0), most }
    }

    /// For all guests of this process.
    pub(crate) fn of_process() -> Bound {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        Bound::new(limit / GUESTS)
    }

    /// For one program of a process whose guests have `self`: a part of it, but not less than one call may have.
    pub(crate) fn of_program(&self) -> Bound {
        Bound::new((self.most / PROGRAM).max(CALL))
    }

    /// Counts one more, unless there are as many as may be.
    pub(crate) fn take(&self) -> bool {
        let more = |taken| (taken < self.most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// So many are gone.
    pub(crate) fn give_back(&self, count: usize) {
        self.taken.fetch_sub(count, Ordering::Relaxed);
    }
}

/// What one call has opened; given back when the call's store goes.
pub(crate) struct Opened {
    program: Arc<Inner>,
    count: usize,
    /// What earlier calls of the same instance have opened, and it may still hold.
    earlier: usize,
    lookups: usize,
    /// Whether the log says that there was no more.
    is_told: bool,
}

impl Opened {
    /// Nothing yet.
    pub(crate) fn new(program: &Arc<Inner>) -> Opened {
        Opened { program: program.clone(), count: 0, earlier: 0, lookups: 0, is_told: false }
    }

    /// Whether the instance may have another call: it then holds at most what two may.
    pub(crate) fn may_wait(&self) -> bool {
        self.count <= CALL
    }

    /// Begins to count for another call of the instance.
    pub(crate) fn again(&mut self) {
        (self.earlier, self.lookups, self.is_told) = (self.count, 0, false);
    }

    /// What the program's grants open.
    pub(crate) fn network(&self) -> Option<&Arc<Network>> {
        self.program.network.as_ref()
    }

    /// Whether the call may open one more, which is then counted.
    pub(crate) fn one_more(&mut self) -> bool {
        let whose = if self.count - self.earlier >= CALL {
            "this call"
        } else if !self.program.files.take() {
            "all calls of this model"
        } else if !self.program.sandbox.files.take() {
            self.program.files.give_back(1);
            "all models"
        } else {
            self.count += 1;
            return true;
        };
        self.tell("as many files and sockets as may be are open", whose);
        false
    }

    /// Whether the call may look up one more name, which is then counted.
    pub(crate) fn one_more_name(&mut self) -> bool {
        if self.lookups >= LOOKUPS {
            self.tell("as many names as may be were looked up", "this call");
            return false;
        }
        self.lookups += 1;
        self.one_more()
    }

    /// What was counted could not be opened.
    fn give_back(&mut self) {
        self.count -= 1;
        self.program.files.give_back(1);
        self.program.sandbox.files.give_back(1);
    }

    fn tell(&mut self, what: &str, whose: &str) {
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(model = &*self.program.label, whose, "{what}: a guest was refused more");
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.count > 0 {
            self.program.files.give_back(self.count);
            self.program.sandbox.files.give_back(self.count);
        }
    }
}

/// Puts a count in front of everything in the linker that opens a file or a socket. Requests over HTTP and look-ups of
/// names are counted where they are made.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    shadow(linker, "wasi:filesystem/types@0.2.12", open_at)?;
    shadow(linker, "wasi:sockets/tcp-create-socket@0.2.12", create_socket)
}

/// The same for WASI 0.3.
pub(crate) fn link_3(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    shadow(linker, "wasi:filesystem/types@0.3.0", open_at_3)?;
    shadow(linker, "wasi:sockets/types@0.3.0", create_socket_3)
}

pub(crate) type Define = fn(&mut LinkerInstance<'_, State>) -> wasmtime::Result<()>;

/// Defines a function in the place of another, which must be there: under a name that WASI's implementation does not have,
/// it would count nothing.
pub(crate) fn shadow(linker: &mut Linker<State>, interface: &str, define: Define) -> wasmtime::Result<()> {
    if define(&mut linker.instance(interface)?).is_ok() {
        wasmtime::bail!("{interface} has no such function to count");
    }
    linker.allow_shadowing(true);
    define(&mut linker.instance(interface)?)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn open_at(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Parameters = (
        wasmtime::component::Resource<files::Descriptor>,
        files::PathFlags,
        String,
        files::OpenFlags,
        files::DescriptorFlags,
    );
    instance.func_wrap_async("[method]descriptor.open-at", |mut store, parameters: Parameters| {
        let (folder, path_flags, path, open_flags, flags) = parameters;
        Box::new(async move {
            let state: &mut State = store.data_mut();
            if !state.opened().one_more() {
                return Ok((Err(files::ErrorCode::Quota),));
            }
            let mut view = state.filesystem();
            let opened = files::HostDescriptor::open_at(&mut view, folder, path_flags, path, open_flags, flags).await;
            Ok((match opened {
                Ok(file) => Ok(file),
                Err(error) => {
                    state.opened().give_back();
                    Err(error.downcast()?)
                }
            },))
        })
    })
}

fn create_socket(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap("create-tcp-socket", |mut store, (family,): (IpAddressFamily,)| {
        let state: &mut State = store.data_mut();
        // Without a network none is opened, and WASI's own answer is the better one.
        if state.network().is_some() && !state.opened().one_more() {
            return Ok((Err(SocketError::NewSocketLimit),));
        }
        Ok((match tcp_create_socket::Host::create_tcp_socket(&mut state.sockets(), family) {
            Ok(socket) => Ok(socket),
            Err(error) => Err(error.downcast()?),
        },))
    })
}

fn open_at_3(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Parameters = (
        wasmtime::component::Resource<files_3::Descriptor>,
        files_3::PathFlags,
        String,
        files_3::OpenFlags,
        files_3::DescriptorFlags,
    );
    instance.func_wrap_concurrent("[method]descriptor.open-at", |accessor, parameters: Parameters| {
        let (folder, path_flags, path, open_flags, flags) = parameters;
        Box::pin(async move {
            if !accessor.with(|mut access| access.get().opened().one_more()) {
                return Ok((Err(files_3::ErrorCode::Quota),));
            }
            let view = accessor.with_getter::<WasiFilesystem>(WasiFilesystemView::filesystem);
            let opened = <WasiFilesystem as files_3::HostDescriptorWithStore<State>>::open_at(
                &view, folder, path_flags, path, open_flags, flags,
            );
            Ok((match opened.await {
                Ok(file) => Ok(file),
                Err(error) => {
                    accessor.with(|mut access| access.get().opened().give_back());
                    Err(error.downcast()?)
                }
            },))
        })
    })
}

fn create_socket_3(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap("[static]tcp-socket.create", |mut store, (family,): (sockets_3::IpAddressFamily,)| {
        let state: &mut State = store.data_mut();
        if state.network().is_some() && !state.opened().one_more() {
            return Ok((Err(sockets_3::ErrorCode::Other(Some("this call has as many sockets as it may".into()))),));
        }
        Ok((match sockets_3::HostTcpSocket::create(&mut state.sockets(), family) {
            Ok(socket) => Ok(socket),
            Err(error) => Err(error.downcast()?),
        },))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_and_takes_back() {
        let bound = Bound::new(2);
        assert!(bound.take() && bound.take() && !bound.take());
        bound.give_back(1);
        assert!(bound.take() && !bound.take());
    }

    #[test]
    fn a_program_has_a_part_and_never_less_than_a_call() {
        let of = |most| Bound::new(most).of_program().most;
        assert_eq!((of(80_000), of(400), of(0)), (20_000, CALL, CALL));
    }
}
