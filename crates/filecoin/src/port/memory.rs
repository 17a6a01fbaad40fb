//! What is known of the chain from one start to the next. A small trait, so that the rows can live in `records`.

use floe_core::clock::BoxFuture;
use parking_lot::Mutex;

use crate::chain::NetworkPin;
use crate::types::Epoch;

/// What was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The network of the first start.
    pub pin: NetworkPin,
    /// The highest head that was written down: the truth is up to an eighth of finality above it.
    pub highest: Epoch,
}

/// Where it is written down. Each call is one transaction, committed and synced when the future completes. An error is
/// the store's own words.
pub trait Memory: Send + Sync + 'static {
    /// What is known; `None` before the first [`Memory::pin`].
    fn load(&self) -> BoxFuture<'_, Result<Option<Known>, String>>;

    /// Writes down the network. Changes nothing where one is written down already.
    fn pin<'a>(&'a self, pin: &'a NetworkPin) -> BoxFuture<'a, Result<(), String>>;

    /// Writes down a head. Changes nothing where a higher one is written down.
    fn saw(&self, highest: Epoch) -> BoxFuture<'_, Result<(), String>>;
}

/// A memory that a restart forgets. For tests and dry runs: a node of another network would be taken for the first.
#[derive(Debug, Default)]
pub struct Unremembered(Mutex<Option<Known>>);

impl Memory for Unremembered {
    fn load(&self) -> BoxFuture<'_, Result<Option<Known>, String>> {
        Box::pin(std::future::ready(Ok(self.0.lock().clone())))
    }

    fn pin<'a>(&'a self, pin: &'a NetworkPin) -> BoxFuture<'a, Result<(), String>> {
        self.0.lock().get_or_insert_with(|| Known { pin: pin.clone(), highest: Epoch::default() });
        Box::pin(std::future::ready(Ok(())))
    }

    fn saw(&self, highest: Epoch) -> BoxFuture<'_, Result<(), String>> {
        if let Some(known) = self.0.lock().as_mut() {
            known.highest = known.highest.max(highest);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
