//! The filters of `GET /pins`.
//!
//! Every value is checked and a wrong one is named (M20). A list may come with commas or by repeating its
//! key; anything else that comes twice is a mistake.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use floe_core::{Cid, PinStatus, Timestamp};
use floe_engine::{NameMatch, PinFilter};

use super::spec::{check_meta, check_name};
use crate::error::ApiError;
use crate::limits;

/// The pairs of a query.
pub(crate) type Pairs = Vec<(String, String)>;

/// The filter that a query asks for.
pub(crate) fn filter(query: Option<&str>) -> Result<PinFilter, ApiError> {
    let pairs = pairs(query)?;
    let once = |key| once(&pairs, key);
    let compare = name_match(once("match")?.as_deref())?;
    let name = once("name")?;
    if let Some(name) = &name {
        check_name(name).map_err(ApiError::bad_request)?;
    }
    Ok(PinFilter {
        cids: cids(&pairs)?,
        name: name.map(|name| (compare, name)),
        statuses: statuses(&pairs)?,
        before: once("before")?.map(|text| before(&text)).transpose()?,
        after: once("after")?.map(|text| time("after", &text)).transpose()?,
        meta: once("meta")?.map(|text| meta(&text)).transpose()?.unwrap_or_default(),
        limit: limit(once("limit")?.as_deref())?,
    })
}

/// The pairs of a query, percent-decoded.
pub(crate) fn pairs(query: Option<&str>) -> Result<Pairs, ApiError> {
    let Some(query) = query else { return Ok(Vec::new()) };
    let malformed = || ApiError::bad_request("the query is malformed");
    let uri: Uri = format!("/?{query}").parse().map_err(|_| malformed())?;
    let Query(pairs) = Query::try_from_uri(&uri).map_err(|_| malformed())?;
    Ok(pairs)
}

/// The value of a key that may come once.
pub(crate) fn once(pairs: &Pairs, key: &str) -> Result<Option<String>, ApiError> {
    let mut values = pairs.iter().filter(|(k, _)| k == key).map(|(_, value)| value.clone());
    let first = values.next();
    if values.next().is_some() {
        return Err(ApiError::bad_request(format!("{key}: given more than once")));
    }
    Ok(first)
}

/// The items of a key that holds a list.
pub(crate) fn items<'a>(pairs: &'a Pairs, key: &'a str) -> impl Iterator<Item = &'a str> {
    pairs.iter().filter(move |(k, _)| k == key).flat_map(|(_, value)| value.split(','))
}

fn cids(pairs: &Pairs) -> Result<Vec<Cid>, ApiError> {
    let most = limits::FILTER_CIDS;
    if items(pairs, "cid").nth(most).is_some() {
        limits::hit("filter_cids");
        return Err(ApiError::bad_request(format!("cid: more than {most} CIDs")));
    }
    let parse = |text: &str| {
        floe_core::cid::parse(text.trim())
            .map_err(|error| ApiError::bad_request(format!("cid: {}: {error}", shown(text))))
    };
    items(pairs, "cid").map(parse).collect()
}

fn statuses(pairs: &Pairs) -> Result<Vec<PinStatus>, ApiError> {
    let mut statuses = Vec::new();
    for word in items(pairs, "status") {
        let status = PinStatus::parse(word.trim()).ok_or_else(|| {
            let given = shown(word);
            ApiError::bad_request(format!("status: {given} is none of queued, pinning, pinned, failed"))
        })?;
        if !statuses.contains(&status) {
            statuses.push(status);
        }
    }
    Ok(statuses)
}

fn name_match(word: Option<&str>) -> Result<NameMatch, ApiError> {
    match word {
        None | Some("exact") => Ok(NameMatch::Exact),
        Some("iexact") => Ok(NameMatch::IExact),
        Some("partial") => Ok(NameMatch::Partial),
        Some("ipartial") => Ok(NameMatch::IPartial),
        Some(word) => {
            let given = shown(word);
            Err(ApiError::bad_request(format!("match: {given} is none of exact, iexact, partial, ipartial")))
        }
    }
}

fn limit(text: Option<&str>) -> Result<u32, ApiError> {
    let Some(text) = text else { return Ok(limits::PAGE_DEFAULT) };
    let most = limits::PAGE_MOST;
    text.parse().ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(|| {
        ApiError::bad_request(format!("limit: {} is not a number from 1 to {most}", shown(text)))
    })
}

/// A time. Digits below the millisecond are cut off, which is right for `after`: what is later than the
/// millisecond is later than the time.
fn time(key: &str, text: &str) -> Result<Timestamp, ApiError> {
    // The plus of an offset that was not escaped arrives as a space.
    Timestamp::parse_rfc3339(&text.replace(' ', "+")).ok_or_else(|| {
        let given = shown(text);
        ApiError::bad_request(format!("{key}: {given} is not a time such as 2020-07-27T17:32:28.276Z"))
    })
}

/// A time whose digits below the millisecond count upwards: what happened in that millisecond happened before.
fn before(text: &str) -> Result<Timestamp, ApiError> {
    let at = time("before", text)?;
    let fraction = text.split_once('.').map_or("", |(_, rest)| rest);
    let mut below = fraction.bytes().take_while(u8::is_ascii_digit).skip(3);
    Ok(if below.any(|digit| digit != b'0') { at.after(Duration::from_millis(1)) } else { at })
}

fn meta(text: &str) -> Result<BTreeMap<String, String>, ApiError> {
    if text.starts_with("map[") {
        return Err(ApiError::bad_request(
            "meta: this is Go's notation of a map, which go-pinning-service-http-client sends; \
             a JSON object such as {\"key\":\"value\"} is needed",
        ));
    }
    let meta = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("meta: not a JSON object of strings: {error}")))?;
    check_meta(&meta).map_err(ApiError::bad_request)?;
    Ok(meta)
}

/// A value as an error may repeat it: short, and without what a terminal would obey.
pub(crate) fn shown(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use floe_core::{PinStatus, Timestamp};
    use floe_engine::NameMatch;
    use proptest::prelude::*;

    use super::filter;
    use crate::limits::{FILTER_CIDS, PAGE_DEFAULT, PAGE_MOST};

    const CID: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

    fn refused(query: &str) -> String {
        format!("{:?}", filter(Some(query)).expect_err(query))
    }

    #[test]
    fn m13_limit_is_1_to_1000_and_10_by_default() {
        assert_eq!(filter(None).unwrap().limit, PAGE_DEFAULT);
        for ok in [1, 2, PAGE_MOST - 1, PAGE_MOST] {
            assert_eq!(filter(Some(&format!("limit={ok}"))).unwrap().limit, ok);
        }
        for bad in ["0", "1001", "-1", "1.5", "", "ten", "4294967296", "9223372036854775808"] {
            assert!(refused(&format!("limit={bad}")).contains("limit: "), "{bad}");
        }
    }

    #[test]
    fn m15_before_and_after_are_times_of_millisecond_precision() {
        let at = |query: &str| filter(Some(query)).unwrap();
        let base = Timestamp::parse_rfc3339("2020-07-27T17:32:28.276Z").unwrap();
        let next = Timestamp::from_millis(base.as_millis() + 1);
        assert_eq!(at("before=2020-07-27T17:32:28.276Z").before, Some(base));
        assert_eq!(at("before=2020-07-27T17:32:28.276000Z").before, Some(base));
        assert_eq!(at("before=2020-07-27T17:32:28.276001Z").before, Some(next));
        assert_eq!(at("after=2020-07-27T17:32:28.276999Z").after, Some(base));
        assert_eq!(at("after=2020-07-27T19:32:28.276%2B02:00").after, Some(base));
        assert_eq!(at("after=2020-07-27T19:32:28.276+02:00").after, Some(base));
        for bad in ["", "now", "2020-07-27", "1595871148", "2020-13-01T00:00:00Z"] {
            assert!(refused(&format!("before={bad}")).contains("before: "), "{bad}");
            assert!(refused(&format!("after={bad}")).contains("after: "), "{bad}");
        }
    }

    #[test]
    fn m16_up_to_100_cids() {
        let list = |n: usize| format!("cid={}", vec![CID; n].join(","));
        for (n, ok) in
            [(1, true), (10, true), (FILTER_CIDS - 1, true), (FILTER_CIDS, true), (FILTER_CIDS + 1, false)]
        {
            assert_eq!(filter(Some(&list(n))).is_ok(), ok, "{n}");
        }
        assert_eq!(filter(Some(&format!("cid={CID}&cid={CID}"))).unwrap().cids.len(), 2);
        assert_eq!(filter(Some(&format!("cid={CID}%2C{CID}"))).unwrap().cids.len(), 2);
        for bad in ["cid=", "cid=x", &format!("cid={CID},"), "cid=%ff"] {
            assert!(refused(bad).contains("cid: "), "{bad}");
        }
    }

    #[test]
    fn m17_status_is_a_list_of_the_four_words() {
        let all = filter(Some("status=queued,pinning,pinned,failed,queued")).unwrap().statuses;
        assert_eq!(all, PinStatus::ALL);
        assert!(filter(None).unwrap().statuses.is_empty(), "the rows take that for `pinned` alone");
        for bad in ["", "Pinned", "done", "pinned,"] {
            assert!(refused(&format!("status={bad}")).contains("status: "), "{bad}");
        }
    }

    #[test]
    fn m18_name_and_match() {
        for (word, compare) in [
            ("exact", NameMatch::Exact),
            ("iexact", NameMatch::IExact),
            ("partial", NameMatch::Partial),
            ("ipartial", NameMatch::IPartial),
        ] {
            let filter = filter(Some(&format!("name=a%20b%2Bc&match={word}"))).unwrap();
            assert_eq!(filter.name, Some((compare, "a b+c".to_owned())));
        }
        assert_eq!(filter(Some("name=x")).unwrap().name, Some((NameMatch::Exact, "x".to_owned())));
        assert_eq!(filter(Some("match=partial")).unwrap().name, None);
        assert!(refused("name=x&match=regex").contains("match: "));
        assert!(refused(&format!("name={}", "x".repeat(256))).contains("name: "));
        assert!(refused("name=x&name=y").contains("name: given more than once"));
    }

    #[test]
    fn m19_meta_is_a_json_object() {
        let meta = filter(Some("meta=%7B%22app_id%22%3A%22UUID%22%7D")).unwrap().meta;
        assert_eq!(meta.into_iter().collect::<Vec<_>>(), [("app_id".to_owned(), "UUID".to_owned())]);
        for bad in ["", "x", "[]", "{\"a\":1}", "{\"a\":\"b\"", "null"] {
            let escaped: String = bad.bytes().map(|b| format!("%{b:02x}")).collect();
            assert!(refused(&format!("meta={escaped}")).contains("meta: "), "{bad}");
        }
    }

    #[test]
    fn kubo_m20_the_go_map_is_a_clear_error() {
        assert!(refused("meta=map%5Ba:b%5D").contains("Go's notation"));
    }

    #[test]
    fn unknown_parameters_are_ignored() {
        assert!(filter(Some("cursor=x&foo&=&page=2")).is_ok());
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "[ -~]{0,120}") {
            let _ = filter(Some(&query));
        }
    }
}
