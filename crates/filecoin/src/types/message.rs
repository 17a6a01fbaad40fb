//! Messages: what changes the chain. An account sends one after the other, numbered by nonce.
//!
//! The CID of a message is that of its unsigned form. A signed message with a secp256k1 signature has another CID, of
//! message and signature; that is the one `MpoolPush` answers with, while `StateSearchMsg` finds a message by either.

use floe_core::Cid;
use serde::{Deserialize, Serialize};

use super::cbor::{Cbor, CborError, Reader, Writer};
use super::cid::blake2b_cid;
use super::signature::{SignatureKind, base64};
use super::{Address, AttoFil, Signature};
use crate::limits::MAX_PARAMS_BYTES;

/// The only version of messages that there is.
const VERSION: u64 = 0;

/// A message without a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Message {
    /// Always 0.
    pub version: u64,
    /// Whom it calls.
    pub to: Address,
    /// Who pays.
    pub from: Address,
    /// Its place among the sender's messages.
    pub nonce: u64,
    /// What goes along.
    pub value: AttoFil,
    /// The most gas it may use. The chain has it signed, and refuses what is negative.
    pub gas_limit: u64,
    /// The most attoFIL for one unit of gas, premium included.
    pub gas_fee_cap: AttoFil,
    /// What the block's producer gets for one unit of gas, at most.
    pub gas_premium: AttoFil,
    /// Which method; 0 only transfers.
    pub method: u64,
    /// The method's parameters, in CBOR.
    #[serde(with = "base64")]
    pub params: Vec<u8>,
}

impl Message {
    /// A message whose nonce and gas are still to be filled in.
    pub fn new(from: Address, to: Address, value: AttoFil, method: u64, params: Vec<u8>) -> Self {
        let none = AttoFil::ZERO;
        Self {
            version: VERSION,
            to,
            from,
            nonce: 0,
            value,
            gas_limit: 0,
            gas_fee_cap: none,
            gas_premium: none,
            method,
            params,
        }
    }

    /// The name of the message on the chain, and what is signed.
    pub fn cid(&self) -> Cid {
        blake2b_cid(&self.to_cbor())
    }

    /// The most attoFIL that its gas can cost; `None` where that cannot be held.
    pub fn max_fee(&self) -> Option<AttoFil> {
        self.gas_fee_cap.checked_mul(u128::from(self.gas_limit))
    }

    /// Whether `other` does the same: everything but nonce and gas.
    pub fn same_call(&self, other: &Self) -> bool {
        let call = |m: &Self| (m.version, m.to, m.from, m.value, m.method);
        call(self) == call(other) && self.params == other.params
    }
}

impl Cbor for Message {
    fn write(&self, to: &mut Writer) {
        to.array(10);
        to.uint(self.version);
        self.to.write(to);
        self.from.write(to);
        to.uint(self.nonce);
        self.value.write(to);
        to.uint(self.gas_limit);
        self.gas_fee_cap.write(to);
        self.gas_premium.write(to);
        to.uint(self.method);
        to.bytes(&self.params);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        from.tuple(10)?;
        let message = Self {
            version: from.uint()?,
            to: Address::read(from)?,
            from: Address::read(from)?,
            nonce: from.uint()?,
            value: AttoFil::read(from)?,
            gas_limit: from.uint()?,
            gas_fee_cap: AttoFil::read(from)?,
            gas_premium: AttoFil::read(from)?,
            method: from.uint()?,
            params: from.bytes()?.to_vec(),
        };
        if message.version != VERSION || i64::try_from(message.gas_limit).is_err() {
            return Err(from.malformed("a message of an unknown version, or with a negative gas limit"));
        }
        if message.params.len() > MAX_PARAMS_BYTES {
            crate::limits::hit("message_params");
            return Err(CborError::Limit { at: from.position(), limit: "message_params" });
        }
        Ok(message)
    }
}

/// A message and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SignedMessage {
    /// What was signed.
    pub message: Message,
    /// Over the bytes of the message's CID.
    pub signature: Signature,
}

impl SignedMessage {
    /// What `MpoolPush` answers with: for BLS the message's own CID, because blocks keep those signatures apart.
    pub fn cid(&self) -> Cid {
        match self.signature.kind() {
            SignatureKind::Bls => self.message.cid(),
            _ => blake2b_cid(&self.to_cbor()),
        }
    }
}

impl Cbor for SignedMessage {
    fn write(&self, to: &mut Writer) {
        to.array(2);
        self.message.write(to);
        self.signature.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        from.tuple(2)?;
        Ok(Self { message: Message::read(from)?, signature: Signature::read(from)? })
    }
}
