//! A pin as clients see it: `PinStatus`, to the letter.
//!
//! `created` has exactly three digits, because `@helia/remote-pinning` pages by it; every value of `info` is a
//! string; what was not sent (name, origins, meta) is left out.

use std::collections::BTreeMap;

use floe_core::{PinStatus, RequestId};
use floe_engine::PinRow;
use floe_engine::cold::{DealRow, PinCold};
use serde::Serialize;

use crate::deals::DealBody;
use crate::limits;

/// `PinStatus` of the spec.
#[derive(Debug, Serialize)]
pub(crate) struct PinStatusBody {
    requestid: String,
    status: PinStatus,
    created: String,
    pin: Pin,
    delegates: Vec<String>,
    info: BTreeMap<&'static str, String>,
}

/// `Pin` of the spec, echoed.
#[derive(Debug, Serialize)]
struct Pin {
    cid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origins: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
}

impl PinStatusBody {
    pub(crate) fn new(row: PinRow, delegates: Vec<String>, cold: Option<&PinCold>) -> Self {
        let mut info = info(&row);
        if let Some(cold) = cold {
            add_cold(&mut info, row.id, cold);
        }
        let mut origins = row.spec.origins;
        origins.truncate(limits::ORIGINS_SHOWN);
        Self {
            requestid: row.id.to_string(),
            status: row.status,
            created: row.created.to_string(),
            pin: Pin { cid: row.spec.cid_text, name: row.spec.name, origins, meta: row.spec.meta },
            delegates,
            info,
        }
    }
}

fn info(row: &PinRow) -> BTreeMap<&'static str, String> {
    let progress = &row.progress;
    let mut info = BTreeMap::from([
        ("status_details", status_details(row)),
        ("progress_blocks", progress.blocks.to_string()),
        ("progress_bytes", progress.bytes.to_string()),
        ("attempts", progress.attempts.to_string()),
    ]);
    if row.status == PinStatus::Pinned {
        info.insert("dag_size", progress.bytes.to_string());
    }
    if let Some(error) = &progress.last_error {
        info.insert("last_error", error.clone());
    }
    info
}

/// Where it is on Filecoin: absent for pins that ask for no replicas.
fn add_cold(info: &mut BTreeMap<&'static str, String>, id: RequestId, cold: &PinCold) {
    info.insert("cold", cold.state().word().to_owned());
    let mut pieces: Vec<String> =
        cold.parts.iter().filter_map(|part| Some(part.piece?.to_string())).collect();
    pieces.dedup();
    if !pieces.is_empty() {
        info.insert("piece_cid", pieces.join(","));
    }
    let mut deals: Vec<&DealRow> = cold.parts.iter().flat_map(|part| &part.deals).collect();
    deals.sort_unstable_by_key(|deal| std::cmp::Reverse((deal.created, deal.uuid)));
    info.insert("deals", deals_text(&deals, id));
}

/// The newest attempts as JSON text, as they are listed for the pin, as many as fit.
fn deals_text(deals: &[&DealRow], id: RequestId) -> String {
    let mut text = String::from("[");
    for deal in deals {
        let body = serde_json::to_string(&DealBody::new(deal, vec![id])).unwrap_or_default();
        if text.len() + body.len() + 2 > limits::INFO_DEALS_BYTES {
            limits::hit("info_deals_bytes");
            break;
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&body);
    }
    text.push(']');
    text
}

/// Queue position, progress, or the reason, in words (S4).
fn status_details(row: &PinRow) -> String {
    let progress = &row.progress;
    let amount = format!("{} and {}", counted(progress.blocks, "block"), counted(progress.bytes, "byte"));
    match (row.status, progress.next_attempt) {
        (PinStatus::Queued, _) => match progress.queue_position {
            Some(before) => format!("Queue position: {}", before.saturating_add(1)),
            None => "Queued".to_owned(),
        },
        (PinStatus::Pinning, Some(at)) => match &progress.last_error {
            Some(error) => format!("Waiting until {at}, {amount} so far: {error}"),
            None => format!("Waiting until {at}, {amount} so far"),
        },
        (PinStatus::Pinning, None) => format!("Fetching, {amount} so far"),
        (PinStatus::Pinned, _) => format!("Pinned, {amount}"),
        (PinStatus::Failed, _) => row.reason.clone().unwrap_or_else(|| "Failed".to_owned()),
    }
}

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use floe_core::{AccountId, PinStatus, Timestamp};
    use floe_engine::{DagProgress, PinRow, PinSpec};
    use proptest::prelude::*;

    use super::*;

    const CID: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

    fn row(status: PinStatus) -> PinRow {
        let id: floe_core::RequestId = "01989c5e-0000-7000-8000-000000000001".parse().unwrap();
        PinRow {
            id,
            account: AccountId(1),
            spec: PinSpec {
                cid_text: CID.to_owned(),
                cid: floe_core::cid::parse(CID).unwrap(),
                name: None,
                origins: Vec::new(),
                meta: BTreeMap::new(),
                policy: Default::default(),
            },
            status,
            created: Timestamp::from_millis(1_780_000_000_000),
            dag: id.0,
            reason: None,
            local_request: false,
            progress: DagProgress::default(),
        }
    }

    fn json(row: PinRow) -> serde_json::Value {
        let delegates = vec!["/ip4/203.0.113.1/tcp/4701/p2p/12D3KooWx".into()];
        serde_json::to_value(PinStatusBody::new(row, delegates, None)).unwrap()
    }

    fn deal(n: u64, error: usize) -> DealRow {
        let new = floe_records::cold::NewDeal {
            wallet: "f1wallet".to_owned(),
            aggregate: uuid::Uuid::nil(),
            slot: 0,
            provider: floe_core::ActorId::new(1_000 + n),
            owner: floe_core::ActorId::new(9),
            policy: "gold".to_owned(),
            piece: floe_core::PieceCid::from_commitment([7; 32]).unwrap(),
            size: floe_core::PaddedSize::MIN,
            car_bytes: 1,
            root: floe_core::cid::parse(CID).unwrap(),
            ipni: true,
            price: floe_core::AttoFil::new(1),
            collateral: floe_core::AttoFil::ZERO,
            head: floe_core::Epoch::new(1),
            start: floe_core::Epoch::new(2),
            end: floe_core::Epoch::new(3),
            weights: BTreeMap::new(),
        };
        let uuid = floe_core::cold::DealUuid(uuid::Uuid::from_u128(n.into()));
        let mut deal =
            DealRow::chosen(Timestamp::from_millis(n), &new, uuid, 0, floe_core::AttoFil::new(u128::MAX));
        let text = "x".repeat(error);
        deal.error = Some(floe_core::cold::Fault::new(floe_core::FailureCode::RejectedOther, text));
        deal
    }

    /// A page of pins with some hundred attempts each would be larger than any client reads.
    #[test]
    fn info_lists_the_newest_deals_that_fit() {
        let listed = |count: u64, error| {
            let deals = (0..count).map(|n| deal(n, error)).collect();
            let part = floe_engine::cold::ColdPart {
                aggregate: uuid::Uuid::nil(),
                state: floe_core::AggregateState::Placing,
                piece: None,
                deals,
            };
            let cold = PinCold { waits: false, parts: vec![part] };
            let body = PinStatusBody::new(row(PinStatus::Pinned), Vec::new(), Some(&cold));
            let body = serde_json::to_value(body).unwrap();
            let text = body["info"]["deals"].as_str().unwrap().to_owned();
            assert!(text.len() <= limits::INFO_DEALS_BYTES, "{}", text.len());
            let deals: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            let providers = deals.iter().map(|deal| deal["provider"].as_str().unwrap().to_owned());
            providers.collect::<Vec<_>>()
        };
        assert_eq!(listed(0, 0), Vec::<String>::new());
        assert_eq!(listed(3, 0), ["f01002", "f01001", "f01000"]);
        let many = listed(500, 100);
        assert!((15..100).contains(&many.len()) && many[0] == "f01499", "{many:?}");
        // The longest text that is kept of a fault, for many pins.
        assert!((5..15).contains(&listed(500, 2_000).len()));
    }

    #[test]
    fn m09_the_least_and_the_most_of_a_pin_status() {
        insta::assert_json_snapshot!("queued", json(row(PinStatus::Queued)));
        let mut full = row(PinStatus::Pinned);
        full.spec.name = Some("a name".to_owned());
        full.spec.origins = (0..30).map(|i| format!("/ip4/198.51.100.1/tcp/{i}/p2p/12D3KooWy")).collect();
        full.spec.meta = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
        full.progress = DagProgress { blocks: 3, bytes: 1, attempts: 2, ..DagProgress::default() };
        full.progress.last_error = Some("the peer hung up".to_owned());
        insta::assert_json_snapshot!("pinned", json(full));
    }

    #[test]
    fn s04_the_details_say_where_it_stands() {
        let details = |row| json(row)["info"]["status_details"].as_str().unwrap().to_owned();
        let mut queued = row(PinStatus::Queued);
        queued.progress.queue_position = Some(6);
        assert_eq!(details(queued), "Queue position: 7");
        let mut waiting = row(PinStatus::Pinning);
        assert_eq!(details(waiting.clone()), "Fetching, 0 blocks and 0 bytes so far");
        waiting.progress.next_attempt = Some(Timestamp::from_millis(1_780_000_000_000));
        waiting.progress.last_error = Some("no peer has it".to_owned());
        assert_eq!(
            details(waiting),
            "Waiting until 2026-05-28T20:26:40.000Z, 0 blocks and 0 bytes so far: no peer has it"
        );
        let mut failed = row(PinStatus::Failed);
        failed.reason = Some("codec 0x99 cannot be walked".to_owned());
        assert_eq!(details(failed), "codec 0x99 cannot be walked");
    }

    proptest! {
        #[test]
        fn js_m15_created_has_three_digits_and_comes_back(millis in 0u64..253_402_300_800_000) {
            let mut row = row(PinStatus::Pinned);
            row.created = Timestamp::from_millis(millis);
            let created = json(row)["created"].as_str().unwrap().to_owned();
            prop_assert_eq!(created.len(), "2026-01-02T03:04:05.678Z".len());
            prop_assert_eq!(Timestamp::parse_rfc3339(&created), Some(Timestamp::from_millis(millis)));
        }

        #[test]
        fn m09_every_value_of_info_is_a_string(blocks: u64, bytes: u64, attempts: u32, position: Option<u64>) {
            for status in PinStatus::ALL {
                let mut row = row(status);
                row.progress =
                    DagProgress { blocks, bytes, attempts, queue_position: position, ..DagProgress::default() };
                let body = json(row);
                prop_assert!(body["info"].as_object().unwrap().values().all(serde_json::Value::is_string));
                prop_assert_eq!(body["info"].get("dag_size").is_some(), status == PinStatus::Pinned);
            }
        }
    }
}
