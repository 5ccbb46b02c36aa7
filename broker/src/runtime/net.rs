//! Tokio's sockets, cut into the two halves that sessions need.
//!
//! The write half is used without blocking by whoever has something to send, so it is a value that is passed
//! around, not a stream behind a lock.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};

use bytes::BytesMut;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
pub use tokio::net::{TcpListener, TcpStream};

/// How many connections the kernel completes before we accept them.
const BACKLOG: i32 = 4096;

/// Opens a listener. A port of a process that just ended can be taken again.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether an address is one of this machine's: others can't be bound.
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// The addresses by which other machines most likely reach this one: those it would use to reach the internet, of
/// each family; loopback if there is none. Nothing is sent.
#[must_use]
pub fn local_addresses() -> Vec<IpAddr> {
    // Documentation addresses: routed like any other, and nobody's.
    let probes: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let found = probes.into_iter().filter_map(|(any, far)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    });
    let found: Vec<IpAddr> = found.collect();
    if found.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { found }
}

/// Cuts a connection in two. Small writes are not delayed: we coalesce ourselves.
pub fn split(stream: TcpStream) -> io::Result<(ReadHalf, WriteHalf)> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok((ReadHalf(read), WriteHalf(write)))
}

/// The half that a session reads.
#[derive(Debug)]
pub struct ReadHalf(OwnedReadHalf);

impl ReadHalf {
    /// Reads what is there into the spare capacity of `into`; 0 is the end. Cancel safe.
    pub async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        self.0.read_buf(into).await
    }
}

/// The half that is written.
#[derive(Debug)]
pub struct WriteHalf(OwnedWriteHalf);

impl WriteHalf {
    /// Writes as much as the socket takes now; `WouldBlock` if it takes nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    /// The same for several buffers in one call.
    pub fn try_write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(buffers)
    }

    /// Waits until a write may succeed. Cancel safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// Ends the connection in both directions: the reading half sees the end at once.
    pub fn shutdown(&self) {
        // It fails only when the connection is gone already.
        let _ = SockRef::from(self.0.as_ref()).shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_addresses_are_local_and_others_are_not() {
        assert!(is_local(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_local(Ipv4Addr::new(192, 0, 2, 1).into()));
        assert!(local_addresses().into_iter().all(is_local));
    }
}
