//! The sockets that the server listens on.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::error::CommandError;
use actix_presence::configure_tcp;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 2048;

/// How often the system is asked for a port that is free on all addresses.
const PORT_ATTEMPTS: usize = 8;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BindAddresses {
    /// Each once; with port 0, later ones take the port of the first.
    pub list: Vec<SocketAddr>,
    /// Whether the others may be unavailable, such as IPv6 on a machine without it.
    pub first_suffices: bool,
}

/// The descriptors of listeners that actix-server owns.
pub(super) struct ListenerHandles(#[cfg(unix)] Vec<std::os::fd::RawFd>);

impl ListenerHandles {
    #[cfg(unix)]
    pub fn of(listeners: &[TcpListener]) -> Self {
        Self(listeners.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect())
    }

    #[cfg(not(unix))]
    pub fn of(_: &[TcpListener]) -> Self {
        Self()
    }

    /// Makes the system refuse new connections, which it would otherwise accept until the process ends, and
    /// then reset. Call it before the server is stopped, which closes the descriptors. Systems other than
    /// Linux may not support it.
    pub fn refuse_connections(&self) {
        #[cfg(unix)]
        for listener in &self.0 {
            // SAFETY: actix-server keeps its listeners open until it is stopped, which happens later.
            let listener = unsafe { std::os::fd::BorrowedFd::borrow_raw(*listener) };
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
        }
    }
}

impl BindAddresses {
    /// Binds the addresses. Done before the database is opened, because the usual reason why a server does
    /// not start is that another one runs already.
    pub fn listen(&self) -> Result<Vec<TcpListener>, CommandError> {
        let any_port = self.list.first().is_some_and(|first| first.port() == 0);
        let attempts = if any_port { PORT_ATTEMPTS } else { 1 };
        for _ in 1..attempts {
            match self.listen_once() {
                // The port of the first address is in use on another address.
                Err(CommandError::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse => {}
                listeners => return listeners,
            }
        }
        self.listen_once()
    }

    fn listen_once(&self) -> Result<Vec<TcpListener>, CommandError> {
        let mut listeners = Vec::new();
        let mut first_port = None;
        for address in &self.list {
            let mut address = *address;
            if let (0, Some(port)) = (address.port(), first_port) {
                address.set_port(port);
            }
            match listen(address, self.has_ipv4(address.port())) {
                Ok(listener) => {
                    if first_port.is_none() {
                        first_port = listener.local_addr().ok().map(|address| address.port());
                    }
                    listeners.push(listener);
                }
                Err(error) if self.first_suffices && first_port.is_some() => {
                    tracing::info!(%address, %error, "a default address is not available");
                }
                Err(source) => return Err(CommandError::Bind { address, source }),
            }
        }
        Ok(listeners)
    }

    /// Whether an IPv4 address uses the port, too.
    fn has_ipv4(&self, port: u16) -> bool {
        self.list.iter().any(|other| other.is_ipv4() && [0, port].contains(&other.port()))
    }
}

fn listen(address: SocketAddr, ipv6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Otherwise the connections of a server that has just ended would block its port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && ipv6_only {
        // Otherwise `[::]` would accept IPv4 connections as well, and block the port on `0.0.0.0`.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    configure_tcp(&listener);
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str], first_suffices: bool) -> BindAddresses {
        let list = list.iter().map(|address| address.parse().unwrap()).collect();
        BindAddresses { list, first_suffices }
    }

    fn ports(listeners: &[TcpListener]) -> Vec<u16> {
        listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
    }

    #[test]
    fn with_port_0_later_addresses_get_the_port_of_the_first() {
        let listeners = addresses(&["127.0.0.1:0", "127.0.0.2:0"], false).listen().unwrap();
        let ports = ports(&listeners);
        assert_eq!(ports.len(), 2);
        assert_ne!(ports[0], 0);
        assert_eq!(ports[0], ports[1]);
    }

    #[test]
    fn other_addresses_may_be_unavailable_if_the_first_suffices() {
        let taken = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let list = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}")];
        let list = [list[0].as_str(), &list[1]];
        assert_eq!(ports(&addresses(&list, true).listen().unwrap()), [port]);
        let refused = addresses(&list, false).listen();
        assert!(
            matches!(refused, Err(CommandError::Bind { address, .. }) if address.port() == port)
        );
        let first_taken = [list[1], list[0]];
        assert!(addresses(&first_taken, true).listen().is_err());
    }

    #[test]
    fn the_wildcards_of_both_families_share_a_port() {
        // Not on machines without IPv6.
        if TcpListener::bind("[::]:0").is_ok() {
            let listeners = addresses(&["[::]:0", "0.0.0.0:0"], false).listen().unwrap();
            assert_eq!(listeners.len(), 2);
        }
    }
}
