//! Pins that wait at the same time are written together; what comes of it must be what comes of one after the other.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::task::{Context, Poll, Waker};

use floe_core::{AccountId, Clock};
use floe_records::{Error, IdempotencyKey, PinRow, Records};
use proptest::prelude::*;
use sqlx::Connection;
use support::*;

/// A request: to the account with bounds or the other, these roots, and perhaps a key with one of two bodies.
#[derive(Debug, Clone)]
struct Request {
    bounded: bool,
    roots: Vec<u32>,
    key: Option<(u8, u8)>,
}

fn request() -> impl Strategy<Value = Request> {
    let roots = prop::collection::vec(0_u32..6, 0..4);
    let key = prop::option::of((0_u8..3, 0_u8..2));
    (any::<bool>(), roots, key).prop_map(|(bounded, roots, key)| Request { bounded, roots, key })
}

struct Run {
    world: World,
    records: Records,
    accounts: [AccountId; 2],
}

impl Run {
    /// With a DAG of each kind to be joined: 0 complete, 1 claimed, 2 waiting, 3 parked, 4 failed and gone; and one idle,
    /// 5, which a replaced pin was fetching. The rest of the bounded account is room for little more.
    async fn new() -> Self {
        let world = World::new();
        let records = world.open().await;
        let bounded = records.create_account("bounded", Some(50), Some(7)).await.unwrap().id;
        let own = default_account(&records).await;
        add_one(&records, own, spec(0)).await;
        complete(&records, &claim_one(&records).await, 20).await;
        add_one(&records, own, spec(4)).await;
        let failed = floe_records::DagOutcome::Failed { reason: "no codec".into() };
        records.finish_dag(claim_one(&records).await.dag, failed).await.unwrap();
        add_one(&records, own, spec(3)).await;
        let next_attempt = world.clock.now().after(std::time::Duration::from_secs(99));
        let parked = parked(next_attempt, "nobody");
        records.finish_dag(claim_one(&records).await.dag, parked).await.unwrap();
        add_one(&records, own, spec(1)).await;
        records.dag_progress(claim_one(&records).await.dag, 1, 10, None).await.unwrap();
        let replaced = add_one(&records, own, spec(5)).await;
        records.replace_pin(own, replaced.id, spec(2), false, None).await.unwrap();
        Self { world, records, accounts: [own, bounded] }
    }

    async fn add(&self, request: &Request) -> Result<Vec<PinRow>, Error> {
        let account = self.accounts[usize::from(request.bounded)];
        let specs = request.roots.iter().map(|root| spec(*root)).collect();
        let key =
            request.key.map(|(key, body)| IdempotencyKey { key: key.to_string(), body_hash: [body; 32] });
        self.records.add_pins(account, specs, false, key).await
    }

    /// All at once: each is in the queue before the writer sees the first.
    async fn together(&self, requests: &[Request]) -> Vec<Result<Vec<PinRow>, Error>> {
        let mut calls: Vec<_> = requests.iter().map(|request| Box::pin(self.add(request))).collect();
        let mut cx = Context::from_waker(Waker::noop());
        for call in &mut calls {
            assert!(matches!(call.as_mut().poll(&mut cx), Poll::Pending), "the writer has not run");
        }
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await);
        }
        answers
    }

    async fn one_by_one(&self, requests: &[Request]) -> Vec<Result<Vec<PinRow>, Error>> {
        let mut answers = Vec::new();
        for request in requests {
            answers.push(self.add(request).await);
        }
        answers
    }

    /// All that can be seen of the rows.
    async fn seen(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        barrier(&self.records).await;
        assert_sound(&self.records).await;
        let mut pages = Vec::new();
        for account in self.accounts {
            pages.push(self.records.pins(account, any_status()).await.unwrap());
        }
        let claimed = self.records.claim_dags(99, 99).await.unwrap();
        let accounts = self.records.accounts().await.unwrap();
        (pages, claimed, accounts, self.records.pin_counts().await.unwrap())
    }
}

/// What an answer promises. A pin of a complete DAG may be queued in one and pinned in the other.
fn promised(answers: &[Result<Vec<PinRow>, Error>]) -> Vec<String> {
    let of_row = |row: &PinRow| format!("{} {} {} {:?}", row.id, row.created.as_millis(), row.dag, row.spec);
    answers
        .iter()
        .map(|answer| match answer {
            Ok(rows) => rows.iter().map(of_row).collect::<Vec<_>>().join("; "),
            Err(error) => format!("{error:?}"),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_group_is_what_its_requests_are_one_after_the_other(requests in prop::collection::vec(request(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (group, single) = (Run::new().await, Run::new().await);
            let answers = [group.together(&requests).await, single.one_by_one(&requests).await];
            assert_eq!(promised(&answers[0]), promised(&answers[1]));
            assert_eq!(group.seen().await, single.seen().await);
            group.records.close().await;
            let again = group.world.open().await;
            assert_sound(&again).await;
        });
    }
}

#[tokio::test]
async fn each_request_of_a_group_is_refused_alone() {
    let run = Run::new().await;
    let with = |bounded, roots: &[u32], key| Request { bounded, roots: roots.to_vec(), key };
    let requests = [
        with(false, &[10], Some((1, 1))),
        with(true, &[11, 0, 0, 0], None),
        with(false, &[12], Some((1, 2))),
        with(false, &[10], Some((1, 1))),
        with(true, &[13, 14, 15, 16, 17, 18, 19, 20], None),
        with(true, &[0, 0], None),
        with(true, &[0], None),
    ];
    let answers = run.together(&requests).await;
    let [first, bytes, reused, again, pins, fits, full] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(first.as_ref().unwrap()[0].id, again.as_ref().unwrap()[0].id, "one key, one pin");
    assert!(matches!(bytes, Err(Error::Quota(what)) if what.contains("10 bytes left")), "{bytes:?}");
    assert!(matches!(reused, Err(Error::KeyReused)), "{reused:?}");
    assert!(matches!(pins, Err(Error::Quota(what)) if what.contains("7 pins")), "{pins:?}");
    assert_eq!(fits.as_ref().unwrap().len(), 2);
    assert!(matches!(full, Err(Error::Quota(_))), "{full:?}");
    // Not even the DAG of one that was refused is there.
    assert_eq!(run.records.pins(run.accounts[1], any_status()).await.unwrap().count, 2);
    assert_sound(&run.records).await;
}

/// The database itself refuses a row: the request that brought it is to blame, and the others of its group are written.
#[tokio::test]
async fn an_error_of_the_database_is_one_requests_own() {
    let run = Run::new().await;
    let url = format!("sqlite://{}", run.world.path().display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        "CREATE TRIGGER bad BEFORE INSERT ON pins WHEN NEW.name = 'bad' BEGIN SELECT RAISE(ABORT, 'bad row'); END",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    let add = |n, name: &str| run.records.add_pins(run.accounts[0], vec![named(n, name)], false, None);
    let (before, bad, behind) = tokio::join!(add(10, "good"), add(11, "bad"), add(12, "good"));
    assert!(matches!(&bad, Err(Error::Sql(what)) if what.contains("bad row")), "{bad:?}");
    let rows = [before.unwrap(), behind.unwrap()].concat();
    for row in rows {
        assert_eq!(run.records.pin(run.accounts[0], row.id).await.unwrap().spec, row.spec);
    }
    assert_sound(&run.records).await;
    let alone = add(13, "bad").await;
    assert!(matches!(&alone, Err(Error::Sql(what)) if what.contains("bad row")), "{alone:?}");
    assert_sound(&run.records).await;
}
