//! What each aggregate holds, block by block: the plan of its CAR, and the cold index.
//!
//! The sections of a segment are kept in their order, [`limits::SECTIONS_PER_CHUNK`] to a row. From these rows the CAR of a
//! piece is laid out whenever somebody reads it, and by `cold_index` a block is found in them. They outlive the blocks: what
//! is gone from here is found in its piece.
//!
//! ```text
//! row       section*
//! section   CID | bytes of data u32
//! ```
//! Numbers are little endian. The index has the first eight bytes of a digest and not all of it: the row that it names has
//! the rest, and a row costs a third.

use floe_core::{Cid, Multihash, cid};
use sqlx::{QueryBuilder, Row as _, SqliteConnection};
use uuid::Uuid;

use crate::pins::row::{db, digest_field, key, num, uuid_of};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// A section of a CAR: a block and its bytes of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionRow {
    /// Which block.
    pub cid: Cid,
    /// Bytes of its data.
    pub data_bytes: u32,
}

/// Where a block is in the CAR of an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdPlace {
    /// The aggregate.
    pub aggregate: Uuid,
    /// The CID that its section has there.
    pub cid: Cid,
    /// Where its data begins, in bytes of the CAR.
    pub offset: u64,
    /// Bytes of its data.
    pub length: u32,
}

impl SectionRow {
    /// Bytes of its section, with the length before it.
    fn len(&self) -> u64 {
        self.head() + u64::from(self.data_bytes)
    }

    /// Bytes before its data: the length in front, as a varint, and the CID.
    fn head(&self) -> u64 {
        let section = self.cid.encoded_len() as u64 + u64::from(self.data_bytes);
        u64::from(section.max(1).ilog2() / 7 + 1) + self.cid.encoded_len() as u64
    }
}

fn encode(sections: &[SectionRow]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40 * sections.len());
    for section in sections {
        bytes.extend_from_slice(&section.cid.to_bytes());
        bytes.extend_from_slice(&section.data_bytes.to_le_bytes());
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Vec<SectionRow>> {
    let mut sections = Vec::new();
    while !bytes.is_empty() {
        let cid = Cid::read_bytes(&mut bytes).ok()?;
        let (size, rest) = bytes.split_first_chunk::<4>()?;
        cid::check(cid.hash()).ok()?;
        sections.push(SectionRow { cid, data_bytes: u32::from_le_bytes(*size) });
        bytes = rest;
    }
    Some(sections)
}

/// The row's name and bytes; not where its segment lies, which is settled later.
fn digest(aggregate: Uuid, n: u32, chunk: u32, at: u64, sections: &[u8]) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 aggregate sections");
    digest_field(&mut hash, Some(aggregate.as_bytes()));
    digest_field(&mut hash, Some(&n.to_le_bytes()));
    digest_field(&mut hash, Some(&chunk.to_le_bytes()));
    digest_field(&mut hash, Some(&at.to_le_bytes()));
    digest_field(&mut hash, Some(sections));
    hash.finalize().as_bytes()[..16].to_vec()
}

/// The first eight bytes of a digest.
fn short(hash: &Multihash) -> i64 {
    let mut first = [0; 8];
    let digest = &hash.digest()[..hash.digest().len().min(8)];
    first[..digest.len()].copy_from_slice(digest);
    i64::from_le_bytes(first)
}

/// One transaction's part of [`Records::put_sections`].
async fn put(
    tx: &mut Tx,
    id: Uuid,
    (n, chunk): (u32, u32),
    at: u64,
    sections: &[SectionRow],
) -> Result<(), Error> {
    let row = super::aggregates::load(&mut tx.conn, id).await?;
    if row.state != floe_core::AggregateState::Open {
        return Err(Error::Conflict(format!("aggregate {id} is packed: its sections stay")));
    }
    let bytes = encode(sections);
    sqlx::query(
        "INSERT INTO aggregate_sections (aggregate, n, chunk, at, sections, digest) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(key(id))
    .bind(i64::from(n))
    .bind(i64::from(chunk))
    .bind(db(at))
    .bind(&bytes)
    .bind(digest(id, n, chunk, at, &bytes))
    .execute(&mut tx.conn)
    .await?;
    let mut keys: Vec<i64> = sections.iter().map(|section| short(section.cid.hash())).collect();
    keys.sort_unstable();
    keys.dedup();
    for some in keys.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new("INSERT INTO cold_index (key, nr, n, chunk) ");
        sql.push_values(some, |mut index, key| {
            index.push_bind(*key).push_bind(db(row.nr)).push_bind(i64::from(n)).push_bind(i64::from(chunk));
        });
        sql.build().execute(&mut tx.conn).await?;
    }
    fail::fail_point!("agg.sections");
    Ok(())
}

/// Takes back the last row of a segment's sections, with what the index has of it. Says whether there was one.
async fn take_back(tx: &mut Tx, id: Uuid, n: u32) -> Result<bool, Error> {
    let row = super::aggregates::load(&mut tx.conn, id).await?;
    if row.state != floe_core::AggregateState::Open {
        return Err(Error::Conflict(format!("aggregate {id} is packed: its sections stay")));
    }
    let last: Option<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT chunk, sections FROM aggregate_sections WHERE aggregate = $1 AND n = $2 ORDER BY chunk DESC LIMIT 1",
    )
    .bind(key(id))
    .bind(i64::from(n))
    .fetch_optional(&mut tx.conn)
    .await?;
    let Some((chunk, sections)) = last else { return Ok(false) };
    // Where the row is damaged, what is left in the index names a row that is not there, and is passed over.
    for section in decode(&sections).unwrap_or_default() {
        sqlx::query("DELETE FROM cold_index WHERE key = $1 AND nr = $2 AND n = $3 AND chunk = $4")
            .bind(short(section.cid.hash()))
            .bind(db(row.nr))
            .bind(i64::from(n))
            .bind(chunk)
            .execute(&mut tx.conn)
            .await?;
    }
    sqlx::query("DELETE FROM aggregate_sections WHERE aggregate = $1 AND n = $2 AND chunk = $3")
        .bind(key(id))
        .bind(i64::from(n))
        .bind(chunk)
        .execute(&mut tx.conn)
        .await?;
    Ok(true)
}

/// One row of sections, and where its first begins among those of its segment.
type Chunk = (u64, Vec<SectionRow>);

async fn chunk(conn: &mut SqliteConnection, id: Uuid, n: u32, chunk: u32) -> Result<Option<Chunk>, Error> {
    let row = sqlx::query(
        "SELECT at, sections, digest FROM aggregate_sections WHERE aggregate = $1 AND n = $2 AND chunk = $3",
    )
    .bind(key(id))
    .bind(i64::from(n))
    .bind(i64::from(chunk))
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (at, bytes): (i64, Vec<u8>) = (row.try_get("at")?, row.try_get("sections")?);
    let holds = row.try_get::<Vec<u8>, _>("digest")? == digest(id, n, chunk, num(at), &bytes);
    let sections = holds.then(|| decode(&bytes)).flatten().ok_or_else(|| {
        Error::Damaged(format!(
            "the sections {chunk} of segment {n} of aggregate {id} are damaged: restore them from a backup"
        ))
    })?;
    Ok(Some((num(at), sections)))
}

impl Records {
    /// Writes the next sections of a segment of an aggregate that is being packed: `chunk` counts these calls from 0,
    /// `at` the bytes of the sections before. At most [`limits::SECTIONS_PER_CHUNK`].
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where it is packed, or has that row.
    pub async fn put_sections(
        &self,
        id: Uuid,
        (n, chunk): (u32, u32),
        at: u64,
        sections: Vec<SectionRow>,
    ) -> Result<(), Error> {
        if sections.len() > limits::SECTIONS_PER_CHUNK {
            return Err(Error::Conflict(format!("{} sections for one row", sections.len())));
        }
        let sections: std::sync::Arc<[SectionRow]> = sections.into();
        self.write(Urgency::Frees, move |tx| {
            let sections = std::sync::Arc::clone(&sections);
            Box::pin(async move { put(tx, id, (n, chunk), at, &sections).await })
        })
        .await
    }

    /// Removes the sections of a segment of an aggregate that is being packed, a row at a time.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where it is packed.
    pub async fn clear_sections(&self, id: Uuid, n: u32) -> Result<(), Error> {
        while self.write(Urgency::Frees, move |tx| Box::pin(take_back(tx, id, n))).await? {}
        Ok(())
    }

    /// A row of the sections of a segment; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub async fn sections(&self, id: Uuid, n: u32, chunk_: u32) -> Result<Option<Vec<SectionRow>>, Error> {
        let found = chunk(&mut *self.reader().await?, id, n, chunk_).await?;
        Ok(found.map(|(_, sections)| sections))
    }

    /// Where a block is in pieces: the cold index. At most `most` places, of the newest aggregates first; also of those that
    /// are not stored.
    ///
    /// # Errors
    /// Those of the database. What is damaged is left out, and named in the log.
    pub async fn cold_places(&self, hash: &Multihash, most: usize) -> Result<Vec<ColdPlace>, Error> {
        let mut conn = self.reader().await?;
        let rows: Vec<(Vec<u8>, i64, i64, i64)> = sqlx::query_as(
            "SELECT a.id, i.n, i.chunk, s.start FROM cold_index i JOIN aggregates a ON a.nr = i.nr \
             JOIN aggregate_segments s ON s.aggregate = a.id AND s.n = i.n WHERE i.key = $1 AND a.piece IS NOT NULL \
             ORDER BY i.nr DESC, i.n DESC, i.chunk DESC LIMIT $2",
        )
        .bind(short(hash))
        .bind(db(most as u64))
        .fetch_all(&mut *conn)
        .await?;
        let mut places = Vec::new();
        for (id, n, at_chunk, start) in rows {
            let (id, n) = (uuid_of(id), u32::try_from(n).unwrap_or(u32::MAX));
            let read = chunk(&mut conn, id, n, u32::try_from(at_chunk).unwrap_or(u32::MAX)).await;
            let Some(Some((at, sections))) = crate::pins::row::intact(read) else { continue };
            let mut offset = num(start) + at;
            for section in sections {
                if section.cid.hash() == hash {
                    places.push(ColdPlace {
                        aggregate: id,
                        cid: section.cid,
                        offset: offset + section.head(),
                        length: section.data_bytes,
                    });
                }
                offset += section.len();
            }
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use floe_core::Block;

    use super::*;

    fn section(codec: u64, data: &[u8]) -> SectionRow {
        let block = Block::of(codec, data.to_vec().into()).unwrap();
        SectionRow { cid: *block.cid(), data_bytes: data.len() as u32 }
    }

    #[test]
    fn sections_come_back_and_what_is_cut_off_does_not() {
        let sections = [section(0x55, b"a"), section(0x70, b"bc"), section(0x71, &[7; 300])];
        let bytes = encode(&sections);
        assert_eq!(decode(&bytes).unwrap(), sections);
        assert_eq!(decode(&[]).unwrap(), []);
        for end in (1..bytes.len()).filter(|end| end % 40 != 0) {
            assert_eq!(decode(&bytes[..end]), None, "{end}");
        }
    }

    /// What the layout of a CAR gives: the length before a section takes a byte more from 128 bytes on.
    #[test]
    fn the_head_of_a_section_is_its_length_and_its_cid() {
        for (data, head) in [(0, 37), (91, 37), (92, 38), (16_347, 38), (16_348, 39)] {
            let section = SectionRow { data_bytes: data, ..section(0x55, b"") };
            assert_eq!(section.head(), head, "{data}");
        }
    }
}
