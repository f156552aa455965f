//! The certificate authority of the fleet listener, and the certificates it issues.
//!
//! Answers what has to be done next, and makes keys and certificates. [`next_step`] and [`leaf_problem`] are plain
//! functions of the time and of what the Secrets hold; the caller carries the result out and writes the Secrets.
//!
//! An authority is renewed with overlap, as running brokers pick files up at different moments:
//! 1. *stage*: the next authority is published to every trust bundle, and used for nothing;
//! 2. *promote*: after [`OVERLAP`], it becomes the current one, and leaves are issued anew by it;
//! 3. *retire*: after another [`OVERLAP`], the previous authority leaves the trust bundles.
//!
//! Invariant: a leaf is only ever issued by an authority that every trust bundle has held for [`OVERLAP`].
//! The exception is an authority that has expired already: nothing is left to protect then.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::prelude::{ParsedExtension, X509Certificate};

use crate::build::{
    Names,
    secret::{
        AUTHORITY_CERTIFICATE, AUTHORITY_KEY, LEAF_CERTIFICATE, LEAF_KEY, NEXT_CERTIFICATE, NEXT_KEY,
        PHASE_SINCE_ANNOTATION, PREVIOUS_CERTIFICATE,
    },
};

/// Common name of the brokers' certificate; brokers decide by it what a peer may do.
pub const BROKER_NAME: &str = "millrace-broker";
/// Common name of the operator's certificate.
pub const OPERATOR_NAME: &str = "millrace-operator";

/// How long an authority is valid.
pub const AUTHORITY_LIFETIME: SignedDuration = SignedDuration::from_hours(5 * 365 * 24);
/// How long a leaf is valid.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(90 * 24);
/// How long each phase of a renewal lasts at least. Kubelets refresh mounted Secrets about once a minute and brokers
/// look at their files more often than that; ten times as long covers a node that is slow.
pub const OVERLAP: SignedDuration = SignedDuration::from_mins(10);
/// Certificates start to be valid a little in the past, as clocks differ.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);

/// A private key in PEM. Does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(String);

impl PrivateKey {
    /// The key, for the Secret or the TLS library.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Certificate in PEM.
    pub certificate: String,
    /// Its key; absent where only the certificate was found, which still has to be trusted.
    pub key: Option<PrivateKey>,
    /// When it expires.
    pub not_after: Timestamp,
    /// Key identifier, by which leaves name their issuer.
    pub key_id: Vec<u8>,
}

/// The authorities of one cluster: the one in use, and those that come and go during a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// Issues leaves.
    pub current: Authority,
    /// Trusted, not yet used.
    pub next: Option<Authority>,
    /// Trusted, no longer used.
    pub previous: Option<Authority>,
    /// When the phase that `next` and `previous` show began.
    pub phase_since: Timestamp,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Certificate in PEM.
    pub certificate: String,
    /// Its key.
    pub key: PrivateKey,
    /// When it begins to be valid.
    pub not_before: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
    /// Key identifier of the authority that issued it.
    pub issuer_key_id: Vec<u8>,
    /// Common name of its subject.
    pub common_name: String,
    /// Host names it is valid for, in order.
    pub hosts: Vec<String>,
}

/// What a leaf is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPurpose {
    /// Common name.
    pub common_name: &'static str,
    /// Host names, in order.
    pub hosts: Vec<String>,
}

/// What happens to the authorities next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityStep {
    /// Make the first authority.
    Create,
    /// Make the next one and publish it, as the current one ends or its key is gone.
    Stage,
    /// Use the next one from now on.
    Promote,
    /// Stop trusting the previous one.
    Retire,
}

/// Why a leaf has to be issued anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafProblem {
    /// There is none, or it cannot be read.
    Missing,
    /// It was issued by an authority that is no longer the current one.
    OtherAuthority,
    /// It names other hosts than wanted.
    OtherNames,
    /// Less than a third of its life is left.
    Expiring,
}

/// Certificates could not be made.
#[derive(Debug, Error)]
#[error("make a certificate for {subject}")]
pub struct CertificateError {
    subject: String,
    #[source]
    source: rcgen::Error,
}

/// The next step for the authorities, or `None` while they are fine.
pub fn next_step(now: Timestamp, authorities: Option<&Authorities>) -> Option<AuthorityStep> {
    let Some(Authorities { current, next, previous, phase_since }) = authorities else {
        return Some(AuthorityStep::Create);
    };
    let overlapped = now.duration_since(*phase_since) >= OVERLAP;
    match (next, previous) {
        (Some(next), _) if overlapped || current.not_after <= now => {
            // A next authority that ran out while the operator was away is of no use.
            Some(if next.not_after <= now { AuthorityStep::Stage } else { AuthorityStep::Promote })
        }
        (Some(_), _) => None,
        (None, _) if current.key.is_none() || expiring(now, current.not_after, AUTHORITY_LIFETIME) => {
            Some(AuthorityStep::Stage)
        }
        (None, Some(_)) if overlapped => Some(AuthorityStep::Retire),
        (None, _) => None,
    }
}

/// Brings the authorities one step further where one is due. `bundles` are the trust bundles as they are published.
///
/// Where a bundle does not hold what it should (the operator stopped between two writes, or somebody deleted a Secret),
/// the overlap starts again from now, as it counts from the moment everybody could have read the bundle.
pub fn renew(
    found: Option<Authorities>,
    bundles: &[Option<&str>],
    subject: &str,
    now: Timestamp,
) -> Result<(Authorities, Option<AuthorityStep>), CertificateError> {
    let found = found.map(|found| {
        let trust = found.trust();
        let published = bundles.iter().all(|bundle| *bundle == Some(trust.as_str()));
        let renewing = found.next.is_some() || found.previous.is_some();
        if renewing && !published { Authorities { phase_since: now, ..found } } else { found }
    });
    match (next_step(now, found.as_ref()), found) {
        (None, Some(found)) => Ok((found, None)),
        (step, found) => {
            let step = step.unwrap_or(AuthorityStep::Create);
            Ok((Authorities::step(found, step, subject, now)?, Some(step)))
        }
    }
}

/// What is wrong with a leaf, if anything is.
pub fn leaf_problem(
    now: Timestamp,
    authorities: &Authorities,
    leaf: Option<&Leaf>,
    purpose: &LeafPurpose,
) -> Option<LeafProblem> {
    let Some(leaf) = leaf else { return Some(LeafProblem::Missing) };
    if leaf.issuer_key_id != authorities.current.key_id {
        Some(LeafProblem::OtherAuthority)
    } else if leaf.common_name != purpose.common_name || leaf.hosts != purpose.hosts {
        Some(LeafProblem::OtherNames)
    } else if expiring(now, leaf.not_after, leaf.not_after.duration_since(leaf.not_before)) {
        Some(LeafProblem::Expiring)
    } else {
        None
    }
}

fn expiring(now: Timestamp, not_after: Timestamp, lifetime: SignedDuration) -> bool {
    not_after.duration_since(now) < lifetime / 3
}

/// What the brokers' certificate is for.
pub fn broker_purpose(names: &Names) -> LeafPurpose {
    let headless = names.service_host(&names.headless());
    LeafPurpose {
        common_name: BROKER_NAME,
        hosts: vec![
            format!("*.{headless}"),
            format!("*.{headless}.cluster.local"),
            headless,
            "localhost".to_owned(),
        ],
    }
}

/// What the operator's certificate is for. It is a client only, so it names no host.
pub fn operator_purpose() -> LeafPurpose {
    LeafPurpose { common_name: OPERATOR_NAME, hosts: Vec::new() }
}

impl Authorities {
    /// Reads the Secret. What cannot be read counts as absent.
    ///
    /// Where the Secret is gone but `trusted`, the trust bundle of a leaf, still names an authority, that one is taken
    /// as the current one without a key: running brokers trust it, so it must be replaced with overlap too.
    pub fn read(secret: Option<&Secret>, trusted: Option<&str>) -> Option<Self> {
        let authority = |certificate: &str, key: Option<&str>| {
            let certificate = text(secret, certificate)?;
            read_authority(certificate, key.and_then(|key| text(secret, key)))
        };
        let since = secret
            .and_then(|secret| secret.metadata.annotations.as_ref()?.get(PHASE_SINCE_ANNOTATION))
            .and_then(|since| since.parse().ok());
        let current = authority(AUTHORITY_CERTIFICATE, Some(AUTHORITY_KEY))
            .or_else(|| trusted.and_then(|bundle| read_authority(bundle, None)))?;
        Some(Self {
            current,
            next: authority(NEXT_CERTIFICATE, Some(NEXT_KEY)).filter(|next| next.key.is_some()),
            previous: authority(PREVIOUS_CERTIFICATE, None),
            phase_since: since.unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    /// Carries out `step`.
    pub fn step(
        authorities: Option<Self>,
        step: AuthorityStep,
        subject: &str,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        Ok(match (step, authorities) {
            (AuthorityStep::Stage, Some(found)) => {
                Self { next: Some(make_authority(subject, now)?), phase_since: now, ..found }
            }
            (AuthorityStep::Promote, Some(Self { current, next: Some(next), .. })) => Self {
                current: next,
                next: None,
                previous: Some(Authority { key: None, ..current }),
                phase_since: now,
            },
            (AuthorityStep::Retire, Some(found)) => Self { previous: None, phase_since: now, ..found },
            (AuthorityStep::Promote, Some(found)) => found,
            (_, None) | (AuthorityStep::Create, Some(_)) => {
                Self { current: make_authority(subject, now)?, next: None, previous: None, phase_since: now }
            }
        })
    }

    /// All authorities to trust, as one PEM bundle.
    pub fn trust(&self) -> String {
        [Some(&self.current), self.next.as_ref(), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .map(|authority| authority.certificate.as_str())
            .collect()
    }

    /// Issues a certificate; `None` while the current authority has no key.
    pub fn issue(&self, purpose: &LeafPurpose, now: Timestamp) -> Result<Option<Leaf>, CertificateError> {
        let Some(issuer_key) = &self.current.key else { return Ok(None) };
        let not_after = (now + LEAF_LIFETIME).min(self.current.not_after);
        let wrap = |source| CertificateError { subject: purpose.common_name.to_owned(), source };
        let make = || {
            let issuer =
                Issuer::from_ca_cert_pem(&self.current.certificate, KeyPair::from_pem(issuer_key.expose())?)?;
            let mut params = CertificateParams::new(purpose.hosts.clone())?;
            params.distinguished_name.push(DnType::CommonName, purpose.common_name);
            params.not_before = seconds(now - BACKDATE);
            params.not_after = seconds(not_after);
            params.use_authority_key_identifier_extension = true;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        let (certificate, key) = make().map_err(wrap)?;
        Ok(read_leaf(&certificate, &key))
    }
}

impl Leaf {
    /// Reads the Secret of a leaf; `None` where it is missing, unreadable, or its key belongs to another certificate.
    pub fn read(secret: Option<&Secret>) -> Option<Self> {
        read_leaf(text(secret, LEAF_CERTIFICATE)?, text(secret, LEAF_KEY)?)
    }
}

/// The trust bundle in the Secret of a leaf.
pub fn trust_of(secret: Option<&Secret>) -> Option<&str> {
    text(secret, AUTHORITY_CERTIFICATE)
}

fn text<'a>(secret: Option<&'a Secret>, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret?.data.as_ref()?.get(key)?.0).ok()
}

fn make_authority(subject: &str, now: Timestamp) -> Result<Authority, CertificateError> {
    let wrap = |source| CertificateError { subject: subject.to_owned(), source };
    let make = || {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "millrace");
        params.distinguished_name.push(DnType::CommonName, subject);
        params.not_before = seconds(now - BACKDATE);
        params.not_after = seconds(now + AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    };
    let (certificate, key) = make().map_err(wrap)?;
    Ok(read_authority(&certificate, Some(&key)).expect("a certificate just made can be read"))
}

fn read_authority(pem: &str, key: Option<&str>) -> Option<Authority> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = block.parse_x509().ok()?;
    let key_id =
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })?;
    Some(Authority {
        // Only the first certificate of a bundle.
        certificate: first_block(pem),
        key: key.filter(|key| belongs(key, &certificate)).map(|key| PrivateKey(key.to_owned())),
        not_after: timestamp(certificate.validity().not_after.timestamp())?,
        key_id,
    })
}

fn read_leaf(pem: &str, key: &str) -> Option<Leaf> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = block.parse_x509().ok()?;
    if !belongs(key, &certificate) {
        return None;
    }
    let issuer_key_id = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })?;
    let hosts = match certificate.subject_alternative_name().ok()? {
        Some(extension) => extension
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect(),
        None => Vec::new(),
    };
    let common_name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let validity = certificate.validity();
    Some(Leaf {
        certificate: pem.to_owned(),
        key: PrivateKey(key.to_owned()),
        not_before: timestamp(validity.not_before.timestamp())?,
        not_after: timestamp(validity.not_after.timestamp())?,
        issuer_key_id,
        common_name,
        hosts,
    })
}

fn belongs(key: &str, certificate: &X509Certificate<'_>) -> bool {
    let expected = &certificate.public_key().subject_public_key.data;
    KeyPair::from_pem(key).is_ok_and(|key| key.public_key_raw() == expected.as_ref())
}

fn first_block(pem: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    match pem.find(END) {
        Some(at) => format!("{}\n", &pem[..at + END.len()]),
        None => pem.to_owned(),
    }
}

fn timestamp(unix_seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(unix_seconds).ok()
}

fn seconds(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).expect("years of this century are in range")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::build::secret::{authority_secret, leaf_secret};

    fn start() -> Timestamp {
        "2026-11-01T00:00:00Z".parse().unwrap()
    }

    fn days(count: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * count)
    }

    fn names() -> Names {
        Names::new("ns", "demo")
    }

    fn first() -> Authorities {
        Authorities::step(None, AuthorityStep::Create, "demo.ns", start()).unwrap()
    }

    fn advance(found: Authorities, now: Timestamp) -> Authorities {
        let step = next_step(now, Some(&found)).expect("a step is due");
        Authorities::step(Some(found), step, "demo.ns", now).unwrap()
    }

    fn broker_leaf(authorities: &Authorities, now: Timestamp) -> Leaf {
        authorities.issue(&broker_purpose(&names()), now).unwrap().unwrap()
    }

    #[test]
    fn a_new_cluster_gets_an_authority_and_leaves() {
        assert_eq!(next_step(start(), None), Some(AuthorityStep::Create));
        let authorities = first();
        let purpose = broker_purpose(&names());
        assert_eq!(leaf_problem(start(), &authorities, None, &purpose), Some(LeafProblem::Missing));
        let leaf = broker_leaf(&authorities, start());
        assert_eq!(leaf_problem(start(), &authorities, Some(&leaf), &purpose), None);
        assert_eq!(leaf.common_name, BROKER_NAME);
        assert_eq!(
            leaf.hosts,
            [
                "*.demo-brokers.ns.svc",
                "*.demo-brokers.ns.svc.cluster.local",
                "demo-brokers.ns.svc",
                "localhost"
            ]
        );
    }

    #[test]
    fn a_leaf_is_renewed_when_less_than_a_third_of_its_life_is_left_and_not_before() {
        let authorities = first();
        let (leaf, purpose) = (broker_leaf(&authorities, start()), broker_purpose(&names()));
        let problem = |now| leaf_problem(now, &authorities, Some(&leaf), &purpose);
        assert_eq!(problem(start() + days(59)), None);
        assert_eq!(problem(start() + days(61)), Some(LeafProblem::Expiring));
    }

    #[test]
    fn a_leaf_with_other_names_or_issuer_is_issued_anew() {
        let authorities = first();
        let leaf = broker_leaf(&authorities, start());
        let other = broker_purpose(&Names::new("elsewhere", "demo"));
        assert_eq!(leaf_problem(start(), &authorities, Some(&leaf), &other), Some(LeafProblem::OtherNames));
        assert_eq!(
            leaf_problem(start(), &first(), Some(&leaf), &broker_purpose(&names())),
            Some(LeafProblem::OtherAuthority)
        );
    }

    #[test]
    fn an_authority_is_renewed_with_overlap_before_and_after() {
        let old = first();
        let due = start() + AUTHORITY_LIFETIME * 2 / 3 + days(1);
        assert_eq!(next_step(due - days(2), Some(&old)), None);

        let staged = advance(old.clone(), due);
        assert_eq!(staged.current, old.current);
        assert!(staged.trust().starts_with(&old.current.certificate));
        assert!(staged.trust().contains(&staged.next.as_ref().unwrap().certificate));
        let leaf = broker_leaf(&staged, due);
        assert_eq!(leaf.issuer_key_id, old.current.key_id, "leaves still come from the old one");
        let soon = due + OVERLAP - SignedDuration::from_secs(1);
        assert_eq!(next_step(soon, Some(&staged)), None);

        let promoted = advance(staged.clone(), due + OVERLAP);
        assert_eq!(Some(&promoted.current), staged.next.as_ref());
        assert!(promoted.trust().contains(&old.current.certificate), "the old one is still trusted");
        assert_eq!(promoted.previous.as_ref().unwrap().key, None, "its key is dropped");
        assert_eq!(
            leaf_problem(due + OVERLAP, &promoted, Some(&leaf), &broker_purpose(&names())),
            Some(LeafProblem::OtherAuthority)
        );
        assert_eq!(next_step(due + OVERLAP, Some(&promoted)), None);

        let retired = advance(promoted, due + OVERLAP * 2);
        assert!(!retired.trust().contains(&old.current.certificate));
        assert_eq!(next_step(due + OVERLAP * 2, Some(&retired)), None);
    }

    #[test]
    fn overlap_counts_from_the_moment_every_bundle_is_published() {
        let due = start() + AUTHORITY_LIFETIME * 2 / 3 + days(1);
        let staged = advance(first(), due);
        let trust = staged.trust();
        let later = due + OVERLAP * 3;
        let unpublished = [Some(trust.as_str()), Some(staged.current.certificate.as_str())];
        let (waiting, step) = renew(Some(staged.clone()), &unpublished, "demo.ns", later).unwrap();
        assert_eq!((step, waiting.phase_since), (None, later));
        let published = [Some(trust.as_str()), Some(trust.as_str())];
        let (_, step) = renew(Some(staged), &published, "demo.ns", later).unwrap();
        assert_eq!(step, Some(AuthorityStep::Promote));
    }

    #[test]
    fn an_expired_authority_is_replaced_without_waiting() {
        let now = start() + AUTHORITY_LIFETIME + days(1);
        let staged = advance(first(), now);
        assert_eq!(next_step(now, Some(&staged)), Some(AuthorityStep::Promote));
    }

    #[test]
    fn a_lost_authority_that_brokers_still_trust_is_replaced_with_overlap() {
        let lost = first();
        let found = Authorities::read(None, Some(&lost.trust())).unwrap();
        assert_eq!(found.current.certificate, lost.current.certificate);
        assert_eq!(found.issue(&operator_purpose(), start()).unwrap(), None);
        assert_eq!(next_step(start(), Some(&found)), Some(AuthorityStep::Stage));
        let staged = advance(found, start());
        assert!(staged.trust().contains(&lost.current.certificate));
        assert_eq!(next_step(start() + OVERLAP, Some(&staged)), Some(AuthorityStep::Promote));
    }

    #[test]
    fn secrets_give_back_what_was_put_into_them() {
        let owner = k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference::default();
        let due = start() + AUTHORITY_LIFETIME * 2 / 3 + days(1);
        for authorities in [first(), advance(first(), due), advance(advance(first(), due), due + OVERLAP)] {
            let secret = authority_secret(&names(), &owner, &authorities);
            assert_eq!(Authorities::read(Some(&secret), None), Some(authorities.clone()));
            let leaf = broker_leaf(&authorities, due);
            let secret = leaf_secret(&names(), &owner, "x".into(), &leaf, &authorities.trust());
            assert_eq!(Leaf::read(Some(&secret)), Some(leaf));
            assert_eq!(trust_of(Some(&secret)), Some(authorities.trust().as_str()));
        }
    }

    #[test]
    fn a_key_of_another_certificate_does_not_count() {
        let (one, other) = (first(), first());
        assert_eq!(
            read_authority(&one.current.certificate, other.current.key.as_ref().map(PrivateKey::expose))
                .unwrap()
                .key,
            None
        );
        let (leaf, stranger) = (broker_leaf(&one, start()), broker_leaf(&one, start()));
        assert_eq!(read_leaf(&leaf.certificate, stranger.key.expose()), None);
    }

    #[test]
    fn keys_do_not_print_themselves() {
        assert!(!format!("{:?}", first()).contains("PRIVATE"));
    }
}
