//! DescribeConfigs: settings of topics and of this broker, and where each comes from.

use std::collections::BTreeMap;

use millrace_protocol::messages::describe_configs_request::DescribeConfigsResource;
use millrace_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use millrace_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use millrace_protocol::{ErrorCode, StrBytes};

use super::topics::is_legal_name;
use crate::config::registry::{KeyDef, broker_keys, topic_keys};
use crate::config::topic::{self, DynamicConfig, Origin, Setting};
use crate::config::{BrokerConfig, Kind};
use crate::metadata::image::{BrokerId, MetadataImage};

/// `ConfigResource.Type` on the wire.
mod resource {
    pub(super) const TOPIC: i8 = 2;
    pub(super) const BROKER: i8 = 4;
    pub(super) const BROKER_LOGGER: i8 = 8;
    pub(super) const CLIENT_METRICS: i8 = 16;
    pub(super) const GROUP: i8 = 32;
}

/// Why a resource cannot be described.
type Refusal = (ErrorCode, String);

/// What requests are answered from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) image: &'a MetadataImage,
    pub(super) config: &'a BrokerConfig,
    pub(super) own_id: BrokerId,
}

impl Source<'_> {
    fn dynamic(&self) -> DynamicConfig<'_> {
        DynamicConfig::of(&self.image.broker_configs, self.own_id)
    }
}

/// Answers each resource for itself.
pub(super) fn handle(source: Source<'_>, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request
        .resources
        .iter()
        .map(|asked| {
            let (error, message, configs) = match describe(source, request, asked) {
                Ok(configs) => (ErrorCode::None, String::new(), configs),
                Err((error, message)) => (error, message, Vec::new()),
            };
            DescribeConfigsResult {
                error_code: error.code(),
                // Not null where there is nothing to say: so it is with Kafka.
                error_message: Some(message.into()),
                resource_type: asked.resource_type,
                resource_name: asked.resource_name.clone(),
                configs,
                ..Default::default()
            }
        })
        .collect();
    DescribeConfigsResponse { results, ..Default::default() }
}

fn describe(
    source: Source<'_>,
    request: &DescribeConfigsRequest,
    asked: &DescribeConfigsResource,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let entries = match asked.resource_type {
        resource::TOPIC => topic_resource(source, &asked.resource_name)?,
        resource::BROKER => broker_resource(source, &asked.resource_name)?,
        // Kafka lists its loggers here; the log filter of this broker is one text, set when it starts.
        resource::BROKER_LOGGER => own_broker(source, &asked.resource_name).map(|()| Vec::new())?,
        // There is no telemetry subscription, and no group with settings of its own.
        resource::CLIENT_METRICS | resource::GROUP if !asked.resource_name.is_empty() => Vec::new(),
        resource::CLIENT_METRICS | resource::GROUP => {
            return Err(invalid("the resource needs a name".to_owned()));
        }
        other => return Err(invalid(format!("resource type {other} has no settings"))),
    };
    // An empty list means all keys, as in Kafka.
    let wanted = asked.configuration_keys.as_ref().filter(|keys| !keys.is_empty());
    let is_wanted =
        |entry: &Entry| wanted.is_none_or(|keys| keys.iter().any(|key| key == entry.name.as_str()));
    Ok(entries.into_iter().filter(is_wanted).map(|entry| entry.into_result(request)).collect())
}

fn invalid(message: String) -> Refusal {
    (ErrorCode::InvalidRequest, message)
}

/// One setting with all that clients may want to know of it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) value: Option<String>,
    pub(super) read_only: bool,
    pub(super) sensitive: bool,
    /// Where the value comes from, as [`wire_origin`] has it.
    pub(super) source: i8,
    synonyms: Vec<Setting>,
    kind: Kind,
    documentation: String,
}

/// What applies to a topic with these settings of its own, by key.
pub(super) fn topic_entries(source: Source<'_>, own: &BTreeMap<String, String>) -> Vec<Entry> {
    let entry = |key: &'static KeyDef| {
        let settings = topic::told_settings(key, own, source.dynamic(), source.config);
        let value = topic::effective(key, own, source.dynamic(), source.config);
        Entry::new(key, Some(value), false, settings)
    };
    topic_keys().iter().map(entry).collect()
}

fn topic_resource(source: Source<'_>, name: &str) -> Result<Vec<Entry>, Refusal> {
    if !is_legal_name(name) {
        return Err((ErrorCode::InvalidTopicException, format!("topic name {name:?} is not legal")));
    }
    let topic =
        source.image.topic_by_name(name).ok_or((ErrorCode::UnknownTopicOrPartition, String::new()))?;
    Ok(topic_entries(source, &topic.config))
}

fn broker_resource(source: Source<'_>, name: &str) -> Result<Vec<Entry>, Refusal> {
    if name.is_empty() {
        // The defaults of all brokers: only what is set there.
        let dynamic = DynamicConfig::cluster_wide(&source.image.broker_configs);
        let entry = |key: &'static KeyDef| {
            let mut settings = topic::broker_settings(key, dynamic, source.config);
            settings.retain(|setting| setting.origin == Origin::DynamicDefaultBroker);
            let value = settings.first()?.value.clone();
            Some(Entry::new(key, Some(value), !key.dynamic, settings))
        };
        return Ok(broker_keys().iter().filter_map(entry).collect());
    }
    own_broker(source, name)?;
    let entry = |key: &'static KeyDef| {
        let settings = topic::broker_settings(key, source.dynamic(), source.config);
        let value = settings.first().map(|setting| setting.value.clone());
        Entry::new(key, value, !key.dynamic, settings)
    };
    let of_listeners = source.config.listener_settings().map(|(name, value)| Entry {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        read_only: true,
        sensitive: false,
        source: wire_origin(Origin::StaticBroker),
        synonyms: Vec::new(),
        kind: Kind::String,
        documentation: "PEM file of a listener; it is read again when it changes.".to_owned(),
    });
    Ok(broker_keys().iter().map(entry).chain(of_listeners).collect())
}

/// A broker can only be asked about itself: clients send each question to the broker that it is about.
fn own_broker(source: Source<'_>, name: &str) -> Result<(), Refusal> {
    match name.parse::<BrokerId>() {
        Ok(id) if id == source.own_id => Ok(()),
        Ok(id) => Err(invalid(format!("broker {id} was asked for, and this is broker {}", source.own_id))),
        Err(_) => Err(invalid(format!("{name:?} is not a broker id"))),
    }
}

impl Entry {
    fn new(key: &'static KeyDef, value: Option<String>, read_only: bool, synonyms: Vec<Setting>) -> Self {
        Self {
            name: key.name.to_owned(),
            value: value.filter(|_| !key.sensitive()),
            read_only,
            sensitive: key.sensitive(),
            source: wire_origin(synonyms.first().map_or(Origin::Default, |setting| setting.origin)),
            synonyms,
            kind: key.kind,
            documentation: key.documentation(),
        }
    }

    fn into_result(self, request: &DescribeConfigsRequest) -> DescribeConfigsResourceResult {
        let synonym = |setting: Setting| DescribeConfigsSynonym {
            name: setting.name.into(),
            value: (!self.sensitive).then(|| setting.value.into()),
            source: wire_origin(setting.origin),
            ..Default::default()
        };
        let synonyms = if request.include_synonyms {
            self.synonyms.into_iter().map(synonym).collect()
        } else {
            Vec::new()
        };
        DescribeConfigsResourceResult {
            name: self.name.into(),
            value: self.value.map(StrBytes::from),
            read_only: self.read_only,
            config_source: self.source,
            is_sensitive: self.sensitive,
            synonyms,
            config_type: wire_kind(self.kind),
            documentation: request.include_documentation.then(|| self.documentation.into()),
            ..Default::default()
        }
    }
}

fn wire_origin(origin: Origin) -> i8 {
    match origin {
        Origin::Topic => 1,
        Origin::DynamicBroker => 2,
        Origin::DynamicDefaultBroker => 3,
        Origin::StaticBroker => 4,
        Origin::Default => 5,
    }
}

fn wire_kind(kind: Kind) -> i8 {
    match kind {
        Kind::Boolean => 1,
        Kind::String => 2,
        Kind::Int => 3,
        Kind::Short => 4,
        Kind::Long => 5,
        Kind::Double => 6,
        Kind::List => 7,
        Kind::Password => 9,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{add_topic, image, set_topic_config};
    use super::*;

    fn ask(resource_type: i8, name: &str, keys: Option<&[&str]>) -> DescribeConfigsRequest {
        let resource = DescribeConfigsResource {
            resource_type,
            resource_name: name.into(),
            configuration_keys: keys.map(|keys| keys.iter().map(|key| (*key).into()).collect()),
            ..Default::default()
        };
        DescribeConfigsRequest { resources: vec![resource], ..Default::default() }
    }

    fn run(image: &MetadataImage, request: &DescribeConfigsRequest) -> DescribeConfigsResult {
        let config = BrokerConfig::dev(Path::new("/data"), 9092);
        let response = handle(Source { image, config: &config, own_id: 1 }, request);
        for version in 1..=4 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
        response.results.into_iter().next().expect("one resource was asked for")
    }

    fn value(result: &DescribeConfigsResult, key: &str) -> (Option<String>, i8) {
        let entry = result.configs.iter().find(|entry| entry.name == key).expect(key);
        (entry.value.as_deref().map(str::to_owned), entry.config_source)
    }

    #[test]
    fn a_topic_shows_all_its_keys_and_where_they_come_from() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        set_topic_config(&mut image, "a", "retention.ms", "5");
        image.broker_configs.insert(None, [("message.max.bytes".to_owned(), "77".to_owned())].into());
        let result = run(&image, &ask(resource::TOPIC, "a", None));
        assert_eq!(result.error_code, 0);
        assert_eq!(result.configs.len(), topic_keys().len());
        assert_eq!(value(&result, "retention.ms"), (Some("5".to_owned()), 1));
        assert_eq!(value(&result, "max.message.bytes"), (Some("77".to_owned()), 3));
        assert_eq!(value(&result, "cleanup.policy"), (Some("delete".to_owned()), 5));
        assert!(result.configs.iter().all(|entry| !entry.read_only && entry.documentation.is_none()));
        assert!(result.configs.iter().all(|entry| entry.synonyms.is_empty()));
    }

    #[test]
    fn only_the_keys_asked_for_are_shown() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let names = |keys| -> Vec<String> {
            let result = run(&image, &ask(resource::TOPIC, "a", Some(keys)));
            result.configs.iter().map(|entry| entry.name.as_str().to_owned()).collect()
        };
        assert_eq!(names(&["retention.ms", "nonsense"]), ["retention.ms"]);
        assert_eq!(names(&[]).len(), topic_keys().len());
    }

    #[test]
    fn synonyms_types_and_documentation_are_told_on_request() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        set_topic_config(&mut image, "a", "retention.ms", "5");
        let request = DescribeConfigsRequest {
            include_synonyms: true,
            include_documentation: true,
            ..ask(resource::TOPIC, "a", Some(&["retention.ms"]))
        };
        let entry = run(&image, &request).configs.remove(0);
        let synonyms: Vec<_> =
            entry.synonyms.iter().map(|s| (s.name.as_str(), s.value.as_deref(), s.source)).collect();
        assert_eq!(synonyms, [("retention.ms", Some("5"), 1)]);
        assert_eq!(entry.config_type, 5);
        assert!(entry.documentation.expect("asked for").contains("Age at which records go"));
    }

    #[test]
    fn a_missing_topic_is_unknown_and_an_illegal_name_is_invalid() {
        let image = image([1]);
        let result = run(&image, &ask(resource::TOPIC, "a", None));
        assert_eq!((result.error_code, result.configs.len()), (3, 0));
        assert_eq!(run(&image, &ask(resource::TOPIC, "a b", None)).error_code, 17);
    }

    #[test]
    fn a_broker_answers_for_itself_only() {
        let image = image([1, 2]);
        let result = run(&image, &ask(resource::BROKER, "1", None));
        assert_eq!(value(&result, "log.dirs"), (Some("/data".to_owned()), 4));
        assert_eq!(value(&result, "num.partitions"), (Some("1".to_owned()), 5));
        assert_eq!(value(&result, "broker.rack"), (None, 5));
        let read_only =
            |key: &str| result.configs.iter().find(|entry| entry.name == key).map(|entry| entry.read_only);
        assert_eq!((read_only("log.dirs"), read_only("log.retention.ms")), (Some(true), Some(false)));
        for other in ["2", "one"] {
            assert_eq!(run(&image, &ask(resource::BROKER, other, None)).error_code, 42);
        }
    }

    #[test]
    fn the_default_of_all_brokers_holds_what_is_set_there() {
        let mut image = image([1]);
        assert!(run(&image, &ask(resource::BROKER, "", None)).configs.is_empty());
        image.broker_configs.insert(None, [("log.retention.ms".to_owned(), "9".to_owned())].into());
        image.broker_configs.insert(Some(1), [("log.segment.bytes".to_owned(), "2000000".to_owned())].into());
        let result = run(&image, &ask(resource::BROKER, "", None));
        assert_eq!(result.configs.len(), 1);
        assert_eq!(value(&result, "log.retention.ms"), (Some("9".to_owned()), 3));
        assert_eq!(value(&run(&image, &ask(resource::BROKER, "1", None)), "log.segment.bytes").1, 2);
    }

    #[test]
    fn other_resources_are_empty_or_refused() {
        let image = image([1]);
        for (resource_type, name, error) in [
            (8, "1", 0),
            (8, "2", 42),
            (8, "", 42),
            (16, "x", 0),
            (16, "", 42),
            (32, "g", 0),
            (0, "x", 42),
            (99, "x", 42),
        ] {
            let result = run(&image, &ask(resource_type, name, None));
            assert_eq!(
                (result.error_code, result.configs.len()),
                (error, 0),
                "type {resource_type} {name:?}"
            );
        }
    }
}
