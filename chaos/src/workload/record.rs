//! What is in a record: who wrote it, its number, and a checksum, so that it can be told anywhere.

/// Name of a record within its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Producer, by its place in the workload.
    pub producer: u16,
    /// Which of the producer's records for this partition; without gaps, from 0.
    pub number: u64,
}

const ID_LEN: usize = 10;
const CHECKSUM_LEN: usize = 4;

/// Most bytes beside what is needed.
const MAX_PADDING: u64 = 1500;

impl RecordId {
    /// The record's value. Its length differs from record to record, and is the same every time.
    pub fn encode(self) -> Vec<u8> {
        let mut value = Vec::with_capacity(ID_LEN + CHECKSUM_LEN + usize::from(self.padding()));
        value.extend_from_slice(&self.producer.to_be_bytes());
        value.extend_from_slice(&self.number.to_be_bytes());
        value.extend((0..self.padding()).map(|n| (u64::from(n) ^ self.number) as u8));
        let checksum = checksum(&value);
        value.extend_from_slice(&checksum.to_be_bytes());
        value
    }

    /// The name in a value; `None` if the value is not one that [`encode`](Self::encode) made, bit for bit.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (content, stored) = value.split_last_chunk::<CHECKSUM_LEN>()?;
        let producer = u16::from_be_bytes(*content.first_chunk()?);
        let number = u64::from_be_bytes(*content.get(2..)?.first_chunk()?);
        let id = Self { producer, number };
        let whole = content.len() == ID_LEN + usize::from(id.padding());
        (whole && checksum(content) == u32::from_be_bytes(*stored)).then_some(id)
    }

    fn padding(self) -> u16 {
        // Mixed well enough that neighbours differ.
        let mixed = (self.number ^ u64::from(self.producer) << 48).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        (mixed % MAX_PADDING) as u16
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record {} of producer {}", self.number, self.producer)
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_known_by_its_value_and_a_changed_one_by_nothing() {
        for number in [0, 1, 77, u64::from(u32::MAX)] {
            let id = RecordId { producer: 3, number };
            let value = id.encode();
            assert_eq!(RecordId::decode(&value), Some(id));
            for at in [0, 5, value.len() / 2, value.len() - 1] {
                let mut changed = value.clone();
                changed[at] ^= 1;
                assert_eq!(RecordId::decode(&changed), None);
            }
            assert_eq!(RecordId::decode(&value[1..]), None);
        }
    }
}
