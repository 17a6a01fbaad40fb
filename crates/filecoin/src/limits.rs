//! Every bound of this crate, with its reason.

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

/// Characters of a node's or provider's text that are kept: it goes into rows and logs.
pub const MAX_FOREIGN_TEXT: usize = 1_024;

/// Bytes of an endpoint's text or of a token's file. A token is a JWT of about 200 bytes.
pub const MAX_ENDPOINT_BYTES: usize = 8 << 10;

/// How old the head may be, in epochs, before spending pauses.
pub const MAX_HEAD_AGE: i64 = 5;

/// How far the clock of the node may run before ours, in epochs, before its head counts as a lie.
pub const MAX_HEAD_LEAD: i64 = 2;

/// Epochs behind the head at which chain state counts. Not lower on mainnet. Hard there.
pub const FINALITY: i64 = 900;

pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}
