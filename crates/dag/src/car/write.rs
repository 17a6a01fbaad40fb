//! Writing a CAR of version 1. The same roots and blocks in the same order give the same bytes.

use std::io::Write;

use floe_core::{Block, Cid};

use super::{CarError, header};

/// Writes a CAR, section by section, to anything that is [`Write`].
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`CarError::TooManyRoots`], [`CarError::Io`].
    pub fn new(to: W, roots: &[Cid]) -> Result<Self, CarError> {
        let mut writer = Self { to, written: 0 };
        writer.put(&header::write(roots)?)?;
        Ok(writer)
    }

    /// Writes a block. Returns where its section begins.
    ///
    /// # Errors
    /// [`CarError::Io`]; the file is then of no use.
    pub fn write(&mut self, block: &Block) -> Result<u64, CarError> {
        let at = self.written;
        self.put(&section_head(block.cid(), block.data().len()))?;
        self.put(block.data())?;
        Ok(at)
    }

    /// Flushes, and gives back what was written to.
    ///
    /// # Errors
    /// [`CarError::Io`].
    pub fn finish(mut self) -> Result<W, CarError> {
        self.to.flush().map_err(io)?;
        Ok(self.to)
    }

    /// Bytes written.
    pub fn written(&self) -> u64 {
        self.written
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CarError> {
        self.to.write_all(bytes).map_err(io)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn io(error: std::io::Error) -> CarError {
    CarError::Io(error.to_string())
}

/// Bytes of the section of a block with so many bytes of data, with its length before it.
pub fn section_len(cid: &Cid, data_bytes: usize) -> u64 {
    section_head(cid, data_bytes).len() as u64 + data_bytes as u64
}

/// What stands before the data of a section: its length and the CID.
pub(super) fn section_head(cid: &Cid, data_bytes: usize) -> Vec<u8> {
    let mut head = varint((cid.encoded_len() + data_bytes) as u64);
    head.extend_from_slice(&cid.to_bytes());
    head
}

pub(super) fn varint(number: u64) -> Vec<u8> {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    unsigned_varint::encode::u64(number, &mut buffer).to_vec()
}
