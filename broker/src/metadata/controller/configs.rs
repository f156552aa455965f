//! Kafka's IncrementalAlterConfigs for topics and brokers.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use millrace_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use millrace_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::Settings;
use super::draft::Draft;
use crate::metadata::records::{ConfigTarget, Record};

/// `ConfigResource.Type` of a topic on the wire.
pub(crate) const TOPIC_RESOURCE: i8 = 2;
/// `ConfigResource.Type` of a broker on the wire.
pub(crate) const BROKER_RESOURCE: i8 = 4;

/// Why a resource keeps the configuration it has.
struct Refusal(ErrorCode, String);

/// Alters each resource as a whole or not at all.
pub(super) fn alter(
    draft: &mut Draft,
    request: &IncrementalAlterConfigsRequest,
    settings: &dyn Settings,
) -> IncrementalAlterConfigsResponse {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<(i8, &str)> = request
        .resources
        .iter()
        .map(|resource| (resource.resource_type, &*resource.resource_name))
        .filter(|resource| !seen.insert(*resource))
        .collect();
    let responses = request
        .resources
        .iter()
        .map(|resource| {
            let result = if repeated.contains(&(resource.resource_type, &*resource.resource_name)) {
                Err(Refusal(ErrorCode::InvalidRequest, "the resource stands in the request twice".to_owned()))
            } else {
                changes(draft, resource, settings)
            };
            let (error_code, error_message) = match result {
                Ok(records) => {
                    for record in records.into_iter().filter(|_| !request.validate_only) {
                        draft.push(record);
                    }
                    (ErrorCode::None, None)
                }
                Err(Refusal(code, message)) => (code, Some(message.into())),
            };
            AlterConfigsResourceResponse {
                error_code: error_code.code(),
                error_message,
                resource_type: resource.resource_type,
                resource_name: resource.resource_name.clone(),
                ..Default::default()
            }
        })
        .collect();
    IncrementalAlterConfigsResponse { responses, ..Default::default() }
}

fn changes(
    draft: &Draft,
    resource: &AlterConfigsResource,
    settings: &dyn Settings,
) -> Result<Vec<Record>, Refusal> {
    let image = draft.image();
    let (target, current) = match resource.resource_type {
        TOPIC_RESOURCE => {
            let topic = image.topic_by_name(&resource.resource_name).ok_or_else(|| {
                Refusal(
                    ErrorCode::UnknownTopicOrPartition,
                    format!("no topic {:?}", &*resource.resource_name),
                )
            })?;
            (ConfigTarget::Topic(topic.topic_id), topic.config.clone())
        }
        BROKER_RESOURCE => {
            let broker_id = match &*resource.resource_name {
                "" => None,
                id => Some(id.parse().map_err(|_| {
                    Refusal(
                        ErrorCode::InvalidRequest,
                        format!("{id:?} is not a broker id; leave it empty for all brokers"),
                    )
                })?),
            };
            (
                ConfigTarget::Broker(broker_id),
                image.broker_configs.get(&broker_id).cloned().unwrap_or_default(),
            )
        }
        other => {
            return Err(Refusal(
                ErrorCode::InvalidRequest,
                format!("resource type {other} has no settings here"),
            ));
        }
    };
    let mut wanted = current.clone();
    let mut keys = BTreeSet::new();
    for change in &resource.configs {
        if !keys.insert(&*change.name) {
            return Err(Refusal(ErrorCode::InvalidRequest, format!("{} is changed twice", &*change.name)));
        }
        let default = || match target {
            ConfigTarget::Topic(_) => settings.topic_default(image, &change.name),
            ConfigTarget::Broker(_) => None,
        };
        apply_change(&mut wanted, change, default, settings)?;
    }
    for (key, value) in wanted.iter().filter(|(key, value)| current.get(*key) != Some(*value)) {
        let checked = match target {
            ConfigTarget::Topic(_) => settings.check_topic_config(key, value),
            ConfigTarget::Broker(_) => settings.check_broker_config(key, value),
        };
        checked.map_err(|message| Refusal(ErrorCode::InvalidConfig, message))?;
    }
    if matches!(target, ConfigTarget::Topic(_)) {
        settings
            .check_topic_configs(&wanted)
            .map_err(|message| Refusal(ErrorCode::InvalidConfig, message))?;
    }
    Ok(difference(&target, &current, &wanted))
}

fn apply_change(
    config: &mut BTreeMap<String, String>,
    change: &AlterableConfig,
    default: impl FnOnce() -> Option<String>,
    settings: &dyn Settings,
) -> Result<(), Refusal> {
    let key = &*change.name;
    let value = || {
        change
            .value
            .as_deref()
            .ok_or_else(|| Refusal(ErrorCode::InvalidConfig, format!("{key} has no value")))
    };
    match change.config_operation {
        0 => {
            config.insert(key.to_owned(), value()?.to_owned());
        }
        1 => {
            config.remove(key);
        }
        operation @ (2 | 3) => {
            if !settings.is_list(key) {
                let message =
                    format!("{key} is not a list, so nothing can be appended to it or subtracted from it");
                return Err(Refusal(ErrorCode::InvalidConfig, message));
            }
            let old = config.get(key).cloned().or_else(default).unwrap_or_default();
            let changed = elements(value()?);
            let mut list = elements(&old);
            list.retain(|element| !changed.contains(element));
            if operation == 2 {
                list.extend(changed);
            }
            config.insert(key.to_owned(), list.join(","));
        }
        operation => {
            return Err(Refusal(
                ErrorCode::InvalidRequest,
                format!("{operation} is no configuration operation"),
            ));
        }
    }
    Ok(())
}

fn elements(list: &str) -> Vec<&str> {
    list.split(',').map(str::trim).filter(|element| !element.is_empty()).collect()
}

/// Records that turn `current` into `wanted`.
pub(super) fn difference(
    target: &ConfigTarget,
    current: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> Vec<Record> {
    let record = |key: &String, value: Option<&String>| Record::Config {
        target: target.clone(),
        key: key.clone(),
        value: value.cloned(),
    };
    let set = wanted.iter().filter(|(key, value)| current.get(*key) != Some(*value));
    let removed = current.keys().filter(|key| !wanted.contains_key(*key));
    set.map(|(key, value)| record(key, Some(value))).chain(removed.map(|key| record(key, None))).collect()
}
