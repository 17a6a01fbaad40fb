//! Money on the wire: whole attoFIL (10^-18 FIL), and nothing else.
//!
//! [`AttoFil`] is never negative: what we pay, hold or reserve. [`SignedAmount`] is a difference. There is no way to a
//! float. CBOR is a byte string with a sign byte and the magnitude, empty for zero.

use std::fmt;
use std::str::FromStr;

use floe_core::AttoFil;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cbor::{Cbor, CborError, Reader, Writer};
use crate::limits::MAX_AMOUNT_BYTES;

/// Not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not decimal digits without a leading zero.
    #[error("{0:?} is not an amount of attoFIL: write whole attoFIL in decimal digits")]
    Malformed(String),
    /// More than can be held.
    #[error("an amount of more than 10^38 attoFIL")]
    TooLarge,
}

/// A difference of amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SignedAmount(i128);

impl SignedAmount {
    /// `atto` attoFIL.
    pub const fn from_atto(atto: i128) -> Self {
        Self(atto)
    }

    /// In attoFIL.
    pub const fn atto(self) -> i128 {
        self.0
    }

    /// The amount, where it is not negative.
    pub fn non_negative(self) -> Option<AttoFil> {
        u128::try_from(self.0).ok().map(AttoFil::new)
    }

    /// The sum, or `None` where it cannot be held.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
}

impl fmt::Display for SignedAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A sign and a magnitude out of decimal text in its only form.
fn parse(text: &str) -> Result<(bool, u128), AmountError> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let canonical = !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits == "0" && !negative || !digits.starts_with('0'));
    if !canonical {
        return Err(AmountError::Malformed(crate::words::cut(text).chars().take(64).collect()));
    }
    digits.parse().map(|magnitude| (negative, magnitude)).map_err(|_| AmountError::TooLarge)
}

impl FromStr for SignedAmount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let (negative, magnitude) = parse(text)?;
        signed(negative, magnitude).ok_or(AmountError::TooLarge)
    }
}

fn signed(negative: bool, magnitude: u128) -> Option<SignedAmount> {
    let value =
        if negative { 0_i128.checked_sub_unsigned(magnitude) } else { i128::try_from(magnitude).ok() };
    value.map(SignedAmount)
}

impl Serialize for SignedAmount {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SignedAmount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn write(negative: bool, magnitude: u128, to: &mut Writer) {
    if magnitude == 0 {
        return to.bytes(&[]);
    }
    let bytes = magnitude.to_be_bytes();
    let zeros = (magnitude.leading_zeros() / 8) as usize;
    let mut out = vec![u8::from(negative)];
    out.extend(&bytes[zeros..]);
    to.bytes(&out);
}

fn read(from: &mut Reader<'_>) -> Result<(bool, u128), CborError> {
    let bytes = from.bytes()?;
    let Some((sign, magnitude)) = bytes.split_first() else { return Ok((false, 0)) };
    let negative = match sign {
        0 => false,
        1 => true,
        _ => return Err(from.malformed("an amount with an unknown sign")),
    };
    if magnitude.first().is_none_or(|first| *first == 0) {
        return Err(from.malformed("an amount that is not in its shortest form"));
    }
    if magnitude.len() > MAX_AMOUNT_BYTES {
        return Err(from.malformed("an amount of more than 128 bits"));
    }
    Ok((negative, magnitude.iter().fold(0, |n, b| n << 8 | u128::from(*b))))
}

impl Cbor for AttoFil {
    fn write(&self, to: &mut Writer) {
        write(false, self.get(), to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        match read(from)? {
            (false, magnitude) => Ok(Self::new(magnitude)),
            (true, _) => Err(from.malformed("an amount that is negative")),
        }
    }
}

impl Cbor for SignedAmount {
    fn write(&self, to: &mut Writer) {
        write(self.0 < 0, self.0.unsigned_abs(), to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (negative, magnitude) = read(from)?;
        signed(negative, magnitude).ok_or_else(|| from.malformed("an amount of more than 127 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Prices as a hostile ask has them (threat T35): not a number, negative, a float, above 128 bits.
    #[test]
    fn amounts_have_no_float_and_no_other_form() {
        for bad in ["", "-", "+1", "1.0", "1e3", "NaN", "0x1", " 1", "1 ", "Infinity", "１"] {
            assert!(bad.parse::<AttoFil>().is_err(), "{bad:?}");
            assert!(matches!(bad.parse::<SignedAmount>(), Err(AmountError::Malformed(_))), "{bad:?}");
        }
        assert!("-1".parse::<AttoFil>().is_err() && "-0".parse::<SignedAmount>().is_err());
        assert_eq!("-1".parse(), Ok(SignedAmount(-1)));
        assert_eq!(u128::MAX.to_string().parse::<SignedAmount>(), Err(AmountError::TooLarge));
        assert!(serde_json::from_str::<AttoFil>("1").is_err(), "a JSON number may have been a float");
        assert_eq!(SignedAmount(-1).non_negative(), None);
        assert_eq!(SignedAmount(i128::MAX).checked_add(SignedAmount(1)), None);
    }

    #[test]
    fn cbor_forms_that_are_not_the_only_one_are_refused() {
        for bad in [&[0x41, 0][..], &[0x42, 0, 0], &[0x42, 2, 1], &[0x42, 1, 1], &[0xf6], &[0x01]] {
            assert!(AttoFil::from_cbor(bad).is_err(), "{bad:?}");
        }
        assert_eq!(SignedAmount::from_cbor(&[0x42, 1, 1]), Ok(SignedAmount(-1)));
        let mut wide = vec![0x52, 0, 1];
        wide.extend([0; 16]);
        assert!(AttoFil::from_cbor(&wide).is_err());
    }

    proptest! {
        #[test]
        fn amounts_come_back(atto: u128, difference: i128) {
            let (amount, difference) = (AttoFil::new(atto), SignedAmount(difference));
            prop_assert_eq!(AttoFil::from_cbor(&amount.to_cbor()), Ok(amount));
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
            prop_assert_eq!(SignedAmount::from_cbor(&difference.to_cbor()), Ok(difference));
            prop_assert_eq!(difference.to_string().parse(), Ok(difference));
        }

        #[test]
        fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(amount) = SignedAmount::from_cbor(&bytes) {
                prop_assert_eq!(amount.to_cbor(), bytes);
            }
        }
    }
}
