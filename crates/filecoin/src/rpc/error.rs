//! What went wrong with a call, and what that says about whether it took place.
//!
//! Lotus tells ordinary errors apart by their text alone (code 1 for nearly all), so [`Fault`] is found by text, first
//! match wins. The texts are those of recordings and of the node's sources.

use std::time::Duration;

use super::methods::{Method, Permission};

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// No connection, or one that broke. The call may have taken place.
    #[error("{method}: the Lotus node cannot be reached: {reason}")]
    Unreachable {
        /// Which call.
        method: &'static str,
        /// What the connection said.
        reason: String,
    },
    /// No answer in time. The call may have taken place.
    #[error("{method}: the Lotus node did not answer within {after:?}")]
    Timeout {
        /// Which call.
        method: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// An HTTP status that says nothing about the call.
    #[error("{method}: the Lotus node answered with HTTP status {status}")]
    Status {
        /// Which call.
        method: &'static str,
        /// The status.
        status: u16,
    },
    /// An answer that is none: half of one, or of another shape. The call may have taken place.
    #[error("{method}: the Lotus node's answer cannot be read: {reason}")]
    Malformed {
        /// Which call.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An answer over the limit. The call may have taken place.
    #[error("{method}: the Lotus node's answer is larger than 16 MiB")]
    TooLarge {
        /// Which call.
        method: &'static str,
    },
    /// The token is not this node's.
    #[error(
        "{method}: the Lotus node does not accept the token: make one with `lotus auth create-token --perm write`"
    )]
    Unauthorized {
        /// Which call.
        method: &'static str,
    },
    /// The token may not do this.
    #[error(
        "{method}: the token lacks the permission {need}: make one with `lotus auth create-token --perm {need}`"
    )]
    Forbidden {
        /// Which call.
        method: &'static str,
        /// What it needs.
        need: Permission,
    },
    /// The node has no such method.
    #[error("{method}: the node does not offer this call; Lotus v1.32 or newer does")]
    UnknownMethod {
        /// Which call.
        method: &'static str,
    },
    /// The node could not read our parameters, or panicked on them: another version than we know, or a bug.
    #[error(
        "{method}: the node could not take the call ({message}): it may be of a version that Floe does not know"
    )]
    BadCall {
        /// Which call.
        method: &'static str,
        /// What it said.
        message: String,
    },
    /// The node took the call and refused.
    #[error("{method}: {message}")]
    Refused {
        /// Which call.
        method: &'static str,
        /// The JSON-RPC code.
        code: i32,
        /// What it said, cut.
        message: String,
        /// What that means.
        fault: Fault,
    },
}

impl RpcError {
    /// What a JSON-RPC error object means.
    pub fn of_object(method: &Method, code: i32, message: &str) -> Self {
        let (method, need) = (method.name, method.permission);
        let message = crate::words::cut(message);
        match code {
            -32601 => Self::UnknownMethod { method },
            -32700 | -32602 | -32600 | 0 => Self::BadCall { method, message },
            _ if message.contains("missing permission to invoke") => Self::Forbidden { method, need },
            _ => Self::Refused { method, code, fault: Fault::of(code, &message), message },
        }
    }

    /// What the node refused for, if it did.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused { fault, .. } => Some(*fault),
            _ => None,
        }
    }

    /// Whether the call may have taken place although there is no answer: it is then neither done nor failed.
    pub fn is_lost_reply(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. } => true,
            // A proxy's 502 comes after the call went on.
            Self::Status { status, .. } => *status >= 500,
            // A panic may come after the effect.
            Self::BadCall { message, .. } => message.contains("fatal error calling"),
            _ => false,
        }
    }
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// No such actor: an account that never received anything.
    ActorNotFound,
    /// No such deal: not yet active past its start, expired, or terminated.
    DealNotFound,
    /// The node does not know this message or block.
    ObjectNotFound,
    /// The actor is there and is no storage provider.
    NotAMiner,
    /// The node's wallet has no such key.
    KeyNotFound,
    /// A message with this nonce is on the chain.
    NonceTooLow,
    /// Another message with the nonce of the one that is searched is on the chain: its replacement, or somebody else's.
    NonceUsed,
    /// This message is in the pool.
    NonceExists,
    /// The pool holds a message with this nonce and a premium not much lower.
    PremiumTooLow,
    /// Less than the network's base fee.
    FeeCapTooLow,
    /// More than the sender has.
    NotEnoughFunds,
    /// The sender has too many messages in the pool.
    TooManyPending,
    /// The signature is not the sender's.
    BadSignature,
    /// Further back than this node (a gateway) looks.
    TooFarBack,
    /// There is no tipset at this height (yet).
    NoSuchHeight,
    /// The node keeps no events, or its operator did not turn them on.
    NoEvents,
    /// Anything else: read the text.
    Other,
}

/// First match wins.
const TEXTS: &[(&str, Fault)] = &[
    ("found message with equal nonce", Fault::NonceUsed),
    ("message nonce too low", Fault::NonceTooLow),
    ("message with nonce already exists", Fault::NonceExists),
    ("replace by fee has too low GasPremium", Fault::PremiumTooLow),
    ("gas fee cap too low", Fault::FeeCapTooLow),
    ("GasFeeCap too low", Fault::FeeCapTooLow),
    ("too many pending messages", Fault::TooManyPending),
    ("not enough funds", Fault::NotEnoughFunds),
    ("SysErrInsufficientFunds", Fault::NotEnoughFunds),
    ("signature did not match", Fault::BadSignature),
    ("signature verification failed", Fault::BadSignature),
    ("actor code is not miner", Fault::NotAMiner),
    ("actor not found", Fault::ActorNotFound),
    ("key not found", Fault::KeyNotFound),
    ("not found - deal may not have completed sealing", Fault::DealNotFound),
    ("ipld: could not find", Fault::ObjectNotFound),
    ("lookbacks of more than", Fault::TooFarBack),
    ("looking for tipset with height greater than start point", Fault::NoSuchHeight),
    ("EnableActorEventsAPI", Fault::NoEvents),
    ("indexer is disabled", Fault::NoEvents),
    ("index is not enabled", Fault::NoEvents),
    ("method not supported", Fault::NoEvents),
];

impl Fault {
    fn of(code: i32, message: &str) -> Self {
        let by_text = TEXTS.iter().find(|(text, _)| message.contains(text)).map(|(_, fault)| *fault);
        match code {
            11 => Self::ActorNotFound,
            12 => Self::NoSuchHeight,
            _ => by_text.unwrap_or(Self::Other),
        }
    }
}
