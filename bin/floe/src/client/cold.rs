//! The commands of the cold half: deals, providers, spending, the plan.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::admin::{moment, number, plain, rows};
use super::{Call, Client, segment};
use crate::cli::{ColdCommand, CostByArg, DealsCommand, ProvidersCommand, SpendingCommand};
use crate::limits::DEALS_PAGE;
use crate::output::{Output, Table, printable, size};

/// Runs a `floe deals` command.
pub(crate) async fn deals(client: &Client, out: Output, command: DealsCommand) -> anyhow::Result<()> {
    match command {
        DealsCommand::Ls { pin, provider, states, limit } => {
            let mut query: Vec<(&'static str, String)> = Vec::new();
            query.extend(pin.map(|pin| ("pin", pin)));
            query.extend(provider.map(|provider| ("provider", provider.to_string())));
            if !states.is_empty() {
                let words: Vec<String> = states.iter().map(word).collect();
                query.push(("state", words.join(",")));
            }
            let deals = pages(client, query, limit).await?;
            out.print(&deals, || deals_table(&deals))
        }
        DealsCommand::Show { uuid } => {
            let deal = client.call(Call::get(format!("/deals/{}", segment(&uuid)))).await?;
            out.print(&deal, || fields(&deal))
        }
        DealsCommand::Retry { id } => {
            let path = format!("/admin/v1/deals/{}/retry", segment(&id));
            let done = client.call(Call::post(path, json!({}))).await?;
            out.print(&done, || {
                format!(
                    "{} providers may be asked again, {} proposals are sent again as they were signed",
                    number(&done["forgiven"]),
                    number(&done["hurried"])
                )
            })
        }
        DealsCommand::Cost { by } => {
            let query = vec![("by", word(&by))];
            let costs = client.call(Call::get("/deals/cost").query(query)).await?;
            out.print(&costs, || costs_table(rows(&costs, ""), by))
        }
    }
}

/// A choice as it is written.
fn word<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Lists page by page, because the API gives at most [`DEALS_PAGE`] at a time.
async fn pages(client: &Client, query: Vec<(&'static str, String)>, most: u64) -> anyhow::Result<Vec<Value>> {
    let mut found: Vec<Value> = Vec::new();
    loop {
        let asked = DEALS_PAGE.min(most - found.len() as u64);
        let mut query = query.clone();
        query.push(("limit", asked.to_string()));
        let last = found.last().and_then(|deal| deal["deal_uuid"].as_str());
        query.extend(last.map(|uuid| ("before", uuid.to_owned())));
        let page = client.call(Call::get("/deals").query(query)).await?;
        let Value::Array(page) = page else {
            return Err(client.not_floe("a list of deals is no list").into());
        };
        let is_last = (page.len() as u64) < asked;
        found.extend(page);
        if is_last || found.len() as u64 >= most {
            return Ok(found);
        }
    }
}

/// Runs a `floe providers` command.
pub(crate) async fn providers(client: &Client, out: Output, command: ProvidersCommand) -> anyhow::Result<()> {
    let suspend = |id: floe_core::ActorId, body: Value| {
        Call::post(format!("/admin/v1/providers/{}/suspend", segment(&id.to_string())), body)
    };
    let call = match command {
        ProvidersCommand::Ls => {
            let list = client.call(Call::get("/admin/v1/providers")).await?;
            return out.print(&list, || providers_table(rows(&list, "")));
        }
        ProvidersCommand::Add { id, addrs, regions } => {
            let body = json!({ "id": id.to_string(), "addresses": addrs, "regions": regions });
            Call::post("/admin/v1/providers", body)
        }
        ProvidersCommand::Suspend { id, why: None } => suspend(id, json!({ "suspended": true })),
        ProvidersCommand::Suspend { id, why } => suspend(id, json!({ "suspended": true, "why": why })),
        ProvidersCommand::Resume { id } => suspend(id, json!({ "suspended": false })),
    };
    let provider = client.call(call).await?;
    out.print(&provider, || providers_table(std::slice::from_ref(&provider)))
}

/// Runs a `floe spending` command.
pub(crate) async fn spending(client: &Client, out: Output, command: SpendingCommand) -> anyhow::Result<()> {
    let path = "/admin/v1/spending";
    let call = match command {
        SpendingCommand::On => Call::post(path, json!({ "on": true })),
        SpendingCommand::Off => Call::post(path, json!({ "on": false })),
        SpendingCommand::Status => Call::get(path),
        SpendingCommand::TrustBackup => Call::post("/admin/v1/spending/trust-backup", json!({})),
    };
    let status = client.call(call).await?;
    out.print(&status, || spending_text(&status))
}

/// Runs a `floe cold` command.
pub(crate) async fn cold(client: &Client, out: Output, command: ColdCommand) -> anyhow::Result<()> {
    let ColdCommand::Plan = command;
    let plan = client.call(Call::get("/admin/v1/cold/plan").long()).await?;
    out.print(&plan, || plan_text(&plan))
}

fn deals_table(deals: &[Value]) -> String {
    let mut table =
        Table::new(&["UUID", "PROVIDER", "STATE", "DEAL", "START", "END", "COST (attoFIL)", "PINS", "ERROR"]);
    for deal in deals {
        let error = match deal["error"]["code"].as_str() {
            Some(code) => format!("{code}: {}", plain(&deal["error"]["text"])),
            None => String::new(),
        };
        table.row([
            &plain(&deal["deal_uuid"]),
            &plain(&deal["provider"]),
            &plain(&deal["state"]),
            &plain(&deal["deal_id"]),
            &plain(&deal["start_epoch"]),
            &plain(&deal["end_epoch"]),
            &plain(&deal["cost_attofil"]),
            &rows(&deal["pins"], "").len().to_string(),
            &error,
        ]);
    }
    table.render()
}

/// Every field on a line of its own; times for people.
fn fields(of: &Value) -> String {
    let mut out = String::new();
    for (name, value) in of.as_object().into_iter().flatten() {
        let shown = match value {
            Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
            Value::Object(inner) => {
                let pair = |(name, value): (&String, &Value)| format!("{name}={}", plain(value));
                inner.iter().map(pair).collect::<Vec<_>>().join(", ")
            }
            value if ["created", "sent", "updated"].contains(&name.as_str()) => moment(value),
            value => plain(value),
        };
        out.push_str(&format!("{:<20} {}\n", printable(&name.replace('_', " ")), printable(&shown)));
    }
    out
}

fn costs_table(costs: &[Value], by: CostByArg) -> String {
    let key = word(&by);
    let mut table =
        Table::new(&[&key.to_uppercase(), "COMMITTED (attoFIL)", "RESERVED", "SPENT", "RELEASED"]);
    for cost in costs {
        table.row([
            &plain(&cost[key.as_str()]),
            &plain(&cost["committed_attofil"]),
            &plain(&cost["reserved_attofil"]),
            &plain(&cost["spent_attofil"]),
            &plain(&cost["released_attofil"]),
        ]);
    }
    table.render()
}

fn providers_table(providers: &[Value]) -> String {
    let list = |value: &Value| rows(value, "").iter().map(plain).collect::<Vec<_>>().join(" ");
    let mut table = Table::new(&[
        "PROVIDER",
        "STATE",
        "SCORE",
        "ASK (attoFIL)",
        "PIECES",
        "OWNER",
        "REGIONS",
        "ADDRESSES",
    ]);
    for provider in providers {
        let state = match (provider["suspended"].as_str(), &provider["rests_until_epoch"]) {
            (Some(why), _) => format!("suspended: {why}"),
            (None, Value::Null) => "asked".to_owned(),
            (None, epoch) => format!("rests until {epoch}"),
        };
        let ask = &provider["ask"];
        let pieces = match ask {
            Value::Null => "-".to_owned(),
            ask => format!(
                "{} to {}",
                size(number(&ask["min_piece_size"])),
                size(number(&ask["max_piece_size"]))
            ),
        };
        let own = list(&provider["addresses"]);
        table.row([
            &plain(&provider["id"]),
            &state,
            &plain(&provider["score"]),
            &plain(&ask["price_attofil_gib_epoch"]),
            &pieces,
            &plain(&provider["owner"]),
            &list(&provider["regions"]),
            if own.is_empty() { "(from the chain)" } else { &own },
        ]);
    }
    table.render()
}

fn spending_text(status: &Value) -> String {
    let (caps, committed) = (&status["caps_attofil"], &status["committed_attofil"]);
    let state = match (status["spending"] == true, status["enabled"] == true) {
        (true, _) => "on".to_owned(),
        (false, true) => "off, by `floe spending off`".to_owned(),
        (false, false) => format!("off: deals.enabled is false (the switch is {})", plain(&status["switch"])),
    };
    let mut lines = vec![
        ("spending", state),
        ("cap of a deal", plain(&caps["deal"])),
        ("cap of a day", format!("{}, {} committed", plain(&caps["day"]), plain(&committed["day"]))),
        ("cap of ever", format!("{}, {} committed", plain(&caps["lifetime"]), plain(&committed["lifetime"]))),
        ("cap of an account's day", plain(&caps["account_day"])),
        ("left", plain(&status["left_attofil"])),
        ("reserved, spent", format!("{}, {}", plain(&committed["reserved"]), plain(&committed["spent"]))),
    ];
    if let Some(why) = status["paused"].as_str() {
        lines.push(("paused", why.to_owned()));
    }
    if let Some(by) = status["moved"]["by"].as_str() {
        lines.push(("switched by", format!("{by}, {}", moment(&status["moved"]["at"]))));
    }
    if !status["restored"].is_null() {
        let until = match status["restored"]["safe_from_epoch"].as_i64() {
            Some(epoch) => format!("until epoch {epoch} is final"),
            None => "until the chain was looked at, and longer".to_owned(),
        };
        lines.push((
            "restored",
            format!("a backup was put back, and more may be signed than it knows: replicas wait {until}"),
        ));
    }
    let line = |(name, value): &(&str, String)| format!("{name:<24} {}\n", printable(value));
    let mut out: String = lines.iter().map(line).collect();
    let signed = rows(&status["signed"], "");
    if !signed.is_empty() {
        let more = if status["signed_is_cut"] == true { " (and more)" } else { "" };
        out.push_str(&format!(
            "\n{} signed proposals{more} cannot be recalled: until its start epoch whoever has one can publish it\n",
            signed.len()
        ));
        out.push_str(&deals_table(signed));
    }
    out
}

fn plan_text(plan: &Value) -> String {
    let mut out = String::new();
    if let Some(why) = plan["paused"].as_str() {
        out.push_str(&format!("nothing is spent now: {}\n\n", printable(why)));
    }
    let mut table =
        Table::new(&["AGGREGATE", "SLOT", "PROVIDER", "PIECE", "SIZE", "PADDING", "ASK", "COST (attoFIL)"]);
    for deal in rows(&plan["deals"], "") {
        table.row([
            &plain(&deal["aggregate"]),
            &plain(&deal["slot"]),
            &plain(&deal["provider"]),
            &plain(&deal["piece_cid"]),
            &size(number(&deal["piece_size"])),
            &size(number(&deal["padding_bytes"])),
            &plain(&deal["ask_attofil_gib_epoch"]),
            &plain(&deal["cost_attofil"]),
        ]);
    }
    out.push_str(&table.render());
    out.push_str(&format!("\ncost {} attoFIL\n", plain(&plan["cost_attofil"])));
    let unplaced = rows(&plan["unplaced"], "");
    if !unplaced.is_empty() {
        let mut table = Table::new(&["NOT PLACED", "SLOT", "WHY"]);
        for slot in unplaced {
            table.row([&plain(&slot["aggregate"]), &plain(&slot["slot"]), &plain(&slot["why"])]);
        }
        out.push('\n');
        out.push_str(&table.render());
    }
    let pieces = rows(&plan["pieces"], "");
    if !pieces.is_empty() {
        let mut table = Table::new(&[
            "TO BE PACKED",
            "REPLICAS",
            "SIZE",
            "DATA",
            "PADDING",
            "DAGS",
            "STATE",
            "COST AT MOST",
        ]);
        for piece in pieces {
            table.row([
                &plain(&piece["policy"]),
                &plain(&piece["replicas"]),
                &size(number(&piece["piece_size"])),
                &size(number(&piece["data_bytes"])),
                &size(number(&piece["padding_bytes"])),
                &rows(&piece["dags"], "").len().to_string(),
                if piece["full"] == true { "full" } else { "waits for more" },
                &plain(&piece["cost_at_most_attofil"]),
            ]);
        }
        out.push('\n');
        out.push_str(&table.render());
    }
    for dag in rows(&plan["left_out"], "") {
        let why = dag["reason"].as_str().unwrap_or("not measured yet");
        out.push_str(&format!(
            "\nin no piece yet: {}: {}\n",
            printable(&plain(&dag["root"])),
            printable(why)
        ));
    }
    if plan["cut"] == true {
        out.push_str("\nthere is more than one plan holds\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::testing::service;
    use super::*;

    fn answer(body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    }

    #[tokio::test]
    async fn deals_are_listed_page_by_page() {
        let page = |from: usize, n: usize| {
            let deal = |n: usize| format!("{{\"deal_uuid\":\"{n}\"}}");
            answer(&format!("[{}]", (from..from + n).map(deal).collect::<Vec<_>>().join(",")))
        };
        let full = DEALS_PAGE as usize;
        for (answers, most, want) in [
            (vec![page(0, 3)], 1_000, 3),
            (vec![page(0, full), page(full, 1)], 1_000, full + 1),
            (vec![page(0, full), page(full, 0)], 1_000, full),
            (vec![page(0, 2)], 2, 2),
        ] {
            let answers: Vec<&'static str> = answers.into_iter().map(|a| &*a.leak()).collect();
            let client = service(answers).await;
            assert_eq!(pages(&client, Vec::new(), most).await.unwrap().len(), want);
        }
    }

    #[test]
    fn deals_are_shown_with_what_went_wrong() {
        let deals = [json!({
            "deal_uuid": "u-1", "provider": "f01000", "state": "failed", "deal_id": null, "start_epoch": 5,
            "end_epoch": 9, "cost_attofil": "12", "pins": ["a", "b"],
            "error": {"code": "rejected_price", "text": "too\u{1b}[2J low"},
        })];
        let text = deals_table(&deals);
        let want = "u-1   f01000    failed  -     5      9    12              2     rejected_price: too\\u{1b}[2J low";
        assert!(text.contains(want), "{text}");
    }

    #[test]
    fn spending_says_what_is_on_and_what_cannot_be_recalled() {
        let status = |spending: bool, enabled: bool, signed: Value| {
            json!({
                "spending": spending, "enabled": enabled, "switch": "on",
                "caps_attofil": {"deal": "1", "day": "2", "lifetime": "3", "account_day": "4"},
                "committed_attofil": {"day": "5", "lifetime": "6", "reserved": "7", "spent": "8"},
                "left_attofil": "9", "signed": signed, "signed_is_cut": false,
            })
        };
        let text = spending_text(&status(true, true, json!([])));
        assert!(text.contains("spending                 on\n") && !text.contains("recalled"), "{text}");
        assert!(text.contains("2, 5 committed") && text.contains("left                     9"), "{text}");
        let off = spending_text(&status(false, true, json!([{"deal_uuid": "u-1"}])));
        assert!(
            off.contains("by `floe spending off`") && off.contains("1 signed proposals cannot be recalled")
        );
        assert!(off.contains("u-1"), "{off}");
        assert!(spending_text(&status(false, false, json!([]))).contains("deals.enabled is false"));
    }

    #[test]
    fn a_plan_shows_padding_price_and_what_is_not_placed() {
        let plan = json!({
            "paused": "spending is off", "cost_attofil": "30",
            "deals": [{"aggregate": "a-1", "slot": 0, "provider": "f01", "piece_cid": "baga", "piece_size": 2048,
                       "padding_bytes": 1024, "ask_attofil_gib_epoch": "3", "cost_attofil": "30"}],
            "unplaced": [{"aggregate": "a-1", "slot": 1, "why": "no provider"}],
            "pieces": [{"policy": "gold", "replicas": 3, "piece_size": 4096, "data_bytes": 100, "padding_bytes": 3968,
                        "full": false, "dags": [{}, {}], "cost_at_most_attofil": "77"}],
            "left_out": [{"root": "bafy", "reason": "a block is missing"}],
        });
        let text = plan_text(&plan);
        for want in [
            "nothing is spent now: spending is off",
            "2.00 KiB",
            "1.00 KiB",
            "cost 30 attoFIL",
            "no provider",
            "waits for more  77",
            "bafy: a block is missing",
        ] {
            assert!(text.contains(want), "{want}: {text}");
        }
    }
}
