//! Units of the cold half: money and time as the chain counts them. Integers only, checked, never floats.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::piece::PaddedSize;

/// An amount of attoFIL (10^-18 FIL), never below zero. All that exists is 2 x 10^27 of them, so 128 bits hold any sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AttoFil(u128);

/// Text that is no amount of attoFIL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount of attoFIL: it is written as decimal digits, such as \"1000000000\"")]
pub struct NoAmount(String);

impl AttoFil {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many attoFIL.
    pub const fn new(atto: u128) -> Self {
        Self(atto)
    }

    /// The number of attoFIL.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum; `None` past 2^128.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference; `None` below zero.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// So many times as much; `None` past 2^128.
    pub const fn checked_mul(self, times: u128) -> Option<Self> {
        match self.0.checked_mul(times) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// What a piece costs an epoch at this price for a GiB and epoch, rounded up as a provider that compares with its
    /// ask does; `None` past 2^128.
    pub fn for_piece(self, size: PaddedSize) -> Option<Self> {
        let scaled = self.0.checked_mul(u128::from(size.bytes()))?;
        Some(Self(scaled.div_ceil(1 << 30)))
    }
}

impl fmt::Display for AttoFil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AttoFil {
    type Err = NoAmount;

    /// Digits and nothing else: no sign, no point, no exponent.
    fn from_str(text: &str) -> Result<Self, NoAmount> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let amount = digits.then(|| text.parse().ok()).flatten();
        amount.map(Self).ok_or_else(|| NoAmount(text.chars().take(64).collect()))
    }
}

/// As a decimal text: numbers in JSON lose digits past 2^53.
impl Serialize for AttoFil {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttoFil {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A point in the chain's time: epochs of 30 s on mainnet, counted from genesis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(i64);

impl Epoch {
    /// The epoch of this number.
    pub const fn new(epoch: i64) -> Self {
        Self(epoch)
    }

    /// Its number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// So many epochs later, or earlier where `epochs` is negative. Stops at the ends of the range.
    pub const fn plus(self, epochs: i64) -> Self {
        Self(self.0.saturating_add(epochs))
    }

    /// Epochs from `earlier` to here; 0 where that is later.
    pub const fn since(self, earlier: Self) -> u64 {
        if self.0 > earlier.0 { self.0.abs_diff(earlier.0) } else { 0 }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_digits() {
        for good in ["0", "1", "340282366920938463463374607431768211455"] {
            assert_eq!(good.parse::<AttoFil>().unwrap().to_string(), good);
        }
        for bad in ["", "-1", "+1", "1.5", "1e18", " 1", "0x1", "340282366920938463463374607431768211456"] {
            assert!(bad.parse::<AttoFil>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sums_do_not_wrap() {
        let most = AttoFil::new(u128::MAX);
        assert_eq!(most.checked_add(AttoFil::new(1)), None);
        assert_eq!(AttoFil::ZERO.checked_sub(AttoFil::new(1)), None);
        assert_eq!(most.checked_mul(2), None);
        assert_eq!(most.for_piece(PaddedSize::MIN), None);
    }

    #[test]
    fn a_price_is_rounded_up_for_the_piece() {
        let gib = PaddedSize::from_bytes(1 << 30).unwrap();
        assert_eq!(AttoFil::new(500).for_piece(gib), Some(AttoFil::new(500)));
        assert_eq!(AttoFil::new(500).for_piece(PaddedSize::MIN), Some(AttoFil::new(1)));
        assert_eq!(AttoFil::ZERO.for_piece(gib), Some(AttoFil::ZERO));
    }

    #[test]
    fn epochs_do_not_wrap() {
        assert_eq!(Epoch::new(i64::MAX).plus(1), Epoch::new(i64::MAX));
        assert_eq!(Epoch::new(10).since(Epoch::new(-5)), 15);
        assert_eq!(Epoch::new(-5).since(Epoch::new(10)), 0);
    }
}
