//! Certificates of a listener: read from files, checked, and swapped when the files change.
//!
//! Both sides of a connection prove who they are: a server accepts only clients whose certificate chains to the CA
//! bundle, a client also checks the server's name. Connections keep the certificates that they began with; new ones
//! take the newest. Files are compared by content, so that it does not matter how they are replaced (Kubernetes
//! swaps a symbolic link). Files that do not work are reported once, and what worked before stays in use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::config::TlsFiles;

/// How often the files are looked at.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not PEM, or lacks what it must contain.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The pieces do not fit together, for example a key of another certificate.
    #[error("certificates are not usable: {0}")]
    Unusable(String),
}

/// Current certificates; a cheap handle.
#[derive(Clone, Debug)]
pub struct Tls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: TlsFiles,
    current: ArcSwap<Configs>,
    /// What was last found in the files, whether it worked or not.
    seen: Mutex<Result<Contents, String>>,
}

#[derive(Debug)]
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Bytes of the three files. Holds a private key: never printed.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Contents").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks the files. Blocks on the disk.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = read(&files)?;
        let configs = configs(&files, &contents)?;
        let current = ArcSwap::from_pointee(configs);
        Ok(Self { shared: Arc::new(Shared { files, current, seen: Mutex::new(Ok(contents)) }) })
    }

    /// For the next connection that is accepted.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shared.current.load().server)
    }

    /// For the next connection that is opened.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.shared.current.load().client)
    }

    /// Looks at the files every `interval` until `cancel`. A failure is logged, never ends the task.
    pub async fn watch(self, interval: Duration, cancel: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let tls = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || tls.reload()).await {
                tracing::error!(%error, "reloading certificates failed");
            }
        }
    }

    /// Takes over what is in the files, if it is new and works. Returns whether it was taken over.
    fn reload(&self) -> bool {
        let found = read(&self.shared.files);
        let mut seen = self.shared.seen.lock();
        match (&found, &*seen) {
            (Ok(found), Ok(seen)) if found == seen => return false,
            (Err(found), Err(seen)) if found.to_string() == *seen => return false,
            _ => {}
        }
        let outcome = match &found {
            Ok(contents) => configs(&self.shared.files, contents),
            Err(error) => Err(TlsError::Unusable(error.to_string())),
        };
        *seen = found.map_err(|error| error.to_string());
        match outcome {
            Ok(configs) => {
                self.shared.current.store(Arc::new(configs));
                let path = &self.shared.files.certificate;
                tracing::info!(path = %path.display(), "certificates changed, new connections use the new ones");
                true
            }
            Err(error) => {
                tracing::error!(%error, "certificate files changed but do not work, keeping the certificates in use");
                false
            }
        }
    }
}

/// Common name of a peer's certificate, for logs; the chain was verified by then.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
    let content =
        |path: &PathBuf| fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source });
    Ok(Contents {
        certificate: content(&files.certificate)?,
        key: content(&files.key)?,
        ca: content(&files.ca)?,
    })
}

fn configs(files: &TlsFiles, contents: &Contents) -> Result<Configs, TlsError> {
    let chain = certificates(&files.certificate, &contents.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key)
        .map_err(|error| TlsError::Content { path: files.key.clone(), reason: error.to_string() })?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.ca, &contents.ca)? {
        roots
            .add(authority)
            .map_err(|error| TlsError::Content { path: files.ca.clone(), reason: error.to_string() })?;
    }
    let roots = Arc::new(roots);
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());

    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unusable)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    Ok(Configs { server: Arc::new(server), client: Arc::new(client) })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let content = |reason: String| TlsError::Content { path: path.to_owned(), reason };
    match parsed {
        Ok(list) if list.is_empty() => Err(content("contains no certificate".to_owned())),
        Ok(list) => Ok(list),
        Err(error) => Err(content(error.to_string())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
pub(crate) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    /// A certificate authority of a test.
    pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        pub(crate) fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        /// Writes a leaf for `localhost` with that common name, its key, and this authority as the bundle.
        pub(crate) fn issue(&self, directory: &Path, common_name: &str) -> TlsFiles {
            let mut params =
                CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, common_name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.0).unwrap();
            let files = files_in(directory);
            fs::write(&files.certificate, certificate.pem()).unwrap();
            fs::write(&files.key, key.serialize_pem()).unwrap();
            fs::write(&files.ca, self.0.pem()).unwrap();
            files
        }
    }

    fn files_in(directory: &Path) -> TlsFiles {
        TlsFiles {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            ca: directory.join("ca.crt"),
        }
    }

    #[test]
    fn new_files_are_taken_over_without_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("ca");
        let tls = Tls::load(authority.issue(directory.path(), "first")).unwrap();
        let before = tls.server_config();
        assert!(!tls.reload(), "nothing changed");
        authority.issue(directory.path(), "second");
        assert!(tls.reload());
        assert!(!Arc::ptr_eq(&before, &tls.server_config()));
        assert!(!tls.reload());
    }

    #[test]
    fn a_swapped_symbolic_link_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("ca");
        for generation in ["one", "two"] {
            fs::create_dir(directory.path().join(generation)).unwrap();
            authority.issue(&directory.path().join(generation), generation);
        }
        let data = directory.path().join("..data");
        std::os::unix::fs::symlink("one", &data).unwrap();
        let tls = Tls::load(files_in(&data)).unwrap();
        let next = directory.path().join("..data_tmp");
        std::os::unix::fs::symlink("two", &next).unwrap();
        fs::rename(&next, &data).unwrap();
        assert!(tls.reload());
    }

    #[test]
    fn broken_files_change_nothing_until_they_are_repaired() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("ca");
        let files = authority.issue(directory.path(), "first");
        let tls = Tls::load(files.clone()).unwrap();
        let before = tls.server_config();
        fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nnonsense").unwrap();
        assert!(!tls.reload());
        fs::remove_file(&files.key).unwrap();
        assert!(!tls.reload());
        assert!(Arc::ptr_eq(&before, &tls.server_config()));
        authority.issue(directory.path(), "second");
        assert!(tls.reload());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::new("ca");
        let files = authority.issue(one.path(), "one");
        let other = authority.issue(two.path(), "two");
        let mixed = TlsFiles { key: other.key, ..files };
        assert!(matches!(Tls::load(mixed), Err(TlsError::Unusable(_))));
    }

    #[test]
    fn an_empty_bundle_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let files = Authority::new("ca").issue(directory.path(), "one");
        fs::write(&files.ca, "").unwrap();
        let error = Tls::load(files).unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("contains no certificate"), "{error}");
    }

    #[test]
    fn the_common_name_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let files = Authority::new("ca").issue(directory.path(), "millrace-broker");
        let pem = fs::read(files.certificate).unwrap();
        let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
        assert_eq!(common_name(&leaf).as_deref(), Some("millrace-broker"));
    }
}
