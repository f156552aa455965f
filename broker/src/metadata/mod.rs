//! The cluster's metadata: what is known, who decides, and how the decision spreads.
//!
//! [`image`] is what handlers read; [`records`] are what the log consists of; [`controller`] decides, purely;
//! [`raft`] makes the brokers agree; [`service`] runs the controller where it belongs and keeps this broker
//! registered. The rest of the broker holds a [`MetadataHandle`].

pub mod controller;
pub mod image;
pub mod raft;
pub mod records;
pub mod service;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::controller::{ControllerRequest, ControllerResponse};
use self::image::MetadataImage;
use self::service::{QuorumDescription, Shared};

/// How long [`MetadataHandle::call`] tries: longer than an election takes, shorter than clients wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the controller did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// There is no controller that can be reached. Nothing was changed; trying again later may work.
    #[error("the metadata quorum cannot be reached: {message}")]
    Unavailable {
        /// What was tried last.
        message: String,
    },
    /// The answer did not come in time, or was lost. The request may or may not take effect.
    #[error("no answer from the controller: {message}")]
    Timeout {
        /// What was tried last.
        message: String,
    },
    /// The request as such cannot be handled, now or later. Nothing was changed.
    #[error("{message}")]
    Unacceptable {
        /// Why not.
        message: String,
    },
}

/// Reads the metadata and asks the controller; a cheap handle.
#[derive(Clone, Debug)]
pub struct MetadataHandle {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Live(Arc<Shared>),
    /// Lives as long as the handle, so that those who wait for changes wait for ever instead of failing.
    Fixed(Arc<watch::Sender<Arc<MetadataImage>>>),
}

impl MetadataHandle {
    pub(self) fn live(shared: Arc<Shared>) -> Self {
        Self { source: Source::Live(shared) }
    }

    /// An image that never changes, with no controller behind it.
    pub fn fixed(image: MetadataImage) -> Self {
        Self { source: Source::Fixed(Arc::new(watch::Sender::new(Arc::new(image)))) }
    }

    /// The metadata as this broker knows it now.
    pub fn image(&self) -> Arc<MetadataImage> {
        match &self.source {
            Source::Live(shared) => shared.node.image(),
            Source::Fixed(image) => Arc::clone(&image.borrow()),
        }
    }

    /// The metadata as it changes; images in between may be left out.
    pub fn subscribe(&self) -> watch::Receiver<Arc<MetadataImage>> {
        match &self.source {
            Source::Live(shared) => shared.node.images(),
            Source::Fixed(image) => image.subscribe(),
        }
    }

    /// Asks the controller, wherever it is, and waits until this broker's image contains the outcome, so that a
    /// client reads what it wrote.
    ///
    /// Dropping the future does not take the request back.
    pub async fn call(&self, request: ControllerRequest) -> Result<ControllerResponse, ControllerError> {
        self.call_within(request, CALL_TIMEOUT).await
    }

    /// As [`call`](Self::call), for callers that wait for a shorter or longer time.
    pub async fn call_within(
        &self,
        request: ControllerRequest,
        timeout: Duration,
    ) -> Result<ControllerResponse, ControllerError> {
        match &self.source {
            Source::Live(shared) => shared.ask(request, timeout).await.map(|answer| answer.response),
            Source::Fixed(_) => {
                Err(ControllerError::Unavailable { message: "this broker has no metadata quorum".to_owned() })
            }
        }
    }

    /// The state of the metadata quorum, from its leader.
    pub async fn describe_quorum(&self, timeout: Duration) -> Result<QuorumDescription, ControllerError> {
        match &self.source {
            Source::Live(shared) => shared.describe_quorum(timeout).await,
            Source::Fixed(_) => {
                Err(ControllerError::Unavailable { message: "this broker has no metadata quorum".to_owned() })
            }
        }
    }
}
