//! Looking things up in `config.json` and `tokenizer.json`.

use serde_json::Value;

/// Names under which configurations keep the image token, most specific first.
const IMAGE_TOKEN: &[&str] =
    &["image_token_id", "image_token_index", "img_context_token_id", "media_placeholder_token_id"];
/// Parts of a configuration that are searched after its top level.
const PARTS: &[&str] = &["text_config", "llm_config", "language_config", "vision_config", "model"];

/// Whether a configuration names one of these model types or one of these architectures.
pub fn is(config: &Value, model_types: &[&str], architectures: &[&str]) -> bool {
    let named = |value: &Value, names: &[&str]| value.as_str().is_some_and(|name| names.contains(&name));
    let by_type = config.get("model_type").is_some_and(|value| named(value, model_types));
    let classes = config.get("architectures").and_then(Value::as_array);
    by_type || classes.is_some_and(|all| all.iter().any(|value| named(value, architectures)))
}

/// The image token's id, at the top level or in a part of the configuration. Negative ids, which stand for a
/// placeholder outside of the vocabulary, are kept.
pub fn image_token(config: &Value) -> Option<i64> {
    let levels = std::iter::once(config).chain(PARTS.iter().filter_map(|part| config.get(part)));
    levels.flat_map(|level| IMAGE_TOKEN.iter().filter_map(|key| level.get(key))).find_map(Value::as_i64)
}

/// The id of an added token of `tokenizer.json` by its text, such as `<image>`.
pub fn added_token(tokenizer: &Value, text: &str) -> Option<i64> {
    let tokens = tokenizer.get("added_tokens")?.as_array()?;
    let token = tokens.iter().find(|token| token.get("content").and_then(Value::as_str) == Some(text))?;
    token.get("id")?.as_i64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn image_tokens() {
        let check = |config: Value, expected| assert_eq!(image_token(&config), expected, "{config}");
        check(json!({"image_token_id": null, "image_token_index": 32000}), Some(32000));
        check(json!({"image_token_id": 1, "text_config": {"image_token_id": 2}}), Some(1));
        check(json!({"image_token_index": -200}), Some(-200));
        check(json!({"llm_config": {"img_context_token_id": 9}}), Some(9));
        check(json!({"image_token_id": "<image>"}), None);
        check(json!(null), None);
    }

    #[test]
    fn added_tokens() {
        let tokenizer = json!({"added_tokens": [{"id": 0, "content": "<pad>"}, {"id": 3, "content": "<image>"}, 7]});
        assert_eq!(added_token(&tokenizer, "<image>"), Some(3));
        assert_eq!(added_token(&tokenizer, "<video>"), None);
        assert_eq!(added_token(&json!({"added_tokens": {}}), "<image>"), None);
    }
}
