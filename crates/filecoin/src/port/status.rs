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
    /// Whether it keeps events; `None` before it was asked.
    pub keeps_events: Option<bool>,
    /// What the token allows; `None` without one.
    pub permissions: Option<Vec<Permission>>,
    /// Head and finality at the last look; `None` where that failed.
    pub heights: Option<(Epoch, Epoch)>,
    /// Why the last look failed.
    pub trouble: Option<String>,
}

impl NodeStatus {
    pub(super) fn looked(&mut self, view: &View) {
        self.heights = Some((view.head.height, view.last_final.height));
        self.trouble = None;
    }

    pub(super) fn failed(&mut self, why: &str) {
        (self.heights, self.trouble) = (None, Some(why.to_owned()));
    }
}
