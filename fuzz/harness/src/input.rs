//! The fuzzer's bytes, taken from the front; when they are used up, zeros follow.

/// What is left of an input.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// A number below `end`, or 0 when that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let number = if end <= 256 { usize::from(self.u8()) } else { usize::from(self.u16()) };
        number.checked_rem(end).unwrap_or(0)
    }

    /// Up to `max` bytes as they are.
    pub(crate) fn bytes(&mut self, max: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(max.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let bytes = self.bytes(N);
        taken[..bytes.len()].copy_from_slice(bytes);
        taken
    }
}
