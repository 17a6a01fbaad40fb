//! A chain in memory: deterministic, without IO, without a clock. The same seed and the same calls give the same
//! chain, byte for byte.
//!
//! ```text
//!  push ──> Pool ──select──> tipset n: messages   before ──apply, cron──> after
//!                            tipset n+1:          before = the after of n; here the receipts of n can be seen
//! ```
//!
//! - **A tipset is one block**, made by [`Chain::advance`]. Epochs without one are null rounds ([`Chain::skip`]).
//! - **What a message did is seen one tipset later**, as on the real chain: a state asked for at a tipset is the one
//!   before its own messages, and a message is found once its tipset has a child.
//! - **The states are kept**, so that a reorg ([`Chain::reorg`]) goes back to one and builds other blocks on it.
//!   What was included on the way waits again, or is lost, as asked.
//!
//! What this is not: a virtual machine. Blocks have names and no bytes that hash to them, gas is a table, the base
//! fee does not move, proofs are believed.

mod market;
mod miner;
mod pool;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::wire::Cid;
use serde_json::{Value, json};

#[cfg(test)]
pub(crate) use self::market::SETTLE_DEAL_PAYMENTS;
pub(crate) use self::market::{ADD_BALANCE, Balance, PUBLISH_STORAGE_DEALS, WITHDRAW_BALANCE};
pub(crate) use self::miner::{
    DECLARE_FAULTS, Miner, PROVE_COMMIT, Sector, TERMINATE, params as miner_params,
};
use self::pool::Pool;
pub(crate) use self::pool::Refused;
pub(crate) use self::state::{Actor, BASE_FEE, DealEvent, Kind, Receipt, Rules, State, gas};
use crate::limits::{KEPT_STATES, KEPT_TIPSETS};
use crate::wire::address::Address;
use crate::wire::chain_cid;
use crate::wire::key::{self, Key};
use crate::wire::message::{Message, SignedMessage, link};

/// The id of the first miner; the others follow.
pub(crate) const FIRST_MINER: u64 = 1_000;
/// The id of the first miner's owner; the others follow.
const FIRST_OWNER: u64 = 100;
/// attoFIL that owners and the funded client begin with.
const GENESIS_BALANCE: i128 = 1_000_000 * 1_000_000_000_000_000_000;
/// attoFIL of that which a provider has in escrow, for its collateral.
const GENESIS_ESCROW: i128 = 1_000 * 1_000_000_000_000_000_000;

/// What a chain begins with.
#[derive(Clone, Debug)]
pub(crate) struct Genesis {
    pub(crate) seed: u64,
    pub(crate) network: String,
    /// Seconds since 1970 of epoch 0.
    pub(crate) time: u64,
    /// Seconds in an epoch, as timestamps count them.
    pub(crate) block_delay: u64,
    /// Epochs until a tipset is final.
    pub(crate) finality: i64,
    pub(crate) rules: Rules,
    /// The providers, with their peer ids and addresses.
    pub(crate) miners: Vec<Miner>,
    /// The account that the tests spend from.
    pub(crate) client: Address,
}

/// A tipset of one block.
#[derive(Debug)]
pub(crate) struct Tipset {
    pub(crate) cid: Cid,
    pub(crate) parent: Option<Cid>,
    pub(crate) height: i64,
    weight: u64,
    timestamp: u64,
    base_fee: i128,
    miner: u64,
    pub(crate) messages: Vec<SignedMessage>,
    /// Of the messages, in their order. Seen once the tipset has a child.
    pub(crate) receipts: Vec<Receipt>,
    /// The state before the messages. None where it was long ago.
    before: Option<State>,
    /// The state after them.
    after: Option<State>,
}

/// A step of the head.
#[derive(Clone, Debug)]
pub(crate) enum HeadChange {
    Apply(Arc<Tipset>),
    Revert(Arc<Tipset>),
}

/// A message that was executed.
pub(crate) struct Lookup {
    /// The child of the tipset that includes it.
    pub(crate) seen_in: Arc<Tipset>,
    pub(crate) receipt: Receipt,
}

/// An event and where it happened.
pub(crate) struct EventAt {
    pub(crate) event: DealEvent,
    pub(crate) tipset: Arc<Tipset>,
    pub(crate) message: Cid,
}

/// The chain. A clone is a fork of it: cheap, and nothing of the other's is seen any more.
#[derive(Clone)]
pub(crate) struct Chain {
    genesis: Arc<Genesis>,
    first: Arc<Tipset>,
    /// Old to new, with gaps where rounds were null.
    tipsets: VecDeque<Arc<Tipset>>,
    /// Tipsets that a reorg left behind: whoever knows their names may still ask.
    abandoned: VecDeque<Arc<Tipset>>,
    /// Heights of the messages on the chain.
    included: BTreeMap<Cid, i64>,
    /// Every message that was seen and is not forgotten.
    messages: BTreeMap<Cid, SignedMessage>,
    pool: Pool,
    /// Counts reorgs: what makes the other blocks other.
    fork: u64,
    /// While set, nothing is included.
    pub(crate) hold_messages: bool,
    /// attoFIL that a unit of gas costs in the next tipset; at least [`BASE_FEE`].
    pub(crate) base_fee: i128,
}

/// The key of a provider's worker and owner.
pub(crate) fn worker_key(seed: u64, index: usize) -> Key {
    Key::from_seed(format!("worker {index} of {seed}").as_bytes(), key::Kind::Secp)
}

impl Chain {
    /// A chain of one tipset.
    pub(crate) fn new(genesis: Genesis) -> Self {
        let state = genesis_state(&genesis);
        let cid = chain_cid(format!("genesis {} {}", genesis.network, genesis.seed).as_bytes());
        let first = Arc::new(Tipset {
            cid,
            parent: None,
            height: 0,
            weight: 0,
            timestamp: genesis.time,
            base_fee: BASE_FEE,
            miner: FIRST_MINER,
            messages: Vec::new(),
            receipts: Vec::new(),
            before: Some(state.clone()),
            after: Some(state),
        });
        Self {
            genesis: Arc::new(genesis),
            tipsets: VecDeque::from([Arc::clone(&first)]),
            first,
            abandoned: VecDeque::new(),
            included: BTreeMap::new(),
            messages: BTreeMap::new(),
            pool: Pool::default(),
            fork: 0,
            hold_messages: false,
            base_fee: BASE_FEE,
        }
    }

    pub(crate) fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub(crate) fn first(&self) -> &Arc<Tipset> {
        &self.first
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.genesis.rules
    }

    pub(crate) fn head(&self) -> &Arc<Tipset> {
        // There is always the genesis.
        self.tipsets.back().unwrap_or(&self.first)
    }

    /// The state that a node shows at a tipset: before its messages.
    pub(crate) fn state_at(&self, tipset: &Tipset) -> Option<State> {
        tipset.before.clone()
    }

    /// The state that the next message finds: after the head's messages.
    pub(crate) fn latest(&self) -> &State {
        self.head().after.as_ref().or(self.first.after.as_ref()).unwrap_or(&EMPTY)
    }

    /// The tipset of a height, or the nearest before it (`later`: after it). None past the head and before what is
    /// kept.
    pub(crate) fn by_height(&self, height: i64, later: bool) -> Option<&Arc<Tipset>> {
        if height > self.head().height || height < 0 {
            return None;
        }
        if height == 0 {
            return Some(&self.first);
        }
        let after = self.tipsets.partition_point(|tipset| tipset.height < height);
        match self.tipsets.get(after) {
            Some(tipset) if later || tipset.height == height => Some(tipset),
            _ => after.checked_sub(1).and_then(|before| self.tipsets.get(before)),
        }
    }

    /// The tipset of a name, on the chain or left behind.
    pub(crate) fn by_cid(&self, cid: &Cid) -> Option<&Arc<Tipset>> {
        let known = self.tipsets.iter().rev().chain(self.abandoned.iter().rev());
        known.chain([&self.first]).find(|tipset| tipset.cid == *cid)
    }

    /// The last final tipset; the error is its height, where that is negative.
    pub(crate) fn finalized(&self) -> Result<&Arc<Tipset>, i64> {
        let height = self.head().height - self.genesis.finality;
        self.by_height(height, false).ok_or(height)
    }

    /// One epoch with a block.
    pub(crate) fn advance(&mut self) -> HeadChange {
        self.advance_by(1)
    }

    /// A block `epochs` above the head: the rounds between are null.
    pub(crate) fn skip(&mut self, epochs: u64) -> HeadChange {
        self.advance_by(epochs.max(1))
    }

    fn advance_by(&mut self, epochs: u64) -> HeadChange {
        let parent = Arc::clone(self.head());
        let height = parent.height.saturating_add_unsigned(epochs);
        let before = self.latest().clone();
        let messages = if self.hold_messages { Vec::new() } else { self.pool.select(&before, self.base_fee) };
        let mut after = before.clone();
        let rules = self.genesis.rules;
        let base_fee = self.base_fee;
        let receipts =
            messages.iter().map(|signed| after.apply(&rules, &signed.message, height, base_fee)).collect();
        after.cron(height);
        let name = format!("{} {} {height} {}", parent.cid, self.genesis.seed, self.fork);
        let miners = self.genesis.miners.len().max(1) as u64;
        let tipset = Arc::new(Tipset {
            cid: chain_cid(name.as_bytes()),
            parent: Some(parent.cid),
            height,
            weight: parent.weight + 10_368,
            timestamp: self
                .genesis
                .time
                .saturating_add(self.genesis.block_delay.saturating_mul(height.unsigned_abs())),
            base_fee,
            miner: FIRST_MINER + height.unsigned_abs() % miners,
            messages,
            receipts,
            before: Some(before),
            after: Some(after),
        });
        for signed in &tipset.messages {
            self.included.insert(signed.cid(), height);
        }
        self.tipsets.push_back(Arc::clone(&tipset));
        self.forget();
        HeadChange::Apply(tipset)
    }

    /// Drops what is past the limits: of old tipsets first the state, later all.
    fn forget(&mut self) {
        let keep = KEPT_STATES.max(2 * usize::try_from(self.genesis.finality).unwrap_or(0));
        if let Some(at) = self.tipsets.len().checked_sub(keep + 1)
            && let Some(old) = self.tipsets.get_mut(at)
            && old.height > 0
        {
            let stripped = Tipset {
                before: None,
                after: None,
                messages: old.messages.clone(),
                receipts: old.receipts.clone(),
                ..**old
            };
            *old = Arc::new(stripped);
        }
        while self.tipsets.len() > KEPT_TIPSETS {
            let Some(old) = self.tipsets.pop_front() else { break };
            for cid in old.messages.iter().map(SignedMessage::cid) {
                self.included.remove(&cid);
                self.messages.remove(&cid);
            }
        }
    }

    /// Goes back `depth` tipsets and builds one more than that on other blocks. With `keep`, what was included waits
    /// again and comes back at once; without, it is lost, as when a fork never heard of it. None where the state of
    /// that time is not kept.
    pub(crate) fn reorg(&mut self, depth: usize, keep: bool) -> Option<Vec<HeadChange>> {
        let left = self.tipsets.len().checked_sub(depth).filter(|left| *left > 0)?;
        self.tipsets.get(left - 1)?.after.as_ref()?;
        self.fork += 1;
        let mut changes = Vec::new();
        let mut lost = Vec::new();
        while self.tipsets.len() > left {
            let Some(tipset) = self.tipsets.pop_back() else { break };
            lost.extend(tipset.messages.iter().cloned());
            self.abandoned.push_back(Arc::clone(&tipset));
            changes.push(HeadChange::Revert(tipset));
        }
        while self.abandoned.len() > KEPT_STATES {
            self.abandoned.pop_front();
        }
        let state = self.latest().clone();
        for signed in lost {
            self.included.remove(&signed.cid());
            if keep {
                self.pool.give_back(&state, signed);
            }
        }
        changes.extend((0..=depth).map(|_| self.advance()));
        Some(changes)
    }

    /// Puts a message into the pool and says its CID.
    pub(crate) fn push(&mut self, signed: SignedMessage) -> Result<Cid, Refused> {
        let cid = signed.cid();
        let state = self.latest().clone();
        self.pool.add(&state, signed.clone())?;
        self.messages.insert(cid, signed);
        Ok(cid)
    }

    /// Forgets what waits in the pool.
    pub(crate) fn forget_pool(&mut self) {
        self.pool.forget();
    }

    pub(crate) fn nonce(&self, from: Address) -> Result<u64, Refused> {
        self.pool.nonce(self.latest(), from)
    }

    pub(crate) fn pending(&self) -> impl Iterator<Item = &SignedMessage> {
        self.pool.iter()
    }

    /// A message that was seen, waiting or included.
    pub(crate) fn message(&self, cid: &Cid) -> Option<&SignedMessage> {
        self.messages.get(cid)
    }

    /// Where a message was executed; None while it waits, or its tipset has no child.
    pub(crate) fn lookup(&self, cid: &Cid) -> Option<Lookup> {
        let height = *self.included.get(cid)?;
        let at = self.tipsets.partition_point(|tipset| tipset.height < height);
        let (tipset, child) = (self.tipsets.get(at)?, self.tipsets.get(at + 1)?);
        let index = tipset.messages.iter().position(|signed| signed.cid() == *cid)?;
        Some(Lookup { seen_in: Arc::clone(child), receipt: tipset.receipts.get(index)?.clone() })
    }

    /// The message that took the number of another, which was executed or is another's: its name, and where it was.
    pub(crate) fn instead_of(&self, other: &Message) -> Option<(Cid, Lookup)> {
        let took = |signed: &&SignedMessage| {
            signed.message.from == other.from && signed.message.nonce == other.nonce
        };
        let cid = self.tipsets.iter().rev().find_map(|tipset| tipset.messages.iter().find(took))?.cid();
        self.lookup(&cid).map(|found| (cid, found))
    }

    /// The events from one height to another that can be seen.
    pub(crate) fn events(&self, from: i64, to: i64) -> impl Iterator<Item = EventAt> {
        let head = self.head().height;
        let first = self.tipsets.partition_point(move |tipset| tipset.height < from);
        let range = self.tipsets.iter().skip(first).take_while(move |t| t.height <= to && t.height < head);
        range.flat_map(|tipset| {
            tipset.messages.iter().zip(&tipset.receipts).flat_map(move |(signed, receipt)| {
                let message = signed.cid();
                let at =
                    move |event: &DealEvent| EventAt { event: *event, tipset: Arc::clone(tipset), message };
                receipt.events.iter().map(at)
            })
        })
    }

    /// What a message would do on the state at a tipset.
    pub(crate) fn call(&self, message: &Message, tipset: &Tipset) -> Option<Receipt> {
        let mut state = tipset.after.clone()?;
        Some(state.call(self.rules(), message, tipset.height, gas(message)))
    }
}

/// Where no state is kept at all: cannot be, and no reason to stop.
static EMPTY: std::sync::LazyLock<State> = std::sync::LazyLock::new(State::default);

fn genesis_state(genesis: &Genesis) -> State {
    let mut state = State::default();
    let system =
        [(0, "system"), (1, "init"), (2, "reward"), (3, "cron"), (4, "storagepower"), (5, "storagemarket")];
    for (id, name) in system.into_iter().chain([(6, "verifiedregistry"), (99, "account")]) {
        state.install(id, Kind::System(name), 0);
    }
    let mut market = market::Market::default();
    let mut miners = BTreeMap::new();
    let mut escrow = 0;
    for (index, miner) in genesis.miners.iter().enumerate() {
        let owner = FIRST_OWNER + index as u64;
        let id = FIRST_MINER + index as u64;
        let key = worker_key(genesis.seed, index).address();
        state.install(owner, Kind::Account(key), GENESIS_BALANCE);
        state.install(id, Kind::Miner, 0);
        market.balances.insert(id, Balance { escrow: GENESIS_ESCROW, locked: 0 });
        escrow += GENESIS_ESCROW;
        miners.insert(id, Arc::new(Miner { owner, worker: owner, ..miner.clone() }));
    }
    state.install(MARKET_ID, Kind::System("storagemarket"), escrow);
    let client = FIRST_MINER + genesis.miners.len() as u64;
    state.install(client, Kind::Account(genesis.client), GENESIS_BALANCE);
    state.market = Arc::new(market);
    state.miners = Arc::new(miners);
    state
}

/// f05.
const MARKET_ID: u64 = state::MARKET;

impl Tipset {
    /// As Lotus shows it. The proofs of the block are made of its name.
    pub(crate) fn json(&self) -> Value {
        json!({"Cids": [link(&self.cid)], "Blocks": [self.block()], "Height": self.height})
    }

    fn block(&self) -> Value {
        let derived = |what: &str| chain_cid(format!("{what} {}", self.cid).as_bytes());
        let bytes = |what: &str| data_encoding::BASE64.encode(&derived(what).to_bytes());
        let genesis = self.parent.is_none();
        let parent = self.parent.unwrap_or_else(|| derived("parent"));
        let signature = |what: &str| {
            if genesis { Value::Null } else { json!({"Type": 2, "Data": bytes(what)}) }
        };
        let proof = json!([{"PoStProof": 0, "ProofBytes": data_encoding::BASE64.encode(b"valid proof")}]);
        json!({
            "Miner": if genesis { "f00".to_owned() } else { format!("f0{}", self.miner) },
            "Ticket": {"VRFProof": bytes("ticket")},
            "ElectionProof": if genesis {
                json!({"WinCount": 0, "VRFProof": null})
            } else {
                json!({"WinCount": 1, "VRFProof": bytes("election")})
            },
            "BeaconEntries": [{"Round": self.height, "Data": bytes("beacon")}],
            "WinPoStProof": if genesis { Value::Null } else { proof },
            "Parents": [link(&parent)],
            "ParentWeight": self.weight.to_string(),
            "Height": self.height,
            "ParentStateRoot": link(&derived("state")),
            "ParentMessageReceipts": link(&derived("receipts")),
            "Messages": link(&derived("messages")),
            "BLSAggregate": signature("aggregate"),
            "Timestamp": self.timestamp,
            "BlockSig": signature("block"),
            "ForkSignaling": 0,
            "ParentBaseFee": self.base_fee.to_string(),
        })
    }

    /// Seconds since 1970.
    pub(crate) fn timestamp(&self) -> u64 {
        self.timestamp
    }
}

#[cfg(test)]
pub(crate) mod tests;
