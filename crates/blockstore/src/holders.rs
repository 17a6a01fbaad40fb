//! Which manifests hold a block: asked when one is damaged, so that its owners can be told.
//!
//! Nothing keeps this the other way round, because nobody else asks: every chunk of every manifest is read.

use std::collections::{BTreeMap, HashMap};

use floe_core::Multihash;

use crate::error::Error;
use crate::record::Key;
use crate::shared::{Shared, index_error, key_of};
use crate::tables::{self, Placed};
use crate::{BlockStore, ManifestId};

impl BlockStore {
    /// The manifests that hold any of these blocks, by block; a block that none holds is left out. Blocks on
    /// disk, about 40 bytes for every block of every manifest: for reports, not for requests.
    ///
    /// # Errors
    /// [`Error::Io`] where the index cannot be read. Members of a damaged chunk are not found.
    pub fn holders(&self, hashes: &[Multihash]) -> Result<HashMap<Multihash, Vec<ManifestId>>, Error> {
        let wanted: BTreeMap<Key, Multihash> = hashes.iter().map(|hash| (key_of(hash), *hash)).collect();
        let mut found: HashMap<Multihash, Vec<ManifestId>> = HashMap::new();
        for (id, ..) in self.manifests()? {
            members_of(self.shared(), id, |key| {
                if let Some(hash) = wanted.get(key) {
                    found.entry(*hash).or_default().push(id);
                }
            })?;
        }
        found.values_mut().for_each(|ids| ids.dedup());
        Ok(found)
    }
}

fn members_of(shared: &Shared, id: ManifestId, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
    let prefix = tables::chunk_prefix(id);
    for pair in shared.kv.pairs(&prefix) {
        let Some(placed) = Placed::decode(&pair.map_err(index_error)?.1) else { continue };
        if shared.stopping() {
            return Err(Error::Closed);
        }
        let members = shared.read_chunk(placed).unwrap_or_default();
        members.iter().for_each(|member| each(&member.hash));
    }
    Ok(())
}
