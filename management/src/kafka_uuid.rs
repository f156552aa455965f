//! Uuids as Kafka prints them: 22 characters of URL-safe base64 without padding.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// Kafka's text form, as in `cluster.id`.
pub fn format(uuid: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(uuid.as_bytes())
}

/// Reads Kafka's text form; `None` for anything else.
pub fn parse(text: &str) -> Option<Uuid> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(Uuid::from_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let uuid = Uuid::from_u128(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
        assert_eq!(format(uuid).len(), 22);
        assert_eq!(parse(&format(uuid)), Some(uuid));
    }

    #[test]
    fn refuses_other_lengths_and_alphabets() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("AAAAAAAAAAAAAAAAAAAAA"), None);
        assert_eq!(parse("AAAAAAAAAAAAAAAAAAAA+/"), None);
    }
}
