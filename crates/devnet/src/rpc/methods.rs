//! The methods, in one table: name, permission, number of parameters, and what they answer.
//!
//! A method looks at the chain as the node shows it and is done before the lock is let go. The two that wait or
//! stream (`StateWaitMsg`, `ChainNotify`) are in the table for their names and counts; `rpc` itself runs them.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::args::{Args, Fault, fail};
use super::auth::{Permission, Permission::*, Tokens, permissions};
use crate::chain::{
    ADD_BALANCE, Chain, Kind as ActorKind, Lookup, Miner, PUBLISH_STORAGE_DEALS, Sector, State, Tipset,
    WITHDRAW_BALANCE, gas,
};
use crate::limits::EVENTS;
use crate::node::Wallet;
use crate::wire::address::{Address, MARKET};
use crate::wire::cbor::{self, Cbor};
use crate::wire::key::Kind;
use crate::wire::message::{Message, SignedMessage, address_param, base64_or_null, link, signature_json};
use crate::wire::{chain_cid, rle};

/// What a method works with.
pub(crate) struct Ctx<'a> {
    pub(crate) chain: &'a mut Chain,
    pub(crate) wallet: &'a mut Wallet,
    pub(crate) tokens: &'a Tokens,
}

type Answer = Result<Value, Fault>;

/// A method.
pub(crate) struct Method {
    /// Without `Filecoin.`.
    pub(crate) name: &'static str,
    pub(crate) needs: Permission,
    pub(crate) params: usize,
    pub(crate) run: fn(&mut Ctx<'_>, &Args) -> Answer,
}

/// Finds a method by its whole name.
pub(crate) fn find(name: &str) -> Option<&'static Method> {
    let name = name.strip_prefix("Filecoin.")?;
    METHODS.iter().find(|method| method.name == name)
}

const fn m(
    name: &'static str,
    needs: Permission,
    params: usize,
    run: fn(&mut Ctx<'_>, &Args) -> Answer,
) -> Method {
    Method { name, needs, params, run }
}

/// Every method of the devnet.
pub(crate) const METHODS: &[Method] = &[
    // Node
    m("Version", Read, 0, |_, _| {
        Ok(json!({"Version": "1.36.0+mainnet", "APIVersion": 66816, "BlockDelay": 30, "Agent": "lotus"}))
    }),
    m("AuthVerify", Read, 1, auth_verify),
    m("AuthNew", Admin, 1, auth_new),
    m("NodeStatus", Read, 1, node_status),
    m("SyncState", Read, 0, sync_state),
    m("F3IsRunning", Read, 0, |_, _| Ok(json!(false))),
    m("F3GetLatestCertificate", Read, 0, |_, _| fail("f3 is not running")),
    m("EthChainId", Read, 0, |_, _| Ok(json!("0x13a"))),
    // Chain
    m("ChainHead", Read, 0, |ctx, _| Ok(ctx.chain.head().json())),
    m("ChainNotify", Read, 0, |_, _| Ok(Value::Null)),
    m("ChainGetGenesis", Read, 0, |ctx, _| Ok(ctx.chain.first().json())),
    m("ChainGetTipSet", Read, 1, |ctx, args| Ok(args.tipset(0, ctx.chain)?.json())),
    m("ChainGetTipSetByHeight", Read, 2, |ctx, args| by_height(ctx, args, false)),
    m("ChainGetTipSetAfterHeight", Read, 2, |ctx, args| by_height(ctx, args, true)),
    m("ChainGetFinalizedTipSet", Read, 0, |ctx, _| match ctx.chain.finalized() {
        Ok(tipset) => Ok(tipset.json()),
        Err(height) => fail(format!("height {height} is negative")),
    }),
    m("ChainGetPath", Read, 2, chain_get_path),
    m("ChainGetMessage", Read, 1, chain_get_message),
    m("ChainGetParentReceipts", Read, 1, chain_get_parent_receipts),
    m("ChainGetParentMessages", Read, 1, chain_get_parent_messages),
    m("StateNetworkName", Read, 0, |ctx, _| Ok(json!(ctx.chain.genesis().network))),
    m("StateNetworkVersion", Read, 1, |ctx, args| args.tipset(0, ctx.chain).map(|_| json!(28))),
    m("StateGetRandomnessFromBeacon", Read, 4, |ctx, args| {
        args.tipset(3, ctx.chain)?;
        let seed = format!("beacon {} {} {}", ctx.chain.genesis().seed, args.int(0)?, args.int(1)?);
        Ok(json!(BASE64.encode(&crate::wire::blake2b_256(seed.as_bytes()))))
    }),
    // Actors
    m("StateLookupID", Read, 2, state_lookup_id),
    m("StateAccountKey", Read, 2, state_account_key),
    m("StateGetActor", Read, 2, state_get_actor),
    m("StateCall", Read, 2, state_call),
    m("StateCirculatingSupply", Read, 1, |ctx, args| {
        args.tipset(0, ctx.chain)?;
        Ok(json!("420000812356387452417527840"))
    }),
    m("MsigGetPending", Read, 2, |ctx, args| {
        let state = state(ctx, args, 1)?;
        match state.actor(args.address(0)?) {
            None => fail("failed to load multisig actor: actor not found"),
            Some(actor) => fail(format!(
                "failed to load multisig actor state: actor code is not multisig: {}",
                actor.kind.name()
            )),
        }
    }),
    // Providers
    m("StateListMiners", Read, 1, |ctx, args| {
        let state = state(ctx, args, 0)?;
        Ok(json!(state.miners.keys().map(|id| Address::Id(*id)).collect::<Vec<_>>()))
    }),
    m("StateMinerInfo", Read, 2, state_miner_info),
    m("StateMinerPower", Read, 2, state_miner_power),
    m("StateMinerFaults", Read, 2, |ctx, args| with_miner(ctx, args, 1, |m| json!(rle::json(&m.faults())))),
    m("StateMinerSectorCount", Read, 2, |ctx, args| {
        with_miner(ctx, args, 1, |miner| {
            let faulty = miner.sectors.values().filter(|sector| sector.faulty).count();
            let live = miner.sectors.len();
            json!({"Live": live, "Active": live - faulty, "Faulty": faulty})
        })
    }),
    m("StateMinerProvingDeadline", Read, 2, state_miner_proving_deadline),
    m("StateMinerDeadlines", Read, 2, |ctx, args| {
        let deadline = json!({"PostSubmissions": [0], "DisputableProofCount": 0, "DailyFee": "0"});
        with_miner(ctx, args, 1, |_| json!(vec![deadline; 48]))
    }),
    m("StateSectorGetInfo", Read, 3, state_sector_get_info),
    m("StateSectorExpiration", Read, 3, |ctx, args| {
        with_sector(ctx, args, |_, sector| json!({"OnTime": sector.expiration, "Early": 0}))
    }),
    m("StateSectorPartition", Read, 3, |ctx, args| {
        with_sector(ctx, args, |number, _| json!({"Deadline": number % 48, "Partition": 0}))
    }),
    // Market
    m("StateMarketBalance", Read, 2, |ctx, args| {
        let (state, address) = (state(ctx, args, 1)?, args.address(0)?);
        let balance = state.id(address).map(|id| state.market.balance(id)).unwrap_or_default();
        Ok(json!({"Escrow": balance.escrow.to_string(), "Locked": balance.locked.to_string()}))
    }),
    m("StateMarketStorageDeal", Read, 2, state_market_storage_deal),
    m("StateMarketProposalPending", Read, 2, |ctx, args| {
        Ok(json!(state(ctx, args, 1)?.market.pending.contains(&args.cid(0)?)))
    }),
    m("StateDealProviderCollateralBounds", Read, 3, |ctx, args| {
        args.tipset(2, ctx.chain)?;
        let min = collateral_bound(ctx.chain, args.uint(0)?);
        Ok(json!({"Min": min.to_string(), "Max": "2000000000000000000000000000"}))
    }),
    m("StateVerifiedClientStatus", Read, 2, |ctx, args| state(ctx, args, 1).map(|_| Value::Null)),
    m("StateGetAllocations", Read, 2, |ctx, args| state(ctx, args, 1).map(|_| json!({}))),
    m("StateGetAllocationForPendingDeal", Read, 2, |ctx, args| state(ctx, args, 1).map(|_| Value::Null)),
    m("MarketAddBalance", Sign, 3, |ctx, args| {
        let (wallet, address) = (args.address(0)?, args.address(1)?);
        let params = address_param(address);
        market_message(ctx, wallet, args.amount(2)?, ADD_BALANCE, params)
    }),
    m("MarketWithdraw", Sign, 3, |ctx, args| {
        let (wallet, address, amount) = (args.address(0)?, args.address(1)?, args.amount(2)?);
        let params = Cbor::Array(vec![Cbor::Bytes(address.to_bytes()), Cbor::amount(amount)]).encode();
        market_message(ctx, wallet, 0, WITHDRAW_BALANCE, params)
    }),
    m("MarketGetReserved", Sign, 1, |_, args| args.address(0).map(|_| json!("0"))),
    m("GetActorEventsRaw", Read, 1, get_actor_events),
    // Messages
    m("MpoolGetNonce", Read, 1, |ctx, args| match ctx.chain.nonce(args.address(0)?) {
        Ok(nonce) => Ok(json!(nonce)),
        Err(why) => fail(why.0),
    }),
    m("MpoolPending", Read, 1, |ctx, args| {
        args.tipset(0, ctx.chain)?;
        Ok(json!(ctx.chain.pending().map(SignedMessage::json).collect::<Vec<_>>()))
    }),
    m("MpoolPush", Write, 1, mpool_push),
    m("MpoolPushUntrusted", Write, 1, mpool_push),
    m("MpoolPushMessage", Sign, 2, |ctx, args| {
        Ok(push_message(ctx, args.message(0)?, max_fee(args, 1)?)?.json())
    }),
    m("GasEstimateMessageGas", Read, 3, |ctx, args| {
        args.tipset(2, ctx.chain)?;
        Ok(estimate(ctx.chain, args.message(0)?, max_fee(args, 1)?)?.json())
    }),
    m("GasEstimateGasLimit", Read, 2, |ctx, args| {
        args.tipset(1, ctx.chain)?;
        Ok(json!(gas(&args.message(0)?)))
    }),
    m("GasEstimateGasPremium", Read, 4, |ctx, args| {
        args.tipset(3, ctx.chain).map(|_| json!(PREMIUM.to_string()))
    }),
    m("GasEstimateFeeCap", Read, 3, |ctx, args| {
        args.tipset(2, ctx.chain)?;
        Ok(json!((args.message(0)?.gas_premium + 2 * ctx.chain.base_fee).to_string()))
    }),
    m("StateSearchMsg", Read, 4, state_search_msg),
    m("StateWaitMsg", Read, 4, |_, _| Ok(Value::Null)),
    // Wallet
    m("WalletNew", Write, 1, wallet_new),
    m("WalletList", Write, 0, |ctx, _| Ok(json!(ctx.wallet.addresses()))),
    m("WalletHas", Write, 1, |ctx, args| Ok(json!(ctx.wallet.key(args.address(0)?).is_some()))),
    m("WalletDefaultAddress", Write, 0, |ctx, _| Ok(json!(ctx.wallet.default_address()))),
    m("WalletBalance", Read, 1, |ctx, args| {
        let head = std::sync::Arc::clone(ctx.chain.head());
        let state = ctx.chain.state_at(&head);
        let address = args.address(0)?;
        Ok(json!(state.map_or(0, |state| state.balance(address)).to_string()))
    }),
    m("WalletSign", Sign, 2, |ctx, args| {
        let signature = sign(ctx, args.address(0)?, &args.bytes(1)?)?;
        Ok(signature_json(&signature))
    }),
    m("WalletSignMessage", Sign, 2, |ctx, args| {
        let message = args.message(1)?;
        let signature = sign(ctx, args.address(0)?, &message.cid().to_bytes())?;
        Ok(SignedMessage { message, signature }.json())
    }),
    m("WalletVerify", Read, 3, |_, args| {
        Ok(json!(args.signature(2)?.verify(args.address(0)?, &args.bytes(1)?).is_ok()))
    }),
];

/// attoFIL for a unit of gas that an estimate offers the block's maker.
const PREMIUM: i128 = 100_000;

/// What a node says is the least collateral: a tenth more than the chain's own.
pub(crate) fn collateral_bound(chain: &Chain, padded: u64) -> i128 {
    chain.rules().min_collateral(padded).saturating_mul(110) / 100
}

/// The state at the tipset of a parameter.
fn state(ctx: &Ctx<'_>, args: &Args, at: usize) -> Result<State, Fault> {
    let tipset = args.tipset(at, ctx.chain)?;
    ctx.chain.state_at(&tipset).ok_or_else(|| {
        Fault::Call(
            1,
            format!("failed to load state tree: the state of height {} is not kept", tipset.height),
        )
    })
}

fn auth_verify(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    match ctx.tokens.check(args.text(0)?) {
        Ok(allowed) => Ok(json!(allowed)),
        Err(why) => fail(format!("JWT Verification failed: {why}")),
    }
}

fn auth_new(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let names = args.texts(0)?;
    match permissions(&names) {
        Some(allow) => Ok(json!(BASE64.encode(ctx.tokens.make(&allow).as_bytes()))),
        None => fail(format!("unknown permission in {names:?}")),
    }
}

fn node_status(ctx: &mut Ctx<'_>, _: &Args) -> Answer {
    Ok(json!({
        "SyncStatus": {"Epoch": ctx.chain.head().height, "Behind": 0},
        "PeerStatus": {"PeersToPublishMsgs": 0, "PeersToPublishBlocks": 0},
        "ChainStatus": {"BlocksPerTipsetLast100": 1, "BlocksPerTipsetLastFinality": 1},
    }))
}

fn sync_state(ctx: &mut Ctx<'_>, _: &Args) -> Answer {
    let never = "0001-01-01T00:00:00Z";
    let sync = json!({
        "WorkerID": 1, "Base": null, "Target": null, "Stage": 0, "Height": 0, "Start": never, "End": never,
        "Message": "",
    });
    Ok(json!({"ActiveSyncs": [sync], "VMApplied": ctx.chain.head().height}))
}

fn by_height(ctx: &mut Ctx<'_>, args: &Args, later: bool) -> Answer {
    let (height, from) = (args.int(0)?, args.tipset(1, ctx.chain)?);
    if height > from.height {
        return fail(format!(
            "looking for tipset with height greater than start point, req: {height}, head: {}",
            from.height
        ));
    }
    if height == from.height {
        return Ok(from.json());
    }
    match ctx.chain.by_height(height, later) {
        Some(tipset) => Ok(tipset.json()),
        None => fail(format!("the tipset of height {height} is not kept")),
    }
}

/// A step of the head, as `ChainNotify` and `ChainGetPath` tell it.
pub(super) fn change(kind: &str, tipset: &Tipset) -> Value {
    json!({"Type": kind, "Val": tipset.json()})
}

fn chain_get_path(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (from, to) = (args.tipset(0, ctx.chain)?, args.tipset(1, ctx.chain)?);
    let (mut left, mut right) = (from, to);
    let (mut reverts, mut applies) = (Vec::new(), Vec::new());
    while left.cid != right.cid {
        let back = left.height >= right.height;
        let lower = if back { &left } else { &right };
        let Some(parent) = lower.parent.and_then(|cid| ctx.chain.by_cid(&cid)).map(std::sync::Arc::clone)
        else {
            return fail("the path leaves what is kept");
        };
        if back {
            reverts.push(change("revert", &left));
            left = parent;
        } else {
            applies.push(change("apply", &right));
            right = parent;
        }
    }
    applies.reverse();
    reverts.extend(applies);
    Ok(json!(reverts))
}

fn chain_get_message(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let cid = args.cid(0)?;
    match ctx.chain.message(&cid) {
        Some(signed) => {
            let mut message = signed.message.json();
            message["CID"] = link(&cid);
            Ok(message)
        }
        None => fail(format!("ipld: could not find {cid}")),
    }
}

/// The parent of the block that a parameter names.
fn parent(ctx: &Ctx<'_>, args: &Args) -> Result<Option<std::sync::Arc<Tipset>>, Fault> {
    let cid = args.cid(0)?;
    let Some(tipset) = ctx.chain.by_cid(&cid) else { return fail(format!("ipld: could not find {cid}")) };
    Ok(tipset.parent.and_then(|parent| ctx.chain.by_cid(&parent)).map(std::sync::Arc::clone))
}

fn chain_get_parent_receipts(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let parent = parent(ctx, args)?;
    let receipts = parent.iter().flat_map(|tipset| &tipset.receipts);
    Ok(json!(receipts.map(receipt_json).collect::<Vec<_>>()))
}

fn chain_get_parent_messages(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let parent = parent(ctx, args)?;
    let messages = parent.iter().flat_map(|tipset| &tipset.messages);
    let shown = messages.map(|signed| json!({"Cid": link(&signed.cid()), "Message": signed.message.json()}));
    Ok(json!(shown.collect::<Vec<_>>()))
}

fn not_found<T>(address: Address) -> Result<T, Fault> {
    fail(format!("resolution lookup failed ({address}): resolve address {address}: actor not found"))
}

fn state_lookup_id(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (state, address) = (state(ctx, args, 1)?, args.address(0)?);
    match (address, state.id(address)) {
        (Address::Id(_), _) => Ok(json!(address)),
        (_, Some(id)) => Ok(json!(Address::Id(id))),
        (_, None) => not_found(address),
    }
}

fn state_account_key(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (state, address) = (state(ctx, args, 1)?, args.address(0)?);
    if let Some(key) = state.key(address) {
        return Ok(json!(key));
    }
    match state.actor(address) {
        Some(actor) => fail(format!(
            "failed to get account actor state for {address}: actor code is not account: {}",
            actor.kind.name()
        )),
        None => fail(format!("failed to get account actor state for {address}: actor not found")),
    }
}

fn state_get_actor(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (state, address) = (state(ctx, args, 1)?, args.address(0)?);
    let Some(actor) = state.actor(address) else { return fail("actor not found") };
    let delegated = match actor.kind {
        ActorKind::Account(key @ Address::Eth(_)) => json!(key),
        _ => Value::Null,
    };
    let head = chain_cid(format!("{} {}", actor.nonce, actor.balance).as_bytes());
    Ok(json!({
        "Code": link(&actor.kind.code()), "Head": link(&head), "Nonce": actor.nonce,
        "Balance": actor.balance.to_string(), "DelegatedAddress": delegated,
    }))
}

fn state_call(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (message, tipset) = (args.message(0)?, args.tipset(1, ctx.chain)?);
    let Some(receipt) = ctx.chain.call(&message, &tipset) else {
        return fail(format!("the state of height {} is not kept", tipset.height));
    };
    let error = if receipt.exit_code == 0 {
        String::new()
    } else {
        format!("message failed with backtrace: {} (RetCode={})", receipt.why, receipt.exit_code)
    };
    let cid = link(&message.cid());
    Ok(json!({
        "MsgCid": cid, "Msg": message.json(), "MsgRct": receipt_json(&receipt),
        "GasCost": {
            "Message": null, "GasUsed": "0", "BaseFeeBurn": "0", "OverEstimationBurn": "0", "MinerPenalty": "0",
            "MinerTip": "0", "Refund": "0", "TotalCost": "0",
        },
        "ExecutionTrace": null, "Error": error, "Duration": 1,
    }))
}

/// Runs `with` on the miner of the first parameter; its complaints are Lotus'.
fn with_miner(ctx: &Ctx<'_>, args: &Args, tsk: usize, with: impl FnOnce(&Miner) -> Value) -> Answer {
    let (state, address) = (state(ctx, args, tsk)?, args.address(0)?);
    let miner = state.id(address).and_then(|id| state.miner(id));
    match (miner, state.actor(address)) {
        (Some(miner), _) => Ok(with(miner)),
        (None, Some(actor)) => {
            fail(format!("failed to load miner actor state: actor code is not miner: {}", actor.kind.name()))
        }
        (None, None) => fail("failed to load miner actor: actor not found"),
    }
}

fn state_miner_info(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    with_miner(ctx, args, 1, |miner| {
        let owner = Address::Id(miner.owner);
        let multiaddrs: Vec<String> = miner.multiaddrs.iter().map(|bytes| BASE64.encode(bytes)).collect();
        json!({
            "Owner": owner, "Worker": Address::Id(miner.worker), "NewWorker": "<empty>",
            "ControlAddresses": [owner], "WorkerChangeEpoch": -1, "PeerId": miner.peer_id,
            "Multiaddrs": if multiaddrs.is_empty() { Value::Null } else { json!(multiaddrs) },
            "WindowPoStProofType": 11, "SectorSize": miner.sector_size, "WindowPoStPartitionSectors": 2,
            "ConsensusFaultElapsed": -1, "PendingOwnerAddress": null, "Beneficiary": owner,
            "BeneficiaryTerm": {"Quota": "0", "UsedQuota": "0", "Expiration": 0}, "PendingBeneficiaryTerm": null,
        })
    })
}

fn state_miner_power(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let all = state(ctx, args, 1)?;
    let total: u64 = all.miners.values().map(|miner| miner.raw_power()).sum();
    let claim = |power: u64| json!({"RawBytePower": power.to_string(), "QualityAdjPower": power.to_string()});
    with_miner(
        ctx,
        args,
        1,
        |miner| json!({"MinerPower": claim(miner.raw_power()), "TotalPower": claim(total), "HasMinPower": true}),
    )
}

fn state_miner_proving_deadline(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    const PERIOD: i64 = 2880;
    const WINDOW: i64 = 60;
    let now = args.tipset(1, ctx.chain)?.height;
    let start = now - now % PERIOD;
    let index = (now - start) / WINDOW;
    let open = start + index * WINDOW;
    with_miner(ctx, args, 1, |_| {
        json!({
            "CurrentEpoch": now, "PeriodStart": start, "Index": index, "Open": open, "Close": open + WINDOW,
            "Challenge": open - 20, "FaultCutoff": open - 70, "WPoStPeriodDeadlines": PERIOD / WINDOW,
            "WPoStProvingPeriod": PERIOD, "WPoStChallengeWindow": WINDOW, "WPoStChallengeLookback": 20,
            "FaultDeclarationCutoff": 70,
        })
    })
}

fn state_sector_get_info(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let number = args.uint(1)?;
    with_miner(ctx, args, 2, |miner| {
        let Some(sector) = miner.sectors.get(&number) else { return Value::Null };
        let weight = (sector.expiration - sector.activation).saturating_mul(if sector.deals.is_empty() {
            0
        } else {
            i64::try_from(miner.sector_size).unwrap_or(i64::MAX)
        });
        json!({
            "SectorNumber": number, "SealProof": 6,
            "SealedCID": link(&chain_cid(format!("sealed {number}").as_bytes())),
            "Activation": sector.activation, "Expiration": sector.expiration, "DealWeight": weight.to_string(),
            "VerifiedDealWeight": "0", "InitialPledge": "0", "ExpectedDayReward": null,
            "ExpectedStoragePledge": null, "PowerBaseEpoch": sector.activation, "ReplacedDayReward": null,
            "SectorKeyCID": null, "Flags": 1, "DailyFee": "0",
        })
    })
}

fn with_sector(ctx: &Ctx<'_>, args: &Args, with: impl FnOnce(u64, &Sector) -> Value) -> Answer {
    let number = args.uint(1)?;
    let found = with_miner(ctx, args, 2, |miner| match miner.sectors.get(&number) {
        Some(sector) => with(number, sector),
        None => Value::Null,
    })?;
    if found.is_null() { fail(format!("sector {number} not found")) } else { Ok(found) }
}

fn state_market_storage_deal(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (state, id) = (state(ctx, args, 1)?, args.uint(0)?);
    let Some(deal) = state.market.deals.get(&id) else {
        return fail(format!(
            "deal {id} not found - deal may not have completed sealing before deal proposal start epoch, or deal may \
             have been slashed"
        ));
    };
    Ok(json!({
        "Proposal": deal.proposal.json(),
        "State": {
            "SectorNumber": deal.sector, "SectorStartEpoch": deal.sector_start,
            "LastUpdatedEpoch": deal.last_updated, "SlashEpoch": -1,
        },
    }))
}

/// The key that signs for an address.
fn sign(ctx: &Ctx<'_>, address: Address, bytes: &[u8]) -> Result<crate::wire::key::Signature, Fault> {
    let head = std::sync::Arc::clone(ctx.chain.head());
    let key = match address {
        Address::Id(_) => ctx.chain.state_at(&head).and_then(|state| state.key(address)).unwrap_or(address),
        key => key,
    };
    match ctx.wallet.key(key) {
        Some(key) => key.sign(bytes).map_err(|why| Fault::Call(1, why.0)),
        None => fail(format!("key not found for {address}")),
    }
}

fn wallet_new(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let kind = match args.text(0)? {
        "secp256k1" => Kind::Secp,
        "delegated" => Kind::Delegated,
        "bls" => return fail("the devnet makes no bls keys"),
        other => return fail(format!("unknown sig type: {other}")),
    };
    match ctx.wallet.create(kind) {
        Some(address) => Ok(json!(address)),
        None => fail("the wallet is full"),
    }
}

fn max_fee(args: &Args, at: usize) -> Result<i128, Fault> {
    match &args.value(at)["MaxFee"] {
        Value::String(text) => Ok(text.parse().unwrap_or(0)),
        _ => Ok(0),
    }
}

/// Fills in what the message leaves at zero. `max_fee` zero is Lotus' own default, 0.07 FIL.
fn estimate(chain: &Chain, mut message: Message, max_fee: i128) -> Result<Message, Fault> {
    let failed = "gas estimation failed: CallWithGas failed: call raw get actor";
    if chain.latest().actor(message.from).is_none() {
        let from = message.from;
        return fail(format!(
            "{failed}: resolution lookup failed ({from}): resolve address {from}: actor not found"
        ));
    }
    if message.gas_limit == 0 {
        let head = chain.head();
        let Some(receipt) = chain.call(&message, head) else { return fail("the head has no state") };
        if receipt.exit_code != 0 {
            return fail(execution_failed(receipt.exit_code, &receipt.why));
        }
        message.gas_limit = receipt.gas_used.saturating_mul(5) / 4;
    }
    if message.gas_premium == 0 {
        message.gas_premium = PREMIUM;
    }
    if message.gas_fee_cap == 0 {
        message.gas_fee_cap = message.gas_premium + 2 * chain.base_fee;
    }
    let most = if max_fee == 0 { 70_000_000_000_000_000 } else { max_fee };
    message.gas_fee_cap = message.gas_fee_cap.min(most / i128::from(message.gas_limit.max(1)));
    message.gas_premium = message.gas_premium.min(message.gas_fee_cap);
    Ok(message)
}

fn execution_failed(code: i64, why: &str) -> String {
    let name = match code {
        6 => "SysErrInsufficientFunds",
        16 => "ErrIllegalArgument",
        18 => "ErrForbidden",
        19 => "ErrInsufficientFunds",
        _ => "ExitCode",
    };
    let at = if code == 6 { "send::send -- " } else { "" };
    let cause = if code == 6 { " (5: insufficient funds)" } else { "" };
    format!(
        "message execution failed (exit=[{name}({code})], vm error=[message failed with backtrace:\n--> caused by: \
         {at}{why}{cause}\n (RetCode={code})])"
    )
}

/// Estimates, numbers, signs and pushes with a key of the node's.
fn push_message(ctx: &mut Ctx<'_>, message: Message, max_fee: i128) -> Result<SignedMessage, Fault> {
    if message.nonce != 0 {
        return fail(format!("MpoolPushMessage expects message nonce to be 0, was {}", message.nonce));
    }
    let mut message = estimate(ctx.chain, message, max_fee).map_err(|fault| match fault {
        Fault::Call(code, text) => Fault::Call(code, format!("GasEstimateMessageGas error: {text}")),
        other => other,
    })?;
    message.nonce = ctx.chain.nonce(message.from).map_err(|why| Fault::Call(1, why.0))?;
    let signature = sign(ctx, message.from, &message.cid().to_bytes())?;
    let signed = SignedMessage { message, signature };
    ctx.chain.push(signed.clone()).map_err(|why| Fault::Call(1, format!("mpool push: {}", why.0)))?;
    Ok(signed)
}

fn market_message(ctx: &mut Ctx<'_>, from: Address, value: i128, method: u64, params: Vec<u8>) -> Answer {
    let message = Message {
        version: 0,
        to: MARKET,
        from,
        nonce: 0,
        value,
        gas_limit: 0,
        gas_fee_cap: 0,
        gas_premium: 0,
        method,
        params,
    };
    Ok(link(&push_message(ctx, message, 0)?.cid()))
}

fn mpool_push(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    match ctx.chain.push(args.signed_message(0)?) {
        Ok(cid) => Ok(link(&cid)),
        Err(why) => fail(why.0),
    }
}

pub(crate) fn receipt_json(receipt: &crate::chain::Receipt) -> Value {
    let root = chain_cid(format!("{:?}", receipt.events).as_bytes());
    json!({
        "ExitCode": receipt.exit_code, "Return": base64_or_null(&receipt.ret), "GasUsed": receipt.gas_used,
        "EventsRoot": if receipt.events.is_empty() { Value::Null } else { link(&root) },
    })
}

/// A message that was executed. Lotus decodes the answer only for who waits.
pub(crate) fn lookup_json(cid: &crate::wire::Cid, lookup: &Lookup, decoded: Value) -> Value {
    json!({
        "Message": link(cid), "Receipt": receipt_json(&lookup.receipt), "ReturnDec": decoded,
        "TipSet": [link(&lookup.seen_in.cid)], "Height": lookup.seen_in.height,
    })
}

/// The answer of a publication, decoded.
pub(crate) fn return_decoded(message: Option<&SignedMessage>, ret: &[u8]) -> Value {
    let publication = message
        .is_some_and(|signed| signed.message.to == MARKET && signed.message.method == PUBLISH_STORAGE_DEALS);
    let decoded = cbor::decode(ret).ok().filter(|_| publication);
    let Some(Ok([ids, valid])) = decoded.as_ref().map(|item| item.as_tuple::<2>("return")) else {
        return Value::Null;
    };
    let ids: Vec<u64> =
        ids.as_array("ids").unwrap_or_default().iter().filter_map(|id| id.as_u64("id").ok()).collect();
    let set =
        valid.as_bytes("valid").ok().and_then(|bytes| rle::decode(bytes, 10_000).ok()).unwrap_or_default();
    let bits: Vec<bool> = (0..set.last().map_or(0, |last| last + 1)).map(|bit| set.contains(&bit)).collect();
    json!({"IDs": ids, "ValidDeals": rle::json(&bits)})
}

/// Where a message was executed, or the one that took its number: as Lotus looks for it, which takes a replacement for
/// the message only where it may, and complains about every other message of that number.
pub(crate) fn executed(
    chain: &Chain,
    cid: &crate::wire::Cid,
    allow_replaced: bool,
) -> Result<Option<(crate::wire::Cid, Lookup)>, Fault> {
    if let Some(found) = chain.lookup(cid) {
        return Ok(Some((*cid, found)));
    }
    let Some(wanted) = chain.message(cid).map(|signed| &signed.message) else { return Ok(None) };
    let Some((other, found)) = chain.instead_of(wanted) else { return Ok(None) };
    let text = "found message with equal nonce as the one we are looking for";
    let named = format!("(F:{cid} n {}, TS: {other} n{})", wanted.nonce, wanted.nonce);
    match chain.message(&other).is_some_and(|signed| signed.message.same_call(wanted)) {
        true if allow_replaced => Ok(Some((other, found))),
        true => fail(format!("{text} {named}")),
        false => fail(format!("{text} that is NOT a valid replacement message {named}")),
    }
}

fn state_search_msg(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let (from, cid, lookback) = (args.tipset(0, ctx.chain)?, args.cid(1)?, args.int(2)?);
    let allow_replaced = args.boolean(3)?;
    if ctx.chain.message(&cid).is_none() {
        return fail(format!(
            "%!w(*errors.errorString=&{{failed to load message}}): ipld: could not find {cid}"
        ));
    }
    match executed(ctx.chain, &cid, allow_replaced)? {
        Some((found_cid, found))
            if found.seen_in.height <= from.height
                && (lookback < 0 || found.seen_in.height >= from.height - lookback) =>
        {
            Ok(lookup_json(&found_cid, &found, Value::Null))
        }
        _ => Ok(Value::Null),
    }
}

fn get_actor_events(ctx: &mut Ctx<'_>, args: &Args) -> Answer {
    let filter = args.value(0);
    let height = |key: &str, default: i64| match &filter[key] {
        Value::Null => Ok(default),
        number => number.as_i64().map_or_else(|| fail(format!("{key} is no height")), Ok),
    };
    let head = ctx.chain.head().height;
    let (mut from, mut to) = (height("fromHeight", -1)?, height("toHeight", -1)?);
    if let Some(key) = filter["tipsetKey"].as_array().filter(|key| !key.is_empty()) {
        let at = Args(vec![json!(key)]).tipset(0, ctx.chain)?.height;
        (from, to) = (at, at);
    }
    // -1 is the head for either end.
    let (from, to) = (if from < 0 { head - 1 } else { from }, if to < 0 { head } else { to });
    if from > to {
        return fail("invalid epoch range: to height must be after from height");
    }
    let addresses = filter["addresses"].as_array().cloned().unwrap_or_default();
    let market = |address: &Value| address.as_str().is_some_and(|text| text.parse() == Ok(MARKET));
    if !addresses.is_empty() && !addresses.iter().any(market) {
        return Ok(json!([]));
    }
    let fields = filter["fields"].as_object().cloned().unwrap_or_default();
    let mut out = Vec::new();
    for at in ctx.chain.events(from, to) {
        let entries = [
            ("$type", Cbor::text(at.event.kind)),
            ("id", Cbor::Unsigned(at.event.deal)),
            ("client", Cbor::Unsigned(at.event.client)),
            ("provider", Cbor::Unsigned(at.event.provider)),
        ]
        .map(|(key, value)| (key, BASE64.encode(&value.encode())));
        let matches = fields.iter().all(|(key, wanted)| {
            let entry = entries.iter().find(|(name, _)| name == key);
            let wanted = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
            entry.is_some_and(|(_, value)| wanted.iter().any(|w| w["codec"] == 81 && w["value"] == **value))
        });
        if !matches {
            continue;
        }
        if out.len() >= EVENTS {
            return fail("filter matches too many events, try a more restricted filter");
        }
        let entries =
            entries.map(|(key, value)| json!({"Flags": 3, "Key": key, "Codec": 81, "Value": value}));
        out.push(json!({
            "entries": entries, "emitter": MARKET, "reverted": false, "height": at.tipset.height,
            "tipsetKey": [link(&at.tipset.cid)], "msgCid": link(&at.message),
        }));
    }
    Ok(json!(out))
}
