//! ApiVersions: what this broker speaks.
//!
//! Features are not told yet: there is no transaction or group coordinator whose behaviour they would announce.

use millrace_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use millrace_protocol::{ApiKey, ErrorCode};

use super::request::ClientSoftware;
use super::versions::{SERVED, ServedApi};

/// Longest name or version of client software that is kept.
const MAX_SOFTWARE_LEN: usize = 128;

/// Answers a request of a served version, and says what software the client has told.
pub(super) fn handle(
    version: i16,
    request: &ApiVersionsRequest,
) -> (ApiVersionsResponse, Option<ClientSoftware>) {
    let software = (version >= 3).then(|| ClientSoftware {
        name: request.client_software_name.chars().take(MAX_SOFTWARE_LEN).collect(),
        version: request.client_software_version.chars().take(MAX_SOFTWARE_LEN).collect(),
    });
    let valid = is_valid_software(&request.client_software_name)
        && is_valid_software(&request.client_software_version);
    if version >= 3 && !valid {
        let error_code = ErrorCode::InvalidRequest.code();
        return (ApiVersionsResponse { error_code, ..Default::default() }, None);
    }
    let api_keys = SERVED.iter().map(ServedApi::advertisement).collect();
    (ApiVersionsResponse { api_keys, ..Default::default() }, software)
}

/// Answer in version 0 to a version that is not served (V1): the one row that the client needs to choose another.
pub(super) fn unsupported_version() -> ApiVersionsResponse {
    ApiVersionsResponse {
        error_code: ErrorCode::UnsupportedVersion.code(),
        api_keys: ServedApi::of(ApiKey::ApiVersions).into_iter().map(ServedApi::advertisement).collect(),
        ..Default::default()
    }
}

/// Rule V3: letters and digits, with dashes and dots between them.
fn is_valid_software(text: &str) -> bool {
    let inner = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    inner && ends(text.bytes().next()) && ends(text.bytes().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, version: &str) -> ApiVersionsRequest {
        ApiVersionsRequest {
            client_software_name: name.into(),
            client_software_version: version.into(),
            ..Default::default()
        }
    }

    #[test]
    fn lists_every_served_key_once() {
        let (response, software) = handle(0, &ApiVersionsRequest::default());
        assert_eq!(response.error_code, 0);
        assert_eq!(response.api_keys.len(), SERVED.len());
        assert_eq!(software, None);
    }

    #[test]
    fn v1_an_unsupported_version_is_told_the_one_row_it_needs() {
        let response = unsupported_version();
        assert_eq!(response.error_code, 35);
        let rows: Vec<_> =
            response.api_keys.iter().map(|k| (k.api_key, k.min_version, k.max_version)).collect();
        assert_eq!(rows, [(18, 0, 4)]);
    }

    #[test]
    fn v3_client_software_must_be_plain() {
        for (name, version) in [("apache-kafka-java", "4.3.1"), ("a", "1"), ("librdkafka", "2.15.0-rc1")] {
            let (response, software) = handle(3, &request(name, version));
            assert_eq!(response.error_code, 0, "{name}");
            assert_eq!(software.expect(name).version, version);
        }
        for (name, version) in [("", "1"), ("a", ""), ("-a", "1"), ("a-", "1"), ("a b", "1"), ("a", "1\n")] {
            let (response, software) = handle(4, &request(name, version));
            assert_eq!(response.error_code, 42, "{name:?} {version:?}");
            assert_eq!(software, None);
        }
    }

    #[test]
    fn v3_software_is_not_looked_at_before_version_3() {
        assert_eq!(handle(2, &request("", "")).0.error_code, 0);
    }
}
