//! The commands of an operator: accounts, tokens, status, gc, verify.

use std::time::Duration;

use floe_core::{Clock as _, Timestamp};
use serde_json::{Value, json};

use super::{Call, Client, segment};
use crate::cli::{AccountCommand, Bound, ScopeArg, TokenCommand};
use crate::exit::{Code, Failure};
use crate::output::{Output, Table, printable, size, tell};
use crate::system::SystemClock;

/// Runs a `floe account` command.
pub(crate) async fn account(client: &Client, out: Output, command: AccountCommand) -> anyhow::Result<()> {
    match command {
        AccountCommand::Create { name, max_bytes, max_pins, max_replicas } => {
            let mut body = json!({ "name": name });
            // Left out where there is no bound: `null` is a value too.
            let max_replicas = max_replicas.map(u64::from);
            for (key, bound) in
                [("max_bytes", max_bytes), ("max_pins", max_pins), ("max_replicas", max_replicas)]
            {
                if let Some(bound) = bound {
                    body[key] = json!(bound);
                }
            }
            let made = client.call(Call::post("/admin/v1/accounts", body)).await?;
            out.print(&made, || format!("made the account {}", printable(&name)))
        }
        AccountCommand::Set { name, max_bytes, max_pins, max_replicas } => {
            let mut body = json!({});
            for (key, bound) in
                [("max_bytes", max_bytes), ("max_pins", max_pins), ("max_replicas", max_replicas)]
            {
                if let Some(Bound(bound)) = bound {
                    body[key] = json!(bound);
                }
            }
            let path = format!("/admin/v1/accounts/{}/quota", segment(&name));
            let account = client.call(Call::post(path, body)).await?;
            out.print(&account, || accounts_table(std::slice::from_ref(&account)))
        }
        AccountCommand::Ls => {
            let list = client.call(Call::get("/admin/v1/accounts")).await?;
            out.print(&list, || accounts_table(rows(&list, "accounts")))
        }
        AccountCommand::Suspend { name, lift } => {
            let path = format!("/admin/v1/accounts/{}/suspend", segment(&name));
            client.call(Call::post(path, json!({ "suspended": !lift }))).await?;
            let done = if lift { "let in again" } else { "suspended" };
            out.print(&json!({ "name": name, "suspended": !lift }), || {
                format!("{done}: {}", printable(&name))
            })
        }
    }
}

/// Runs a `floe token` command.
pub(crate) async fn token(client: &Client, out: Output, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { account, scopes, expires, policy } => {
            let mut body =
                json!({ "account": account, "scopes": scopes.iter().map(scope).collect::<Vec<_>>() });
            if let Some(expires) = expires {
                body["expires_in_seconds"] = json!(whole_seconds(expires));
            }
            if let Some(policy) = policy {
                body["policy"] = json!(policy);
            }
            let made = client.call(Call::post("/admin/v1/tokens", body)).await?;
            out.print(&made, || shown_once(&made))
        }
        TokenCommand::Ls { account } => {
            let query = account.map(|name| ("account", name)).into_iter().collect();
            let list = client.call(Call::get("/admin/v1/tokens").query(query)).await?;
            let accounts = client.call(Call::get("/admin/v1/accounts")).await?;
            let now = SystemClock::new().now();
            out.print(&list, || tokens_table(rows(&list, "tokens"), rows(&accounts, "accounts"), now))
        }
        TokenCommand::Revoke { id } => {
            client.call(Call::delete(format!("/admin/v1/tokens/{id}"))).await?;
            out.print(&json!({ "revoked": id }), || format!("revoked token {id}"))
        }
    }
}

/// `floe status`.
pub(crate) async fn status(client: &Client, out: Output) -> anyhow::Result<()> {
    let status = client.call(Call::get("/admin/v1/status")).await?;
    out.print(&status, || status_text(&status))
}

/// `floe gc`.
pub(crate) async fn gc(client: &Client, out: Output, orphans: bool) -> anyhow::Result<()> {
    let query = if orphans { vec![("orphans", "true".to_owned())] } else { Vec::new() };
    let report = client.call(Call::post("/admin/v1/gc", json!({})).query(query).long()).await?;
    out.print(&report, || {
        format!("removed {} blocks, freed {}", number(&report["blocks"]), size(number(&report["bytes"])))
    })
}

/// `floe verify` on a running node.
pub(crate) async fn verify(client: &Client, out: Output) -> anyhow::Result<()> {
    let report = client.call(Call::post("/admin/v1/verify", json!({})).long()).await?;
    out.print(&report, || verify_text(&report) + &rows_text(&report))?;
    let (damaged, repaired) = (rows(&report, "damaged").len(), number(&report["repaired"]));
    let mut found = Vec::new();
    if damaged > 0 {
        found.push(format!("{damaged} damaged blocks, {repaired} of them fetched again"));
    }
    let problems = rows(&report["rows"], "").len();
    if problems > 0 {
        found.push(format!("{problems} problems in the rows"));
    }
    found.extend(verify_words(&report));
    if found.is_empty() { Ok(()) } else { Err(Failure::new(Code::Damage, found.join(", ")).into()) }
}

/// What is wrong in the rows, and what could not be looked at.
pub(crate) fn rows_text(report: &Value) -> String {
    let (problems, unchecked) = (rows(&report["rows"], ""), rows(&report["rows_unchecked"], ""));
    let mut out: String =
        problems.iter().map(|problem| format!("rows: {}\n", printable(&plain(problem)))).collect();
    for what in unchecked {
        out.push_str(&format!("rows: not checked in time: {}; --offline does\n", printable(&plain(what))));
    }
    if out.is_empty() { "rows are right\n".to_owned() } else { out }
}

/// What is wrong beside damaged blocks, in words for the last line.
pub(crate) fn verify_words(report: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let incomplete = rows(&report["incomplete"], "").len();
    if incomplete > 0 {
        found.push(format!("{incomplete} incomplete DAGs"));
    }
    let records = number(&report["damaged_records"]);
    if records > 0 {
        found.push(format!("{records} damaged records that are no blocks"));
    }
    if report["index_wrong"] == true {
        found.push("a wrong index, which the next start makes again".to_owned());
    }
    found
}

/// The rows of a list, whether it is a bare array or inside an object.
pub(super) fn rows<'a>(list: &'a Value, name: &str) -> &'a [Value] {
    list.as_array().or_else(|| list[name].as_array()).map_or(&[], Vec::as_slice)
}

fn scope(scope: &ScopeArg) -> &'static str {
    match scope {
        ScopeArg::PinsRead => "pins:read",
        ScopeArg::PinsWrite => "pins:write",
        ScopeArg::Admin => "admin",
    }
}

/// Part of a second still counts: a token must not end before what was asked for.
fn whole_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

fn shown_once(made: &Value) -> String {
    tell("Shown this once: keep it. `floe token revoke` ends it.");
    made["secret"].as_str().map(printable).unwrap_or_default()
}

fn accounts_table(accounts: &[Value]) -> String {
    let mut table = Table::new(&["NAME", "USED", "OF", "PINS", "OF", "REPLICAS", "STATE"]);
    for account in accounts {
        let bound = |key: &str, show: fn(u64) -> String| account[key].as_u64().map_or("-".to_owned(), show);
        let state = if account["suspended"] == true { "suspended" } else { "active" };
        table.row([
            account["name"].as_str().unwrap_or_default(),
            &size(number(&account["used_bytes"])),
            &bound("max_bytes", size),
            &number(&account["used_pins"]).to_string(),
            &bound("max_pins", |n| n.to_string()),
            &bound("max_replicas", |n| n.to_string()),
            state,
        ]);
    }
    table.render()
}

/// Tokens name their account by its id; people know its name.
fn tokens_table(tokens: &[Value], accounts: &[Value], now: Timestamp) -> String {
    let name_of =
        |id: &Value| accounts.iter().find(|account| account["id"] == *id).map(|account| &account["name"]);
    let mut table = Table::new(&["ID", "ACCOUNT", "SCOPES", "POLICY", "CREATED", "EXPIRES", "STATE"]);
    for token in tokens {
        let scopes: Vec<&str> = rows(&token["scopes"], "").iter().filter_map(Value::as_str).collect();
        let ended = token["expires"].as_u64().is_some_and(|at| Timestamp::from_millis(at) <= now);
        let state = match (token["revoked"] == true, ended) {
            (true, _) => "revoked",
            (false, true) => "expired",
            (false, false) => "active",
        };
        table.row([
            &plain(&token["id"]),
            &plain(name_of(&token["account"]).unwrap_or(&token["account"])),
            &scopes.join(" "),
            &plain(&token["policy"]),
            &moment(&token["created"]),
            &moment(&token["expires"]),
            state,
        ]);
    }
    table.render()
}

/// Text as it is, a number as its digits, nothing as a dash.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// A time, which the admin routes may give as milliseconds since 1970.
pub(super) fn moment(value: &Value) -> String {
    match value.as_u64() {
        Some(millis) => Timestamp::from_millis(millis).to_string(),
        None => plain(value),
    }
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn status_text(status: &Value) -> String {
    let (network, workers) = (&status["network"], rows(&status["workers"], ""));
    let writes =
        if status["read_only"] == true { "refused: the disk is under its reserve" } else { "accepted" };
    let announced =
        format!("{} roots, {} due", number(&network["provided"]), number(&network["provide_backlog"]));
    let counts = status["pins"].as_object().into_iter().flatten();
    let mut lines: Vec<(String, String)> =
        counts.map(|(word, count)| (format!("pins {word}"), number(count).to_string())).collect();
    lines.extend([
        ("blocks".into(), number(&status["blocks"]).to_string()),
        ("stored".into(), size(number(&status["stored_bytes"]))),
        ("disk free".into(), size(number(&status["disk_free_bytes"]))),
        ("writes".into(), writes.into()),
        ("peers".into(), number(&network["peers"]).to_string()),
        ("dht".into(), plain(&network["kad"])),
        ("announced".into(), announced),
    ]);
    for (name, key) in [("listening", "listen"), ("reachable", "external")] {
        lines.extend(rows(network, key).iter().map(|addr| (name.to_owned(), plain(addr))));
    }
    lines.extend(cold_lines(&status["cold"]));
    let line = |(name, value): &(String, String)| format!("{:<13} {}\n", printable(name), printable(value));
    let mut out: String = lines.iter().map(line).collect();
    if !workers.is_empty() {
        out.push('\n');
        out.push_str(&workers_table(workers));
    }
    out
}

/// The cold half, where there is one: what is not there is not shown.
fn cold_lines(cold: &Value) -> Vec<(String, String)> {
    let Some(cold) = cold.as_object() else { return Vec::new() };
    let mut lines = Vec::new();
    for (name, key) in [("pieces", "aggregates"), ("deals", "deals")] {
        for (word, count) in cold[key].as_object().into_iter().flatten() {
            if number(count) > 0 {
                lines.push((format!("{name} {word}"), number(count).to_string()));
            }
        }
    }
    lines.push(("spending".into(), if cold["spending"] == true { "on" } else { "off" }.into()));
    for (name, key) in [
        ("committed", "committed"),
        ("left to spend", "left"),
        ("in escrow", "escrow"),
        ("locked", "locked"),
        ("in the wallet", "wallet"),
    ] {
        if let Some(amount) = cold.get(key).and_then(Value::as_str) {
            lines.push((name.into(), format!("{amount} attoFIL")));
        }
    }
    if let Some(why) = cold.get("paused").and_then(Value::as_str) {
        lines.push(("paused".into(), why.into()));
    }
    if let Some(head) = cold.get("head").filter(|head| !head.is_null()) {
        lines.push(("chain head".into(), plain(head)));
    }
    lines
}

fn workers_table(workers: &[Value]) -> String {
    let mut table = Table::new(&["WORKER", "STATE", "QUEUE", "LAST ERROR"]);
    for worker in workers {
        table.row([
            &plain(&worker["name"]),
            &plain(&worker["state"]),
            &number(&worker["queue"]).to_string(),
            &plain(&worker["last_error"]),
        ]);
    }
    table.render()
}

/// What `floe verify` prints, online and offline.
pub(crate) fn verify_text(report: &Value) -> String {
    let mut out = format!("read {} blocks, {}\n", number(&report["blocks"]), size(number(&report["bytes"])));
    let pins = |of: &Value| -> String {
        let pin = |pin: &Value| format!("{}:{}", plain(&pin[0]), plain(&pin[1]));
        rows(&of["pins"], "").iter().map(pin).collect::<Vec<_>>().join(" ")
    };
    let (damaged, incomplete) = (rows(report, "damaged"), rows(&report["incomplete"], ""));
    if damaged.is_empty() {
        out.push_str("no damaged blocks\n");
    } else {
        let mut table = Table::new(&["DAMAGED", "STATE", "PINS (account:request id)"]);
        for block in damaged {
            let state = if block["repaired"] == true { "fetched again" } else { "lost here" };
            table.row([&plain(&block["cid"]), state, &pins(block)]);
        }
        out.push_str(&table.render());
    }
    let records = number(&report["damaged_records"]);
    if records > 0 {
        out.push_str(&format!("{records} damaged records that are no blocks\n"));
    }
    if !incomplete.is_empty() {
        let mut table = Table::new(&["INCOMPLETE DAG", "PINS (account:request id)"]);
        for dag in incomplete {
            table.row([&plain(&dag["dag"]), &pins(dag)]);
        }
        out.push_str(&table.render());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_block_state_and_pins() {
        let report = json!({"blocks": 3, "bytes": 2048, "repaired": 1, "damaged": [
            {"cid": "bafkgood", "repaired": true, "pins": [[1, "id-1"], [2, "id-2"]]},
            {"cid": "bafkbad", "repaired": false, "pins": []},
        ]});
        let text = verify_text(&report);
        assert!(text.starts_with("read 3 blocks, 2.00 KiB\n"), "{text}");
        assert!(text.contains("bafkgood  fetched again  1:id-1 2:id-2"), "{text}");
        assert!(text.contains("bafkbad   lost here"), "{text}");
        let report = json!({"blocks": 0, "bytes": 0, "damaged": [], "index_wrong": true, "incomplete": [
            {"dag": "dag-1", "pins": [[3, "id-3"]]},
        ]});
        let text = verify_text(&report);
        assert!(text.contains("no damaged blocks") && text.contains("dag-1           3:id-3"), "{text}");
        let words = verify_words(&report).join(", ");
        assert_eq!(words, "1 incomplete DAGs, a wrong index, which the next start makes again");
        assert!(verify_words(&json!({"damaged": [], "index_wrong": false, "incomplete": []})).is_empty());
    }

    /// Only `--offline` looked at the rows: a running node said that all was clean.
    #[test]
    fn problems_in_the_rows_are_named() {
        assert_eq!(rows_text(&json!({"rows": []})), "rows are right\n");
        assert_eq!(rows_text(&json!({"rows": ["the row of pin 1"]})), "rows: the row of pin 1\n");
        let late = rows_text(&json!({"rows": [], "rows_unchecked": ["the pages of pins"]}));
        assert_eq!(late, "rows: not checked in time: the pages of pins; --offline does\n");
    }

    /// `floe verify` of a running node said that all was clean, with exit code 0, where a record of a manifest had
    /// rotted: only `--offline` told.
    #[test]
    fn damaged_records_are_damage() {
        let report = json!({"blocks": 1, "bytes": 1, "damaged": [], "damaged_records": 2, "incomplete": []});
        assert_eq!(verify_words(&report), ["2 damaged records that are no blocks"]);
        assert!(verify_text(&report).contains("2 damaged records that are no blocks"));
        assert!(verify_words(&json!({"damaged": [], "damaged_records": 0, "incomplete": []})).is_empty());
    }

    #[test]
    fn status_shows_pins_network_and_workers() {
        let status = json!({
            "pins": {"pinned": 3}, "blocks": 5, "stored_bytes": 2048, "disk_free_bytes": 1, "read_only": true,
            "network": {"peers": 2, "kad": "off", "listen": ["/ip4/1.2.3.4/tcp/5"], "provided": 3, "provide_backlog": 1},
            "workers": [{"name": "fetcher", "state": "idle", "last_error": null, "queue": 4}],
        });
        let text = status_text(&status);
        for want in [
            "pins pinned   3",
            "stored        2.00 KiB",
            "refused",
            "/ip4/1.2.3.4/tcp/5",
            "fetcher  idle   4",
        ] {
            assert!(text.contains(want), "{want}: {text}");
        }
    }

    #[test]
    fn t19_hostile_names_in_tables_are_escaped() {
        let list = json!([{"name": "a\u{1b}]0;b\u{7}", "used_bytes": 1, "used_pins": 2, "max_pins": 3}]);
        let text = accounts_table(rows(&list, "accounts"));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert!(text.contains("1 B") && text.contains("active"), "{text}");
    }

    /// `token ls` called a token that had expired active.
    #[test]
    fn tokens_are_active_expired_or_revoked() {
        let tokens = [
            json!({"id": 1, "scopes": [], "expires": 1000, "revoked": false}),
            json!({"id": 2, "scopes": [], "expires": 1001, "revoked": false}),
            json!({"id": 3, "scopes": [], "expires": 1000, "revoked": true}),
            json!({"id": 4, "scopes": [], "expires": null, "revoked": false}),
        ];
        let text = tokens_table(&tokens, &[], Timestamp::from_millis(1000));
        let states: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(states, ["expired", "active", "revoked", "active"], "{text}");
    }

    #[test]
    fn a_token_lives_at_least_as_long_as_was_asked() {
        assert_eq!(whole_seconds(Duration::from_millis(1500)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(60)), 60);
    }
}
