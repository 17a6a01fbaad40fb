//! Every bound of this crate, with its reason.

use std::time::Duration;

/// Bytes of one CBOR document from a provider. The largest that is meant, a deal's status with its proposal and a
/// long error text, stays under 4 KiB; Curio takes 1 MB itself. Hard.
pub const MAX_CBOR_DOCUMENT: usize = 1 << 20;

/// Bytes of one text or byte string in CBOR. A transfer's parameters and an error text stay under 4 KiB. Hard.
pub const MAX_CBOR_STRING: usize = 64 << 10;

/// Keys of one CBOR map, known and unknown. The widest of the protocol has seven. Hard.
pub const MAX_CBOR_KEYS: usize = 64;

/// Deepest nesting of a CBOR value that is skipped because its key is unknown. Hard.
pub const MAX_CBOR_NESTING: usize = 32;

/// Bytes of a CID that is read. The longest on this chain is a root with its data inline, which the recordings
/// hold with 117 bytes; 168 is what is read off any wire here. Hard.
pub const MAX_CID_BYTES: usize = 168;

/// Bytes of a deal's label: f05 refuses more. Hard.
pub const MAX_LABEL_BYTES: usize = 256;

/// Bytes of an amount's magnitude. 16 hold 3.4e38 attoFIL, and all FIL that will ever be is 2e27. Hard.
pub const MAX_AMOUNT_BYTES: usize = 16;

/// Bytes of a message's parameters. Ours are an address or a deal list; Lotus takes 64 KiB for a whole message. Hard.
pub const MAX_PARAMS_BYTES: usize = 60 << 10;

/// Blocks of one tipset. The chain expects 5, and more than 15 has never been; past this a key is no key. Hard.
pub const MAX_TIPSET_BLOCKS: usize = 64;

/// Bytes of one JSON-RPC answer, checked while it is read. Hard.
pub const MAX_ANSWER_BYTES: u32 = 16 << 20;

/// Bytes of one JSON-RPC request of ours: the largest is a signed message. Hard.
pub const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// How long one call may take. A node that executes a message to estimate its gas needs some seconds.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may take to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls in flight on one endpoint; the rest wait for their turn. Public gateways refuse more.
pub const MAX_CONCURRENT_CALLS: usize = 32;

/// Characters of a node's or provider's text that are kept: it goes into rows and logs.
pub const MAX_FOREIGN_TEXT: usize = 1_024;

/// Characters of a token from which on it is taken out of whole answers. A token of Lotus' has over a hundred; half of this
/// may be a field's name or a part of an address, and the answer would be another one.
pub const MIN_HIDDEN_TOKEN: usize = 16;

/// How long a subscription to the head may be silent before it counts as dead: five epochs of 30 s. A node that
/// closed it says nothing.
pub const NOTIFY_SILENCE: Duration = Duration::from_secs(150);

/// Head changes in one message of the subscription. A reorg of 900 epochs reverts and applies 1,800. Hard.
pub const MAX_HEAD_CHANGES: usize = 4_096;

/// Messages of the subscription that wait to be read; past this it ends and is made anew.
pub const NOTIFY_BUFFER: usize = 64;

/// Wait before the head is subscribed to anew, and the longest after doubling: a node that restarts is watched again soon,
/// and one that offers no subscription is not bothered. Looks go on meanwhile.
pub const NOTIFY_RETRY_FIRST: Duration = Duration::from_secs(5);
/// See [`NOTIFY_RETRY_FIRST`].
pub const NOTIFY_RETRY_MOST: Duration = Duration::from_secs(600);

/// Bytes of an endpoint's text or of a token's file. A token is a JWT of about 200 bytes.
pub const MAX_ENDPOINT_BYTES: usize = 8 << 10;

/// Bytes of a key file: it has about 200.
pub const MAX_KEY_FILE_BYTES: u64 = 4 << 10;

/// How old the head may be, in epochs, before spending pauses.
pub const MAX_HEAD_AGE: i64 = 5;

/// How far the clock of the node may run before ours, in epochs, before its head counts as a lie.
pub const MAX_HEAD_LEAD: i64 = 2;

/// Epochs behind the head at which chain state counts. Not lower on mainnet. Hard there.
pub const FINALITY: i64 = 900;

/// Epochs that one question for events spans: half a day. Nodes refuse more than 2,880 unless told otherwise, and a
/// day of one client's deals fits one answer.
pub const EVENT_WINDOW: i64 = 1_440;

/// Published deals in one answer to the engine. It asks for the next heights with its next look. Hard.
pub const MAX_PUBLISHED: usize = 10_000;

/// Runs of a node's bit field that are looked at. A provider with more than half as many faulty sectors apart from each
/// other is in trouble anyway.
pub const MAX_BIT_RUNS: usize = 1 << 18;

/// Multiaddrs of a provider's chain entry that are passed on; the chain holds at most 1 KiB of them.
pub const MAX_CHAIN_ADDRESSES: usize = 16;

/// Deals that one message settles: each costs the chain some million gas, and a block has 10,000 million.
pub const MAX_SETTLED: usize = 256;

/// How long a provider has to take a deal or refuse it: it reads and writes for 10 s each, and asks its chain and its
/// sealer in between.
pub const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a provider has for what it knows: its ask, the state of a deal. Its own handlers end after 10 s.
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection to a provider may take, the look-up of its name included; and its TLS once more.
pub const PROVIDER_CONNECT: Duration = Duration::from_secs(10);

/// Addresses of a provider that are tried, and IP addresses of each of its names.
pub const PROVIDER_ADDRESSES: usize = 4;

/// Providers of which it is remembered which way they took. More than anybody deals with; each is some 200 B.
pub const MAX_REMEMBERED_WAYS: usize = 1_024;

/// Epochs for which a message may wait in the pool under a fee cap below the base fee, before it is replaced.
pub const REPLACE_AFTER: u64 = 20;

/// Epochs after which an unconfirmed message is pushed again.
pub const REPUSH_EVERY: u64 = 10;

/// Unconfirmed messages of one wallet. Lotus holds 1,000 for each sender that it does not own; a top-up a day needs one.
pub const MAX_UNCONFIRMED: usize = 32;

/// Versions of one message under the same nonce: each costs a tenth more than the one before, so the last pays eleven
/// times the first.
pub const MAX_REPLACEMENTS: usize = 25;

pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}
