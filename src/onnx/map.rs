//! Memory maps, and the buffer an encoding is collected in. Together they are the only `unsafe` code outside the
//! kernels.
#![allow(unsafe_code, reason = "a memory map and a `BufMut` cannot be had without it; each use says why it is sound")]

use std::fs::File;
use std::io;

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut, Bytes};
use memmap2::{Mmap, MmapOptions};

/// The contents of a file as bytes that the system pages in and out. Slices of the result share the map and keep it
/// alive; nothing is read until somebody looks.
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the bytes are only ever read. Another process that shortens or rewrites the file while it is mapped
    // breaks this, as it does for every program that maps files; the writer never touches a file it has mapped, it
    // replaces names.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

/// Stand-ins for payloads that do not exist yet: slices of zeros that take no memory. An encoder needs their length
/// only; the writer recognises them by their place and puts the real bytes where they stood.
#[derive(Debug)]
pub(crate) struct Holes {
    zeros: Bytes,
    count: usize,
}

impl Holes {
    /// Room for `count` holes of at most `longest` bytes.
    pub(crate) fn new(count: usize, longest: usize) -> io::Result<Holes> {
        if count == 0 {
            return Ok(Holes { zeros: Bytes::new(), count });
        }
        let length = longest.checked_add(count).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(length).no_reserve_swap().map_anon()?.make_read_only()?;
        Ok(Holes { zeros: Bytes::from_owner(map), count })
    }

    /// The stand-in number `index` for a payload of `len` bytes; `None` when it does not fit in the room made.
    pub(crate) fn hole(&self, index: usize, len: usize) -> Option<Bytes> {
        let end = index.checked_add(len)?;
        (index < self.count && len > 0 && end <= self.zeros.len()).then(|| self.zeros.slice(index..end))
    }

    /// The number of the hole these bytes are, if they are one.
    pub(crate) fn index_of(&self, bytes: &Bytes) -> Option<usize> {
        let index = bytes.as_ptr().addr().checked_sub(self.zeros.as_ptr().addr())?;
        (index < self.count).then_some(index)
    }
}

/// Payloads at least this long stay views in a [`Rope`]; shorter ones are copied.
pub(crate) const VIEW: usize = 4096;

/// An encoding as a list of pieces. Long payloads are kept as the views they were, so that a model of any size is
/// encoded in the memory its structure takes.
#[derive(Debug, Default)]
pub(crate) struct Rope {
    pieces: Vec<Bytes>,
    tail: Vec<u8>,
    len: usize,
}

impl Rope {
    /// Bytes collected so far.
    pub(crate) fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    /// The pieces in order.
    pub(crate) fn into_pieces(mut self) -> Vec<Bytes> {
        self.close_tail();
        self.pieces
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.len += self.tail.len();
            self.pieces.push(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}

// SAFETY: every method that touches memory is the one of `Vec<u8>`, called on `tail`; `put` adds a whole piece and
// leaves `tail` valid.
unsafe impl BufMut for Rope {
    fn remaining_mut(&self) -> usize {
        self.tail.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller has initialised `count` bytes of the slice that `chunk_mut` took from `tail`.
        unsafe { self.tail.advance_mut(count) }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.tail.chunk_mut()
    }

    fn put<T: Buf>(&mut self, mut source: T) {
        if source.remaining() < VIEW {
            self.tail.put(source);
            return;
        }
        self.close_tail();
        let piece = source.copy_to_bytes(source.remaining());
        self.len += piece.len();
        self.pieces.push(piece);
    }

    fn put_slice(&mut self, source: &[u8]) {
        self.tail.put_slice(source);
    }

    fn put_u8(&mut self, byte: u8) {
        self.tail.put_u8(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rope_keeps_long_payloads_as_views() {
        let long = Bytes::from(vec![7; VIEW]);
        let mut rope = Rope::default();
        rope.put_slice(b"ab");
        rope.put(long.clone());
        rope.put_u8(b'c');
        assert_eq!(rope.len(), VIEW + 3);
        let pieces = rope.into_pieces();
        assert_eq!(pieces.concat(), [b"ab".as_slice(), &long, b"c"].concat());
        assert_eq!(pieces[1].as_ptr(), long.as_ptr());
    }

    #[test]
    fn holes_are_told_apart_and_from_other_bytes() -> io::Result<()> {
        let holes = Holes::new(2, 10)?;
        for index in 0..2 {
            let hole = holes.hole(index, 10).ok_or(io::ErrorKind::Other)?;
            assert_eq!((hole.len(), holes.index_of(&hole)), (10, Some(index)));
        }
        assert_eq!(holes.hole(2, 1), None);
        assert_eq!(holes.index_of(&Bytes::from_static(b"x")), None);
        Ok(())
    }
}
