//! From Kafka's names to Rust's.

/// `TopicId` → `topic_id`, `ISRNodes` → `isr_nodes`.
pub(crate) fn snake_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::with_capacity(name.len() + 4);
    for (i, &c) in chars.iter().enumerate() {
        let starts_word = c.is_uppercase()
            && i > 0
            && (!chars[i - 1].is_uppercase() || chars.get(i + 1).is_some_and(|next| next.is_lowercase()));
        if starts_word {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// Like [`snake_case`], with `_` behind what Rust reserves: `Type` → `type_`.
pub(crate) fn field_name(name: &str) -> String {
    let mut out = snake_case(name);
    if KEYWORDS.contains(&out.as_str()) {
        out.push('_');
    }
    out
}

const KEYWORDS: &[&str] = &[
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static",
    "struct", "super", "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual",
    "where", "while", "yield",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_acronyms_are_separated() {
        assert_eq!(snake_case("TopicId"), "topic_id");
        assert_eq!(snake_case("LeaderHWEpoch"), "leader_hw_epoch");
        assert_eq!(snake_case("ISR"), "isr");
        assert_eq!(snake_case("SubscribedTopicRegex"), "subscribed_topic_regex");
    }

    #[test]
    fn keywords_get_an_underscore() {
        assert_eq!(field_name("Type"), "type_");
        assert_eq!(field_name("Match"), "match_");
        assert_eq!(field_name("Key"), "key");
    }
}
