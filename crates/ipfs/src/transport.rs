//! The transports, composed by hand so that the dial filter stands below DNS and WebSocket.
//!
//! `SwarmBuilder` wraps transports that it makes itself, and a filter outside of them sees names instead of
//! addresses. See [`crate::dial`] for the picture. Every connection is TCP or WebSocket with TLS or Noise and
//! yamux, or QUIC, or one of these carrying a relayed circuit.

use std::io;
use std::sync::Arc;

use floe_core::Clock;
use floe_core::clock::BoxFuture;
use futures::future;
use futures::io::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, Transport as _};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version};
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise, quic, relay, tcp};

use crate::buffered::Buffered;
use crate::dial::gate::Gate;
use crate::dial::policy::Policy;
use crate::dial::resolve::{Dnsaddr, Resolve};
use crate::dial::target::Carrier;
use crate::dial::websocket::WebSocket;
use crate::limits::{QUIC_CONNECTION_WINDOW, QUIC_IDLE, QUIC_STREAM_WINDOW, QUIC_STREAMS, TRANSPORT_TIMEOUT};
use crate::{CertificateFiles, Error, tls, wss, yamux};

/// All transports of the node, behind one.
pub(crate) fn build(
    key: &Keypair,
    relay: relay::client::Transport,
    policy: &Arc<Policy>,
    resolver: &Arc<dyn Resolve>,
    clock: &Arc<dyn Clock>,
    certificate: Option<&CertificateFiles>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, Error> {
    let security = Security::new(key)?;
    let socket = || {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        Gate::new(tcp, Carrier::Tcp, policy.clone(), resolver.clone())
    };
    let mut websockets = WebSocket::new(socket());
    websockets.set_tls_config(wss::config(certificate)?);
    let streams = websockets
        .or_transport(socket())
        .upgrade(Version::V1Lazy)
        .authenticate(security.clone())
        .multiplex(yamux::Config::default())
        .timeout(TRANSPORT_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let circuits = relay
        .upgrade(Version::V1Lazy)
        .authenticate(security)
        .multiplex(yamux::Config::default())
        .timeout(TRANSPORT_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let datagrams = Gate::new(
        quic::tokio::Transport::new(quic_config(key)),
        Carrier::Quic,
        policy.clone(),
        resolver.clone(),
    )
    .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let all = circuits
        .or_transport(streams)
        .map(|either, _| either.into_inner())
        .or_transport(datagrams)
        .map(|either, _| either.into_inner());
    Ok(Dnsaddr::new(all, policy.clone(), resolver.clone(), clock.clone()).boxed())
}

fn quic_config(key: &Keypair) -> quic::Config {
    let mut config = quic::Config::new(key);
    config.max_concurrent_stream_limit = QUIC_STREAMS;
    config.handshake_timeout = TRANSPORT_TIMEOUT;
    config.max_idle_timeout =
        u32::try_from(QUIC_IDLE.as_millis()).expect("the constant is less than a month");
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    config
}

/// TLS, else Noise: whichever the peer speaks. TLS first, because AES instructions make it quicker;
/// browsers and older JS peers have only Noise.
#[derive(Clone)]
struct Security {
    tls: tls::Config,
    noise: noise::Config,
}

impl Security {
    fn new(key: &Keypair) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::Transport(e.to_string());
        Ok(Self {
            tls: tls::Config::new(key).map_err(|e| failed(&e))?,
            noise: noise::Config::new(key).map_err(|e| failed(&e))?,
        })
    }
}

impl UpgradeInfo for Security {
    type Info = &'static str;
    type InfoIter = Vec<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(tls::NAME).chain(self.noise.protocol_info()).collect()
    }
}

type Secured<C> = (PeerId, future::Either<libp2p::tls::TlsStream<Buffered<C>>, noise::Output<Buffered<C>>>);

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<C> for Security {
    type Output = Secured<C>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Secured<C>>>;

    fn upgrade_inbound(self, socket: C, name: Self::Info) -> Self::Future {
        Box::pin(async move {
            let socket = Buffered::new(socket);
            if name == tls::NAME {
                let (peer, stream) = self.tls.accepted(socket).await?;
                return Ok((peer, future::Either::Left(stream)));
            }
            let (peer, stream) = self.noise.upgrade_inbound(socket, name).await.map_err(io::Error::other)?;
            Ok((peer, future::Either::Right(stream)))
        })
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<C> for Security {
    type Output = Secured<C>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Secured<C>>>;

    fn upgrade_outbound(self, socket: C, name: Self::Info) -> Self::Future {
        Box::pin(async move {
            let socket = Buffered::new(socket);
            if name == tls::NAME {
                let (peer, stream) = self.tls.dialled(socket).await?;
                return Ok((peer, future::Either::Left(stream)));
            }
            let (peer, stream) = self.noise.upgrade_outbound(socket, name).await.map_err(io::Error::other)?;
            Ok((peer, future::Either::Right(stream)))
        })
    }
}

/// Threat T6, where the parsers are the libraries'. Frames of these advisories are replayed: yamux (`crate::yamux`),
/// CVE-2022-23486 (`crate::tests::streams`) and CVE-2026-31812 (here). No frames are replayed of GHSA-5hq8-qhww-jm7q
/// (libp2p-quic), CVE-2026-25800 (quinn-proto), RUSTSEC-2026-0118 and -0119 (hickory) and RUSTSEC-2024-0011 (snow): there
/// the version floors of `deny.toml` are the proof, and nothing else is.
#[cfg(test)]
mod tests {
    use quinn_proto::Side;
    use quinn_proto::transport_parameters::TransportParameters;

    proptest::proptest! {
        /// CVE-2026-31812: parameters of a QUIC handshake that ended in the middle of a number made older versions
        /// panic, which any stranger's first packet could do.
        #[test]
        fn t06_cve_2026_31812_transport_parameters_do_no_harm(bytes: Vec<u8>) {
            for side in [Side::Client, Side::Server] {
                let _ = TransportParameters::read(side, &mut &bytes[..]);
            }
        }
    }

    #[test]
    fn t06_cve_2026_31812_numbers_that_do_not_end() {
        // Each parameter, with a value that promises more bytes than there are, and one whose number is cut.
        for id in 0..0x40_u8 {
            for value in [&[][..], &[0x40], &[0x80, 0, 0], &[0xc0, 0, 0, 0], &[0xff; 7], &[0xff; 9]] {
                for length in [0, value.len() as u8, value.len() as u8 + 1, 0x3f] {
                    let bytes = [&[id, length][..], value].concat();
                    for side in [Side::Client, Side::Server] {
                        let _ = TransportParameters::read(side, &mut &bytes[..]);
                    }
                }
            }
        }
        assert!(TransportParameters::read(Side::Server, &mut &[4, 1, 0x40][..]).is_err(), "half of a number");
    }
}
