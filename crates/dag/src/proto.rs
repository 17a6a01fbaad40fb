//! The part of protobuf's wire format that dag-pb and UnixFS use.

/// A field's value.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Fixed-width numbers: in no schema here, skipped where unknown fields are.
    Fixed,
}

/// Reads fields one after another.
pub(crate) struct Fields<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next field's number and value; `Ok(None)` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, &'static str> {
        if self.at == self.data.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err("unknown protobuf wire type"),
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], &'static str> {
        let left = &self.data[self.at..];
        let len =
            usize::try_from(len).ok().filter(|len| *len <= left.len()).ok_or("a field ends past the end")?;
        self.at += len;
        Ok(&left[..len])
    }

    /// Like every protobuf reader, takes longer forms of a number too: the hash binds the bytes, so there is no
    /// second form of a block to confuse it with.
    pub(crate) fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.data.get(self.at).ok_or("a number ends past the end")?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err("a number has more than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number has more than 64 bits")
    }
}
