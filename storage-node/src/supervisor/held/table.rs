//! What is held for the worker, and what is done with it, in which order, when the worker is gone. Pure: the descriptors
//! are whatever the caller puts in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{ADDRESSES_HELD_MAX, CONNECTIONS_HELD_MAX, LISTENERS_HELD_MAX};
use crate::net::address::{FloatingAddress, RELEASE_STEPS, ReleaseStep};

/// Listeners `L`, connections `C`, and the floating addresses of the worker.
#[derive(Debug)]
pub(super) struct Table<L, C> {
    listeners: BTreeMap<SocketAddr, L>,
    /// By the worker's number; with our side's address.
    connections: BTreeMap<u64, (Option<IpAddr>, C)>,
    addresses: BTreeSet<FloatingAddress>,
}

/// Why something is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotHeld {
    /// The table is full.
    Full,
    /// The number stands for another one.
    NumberInUse,
}

/// What to do when the worker is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EndStep<L, C> {
    /// Take it off its interface.
    RemoveAddress(FloatingAddress),
    /// Let the peers take over.
    Goodbye,
    /// Close it; in silence when its address was removed, aloud when its client is to come again here.
    CloseConnection { connection: C, silently: bool },
    /// Close the listener of an address that was removed.
    CloseListener(L),
}

impl<L, C> Default for Table<L, C> {
    fn default() -> Self {
        Self { listeners: BTreeMap::new(), connections: BTreeMap::new(), addresses: BTreeSet::new() }
    }
}

impl<L, C> Table<L, C> {
    /// The listener that was asked for by this address.
    pub(super) fn listener(&self, address: SocketAddr) -> Option<&L> {
        self.listeners.get(&address)
    }

    /// Whether another listener can be held.
    pub(super) fn has_room_for_a_listener(&self) -> bool {
        self.listeners.len() < LISTENERS_HELD_MAX
    }

    /// Holds a listener; it is given back when there is no room.
    pub(super) fn put_listener(&mut self, address: SocketAddr, listener: L) -> Result<(), L> {
        if !self.has_room_for_a_listener() && !self.listeners.contains_key(&address) {
            return Err(listener);
        }
        self.listeners.insert(address, listener);
        Ok(())
    }

    /// Gives the listener back.
    pub(super) fn take_listener(&mut self, address: SocketAddr) -> Option<L> {
        self.listeners.remove(&address)
    }

    /// Holds a connection whose side here has the address `local`. Refused, it is dropped.
    pub(super) fn hold(&mut self, number: u64, local: Option<IpAddr>, connection: C) -> Result<(), NotHeld> {
        if self.connections.contains_key(&number) {
            return Err(NotHeld::NumberInUse);
        }
        if self.connections.len() >= CONNECTIONS_HELD_MAX {
            return Err(NotHeld::Full);
        }
        self.connections.insert(number, (local, connection));
        Ok(())
    }

    /// Gives the connection back that the worker has closed.
    pub(super) fn take_connection(&mut self, number: u64) -> Option<C> {
        self.connections.remove(&number).map(|(_, connection)| connection)
    }

    /// The worker puts this address on an interface.
    pub(super) fn address_comes(&mut self, floating: FloatingAddress) -> Result<(), NotHeld> {
        if self.addresses.len() >= ADDRESSES_HELD_MAX && !self.addresses.contains(&floating) {
            return Err(NotHeld::Full);
        }
        self.addresses.insert(floating);
        Ok(())
    }

    /// The worker has taken it off.
    pub(super) fn address_gone(&mut self, floating: &FloatingAddress) {
        self.addresses.remove(floating);
    }

    /// The worker is gone: all that it leaves behind, in the order in which it ends. The listeners on addresses that stay
    /// are left, with their backlog, for the next worker.
    pub(super) fn worker_gone(&mut self) -> Vec<EndStep<L, C>> {
        let removed: BTreeSet<IpAddr> = self.addresses.iter().map(FloatingAddress::address).collect();
        let is_removed = |address: IpAddr| removed.contains(&address.to_canonical());
        let mut steps = Vec::new();
        for step in RELEASE_STEPS {
            match step {
                ReleaseStep::RemoveAddress => {
                    steps.extend(std::mem::take(&mut self.addresses).into_iter().map(EndStep::RemoveAddress));
                }
                ReleaseStep::Goodbye => steps.push(EndStep::Goodbye),
                ReleaseStep::CloseConnections => {
                    for (local, connection) in std::mem::take(&mut self.connections).into_values() {
                        steps.push(EndStep::CloseConnection { connection, silently: local.is_some_and(is_removed) });
                    }
                    for (address, listener) in std::mem::take(&mut self.listeners) {
                        if is_removed(address.ip()) {
                            steps.push(EndStep::CloseListener(listener));
                        } else {
                            self.listeners.insert(address, listener);
                        }
                    }
                }
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names = Table<&'static str, &'static str>;

    fn floating(host: usize) -> FloatingAddress {
        let address = format!("10.{}.{}.1", host / 256, host % 256);
        FloatingAddress::new(address.parse().unwrap(), 24, "eth0").unwrap()
    }

    fn at(host: usize, port: u16) -> SocketAddr {
        SocketAddr::new(floating(host).address(), port)
    }

    #[test]
    fn when_the_worker_is_gone_addresses_go_first_and_what_belongs_to_them_last() {
        let mut table = Names::default();
        table.address_comes(floating(1)).unwrap();
        table.address_comes(floating(2)).unwrap();
        table.address_comes(floating(3)).unwrap();
        table.address_gone(&floating(3));
        table.put_listener(at(1, 2049), "one").unwrap();
        table.put_listener(at(3, 2049), "three").unwrap();
        table.hold(7, Some(at(2, 0).ip()), "floating").unwrap();
        table.hold(8, Some("::ffff:10.0.1.1".parse().unwrap()), "mapped").unwrap();
        table.hold(9, Some(at(3, 0).ip()), "own").unwrap();
        table.hold(10, None, "unknown").unwrap();
        table.hold(11, Some(at(1, 0).ip()), "closed").unwrap();
        assert_eq!(table.take_connection(11), Some("closed"));

        let close = |connection, silently| EndStep::CloseConnection { connection, silently };
        let expected = [
            EndStep::RemoveAddress(floating(1)),
            EndStep::RemoveAddress(floating(2)),
            EndStep::Goodbye,
            close("floating", true),
            close("mapped", true),
            close("own", false),
            close("unknown", false),
            EndStep::CloseListener("one"),
        ];
        assert_eq!(table.worker_gone(), expected);
        assert_eq!(table.listener(at(3, 2049)), Some(&"three"));
        assert_eq!(table.worker_gone(), [EndStep::Goodbye]);
    }

    #[test]
    fn a_full_table_refuses_and_has_room_again_afterwards() {
        let mut table = Table::<usize, usize>::default();
        for number in 0..CONNECTIONS_HELD_MAX {
            table.hold(number as u64, None, number).unwrap();
        }
        assert_eq!(table.hold(u64::MAX, None, 0), Err(NotHeld::Full));
        assert_eq!(table.take_connection(0), Some(0));
        table.hold(u64::MAX, None, 0).unwrap();
        for number in 0..LISTENERS_HELD_MAX {
            table.put_listener(at(number, 1), number).unwrap();
        }
        assert_eq!(table.put_listener(at(0, 2), 77), Err(77));
        assert_eq!(table.take_listener(at(0, 1)), Some(0));
        table.put_listener(at(0, 2), 77).unwrap();
        for number in 0..ADDRESSES_HELD_MAX {
            table.address_comes(floating(number)).unwrap();
        }
        assert_eq!(table.address_comes(floating(0)), Ok(()));
        assert_eq!(table.address_comes(floating(ADDRESSES_HELD_MAX)), Err(NotHeld::Full));
    }

    #[test]
    fn a_number_stands_for_one_connection_until_it_is_closed() {
        let mut table = Names::default();
        table.hold(1, None, "first").unwrap();
        assert_eq!(table.hold(1, None, "second"), Err(NotHeld::NumberInUse));
        assert_eq!((table.take_connection(1), table.take_connection(1)), (Some("first"), None));
    }
}
