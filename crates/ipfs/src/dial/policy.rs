//! Who may have what dialled: the rule, and the permits that lift a part of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use floe_core::Clock;
use libp2p::Multiaddr;
use parking_lot::Mutex;

use super::ip;
use super::target::Target;
use crate::limits::{self, FIRST_UNPRIVILEGED_PORT, MAX_PERMITS, PERMIT_FOR, WEB_PORTS};

/// On whose word an address is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    /// Anybody: public addresses and unprivileged ports only.
    Stranger,
    /// A request from this machine: private addresses too.
    Local,
    /// The configuration: anything.
    Operator,
}

/// Why an address is not dialled. In words for the owner of a pin: no address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its address is private, which network.private_addresses does not allow for this request")]
    Private,
    #[error("its port is reserved for other services")]
    Port,
    #[error("its address does not name a host")]
    NotAHost,
}

/// The rule and the permits. Shared by the gates and the swarm's task.
pub(crate) struct Policy {
    /// `network.private_addresses = allow`.
    private_allowed: bool,
    clock: Arc<dyn Clock>,
    permits: Mutex<HashMap<Target, Permit>>,
    /// `/dnsaddr` names that the operator configured, in lower case.
    names: Mutex<Vec<String>>,
}

#[derive(Clone, Copy)]
struct Permit {
    asker: Asker,
    /// By the monotonic clock; `None` is for ever.
    until: Option<Duration>,
}

impl Policy {
    pub(crate) fn new(private_allowed: bool, clock: Arc<dyn Clock>) -> Self {
        Self { private_allowed, clock, permits: Mutex::default(), names: Mutex::default() }
    }

    /// What permits end by, and dials too.
    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// The operator configured `address`.
    pub(crate) fn permit_operator(&self, address: &Multiaddr) {
        if let Some(libp2p::multiaddr::Protocol::Dnsaddr(name)) = address.iter().next() {
            self.names.lock().push(name.to_ascii_lowercase());
        }
        self.insert(address, Permit { asker: Asker::Operator, until: None });
    }

    /// What a `/dnsaddr` of the operator resolved to, or where the operator says that a storage provider is, for as long as the dial that asked for it may take.
    pub(crate) fn permit_derived(&self, address: &Multiaddr) {
        let until = Some(self.clock.monotonic() + PERMIT_FOR);
        self.insert(address, Permit { asker: Asker::Operator, until });
    }

    /// A request from this machine named `address`.
    pub(crate) fn permit_local(&self, address: &Multiaddr) {
        let until = Some(self.clock.monotonic() + PERMIT_FOR);
        self.insert(address, Permit { asker: Asker::Local, until });
    }

    pub(crate) fn is_operators_name(&self, name: &str) -> bool {
        self.names.lock().iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn insert(&self, address: &Multiaddr, permit: Permit) {
        let Some(target) = Target::first_hop(address) else { return };
        let mut permits = self.permits.lock();
        if permits.len() >= MAX_PERMITS && !permits.contains_key(&target) {
            make_room(&mut permits, self.clock.monotonic());
        }
        let slot = permits.entry(target).or_insert(permit);
        let lasts_longer = match (slot.until, permit.until) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(old), Some(new)) => new > old,
        };
        // A local request must not cut down what the operator has permitted.
        if permit.asker > slot.asker || (permit.asker == slot.asker && lasts_longer) {
            *slot = permit;
        }
    }

    /// On whose word `target` is dialled.
    pub(crate) fn asker(&self, target: &Target) -> Asker {
        let now = self.clock.monotonic();
        let permits = self.permits.lock();
        let live = permits.get(target).filter(|permit| permit.until.is_none_or(|until| now <= until));
        live.map_or(Asker::Stranger, |permit| permit.asker)
    }

    /// Whether `asker` may have `ip` and `port` dialled.
    pub(crate) fn check(&self, asker: Asker, ip: IpAddr, port: u16) -> Result<(), Refusal> {
        if !ip::is_host(ip) {
            return Err(Refusal::NotAHost);
        }
        if asker == Asker::Operator {
            return Ok(());
        }
        if port < FIRST_UNPRIVILEGED_PORT && !WEB_PORTS.contains(&port) {
            return Err(Refusal::Port);
        }
        if ip::is_public(ip) || self.private_allowed || asker == Asker::Local {
            return Ok(());
        }
        Err(Refusal::Private)
    }
}

/// Drops what has ended, else what ends first; the operator's own never.
fn make_room(permits: &mut HashMap<Target, Permit>, now: Duration) {
    permits.retain(|_, permit| permit.until.is_none_or(|until| now <= until));
    if permits.len() < MAX_PERMITS {
        return;
    }
    limits::hit("dial_permits");
    let first =
        permits.iter().filter_map(|(target, permit)| Some((permit.until?, target))).min_by_key(|(at, _)| *at);
    if let Some(target) = first.map(|(_, target)| target.clone()) {
        permits.remove(&target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_core::{ManualClock, Timestamp};

    fn policy(private_allowed: bool) -> (Policy, ManualClock) {
        let clock = ManualClock::new(Timestamp::from_millis(0));
        (Policy::new(private_allowed, Arc::new(clock.clone())), clock)
    }

    fn asker(policy: &Policy, address: &str) -> Asker {
        policy.asker(&Target::first_hop(&address.parse().unwrap()).unwrap())
    }

    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";
    const OTHER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

    #[test]
    fn t11_a_permit_is_for_one_address_one_peer_and_a_minute() {
        let (policy, clock) = policy(false);
        let granted = format!("/ip4/127.0.0.1/tcp/4001/p2p/{PEER}");
        policy.permit_local(&granted.parse().unwrap());
        assert_eq!(asker(&policy, &granted), Asker::Local);
        for other in [
            format!("/ip4/127.0.0.1/tcp/4001/p2p/{OTHER}"),
            format!("/ip4/127.0.0.1/tcp/4002/p2p/{PEER}"),
            format!("/ip4/127.0.0.2/tcp/4001/p2p/{PEER}"),
            format!("/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{PEER}"),
            "/ip4/127.0.0.1/tcp/4001".into(),
        ] {
            assert_eq!(asker(&policy, &other), Asker::Stranger, "{other}");
        }
        clock.advance(PERMIT_FOR);
        assert_eq!(asker(&policy, &granted), Asker::Local);
        clock.advance(Duration::from_millis(1));
        assert_eq!(asker(&policy, &granted), Asker::Stranger);
    }

    #[test]
    fn a_local_request_does_not_cut_down_the_operators_permit() {
        let (policy, clock) = policy(false);
        let address: Multiaddr = format!("/ip4/10.0.0.1/tcp/4001/p2p/{PEER}").parse().unwrap();
        policy.permit_operator(&address);
        policy.permit_local(&address);
        clock.advance(PERMIT_FOR * 2);
        assert_eq!(asker(&policy, &address.to_string()), Asker::Operator);
    }

    #[test]
    fn t11_who_may_dial_what() {
        let (strict, _) = policy(false);
        let (open, _) = policy(true);
        let private = "10.0.0.1".parse().unwrap();
        let public = "8.8.8.8".parse().unwrap();
        assert_eq!(strict.check(Asker::Stranger, private, 4001), Err(Refusal::Private));
        assert_eq!(strict.check(Asker::Stranger, public, 4001), Ok(()));
        assert_eq!(strict.check(Asker::Local, private, 4001), Ok(()));
        assert_eq!(strict.check(Asker::Operator, private, 22), Ok(()));
        assert_eq!(open.check(Asker::Stranger, private, 4001), Ok(()));
        assert_eq!(open.check(Asker::Stranger, private, 22), Err(Refusal::Port));
        for asker in [Asker::Stranger, Asker::Local, Asker::Operator] {
            assert_eq!(open.check(asker, "0.0.0.0".parse().unwrap(), 4001), Err(Refusal::NotAHost));
            assert_eq!(open.check(asker, "ff02::1".parse().unwrap(), 4001), Err(Refusal::NotAHost));
        }
    }

    #[test]
    fn t11_ports_at_the_boundary() {
        let (policy, _) = policy(false);
        let ip = "8.8.8.8".parse().unwrap();
        for (port, allowed) in
            [(79, false), (80, true), (81, false), (443, true), (1023, false), (1024, true)]
        {
            assert_eq!(policy.check(Asker::Local, ip, port).is_ok(), allowed, "{port}");
        }
    }

    #[test]
    fn permits_are_bounded_and_the_operators_stay() {
        let (policy, clock) = policy(false);
        let operators: Multiaddr = "/ip4/10.9.9.9/tcp/4001".parse().unwrap();
        policy.permit_operator(&operators);
        for n in 0..MAX_PERMITS as u32 + 1 {
            clock.advance(Duration::from_nanos(1));
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n);
            policy.permit_local(&format!("/ip4/{ip}/tcp/4001").parse().unwrap());
            assert!(policy.permits.lock().len() <= MAX_PERMITS);
        }
        assert_eq!(policy.permits.lock().len(), MAX_PERMITS);
        assert_eq!(asker(&policy, "/ip4/10.9.9.9/tcp/4001"), Asker::Operator);
        assert_eq!(asker(&policy, "/ip4/10.0.0.0/tcp/4001"), Asker::Stranger, "the oldest went");
    }
}
