//! The codecs of record batches.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;

use super::BatchError;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// snappy, in the framing of snappy-java or bare.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// All codecs, by code.
    pub const ALL: &'static [Self] = &[Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The codec with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The number in the attributes of a batch.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The name in `compression.type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The codec that `compression.type` names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|codec| codec.name() == name)
    }

    /// Compresses at the codec's usual level, in the framing that Java reads and writes.
    pub fn compress(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::None => Ok(bytes.to_vec()),
            Self::Gzip => gzip(bytes),
            Self::Snappy => Ok(snappy::compress(bytes)),
            Self::Lz4 => lz4(bytes),
            Self::Zstd => zstd::bulk::compress(bytes, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
        .expect("writing to memory does not fail")
    }

    /// Decompresses into at most `limit` bytes.
    ///
    /// # Errors
    /// Damaged input, or more than `limit` bytes; never more than about that is allocated.
    pub fn decompress(self, bytes: &[u8], limit: usize) -> Result<Bytes, BatchError> {
        let read = match self {
            Self::None => read_up_to(bytes, limit),
            Self::Gzip => read_up_to(flate2::read::MultiGzDecoder::new(bytes), limit),
            Self::Snappy => snappy::decompress(bytes, limit),
            Self::Lz4 => read_up_to(lz4_flex::frame::FrameDecoder::new(bytes), limit),
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(bytes).and_then(|d| read_up_to(d, limit)),
        };
        match read {
            Ok(Some(out)) => Ok(out.into()),
            Ok(None) => Err(BatchError::TooLarge { limit }),
            Err(error) => Err(BatchError::Decompress { codec: self, reason: error.to_string() }),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything in `reader`, or `None` if that is more than `limit` bytes.
fn read_up_to(reader: impl Read, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    reader.take((limit as u64).saturating_add(1)).read_to_end(&mut out)?;
    Ok((out.len() <= limit).then_some(out))
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn lz4(bytes: &[u8]) -> io::Result<Vec<u8>> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    // Java refuses blocks that depend on each other.
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(bytes)?;
    encoder.finish().map_err(io::Error::from)
}

/// snappy as snappy-java frames it: a header, then blocks with their length in front. Some clients write one bare block.
mod snappy {
    use std::io;

    const MAGIC: &[u8] = b"\x82SNAPPY\0";
    const HEADER_LEN: usize = 16;
    const VERSION: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
    const BLOCK_LEN: usize = 32 << 10;

    pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = snap::raw::Encoder::new();
        let mut out = [MAGIC, &VERSION].concat();
        for block in bytes.chunks(BLOCK_LEN) {
            let block = encoder.compress_vec(block).expect("a block is far below 4 GiB");
            out.extend_from_slice(&u32::try_from(block.len()).expect("as above").to_be_bytes());
            out.extend_from_slice(&block);
        }
        out
    }

    pub(super) fn decompress(bytes: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        if !bytes.starts_with(MAGIC) {
            return Ok(append(&mut out, bytes, limit)?.then_some(out));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            // Streams may have been put one behind the other.
            if rest.starts_with(MAGIC) {
                rest = rest.get(HEADER_LEN..).ok_or_else(cut_off)?;
                continue;
            }
            let (len, tail) = rest.split_first_chunk().ok_or_else(cut_off)?;
            let (block, tail) =
                tail.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or_else(cut_off)?;
            if !append(&mut out, block, limit)? {
                return Ok(None);
            }
            rest = tail;
        }
        Ok(Some(out))
    }

    /// False if `out` would grow beyond `limit`.
    fn append(out: &mut Vec<u8>, block: &[u8], limit: usize) -> io::Result<bool> {
        let len = snap::raw::decompress_len(block)?;
        // The format cannot expand more than this; the claim is checked before memory is taken for it.
        if len > block.len().saturating_mul(64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the claimed length is impossible"));
        }
        let start = out.len();
        if len > limit - start {
            return Ok(false);
        }
        out.resize(start + len, 0);
        let written = snap::raw::Decoder::new().decompress(block, &mut out[start..])?;
        out.truncate(start + written);
        Ok(true)
    }

    fn cut_off() -> io::Error {
        io::Error::new(io::ErrorKind::UnexpectedEof, "cut off")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn text() -> Vec<u8> {
        (0..40_000_u32).flat_map(|i| (i % 1000).to_be_bytes()).collect()
    }

    #[test]
    fn every_codec_round_trips() {
        for &codec in Compression::ALL {
            for bytes in [text(), b"x".to_vec(), Vec::new()] {
                let compressed = codec.compress(&bytes);
                assert_eq!(codec.decompress(&compressed, bytes.len()).unwrap(), bytes, "{codec}");
            }
        }
    }

    #[test]
    fn output_beyond_the_limit_is_refused() {
        for &codec in Compression::ALL {
            let compressed = codec.compress(&text());
            let error = codec.decompress(&compressed, text().len() - 1).unwrap_err();
            assert_eq!(error, BatchError::TooLarge { limit: text().len() - 1 }, "{codec}");
        }
    }

    #[test]
    fn damaged_input_is_an_error() {
        for &codec in &Compression::ALL[1..] {
            let mut compressed = codec.compress(&text());
            compressed.truncate(compressed.len() / 2);
            let error = codec.decompress(&compressed, 1 << 20).unwrap_err();
            assert!(
                matches!(error, BatchError::Decompress { codec: c, .. } if c == codec),
                "{codec}: {error}"
            );
            let error = codec.decompress(b"\xff\xff\xff\xff\x0fgarbage", 1 << 20).unwrap_err();
            assert!(!matches!(error, BatchError::InvalidRecord { .. }), "{codec}: {error}");
        }
    }

    #[test]
    fn bare_and_concatenated_snappy_is_read() {
        let bare = snap::raw::Encoder::new().compress_vec(&text()).unwrap();
        assert_eq!(Compression::Snappy.decompress(&bare, 1 << 20).unwrap(), text());
        let twice = [Compression::Snappy.compress(b"one "), Compression::Snappy.compress(b"two")].concat();
        assert_eq!(Compression::Snappy.decompress(&twice, 1 << 20).unwrap(), "one two");
    }
}
