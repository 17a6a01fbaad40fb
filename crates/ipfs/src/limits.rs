//! Every number this crate enforces, and why it has that value. Nothing else in the crate spells one.
//!
//! Each hit of a limit is counted by [`hit`] under the name that stands beside the constant.

use std::time::Duration;

/// Counts that a limit was met: `floe_limit_hits_total{limit}`.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

// --- connections -------------------------------------------------------------------------------------------

/// Established inbound connections (this, and the next three: `peer_connections`). libp2p has no default; at twice this, the windows of idle peers alone
/// would need twice the memory that the guard leaves them.
pub(crate) const MAX_INBOUND: u32 = 256;
/// Established outbound connections.
pub(crate) const MAX_OUTBOUND: u32 = 256;
/// Connections with one peer: one, and one more while both sides dial at once.
pub(crate) const MAX_PER_PEER: u32 = 2;
/// Connections being set up, in each direction: each costs a handshake of CPU before anything is known of the peer.
pub(crate) const MAX_PENDING: u32 = 64;
/// Inbound streams of one connection that still negotiate their protocol (the library's default, kept).
pub(crate) const MAX_NEGOTIATING_STREAMS: usize = 128;
/// A connection that nobody uses is closed after this. Kubo keeps idle ones for 20 s and more; at 10 s a peer
/// that waits for its next pin is cut off between two polls of the status.
pub(crate) const IDLE_CONNECTION: Duration = Duration::from_secs(60);
/// Handshakes end within this, and so does a dial as a whole: its names, all the addresses behind them, and theirs.
pub(crate) const TRANSPORT_TIMEOUT: Duration = Duration::from_secs(20);
/// Peers that misbehaved and may not come back yet; the oldest go first (`blocked_peers`).
pub(crate) const MAX_BLOCKED_PEERS: usize = 1_024;
/// How long a peer that misbehaved stays away.
pub(crate) const BLOCK_FOR: Duration = Duration::from_secs(600);

// --- memory ------------------------------------------------------------------------------------------------

/// From this part of the memory budget on, new connections are refused (`memory_refuse`).
pub(crate) const MEMORY_REFUSE_PERCENT: usize = 40;
/// From this part on, inbound connections are closed: the unread windows of 256 connections would be far more
/// than any budget, and refusing new ones closes none (`memory_guard`).
pub(crate) const MEMORY_CLOSE_PERCENT: usize = 60;
/// Connections closed when the guard finds too much memory in use. All at once would cut off honest peers for one
/// spike; but it doubles each time the guard looks and finds it still so, because a flood fills memory faster
/// than a fixed number of its connections gives back.
pub(crate) const MEMORY_CLOSE_BATCH: usize = 16;
/// How often the guard looks: what it reads is a line of the kernel's. At once a second, a flood over a fast network
/// fills what lies between the shares above before the first look: 100 connections that left frames unfinished
/// took 1.7 GiB of a budget of 1 GiB.
pub(crate) const MEMORY_LOOK: Duration = Duration::from_millis(100);
/// How often the node looks after itself (searches, reservations).
pub(crate) const TICK: Duration = Duration::from_secs(1);

// --- sockets -----------------------------------------------------------------------------------------------

/// What one connection's read buffer holds at least. rustls reads as much at a time.
pub(crate) const READ_BUFFER_LEAST: usize = 4 * KIB;
/// The same at most, on a connection that carries bulk. With 512 of them 64 MiB; half costs twice the system
/// calls, twice gains nothing that can be measured.
pub(crate) const READ_BUFFER_MOST: usize = 128 * KIB;

// --- WebSocket ---------------------------------------------------------------------------------------------

/// A message, and a frame of one, that a WebSocket may carry to us. The codec makes room for it as soon as its header
/// announces it, before anything is known of the peer, so with 640 connections and dials this is 160 MiB; the
/// library's default is 256 MiB for each. Peers send a message for each write of the cipher above: js-libp2p and
/// go-libp2p 64 KiB at most, rust-libp2p 192 KiB.
pub const WEBSOCKET_MESSAGE: usize = 256 * KIB;
/// Bytes read before the answer to a WebSocket handshake is whole: the codec itself would read on without end. As
/// much as the codec takes of a request, twice, for proxies that add headers (`websocket_handshake`).
pub(crate) const WEBSOCKET_HANDSHAKE: usize = 16 * KIB;

// --- yamux -------------------------------------------------------------------------------------------------

/// Streams of one connection. Going over ends the connection, and Kubo opens a stream for each message.
pub const YAMUX_STREAMS: usize = 256;
/// Receive window of a connection. 256 KiB are reserved for each permitted stream and only what is above is lent out:
/// with 768 KiB above, no stream's window passes 1 MiB, so js-yamux, which sends frames as large as the
/// window, never meets the 1 MiB frame cap of rust-yamux.
pub const YAMUX_CONNECTION_WINDOW: usize = YAMUX_STREAMS * 256 * KIB + 768 * KIB;
/// Streams that the peer opened and nobody has taken yet: as many as can be open (`yamux_backlog`).
pub(crate) const YAMUX_BACKLOG: usize = YAMUX_STREAMS;

// --- QUIC --------------------------------------------------------------------------------------------------

/// Streams of one QUIC connection in each direction; the library's default is 256.
pub(crate) const QUIC_STREAMS: u32 = 64;
/// Silence after which a QUIC connection is over, and with it a handshake: the library takes the shorter of the two.
/// At its defaults of 10 s and 5 s a peer whose machine is busy for as long is given up, and dialled again only
/// after [`REDIAL_PAUSE`].
pub(crate) const QUIC_IDLE: Duration = TRANSPORT_TIMEOUT;
/// Receive window of one QUIC stream.
pub(crate) const QUIC_STREAM_WINDOW: u32 = 10_000_000;
/// Receive window of one QUIC connection.
pub(crate) const QUIC_CONNECTION_WINDOW: u32 = 15_000_000;

// --- dialling ----------------------------------------------------------------------------------------------

/// Entries of `origins` that are used: the first that parse and may be dialled (`origins`).
pub const MAX_ORIGINS: usize = 20;
/// Addresses dialled for one entry of `origins`, or one address that another names, over all the names behind it
/// (`dial_addresses`).
pub(crate) const MAX_ADDRESSES_PER_NAME: usize = 8;
/// Silence after which the next address of a name is dialled beside those before it: a few round trips around the
/// world. Eight begin within 7 s, and the last has 13 s left of [`TRANSPORT_TIMEOUT`].
pub(crate) const NEXT_ADDRESS_AFTER: Duration = Duration::from_secs(1);
/// TXT look-ups for one `/dnsaddr`: it may name further ones, in a circle if it likes (`dnsaddr_lookups`).
pub(crate) const MAX_DNSADDR_LOOKUPS: usize = 8;
/// Ports below this are not dialled for strangers, but for [`WEB_PORTS`]: a node is not a port scanner.
pub(crate) const FIRST_UNPRIVILEGED_PORT: u16 = 1_024;
/// The low ports that libp2p nodes really use.
pub(crate) const WEB_PORTS: [u16; 2] = [80, 443];
/// How long a local request's permit to dial a private address lasts: a dial, with its retries.
pub(crate) const PERMIT_FOR: Duration = Duration::from_secs(60);
/// Permits held at once; the ones that end first go first (`dial_permits`).
pub(crate) const MAX_PERMITS: usize = 4_096;

// --- what is kept of others --------------------------------------------------------------------------------

/// Addresses kept of one peer.
pub(crate) const MAX_PEER_ADDRESSES: usize = 32;
/// Protocols looked at of one peer: who speaks more plants them.
pub(crate) const MAX_PEER_PROTOCOLS: usize = 64;
/// Addresses at which peers claim to see us and that AutoNAT is to probe, of all peers (`address_candidates`). A
/// node has a handful: one for each transport and family.
pub(crate) const MAX_CANDIDATES: usize = 64;
/// The same of one peer while it is connected: our three listeners over TCP, seen twice, and two over QUIC.
pub(crate) const MAX_PEER_CANDIDATES: usize = 8;
/// Bytes of one of them; an IP address, a port and the names of transports are far shorter.
pub(crate) const CANDIDATE_BYTES: usize = 256;
/// A table of candidates that is full is given up after this. Sooner, peers that lie together make us probe the more;
/// later, they keep our true address out for longer.
pub(crate) const CANDIDATES_FOR: Duration = Duration::from_secs(3_600);
/// Addresses of ours that were confirmed, and so are told to every peer (`external_addresses`): a peer that forwards
/// what comes in at its own addresses has them confirmed as ours, and above a hundred our identify message is too
/// long to be read.
pub(crate) const MAX_EXTERNAL: usize = 32;
/// Provider records kept for others while this node is a DHT server (`kad_records`).
pub(crate) const MAX_FOREIGN_RECORDS: usize = 32_000;
/// Addresses kept in one of them.
pub(crate) const MAX_RECORD_ADDRESSES: usize = 16;
/// How long one is kept, as the specification of the DHT says.
pub(crate) const FOREIGN_RECORD_TTL: Duration = Duration::from_secs(48 * 3_600);
/// Providers handed out and kept for one key: a bucket's worth (`kad_providers`).
pub(crate) const MAX_PROVIDERS_PER_KEY: usize = 20;
/// A message of the DHT (the library's default, kept).
pub(crate) const KAD_PACKET: usize = 16 * KIB;
/// Paths of one DHT query that share no peer: one honest path is enough to get around an eclipse.
pub(crate) const KAD_DISJOINT_PATHS: usize = 3;

// --- providing ---------------------------------------------------------------------------------------------

/// Every root is announced again within this (provider records live 48 h).
pub(crate) const PROVIDE_CYCLE: Duration = Duration::from_secs(22 * 3_600);
/// Announcing is paced as if the cycle were this long, so that a stall of two hours still ends in time.
pub(crate) const PROVIDE_PACE: Duration = Duration::from_secs(20 * 3_600);
/// Announcements under way. With 10 s each, a million roots need 140; a stranger's DHT may be slower.
pub(crate) const MAX_ANNOUNCEMENTS: usize = 256;
/// A failed announcement is tried again after this.
pub(crate) const PROVIDE_RETRY: Duration = Duration::from_secs(600);
/// Due roots that the worker holds in memory.
pub(crate) const PROVIDE_BATCH: usize = 512;
/// Roots counted for `provide_backlog`; more reads as this many.
pub(crate) const MAX_COUNTED_BACKLOG: usize = 100_000;
/// redb's page cache for the table: its default is 1 GiB.
pub(crate) const PROVIDES_CACHE: usize = 8 * MIB;

// --- delegated routing -------------------------------------------------------------------------------------

/// Configured routers that are used.
pub(crate) const MAX_ROUTERS: usize = 8;
/// Requests to routers under way (`router_requests`).
pub(crate) const MAX_ROUTER_REQUESTS: usize = 16;
/// Bytes read of one answer (`router_body`).
pub(crate) const ROUTER_BODY: usize = MIB;
/// Providers used of one answer (`router_providers`).
pub(crate) const MAX_ROUTER_PROVIDERS: usize = 100;
/// One request, from the connect to the last byte.
pub(crate) const ROUTER_TIMEOUT: Duration = Duration::from_secs(15);

// --- searches ----------------------------------------------------------------------------------------------

/// Commands that wait for the swarm's task (`node_commands`).
pub(crate) const COMMANDS: usize = 1_024;
/// Commands taken before the network gets its turn again.
pub(crate) const COMMANDS_PER_TURN: usize = 64;
/// Lists of origins that a session holds back while the task's queue is full; the oldest go first
/// (`untold_origins`).
pub(crate) const MAX_UNTOLD: usize = 16;
/// Peers that are dialled or waited for on behalf of one root (`search_peers`).
pub(crate) const MAX_SEARCH_PEERS: usize = 128;
/// Roots that are searched for (`searches`).
pub(crate) const MAX_SEARCHES: usize = 1_024;
/// DHT look-ups for providers under way (`kad_lookups`).
pub(crate) const MAX_KAD_LOOKUPS: usize = 32;
/// The first pause between two look-ups of one root; it doubles up to [`LOOKUP_PAUSE_MAX`].
pub(crate) const LOOKUP_PAUSE: Duration = Duration::from_secs(15);
/// The longest pause between two look-ups of one root.
pub(crate) const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(600);
/// The pause before an origin is dialled again while its session lives; it doubles up to [`LOOKUP_PAUSE_MAX`].
pub(crate) const REDIAL_PAUSE: Duration = Duration::from_secs(15);
/// A peer that stayed connected this long begins with the first pause again. Longer than that pause, so that one who
/// hangs up at once is dialled less and less often.
pub(crate) const STAYED: Duration = Duration::from_secs(30);

// --- streams of other protocols ------------------------------------------------------------------------------

/// Streams that wait for a connection (`opening_streams`). Storage providers are spoken to one at a time each.
pub(crate) const MAX_OPENING: usize = 64;
/// From the wish for a stream to the stream: a dial of 20 s, a look-up of the peer, a second dial.
pub(crate) const OPEN_STREAM: Duration = Duration::from_secs(60);

// --- others ------------------------------------------------------------------------------------------------

/// Relays at which reservations are held.
pub(crate) const MAX_RELAYS: usize = 8;
/// The pause before a lost reservation is asked for again.
pub(crate) const RELAY_PAUSE: Duration = Duration::from_secs(30);
/// Delegates returned, as the pinning API allows.
pub(crate) const MAX_DELEGATES: usize = 20;
/// A clean stop takes no longer.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(8);
/// Connections are closed within this part of the stop; the rest is dropped.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Ports are free again within this part of the stop: QUIC's socket stays open while a
/// connection drains, which is three seconds for a handshake that was broken off, and longer on a machine so busy that the
/// handshake looked slow.
pub(crate) const FREE_WITHIN: Duration = Duration::from_secs(6);
/// Listeners are up within this, or the node does not start.
pub(crate) const LISTEN_WITHIN: Duration = Duration::from_secs(10);
