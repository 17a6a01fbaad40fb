//! The origins of a pin: hints where its data can be had.
//!
//! Kubo sends every address of its host, loopback and WebTransport among them, and sometimes more than twenty. So
//! nothing here is an error: what does not parse, names no peer, or may not be dialled is skipped.

use std::collections::HashSet;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::policy::{Asker, Policy, Refusal};
use super::target::{Host, Target, peer_of};
use crate::limits::{self, MAX_ORIGINS};

/// What is left of a list of origins.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    /// Peers, in the order they were named, with the addresses to dial. A peer without one can be waited for, and
    /// looked up in the DHT.
    pub(crate) peers: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Why the last one that was skipped may not be dialled.
    pub(crate) refusal: Option<Refusal>,
}

impl Origins {
    /// Reads `texts` as said by `asker`. Names are not resolved here: the gate does that.
    pub(crate) fn parse(texts: &[String], asker: Asker, policy: &Policy, own: &PeerId) -> Self {
        let mut origins = Self::default();
        let mut seen = HashSet::new();
        let mut used = 0;
        for text in texts {
            let Ok(address) = text.parse::<Multiaddr>() else { continue };
            let Some(peer) = peer_of(&address).filter(|peer| peer != own) else { continue };
            if !seen.insert(address.clone()) {
                continue;
            }
            if used == MAX_ORIGINS {
                limits::hit("origins");
                break;
            }
            match dialable(&address, asker, policy) {
                // Waited for, though not dialled: it may dial us.
                Ok(false) => origins.add(peer, None),
                Ok(true) => {
                    used += 1;
                    origins.add(peer, Some(address));
                }
                Err(refusal) => {
                    origins.refusal = Some(refusal);
                    origins.add(peer, None);
                }
            }
        }
        origins
    }

    fn add(&mut self, peer: PeerId, address: Option<Multiaddr>) {
        if let Some((_, addresses)) = self.peers.iter_mut().find(|(known, _)| *known == peer) {
            addresses.extend(address);
        } else if self.peers.len() < MAX_ORIGINS {
            self.peers.push((peer, address.into_iter().collect()));
        }
    }
}

/// Whether this node can dial `address` at all, as far as it shows before names are resolved.
pub(crate) fn dialable(address: &Multiaddr, asker: Asker, policy: &Policy) -> Result<bool, Refusal> {
    if matches!(address.iter().next(), Some(Protocol::Dnsaddr(_))) {
        // `/dnsaddr/name/p2p/id` and nothing else.
        return Ok(address.iter().count() == 2);
    }
    let Some(target) = Target::first_hop(address) else { return Ok(false) };
    match target.host {
        Host::Ip(ip) => policy.check(asker, ip, target.port).map(|()| true),
        Host::Name { .. } => {
            policy.check(asker, std::net::Ipv4Addr::new(1, 1, 1, 1).into(), target.port).map(|()| true)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use floe_core::{ManualClock, Timestamp};

    fn parse(texts: &[String], asker: Asker) -> Origins {
        let policy = Policy::new(false, Arc::new(ManualClock::new(Timestamp::from_millis(0))));
        Origins::parse(texts, asker, &policy, &PeerId::random())
    }

    #[test]
    fn what_kubo_sends_is_grouped_and_the_rest_skipped() {
        let (a, b) = (PeerId::random(), PeerId::random());
        let texts = [
            format!("/ip4/127.0.0.1/tcp/4001/p2p/{a}"),
            format!("/ip4/8.8.8.8/tcp/4001/p2p/{a}"),
            format!("/ip4/8.8.8.8/udp/4001/quic-v1/p2p/{a}"),
            format!("/ip4/8.8.8.8/udp/4001/quic-v1/webtransport/p2p/{a}"),
            "/ip4/8.8.8.8/tcp/4001".into(),
            "not a multiaddr".into(),
            String::new(),
            format!("/p2p/{b}"),
        ];
        let stranger = parse(&texts, Asker::Stranger);
        assert_eq!(stranger.peers.len(), 2);
        assert_eq!(stranger.peers[0].1.len(), 2, "{stranger:?}");
        assert_eq!(stranger.peers[1], (b, vec![]));
        assert_eq!(stranger.refusal, Some(Refusal::Private));
        assert_eq!(parse(&texts, Asker::Local).peers[0].1.len(), 3);
    }

    #[test]
    fn twenty_that_may_be_dialled_are_used() {
        for count in [MAX_ORIGINS - 1, MAX_ORIGINS, MAX_ORIGINS + 1] {
            let peer = PeerId::random();
            let texts: Vec<_> = (0..count)
                .flat_map(|n| {
                    [
                        format!("/ip4/10.0.0.1/tcp/4001/p2p/{peer}"),
                        format!("/ip4/8.8.8.8/tcp/{}/p2p/{peer}", 4001 + n),
                    ]
                })
                .collect();
            assert_eq!(parse(&texts, Asker::Stranger).peers[0].1.len(), count.min(MAX_ORIGINS));
        }
    }
}
