//! Reading a CAR, block by block, from bytes as they come.

use std::io::Read;

use bytes::{Buf as _, Bytes, BytesMut};
use floe_core::{Block, Cid};
use unsigned_varint::decode::{self, Error as VarintError};

use super::CarError;
use super::header::{self, V2_BYTES};
use crate::limits::{self, CAR_READ_BYTES, MAX_CAR_HEADER_BYTES, MAX_CAR_SECTION_BYTES};

/// What a section of no bytes means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// An error: a CAR file has none.
    Refused,
    /// The end: in a piece, zeros follow the CAR.
    End,
}

/// A block and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The block, checked.
    pub block: Block,
    /// Where the section begins, in bytes from the file's first, with its length before it.
    pub offset: u64,
    /// Bytes of the section, with its length before it.
    pub len: u64,
}

#[derive(Debug, Clone)]
enum State {
    /// Before the first header.
    First,
    /// Before the envelope of a version 2.
    Envelope,
    /// Before the data of a version 2, and then before its header of version 1.
    Inner(header::Data),
    Sections,
    /// What follows is not read.
    Done,
    Failed(CarError),
}

/// Takes the bytes of a CAR and gives its blocks. Keeps no more than one section and what was fed at a time: ask for
/// sections until there is none before feeding more.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// Where `buffer` begins in the file.
    at: u64,
    /// Where the data of a version 2 ends.
    end: Option<u64>,
    zeros: Zeros,
    state: State,
    version: u64,
    roots: Option<Vec<Cid>>,
}

impl Decoder {
    /// Before the first byte.
    pub fn new(zeros: Zeros) -> Self {
        let buffer = BytesMut::new();
        Self { buffer, at: 0, end: None, zeros, state: State::First, version: 0, roots: None }
    }

    /// The roots, once the header was read. They may be none, and nothing says that their blocks are there.
    pub fn roots(&self) -> Option<&[Cid]> {
        self.roots.as_deref()
    }

    /// The version, once the header was read.
    pub fn version(&self) -> Option<u64> {
        self.roots.as_ref().map(|_| self.version)
    }

    /// Feeds the next bytes of the file. Those behind its end are dropped.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Done | State::Failed(_)) {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next block, or `None` where more bytes are needed, or no more are read.
    ///
    /// # Errors
    /// [`CarError`], and the same one from then on.
    pub fn next_section(&mut self) -> Result<Option<Section>, CarError> {
        let next = self.advance();
        if let Err(error) = &next {
            self.state = State::Failed(error.clone());
            self.buffer = BytesMut::new();
        }
        next
    }

    /// Whether all that counts of the file was read: there is no need to feed the rest.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Says that there are no more bytes.
    ///
    /// # Errors
    /// [`CarError::Truncated`] where there should have been, or what was wrong before.
    pub fn finish(&self) -> Result<(), CarError> {
        match &self.state {
            State::Done => Ok(()),
            State::Failed(error) => Err(error.clone()),
            State::Sections if self.buffer.is_empty() && self.end.is_none() => Ok(()),
            _ => Err(CarError::Truncated(self.at + self.buffer.len() as u64)),
        }
    }

    fn advance(&mut self) -> Result<Option<Section>, CarError> {
        loop {
            let went_on = match self.state.clone() {
                State::First => self.first()?,
                State::Envelope => self.envelope()?,
                State::Inner(data) => self.inner(data)?,
                State::Sections => return self.section(),
                State::Done => return Ok(None),
                State::Failed(error) => return Err(error),
            };
            if !went_on {
                return Ok(None);
            }
        }
    }

    fn first(&mut self) -> Result<bool, CarError> {
        let Some(header) = self.header()? else { return Ok(false) };
        match (header.version, header.roots) {
            (1, Some(roots)) => {
                (self.version, self.roots, self.state) = (1, Some(roots), State::Sections);
            }
            (1, None) => return Err(CarError::Header("no roots".into())),
            (2, None) => self.state = State::Envelope,
            (2, Some(_)) => return Err(CarError::Header("roots outside of the data of a CARv2".into())),
            (other, _) => return Err(CarError::Version(other)),
        }
        Ok(true)
    }

    fn envelope(&mut self) -> Result<bool, CarError> {
        let Some(bytes) = self.buffer.first_chunk::<V2_BYTES>() else { return Ok(false) };
        let data = header::read_v2(bytes)?;
        self.consume(V2_BYTES);
        (self.end, self.state) = (Some(data.end), State::Inner(data));
        Ok(true)
    }

    fn inner(&mut self, data: header::Data) -> Result<bool, CarError> {
        let padding = usize::try_from(data.start.saturating_sub(self.at)).unwrap_or(usize::MAX);
        self.consume(padding.min(self.buffer.len()));
        if self.at < data.start {
            return Ok(false);
        }
        let Some(header) = self.header()? else { return Ok(false) };
        match (header.version, header.roots) {
            (1, Some(roots)) => {
                (self.version, self.roots, self.state) = (2, Some(roots), State::Sections);
                Ok(true)
            }
            (1, None) => Err(CarError::Header("no roots".into())),
            (other, _) => Err(CarError::Version(other)),
        }
    }

    fn header(&mut self) -> Result<Option<header::Header>, CarError> {
        let Some((prefix, len)) = self.length()? else { return Ok(None) };
        if len > MAX_CAR_HEADER_BYTES as u64 {
            limits::hit("car_header");
            return Err(CarError::HeaderTooLarge(len));
        }
        if len == 0 {
            return Err(CarError::Header("it is empty".into()));
        }
        let Some(bytes) = self.whole(prefix, len)? else { return Ok(None) };
        let header = header::read(bytes)?;
        self.consume(prefix + len as usize);
        Ok(Some(header))
    }

    fn section(&mut self) -> Result<Option<Section>, CarError> {
        if self.end == Some(self.at) {
            return Ok(self.done());
        }
        let Some((prefix, len)) = self.length()? else { return Ok(None) };
        let at = self.at;
        if len == 0 {
            return match self.zeros {
                Zeros::Refused => Err(CarError::EmptySection(at)),
                Zeros::End => Ok(self.done()),
            };
        }
        if len > MAX_CAR_SECTION_BYTES as u64 {
            limits::hit("car_section");
            return Err(CarError::SectionTooLarge { at, len });
        }
        let Some(mut bytes) = self.whole(prefix, len)? else { return Ok(None) };
        let cid = Cid::read_bytes(&mut bytes).map_err(|e| CarError::Cid { at, reason: e.to_string() })?;
        // A copy, so that a small block does not keep the buffer it came in.
        let block = Block::new(cid, Bytes::copy_from_slice(bytes));
        let block = block.map_err(|source| CarError::Block { at, source })?;
        let whole = prefix + len as usize;
        self.consume(whole);
        Ok(Some(Section { block, offset: at, len: whole as u64 }))
    }

    fn done(&mut self) -> Option<Section> {
        (self.state, self.buffer) = (State::Done, BytesMut::new());
        None
    }

    /// A length at the front: how many bytes it takes, and what it says.
    fn length(&self) -> Result<Option<(usize, u64)>, CarError> {
        match decode::u64(&self.buffer) {
            Ok((len, rest)) => Ok(Some((self.buffer.len() - rest.len(), len))),
            Err(VarintError::Insufficient) => Ok(None),
            Err(_) => Err(CarError::Length(self.at)),
        }
    }

    /// The `len` bytes behind a prefix, where they are there.
    fn whole(&self, prefix: usize, len: u64) -> Result<Option<&[u8]>, CarError> {
        let end = self.at.saturating_add(prefix as u64).saturating_add(len);
        if self.end.is_some_and(|data| end > data) {
            return Err(CarError::BeyondData(self.at));
        }
        // Both limits on `len` are far below what a usize holds.
        Ok(self.buffer.get(prefix..prefix + len as usize))
    }

    fn consume(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.at += bytes as u64;
    }
}

/// Reads a CAR from a file or any other [`Read`].
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    decoder: Decoder,
    chunk: Vec<u8>,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`CarError`].
    pub fn new(from: R, zeros: Zeros) -> Result<Self, CarError> {
        let chunk = vec![0; CAR_READ_BYTES];
        let mut reader = Self { from, decoder: Decoder::new(zeros), chunk, ended: false };
        // A block that is there already stays in the decoder: only the header is asked for.
        while reader.decoder.roots.is_none() {
            while reader.decoder.header_only()? {}
            if reader.decoder.roots.is_none() && !reader.fill()? {
                reader.decoder.finish()?;
            }
        }
        Ok(reader)
    }

    /// The roots.
    pub fn roots(&self) -> &[Cid] {
        self.decoder.roots().unwrap_or_default()
    }

    /// The version, 1 or 2.
    pub fn version(&self) -> u64 {
        self.decoder.version
    }

    /// Feeds what comes next; `false` at the end.
    fn fill(&mut self) -> Result<bool, CarError> {
        let read = loop {
            match self.from.read(&mut self.chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.map_err(|e| CarError::Io(e.to_string()))?,
            }
        };
        self.decoder.feed(&self.chunk[..read]);
        Ok(read > 0)
    }

    fn read_section(&mut self) -> Result<Option<Section>, CarError> {
        loop {
            if let Some(section) = self.decoder.next_section()? {
                return Ok(Some(section));
            }
            if self.decoder.is_done() || !self.fill()? {
                return self.decoder.finish().map(|()| None);
            }
        }
    }
}

impl Decoder {
    /// Goes on as far as the header; `false` where bytes are missing or the header was read.
    fn header_only(&mut self) -> Result<bool, CarError> {
        match self.state.clone() {
            State::First => self.first(),
            State::Envelope => self.envelope(),
            State::Inner(data) => self.inner(data),
            _ => Ok(false),
        }
    }
}

/// Each block once; an error is the last thing.
impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Section, CarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read_section().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
