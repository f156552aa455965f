//! Codecs of the broker's own messages, generated from `schema/*.schema`.

/// Records of the metadata log.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
pub(crate) mod records {
    include!(concat!(env!("OUT_DIR"), "/records.rs"));
}

/// Requests to the controller and its answers.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
pub(crate) mod controller {
    include!(concat!(env!("OUT_DIR"), "/controller.rs"));
}

/// What the metadata quorum stores and says.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
pub(crate) mod internal {
    include!(concat!(env!("OUT_DIR"), "/internal.rs"));
}
