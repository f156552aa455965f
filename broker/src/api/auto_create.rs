//! Topics that come to be because a client asked for their metadata (M2), or for a coordinator that keeps its state there.

use std::collections::BTreeSet;
use std::sync::Arc;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::CreateTopicsRequest;
use millrace_protocol::messages::create_topics_request::CreatableTopic;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use crate::metadata::MetadataHandle;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};

/// Most topics on their way at a time. Clients ask again, so that what is over the limit gets its turn.
const MAX_IN_FLIGHT: usize = 1000;

/// Asks the controller for topics in the background; each at most once at a time.
#[derive(Debug)]
pub(super) struct AutoCreate {
    metadata: MetadataHandle,
    in_flight: Arc<Mutex<BTreeSet<String>>>,
    tasks: TaskTracker,
}

impl AutoCreate {
    /// `tasks` takes the requests that are on their way, so that a broker that stops can await them.
    pub(super) fn new(metadata: MetadataHandle, tasks: TaskTracker) -> Self {
        Self { metadata, in_flight: Arc::default(), tasks }
    }

    /// Starts the creation of those `names` that are not on their way already, each as `new_topic` says.
    pub(super) fn start(&self, names: Vec<String>, new_topic: impl Fn(&str) -> CreatableTopic) {
        let names = admit(&mut self.in_flight.lock(), names);
        if names.is_empty() {
            return;
        }
        let topics = names.iter().map(|name| new_topic(name)).collect();
        let request = CreateTopicsRequest { topics, ..Default::default() };
        let (metadata, in_flight) = (self.metadata.clone(), Arc::clone(&self.in_flight));
        self.tasks.spawn(async move {
            let answer = metadata.call(ControllerRequest::CreateTopics(request)).await;
            match answer {
                Ok(ControllerResponse::CreateTopics(response)) => {
                    for topic in response.topics {
                        let (name, error) = (topic.name.as_str(), topic.error_code);
                        let message = topic.error_message.as_ref().map_or("", |message| message.as_str());
                        match ErrorCode::from_code(error) {
                            Some(ErrorCode::None) => {
                                tracing::info!(topic = name, "created a topic that a client asked for")
                            }
                            Some(ErrorCode::TopicAlreadyExists) => {}
                            _ => tracing::warn!(
                                topic = name,
                                error,
                                message,
                                "creating a topic that a client asked for"
                            ),
                        }
                    }
                }
                Ok(other) => {
                    tracing::error!(response = ?other, "the controller gave the answer to another request")
                }
                Err(error) => {
                    tracing::warn!(%error, topics = ?names, "creating topics that a client asked for")
                }
            }
            let mut in_flight = in_flight.lock();
            for name in &names {
                in_flight.remove(name);
            }
        });
    }
}

/// Enters names as far as there is room; what is there already is left out.
fn admit(in_flight: &mut BTreeSet<String>, names: Vec<String>) -> Vec<String> {
    names
        .into_iter()
        .filter(|name| in_flight.len() < MAX_IN_FLIGHT && in_flight.insert(name.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::image;
    use super::*;

    #[test]
    fn m2_a_topic_is_asked_for_once_at_a_time() {
        let mut in_flight = BTreeSet::new();
        assert_eq!(admit(&mut in_flight, vec!["a".to_owned(), "b".to_owned()]), ["a", "b"]);
        assert_eq!(admit(&mut in_flight, vec!["b".to_owned(), "c".to_owned()]), ["c"]);
    }

    #[test]
    fn the_number_of_topics_on_their_way_is_bounded() {
        let names = (0..MAX_IN_FLIGHT + 5).map(|n| n.to_string()).collect();
        assert_eq!(admit(&mut BTreeSet::new(), names).len(), MAX_IN_FLIGHT);
    }

    #[tokio::test]
    async fn a_topic_can_be_asked_for_again_after_a_failure() {
        let tasks = TaskTracker::new();
        let auto_create = AutoCreate::new(MetadataHandle::fixed(image([1])), tasks.clone());
        auto_create.start(vec!["a".to_owned()], |_| CreatableTopic::default());
        tasks.close();
        tasks.wait().await;
        assert!(auto_create.in_flight.lock().is_empty());
    }
}
