//! API keys, and which header goes with which version.

pub use crate::messages::ApiKey;

impl ApiKey {
    /// The number on the wire.
    pub const fn code(self) -> i16 {
        self as i16
    }
}

/// Version of the request header in front of a body of `version`.
pub fn request_header_version(key: ApiKey, version: i16) -> i16 {
    if key.flexible_request_from().is_some_and(|from| version >= from) { 2 } else { 1 }
}

/// Version of the response header in front of a body of `version`.
///
/// ApiVersions responses always have header 0: the client cannot know yet which versions the broker speaks, and must be
/// able to find the error code (rule V1, KIP-511).
pub fn response_header_version(key: ApiKey, version: i16) -> i16 {
    if key == ApiKey::ApiVersions {
        return 0;
    }
    i16::from(key.flexible_response_from().is_some_and(|from| version >= from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_kafkas_numbers() {
        for &key in ApiKey::ALL {
            assert_eq!(ApiKey::from_code(key.code()), Some(key), "{}", key.name());
        }
        assert_eq!(ApiKey::from_code(18), Some(ApiKey::ApiVersions));
        assert_eq!(ApiKey::from_code(4), None, "LeaderAndIsr is gone");
        assert_eq!(ApiKey::from_code(-1), None);
    }

    #[test]
    fn v1_api_versions_responses_always_have_header_0() {
        assert_eq!([0, 2, 3, 4].map(|v| response_header_version(ApiKey::ApiVersions, v)), [0; 4]);
        assert_eq!([2, 3].map(|v| request_header_version(ApiKey::ApiVersions, v)), [1, 2]);
    }

    #[test]
    fn v5_flexible_versions_have_flexible_headers() {
        assert_eq!([8, 9].map(|v| request_header_version(ApiKey::Produce, v)), [1, 2]);
        assert_eq!([8, 9].map(|v| response_header_version(ApiKey::Produce, v)), [0, 1]);
        assert_eq!(request_header_version(ApiKey::SaslHandshake, 1), 1);
    }

    #[test]
    fn the_unstable_version_of_init_producer_id_is_marked() {
        let unstable: Vec<_> = ApiKey::ALL.iter().filter(|key| key.latest_version_unstable()).collect();
        assert_eq!(unstable, [&ApiKey::InitProducerId]);
    }
}
