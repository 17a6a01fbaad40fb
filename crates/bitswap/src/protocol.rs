//! Which protocols a stream may speak, and which one it does.

use std::convert::Infallible;
use std::future::{Ready, ready};

use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::{Stream, StreamProtocol};

use crate::message::Version;

/// The newest first: it is what both sides prefer.
const PROTOCOLS: [StreamProtocol; 3] = [
    StreamProtocol::new("/ipfs/bitswap/1.2.0"),
    StreamProtocol::new("/ipfs/bitswap/1.1.0"),
    StreamProtocol::new("/ipfs/bitswap/1.0.0"),
];

/// Negotiates bitswap.
#[derive(Debug, Clone, Copy)]
pub struct Protocol;

/// A stream that speaks bitswap.
pub struct Negotiated {
    pub(crate) stream: Stream,
    pub(crate) version: Version,
}

impl Negotiated {
    fn new(stream: Stream, protocol: &StreamProtocol) -> Self {
        let version = match PROTOCOLS.iter().position(|known| known == protocol) {
            Some(0) => Version::V1_2,
            Some(1) => Version::V1_1,
            _ => Version::V1_0,
        };
        Self { stream, version }
    }
}

impl UpgradeInfo for Protocol {
    type Info = StreamProtocol;
    type InfoIter = std::array::IntoIter<StreamProtocol, 3>;

    fn protocol_info(&self) -> Self::InfoIter {
        PROTOCOLS.into_iter()
    }
}

impl InboundUpgrade<Stream> for Protocol {
    type Output = Negotiated;
    type Error = Infallible;
    type Future = Ready<Result<Negotiated, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok(Negotiated::new(stream, &protocol)))
    }
}

impl OutboundUpgrade<Stream> for Protocol {
    type Output = Negotiated;
    type Error = Infallible;
    type Future = Ready<Result<Negotiated, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok(Negotiated::new(stream, &protocol)))
    }
}
