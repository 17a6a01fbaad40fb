//! The scripts of what goes wrong, as the control port takes them. Everything is off by default.

use serde::{Deserialize, Serialize};

use crate::limits::FAULTS;
use crate::provider::Manner;

/// Faults of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeFaults {
    /// For some calls.
    pub rules: Vec<RpcRule>,
    /// The node shows the head it had when this was set, and what is pushed to it is heard by nobody.
    pub stale: bool,
    /// The node shows another network, with another genesis.
    pub wrong_chain: bool,
    /// Messages wait and are not included.
    pub hold_messages: bool,
}

/// A fault of some calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RpcRule {
    /// What happens.
    pub fault: RpcFault,
    /// To which methods (`Filecoin.ChainHead`); to all when empty.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Calls that go well before it begins.
    #[serde(default)]
    pub after: u32,
    /// Calls it happens to; to all from then on when none.
    #[serde(default)]
    pub times: Option<u32>,
}

/// What can happen to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RpcFault {
    /// The connection closes, the call is not made.
    Down,
    /// The call is made after this many milliseconds.
    Slow(u64),
    /// The call is made, half of the answer arrives.
    HalfBody,
    /// The call is made, the connection closes.
    LostReply,
    /// The call is not made; an answer with this HTTP status and no JSON.
    Status(u16),
    /// The call is not made; an error with code 1 and this text.
    Error(String),
}

impl NodeFaults {
    /// Whether this many rules may be.
    pub(crate) fn fits(&self) -> bool {
        self.rules.len() <= FAULTS
    }

    /// The fault of this call, counted.
    pub(crate) fn of(&mut self, method: &str) -> Option<RpcFault> {
        let applies =
            |rule: &&mut RpcRule| rule.methods.is_empty() || rule.methods.iter().any(|m| m == method);
        for rule in self.rules.iter_mut().filter(applies) {
            if rule.after > 0 {
                rule.after -= 1;
                continue;
            }
            match &mut rule.times {
                Some(0) => continue,
                Some(times) => *times -= 1,
                None => {}
            }
            return Some(rule.fault.clone());
        }
        None
    }
}

/// Faults of one provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderFaults {
    /// Nothing of it answers.
    pub offline: bool,
    /// attoFIL for a GiB and an epoch that its ask says, whatever it takes in truth; `price` of the ask, as text.
    pub ask_price: Option<String>,
    /// Questions for the ask that are answered as they were before `ask_price` counts.
    pub ask_price_after: u32,
    /// Every proposal that would be accepted is refused, for this reason.
    pub reject: Option<Reject>,
    /// Proposals are accepted, and the connection closes before the answer.
    pub lose_reply: bool,
    /// Transfers begin and get nowhere.
    pub stall_transfer: bool,
    /// The provider believes to have received other bytes than it did.
    pub wrong_commp: bool,
    /// Accepted deals are transferred and never published.
    pub never_publish: bool,
    /// Refused proposals are published all the same: whoever holds the signed bytes can.
    pub publish_refused: bool,
    /// The status names this deal on the chain, whatever the deal's own is.
    pub report_deal_id: Option<u64>,
    /// Published deals are never put into a sector.
    pub never_seal: bool,
    /// Sectors are terminated this many epochs after they were proven.
    pub terminate_after: Option<i64>,
    /// Sectors are faulty from this many epochs on after they were proven.
    pub faulty_after: Option<i64>,
    /// Questions for the status are not answered as they should be.
    pub status: Option<StatusFault>,
    /// The status of a deal carries an error, while its sealing goes on.
    pub index_error: bool,
    /// Pieces are not served as they should be.
    pub retrieval: Option<RetrievalFault>,
}

impl ProviderFaults {
    /// The price of the ask that is answered now, where it is another than the provider's; counted.
    pub(crate) fn asked(&mut self) -> Option<i128> {
        let price = self.ask_price.as_ref()?.parse().ok()?;
        if self.ask_price_after > 0 {
            self.ask_price_after -= 1;
            return None;
        }
        Some(price)
    }

    /// Whether it can be followed.
    pub(crate) fn fits(&self) -> bool {
        let is_price = |text: &String| text.parse().is_ok_and(|price: i128| price >= 0);
        self.ask_price.as_ref().is_none_or(is_price)
    }
}

/// Why a proposal is refused; the texts are those of Boost and Curio.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reject {
    /// The price is under the ask.
    Price,
    /// The piece is too small.
    Size,
    /// The duration is out of bounds.
    Duration,
    /// The start is too soon.
    StartEpoch,
    /// The collateral is too low.
    Collateral,
    /// The client's escrow is too low.
    Funds,
    /// The signature is not the client's.
    Signature,
    /// The client is not on the list.
    Allowlist,
    /// Too much to do; later perhaps.
    Backpressure,
    /// Too much from this client in this hour; later perhaps.
    RateLimit,
    /// No space is left.
    Capacity,
    /// The same proposal was seen.
    Duplicate,
    /// The provider's own trouble.
    ServerError,
    /// This text.
    Text(String),
}

impl Reject {
    /// What a provider of this manner says: Curio says the same as Boost, without Boost's word before it.
    pub(crate) fn text(&self, manner: Manner) -> String {
        let text = match self {
            Self::Price => "failed validation: storage price per epoch less than asking price: 1 < 2",
            Self::Size => "failed validation: piece size less than minimum required size: 128 < 256",
            Self::Duration => {
                "failed validation: deal duration out of bounds (min, max, provided): 518400, 3680640, 1"
            }
            Self::StartEpoch => "cannot seal a sector before 100",
            Self::Collateral => "failed validation: proposed provider collateral 0 below minimum 1",
            Self::Funds => {
                "failed validation: client available funds in escrow 0 not enough to meet storage cost for deal 1"
            }
            Self::Signature => "failed validation: invalid signature",
            Self::Allowlist => "client not allowed by provider",
            Self::Backpressure => "deal rejected due to backpressure. Please retry in some time.",
            Self::RateLimit => {
                "deal rejected as cumulative size of deals in past 1 hour has reached the maximum allowed for the \
                 client, please retry in some time"
            }
            Self::Capacity => "server error: provider has no space left for storage deals",
            Self::Duplicate => {
                "deal proposal is identical to deal 00000000-0000-0000-0000-000000000000 (proposed at 2026-01-01 \
                 00:00:00 +0000 UTC)"
            }
            Self::ServerError => "server error: internal server error",
            Self::Text(text) => text,
        };
        match manner {
            Manner::Boost => text.to_owned(),
            Manner::Curio => text.strip_prefix("failed validation: ").unwrap_or(text).to_owned(),
        }
    }
}

/// What a provider does instead of telling the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusFault {
    /// It says this about the question.
    Error(String),
    /// It says that the deal is in this state.
    Lie(String),
    /// It has never heard of the deal.
    NotFound,
    /// It does not answer.
    Silent,
}

/// What a provider does instead of serving a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetrievalFault {
    /// The first byte of each answer is another.
    Corrupt,
    /// 403.
    Refuse,
    /// 404.
    NotFound,
    /// Half of the answer arrives.
    HalfBody,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_calls() {
        let rule = RpcRule {
            fault: RpcFault::Down,
            methods: vec!["Filecoin.ChainHead".into()],
            after: 1,
            times: Some(2),
        };
        let mut faults = NodeFaults { rules: vec![rule], ..NodeFaults::default() };
        let hits: Vec<bool> = (0..5).map(|_| faults.of("Filecoin.ChainHead").is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert!(faults.of("Filecoin.Version").is_none());
    }

    #[test]
    fn scripts_are_read_and_misspelt_ones_refused() {
        let text = r#"{"reject": "backpressure", "status": {"lie": "Complete"}, "retrieval": "corrupt"}"#;
        let faults: ProviderFaults = serde_json::from_str(text).unwrap();
        assert_eq!(faults.reject, Some(Reject::Backpressure));
        assert!(serde_json::from_str::<ProviderFaults>(r#"{"of_line": true}"#).is_err());
        let text = r#"{"rules": [{"fault": {"slow": 5}}, {"fault": "lost_reply", "times": 1}]}"#;
        assert_eq!(serde_json::from_str::<NodeFaults>(text).unwrap().rules.len(), 2);
    }
}
