//! Secrets with the certificates of the fleet listener. What they hold is decided in [`crate::certificates`].

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference};

use super::{Names, owned_metadata};
use crate::certificates::{Authorities, Leaf};

/// When the certificate authorities last moved on to another phase of their renewal.
pub const PHASE_SINCE_ANNOTATION: &str = "millrace.dev/phase-since";
/// The certificate authority in use: `ca.crt`, `ca.key`.
pub const AUTHORITY_CERTIFICATE: &str = "ca.crt";
/// Its key.
pub const AUTHORITY_KEY: &str = "ca.key";
/// The authority that comes next, already trusted everywhere, not yet used.
pub const NEXT_CERTIFICATE: &str = "next.crt";
/// Its key.
pub const NEXT_KEY: &str = "next.key";
/// The authority that was used before, still trusted.
pub const PREVIOUS_CERTIFICATE: &str = "previous.crt";
/// Certificate of a leaf.
pub const LEAF_CERTIFICATE: &str = "tls.crt";
/// Key of a leaf.
pub const LEAF_KEY: &str = "tls.key";

/// The Secret that keeps the certificate authorities. Only the operator reads it.
pub fn authority_secret(names: &Names, owner: &OwnerReference, authorities: &Authorities) -> Secret {
    let mut metadata = owned_metadata(names, owner, names.authority_secret());
    metadata.annotations =
        Some(BTreeMap::from([(PHASE_SINCE_ANNOTATION.to_owned(), authorities.phase_since.to_string())]));
    let mut data = BTreeMap::new();
    let mut put = |key: &str, pem: &str| data.insert(key.to_owned(), ByteString(pem.as_bytes().to_vec()));
    put(AUTHORITY_CERTIFICATE, &authorities.current.certificate);
    if let Some(key) = &authorities.current.key {
        put(AUTHORITY_KEY, key.expose());
    }
    if let Some(next) = &authorities.next {
        put(NEXT_CERTIFICATE, &next.certificate);
        if let Some(key) = &next.key {
            put(NEXT_KEY, key.expose());
        }
    }
    if let Some(previous) = &authorities.previous {
        put(PREVIOUS_CERTIFICATE, &previous.certificate);
    }
    Secret { metadata, type_: Some("Opaque".to_owned()), data: Some(data), ..Secret::default() }
}

/// A Secret with a leaf certificate and the authorities to trust, as pods mount it.
pub fn leaf_secret(names: &Names, owner: &OwnerReference, name: String, leaf: &Leaf, trust: &str) -> Secret {
    let data = [
        (LEAF_CERTIFICATE, leaf.certificate.as_str()),
        (LEAF_KEY, leaf.key.expose()),
        (AUTHORITY_CERTIFICATE, trust),
    ];
    Secret {
        metadata: owned_metadata(names, owner, name),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec()))).collect(),
        ),
        ..Secret::default()
    }
}
