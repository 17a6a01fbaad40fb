//! Storage providers over the IPFS node: its dial filter for their HTTP addresses, its swarm for their streams.

use std::net::SocketAddr;

use floe_core::clock::BoxFuture;
use floe_core::cold::ContactAddress;
use floe_filecoin::market::streams::{Duplex, StreamError, Streams};
use floe_filecoin::market::web::Names;
use floe_ipfs::{Multiaddr, Node, PeerId, StreamProtocol, WebFilter};

/// Judges addresses for connections over HTTP.
pub(crate) struct Filter {
    pub(crate) filter: WebFilter,
    /// A test network, where what the chain says may be anywhere.
    pub(crate) all_permitted: bool,
}

impl Names for Filter {
    fn addresses<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        is_operators: bool,
    ) -> BoxFuture<'a, Result<Vec<SocketAddr>, String>> {
        Box::pin(self.filter.addresses(host, port, is_operators || self.all_permitted))
    }
}

/// Opens streams through the node's swarm.
pub(crate) struct Peers {
    pub(crate) node: Node,
    /// As in [`Filter`].
    pub(crate) all_permitted: bool,
}

impl Peers {
    async fn opened(
        &self,
        peer: &str,
        addresses: &[ContactAddress],
        protocol: &'static str,
    ) -> Result<Box<dyn Duplex>, StreamError> {
        let unusable = |_| StreamError::Unresolvable("the peer id on the chain cannot be read".into());
        let peer: PeerId = peer.parse().map_err(unusable)?;
        let parsed = |at: &ContactAddress| {
            Some((at.text.parse::<Multiaddr>().ok()?, at.is_operators || self.all_permitted))
        };
        let addresses = addresses.iter().filter_map(parsed).collect();
        let stream = self.node.open_stream(peer, addresses, StreamProtocol::new(protocol)).await;
        stream.map(|stream| Box::new(stream) as Box<dyn Duplex>).map_err(|error| {
            let text = error.to_string();
            match error {
                floe_ipfs::StreamError::Unresolvable(_) => StreamError::Unresolvable(text),
                floe_ipfs::StreamError::Protocol(..) => StreamError::Protocol(text),
                floe_ipfs::StreamError::Timeout(_) => StreamError::Timeout(text),
                _ => StreamError::Dial(text),
            }
        })
    }
}

impl Streams for Peers {
    fn open<'a>(
        &'a self,
        peer: &'a str,
        addresses: &'a [ContactAddress],
        protocol: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, StreamError>> {
        Box::pin(self.opened(peer, addresses, protocol))
    }
}
