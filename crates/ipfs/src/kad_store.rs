//! What this node remembers for the DHT while it is a server: provider records of others, and the
//! answer for its own.
//!
//! The library's store keeps 1,024 keys, its own and strangers' together, so a stranger can fill it and end our
//! announcements. Here the two never meet: records of others are bounded in number, in addresses and in time, and what we
//! provide lives in its own table on disk ([`crate::provide`]); of that, this store only knows which keys they
//! are. Values (`PUT_VALUE`) are refused: nothing in Floe uses them.
//!
//! In memory only. After a restart others announce theirs again within their own cycle.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use floe_core::Clock;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};
use parking_lot::RwLock;

use crate::limits::{
    self, FOREIGN_RECORD_TTL, MAX_FOREIGN_RECORDS, MAX_PROVIDERS_PER_KEY, MAX_RECORD_ADDRESSES,
};
use crate::provide::Provided;

/// Where the addresses in our own record come from.
pub(crate) type OwnAddresses = Arc<RwLock<Vec<Multiaddr>>>;

/// See the module.
pub(crate) struct Store {
    own: PeerId,
    provided: Arc<Provided>,
    own_addresses: OwnAddresses,
    clock: Arc<dyn Clock>,
    max_records: usize,
    foreign: HashMap<RecordKey, Vec<Foreign>>,
    /// Which record ends when; the serial keeps two of one moment apart.
    ends: BTreeMap<(Duration, u64), (RecordKey, PeerId)>,
    serial: u64,
}

struct Foreign {
    provider: PeerId,
    addresses: Vec<Multiaddr>,
    ends: (Duration, u64),
}

impl Store {
    pub(crate) fn new(
        own: PeerId,
        provided: Arc<Provided>,
        own_addresses: OwnAddresses,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            own,
            provided,
            own_addresses,
            clock,
            max_records: MAX_FOREIGN_RECORDS,
            foreign: HashMap::new(),
            ends: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Drops what has ended.
    fn expire(&mut self) {
        let now = self.clock.monotonic();
        while let Some(first) = self.ends.first_entry().filter(|first| first.key().0 <= now) {
            let (key, provider) = first.remove();
            self.forget(&key, &provider);
        }
    }

    fn forget(&mut self, key: &RecordKey, provider: &PeerId) -> Option<Foreign> {
        let records = self.foreign.get_mut(key)?;
        let at = records.iter().position(|record| record.provider == *provider)?;
        let record = records.swap_remove(at);
        if records.is_empty() {
            self.foreign.remove(key);
        }
        self.ends.remove(&record.ends);
        Some(record)
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider == self.own {
            // An announcement of ours on its way out: the table on disk has it.
            return Ok(());
        }
        self.expire();
        if self.forget(&record.key, &record.provider).is_none() {
            if self.ends.len() >= self.max_records {
                limits::hit("kad_records");
                return Err(Error::MaxProvidedKeys);
            }
            if self.foreign.get(&record.key).is_some_and(|records| records.len() >= MAX_PROVIDERS_PER_KEY) {
                limits::hit("kad_providers");
                return Err(Error::MaxProvidedKeys);
            }
        }
        self.serial += 1;
        let ends = (self.clock.monotonic() + FOREIGN_RECORD_TTL, self.serial);
        let mut addresses = record.addresses;
        addresses.truncate(MAX_RECORD_ADDRESSES);
        addresses.shrink_to_fit();
        self.ends.insert(ends, (record.key.clone(), record.provider));
        self.foreign.entry(record.key).or_default().push(Foreign {
            provider: record.provider,
            addresses,
            ends,
        });
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = self.clock.monotonic();
        let record =
            |provider, addresses| ProviderRecord { key: key.clone(), provider, expires: None, addresses };
        let own =
            self.provided.contains(key.as_ref()).then(|| record(self.own, self.own_addresses.read().clone()));
        let foreign = self.foreign.get(key).into_iter().flatten();
        let live = foreign.filter(|foreign| foreign.ends.0 > now);
        own.into_iter()
            .chain(live.map(|foreign| record(foreign.provider, foreign.addresses.clone())))
            .collect()
    }

    /// Nothing: the library would announce it again by itself, unpaced and all at once.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        self.forget(key, provider);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_core::{ManualClock, Timestamp};

    fn store() -> (Store, ManualClock, PeerId, Arc<Provided>) {
        let clock = ManualClock::new(Timestamp::from_millis(0));
        let own = PeerId::random();
        let provided = Arc::new(Provided::new([7; 16]));
        let store = Store::new(own, provided.clone(), OwnAddresses::default(), Arc::new(clock.clone()));
        (store, clock, own, provided)
    }

    fn record(key: u32, provider: PeerId, addresses: usize) -> ProviderRecord {
        let address = |n| format!("/ip4/8.8.8.8/tcp/{}", 4001 + n).parse().unwrap();
        ProviderRecord {
            key: RecordKey::new(&key.to_be_bytes()),
            provider,
            expires: None,
            addresses: (0..addresses).map(address).collect(),
        }
    }

    #[test]
    fn t09_own_provides_survive_a_full_table() {
        let (mut store, _, own, provided) = store();
        store.max_records = 100;
        let stranger = PeerId::random();
        for key in 0..200 {
            let _ = store.add_provider(record(key, stranger, 1));
        }
        assert_eq!(store.ends.len(), 100);
        provided.insert(&5_000u32.to_be_bytes());
        assert!(store.add_provider(record(5_000, own, 1)).is_ok());
        let answer = store.providers(&RecordKey::new(&5_000u32.to_be_bytes()));
        assert_eq!(answer.iter().map(|r| r.provider).collect::<Vec<_>>(), [own]);
        assert_eq!(store.ends.len(), 100);
    }

    #[test]
    fn t09_records_at_the_boundary() {
        let (mut store, ..) = store();
        store.max_records = 3;
        let stranger = PeerId::random();
        for (key, fits) in [(0, true), (1, true), (2, true), (3, false), (2, true)] {
            assert_eq!(store.add_provider(record(key, stranger, 1)).is_ok(), fits, "{key}");
        }
    }

    #[test]
    fn t09_addresses_of_a_record_are_bounded() {
        for count in [MAX_RECORD_ADDRESSES - 1, MAX_RECORD_ADDRESSES, MAX_RECORD_ADDRESSES + 1] {
            let (mut store, ..) = store();
            store.add_provider(record(1, PeerId::random(), count)).unwrap();
            let kept = store.providers(&RecordKey::new(&1u32.to_be_bytes())).remove(0).addresses.len();
            assert_eq!(kept, count.min(MAX_RECORD_ADDRESSES));
        }
    }

    #[test]
    fn t09_providers_of_a_key_are_bounded() {
        let (mut store, ..) = store();
        for n in 0..MAX_PROVIDERS_PER_KEY + 1 {
            assert_eq!(store.add_provider(record(1, PeerId::random(), 1)).is_ok(), n < MAX_PROVIDERS_PER_KEY);
        }
    }

    #[test]
    fn records_end() {
        let (mut store, clock, ..) = store();
        store.add_provider(record(1, PeerId::random(), 1)).unwrap();
        clock.advance(FOREIGN_RECORD_TTL - Duration::from_secs(1));
        assert_eq!(store.providers(&RecordKey::new(&1u32.to_be_bytes())).len(), 1);
        clock.advance(Duration::from_secs(1));
        assert!(store.providers(&RecordKey::new(&1u32.to_be_bytes())).is_empty());
        store.add_provider(record(2, PeerId::random(), 1)).unwrap();
        assert_eq!((store.ends.len(), store.foreign.len()), (1, 1));
    }
}
