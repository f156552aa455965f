//! What must hold for any bytes that are taken for stored ones: an error at worst. The fuzz targets beside `src` and the
//! property tests below call the same functions.

use bytes::BufMut;
use uuid::Uuid;

use super::frame::{self, Entry, FrameHeader, HEADER_LEN};
use super::keys::{self, Format, LogRecord, PlacedRun, Position};
use crate::storage::batch::{self, WholeBatches};

/// Takes `bytes` for a frame, as they are and with checksums that fit: without those nothing else would be reached.
///
/// # Panics
/// Entries overlap, reach out of the frame, or are not what they are when written again.
pub fn frame(bytes: &[u8]) {
    look_at_frame(bytes);
    let Some((counts, body)) = bytes.split_at_checked(5) else { return };
    let table_length = usize::from(u16::from_be_bytes([counts[0], counts[1]]));
    let mut sealed = vec![0; HEADER_LEN];
    sealed.put_slice(body);
    let file_length = u64::from(u16::from_be_bytes([counts[3], counts[4]])) << 12;
    let volume = Uuid::from_u128(3);
    FrameHeader::seal(&mut sealed, volume, 5, 9, 8, 7, table_length, counts[2].into(), file_length);
    look_at_frame(&sealed);
}

fn look_at_frame(bytes: &[u8]) {
    let Some(header) = FrameHeader::decode(bytes) else { return };
    let Some(entries) = header.entries(bytes) else { return };
    let mut position = HEADER_LEN + header.table_length as usize;
    for (entry, at) in &entries {
        assert_eq!(*at as usize, position, "batches follow each other");
        position += entry.data_length() as usize;
    }
    assert_eq!(position, header.length as usize, "batches end with the frame");
    let entries: Vec<Entry> = entries.into_iter().map(|(entry, _)| entry).collect();
    let mut again = vec![0; HEADER_LEN];
    let mut table = Vec::new();
    frame::encode_table(&entries, &mut table);
    again.put_slice(&table);
    again.resize(HEADER_LEN + table.len() + position - HEADER_LEN - header.table_length as usize, 0);
    FrameHeader::seal(&mut again, Uuid::nil(), 1, 1, 0, 0, table.len(), entries.len(), 0);
    let read = FrameHeader::decode(&again).and_then(|header| header.entries(&again)).expect("just written");
    assert!(read.iter().map(|(entry, _)| entry).eq(&entries));
}

/// Takes `bytes` for each key and value of the index.
///
/// # Panics
/// A value is not what it is when written again.
pub fn index_values(bytes: &[u8]) {
    let _ = (keys::decode_log(bytes), keys::decode_segment(bytes));
    if let Some(format) = Format::decode(bytes) {
        assert_eq!(Format::decode(&format.encode()), Some(format));
    }
    if let Some(position) = Position::decode(bytes) {
        assert_eq!(position.encode(), bytes);
    }
    if let Some(record) = LogRecord::decode(bytes) {
        assert_eq!(LogRecord::decode(&record.encode()).as_ref(), Some(&record));
    }
    if let Some(placed) = PlacedRun::decode(bytes) {
        let _ = (placed.end_position(), placed.run.next_offset());
        assert_eq!(placed.encode(), bytes);
    }
    if let Some(state) = keys::decode_state(bytes) {
        assert_eq!(keys::encode_state(&state), bytes);
    }
}

/// Takes `bytes` for the batches of a run, whose offsets and epoch are the first 20 of them.
///
/// # Panics
/// What fits the run is not all of it, or its offsets do not rise.
pub fn stored_batches(bytes: &[u8]) {
    let Some((run, bytes)) = bytes.split_at_checked(20) else { return };
    let number = |from: &[u8]| from.iter().fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
    let (base_offset, last_offset) = (number(&run[..8]), number(&run[8..16]));
    let leader_epoch = i32::try_from(number(&run[16..20]) >> 1).unwrap_or_default();
    let _ = (batch::check_sums(bytes), batch::parse_whole(bytes));
    let headers: Vec<_> = WholeBatches::new(bytes).collect();
    for (position, header) in &headers {
        assert!(
            position + header.size_in_bytes() <= bytes.len() && header.next_offset() > header.base_offset
        );
    }
    if batch::check_layout(bytes, base_offset, last_offset, leader_epoch).is_ok() {
        let length: usize = headers.iter().map(|(_, header)| header.size_in_bytes()).sum();
        assert_eq!(length, bytes.len());
        assert!(headers.windows(2).all(|pair| pair[0].1.next_offset() <= pair[1].1.base_offset));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_stored_ones_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            frame(&bytes);
            index_values(&bytes);
            stored_batches(&bytes);
        }

        #[test]
        fn any_table_is_read_or_refused(
            kinds in proptest::collection::vec((0..7_u8, any::<[u8; 20]>(), any::<[u8; 57]>(), 0..200_u8), 0..5),
            data in 0..500_usize,
        ) {
            let mut table = Vec::new();
            for (kind, partition, fields, length) in &kinds {
                table.put_u8(*kind);
                table.put_slice(partition);
                table.put_slice(&fields[..52]);
                table.put_u32((*length).into());
            }
            let mut bytes = Vec::new();
            bytes.put_u16(u16::try_from(table.len()).expect("short"));
            bytes.put_u8(u8::try_from(kinds.len()).expect("few"));
            bytes.put_u16(3);
            bytes.put_slice(&table);
            bytes.resize(bytes.len() + data, 1);
            frame(&bytes);
        }

        #[test]
        fn any_value_of_this_version_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            index_values(&[&[1], bytes.as_slice()].concat());
        }
    }
}
