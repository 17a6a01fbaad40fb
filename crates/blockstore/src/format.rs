//! The directory: what may be in it, and which version wrote it.
//!
//! ```text
//! FORMAT          "floe blocks 1", and the salt of the record headers
//! packs/          pack-00000001 …: the log, and the truth
//! hints/          hint-00000001 …: what a walk over each sealed pack finds; derived
//! index-1.redb    or index-1.sled/: derived
//! quarantine/     bytes of blocks that did not match their hash
//! scratch/        visited sets of running walks; emptied by open
//! rebuild         the index is not to be trusted: the next open makes it again
//! scrub           how far the scrub in the background is
//! kept            space for releases and checkpoints on a full disk
//! ```
//!
//! `FORMAT` is written last at init, so a directory without it that holds nothing but what init makes is a half
//! written one and is completed. Anything else without it is somebody else's and is refused. If only `FORMAT` is
//! damaged, the packs' own headers say the same again.

use std::path::{Path, PathBuf};

use floe_core::ports::Entropy;

use crate::disk::{self, Disk};
use crate::error::Error;
use crate::index::redb_index;
use crate::mark;
use crate::packs;
use crate::patrol;

const VERSION: u32 = 1;
const NAME: &str = "FORMAT";
const FIRST_LINE: &str = "floe blocks";
const OURS: [&str; 12] = [
    NAME,
    "FORMAT.new",
    "packs",
    "hints",
    redb_index::FILE,
    "index-1.sled",
    "quarantine",
    "scratch",
    "kept",
    mark::FILE,
    patrol::FILE,
    "scrub.new",
];

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    pub(crate) packs: PathBuf,
    pub(crate) hints: PathBuf,
    pub(crate) quarantine: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) kept: PathBuf,
}

impl Layout {
    fn new(root: &Path) -> Self {
        Self {
            root: root.into(),
            packs: root.join("packs"),
            hints: root.join("hints"),
            quarantine: root.join("quarantine"),
            scratch: root.join("scratch"),
            kept: root.join("kept"),
        }
    }
}

/// Makes or checks the directory. Returns the store's salt: that of a new one is random, so that records of another store
/// in a pack are not taken for its own.
pub(crate) fn open(disk: &dyn Disk, root: &Path, entropy: &dyn Entropy) -> Result<(Layout, u64), Error> {
    let layout = Layout::new(root);
    let fail = |e: std::io::Error| Error::io(root, "prepare", &e);
    disk.create_dir(root).map_err(fail)?;
    let text = disk::read_small(disk, &root.join(NAME), 4096).map_err(fail)?;
    let salt = match text.as_deref().map(parse) {
        Some(Parsed::Ours(salt)) => salt,
        Some(Parsed::Version(v)) => {
            return Err(refuse(
                root,
                &format!(
                    "the blocks are of version {v}; this program reads version {VERSION}: use a newer program"
                ),
            ));
        }
        found => match salt_of_packs(disk, &layout).map_err(fail)? {
            Some(salt) => {
                tracing::warn!(
                    "{} is damaged or missing; written again from the packs",
                    root.join(NAME).display()
                );
                init(disk, &layout, salt).map_err(fail)?;
                salt
            }
            None if found.is_some() => {
                return Err(refuse(
                    root,
                    "FORMAT is not one of a Floe block store: choose another directory",
                ));
            }
            None => {
                refuse_foreign(disk, &layout)?;
                let mut salt = [0; 8];
                entropy.fill(&mut salt);
                let salt = u64::from_le_bytes(salt);
                init(disk, &layout, salt).map_err(fail)?;
                salt
            }
        },
    };
    for dir in [&layout.packs, &layout.hints, &layout.quarantine, &layout.scratch] {
        disk.create_dir(dir).map_err(fail)?;
    }
    disk.sync_dir(root).map_err(fail)?;
    for name in disk.list(&layout.scratch).map_err(fail)? {
        disk.remove(&layout.scratch.join(name)).map_err(fail)?;
    }
    Ok((layout, salt))
}

fn init(disk: &dyn Disk, layout: &Layout, salt: u64) -> std::io::Result<()> {
    for dir in [&layout.packs, &layout.quarantine, &layout.scratch] {
        disk.create_dir(dir)?;
    }
    let text = format!("{FIRST_LINE} {VERSION}\nsalt {salt:016x}\n");
    disk::write_small(disk, &layout.root, NAME, text.as_bytes())
}

enum Parsed {
    Ours(u64),
    Version(u32),
    Unknown,
}

fn parse(text: &[u8]) -> Parsed {
    let parsed = (|| {
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        let version: u32 = lines.next()?.strip_prefix(FIRST_LINE)?.trim().parse().ok()?;
        if version != VERSION {
            return Some(Parsed::Version(version));
        }
        let salt = u64::from_str_radix(lines.next()?.strip_prefix("salt ")?, 16).ok()?;
        Some(Parsed::Ours(salt))
    })();
    parsed.unwrap_or(Parsed::Unknown)
}

fn refuse(path: &Path, reason: &str) -> Error {
    Error::Directory { path: path.into(), reason: reason.into() }
}

fn refuse_foreign(disk: &dyn Disk, layout: &Layout) -> Result<(), Error> {
    let names = disk.list(&layout.root).map_err(|e| Error::io(&layout.root, "list", &e))?;
    match names.iter().find(|n| !OURS.contains(&n.as_str())) {
        Some(name) => Err(refuse(
            &layout.root,
            &format!("the directory is not a Floe block store (it holds {name}): choose an empty one"),
        )),
        None => Ok(()),
    }
}

fn salt_of_packs(disk: &dyn Disk, layout: &Layout) -> std::io::Result<Option<u64>> {
    let names = match disk.list(&layout.packs) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    for name in names {
        let Some(id) = packs::id_of(&name) else { continue };
        let head = disk::read_small(disk, &layout.packs.join(&name), packs::HEADER)?.unwrap_or_default();
        if let Some((salt, _)) = packs::decode_header(id, &head) {
            return Ok(Some(salt));
        }
    }
    Ok(None)
}
