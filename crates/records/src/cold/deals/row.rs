//! A deal's row: its columns, its digest, and the way to and from [`DealRow`].

use floe_core::cold::{DealTerms, DealUuid, Fault, SignedDeal};
use floe_core::{ActorId, AttoFil, Cid, DealState, Epoch, FailureCode, PaddedSize, PieceCid, Timestamp, cid};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{NewDeal, id_of};
use crate::Error;
use crate::pins::row::{db, digest_field, key, num, uuid};
use crate::writer::Tx;

/// All columns of `deals d`, for [`DealRow::read`].
macro_rules! deal_columns {
    () => {
        "d.id, d.aggregate, d.slot, d.generation, d.provider, d.owner, d.state, d.policy, d.piece, d.size, \
         d.car_bytes, d.root, d.ipni, d.price, d.collateral, d.cost, d.chosen_epoch, d.start_epoch, d.end_epoch, \
         d.signed, d.signed_cid, d.deal_id, d.sector, d.faulty, d.locked, d.forgiven, d.missing_since, d.code, d.error, \
         d.created, d.sent, d.sent_epoch, d.updated, d.digest, d.tries, d.due, d.watch, d.word_status, d.word_error, \
         d.word_deal_id, d.word_received, d.word_at, d.pulled, d.pulled_whole"
    };
}
pub(in crate::cold) use deal_columns;

/// The same with where they are; what follows says which rows.
pub(super) const SELECT: &str = concat!("SELECT ", deal_columns!(), " FROM deals d ");

/// What a provider last said of a deal: words, and nothing is decided on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Its state in the provider's words.
    pub status: String,
    /// What went wrong, by its word.
    pub error: Option<String>,
    /// The number on chain that it names.
    pub deal_id: Option<u64>,
    /// Bytes that it says it has.
    pub received: u64,
    /// When it said so.
    pub at: Timestamp,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealRow {
    /// Its id.
    pub uuid: DealUuid,
    /// What it stores.
    pub aggregate: Uuid,
    /// For which of the aggregate's replicas; one past them is a spare.
    pub slot: u32,
    /// Which attempt for that slot.
    pub generation: u32,
    /// With whom.
    pub provider: ActorId,
    /// Who owned the provider when it was chosen.
    pub owner: ActorId,
    /// How far it is.
    pub state: DealState,
    /// The policy's name.
    pub policy: String,
    /// The piece.
    pub piece: PieceCid,
    /// Its size.
    pub size: PaddedSize,
    /// Bytes of the CAR.
    pub car_bytes: u64,
    /// Its root.
    pub root: Cid,
    /// Whether indexers hear of it.
    pub ipni: bool,
    /// For the whole piece and each epoch.
    pub price: AttoFil,
    /// The provider's collateral.
    pub collateral: AttoFil,
    /// Price x duration.
    pub cost: AttoFil,
    /// The head when the provider was chosen.
    pub chosen_epoch: Epoch,
    /// First epoch.
    pub start: Epoch,
    /// Last epoch.
    pub end: Epoch,
    /// The bytes that were signed, once they were.
    pub signed: Option<SignedDeal>,
    /// Its number on chain, once it is published at finality.
    pub deal_id: Option<u64>,
    /// Its sector, once it is active.
    pub sector: Option<u64>,
    /// Its sector failed its last proof.
    pub is_faulty: bool,
    /// It failed after it was published, and the market still locks its price.
    pub is_locked: bool,
    /// The operator lets its provider be asked for this piece again.
    pub is_forgiven: bool,
    /// The final epoch at which the chain first had no such deal.
    pub missing_since: Option<Epoch>,
    /// What went wrong.
    pub error: Option<Fault>,
    /// When the provider was chosen.
    pub created: Timestamp,
    /// When the bytes went out for the first time, and the head then.
    pub sent: Option<(Timestamp, Epoch)>,
    /// When its state last changed.
    pub updated: Timestamp,
    /// How often the bytes went out.
    pub tries: u32,
    /// When it is sent, or asked after, again.
    pub due: Timestamp,
    /// The provider's last word.
    pub word: Option<Word>,
    /// How far the provider has pulled, by our own log.
    pub pulled: u64,
    /// Whether it has pulled all.
    pub is_pulled: bool,
}

impl DealRow {
    /// The row of an attempt that begins.
    pub fn chosen(now: Timestamp, new: &NewDeal, uuid: DealUuid, generation: u32, cost: AttoFil) -> Self {
        Self {
            uuid,
            aggregate: new.aggregate,
            slot: new.slot,
            generation,
            provider: new.provider,
            owner: new.owner,
            state: DealState::Chosen,
            policy: new.policy.clone(),
            piece: new.piece,
            size: new.size,
            car_bytes: new.car_bytes,
            root: new.root,
            ipni: new.ipni,
            price: new.price,
            collateral: new.collateral,
            cost,
            chosen_epoch: new.head,
            start: new.start,
            end: new.end,
            signed: None,
            deal_id: None,
            sector: None,
            is_faulty: false,
            is_locked: false,
            is_forgiven: false,
            missing_since: None,
            error: None,
            created: now,
            sent: None,
            updated: now,
            tries: 0,
            due: now,
            word: None,
            pulled: 0,
            is_pulled: false,
        }
    }

    /// What the proposal is built from.
    pub fn terms(&self, url: String) -> DealTerms {
        DealTerms {
            uuid: self.uuid,
            provider: self.provider,
            piece: self.piece,
            size: self.size,
            car_bytes: self.car_bytes,
            root: self.root,
            url,
            start: self.start,
            end: self.end,
            price_per_epoch: self.price,
            collateral: self.collateral,
            ipni: self.ipni,
        }
    }

    /// Epochs that it runs.
    pub fn duration(&self) -> u64 {
        self.end.since(self.start)
    }

    pub(in crate::cold) fn read(row: &SqliteRow) -> Result<Self, Error> {
        let id = uuid(row, "id")?;
        let damaged = || Error::Damaged(format!("the row of deal {id} is damaged: restore it from a backup"));
        let deal = Self::parts(row, DealUuid(id)).map_err(|_| damaged())?.ok_or_else(damaged)?;
        let kept: Vec<u8> = row.try_get("digest")?;
        if deal.digest() == kept { Ok(deal) } else { Err(damaged()) }
    }

    /// `None` for what does not parse.
    fn parts(row: &SqliteRow, uuid: DealUuid) -> Result<Option<Self>, sqlx::Error> {
        let number = |column: &str| row.try_get::<i64, _>(column);
        let maybe = |column: &str| row.try_get::<Option<i64>, _>(column);
        let text = |column: &str| row.try_get::<Option<String>, _>(column);
        let bytes = |column: &str| row.try_get::<Option<Vec<u8>>, _>(column);
        let amount = |column: &str| text(column).map(|t| t.and_then(|t| t.parse::<AttoFil>().ok()));
        let at = |ms: i64| Timestamp::from_millis(num(ms));
        let piece = bytes("piece")?.and_then(|b| b.try_into().ok()).and_then(PieceCid::from_commitment);
        let fixed = (|| {
            Ok::<_, sqlx::Error>((
                text("state")?.and_then(|word| DealState::parse(&word)),
                piece,
                PaddedSize::from_bytes(num(number("size")?)),
                bytes("root")?.and_then(|root| cid::parse_bytes(&root).ok()),
                amount("price")?.zip(amount("collateral")?).zip(amount("cost")?),
            ))
        })()?;
        let (Some(state), Some(piece), Some(size), Some(root), Some(((price, collateral), cost))) = fixed
        else {
            return Ok(None);
        };
        let signed_cid = bytes("signed_cid")?.and_then(|cid| cid::parse_bytes(&cid).ok());
        let word = text("word_status")?.zip(maybe("word_at")?);
        Ok(Some(Self {
            uuid,
            aggregate: crate::pins::row::uuid_of(row.try_get("aggregate")?),
            slot: small(number("slot")?),
            generation: small(number("generation")?),
            provider: ActorId::new(num(number("provider")?)),
            owner: ActorId::new(num(number("owner")?)),
            state,
            policy: text("policy")?.unwrap_or_default(),
            piece,
            size,
            car_bytes: num(number("car_bytes")?),
            root,
            ipni: number("ipni")? != 0,
            price,
            collateral,
            cost,
            chosen_epoch: Epoch::new(number("chosen_epoch")?),
            start: Epoch::new(number("start_epoch")?),
            end: Epoch::new(number("end_epoch")?),
            signed: bytes("signed")?
                .zip(signed_cid)
                .map(|(bytes, signed_cid)| SignedDeal { bytes, signed_cid }),
            deal_id: maybe("deal_id")?.map(num),
            sector: maybe("sector")?.map(num),
            is_faulty: number("faulty")? != 0,
            is_locked: number("locked")? != 0,
            is_forgiven: number("forgiven")? != 0,
            missing_since: maybe("missing_since")?.map(Epoch::new),
            error: text("code")?
                .and_then(|code| FailureCode::parse(&code))
                .zip(text("error")?)
                .map(|(code, text)| Fault { code, text }),
            created: at(number("created")?),
            sent: maybe("sent")?.map(at).zip(maybe("sent_epoch")?.map(Epoch::new)),
            updated: at(number("updated")?),
            tries: small(number("tries")?),
            due: at(number("due")?),
            word: word
                .map(|(status, when)| -> Result<Word, sqlx::Error> {
                    Ok(Word {
                        status,
                        error: text("word_error")?,
                        deal_id: maybe("word_deal_id")?.map(num),
                        received: num(maybe("word_received")?.unwrap_or(0)),
                        at: at(when),
                    })
                })
                .transpose()?,
            pulled: num(number("pulled")?),
            is_pulled: number("pulled_whole")? != 0,
        }))
    }

    /// Names what money hangs on; not what others say, nor when to look again.
    pub(super) fn digest(&self) -> Vec<u8> {
        let mut hash = blake3::Hasher::new_derive_key("floe records 1 deal row");
        let code = self.error.as_ref().map(|error| error.code.as_str().as_bytes());
        let signed_cid = self.signed.as_ref().map(|signed| signed.signed_cid.to_bytes());
        let fields: [Option<&[u8]>; 10] = [
            Some(self.uuid.0.as_bytes()),
            Some(self.aggregate.as_bytes()),
            Some(self.state.as_str().as_bytes()),
            Some(self.policy.as_bytes()),
            Some(self.piece.commitment()),
            Some(&self.root.to_bytes()),
            self.signed.as_ref().map(|signed| signed.bytes.as_slice()),
            signed_cid.as_deref(),
            code,
            self.error.as_ref().map(|error| error.text.as_bytes()),
        ];
        fields.into_iter().for_each(|field| digest_field(&mut hash, field));
        for amount in [self.price, self.collateral, self.cost] {
            digest_field(&mut hash, Some(&amount.get().to_le_bytes()));
        }
        let (slot, generation) = (i64::from(self.slot), i64::from(self.generation));
        let numbers = [
            Some(slot),
            Some(generation),
            Some(db(self.provider.get())),
            Some(db(self.owner.get())),
            Some(db(self.size.bytes())),
            Some(db(self.car_bytes)),
            Some(i64::from(self.ipni)),
            Some(self.chosen_epoch.get()),
            Some(self.start.get()),
            Some(self.end.get()),
            self.deal_id.map(db),
            self.sector.map(db),
            Some(i64::from(self.is_faulty)),
            Some(i64::from(self.is_locked)),
            Some(i64::from(self.is_forgiven)),
            self.missing_since.map(Epoch::get),
            Some(db(self.created.as_millis())),
            self.sent.map(|(at, _)| db(at.as_millis())),
            self.sent.map(|(_, epoch)| epoch.get()),
            Some(db(self.updated.as_millis())),
        ];
        for number in numbers {
            digest_field(&mut hash, number.map(i64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
        }
        hash.finalize().as_bytes()[..16].to_vec()
    }

    /// Writes the row for the first time.
    pub(super) async fn insert(&self, tx: &mut Tx) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO deals (id, aggregate, slot, generation, provider, owner, state, policy, piece, size, car_bytes, \
             root, ipni, price, collateral, cost, chosen_epoch, start_epoch, end_epoch, faulty, locked, forgiven, \
             created, updated, digest, tries, due, watch, pulled, pulled_whole) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, \
             $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 0, 0, 0, $20, $21, $22, 0, $23, $24, 0, 0)",
        )
        .bind(id_of(self.uuid))
        .bind(key(self.aggregate))
        .bind(i64::from(self.slot))
        .bind(i64::from(self.generation))
        .bind(db(self.provider.get()))
        .bind(db(self.owner.get()))
        .bind(self.state.as_str())
        .bind(&self.policy)
        .bind(self.piece.commitment().to_vec())
        .bind(db(self.size.bytes()))
        .bind(db(self.car_bytes))
        .bind(self.root.to_bytes())
        .bind(i64::from(self.ipni))
        .bind(self.price.to_string())
        .bind(self.collateral.to_string())
        .bind(self.cost.to_string())
        .bind(self.chosen_epoch.get())
        .bind(self.start.get())
        .bind(self.end.get())
        .bind(db(self.created.as_millis()))
        .bind(db(self.updated.as_millis()))
        .bind(self.digest())
        .bind(db(self.due.as_millis()))
        .bind(self.start.get())
        .execute(&mut tx.conn)
        .await?;
        count(tx, self.state, 1, self.cost).await
    }

    /// Writes what steps change. The signed bytes are not among it.
    pub(super) async fn save(
        &self,
        tx: &mut Tx,
        before: DealState,
        watch: Option<Epoch>,
    ) -> Result<(), Error> {
        sqlx::query(
            "UPDATE deals SET state = $2, deal_id = $3, sector = $4, faulty = $5, locked = $6, forgiven = $7, \
             missing_since = $8, code = $9, error = $10, sent = $11, sent_epoch = $12, updated = $13, digest = $14, \
             tries = $15, due = $16, watch = $17 WHERE id = $1",
        )
        .bind(id_of(self.uuid))
        .bind(self.state.as_str())
        .bind(self.deal_id.map(db))
        .bind(self.sector.map(db))
        .bind(i64::from(self.is_faulty))
        .bind(i64::from(self.is_locked))
        .bind(i64::from(self.is_forgiven))
        .bind(self.missing_since.map(Epoch::get))
        .bind(self.error.as_ref().map(|error| error.code.as_str()))
        .bind(self.error.as_ref().map(|error| error.text.as_str()))
        .bind(self.sent.map(|(at, _)| db(at.as_millis())))
        .bind(self.sent.map(|(_, epoch)| epoch.get()))
        .bind(db(self.updated.as_millis()))
        .bind(self.digest())
        .bind(i64::from(self.tries))
        .bind(db(self.due.as_millis()))
        .bind(watch.map(Epoch::get))
        .execute(&mut tx.conn)
        .await?;
        if before != self.state {
            count(tx, before, -1, self.cost).await?;
            count(tx, self.state, 1, self.cost).await?;
        }
        Ok(())
    }
}

/// One deal more in a state, or one less.
async fn count(tx: &mut Tx, state: DealState, by: i64, cost: AttoFil) -> Result<(), Error> {
    let before: Option<String> = sqlx::query_scalar("SELECT cost FROM deal_counts WHERE state = $1")
        .bind(state.as_str())
        .fetch_optional(&mut tx.conn)
        .await?;
    let before = before.map_or(Ok(AttoFil::ZERO), |text| text.parse());
    let before = before.map_err(|odd| Error::Damaged(format!("what deals cost together: {odd}")))?;
    let after = if by < 0 { before.checked_sub(cost) } else { before.checked_add(cost) };
    let after =
        after.ok_or_else(|| Error::Damaged("what deals cost together is not what each does".into()))?;
    sqlx::query(
        "INSERT INTO deal_counts (state, deals, cost) VALUES ($1, $2, $3) ON CONFLICT (state) DO UPDATE SET \
         deals = deal_counts.deals + excluded.deals, cost = excluded.cost",
    )
    .bind(state.as_str())
    .bind(by)
    .bind(after.to_string())
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

fn small(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
