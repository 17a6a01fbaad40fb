//! Digests of rows, which stand in for the checksums that SQLite's pages do not have.
//!
//! Each kind of row says in its own module what its digest speaks for ([`crate::pins`], [`crate::tokens`],
//! [`crate::accounts`], [`crate::dags`], [`crate::jobs`]; idempotency keys in `pins/keys.rs`), checks it where the row is read, and writes it with what it
//! speaks for. Sums and what is looked up by an index carry none: [`crate::verify`] compares them with what they are of.

use sqlx::SqliteConnection;

use crate::{Error, accounts, dags, jobs};

/// Sixteen bytes that name these fields of a row of this kind.
pub(crate) fn of<'a>(kind: &'static str, fields: impl IntoIterator<Item = Option<&'a [u8]>>) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key(kind);
    fields.into_iter().for_each(|field| add(&mut hash, field));
    finish(&hash)
}

/// A length and the bytes; a missing field differs from an empty one.
pub(crate) fn add(hash: &mut blake3::Hasher, field: Option<&[u8]>) {
    match field {
        None => hash.update(&[0]),
        Some(bytes) => hash.update(&[1]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
    };
}

/// What is stored.
pub(crate) fn finish(hash: &blake3::Hasher) -> Vec<u8> {
    hash.finalize().as_bytes()[..16].to_vec()
}

/// Whether a row is what it was when its digest was written. Rows that are older than their digest are believed.
pub(crate) fn holds(stored: Option<&[u8]>, digest: impl FnOnce() -> Vec<u8>) -> bool {
    stored.is_none_or(|stored| stored == digest())
}

/// Fills in the digests that rows lack which are older than the column: a part of the migration that adds it.
pub(crate) async fn fill(conn: &mut SqliteConnection) -> Result<(), Error> {
    accounts::seal_all(conn).await?;
    dags::seal_all(conn).await?;
    jobs::seal_all(conn).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn t25_fields_cannot_run_into_each_other(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            let digest = |fields: [&str; 2]| of("floe records test", fields.map(|field| Some(field.as_bytes())));
            prop_assert_eq!(digest([&a, &b]) == digest([&c, &d]), (a, b) == (c, d));
        }
    }

    #[test]
    fn a_missing_field_is_no_empty_one() {
        assert_ne!(of("floe records test", [None]), of("floe records test", [Some(&b""[..])]));
    }
}
