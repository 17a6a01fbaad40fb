//! Every bound of this crate, with its reason. Nothing else in the crate spells one of these numbers.

use std::time::Duration;

/// Nesting of CBOR: a deal needs 4.
pub(crate) const CBOR_DEPTH: usize = 16;
/// Items in one CBOR message: a publication of 256 deals needs 4,000.
pub(crate) const CBOR_ITEMS: usize = 16_384;

/// Tipsets whose headers, messages and events are kept: 40 MiB, and an hour and a half at 100 ms.
pub(crate) const KEPT_TIPSETS: usize = 65_536;
/// Tipsets whose state is kept, at least: the 900 epochs of the real finality and some to spare. Each is what its
/// epoch changed.
pub(crate) const KEPT_STATES: usize = 1_024;
/// Epochs that one call may step.
pub(crate) const STEP_EPOCHS: u64 = 100_000;

/// Messages that wait, in all and of one sender (Lotus' own are 30,000 and 1,000).
pub(crate) const POOL_MESSAGES: usize = 10_000;
/// See [`POOL_MESSAGES`].
pub(crate) const POOL_MESSAGES_OF_ONE: usize = 1_000;
/// Largest message that Lotus' pool takes.
pub(crate) const MESSAGE_BYTES: usize = 64 << 10;
/// Messages in one tipset.
pub(crate) const TIPSET_MESSAGES: usize = 1_000;
/// Deals on the chain: what a test of the cold half makes, a hundred times.
pub(crate) const CHAIN_DEALS: usize = 100_000;
/// Accounts on the chain.
pub(crate) const ACCOUNTS: usize = 100_000;
/// Keys in the node's wallet.
pub(crate) const WALLET_KEYS: usize = 1_000;
/// Events in one answer, as of Lotus' filter.
pub(crate) const EVENTS: usize = 5_000;

/// Body of a JSON-RPC request. Lotus takes 100 MiB; no request of a pinning service needs a hundredth.
pub(crate) const RPC_BODY_BYTES: usize = 4 << 20;
/// Members of a batch.
pub(crate) const RPC_BATCH: usize = 100;
/// Subscriptions on one WebSocket.
pub(crate) const SUBSCRIPTIONS: usize = 16;
/// Head changes that a slow listener may be behind before it is cut off.
pub(crate) const HEAD_CHANGES: usize = 1_024;
/// A long poll for a message ends after this, as a proxy's would.
pub(crate) const WAIT: Duration = Duration::from_secs(120);
/// Confidence that a wait may ask for.
pub(crate) const CONFIDENCE: u64 = 900;

/// Connections of one listener.
pub(crate) const CONNECTIONS: usize = 512;

/// Providers of one devnet.
pub(crate) const PROVIDERS: usize = 32;
/// Deals that one provider remembers.
pub(crate) const PROVIDER_DEALS: usize = 10_000;
/// Body of a request to store, Curio's own limit.
pub(crate) const STORE_BODY_BYTES: usize = 4 << 20;
/// Body of a question, Curio's own limit.
pub(crate) const ASK_BODY_BYTES: usize = 1 << 20;
/// A request over libp2p: a proposal with a URL and its headers needs 2 KiB.
pub(crate) const P2P_REQUEST_BYTES: usize = 64 << 10;
/// Until a request over libp2p is whole, Boost's own limit.
pub(crate) const P2P_READ: Duration = Duration::from_secs(10);
/// Until its answer is written, Boost's own limit.
pub(crate) const P2P_WRITE: Duration = Duration::from_secs(10);
/// Until a new connection knows whose it is.
pub(crate) const P2P_HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection without a stream is closed after this.
pub(crate) const P2P_IDLE: Duration = Duration::from_secs(60);
/// Streams of one connection at once.
pub(crate) const P2P_STREAMS: usize = 32;
/// Connections of one peer to one provider.
pub(crate) const CONNECTIONS_OF_PEER: u32 = 8;
/// Bytes of deal data on one provider: they are in memory.
pub(crate) const STAGING_BYTES: u64 = 512 << 20;
/// Largest single piece, for the same reason.
pub(crate) const PIECE_BYTES: u64 = 64 << 20;
/// Transfers of one provider at once.
pub(crate) const TRANSFERS: usize = 8;
/// From this size on a transfer goes over several ranges, as Boost's does.
pub(crate) const SPLIT_BYTES: u64 = 10 << 20;
/// Ranges of such a transfer.
pub(crate) const RANGES: u64 = 5;
/// Attempts for one range, before a transfer has failed. Boost's are 15.
pub(crate) const ATTEMPTS: u32 = 15;
/// Requests that a provider remembers to have made.
pub(crate) const PULL_LOG: usize = 10_000;
/// Body of a request to the control port.
pub(crate) const CONTROL_BODY_BYTES: usize = 1 << 20;
/// Rules for faults, of the node or of one provider.
pub(crate) const FAULTS: usize = 100;
