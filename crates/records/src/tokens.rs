//! Tokens: what proves an account on each request (threat T24).
//!
//! A token is `floe_`, 256 random bits and a checksum of 24, in lower-case base32. Only its hash is stored: the
//! secret has 256 bits of entropy, so a fast hash is enough and a stolen database gives no token away. It is found
//! by a prefix of the hash, which an attacker cannot steer, and compared in constant time. Those that were let in
//! lately are known without a look ([`crate::known`]); a revocation holds from its answer on.
//!
//! The checksum lets a mistyped token be refused without the database, and lets secret scanners be sure.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use floe_core::{AccountId, Timestamp, TokenId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use subtle::ConstantTimeEq;

use crate::pins::row::{db, intact, num};
use crate::writer::Tx;
use crate::{Error, Grant, Principal, Scope, Token, accounts, digests, jobs, limits};

const PREFIX: &str = "floe_";
const SECRET_BYTES: usize = 32;
/// 35 bytes are 56 characters of base32, without a rest.
const CHECK_BYTES: usize = 3;

/// Makes a token for the account of that name; one of the node's own also where it has too many.
pub(crate) async fn create(
    tx: &mut Tx,
    account: &str,
    grant: &Grant,
    own: bool,
) -> Result<(Token, String), Error> {
    let account = accounts::by_name(&mut tx.conn, account).await?.ok_or(Error::NotFound)?;
    tx.access_changed = true;
    forget_ended(tx, account.id).await?;
    if !own && live(tx, account.id).await? >= limits::TOKENS_PER_ACCOUNT {
        limits::hit("tokens_per_account");
        return Err(Error::Conflict(format!(
            "an account has at most {} tokens: revoke one",
            limits::TOKENS_PER_ACCOUNT
        )));
    }
    let mut random = [0; SECRET_BYTES];
    tx.entropy.fill(&mut random);
    let secret = encode(&random);
    let mut scopes = grant.scopes.clone();
    scopes.sort();
    scopes.dedup();
    let token = Token {
        id: TokenId(jobs::next_id(&mut tx.conn, "token").await?),
        account: account.id,
        scopes,
        created: tx.now,
        expires: grant.expires_in.map(|life| tx.now.after(life)),
        revoked: false,
        policy: grant.policy.clone(),
    };
    insert(&mut tx.conn, &token, &hash(&secret)).await?;
    fail::fail_point!("token.created");
    Ok((token, secret))
}

/// Tokens of an account that let somebody in.
async fn live(tx: &mut Tx, account: AccountId) -> Result<i64, Error> {
    let live = sqlx::query_scalar(
        "SELECT COUNT(*) FROM tokens WHERE account = $1 AND revoked = 0 AND (expires IS NULL OR expires > $2)",
    )
    .bind(account.0)
    .bind(db(tx.now.as_millis()))
    .fetch_one(&mut tx.conn)
    .await?;
    Ok(live)
}

/// Deletes the oldest tokens that were revoked or have expired, so that a client that makes one a day does not fill
/// the table.
async fn forget_ended(tx: &mut Tx, account: AccountId) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM tokens WHERE account = $1 AND (revoked = 1 OR expires <= $2) AND id NOT IN \
         (SELECT id FROM tokens WHERE account = $1 AND (revoked = 1 OR expires <= $2) ORDER BY id DESC LIMIT $3)",
    )
    .bind(account.0)
    .bind(db(tx.now.as_millis()))
    .bind(limits::TOKENS_ENDED_KEPT)
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

async fn insert(conn: &mut SqliteConnection, token: &Token, hash: &[u8; 32]) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO tokens (id, account, lookup, hash, scopes, created, expires, revoked, policy, digest) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9)",
    )
    .bind(token.id.0)
    .bind(token.account.0)
    .bind(lookup(hash))
    .bind(hash.to_vec())
    .bind(scope_text(&token.scopes)?)
    .bind(db(token.created.as_millis()))
    .bind(token.expires.map(|at| db(at.as_millis())))
    .bind(&token.policy)
    .bind(digest(token, hash)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Revokes a token. Twice is once. A damaged row is deleted: nothing in it can be believed, and it lets nobody in.
pub(crate) async fn revoke(tx: &mut Tx, id: TokenId) -> Result<(), Error> {
    tx.access_changed = true;
    let row =
        sqlx::query("SELECT * FROM tokens WHERE id = $1").bind(id.0).fetch_optional(&mut tx.conn).await?;
    match read(&row.ok_or(Error::NotFound)?) {
        Ok((mut token, hash)) => {
            token.revoked = true;
            sqlx::query("UPDATE tokens SET revoked = 1, digest = $2 WHERE id = $1")
                .bind(id.0)
                .bind(digest(&token, &hash)?)
                .execute(&mut tx.conn)
                .await?;
        }
        Err(damaged) => {
            tracing::warn!(token = id.0, "{damaged}: its row is deleted");
            sqlx::query("DELETE FROM tokens WHERE id = $1").bind(id.0).execute(&mut tx.conn).await?;
        }
    }
    fail::fail_point!("token.revoked");
    Ok(())
}

/// Who was let in, and until when.
#[derive(Debug, Clone)]
pub(crate) struct Let {
    pub(crate) who: Principal,
    pub(crate) expires: Option<Timestamp>,
}

impl Let {
    /// Whether it was for the token of the offered hash, and still is.
    pub(crate) fn holds(&self, stored: &[u8; 32], offered: &[u8; 32], now: Timestamp) -> bool {
        same(stored, offered) && self.expires.is_none_or(|at| at > now)
    }
}

/// The hash of a token; `None` for what is none.
pub(crate) fn hash_of(secret: &str) -> Option<[u8; 32]> {
    is_well_formed(secret).then(|| hash(secret))
}

/// Who has the token of this hash; `None` for unknown, expired, revoked.
pub(crate) async fn authenticate(
    conn: &mut SqliteConnection,
    now: Timestamp,
    hash: &[u8; 32],
) -> Result<Option<Let>, Error> {
    let rows = sqlx::query("SELECT * FROM tokens WHERE lookup = $1")
        .bind(lookup(hash))
        .fetch_all(&mut *conn)
        .await?;
    for row in &rows {
        let (token, stored) = read(row)?;
        if !same(&stored, hash) || token.revoked || token.expires.is_some_and(|at| at <= now) {
            continue;
        }
        let Some(account) = accounts::by_id(conn, token.account.0).await? else { return Ok(None) };
        let who = Principal { account, scopes: token.scopes, token: token.id, policy: token.policy };
        return Ok(Some(Let { who, expires: token.expires }));
    }
    Ok(None)
}

/// Whether a token that was let in still would be: neither revoked nor expired, and its account not suspended.
pub(crate) async fn holds(conn: &mut SqliteConnection, now: Timestamp, id: TokenId) -> Result<bool, Error> {
    let row = sqlx::query("SELECT * FROM tokens WHERE id = $1").bind(id.0).fetch_optional(&mut *conn).await?;
    let Some(row) = row else { return Ok(false) };
    let (token, _) = read(&row)?;
    if token.revoked || token.expires.is_some_and(|at| at <= now) {
        return Ok(false);
    }
    Ok(accounts::by_id(conn, token.account.0).await?.is_some_and(|account| !account.suspended))
}

/// Takes as long wherever two hashes differ: how long it took says nothing about the stored one.
fn same(stored: &[u8; 32], offered: &[u8; 32]) -> bool {
    stored.ct_eq(offered).into()
}

/// All tokens, or those of one account. Damaged rows are left out, and named in the log.
pub(crate) async fn all(conn: &mut SqliteConnection, account: Option<&str>) -> Result<Vec<Token>, Error> {
    let account = match account {
        Some(name) => Some(accounts::by_name(conn, name).await?.ok_or(Error::NotFound)?.id.0),
        None => None,
    };
    let rows = sqlx::query("SELECT * FROM tokens WHERE account = COALESCE($1, account) ORDER BY id")
        .bind(account)
        .fetch_all(conn)
        .await?;
    Ok(rows.iter().filter_map(|row| intact(read(row))).map(|(token, _)| token).collect())
}

/// Reads a row and checks its digest.
pub(crate) fn read(row: &SqliteRow) -> Result<(Token, [u8; 32]), Error> {
    let id: i64 = row.try_get("id")?;
    let damaged = || {
        Error::Damaged(format!(
            "the row of token {id} is damaged: `floe token revoke {id}`, and make another"
        ))
    };
    let parts = || -> Option<(Token, [u8; 32], Vec<u8>)> {
        let scopes: String = row.try_get("scopes").ok()?;
        let token = Token {
            id: TokenId(id),
            account: AccountId(row.try_get("account").ok()?),
            scopes: serde_json::from_str(&scopes).ok()?,
            created: Timestamp::from_millis(num(row.try_get("created").ok()?)),
            expires: row.try_get::<Option<i64>, _>("expires").ok()?.map(|at| Timestamp::from_millis(num(at))),
            revoked: row.try_get::<i64, _>("revoked").ok()? != 0,
            policy: row.try_get("policy").ok()?,
        };
        let hash: Vec<u8> = row.try_get("hash").ok()?;
        Some((token, hash.try_into().ok()?, row.try_get("digest").ok()?))
    };
    let (token, hash, stored) = parts().ok_or_else(damaged)?;
    if digest(&token, &hash)? == stored { Ok((token, hash)) } else { Err(damaged()) }
}

fn digest(token: &Token, hash: &[u8; 32]) -> Result<Vec<u8>, Error> {
    let expires = token.expires.map(|at| at.as_millis().to_le_bytes());
    let scopes = scope_text(&token.scopes)?;
    let fields: [Option<&[u8]>; 7] = [
        Some(&token.id.0.to_le_bytes()),
        Some(&token.account.0.to_le_bytes()),
        Some(hash),
        Some(scopes.as_bytes()),
        Some(&token.created.as_millis().to_le_bytes()),
        expires.as_ref().map(<[u8; 8]>::as_slice),
        Some(&[u8::from(token.revoked)]),
    ];
    // Rows that are older than this column have none of it, and keep their digest.
    let policy = token.policy.as_deref().map(|policy| Some(policy.as_bytes()));
    Ok(digests::of("floe records 1 token row", fields.into_iter().chain(policy)))
}

fn scope_text(scopes: &[Scope]) -> Result<String, Error> {
    serde_json::to_string(scopes).map_err(|error| Error::Sql(error.to_string()))
}

fn encode(random: &[u8; SECRET_BYTES]) -> String {
    let mut bytes = random.to_vec();
    bytes.extend_from_slice(&check(random));
    format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn check(random: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key("floe token 1 checksum", random);
    [hash[0], hash[1], hash[2]]
}

fn is_well_formed(secret: &str) -> bool {
    let decoded = secret
        .strip_prefix(PREFIX)
        .filter(|text| text.len() == 56 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
        .and_then(|text| BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok());
    decoded.is_some_and(|bytes| {
        bytes.len() == SECRET_BYTES + CHECK_BYTES && check(&bytes[..SECRET_BYTES]) == bytes[SECRET_BYTES..]
    })
}

fn hash(secret: &str) -> [u8; 32] {
    blake3::derive_key("floe token 1 stored hash", secret.as_bytes())
}

fn lookup(hash: &[u8; 32]) -> String {
    HEXLOWER.encode(&hash[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Welch's t of how long `compare` takes for hashes that differ in their first and in their last byte, over so many
    /// samples taken in random turns. The slowest tenth is left out: interrupts, not the comparison.
    #[expect(clippy::disallowed_methods, reason = "it measures how long something takes")]
    fn welch(compare: impl Fn(&[u8; 32], &[u8; 32]) -> bool, seed: u64, samples: usize) -> f64 {
        use std::hint::black_box;
        let stored = [0x5a; 32];
        let mut offered = [stored; 2];
        offered[0][0] ^= 1;
        offered[1][31] ^= 1;
        let mut turns = vec![0; samples];
        floe_core::ports::Entropy::fill(&floe_core::Seeded::new(seed), &mut turns);
        let mut samples: Vec<(f64, usize)> = Vec::with_capacity(turns.len());
        for turn in turns {
            let which = usize::from(turn & 1);
            let start = std::time::Instant::now();
            for _ in 0..16 {
                black_box(compare(black_box(&stored), black_box(&offered[which])));
            }
            samples.push((start.elapsed().as_nanos() as f64, which));
        }
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        samples.truncate(samples.len() * 9 / 10);
        let of = |which: usize| {
            let times: Vec<f64> = samples.iter().filter(|s| s.1 == which).map(|s| s.0).collect();
            let n = times.len() as f64;
            let mean = times.iter().sum::<f64>() / n;
            let variance = times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0);
            (mean, variance / n)
        };
        let ((early, early_error), (late, late_error)) = (of(0), of(1));
        (late - early).abs() / (early_error + late_error).sqrt().max(f64::MIN_POSITIVE)
    }

    /// The bound is generous and the quietest of five tries counts, because the machine is not ours alone; a
    /// comparison that stops at the first difference is far beyond it in each try. `FLOE_TEST_TIMING=1` holds a quiet
    /// machine to T24's own figures: t under 4.5 over a million samples.
    #[test]
    fn t24_how_long_a_comparison_takes_does_not_say_where_hashes_differ() {
        let quiet = std::env::var_os("FLOE_TEST_TIMING").is_some();
        let (bound, samples) = if quiet { (4.5, 1_000_000) } else { (20.0, 100_000) };
        let quietest = (0..5).map(|seed| welch(same, seed, samples)).fold(f64::MAX, f64::min);
        assert!(quietest < bound, "t = {quietest}");
        let stops = |a: &[u8; 32], b: &[u8; 32]| {
            a.iter().zip(b).all(|(x, y)| std::hint::black_box(x) == std::hint::black_box(y))
        };
        let leak = welch(stops, 9, samples);
        assert!(leak > bound, "the measurement would not see a leak: t = {leak}");
    }

    proptest! {
        #[test]
        fn t24_tokens_are_well_formed_and_their_checksum_holds(random: [u8; 32], at in 5_usize..61, to in "[a-z2-7]") {
            let secret = encode(&random);
            prop_assert_eq!(secret.len(), 61);
            prop_assert!(is_well_formed(&secret));
            let mut typo = secret.clone();
            typo.replace_range(at..=at, &to);
            prop_assert!(typo == secret || !is_well_formed(&typo));
        }

        #[test]
        fn t24_any_text_is_refused_without_a_panic(text in "\\PC*") {
            prop_assert!(!is_well_formed(&text));
        }
    }
}
