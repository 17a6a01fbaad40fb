//! dag-pb: `PBNode { 1: Data, 2: Links { 1: Hash, 2: Name, 3: Tsize } }`, strict as the specification has it:
//! links before data on the wire, fields of a link in order, no unknown field, no repeat.
//! <https://ipld.io/specs/codecs/dag-pb/spec/>

use floe_core::Cid;

use super::{Malformed, binary_cid};

/// A decoded node; data and names borrow from the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<'a> {
    /// Links, in wire order.
    pub links: Vec<PbLink<'a>>,
    /// The data field, if it is there.
    pub data: Option<&'a [u8]>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PbLink<'a> {
    /// Where to.
    pub cid: Cid,
    /// The name, if it is there.
    pub name: Option<&'a [u8]>,
    /// The cumulative size somebody claimed.
    pub tsize: Option<u64>,
}

/// A cursor over protobuf fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, rest) =
            unsigned_varint::decode::u64(self.0).map_err(|e| Malformed(format!("a varint: {e}")))?;
        self.0 = rest;
        Ok(value)
    }

    /// The next (field number, wire type), or `None` at the end.
    fn tag(&mut self) -> Result<Option<(u64, u64)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        Ok(Some((tag >> 3, tag & 7)))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.varint()?;
        let len = usize::try_from(len).ok().filter(|len| *len <= self.0.len());
        let Some(len) = len else { return Malformed::new("a field reaches past the end of the block") };
        let (field, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(field)
    }
}

impl<'a> Node<'a> {
    /// Decodes a node.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(block: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(block);
        let mut node = Self { links: Vec::new(), data: None };
        let mut links_done = false;
        while let Some(tag) = fields.tag()? {
            match tag {
                (1, 2) if node.data.is_none() => {
                    node.data = Some(fields.bytes()?);
                    // Old writers put data first; then no link may follow a second time.
                    links_done |= !node.links.is_empty();
                }
                (2, 2) if !links_done => node.links.push(PbLink::decode(fields.bytes()?)?),
                (1, 2) => return Malformed::new("the data field is there twice"),
                (2, 2) => return Malformed::new("links on both sides of the data"),
                (field, wire) => {
                    return Malformed::new(format!("field {field} of wire type {wire} in a node"));
                }
            }
        }
        Ok(node)
    }
}

impl<'a> PbLink<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let (mut cid, mut name, mut tsize) = (None, None, None);
        let mut last = 0;
        while let Some((field, wire)) = fields.tag()? {
            if field <= last {
                return Malformed::new("the fields of a link are out of order");
            }
            last = field;
            match (field, wire) {
                (1, 2) => cid = Some(binary_cid(fields.bytes()?)?),
                (2, 2) => name = Some(fields.bytes()?),
                (3, 0) => tsize = Some(fields.varint()?),
                _ => return Malformed::new(format!("field {field} of wire type {wire} in a link")),
            }
        }
        match cid {
            Some(cid) => Ok(Self { cid, name, tsize }),
            None => Malformed::new("a link without a hash"),
        }
    }
}
