//! The calls that Floe makes, and what each needs: the whole list, so that a token can be checked against it and
//! nothing else is ever called. `StateMarketDeals`, `StateListMiners` and their kind are left out on purpose: on mainnet
//! their answers are gigabytes.

use std::fmt;

/// What a token must allow. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read the chain; also without a token.
    Read,
    /// Push messages that are signed already.
    Write,
    /// Sign with the node's wallet.
    Sign,
    /// Everything, the export of keys too. Floe never needs it.
    Admin,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sign => "sign",
            Self::Admin => "admin",
        })
    }
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// As on the wire.
    pub name: &'static str,
    /// What it needs.
    pub permission: Permission,
}

macro_rules! methods {
    ($($constant:ident = $name:literal $permission:ident;)*) => {
        $(pub(crate) const $constant: Method =
            Method { name: concat!("Filecoin.", $name), permission: Permission::$permission };)*
        /// Every call that Floe makes.
        pub const METHODS: &[Method] = &[$($constant),*];
    };
}

methods! {
    ACTOR_EVENTS = "GetActorEventsRaw" Read;
    AUTH_VERIFY = "AuthVerify" Read;
    CHAIN_FINALIZED = "ChainGetFinalizedTipSet" Read;
    CHAIN_GENESIS = "ChainGetGenesis" Read;
    CHAIN_HEAD = "ChainHead" Read;
    CHAIN_MESSAGE = "ChainGetMessage" Read;
    CHAIN_NOTIFY = "ChainNotify" Read;
    CHAIN_TIPSET = "ChainGetTipSet" Read;
    CHAIN_TIPSET_AT = "ChainGetTipSetByHeight" Read;
    CLIENT_LIST_IMPORTS = "ClientListImports" Read;
    COLLATERAL_BOUNDS = "StateDealProviderCollateralBounds" Read;
    GAS_ESTIMATE = "GasEstimateMessageGas" Read;
    MARKET_BALANCE = "StateMarketBalance" Read;
    MARKET_DEAL = "StateMarketStorageDeal" Read;
    MINER_FAULTS = "StateMinerFaults" Read;
    MINER_INFO = "StateMinerInfo" Read;
    MINER_POWER = "StateMinerPower" Read;
    MPOOL_NONCE = "MpoolGetNonce" Read;
    MPOOL_PENDING = "MpoolPending" Read;
    MPOOL_PUSH = "MpoolPush" Write;
    NETWORK_NAME = "StateNetworkName" Read;
    NETWORK_VERSION = "StateNetworkVersion" Read;
    PROPOSAL_PENDING = "StateMarketProposalPending" Read;
    SECTOR_EXPIRATION = "StateSectorExpiration" Read;
    SECTOR_INFO = "StateSectorGetInfo" Read;
    STATE_ACCOUNT_KEY = "StateAccountKey" Read;
    STATE_ACTOR = "StateGetActor" Read;
    STATE_LOOKUP_ID = "StateLookupID" Read;
    STATE_SEARCH = "StateSearchMsg" Read;
    STATE_WAIT = "StateWaitMsg" Read;
    VERSION = "Version" Read;
    WALLET_BALANCE = "WalletBalance" Read;
    WALLET_DEFAULT = "WalletDefaultAddress" Write;
    WALLET_HAS = "WalletHas" Write;
    WALLET_LIST = "WalletList" Write;
    WALLET_SIGN = "WalletSign" Sign;
    WALLET_VERIFY = "WalletVerify" Read;
}
