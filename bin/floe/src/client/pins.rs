//! `floe pin`: the Pinning Service API from the command line.

use floe_core::ports::Entropy;
use serde_json::{Map, Value, json};

use super::wait::progress;
use super::{Call, Client, ClientError, segment};
use crate::cli::{NameMatchArg, PinArgs, PinCommand, PinFilterArgs, StatusArg};
use crate::limits::PAGE;
use crate::output::{Output, Table, printable, tell};

/// Runs a `floe pin` command.
pub(crate) async fn pin(
    client: &Client,
    out: Output,
    command: PinCommand,
    entropy: &dyn Entropy,
) -> anyhow::Result<()> {
    match command {
        PinCommand::Add { cid, pin } => {
            let call = Call::post("/pins", body(&cid, &pin)).keyed(fresh_key(entropy));
            submit(client, out, call, pin.wait).await
        }
        PinCommand::Replace { id, cid, pin } => {
            let call =
                Call::post(format!("/pins/{}", segment(&id)), body(&cid, &pin)).keyed(fresh_key(entropy));
            submit(client, out, call, pin.wait).await
        }
        PinCommand::Ls(filter) => list(client, out, filter).await,
        PinCommand::Status { id } => {
            let pin = client.call(Call::get(format!("/pins/{}", segment(&id)))).await?;
            out.print(&pin, || details(&pin))
        }
        PinCommand::Rm { id } => {
            client.call(Call::delete(format!("/pins/{}", segment(&id)))).await?;
            out.print(&json!({ "removed": id }), || format!("removed {}", printable(&id)))
        }
    }
}

async fn submit(client: &Client, out: Output, call: Call, wait: bool) -> anyhow::Result<()> {
    let mut pin = client.call(call).await?;
    if wait {
        pin = client.wait(pin).await?;
    }
    out.print(&pin, || details(&pin))
}

fn body(cid: &str, pin: &PinArgs) -> Value {
    let mut body = json!({ "cid": cid });
    if let Some(name) = &pin.name {
        body["name"] = json!(name);
    }
    if !pin.origins.is_empty() {
        body["origins"] = json!(pin.origins);
    }
    if !pin.meta.is_empty() {
        body["meta"] = meta(&pin.meta);
    }
    body
}

fn meta(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>())
}

/// A key that makes a repeat of the same request harmless (threat T46).
fn fresh_key(entropy: &dyn Entropy) -> String {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// Lists page by page, because the API gives at most [`PAGE`] at a time.
async fn list(client: &Client, out: Output, filter: PinFilterArgs) -> anyhow::Result<()> {
    let mut found: Vec<Value> = Vec::new();
    let mut cursor = Cursor::of(&filter);
    let mut total = None;
    loop {
        let asked = PAGE.min(filter.limit - found.len() as u64);
        let page = client.call(Call::get("/pins").query(query(&filter, &cursor, asked))).await?;
        let (left, mut pins) = read_page(client, page)?;
        // The first page counts all; later ones count what their cursor leaves.
        total.get_or_insert(left);
        pins.truncate(asked as usize);
        let more = left > pins.len() as u64;
        let last = pins.last().and_then(|pin| pin["created"].as_str()).map(str::to_owned);
        found.append(&mut pins);
        match last {
            Some(created) if more && (found.len() as u64) < filter.limit => cursor.move_to(created),
            _ => break,
        }
    }
    let total = total.unwrap_or(0).max(found.len() as u64);
    if total > found.len() as u64 {
        tell(&format!("{} of {total} pins; --limit shows more", found.len()));
    }
    out.print(&json!({ "count": total, "results": found }), || table(&found))
}

/// Where the next page begins. With `--after` alone the API answers oldest first, so that end moves.
struct Cursor {
    before: Option<String>,
    after: Option<String>,
    ascending: bool,
}

impl Cursor {
    fn of(filter: &PinFilterArgs) -> Self {
        let ascending = filter.after.is_some() && filter.before.is_none();
        Self { before: filter.before.clone(), after: filter.after.clone(), ascending }
    }

    fn move_to(&mut self, created: String) {
        let end = if self.ascending { &mut self.after } else { &mut self.before };
        *end = Some(created);
    }
}

fn query(filter: &PinFilterArgs, cursor: &Cursor, limit: u64) -> Vec<(&'static str, String)> {
    let mut query = vec![("limit", limit.to_string()), ("status", statuses(&filter.statuses))];
    if !filter.cids.is_empty() {
        query.push(("cid", filter.cids.join(",")));
    }
    query.extend(filter.name.clone().map(|name| ("name", name)));
    query.extend(filter.name_match.map(|how| ("match", name_match(how).to_owned())));
    query.extend(cursor.before.clone().map(|at| ("before", at)));
    query.extend(cursor.after.clone().map(|at| ("after", at)));
    if !filter.meta.is_empty() {
        query.push(("meta", meta(&filter.meta).to_string()));
    }
    query
}

/// The API lists `pinned` alone where nothing is said; a person who lists pins wants all of them.
fn statuses(asked: &[StatusArg]) -> String {
    let word = |status: &StatusArg| match status {
        StatusArg::Queued => "queued",
        StatusArg::Pinning => "pinning",
        StatusArg::Pinned => "pinned",
        StatusArg::Failed => "failed",
    };
    match asked {
        [] => "queued,pinning,pinned,failed".into(),
        some => some.iter().map(word).collect::<Vec<_>>().join(","),
    }
}

fn name_match(how: NameMatchArg) -> &'static str {
    match how {
        NameMatchArg::Exact => "exact",
        NameMatchArg::Iexact => "iexact",
        NameMatchArg::Partial => "partial",
        NameMatchArg::Ipartial => "ipartial",
    }
}

fn read_page(client: &Client, mut page: Value) -> Result<(u64, Vec<Value>), ClientError> {
    match (page["count"].as_u64(), page["results"].take()) {
        (Some(count), Value::Array(pins)) => Ok((count, pins)),
        _ => Err(client.not_floe("a list of pins has no count or no results")),
    }
}

fn table(pins: &[Value]) -> String {
    let mut table = Table::new(&["REQUEST ID", "STATUS", "CREATED", "CID", "NAME"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for pin in pins {
        table.row([
            &text(&pin["requestid"]),
            &text(&pin["status"]),
            &text(&pin["created"]),
            &text(&pin["pin"]["cid"]),
            &text(&pin["pin"]["name"]),
        ]);
    }
    table.render()
}

fn details(pin: &Value) -> String {
    let text = |value: &Value| value.as_str().map(printable);
    let mut lines = vec![
        ("request id", text(&pin["requestid"])),
        ("status", text(&pin["status"])),
        ("cid", text(&pin["pin"]["cid"])),
        ("name", text(&pin["pin"]["name"])),
        ("created", text(&pin["created"])),
        ("progress", Some(progress(pin)).filter(|p| !p.is_empty())),
        ("attempts", text(&pin["info"]["attempts"])),
        ("last error", text(&pin["info"]["last_error"])),
    ];
    lines.push(("filecoin", text(&pin["info"]["cold"])));
    lines.push(("piece", text(&pin["info"]["piece_cid"])));
    lines.extend(deals(&pin["info"]["deals"]).into_iter().map(|deal| ("deal", Some(deal))));
    for (key, value) in pin["pin"]["meta"].as_object().into_iter().flatten() {
        lines.push(("meta", Some(format!("{}={}", printable(key), text(value).unwrap_or_default()))));
    }
    for delegate in pin["delegates"].as_array().into_iter().flatten() {
        lines.push(("delegate", text(delegate)));
    }
    let line = |(name, value): (&str, Option<String>)| value.map(|value| format!("{name:<11} {value}\n"));
    lines.into_iter().filter_map(line).collect()
}

/// The attempts of `info.deals`, each in a few words.
fn deals(text: &Value) -> Vec<String> {
    let deals: Vec<Value> =
        text.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let words = |deal: &Value| {
        let text = |value: &Value| value.as_str().map(printable).unwrap_or_default();
        let number = deal["deal_id"].as_u64().map(|id| format!(" ({id})")).unwrap_or_default();
        let error =
            deal["error"]["code"].as_str().map(|code| format!(": {}", printable(code))).unwrap_or_default();
        format!("{} {}{number}{error}", text(&deal["provider"]), text(&deal["state"]))
    };
    deals.iter().map(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_shows_where_it_is_on_filecoin() {
        let deals = json!([
            {"provider": "f01000", "state": "active", "deal_id": 7, "error": null},
            {"provider": "f01001", "state": "failed", "deal_id": null, "error": {"code": "sp_dial", "text": "x"}},
        ]);
        let pin = json!({"requestid": "id-1", "info": {"cold": "placing", "piece_cid": "baga", "deals": deals.to_string()}});
        let text = details(&pin);
        for want in [
            "filecoin    placing\n",
            "piece       baga\n",
            "deal        f01000 active (7)\n",
            "deal        f01001 failed: sp_dial\n",
        ] {
            assert!(text.contains(want), "{want}: {text}");
        }
        let hot = details(&json!({"requestid": "id-1", "info": {"deals": "rubbish"}}));
        assert!(!hot.contains("filecoin") && !hot.contains("deal "), "{hot}");
    }
    use crate::system::SystemEntropy;

    #[test]
    fn a_body_has_what_was_said_and_nothing_else() {
        let mut pin = PinArgs { name: None, origins: vec![], meta: vec![], wait: false };
        assert_eq!(body("bafy", &pin), json!({"cid": "bafy"}));
        pin.name = Some("n".into());
        pin.origins = vec!["/ip4/1.2.3.4/tcp/1".into()];
        pin.meta = vec![("k".into(), "v".into())];
        let want = json!({"cid": "bafy", "name": "n", "origins": ["/ip4/1.2.3.4/tcp/1"], "meta": {"k": "v"}});
        assert_eq!(body("bafy", &pin), want);
    }

    #[test]
    fn t46_every_request_has_a_key_of_its_own() {
        let (one, two) = (fresh_key(&SystemEntropy), fresh_key(&SystemEntropy));
        assert!(one.len() == 32 && one != two);
    }

    #[test]
    fn paging_moves_the_end_that_the_api_sorts_from() {
        let moved = |before: Option<&str>, after: Option<&str>| {
            let filter = PinFilterArgs {
                before: before.map(Into::into),
                after: after.map(Into::into),
                ..Default::default()
            };
            let mut cursor = Cursor::of(&filter);
            cursor.move_to("t".into());
            (cursor.before, cursor.after)
        };
        let t = || Some("t".to_owned());
        assert_eq!(moved(None, None), (t(), None));
        assert_eq!(moved(Some("b"), None), (t(), None));
        assert_eq!(moved(None, Some("a")), (None, t()));
        assert_eq!(moved(Some("b"), Some("a")), (t(), Some("a".into())));
    }

    #[test]
    fn all_statuses_are_listed_unless_some_are_named() {
        assert_eq!(statuses(&[]), "queued,pinning,pinned,failed");
        assert_eq!(statuses(&[StatusArg::Failed, StatusArg::Queued]), "failed,queued");
    }
}
