//! Why a deal, or a call for one, did not work: a class that can be acted on, beside the raw words that were said.
//!
//! Providers and nodes tell their errors apart by text alone, and the texts are those of Boost's and Curio's sources. The
//! first line of the table that fits wins; what fits none is [`FailureCode::RejectedOther`], with its text kept.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal),* $(,)?) => {
        /// The class of a failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum FailureCode {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl FailureCode {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The word in rows, answers and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

codes! {
    /// The node is away, stale, of another network, or answers nothing that can be used.
    ChainUnreachable = "chain_unreachable",
    /// The node refuses the token.
    Auth = "auth",
    /// The wallet has too little.
    FundsWallet = "funds_wallet",
    /// Escrow has too little.
    FundsEscrow = "funds_escrow",
    /// Gas costs more than is permitted.
    Gas = "gas",
    /// The number of a message is not ours to give.
    Nonce = "nonce",
    /// Nobody says where the provider is.
    SpUnresolvable = "sp_unresolvable",
    /// It cannot be connected to.
    SpDial = "sp_dial",
    /// It does not speak the protocol, or not correctly.
    SpProtocol = "sp_protocol",
    /// It does not answer in time.
    SpTimeout = "sp_timeout",
    /// The price is too low for it.
    RejectedPrice = "rejected_price",
    /// The piece has a size that it does not take.
    RejectedSize = "rejected_size",
    /// The term is too long or too short.
    RejectedDuration = "rejected_duration",
    /// It starts too early or too late.
    RejectedStartEpoch = "rejected_start_epoch",
    /// The collateral does not suit it.
    RejectedCollateral = "rejected_collateral",
    /// It finds too little in escrow.
    RejectedFunds = "rejected_funds",
    /// It does not accept the signature.
    RejectedSignature = "rejected_signature",
    /// It does not take this client, or this kind of deal.
    RejectedAllowlist = "rejected_allowlist",
    /// It has too much to do now. Worth another try later.
    RejectedBackpressure = "rejected_backpressure",
    /// It has no room or no funds.
    RejectedCapacity = "rejected_capacity",
    /// It has had the proposal before: an earlier sending arrived.
    RejectedDuplicate = "rejected_duplicate",
    /// Anything else.
    RejectedOther = "rejected_other",
    /// It cannot reach our pull server.
    TransferUnreachable = "transfer_unreachable",
    /// It stopped pulling.
    TransferStalled = "transfer_stalled",
    /// It got another length than was agreed.
    TransferSizeMismatch = "transfer_size_mismatch",
    /// It computed another commitment.
    CommpMismatch = "commp_mismatch",
    /// Its publishing failed.
    PublishFailed = "publish_failed",
    /// It did not publish in time.
    PublishTimeout = "publish_timeout",
    /// The start epoch passed before the sector was proven.
    SealTimeout = "seal_timeout",
    /// The chain ended the deal before its end.
    TerminatedEarly = "terminated_early",
    /// Its sector is not being proven. A warning.
    SectorFaulty = "sector_faulty",
    /// It ran to its end.
    Expired = "expired",
    /// Nobody pins any of the piece any more.
    Unwanted = "unwanted",
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is in a refusal's text, and its class. In this order: `piece size less than …` must not be read as a price.
const REFUSALS: &[(&[&str], FailureCode)] = &[
    (&["backpressure", "please retry in some time"], FailureCode::RejectedBackpressure),
    (&["DataCap", "not a verified client"], FailureCode::RejectedAllowlist),
    (&["libp2p", "Libp2p"], FailureCode::RejectedOther),
    (&["asking price", "storage price per epoch"], FailureCode::RejectedPrice),
    (&["piece size"], FailureCode::RejectedSize),
    (&["duration"], FailureCode::RejectedDuration),
    (
        &["start epoch", "end epoch", "before proposal start", "cannot seal a sector before"],
        FailureCode::RejectedStartEpoch,
    ),
    (&["collateral"], FailureCode::RejectedCollateral),
    (&["client available funds in escrow"], FailureCode::RejectedFunds),
    (&["invalid signature"], FailureCode::RejectedSignature),
    (&["not allowed", "not accepting", "not considering", "blocklisted"], FailureCode::RejectedAllowlist),
    (&["no space left", "insufficient funds to accept"], FailureCode::RejectedCapacity),
    (
        &["identical to deal", "same uuid", "same proposalCID", "updated 0 rows"],
        FailureCode::RejectedDuplicate,
    ),
    (&["validating signature"], FailureCode::RejectedSignature),
];

impl FailureCode {
    /// The class behind a row's word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == word)
    }

    /// The class of a provider's refusal.
    pub fn of_refusal(text: &str) -> Self {
        let fits = |(parts, _): &&(&[&str], Self)| parts.iter().any(|part| text.contains(part));
        REFUSALS.iter().find(fits).map_or(Self::RejectedOther, |(_, code)| *code)
    }

    /// Why a deal that was accepted never came onto the chain: by the provider's own last error, where that says one of the
    /// few things that only it can know; else by our log of what was pulled, of `pulled` bytes and whether it `is_whole`.
    pub fn of_unpublished(error: &str, pulled: u64, is_whole: bool) -> Self {
        let said = error.to_lowercase();
        let says = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
        if says(&["failed to publish"]) {
            Self::PublishFailed
        } else if says(&["is larger than", "size mismatch"]) {
            Self::TransferSizeMismatch
        } else if says(&["commp"]) {
            Self::CommpMismatch
        } else if is_whole {
            Self::PublishTimeout
        } else if pulled > 0 {
            Self::TransferStalled
        } else {
            Self::TransferUnreachable
        }
    }

    /// Whether the text of a refusal says that the fault is ours: a bug that somebody must look at.
    pub fn is_our_bug(text: &str) -> bool {
        ["doesn't match padded piece size", "get deal transfer host", "incorrect provider", "PieceCID"]
            .iter()
            .any(|part| text.contains(part))
    }

    /// Whether a refusal is for now: the very same proposal may be taken a while later.
    pub fn is_for_now(self) -> bool {
        matches!(self, Self::RejectedBackpressure | Self::RejectedFunds | Self::RejectedCapacity)
    }

    /// Whether the same provider may take another proposal later.
    pub fn is_passing(self) -> bool {
        matches!(
            self,
            Self::RejectedBackpressure
                | Self::RejectedFunds
                | Self::RejectedCapacity
                | Self::SpDial
                | Self::SpTimeout
                | Self::SpProtocol
                | Self::RejectedOther
        )
    }
}

#[cfg(test)]
mod tests {
    use super::FailureCode as F;

    #[test]
    fn the_words_round_trip() {
        for code in F::ALL {
            assert_eq!(F::parse(code.as_str()), Some(*code));
        }
        assert_eq!(F::parse("nonsense"), None);
    }

    #[test]
    fn each_end_of_an_accepted_deal_has_its_class() {
        let cases = [
            ("failed to publish deal: exit code 16", 9, true, F::PublishFailed),
            ("failed to publish deal: message failed", 0, false, F::PublishFailed),
            ("piece of 300 bytes is larger than the proposal's size 256", 9, true, F::TransferSizeMismatch),
            ("transfer size mismatch: 3 != 4", 3, false, F::TransferSizeMismatch),
            ("commp mismatch: deal proposal piece cid x does not match", 9, true, F::CommpMismatch),
            ("failed to verify CommP", 9, true, F::CommpMismatch),
            ("", 9, true, F::PublishTimeout),
            ("something else", 9, true, F::PublishTimeout),
            ("", 3, false, F::TransferStalled),
            ("connection reset", 3, false, F::TransferStalled),
            ("", 0, false, F::TransferUnreachable),
        ];
        for (said, pulled, is_whole, code) in cases {
            assert_eq!(F::of_unpublished(said, pulled, is_whole), code, "{said} {pulled} {is_whole}");
        }
    }

    /// Real texts of Boost and Curio.
    #[test]
    fn each_text_has_its_class() {
        let cases = [
            ("deal rejected due to backpressure. Please retry in some time.", F::RejectedBackpressure),
            ("failed validation: client is not a verified client", F::RejectedAllowlist),
            ("libp2p URLs are not supported by this provider", F::RejectedOther),
            ("failed validation: storage price per epoch less than asking price: 1 < 2", F::RejectedPrice),
            ("failed validation: piece size less than minimum required size: 1 < 2", F::RejectedSize),
            ("deal proposal piece size 1 doesn't match padded piece size 2", F::RejectedSize),
            (
                "failed validation: deal duration out of bounds (min, max, provided): 1, 2, 3",
                F::RejectedDuration,
            ),
            (
                "failed validation: deal start epoch 5 has already elapsed (current epoch: 9)",
                F::RejectedStartEpoch,
            ),
            ("failed validation: proposal end 1 before proposal start 2", F::RejectedStartEpoch),
            ("cannot seal a sector before 2880", F::RejectedStartEpoch),
            ("failed validation: proposed provider collateral 1 below minimum 2", F::RejectedCollateral),
            (
                "failed validation: client available funds in escrow 1 not enough to meet storage cost for deal 2",
                F::RejectedFunds,
            ),
            ("failed validation: invalid signature", F::RejectedSignature),
            ("server error: validating signature", F::RejectedSignature),
            ("miner is not considering online storage deals", F::RejectedAllowlist),
            ("client not allowed by provider", F::RejectedAllowlist),
            ("server error: provider has no space left for storage deals", F::RejectedCapacity),
            ("deal proposal is identical to deal x (proposed at y)", F::RejectedDuplicate),
            ("market deal with the same proposalCID x already exists", F::RejectedDuplicate),
            ("we do not like you", F::RejectedOther),
            ("", F::RejectedOther),
        ];
        for (text, code) in cases {
            assert_eq!(F::of_refusal(text), code, "{text}");
        }
    }
}
