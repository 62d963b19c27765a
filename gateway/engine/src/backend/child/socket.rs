//! Messages between both ends: sockets that keep their bounds, with file descriptors beside them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use super::wire::{FRAME, Frame};

/// File descriptors that one message carries at most.
const DESCRIPTORS: usize = 2;
/// How long a message may wait for room, which there is unless the other end does not read.
const SEND: Duration = Duration::from_secs(5);

/// Two ends; `receive` bounds how long the first waits for a message.
pub(super) fn pair(receive: Duration) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Send, Some(SEND))?;
    wait_for(&ours, receive)?;
    Ok((ours, theirs))
}

/// Bounds how long one end waits for a message.
pub(super) fn wait_for(socket: impl AsFd, most: Duration) -> io::Result<()> {
    Ok(set_socket_timeout(socket, Timeout::Recv, Some(most))?)
}

/// Sends one message with file descriptors.
pub(super) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message of at most `buffer` bytes; none of them when the other end is gone.
pub(super) fn receive_with(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    Ok((message.bytes, files))
}

/// Sends a frame.
pub(super) fn send_frame(socket: impl AsFd, frame: Frame) -> io::Result<()> {
    retry(|| send(&socket, &frame.to_bytes(), SendFlags::NOSIGNAL))?;
    Ok(())
}

/// What comes from a session's socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Frame(Frame),
    /// The other end is gone.
    End,
    /// Nothing came in time.
    Late,
    /// Something that is no frame.
    Nonsense,
}

/// Waits for a frame.
pub(super) fn receive_frame(socket: impl AsFd) -> Received {
    // One byte more than a frame has, so that a longer message is not taken for one.
    let mut buffer = [0; FRAME + 1];
    match retry(|| recv(&socket, &mut buffer[..], RecvFlags::empty()).map(|(_, length)| length)) {
        Ok(0) => Received::End,
        Ok(length) => buffer.get(..length).and_then(Frame::from_bytes).map_or(Received::Nonsense, Received::Frame),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Late,
        Err(_) => Received::End,
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Kind;
    use super::*;

    #[test]
    fn frames_arrive_whole_or_are_nonsense() {
        let (ours, theirs) = pair(Duration::from_millis(20)).expect("sockets");
        let frame = Frame { kind: Kind::Grow, length: 1, at: 2, size: u64::MAX };
        send_frame(&theirs, frame).expect("sent");
        assert_eq!(receive_frame(&ours), Received::Frame(frame));
        assert_eq!(receive_frame(&ours), Received::Late);
        for bytes in [&[1u8; 3][..], &[0; FRAME], &[1; FRAME + 1], &[1; 200]] {
            send_with(theirs.as_fd(), bytes, &[]).expect("sent");
            assert_eq!(receive_frame(&ours), Received::Nonsense);
        }
        drop(theirs);
        assert_eq!(receive_frame(&ours), Received::End);
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (ours, theirs) = pair(Duration::from_secs(1)).expect("sockets");
        let (a, b) = pair(Duration::from_secs(1)).expect("sockets");
        send_with(ours.as_fd(), b"two", &[a.as_fd(), b.as_fd()]).expect("sent");
        drop(b);
        let mut buffer = [0; 8];
        let (length, files) = receive_with(theirs.as_fd(), &mut buffer).expect("a message");
        assert_eq!((&buffer[..length], files.len()), (&b"two"[..], 2));
        send_with(files[1].as_fd(), b"x", &[]).expect("sent");
        assert_eq!(receive_with(a.as_fd(), &mut buffer).expect("a message").0, 1);
    }
}
