//! What an operator may want to know of the node.

use crate::chain::View;
use crate::rpc::Permission;
use crate::types::Epoch;

/// What is known of the node now. Holds no secret: the endpoint is shown without its token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Where it is.
    pub endpoint: String,
    /// What it says that it is.
    pub version: Option<String>,
    /// Network and genesis that this Floe belongs to.
    pub network: Option<String>,
    /// Whether it offers the deal calls that Lotus dropped: such a node is of before 2024-06, and does not follow
    /// mainnet. Floe does not use those calls.
    pub offers_client_calls: bool,
    /// Whether the token goes to it over a network, not encrypted.
    pub token_in_clear: bool,
    /// Whether it keeps events; `None` before it was asked.
    pub keeps_events: Option<bool>,
    /// What the token allows; `None` without one.
    pub permissions: Option<Vec<Permission>>,
    /// Head and finality at the last look; `None` where that failed.
    pub heights: Option<(Epoch, Epoch)>,
    /// Why the last look failed.
    pub trouble: Option<String>,
    /// What it could not be asked, in words: a gateway answers less than a node.
    pub unasked: Vec<&'static str>,
    /// Messages that its pool does not take: their intents, and its words.
    pub refused: Vec<(String, String)>,
}

impl NodeStatus {
    /// What an operator should know, in words.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let mut add = |is: bool, text: String| remarks.extend(is.then_some(text));
        let (endpoint, version) = (&self.endpoint, self.version.as_deref().unwrap_or("unknown"));
        add(
            self.offers_client_calls,
            format!(
                "{endpoint} (version {version}) offers the deal calls that Lotus dropped with v1.27.1: it is of before \
                 2024-06 and cannot follow today's mainnet"
            ),
        );
        add(self.token_in_clear, format!("the token goes to {endpoint} in clear: use https"));
        add(
            self.keeps_events == Some(false),
            format!("{endpoint} keeps no events: published deals are found by what providers say alone"),
        );
        for what in &self.unasked {
            remarks.push(format!("{endpoint} could not be asked {what}"));
        }
        for (intent, reason) in &self.refused {
            remarks
                .push(format!("{endpoint} refuses the message of {intent}, which is pushed again: {reason}"));
        }
        if let Some(trouble) = &self.trouble {
            remarks.push(format!("{endpoint} cannot be used now: {trouble}"));
        }
        remarks
    }

    pub(super) fn looked(&mut self, view: &View) {
        self.heights = Some((view.head.height, super::chain::counted(view)));
        self.trouble = None;
    }

    pub(super) fn failed(&mut self, why: &str) {
        (self.heights, self.trouble) = (None, Some(why.to_owned()));
    }
}
