//! Lists that are cut by time are counted by stretches: any window must have the count that the pins have.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::time::Duration;

use floe_core::{AccountId, PinStatus, RequestId, Timestamp};
use floe_records::{DagOutcome, PinFilter, Records};
use proptest::prelude::*;
use support::*;

/// What `counts.rs` calls a short and a long stretch: windows and pins are put at their edges.
const SHORT: u64 = 1 << 14;
const LONG: u64 = 1 << 25;

#[derive(Debug, Clone)]
enum Op {
    Add {
        pins: u32,
    },
    /// Every claimed DAG ends so.
    Settle {
        failed: bool,
    },
    Remove {
        pick: usize,
    },
    Wait {
        millis: u64,
    },
    /// To shortly before the end of a stretch.
    WaitForEdge {
        width: u64,
        before: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1_u32..40).prop_map(|pins| Op::Add { pins }),
        2 => any::<bool>().prop_map(|failed| Op::Settle { failed }),
        2 => (0_usize..64).prop_map(|pick| Op::Remove { pick }),
        2 => (0_u64..2 * LONG).prop_map(|millis| Op::Wait { millis }),
        3 => (prop_oneof![Just(SHORT), Just(LONG)], 0_u64..20)
            .prop_map(|(width, before)| Op::WaitForEdge { width, before }),
    ]
}

/// A moment: at a pin (by its place), or at the edge of a stretch near one, and a little beside it.
#[derive(Debug, Clone, Copy)]
struct Moment {
    pick: usize,
    edge: Option<u64>,
    beside: i64,
}

fn moment() -> impl Strategy<Value = Option<Moment>> {
    let edge = prop::option::of(prop_oneof![Just(SHORT), Just(LONG)]);
    let moment =
        (0_usize..64, edge, -2_i64..3).prop_map(|(pick, edge, beside)| Moment { pick, edge, beside });
    prop::option::weighted(0.8, moment)
}

struct Run {
    world: World,
    records: Records,
    account: AccountId,
    pins: Vec<(RequestId, u64)>,
    next: u32,
}

impl Run {
    async fn apply(&mut self, op: Op) {
        let now = floe_core::Clock::now(&self.world.clock).as_millis();
        match op {
            Op::Add { pins } => {
                let specs = (self.next..self.next + pins).map(spec).collect();
                self.next += pins;
                let rows = self.records.add_pins(self.account, specs, false, None).await.unwrap();
                self.pins.extend(rows.iter().map(|row| (row.id, row.created.as_millis())));
            }
            Op::Settle { failed } => {
                for dag in self.records.claim_dags(8, 8).await.unwrap() {
                    let outcome = if failed {
                        DagOutcome::Failed { reason: "no".into() }
                    } else {
                        DagOutcome::Complete { blocks: 1, bytes: 1 }
                    };
                    self.records.finish_dag(dag.dag, outcome).await.unwrap();
                }
                self.records.claim_dags(3, 3).await.unwrap();
            }
            Op::Remove { pick } if !self.pins.is_empty() => {
                let (id, _) = self.pins.swap_remove(pick % self.pins.len());
                self.records.remove_pin(self.account, id).await.unwrap();
            }
            Op::Remove { .. } => {}
            Op::Wait { millis } => self.world.clock.advance(Duration::from_millis(millis)),
            Op::WaitForEdge { width, before } => {
                let left = (width - now % width).saturating_sub(before);
                self.world.clock.advance(Duration::from_millis(left));
            }
        }
    }

    fn at(&self, moment: Option<Moment>) -> Option<Timestamp> {
        let Moment { pick, edge, beside } = moment?;
        let near = match self.pins.len() {
            0 => START,
            pins => self.pins[pick % pins].1,
        };
        let at = edge.map_or(near, |width| near - near % width);
        Some(Timestamp::from_millis(at.saturating_add_signed(beside)))
    }

    async fn check(&self, after: Option<Moment>, before: Option<Moment>, statuses: &[PinStatus]) {
        let (after, before) = (self.at(after), self.at(before));
        let mut naive = 0;
        for (id, created) in &self.pins {
            let created = Timestamp::from_millis(*created);
            let inside = after.is_none_or(|a| created > a) && before.is_none_or(|b| created < b);
            naive += u64::from(inside && statuses.contains(&status(&self.records, self.account, *id).await));
        }
        let filter =
            PinFilter { statuses: statuses.to_vec(), after, before, limit: 1, ..PinFilter::default() };
        let page = self.records.pins(self.account, filter.clone()).await.unwrap();
        assert_eq!(page.count, naive, "{filter:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn m14_the_count_of_any_window_is_that_of_its_pins(
        ops in prop::collection::vec(op(), 1..12),
        windows in prop::collection::vec(
            (moment(), moment(), prop::sample::subsequence(PinStatus::ALL.to_vec(), 1..=4)), 6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let records = world.open().await;
            let account = default_account(&records).await;
            let mut run = Run { world, records, account, pins: Vec::new(), next: 0 };
            for op in ops {
                run.apply(op).await;
            }
            for (after, before, statuses) in &windows {
                run.check(*after, *before, statuses).await;
            }
            assert_sound(&run.records).await;
            // Nothing is left of stretches without pins.
            let url = format!("sqlite://{}", run.world.path().display());
            let mut conn = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
            let empty = "SELECT COUNT(*) FROM counts WHERE width > 0 AND queued + pinning + pinned + failed = 0";
            let empty: i64 = sqlx::query_scalar(empty).fetch_one(&mut conn).await.unwrap();
            assert_eq!(empty, 0);
        });
    }
}
