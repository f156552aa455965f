//! An image in the making: records are collected and applied at once, so that later parts of a request see earlier ones.

use crate::metadata::image::MetadataImage;
use crate::metadata::records::Record;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Draft {
    image: MetadataImage,
    records: Vec<Record>,
}

impl Draft {
    pub(super) fn new(image: &MetadataImage) -> Self {
        Self { image: image.clone(), records: Vec::new() }
    }

    pub(super) fn image(&self) -> &MetadataImage {
        &self.image
    }

    /// What was drafted so far.
    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Adds a record that fits the image as drafted so far.
    pub(super) fn push(&mut self, record: Record) {
        // The entry's index is not known before it is proposed; only a registration uses it, and no decision reads
        // the epoch of a broker that registers in the same request.
        let log_index = self.image.log_index + 1;
        self.image
            .apply(&record, log_index)
            .expect("the controller makes records that fit the image they come from");
        self.records.push(record);
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// Runs `change` and keeps what it did only if `keep` says so: a validate-only request leaves no records.
    pub(super) fn attempt<T>(&mut self, keep: bool, change: impl FnOnce(&mut Self) -> T) -> T {
        if keep {
            return change(self);
        }
        let mut copy = Self::new(&self.image);
        change(&mut copy)
    }
}
