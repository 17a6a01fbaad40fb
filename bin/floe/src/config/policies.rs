//! `[policy.<name>]`: what can be promised for a pin, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use floe_core::policy::{self, Hot, MAX_REPLICAS};
use floe_core::{ActorId, AttoFil, Policy};

use super::keys::{Default, Kind};
use super::tables::{Family, Field, Table};
use super::values::Setting;
use super::{ConfigError, Layers};
use crate::limits;

/// What a policy may hold.
pub(crate) const POLICY: Family = Family {
    section: "policy",
    about: "What pins ask of Filecoin: how many replicas, where, for how long, at most at what price. A pin goes under the \
            policy that meta.policy names, else the one in its path (/p/NAME/pins), else that of its token, else the one \
            called default; without that one it is kept here and nowhere else. Deals are public, and cannot be deleted \
            before they end.",
    example: "gold",
    is_name: policy::is_policy_name,
    names: "1 to 64 letters, digits, - and _",
    most: limits::POLICIES,
    fields: &[REPLICAS, REGIONS, MAX_PRICE, DURATION, HOT, PROVIDERS, IPNI, SPARE_AFTER],
};

const REPLICAS: Field = Field {
    name: "replicas",
    kind: Kind::Count,
    default: Default::Is("0"),
    about: "How many deals keep each pin, with as many providers of as many owners.",
    reason: "0 is hot alone: what costs money is asked for by name. A pin may ask for fewer by meta.replicas, and for more \
             where its account may have more. At most 16.",
};
const REGIONS: Field = Field {
    name: "regions",
    kind: Kind::List("tags"),
    default: Default::Is("[]"),
    about: "Tags that you gave to providers, one of which each provider has.",
    reason: "Empty: any provider. Nobody but you says where a provider is.",
};
const MAX_PRICE: Field = Field {
    name: "max_price_attofil_gib_epoch",
    kind: Kind::Amount,
    default: Default::Unset(r#""500000000""#),
    about: "The most that is signed, in attoFIL for a GiB and epoch of 30 s.",
    reason: "It has to be said where there are replicas; \"0\" takes deals for nothing alone. 500000000 for a TiB and year \
             are 0.54 FIL for each replica.",
};
const DURATION: Field = Field {
    name: "duration_epochs",
    kind: Kind::Count,
    default: Default::Is("1555200"),
    about: "How long a deal runs, in epochs of 30 s.",
    reason: "540 days: the longest that providers commonly seal for. 518400 to 3680640 is what the network takes; a test \
             network takes shorter ones.",
};
const HOT: Field = Field {
    name: "hot",
    kind: Kind::Choice(&["always", "auto", "never"]),
    default: Default::Is(r#""always""#),
    about: "What becomes of the blocks here once all replicas are active.",
    reason: "They stay. The other two words are kept for when blocks can be brought back from Filecoin: until then nothing \
             leaves, whatever is said here.",
};
const PROVIDERS: Field = Field {
    name: "providers",
    kind: Kind::List("providers"),
    default: Default::Is("[]"),
    about: "The only providers that are asked, as f01000.",
    reason: "Empty: all that are known. No fewer than there are replicas.",
};
const IPNI: Field = Field {
    name: "ipni",
    kind: Kind::Switch,
    default: Default::Is("true"),
    about: "Whether providers tell the network's indexers what they have.",
    reason: "Others then find it there, as they find what is announced from here.",
};
const SPARE_AFTER: Field = Field {
    name: "spare_after",
    kind: Kind::Duration,
    default: Default::Unset(r#""48h""#),
    about: "One replica more may be placed where an accepted deal saw no transfer for so long.",
    reason: "Unset: never, because the first may still come and is paid then. An epoch is counted as 30 s.",
};

/// Seconds of an epoch.
const EPOCH_SECONDS: u64 = 30;

/// All policies, by name.
pub(super) fn check(layers: &Layers) -> Result<BTreeMap<String, Policy>, ConfigError> {
    let is_test_network = layers.optional("filecoin.test_network")?.unwrap_or(false);
    let named = layers.tables(&POLICY);
    named.map(|(name, table)| Ok((name.to_owned(), one(name, table, is_test_network)?))).collect()
}

fn one(name: &str, table: &Table, is_test_network: bool) -> Result<Policy, ConfigError> {
    let Replicas(replicas) = table.one(&REPLICAS)?;
    let max_price = match table.optional(&MAX_PRICE)? {
        Some(price) => price,
        None if replicas == 0 => AttoFil::ZERO,
        None => {
            let reason = "it is unset, and there are replicas: say what a GiB may cost an epoch, \"0\" for deals without a price";
            return Err(table.invalid(MAX_PRICE.name, reason));
        }
    };
    let providers: Vec<ActorId> = distinct(table, &PROVIDERS)?;
    if !providers.is_empty() && providers.len() < usize::from(replicas) {
        let reason = format!("{} are listed, and each of {replicas} replicas needs another", providers.len());
        return Err(table.invalid(PROVIDERS.name, reason));
    }
    let spare_after = table.optional::<Duration>(&SPARE_AFTER)?;
    Ok(Policy {
        name: name.to_owned(),
        replicas,
        regions: distinct(table, &REGIONS)?.into_iter().map(|Tag(tag)| tag).collect(),
        max_price,
        duration_epochs: duration(table, is_test_network)?,
        hot: table.one(&HOT)?,
        providers,
        ipni: table.one(&IPNI)?,
        spare_after_epochs: spare_after.map(|span| span.as_secs().div_ceil(EPOCH_SECONDS).max(1)),
    })
}

/// Each value once; twice is a slip.
fn distinct<T: Setting + PartialEq>(table: &Table, field: &Field) -> Result<Vec<T>, ConfigError> {
    let all: Vec<T> = table.many(field)?;
    match (1..all.len()).any(|n| all[..n].contains(&all[n])) {
        true => Err(table.invalid(field.name, "the same is listed twice")),
        false => Ok(all),
    }
}

fn duration(table: &Table, is_test_network: bool) -> Result<u64, ConfigError> {
    let epochs: u64 = table.one(&DURATION)?;
    let (least, most) = (policy::DURATION.start(), policy::DURATION.end());
    let least = if is_test_network { &1 } else { least };
    if (least..=most).contains(&&epochs) {
        return Ok(epochs);
    }
    Err(table.invalid(DURATION.name, format!("a deal runs for {least} to {most} epochs")))
}

struct Replicas(u8);

impl Setting for Replicas {
    fn read(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|n| *n <= MAX_REPLICAS);
        number.map(Self).ok_or_else(|| format!("a number from 0 to {MAX_REPLICAS}"))
    }
}

/// A word of the operator's own for where a provider is.
#[derive(Debug, PartialEq)]
struct Tag(String);

impl Setting for Tag {
    fn read(text: &str) -> Result<Self, String> {
        floe_core::policy::is_region(text)
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| "a tag is a word of 1 to 64 letters, digits, - and _, such as \"eu\"".to_owned())
    }
}

impl Setting for Hot {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err("it must be \"always\" or \"auto\" or \"never\"".into()),
        }
    }
}
