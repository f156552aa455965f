//! Every configuration key that is understood, with its type, default, bounds and meaning.
//!
//! Answers what a key is, whether a value fits, and which key was meant when one is unknown. The tables are
//! `topic_keys.rs` and `broker_keys.rs`; names, types, defaults and bounds are those of Kafka 4.3 where Kafka has the
//! key. A key that is accepted without having an effect yet says so, and why, in its definition.

use super::broker_keys::{BROKER_KEYS, REFUSED_KEYS};
use super::topic_keys::TOPIC_KEYS;
use super::value::{self, Check, Kind};

/// One key of a broker or a topic.
#[derive(Debug)]
pub struct KeyDef {
    /// The key.
    pub name: &'static str,
    /// Type of its values.
    pub kind: Kind,
    /// Value without any setting; `None` where there is none.
    pub default: Option<&'static str>,
    /// What values must satisfy.
    pub check: Check,
    /// Whether the cluster can set it while brokers run. Topic keys always can.
    pub dynamic: bool,
    /// Why the key has no effect yet; `None` when it has.
    pub no_effect_yet: Option<&'static str>,
    /// Broker keys that hold a topic key's default, the strongest first.
    pub synonyms: &'static [Synonym],
    /// What it does, for people.
    pub doc: &'static str,
}

/// A broker key that supplies a topic key's default.
#[derive(Clone, Copy, Debug)]
pub struct Synonym {
    /// The broker key.
    pub name: &'static str,
    /// Its unit, in units of the topic key.
    pub factor: i64,
}

impl KeyDef {
    pub(super) const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            default: Some(default),
            check: Check::Any,
            dynamic: false,
            no_effect_yet: None,
            synonyms: &[],
            doc,
        }
    }

    pub(super) const fn unset(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { default: None, ..Self::new(name, kind, "", doc) }
    }

    pub(super) const fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    pub(super) const fn dynamic(mut self) -> Self {
        self.dynamic = true;
        self
    }

    pub(super) const fn no_effect_yet(mut self, reason: &'static str) -> Self {
        self.no_effect_yet = Some(reason);
        self
    }

    pub(super) const fn synonyms(mut self, synonyms: &'static [Synonym]) -> Self {
        self.synonyms = synonyms;
        self
    }

    /// Checks `value` and brings it to the form in which it is shown.
    pub fn canonical(&self, value: &str) -> Result<String, String> {
        value::canonical(self.kind, self.check, value)
    }

    /// Whether the value must never be shown.
    pub fn sensitive(&self) -> bool {
        self.kind == Kind::Password
    }

    /// Meaning, default and what is missing, as DescribeConfigs tells it.
    pub fn documentation(&self) -> String {
        match self.no_effect_yet {
            Some(reason) => format!("{} (effect: none yet, {reason})", self.doc),
            None => self.doc.to_owned(),
        }
    }
}

/// All topic keys, in alphabetical order.
pub fn topic_keys() -> &'static [KeyDef] {
    TOPIC_KEYS
}

/// All broker keys, in alphabetical order.
pub fn broker_keys() -> &'static [KeyDef] {
    BROKER_KEYS
}

/// Definition of a topic key.
pub fn topic_key(name: &str) -> Option<&'static KeyDef> {
    find(TOPIC_KEYS, name)
}

/// Definition of a broker key.
pub fn broker_key(name: &str) -> Option<&'static KeyDef> {
    find(BROKER_KEYS, name)
}

fn find(keys: &'static [KeyDef], name: &str) -> Option<&'static KeyDef> {
    keys.binary_search_by(|key| key.name.cmp(name)).ok().map(|at| &keys[at])
}

/// Checks a setting of a broker that the cluster may change while brokers run; the message names the key.
pub fn validate_dynamic_broker(name: &str, value: &str) -> Result<(), String> {
    let key = broker_key(name).ok_or_else(|| unknown_broker_key(name))?;
    if !key.dynamic {
        return Err(format!(
            "{name} is read when a broker starts; set it in the broker's configuration file"
        ));
    }
    key.canonical(value).map(drop).map_err(|problem| format!("{name}: {problem}"))
}

/// Whether the key of a topic or broker holds a list, to which values can be added one by one.
pub fn is_list(name: &str) -> bool {
    topic_key(name).or_else(|| broker_key(name)).is_some_and(|key| key.kind == Kind::List)
}

/// What to say of a topic key that does not exist.
pub fn unknown_topic_key(name: &str) -> String {
    let message = format!("unknown topic configuration {name}");
    if let Some(topic_key) =
        TOPIC_KEYS.iter().find(|key| key.synonyms.iter().any(|synonym| synonym.name == name))
    {
        return format!("{message}, which is a broker key; the topic key is {}", topic_key.name);
    }
    with_suggestion(message, name, TOPIC_KEYS.iter().map(|key| key.name))
}

/// What to say of a broker key that does not exist.
pub fn unknown_broker_key(name: &str) -> String {
    if let Some((_, reason)) = REFUSED_KEYS.iter().find(|(refused, _)| *refused == name) {
        return format!("this key of Apache Kafka does not exist here: {reason}");
    }
    let message = "unknown key".to_owned();
    if let Some(synonym) = topic_key(name).and_then(|key| key.synonyms.first()) {
        return format!("{message}: it belongs to topics; the default of all topics is {}", synonym.name);
    }
    with_suggestion(message, name, BROKER_KEYS.iter().map(|key| key.name))
}

fn with_suggestion(message: String, name: &str, known: impl Iterator<Item = &'static str>) -> String {
    // A third of the key may be wrong; a worse match would mislead more often than help.
    let limit = (name.len() / 3).max(2);
    match known.map(|key| (edit_distance(name, key), key)).min() {
        Some((distance, key)) if distance <= limit => format!("{message}; did you mean {key}?"),
        _ => message,
    }
}

/// Insertions, deletions and replacements of bytes that turn `a` into `b` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    // Keys of other systems can be long, and nothing beyond this length is near any of ours.
    if a.len() > 128 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_every_default_passes_its_own_check() {
        for keys in [TOPIC_KEYS, BROKER_KEYS] {
            assert!(keys.is_sorted_by(|a, b| a.name < b.name));
            for key in keys {
                if let Some(default) = key.default {
                    assert_eq!(key.canonical(default).as_deref(), Ok(default), "{}", key.name);
                }
                assert!(!key.doc.is_empty(), "{}", key.name);
            }
        }
    }

    #[test]
    fn every_synonym_is_a_dynamic_or_derived_broker_key_of_the_same_default() {
        for topic_key in TOPIC_KEYS {
            for synonym in topic_key.synonyms {
                let broker_key = broker_key(synonym.name).expect(synonym.name);
                let Some(default) = broker_key.default else { continue };
                if synonym.factor == 1 {
                    assert_eq!(Some(default), topic_key.default, "{}", synonym.name);
                } else {
                    let number: i64 = default.parse().expect(synonym.name);
                    assert_eq!(Some((number * synonym.factor).to_string().as_str()), topic_key.default);
                }
            }
        }
    }

    #[test]
    fn finds_every_key_by_its_name() {
        assert!(TOPIC_KEYS.iter().all(|key| topic_key(key.name).is_some()));
        assert!(BROKER_KEYS.iter().all(|key| broker_key(key.name).is_some()));
        assert!(topic_key("log.retention.ms").is_none());
    }

    #[test]
    fn suggests_the_key_that_was_meant() {
        assert!(unknown_broker_key("num.partition").ends_with("did you mean num.partitions?"));
        assert!(unknown_broker_key("retention.ms").contains("log.retention.ms"));
        assert!(unknown_broker_key("zookeeper.connect").contains("does not exist here"));
        assert_eq!(unknown_broker_key("something.entirely.different.from.all"), "unknown key");
        assert!(unknown_topic_key("retention.m").ends_with("did you mean retention.ms?"));
        assert!(unknown_topic_key("log.retention.ms").ends_with("the topic key is retention.ms"));
    }

    #[test]
    fn dynamic_broker_settings_are_checked_and_static_ones_refused() {
        assert_eq!(validate_dynamic_broker("log.retention.ms", "5"), Ok(()));
        assert!(validate_dynamic_broker("log.retention.ms", "x").is_err());
        assert!(validate_dynamic_broker("node.id", "5").is_err());
        assert!(validate_dynamic_broker("nonsense", "5").is_err());
    }

    #[test]
    fn measures_distance_in_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
