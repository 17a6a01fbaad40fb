//! Replacing a pin: the new one comes, the old one goes, and what the old one held stays until the new one is pinned.

use floe_core::PinStatus;
use uuid::Uuid;

use super::add::{Add, Intake};
use super::row::{Stored, key};
use super::{change, keys};
use crate::writer::Tx;
use crate::{Error, PinRow, dags};

/// One transaction's part of [`crate::Records::replace_pin`]. `request` holds the one new spec.
pub(crate) async fn replace(tx: &mut Tx, request: &Add, old: Uuid) -> Result<PinRow, Error> {
    if let Some(answer) = keys::answered(tx, &[request]).await?.into_iter().next().flatten() {
        return answer?.pop().ok_or(Error::NotFound);
    }
    let old = change::load(&mut tx.conn, request.account, old).await?;
    // What the old pin was charged is charged on: its blocks stay. So the new row comes after the old has gone
    // from the sums, but with its charge as the floor.
    let inherited = change::keeps(&mut tx.conn, old.id).await?;
    change::delete(tx, &old, old.charged).await?;
    let mut intake = Intake::load(&mut tx.conn, &[request]).await?;
    let row = intake.take(tx, request, Some(&old))?.pop().ok_or(Error::NotFound)?;
    intake.write(tx).await?;
    inherit(tx, &old, &row, inherited).await?;
    let kept = keys::kept(request, std::slice::from_ref(&row))?;
    keys::remember(tx, kept.as_slice()).await?;
    Ok(row)
}

/// The new pin keeps what the last pinned request of the chain held, and what the replaced one was fetching:
/// so a chain of any length keeps two DAGs at most.
async fn inherit(tx: &mut Tx, old: &Stored, new: &PinRow, inherited: Vec<(Uuid, bool)>) -> Result<(), Error> {
    let mut wanted: Vec<(Uuid, bool)> = inherited.iter().copied().filter(|(_, solid)| *solid).collect();
    match old.status {
        PinStatus::Pinned => wanted = vec![(old.dag, true)],
        PinStatus::Queued | PinStatus::Pinning => wanted.push((old.dag, false)),
        PinStatus::Failed => {}
    }
    wanted.retain(|(dag, _)| *dag != new.dag);
    wanted.sort();
    wanted.dedup_by_key(|(dag, _)| *dag);
    for (dag, solid) in wanted {
        sqlx::query("INSERT INTO keeps (pin, dag, solid) VALUES ($1, $2, $3)")
            .bind(key(new.id.0))
            .bind(key(dag))
            .bind(i64::from(solid))
            .execute(&mut tx.conn)
            .await?;
        dags::hold(&mut tx.conn, dag).await?;
    }
    // Only now let go, so that nothing falls to zero in between.
    change::drop_keeps(tx, old.id).await?;
    if old.status != PinStatus::Failed {
        dags::let_go(tx, old.dag, 1).await?;
    }
    dags::stop_waiting(&mut tx.conn, old.account, old.dag).await?;
    dags::forget_if_gone(&mut tx.conn, old.dag).await
}
