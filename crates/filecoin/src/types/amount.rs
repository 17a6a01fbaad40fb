//! Money: whole attoFIL (10^-18 FIL), and nothing else.
//!
//! [`TokenAmount`] is never negative: what we pay, hold or reserve. [`SignedAmount`] is a difference. All
//! arithmetic is checked; there is no way to a float. Text is decimal, as JSON has it; CBOR is a byte string
//! with a sign byte and the magnitude, empty for zero.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cbor::{Cbor, CborError, Reader, Writer};
use crate::limits::MAX_AMOUNT_BYTES;

/// Not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not decimal digits without a leading zero.
    #[error("{0:?} is not an amount of attoFIL: write whole attoFIL in decimal digits")]
    Malformed(String),
    /// Negative where nothing can be.
    #[error("the amount {0} is negative")]
    Negative(String),
    /// More than can be held.
    #[error("an amount of more than 10^38 attoFIL")]
    TooLarge,
}

/// Attofil, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TokenAmount(u128);

impl TokenAmount {
    /// None.
    pub const ZERO: Self = Self(0);

    /// `atto` attoFIL.
    pub const fn from_atto(atto: u128) -> Self {
        Self(atto)
    }

    /// In attoFIL.
    pub const fn atto(self) -> u128 {
        self.0
    }

    /// Whether there is none.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` where it cannot be held.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or `None` where it would be negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The product, or `None` where it cannot be held.
    pub fn checked_mul(self, by: u128) -> Option<Self> {
        self.0.checked_mul(by).map(Self)
    }

    /// `self * numerator / denominator`, rounded up; `None` where the product cannot be held or `denominator` is 0.
    pub fn checked_ratio_up(self, numerator: u128, denominator: u128) -> Option<Self> {
        let product = self.0.checked_mul(numerator)?;
        (denominator != 0).then(|| Self(product.div_ceil(denominator)))
    }

    /// This minus `other`, or `None` where the difference cannot be held.
    pub fn difference(self, other: Self) -> Option<SignedAmount> {
        let (this, other) = (i128::try_from(self.0).ok()?, i128::try_from(other.0).ok()?);
        this.checked_sub(other).map(SignedAmount)
    }
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
    pub fn non_negative(self) -> Option<TokenAmount> {
        u128::try_from(self.0).ok().map(TokenAmount)
    }

    /// The sum, or `None` where it cannot be held.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
}

impl fmt::Display for TokenAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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

impl FromStr for TokenAmount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        match parse(text)? {
            (false, magnitude) => Ok(Self(magnitude)),
            (true, magnitude) => Err(AmountError::Negative(format!("-{magnitude}"))),
        }
    }
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

macro_rules! amount_as_json_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
amount_as_json_text!(TokenAmount);
amount_as_json_text!(SignedAmount);

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

impl Cbor for TokenAmount {
    fn write(&self, to: &mut Writer) {
        write(false, self.0, to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        match read(from)? {
            (false, magnitude) => Ok(Self(magnitude)),
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
    fn amounts_have_one_text_and_no_float() {
        for bad in ["", "-", "+1", "01", "-0", "1.0", "1e3", "NaN", "0x1", " 1", "1 ", "Infinity", "１"] {
            assert!(matches!(bad.parse::<TokenAmount>(), Err(AmountError::Malformed(_))), "{bad:?}");
            assert!(matches!(bad.parse::<SignedAmount>(), Err(AmountError::Malformed(_))), "{bad:?}");
        }
        assert!(matches!("-1".parse::<TokenAmount>(), Err(AmountError::Negative(_))));
        let most = u128::MAX.to_string();
        assert_eq!(most.parse(), Ok(TokenAmount(u128::MAX)));
        assert_eq!(
            "340282366920938463463374607431768211456".parse::<TokenAmount>(),
            Err(AmountError::TooLarge)
        );
        assert_eq!(most.parse::<SignedAmount>(), Err(AmountError::TooLarge));
        assert!(serde_json::from_str::<TokenAmount>("1").is_err(), "a JSON number may have been a float");
    }

    #[test]
    fn cbor_forms_that_are_not_the_only_one_are_refused() {
        for bad in [&[0x41, 0][..], &[0x42, 0, 0], &[0x42, 2, 1], &[0x42, 1, 1], &[0xf6], &[0x01]] {
            assert!(TokenAmount::from_cbor(bad).is_err(), "{bad:?}");
        }
        assert_eq!(SignedAmount::from_cbor(&[0x42, 1, 1]), Ok(SignedAmount(-1)));
        let mut wide = vec![0x52, 0, 1];
        wide.extend([0; 16]);
        assert!(TokenAmount::from_cbor(&wide).is_err());
    }

    #[test]
    fn arithmetic_stops_at_the_ends() {
        let most = TokenAmount(u128::MAX);
        assert_eq!(most.checked_add(TokenAmount(1)), None);
        assert_eq!(TokenAmount(1).checked_sub(TokenAmount(2)), None);
        assert_eq!(most.checked_mul(2), None);
        assert_eq!(TokenAmount(5).checked_ratio_up(12, 10), Some(TokenAmount(6)));
        assert_eq!(TokenAmount(1).checked_ratio_up(11, 10), Some(TokenAmount(2)));
        assert_eq!(TokenAmount(1).checked_ratio_up(1, 0), None);
        assert_eq!(TokenAmount(1).difference(TokenAmount(3)), Some(SignedAmount(-2)));
        assert_eq!(most.difference(TokenAmount(0)), None);
    }

    proptest! {
        #[test]
        fn amounts_come_back(atto: u128, difference: i128) {
            let (amount, difference) = (TokenAmount(atto), SignedAmount(difference));
            prop_assert_eq!(TokenAmount::from_cbor(&amount.to_cbor()), Ok(amount));
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
