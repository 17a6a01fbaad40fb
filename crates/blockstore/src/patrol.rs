//! The scrub that nobody has to ask for: every pack is read within 30 days, at a pace that disturbs nobody.
//!
//! A round reads all packs in order of their numbers and ends by comparing the index with them. One begins every
//! [`limits::PATROL_EVERY`] and is paced to end within [`limits::PATROL_WITHIN`], so a pack is read again after at
//! most twice the former. The pace is what is left of the round by the time that is left for it: time that a node
//! was off, and packs that came, make the rest faster. Packs that compaction makes behind the position were
//! verified when they were copied and wait for the next round.
//!
//! When the round began and which pack is next is kept in the file `scrub`, written after each pack. A crash costs
//! reading one pack again; a file that is lost or damaged costs a round that begins early.

use std::path::Path;
use std::time::Duration;

use floe_core::Timestamp;

use crate::disk::{self, Disk};
use crate::error::Error;
use crate::limits;
use crate::scrub::Scrub;
use crate::shared::Shared;
use crate::store::offload;
use crate::{BlockStore, PatrolState, ScrubReport};

pub(crate) const FILE: &str = "scrub";
const FIRST_LINE: &str = "floe scrub 1";

impl BlockStore {
    /// Waits until a pack is due, reads it at the pace of the schedule, and says what is newly found in it; after
    /// the last pack of a round it compares index and packs and says everything that is known. To be called again
    /// and again. Dropping the future costs the pack that was being read.
    ///
    /// # Errors
    /// As [`BlockStore::scrub`]; the same pack is next.
    pub async fn patrol(&self) -> Result<ScrubReport, Error> {
        let shared = self.shared();
        let clock = &shared.clock;
        let (began, next) = self.round().await?;
        let mut scrub = Scrub::new(shared.clone());
        let pack = scrub.packs_from(next)?.first().copied();
        if let Some(pack) = pack {
            scrub.only_new();
            let scrub = walk(shared, scrub, pack, began).await?;
            shared.keep_patrol(|state| state.next = Some(pack + 1));
            return offload("floe-scrub", move || scrub.checked_report()).await;
        }
        let report = offload("floe-scrub", move || scrub.index().map(|()| scrub.report())).await?;
        let now = clock.now();
        shared.keep_patrol(|state| (state.next, state.finished) = (None, Some(now)));
        Ok(report)
    }

    /// How far the scrub in the background is.
    pub fn patrol_state(&self) -> PatrolState {
        *self.shared().patrol.lock()
    }

    /// The round that runs: when it began, and the pack that is next. Waits for the next one where none runs.
    async fn round(&self) -> Result<(Timestamp, u32), Error> {
        let shared = self.shared();
        loop {
            let (state, now) = (self.patrol_state(), shared.clock.now());
            if let (Some(began), Some(next)) = (state.began, state.next) {
                return Ok((began, next));
            }
            // A clock that was set back must not put the next round off for as long.
            let waited = state.began.map_or(limits::PATROL_EVERY, |began| {
                if began > now { limits::PATROL_EVERY } else { now.since(began) }
            });
            match limits::PATROL_EVERY.checked_sub(waited).filter(|left| !left.is_zero()) {
                Some(left) => shared.clock.sleep(left.min(limits::PATROL_LOOK)).await,
                None => shared.keep_patrol(|state| (state.began, state.next) = (Some(now), Some(0))),
            }
        }
    }
}

/// Reads one pack, slice by slice.
async fn walk(
    shared: &std::sync::Arc<Shared>,
    mut scrub: Scrub,
    pack: u32,
    began: Timestamp,
) -> Result<Scrub, Error> {
    let Some(mut walk) = scrub.begin(pack) else { return Ok(scrub) };
    let pace = pace(shared.held_from(pack), began, shared.clock.now());
    loop {
        let before = walk.at();
        let (s, w, done) = offload("floe-scrub", move || {
            let done = scrub.go_on(&mut walk, limits::PATROL_SLICE)?;
            Ok((scrub, walk, done))
        })
        .await?;
        (scrub, walk) = (s, w);
        let read = walk.at() - before;
        metrics::counter!("floe_scrub_bytes_total").increment(read);
        shared.clock.sleep(Duration::from_secs_f64(read as f64 / pace as f64)).await;
        if done {
            return Ok(scrub);
        }
    }
}

/// Bytes in a second, for `left` bytes of a round.
fn pace(left: u64, began: Timestamp, now: Timestamp) -> u64 {
    let time = limits::PATROL_WITHIN.saturating_sub(now.since(began)).max(limits::PATROL_LATE);
    (left / time.as_secs().max(1)).max(limits::PATROL_FLOOR)
}

impl Shared {
    /// Bytes of the packs from `pack` on.
    fn held_from(&self, pack: u32) -> u64 {
        self.tables.lock().packs.range(pack..).map(|(_, stat)| stat.held()).sum()
    }

    /// Changes the state, durably. Where that fails, the state in memory holds until the next start, which then
    /// reads something again.
    pub(crate) fn keep_patrol(&self, change: impl FnOnce(&mut PatrolState)) {
        let state = {
            let mut state = self.patrol.lock();
            change(&mut state);
            *state
        };
        if let Some(finished) = state.finished {
            metrics::gauge!("floe_scrub_finished_seconds").set(finished.as_millis() as f64 / 1000.0);
        }
        if let Err(e) = disk::write_small(&*self.disk, &self.layout.root, FILE, encode(state).as_bytes()) {
            tracing::warn!("cannot write {}: {e}", self.layout.root.join(FILE).display());
        }
    }
}

/// What the last run left.
pub(crate) fn load(disk: &dyn Disk, root: &Path) -> Result<PatrolState, Error> {
    let text = disk::read_small(disk, &root.join(FILE), 4096);
    let text = text.map_err(|e| Error::io(&root.join(FILE), "read", &e))?;
    Ok(text.and_then(|t| decode(std::str::from_utf8(&t).ok()?)).unwrap_or_default())
}

fn encode(state: PatrolState) -> String {
    let time = |t: Option<Timestamp>| t.map_or_else(|| "never".to_owned(), |t| t.as_millis().to_string());
    let next = state.next.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let body = format!(
        "{FIRST_LINE}\nbegan {}\nnext {next}\nfinished {}\n",
        time(state.began),
        time(state.finished)
    );
    format!("{body}crc {:08x}\n", crc32fast::hash(body.as_bytes()))
}

fn decode(text: &str) -> Option<PatrolState> {
    let (body, crc) = text.split_at_checked(text.rfind("crc ")?)?;
    if crc != format!("crc {:08x}\n", crc32fast::hash(body.as_bytes())) {
        return None;
    }
    let mut lines = body.strip_prefix(FIRST_LINE)?.trim().lines();
    let time = |text: &str| text.parse().ok().map(Timestamp::from_millis);
    let began = time(lines.next()?.strip_prefix("began ")?);
    let next = lines.next()?.strip_prefix("next ")?.parse().ok();
    let finished = time(lines.next()?.strip_prefix("finished ")?);
    Some(PatrolState { began, next, finished })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_back_and_any_flipped_bit_is_noticed() {
        let at = |n| Some(Timestamp::from_millis(n));
        for state in [
            PatrolState::default(),
            PatrolState { began: at(7), next: Some(0), finished: None },
            PatrolState { began: at(u64::MAX), next: Some(u32::MAX), finished: at(9) },
            PatrolState { began: at(1), next: None, finished: at(2) },
        ] {
            let text = encode(state);
            assert_eq!(decode(&text), Some(state), "{text}");
            for bit in 0..text.len() * 8 {
                let mut bytes = text.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(std::str::from_utf8(&bytes).ok().and_then(decode), None, "bit {bit} of {text}");
            }
        }
    }

    #[test]
    fn the_pace_is_what_is_left_by_the_time_that_is_left() {
        let day = Duration::from_secs(24 * 3600);
        let began = Timestamp::from_millis(5);
        let after = |days: u32| began.after(day * days);
        let days = limits::PATROL_WITHIN.as_secs() / day.as_secs();
        // A store of 100 TiB.
        let all = 100 << 40;
        assert_eq!(pace(all, began, began), all / limits::PATROL_WITHIN.as_secs());
        assert_eq!(pace(all / 2, began, after(days as u32 / 2)), all / limits::PATROL_WITHIN.as_secs());
        // The node was off for most of the round, and for longer than it.
        let late = all / limits::PATROL_LATE.as_secs();
        assert_eq!((pace(all, began, after(days as u32)), pace(all, began, after(400))), (late, late));
        // A small one.
        assert_eq!(pace(1 << 30, began, began), limits::PATROL_FLOOR);
        assert!(limits::PATROL_EVERY + limits::PATROL_WITHIN <= 30 * day);
    }
}
