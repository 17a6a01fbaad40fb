//! The DAGs that new pins join: those of one group are read at once, joined in memory, and written at once.
//!
//! What is read here stays true until it is written, because both are one transaction of the one writer.

use std::collections::{BTreeMap, BTreeSet};

use floe_core::Timestamp;
use sqlx::{QueryBuilder, SqliteConnection};
use uuid::Uuid;

use super::{COMPLETE, FRESH, IDLE, WAITING, digest};
use crate::pins::row::{db, key, num, uuid_of};
use crate::writer::Tx;
use crate::{DagProgress, Error, digests, limits};

/// What a new pin has joined.
pub(crate) struct Joined {
    pub(crate) dag: Uuid,
    /// For how long it was searched for in vain by now, in milliseconds.
    pub(crate) searched: i64,
    /// As it was before the pin came.
    pub(crate) progress: DagProgress,
}

/// The live DAGs of a group's roots, and what its pins change of them.
pub(crate) struct Joins {
    dags: BTreeMap<Vec<u8>, Dag>,
    waits: BTreeSet<(i64, Uuid)>,
    peers: BTreeSet<(String, Uuid)>,
}

struct Dag {
    id: Uuid,
    state: i64,
    blocks: i64,
    bytes: i64,
    attempts: i64,
    last_error: Option<String>,
    next_at: Option<i64>,
    searched: i64,
    /// Pins of this group.
    joined: i64,
    is_new: bool,
}

type Row = (Vec<u8>, Vec<u8>, i64, i64, i64, i64, Option<String>, Option<i64>, i64, Option<Vec<u8>>);

impl Joins {
    /// Reads the live DAGs of these roots.
    pub(crate) async fn load(conn: &mut SqliteConnection, roots: &BTreeSet<Vec<u8>>) -> Result<Self, Error> {
        let mut dags = BTreeMap::new();
        let roots: Vec<&Vec<u8>> = roots.iter().collect();
        for some in roots.chunks(limits::ROWS_PER_STATEMENT) {
            let mut sql = QueryBuilder::new(
                "SELECT root, id, state, blocks, bytes, attempts, last_error, next_at, searched, digest FROM dags \
                 WHERE state < 4 AND root IN (",
            );
            let mut list = sql.separated(", ");
            some.iter().for_each(|root| {
                list.push_bind(*root);
            });
            sql.push(")");
            let rows: Vec<Row> = sql.build_query_as().fetch_all(&mut *conn).await?;
            for (root, id, state, blocks, bytes, attempts, last_error, next_at, searched, stored) in rows {
                // What cannot be believed is charged when the pin is settled.
                let is_whole = state != COMPLETE
                    || digests::holds(stored.as_deref(), || digest(&id, &root, blocks, bytes));
                let (blocks, bytes) = if is_whole { (blocks, bytes) } else { (0, 0) };
                let id = uuid_of(id);
                let dag = Dag {
                    id,
                    state,
                    blocks,
                    bytes,
                    attempts,
                    last_error,
                    next_at,
                    searched,
                    joined: 0,
                    is_new: false,
                };
                dags.insert(root, dag);
            }
        }
        Ok(Self { dags, waits: BTreeSet::new(), peers: BTreeSet::new() })
    }

    /// What the DAG of this root is known to hold by now; nothing, if there is none yet.
    pub(crate) fn bytes(&self, root: &[u8]) -> i64 {
        self.dags.get(root).map_or(0, |dag| dag.bytes)
    }

    /// Joins the live DAG of this root, or begins one; takes a reference.
    pub(crate) fn join(&mut self, tx: &Tx, root: &[u8], account: i64, origins: &[String]) -> Joined {
        let dag = self.dags.entry(root.to_vec()).or_insert_with(|| Dag::begin(tx));
        let joined = Joined { dag: dag.id, searched: dag.searched, progress: dag.progress() };
        dag.joined += 1;
        // What an idle DAG held is held on, and the rest is fetched.
        if dag.state == IDLE {
            dag.state = WAITING;
        }
        if dag.state == WAITING {
            self.waits.insert((account, dag.id));
        }
        self.peers.extend(peers_of(origins).into_iter().map(|peer| (peer.to_owned(), dag.id)));
        joined
    }

    /// Writes what the pins have changed.
    pub(crate) async fn write(self, tx: &mut Tx) -> Result<(), Error> {
        let (begun, known): (Vec<_>, Vec<_>) =
            self.dags.iter().filter(|(_, dag)| dag.joined > 0).partition(|(_, dag)| dag.is_new);
        insert(tx, &begun).await?;
        hold(&mut tx.conn, known.iter().map(|(_, dag)| *dag)).await?;
        settle_later(tx, known.iter().map(|(_, dag)| *dag)).await?;
        let waits: Vec<_> = self.waits.into_iter().collect();
        let now = db(tx.now.as_millis());
        wait_until(&mut tx.conn, &waits, FRESH, now).await?;
        name_peers(&mut tx.conn, &self.peers.into_iter().collect::<Vec<_>>()).await
    }
}

impl Dag {
    fn begin(tx: &Tx) -> Self {
        let mut random = [0; 10];
        tx.entropy.fill(&mut random);
        Self {
            id: uuid::Builder::from_unix_timestamp_millis(tx.now.as_millis(), &random).into_uuid(),
            state: WAITING,
            blocks: 0,
            bytes: 0,
            attempts: 0,
            last_error: None,
            next_at: None,
            searched: 0,
            joined: 0,
            is_new: true,
        }
    }

    fn progress(&self) -> DagProgress {
        let next_at = self.next_at.filter(|_| self.state == WAITING);
        DagProgress {
            blocks: num(self.blocks),
            bytes: num(self.bytes),
            attempts: u32::try_from(self.attempts).unwrap_or(u32::MAX),
            last_error: self.last_error.clone(),
            next_attempt: next_at.map(|at| Timestamp::from_millis(num(at))),
            queue_position: None,
        }
    }
}

async fn insert(tx: &mut Tx, begun: &[(&Vec<u8>, &Dag)]) -> Result<(), Error> {
    let now = db(tx.now.as_millis());
    for some in begun.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new(
            "INSERT INTO dags (id, root, state, refs, blocks, bytes, attempts, progress_at, announced) ",
        );
        sql.push_values(some, |mut row, (root, dag)| {
            row.push_bind(key(dag.id)).push_bind(*root).push_bind(dag.state).push_bind(dag.joined);
            row.push("0, 0, 0").push_bind(now).push("0");
        });
        sql.build().execute(&mut tx.conn).await?;
    }
    Ok(())
}

/// Takes the references of the pins that joined. Nearly always one pin joins a DAG at a time, and then this is one
/// statement for all.
async fn hold(conn: &mut SqliteConnection, known: impl Iterator<Item = &Dag>) -> Result<(), Error> {
    let mut by_pins = BTreeMap::<i64, Vec<Uuid>>::new();
    known.for_each(|dag| by_pins.entry(dag.joined).or_default().push(dag.id));
    for (pins, mut dags) in by_pins {
        dags.sort();
        for some in dags.chunks(limits::ROWS_PER_STATEMENT) {
            let mut sql = QueryBuilder::new("UPDATE dags SET refs = refs + ");
            sql.push_bind(pins).push(", state = CASE state WHEN 3 THEN 0 ELSE state END WHERE id IN (");
            let mut list = sql.separated(", ");
            some.iter().for_each(|dag| {
                list.push_bind(key(*dag));
            });
            sql.push(")");
            sql.build().execute(&mut *conn).await?;
        }
    }
    Ok(())
}

/// Pins of complete DAGs are settled by the writer's follow-up.
async fn settle_later(tx: &mut Tx, known: impl Iterator<Item = &Dag>) -> Result<(), Error> {
    let mut complete: Vec<Uuid> = known.filter(|dag| dag.state == COMPLETE).map(|dag| dag.id).collect();
    complete.sort();
    tx.settle |= !complete.is_empty();
    for some in complete.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new("INSERT INTO settles (dag) ");
        sql.push_values(some, |mut row, dag| {
            row.push_bind(key(*dag));
        });
        sql.push(" ON CONFLICT (dag) DO NOTHING");
        sql.build().execute(&mut tx.conn).await?;
    }
    Ok(())
}

/// Queues DAGs for accounts, each pair once. A second pin must not send a DAG back in its queue.
pub(super) async fn wait_until(
    conn: &mut SqliteConnection,
    waits: &[(i64, Uuid)],
    lane: i64,
    next_at: i64,
) -> Result<(), Error> {
    for some in waits.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new("INSERT INTO waits (account, dag, lane, next_at) ");
        sql.push_values(some, |mut row, (account, dag)| {
            row.push_bind(*account).push_bind(key(*dag)).push_bind(lane).push_bind(next_at);
        });
        sql.push(
            " ON CONFLICT (account, dag) DO UPDATE SET lane = excluded.lane, next_at = excluded.next_at \
             WHERE waits.lane = 1",
        );
        sql.build().execute(&mut *conn).await?;
    }
    Ok(())
}

async fn name_peers(conn: &mut SqliteConnection, peers: &[(String, Uuid)]) -> Result<(), Error> {
    for some in peers.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new("INSERT INTO origin_peers (peer, dag) ");
        sql.push_values(some, |mut row, (peer, dag)| {
            row.push_bind(peer).push_bind(key(*dag));
        });
        sql.push(" ON CONFLICT (peer, dag) DO NOTHING");
        sql.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// The peers that origins name, each once: Kubo sends all addresses of one peer, and those that nobody else can dial
/// come first. Twenty *peers* are more than the twenty origins of the spec can name, so only a client that sends
/// more is cut, and for it the others are tried at the pin's next attempt all the same.
fn peers_of(origins: &[String]) -> Vec<&str> {
    let mut peers = Vec::new();
    for peer in origins.iter().filter_map(|origin| peer_of(origin)) {
        if peers.contains(&peer) {
            continue;
        }
        if peers.len() == limits::PEERS_PER_PIN {
            limits::hit("peers_per_pin");
            break;
        }
        peers.push(peer);
    }
    peers
}

/// The peer that a multiaddr ends at, as it is written. Origins are hints: what names none is no error.
fn peer_of(origin: &str) -> Option<&str> {
    let mut parts = origin.rsplit('/');
    let (peer, protocol) = (parts.next()?, parts.next()?);
    (matches!(protocol, "p2p" | "ipfs") && !peer.is_empty() && peer.len() <= 128).then_some(peer)
}

#[cfg(test)]
mod tests {
    use super::{peer_of, peers_of};
    use crate::limits::PEERS_PER_PIN;

    /// A client behind NAT sent thirty addresses of its own before the one of its relay: only the first twenty
    /// origins were looked at, so the relay's connection woke nothing.
    #[test]
    fn s7_a_peer_counts_once_however_many_addresses_it_has() {
        let own = (0..30).map(|port| format!("/ip4/10.0.0.1/tcp/{port}/p2p/own"));
        let origins: Vec<String> = own.chain(["/dns4/x/tcp/4001/p2p/relay".to_owned()]).collect();
        assert_eq!(peers_of(&origins), ["own", "relay"]);
        for peers in [PEERS_PER_PIN - 1, PEERS_PER_PIN, PEERS_PER_PIN + 1] {
            let origins: Vec<String> =
                (0..peers).map(|n| format!("/ip4/10.0.0.1/tcp/1/p2p/peer{n}")).collect();
            assert_eq!(peers_of(&origins).len(), peers.min(PEERS_PER_PIN));
        }
    }

    #[test]
    fn s7_the_peer_at_the_end_of_an_origin() {
        assert_eq!(peer_of("/ip4/1.2.3.4/tcp/4001/p2p/12D3Koo"), Some("12D3Koo"));
        assert_eq!(peer_of("/dns4/x/tcp/4001/p2p/relay/p2p-circuit/p2p/target"), Some("target"));
        for odd in ["", "/", "p2p", "/ip4/1.2.3.4/tcp/4001", "/p2p/", "no multiaddr"] {
            assert_eq!(peer_of(odd), None, "{odd}");
        }
    }
}
