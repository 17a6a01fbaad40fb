//! Isolation, quotas, keys, tokens, limits and damage.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::time::Duration;

use floe_core::{AccountId, Clock, RequestId};
use floe_records::{DagOutcome, Error, IdempotencyKey, NameMatch, PinFilter, Records, Scope};
use sqlx::Connection;
use support::*;

async fn raw(world: &World, sql: &'static str) {
    let url = format!("sqlite://{}", world.path().display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn t25_no_call_with_one_account_reaches_the_rows_of_another() {
    let world = World::new();
    let records = world.open().await;
    let a = default_account(&records).await;
    let b = records.create_account("b", None, None).await.unwrap().id;
    for (owner, stranger) in [(a, b), (b, a)] {
        let mut secret = named(u32::try_from(owner.0).unwrap(), "secret");
        secret.meta = [("k".to_owned(), "v".to_owned())].into();
        let key = IdempotencyKey { key: "same".into(), body_hash: [7; 32] };
        let row = records.add_pins(owner, vec![secret.clone()], false, Some(key)).await.unwrap().remove(0);
        let unknown = RequestId(uuid::Uuid::nil());
        for id in [row.id, unknown] {
            let answers = [
                records.pin(stranger, id).await.err(),
                records.remove_pin(stranger, id).await.err(),
                records.replace_pin(stranger, id, spec(99), false, None).await.err(),
            ];
            assert!(answers.iter().all(|error| matches!(error, Some(Error::NotFound))), "{answers:?}");
        }
        let name = |how| PinFilter { name: Some((how, "secret".to_owned())), ..any_status() };
        let filters = [
            PinFilter { cids: vec![secret.cid], ..any_status() },
            PinFilter { meta: secret.meta.clone(), cids: vec![secret.cid], ..any_status() },
            PinFilter { cids: vec![secret.cid], ..name(NameMatch::Exact) },
            PinFilter { cids: vec![secret.cid], ..name(NameMatch::IExact) },
            PinFilter { cids: vec![secret.cid], ..name(NameMatch::Partial) },
            PinFilter { cids: vec![secret.cid], ..name(NameMatch::IPartial) },
        ];
        for filter in filters {
            assert_eq!(records.pins(stranger, filter.clone()).await.unwrap().count, 0, "{filter:?}");
            assert_eq!(records.pins(owner, filter.clone()).await.unwrap().count, 1, "{filter:?}");
        }
        assert_eq!(records.pin(owner, row.id).await.unwrap().spec, secret);
    }
    assert_sound(&records).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t26_two_hundred_adds_at_the_edge_do_not_overshoot() {
    let world = World::new();
    let records = world.open().await;
    let a = default_account(&records).await;
    add_one(&records, a, spec(1)).await;
    complete(&records, &claim_one(&records).await, 10).await;
    let bounded = records.create_account("bounded", Some(305), Some(1_000)).await.unwrap().id;
    let few = records.create_account("few", None, Some(17)).await.unwrap().id;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..400 {
        let records = records.clone();
        let account = if i % 2 == 0 { bounded } else { few };
        tasks.spawn(async move { (account, records.add_pins(account, vec![spec(1)], false, None).await) });
    }
    let mut ok = std::collections::BTreeMap::<AccountId, usize>::new();
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            (account, Ok(_)) => *ok.entry(account).or_default() += 1,
            (_, Err(Error::Quota(_))) => {}
            (_, Err(other)) => panic!("{other}"),
        }
    }
    assert_eq!((ok[&bounded], ok[&few]), (30, 17));
    barrier(&records).await;
    let accounts = records.accounts().await.unwrap();
    assert_eq!((accounts[1].used_bytes, accounts[2].used_pins), (300, 17));
    assert_sound(&records).await;
}

#[tokio::test]
async fn t26_replacing_by_what_is_never_found_frees_no_quota() {
    // The old blocks stay for the new pin's sake; were they not charged, each replacement would give the
    // account its quota anew while the blocks pile up.
    let world = World::new();
    let records = world.open().await;
    let bounded = records.create_account("bounded", Some(100), None).await.unwrap().id;
    let old = add_one(&records, bounded, spec(1)).await;
    complete(&records, &claim_one(&records).await, 100).await;
    records.replace_pin(bounded, old.id, spec(2), false, None).await.unwrap();
    let refused = records.add_pins(bounded, vec![spec(3)], false, None).await.unwrap_err();
    assert!(matches!(refused, Error::Quota(_)), "{refused}");
}

#[tokio::test]
async fn t26_a_walk_that_grows_past_the_quota_fails_its_pin_alone() {
    let world = World::new();
    let records = world.open().await;
    let a = default_account(&records).await;
    let bounded = records.create_account("bounded", Some(50), None).await.unwrap().id;
    let (poor, rich) = (add_one(&records, bounded, spec(1)).await, add_one(&records, a, spec(1)).await);
    let dag = claim_one(&records).await;
    assert_eq!(dag.byte_allowance, None);
    assert_eq!(records.dag_progress(dag.dag, 5, 50, None).await.unwrap(), Some(None));
    assert_eq!(status(&records, bounded, poor.id).await, floe_core::PinStatus::Pinning);
    assert_eq!(records.dag_progress(dag.dag, 6, 51, None).await.unwrap(), Some(None));
    assert_eq!(status(&records, bounded, poor.id).await, floe_core::PinStatus::Failed);
    records.remove_pin(a, rich.id).await.unwrap();
    assert_eq!(records.dag_progress(dag.dag, 7, 52, None).await.unwrap(), None, "nobody wants it");
    let late = records.finish_dag(dag.dag, DagOutcome::Complete { blocks: 7, bytes: 52 }).await;
    assert!(matches!(late, Err(Error::NotFound)));
    assert_sound(&records).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t46_one_key_makes_one_pin() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let key = |n: u8| Some(IdempotencyKey { key: format!("key {n}"), body_hash: [n; 32] });
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..500_u32 {
        let (records, n) = (records.clone(), u8::try_from(i % 10).unwrap());
        tasks.spawn(async move {
            (n, records.add_pins(account, vec![spec(n.into())], false, key(n)).await.unwrap()[0].id)
        });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(done) = tasks.join_next().await {
        ids.insert(done.unwrap());
    }
    assert_eq!(ids.len(), 10);
    assert_eq!(records.pins(account, any_status()).await.unwrap().count, 10);
    let other = Some(IdempotencyKey { key: "key 1".into(), body_hash: [99; 32] });
    assert!(matches!(records.add_pins(account, vec![spec(1)], false, other).await, Err(Error::KeyReused)));
    // Removed since: no second pin comes of a retry.
    let (n, id) = *ids.iter().next().unwrap();
    records.remove_pin(account, id).await.unwrap();
    let again = records.add_pins(account, vec![spec(n.into())], false, key(n)).await.unwrap();
    assert_eq!(again[0].id, id);
    assert_eq!(records.pins(account, any_status()).await.unwrap().count, 9);
    // Kept 24 h, and not a millisecond more.
    world.clock.advance(Duration::from_secs(24 * 3_600) - Duration::from_millis(1));
    assert_eq!(records.add_pins(account, vec![spec(n.into())], false, key(n)).await.unwrap()[0].id, id);
    world.clock.advance(Duration::from_millis(1));
    assert_ne!(records.add_pins(account, vec![spec(n.into())], false, key(n)).await.unwrap()[0].id, id);
}

#[tokio::test]
async fn t24_tokens_expire_are_revoked_at_once_and_are_not_in_the_file() {
    let world = World::new();
    let records = world.open().await;
    let scopes = [Scope::PinsRead, Scope::PinsWrite];
    let (token, secret) =
        records.create_token("default", &scopes, Some(Duration::from_secs(60))).await.unwrap();
    let principal = records.authenticate(&secret).await.unwrap().unwrap();
    assert_eq!((principal.token, principal.scopes.as_slice()), (token.id, scopes.as_slice()));
    for wrong in ["", "floe_", &secret[..60], &secret.to_uppercase(), "floe_aaaa"] {
        assert_eq!(records.authenticate(wrong).await.unwrap(), None, "{wrong}");
    }
    world.clock.advance(Duration::from_millis(59_999));
    assert!(records.authenticate(&secret).await.unwrap().is_some());
    assert!(records.token_holds(token.id).await.unwrap());
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(records.authenticate(&secret).await.unwrap(), None);
    assert!(!records.token_holds(token.id).await.unwrap());

    let (token, secret) = records.create_token("default", &scopes, None).await.unwrap();
    // Asked twice each time: what is known from the first must go with each change.
    let who = async || {
        let first = records.authenticate(&secret).await.unwrap();
        assert_eq!(records.authenticate(&secret).await.unwrap(), first);
        first
    };
    for suspended in [true, false] {
        records.suspend_account("default", suspended).await.unwrap();
        assert_eq!(records.token_holds(token.id).await.unwrap(), !suspended);
        assert_eq!(who().await.unwrap().account.suspended, suspended);
    }
    let quota = floe_records::Quota { max_pins: Some(Some(7)), ..Default::default() };
    records.set_quota("default", quota).await.unwrap();
    assert_eq!(who().await.unwrap().account.max_pins, Some(7));
    records.revoke_token(token.id).await.unwrap();
    assert_eq!(records.authenticate(&secret).await.unwrap(), None);
    assert!(!records.token_holds(token.id).await.unwrap());
    assert!(!records.token_holds(floe_core::TokenId(i64::MAX)).await.unwrap());
    records.close().await;
    for file in std::fs::read_dir(world.dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(20).any(|window| window == &secret.as_bytes()[5..25]));
    }
}

/// Tokens are known without a look: one that was revoked must not be let in by what a look that was under way has seen.
#[tokio::test(flavor = "multi_thread")]
async fn t24_no_token_is_let_in_after_its_revocation_was_answered() {
    let world = World::new();
    let records = world.open().await;
    for _ in 0..50 {
        let (token, secret) = records.create_token("default", &[Scope::PinsRead], None).await.unwrap();
        let mut clients = tokio::task::JoinSet::new();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        for _ in 0..4 {
            let (records, secret, stop) = (records.clone(), secret.clone(), stop.clone());
            clients.spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    records.authenticate(&secret).await.unwrap();
                    // What is known is told without a wait, and two such loops would leave no thread to the writer.
                    tokio::task::yield_now().await;
                }
            });
        }
        tokio::task::yield_now().await;
        records.revoke_token(token.id).await.unwrap();
        assert_eq!(records.authenticate(&secret).await.unwrap(), None);
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        clients.join_all().await;
        assert_eq!(records.authenticate(&secret).await.unwrap(), None);
    }
}

/// Tokens that had expired counted for ever: an account that made one a day was refused after a hundred days, with
/// no token that worked. And the rows of ended ones were kept without end.
#[tokio::test]
async fn an_account_has_a_hundred_tokens_that_work_and_a_hundred_that_have_ended() {
    let world = World::new();
    let records = world.open().await;
    let day = Duration::from_secs(86_400);
    let create = |expires| records.create_token("default", &[Scope::PinsRead], expires);
    for made in 1..=99 {
        // Every other one ends in a day.
        create((made % 2 == 0).then_some(day)).await.unwrap();
    }
    let (last, _) = create(None).await.unwrap();
    assert!(matches!(create(None).await, Err(Error::Conflict(_))), "the 101st");
    // A start whose admin.token was deleted is helped all the same; else nobody could revoke one.
    let (own, secret) = records.create_own_token("default", &[Scope::Admin]).await.unwrap();
    assert!(records.authenticate(&secret).await.unwrap().is_some());
    records.revoke_token(own.id).await.unwrap();
    records.revoke_token(last.id).await.unwrap();
    create(None).await.unwrap();
    assert!(matches!(create(None).await, Err(Error::Conflict(_))));

    world.clock.advance(day);
    let (expired, revoked) = (49, 2);
    for _ in 0..expired {
        create(None).await.unwrap();
    }
    assert!(matches!(create(None).await, Err(Error::Conflict(_))));
    assert_eq!(records.tokens(None).await.unwrap().len(), 100 + expired + revoked);

    for ended in [99, 100, 101] {
        while records.tokens(None).await.unwrap().iter().filter(|token| token.revoked).count() + expired
            < ended
        {
            let tokens = records.tokens(None).await.unwrap();
            let live = tokens.iter().find(|token| !token.revoked && token.expires.is_none()).unwrap();
            records.revoke_token(live.id).await.unwrap();
        }
        create(None).await.unwrap();
        let tokens = records.tokens(None).await.unwrap();
        let now = world.clock.now();
        let over = |token: &&floe_records::Token| token.revoked || token.expires.is_some_and(|at| at <= now);
        assert_eq!(tokens.iter().filter(over).count(), ended.min(100), "{ended}");
    }
    assert_sound(&records).await;
}

/// The error of a damaged token's row said to revoke it, and `token revoke` failed with the same error; `token ls` was a
/// 500 for all.
#[tokio::test]
async fn r04_a_damaged_token_is_left_out_of_lists_and_can_be_revoked() {
    let world = World::new();
    let records = world.open().await;
    let (damaged, secret) = records.create_token("default", &[Scope::PinsRead], None).await.unwrap();
    let (whole, _) = records.create_token("default", &[Scope::Admin], None).await.unwrap();
    raw(&world, "UPDATE tokens SET scopes = '?' WHERE scopes LIKE '%read%'").await;
    for account in [None, Some("default")] {
        assert_eq!(records.tokens(account).await.unwrap(), std::slice::from_ref(&whole));
    }
    assert_eq!(records.verify().await.unwrap().findings.len(), 1);
    records.revoke_token(damaged.id).await.unwrap();
    assert_eq!(records.authenticate(&secret).await.unwrap(), None);
    assert!(matches!(records.revoke_token(damaged.id).await, Err(Error::NotFound)));
    assert_sound(&records).await;
}

async fn queue_is(world: &World, sql: &'static str, records: &Records, account: AccountId) -> [bool; 2] {
    raw(world, sql).await;
    let mut taken = [false; 2];
    for (i, taken) in taken.iter_mut().enumerate() {
        world.clock.advance(Duration::from_secs(1));
        match records.add_pins(account, vec![spec(i as u32)], false, None).await {
            Ok(_) => *taken = true,
            Err(Error::Busy { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    taken
}

#[tokio::test]
async fn queued_pins_are_bounded_per_account_and_over_all() {
    let world = World::new();
    let records = world.open().await;
    let own = default_account(&records).await;
    let other = records.create_account("other", None, None).await.unwrap().id;
    add_one(&records, own, spec(7)).await;
    add_one(&records, other, spec(7)).await;
    // One below the bound: one more fits, and the next does not.
    let sql = "UPDATE counts SET queued = 9999 WHERE account = 2 AND width = 0";
    assert_eq!(queue_is(&world, sql, &records, other).await, [true, false]);
    let sql = "UPDATE counts SET queued = 9999 WHERE account = 1 AND width = 0";
    assert_eq!(queue_is(&world, sql, &records, own).await, [true, true], "the operator's own has no bound");
    let sql = "UPDATE counts SET queued = 999999 WHERE account = 0 AND width = 0";
    assert_eq!(queue_is(&world, sql, &records, own).await, [true, false]);
}

#[tokio::test]
async fn the_bound_of_queued_pins_can_be_set() {
    let world = World::new();
    let components = floe_records::Components {
        clock: std::sync::Arc::new(world.clock.clone()),
        entropy: std::sync::Arc::<Counted>::clone(&world.entropy),
    };
    let settings = floe_records::Settings { max_queued: 2, ..floe_records::Settings::at(world.path()) };
    let records = Records::open(settings, components).await.unwrap();
    let other = records.create_account("other", None, None).await.unwrap().id;
    let batch = |n: u32| records.add_pins(other, (0..n).map(spec).collect(), false, None);
    assert!(matches!(batch(3).await, Err(Error::Busy { .. })));
    batch(2).await.unwrap();
    let refused = batch(1).await.unwrap_err();
    assert!(refused.to_string().contains("2 of 2 pins"), "{refused}");
}

#[tokio::test]
async fn m15_created_runs_two_seconds_ahead_at_most_and_never_back() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let batch = |n: u32| (0..n).map(spec).collect::<Vec<_>>();
    for n in [1_000, 1_000] {
        records.add_pins(account, batch(n), false, None).await.unwrap();
    }
    // 0 to 1,999 ms are taken; 2,000 is the last allowed.
    let last = add_one(&records, account, spec(1)).await;
    assert_eq!(last.created.since(world.clock.now()), Duration::from_secs(2));
    match records.add_pins(account, batch(1), false, None).await {
        Err(Error::Busy { retry_after, .. }) => assert_eq!(retry_after, Duration::from_millis(1)),
        other => panic!("{other:?}"),
    }
    world.clock.advance(Duration::from_millis(1));
    assert!(add_one(&records, account, spec(1)).await.created > last.created);
    assert!(records.add_pins(account, batch(1_001), false, None).await.is_err());
}

/// One damaged row made every page that it would have been on an error, and so hid all of an account's pins.
#[tokio::test]
async fn r04_a_damaged_row_is_named_and_never_served_and_hides_no_other() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let names = ["a", "b", "c", "d", "e", "f"];
    let specs = names.iter().zip(1..).map(|(name, n)| named(n, name)).collect();
    let rows = records.add_pins(account, specs, false, None).await.unwrap();
    let (_, secret) = records.create_token("default", &[Scope::PinsRead], None).await.unwrap();
    // Another name; a status that none has; a DAG that is not there.
    raw(&world, "UPDATE pins SET name = 'x' WHERE name = 'f'; UPDATE pins SET meta = '?' WHERE name = 'c'")
        .await;
    raw(&world, "PRAGMA foreign_keys = OFF; UPDATE pins SET dag = x'00' WHERE name = 'a'").await;
    raw(&world, "UPDATE tokens SET scopes = '[\"admin\"]'").await;
    for damaged in [&rows[0], &rows[2], &rows[5]] {
        for error in [
            records.pin(account, damaged.id).await.err(),
            records.remove_pin(account, damaged.id).await.err(),
        ] {
            assert!(
                matches!(&error, Some(Error::Damaged(what)) if what.contains(&damaged.id.to_string())),
                "{error:?}"
            );
        }
    }
    assert!(matches!(records.authenticate(&secret).await, Err(Error::Damaged(_))));
    let report = records.verify().await.unwrap();
    for damaged in [&rows[0], &rows[2], &rows[5]] {
        assert!(report.findings.iter().any(|found| found.contains(&damaged.id.to_string())), "{report:?}");
    }
    assert_eq!((report.pins, report.tokens), (6, 1), "{report:?}");

    let left: Vec<RequestId> = [4, 3, 1].map(|n: usize| rows[n].id).into();
    let meta = PinFilter { name: Some((NameMatch::IPartial, String::new())), ..any_status() };
    for filter in [any_status(), meta] {
        let page = records.pins(account, filter).await.unwrap();
        assert_eq!((page.count, page.pins.iter().map(|row| row.id).collect()), (3, left.clone()));
    }
    // A pager ends, and has seen all that can be seen, whatever the size of its pages.
    for limit in 1..=7 {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = records.pins(account, PinFilter { limit, before, ..any_status() }).await.unwrap();
            let Some(last) = page.pins.last() else {
                assert_eq!(page.count, 0, "no more pins are promised than there are");
                break;
            };
            before = Some(last.created);
            seen.extend(page.pins.iter().map(|row| row.id));
        }
        assert_eq!(seen, left, "pages of {limit}");
    }
}

/// A claim reads all pins of its DAG, and a damaged one made it fail: for every DAG of every account, again and again.
#[tokio::test]
async fn r04_a_damaged_row_keeps_no_other_pin_from_being_fetched() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let damaged = add_one(&records, account, spec(1)).await;
    let beside = add_one(&records, account, spec(1)).await;
    let turned = add_one(&records, account, spec(2)).await;
    let other = add_one(&records, account, spec(3)).await;
    world.clock.advance(Duration::from_secs(1));
    raw(&world, "UPDATE pins SET name = 'x' WHERE created = (SELECT MIN(created) FROM pins)").await;
    raw(
        &world,
        "UPDATE dags SET root = x'ffff' WHERE id = (SELECT dag FROM pins ORDER BY created LIMIT 1 OFFSET 2)",
    )
    .await;
    let claimed = records.claim_dags(9, 9).await.unwrap();
    let roots: std::collections::BTreeMap<_, _> = claimed.iter().map(|dag| (dag.dag, dag.root)).collect();
    // The digest of the second's pin holds, so its root does.
    assert_eq!(roots, [(beside.dag, root(1)), (turned.dag, root(2)), (other.dag, root(3))].into());
    let findings = records.verify().await.unwrap().findings;
    assert!(findings.iter().any(|found| found.contains("the root of a DAG")), "{findings:?}");
    let online = records.verify_online(false).await.unwrap().findings;
    assert_eq!(online, findings, "a running node finds what a stopped one does");
    assert!(findings.iter().any(|found| found.contains("another root than the pin")), "{findings:?}");
    for dag in &claimed {
        records.dag_progress(dag.dag, 1, 5, None).await.unwrap();
        complete(&records, dag, 5).await;
    }
    for id in [beside.id, turned.id, other.id] {
        assert_eq!(status(&records, account, id).await, floe_core::PinStatus::Pinned);
    }
    assert!(matches!(records.pin(account, damaged.id).await, Err(Error::Damaged(_))));
    assert_eq!(records.parked_roots(9).await.unwrap(), []);
    let findings = records.verify().await.unwrap().findings;
    assert!(findings.iter().any(|found| found.contains("waiting pin")), "{findings:?}");
}

#[tokio::test]
async fn a_page_passes_a_thousand_damaged_rows_and_no_more() {
    for (damaged, passes) in [(999_u32, true), (1_000, true), (1_001, false)] {
        let world = World::new();
        let records = world.open().await;
        let account = default_account(&records).await;
        add_one(&records, account, spec(0)).await;
        for batch in [damaged.min(1_000), damaged.saturating_sub(1_000)] {
            world.clock.advance(Duration::from_secs(2));
            let specs = (0..batch).map(|_| named(1, "to be damaged")).collect();
            records.add_pins(account, specs, false, None).await.unwrap();
        }
        raw(&world, "UPDATE pins SET meta = '?' WHERE name IS NOT NULL").await;
        let page = records.pins(account, PinFilter { limit: 500, ..any_status() }).await;
        match page {
            Ok(page) => assert_eq!((passes, page.count, page.pins.len()), (true, 1, 1), "{damaged}"),
            Err(error) => assert!(!passes && matches!(error, Error::Damaged(_)), "{damaged}: {error}"),
        }
    }
}

/// Time that passes with each look at it, so that a scan meets its deadline at a step that the test chooses.
struct Ticking {
    tick: Duration,
    looks: std::sync::atomic::AtomicU32,
}

impl Clock for Ticking {
    fn now(&self) -> floe_core::Timestamp {
        floe_core::Timestamp::from_millis(START)
    }
    fn monotonic(&self) -> Duration {
        self.tick * self.looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst)
    }
    fn sleep(&self, _: Duration) -> floe_core::clock::BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_scan_ends_at_its_deadline_of_two_seconds() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    records.add_pins(account, (0..1_000).map(spec).collect(), false, None).await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    records.add_pins(account, (0..1_000).map(spec).collect(), false, None).await.unwrap();
    records.close().await;
    // Two full steps and an empty one look at the clock, after the look that sets the deadline.
    for (tick, passes) in [(666, true), (667, false)] {
        let clock = Ticking { tick: Duration::from_millis(tick), looks: 0.into() };
        let components = floe_records::Components {
            clock: std::sync::Arc::new(clock),
            entropy: std::sync::Arc::<Counted>::clone(&world.entropy),
        };
        let settings = floe_records::Settings::at(world.path());
        let records = Records::open(settings, components).await.unwrap();
        let filter = PinFilter { name: Some((NameMatch::IPartial, "nowhere".into())), ..any_status() };
        match records.pins(account, filter).await {
            Ok(page) => assert!(passes && page.count == 0, "{tick}"),
            Err(error) => assert!(!passes && matches!(error, Error::Deadline), "{tick}: {error}"),
        }
        records.close().await;
    }
}

#[tokio::test]
async fn r04_verify_finds_sums_that_are_wrong() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    add_one(&records, account, spec(1)).await;
    assert_sound(&records).await;
    raw(&world, "UPDATE accounts SET used_bytes = 5; UPDATE dags SET refs = 9; DELETE FROM waits").await;
    assert_eq!(records.verify().await.unwrap().findings.len(), 3);
    // One short stretch: its own counter, and the sum of the account's short ones.
    raw(&world, "UPDATE counts SET pinned = 7 WHERE width = 16384").await;
    assert_eq!(records.verify().await.unwrap().findings.len(), 5);
    // All time of the account: its own counter, both sums of stretches, and the sum over all accounts.
    raw(&world, "UPDATE counts SET pinned = 0; UPDATE counts SET failed = 7 WHERE width = 0 AND account = 1")
        .await;
    assert_eq!(records.verify().await.unwrap().findings.len(), 7);
}

/// One damaged job failed each look at the queue: no block was freed and no root announced any more, and `verify` had
/// nothing to say of it.
#[tokio::test]
async fn r04_a_damaged_job_holds_up_no_other() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    raw(
        &world,
        "INSERT INTO jobs (id, kind, payload) VALUES (-3, 0, x'00'), (-2, 2, x'01'), (-1, 77, x'02')",
    )
    .await;
    add_one(&records, account, spec(1)).await;
    let dag = claim_one(&records).await;
    complete(&records, &dag, 10).await;
    let jobs = records.jobs(100).await.unwrap();
    assert!(matches!(&jobs[..], [(_, floe_records::Job::Announce(root))] if *root == dag.root), "{jobs:?}");
    let findings = records.verify().await.unwrap().findings;
    assert_eq!(findings.iter().filter(|found| found.starts_with("job -")).count(), 3, "{findings:?}");
}

#[tokio::test]
async fn r10_a_file_that_is_no_database_is_refused_and_left_alone() {
    let world = World::new();
    let components = || floe_records::Components {
        clock: std::sync::Arc::new(world.clock.clone()),
        entropy: std::sync::Arc::<Counted>::clone(&world.entropy),
    };
    let settings = floe_records::Settings::at(world.path());
    let text = vec![b'x'; 8_192];
    std::fs::write(world.path(), &text).unwrap();
    let refused = Records::open(settings, components()).await.unwrap_err();
    assert!(matches!(&refused, Error::Damaged(what) if what.contains("pins-1.sqlite")), "{refused}");
    assert_eq!(std::fs::read(world.path()).unwrap(), text);
}

/// A `rows.sqlite` that was lost or emptied was made anew, with no pin in it: the next start called every block garbage
/// and freed it.
#[tokio::test]
async fn r10_rows_that_were_there_once_are_not_made_anew() {
    let world = World::new();
    world.open().await.close().await;
    let reopen = |may_make| {
        let components = floe_records::Components {
            clock: std::sync::Arc::new(world.clock.clone()),
            entropy: std::sync::Arc::<Counted>::clone(&world.entropy),
        };
        Records::open(
            floe_records::Settings { may_make, ..floe_records::Settings::at(world.path()) },
            components,
        )
    };
    let refused = async |how: &str| {
        let said = reopen(false).await.unwrap_err();
        assert!(matches!(said, Error::Lost { .. }), "{said}");
        let said = said.to_string();
        assert!(said.contains("pins-1.sqlite") && said.contains(how) && said.contains("backup"), "{said}");
    };
    reopen(false).await.unwrap().close().await;
    raw(&world, "DELETE FROM accounts").await;
    refused("holds no accounts").await;
    for extension in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{extension}", world.path().display()));
    }
    refused("is missing").await;
    assert!(!world.path().exists(), "a file was made");
    std::fs::write(world.path(), "").unwrap();
    refused("is empty").await;
    assert_eq!(std::fs::metadata(world.path()).unwrap().len(), 0);
    // SQLite's own empty database: a header, and no tables.
    std::fs::remove_file(world.path()).unwrap();
    std::fs::File::create(world.path()).unwrap();
    raw(&world, "PRAGMA user_version = 1").await;
    refused("holds no accounts").await;
    reopen(true).await.unwrap().close().await;
}

#[tokio::test]
async fn one_request_of_a_group_fails_alone() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let unknown = RequestId(uuid::Uuid::nil());
    let (bad, good, taken) = tokio::join!(
        records.remove_pin(account, unknown),
        records.add_pins(account, vec![spec(1)], false, None),
        records.create_account("default", None, None),
    );
    assert!(matches!(bad, Err(Error::NotFound)));
    assert!(matches!(taken, Err(Error::Conflict(_))));
    assert_eq!(records.pin(account, good.unwrap()[0].id).await.unwrap().status, floe_core::PinStatus::Queued);
    assert_sound(&records).await;
}

#[tokio::test]
async fn t25_what_a_token_is_given_is_kept_and_a_change_behind_its_back_is_seen() {
    let world = World::new();
    let records = world.open().await;
    let grant = floe_records::Grant {
        scopes: vec![Scope::PinsRead],
        expires_in: None,
        policy: Some("gold".to_owned()),
    };
    let (token, secret) = records.grant_token("default", grant).await.unwrap();
    assert_eq!(token.policy.as_deref(), Some("gold"));
    let who = records.authenticate(&secret).await.unwrap().unwrap();
    assert_eq!(who.policy.as_deref(), Some("gold"));
    records.close().await;
    for change in ["'lead'", "NULL", "''"] {
        let change = format!("UPDATE tokens SET policy = {change} WHERE id = {}", token.id.0);
        let mut conn =
            sqlx::SqliteConnection::connect(&format!("sqlite:{}", world.path().display())).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone())).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        let records = world.open().await;
        let seen = records.authenticate(&secret).await;
        assert!(matches!(seen, Err(floe_records::Error::Damaged(_))), "{change}: {seen:?}");
        records.close().await;
    }
}

#[tokio::test]
async fn the_most_replicas_of_an_account_are_kept_and_changed() {
    let world = World::new();
    let records = world.open().await;
    let bounds = floe_records::Bounds { max_replicas: Some(2), ..Default::default() };
    assert_eq!(records.create_bounded_account("alice", bounds).await.unwrap().max_replicas, Some(2));
    for most in [Some(0), None, Some(16)] {
        let quota = floe_records::Quota { max_replicas: Some(most), ..Default::default() };
        assert_eq!(records.set_quota("alice", quota).await.unwrap().max_replicas, most);
        let other = floe_records::Quota { max_pins: Some(Some(9)), ..Default::default() };
        assert_eq!(records.set_quota("alice", other).await.unwrap().max_replicas, most, "left as it is");
    }
}
