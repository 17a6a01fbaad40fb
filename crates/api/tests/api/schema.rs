//! Checks answers against the vendored spec. Only the keywords that the spec uses; an unknown one fails.

use std::sync::LazyLock;

use serde_json::Value;

/// The spec, as JSON.
pub(crate) static SPEC: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../vectors/ipfs-pinning-service.json")).unwrap());

/// Checks `value` against the schema of that name.
pub(crate) fn conforms(name: &str, value: &Value) {
    let schema = &SPEC["components"]["schemas"][name];
    assert!(schema.is_object(), "the spec has no schema {name}");
    check(schema, value, name);
}

fn check(schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return conforms(name.rsplit('/').next().unwrap(), value);
    }
    for (keyword, rule) in schema.as_object().unwrap() {
        let number = || usize::try_from(rule.as_u64().unwrap()).unwrap();
        match keyword.as_str() {
            "type" => assert!(is_a(rule.as_str().unwrap(), value), "{at}: {value} is no {rule}"),
            "required" => {
                for field in rule.as_array().unwrap() {
                    assert!(value.get(field.as_str().unwrap()).is_some(), "{at} lacks {field}: {value}");
                }
            }
            "properties" => {
                for (field, schema) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(field) {
                        check(schema, value, &format!("{at}.{field}"));
                    }
                }
            }
            "additionalProperties" => {
                for (field, value) in value.as_object().unwrap() {
                    // The spec has its bound on the properties inside the schema of each value.
                    let text = serde_json::json!({ "type": rule["type"] });
                    check(&text, value, &format!("{at}.{field}"));
                }
            }
            "items" => {
                value.as_array().unwrap().iter().for_each(|item| check(rule, item, &format!("{at}[]")));
            }
            "enum" => assert!(rule.as_array().unwrap().contains(value), "{at}: {value} is none of {rule}"),
            "minItems" => assert!(value.as_array().unwrap().len() >= number(), "{at}: too few in {value}"),
            "maxItems" => assert!(value.as_array().unwrap().len() <= number(), "{at}: too many in {value}"),
            "uniqueItems" => {
                let items = value.as_array().unwrap();
                assert!((1..items.len()).all(|i| !items[..i].contains(&items[i])), "{at}: twice in {value}");
            }
            "maxLength" => {
                assert!(value.as_str().unwrap().chars().count() <= number(), "{at}: {value} is long")
            }
            "minimum" => assert!(value.as_i64().unwrap() >= rule.as_i64().unwrap(), "{at}: {value}"),
            "format" => check_format(rule.as_str().unwrap(), value, at),
            "description" | "example" | "default" => {}
            unknown => panic!("{at}: the keyword {unknown} is not checked"),
        }
    }
}

fn check_format(format: &str, value: &Value, at: &str) {
    match format {
        "int32" => assert!(i32::try_from(value.as_i64().unwrap()).is_ok(), "{at}: {value}"),
        "date-time" => {
            let text = value.as_str().unwrap();
            assert!(floe_core::Timestamp::parse_rfc3339(text).is_some(), "{at}: {value}");
        }
        unknown => panic!("{at}: the format {unknown} is not checked"),
    }
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        unknown => panic!("the type {unknown} is not checked"),
    }
}
