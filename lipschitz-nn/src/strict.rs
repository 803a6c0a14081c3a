//! Documents in which every key means something: one that is not known is refused, not passed over.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses JSON; unlike serde's own attribute this also sees keys next to a tag and to flattened
/// fields.
///
/// # Errors
/// If the text is no such document, or holds a key that the document does not have.
pub fn from_str<T: Serialize + DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let document = serde_json::from_str(text)?;
    known(&serde_json::from_str(text)?, &document)?;
    Ok(document)
}

/// Refuses keys of `raw`, from which `document` was read, that it does not have. One that is null
/// says nothing.
///
/// # Errors
/// Names the first of them with its path.
pub fn known(raw: &Value, document: &impl Serialize) -> serde_json::Result<()> {
    match unknown(raw, &serde_json::to_value(document)?, "") {
        Some(path) if path.is_empty() => {
            Err(serde::de::Error::custom("is a list, wanted keys with values"))
        }
        Some(path) => Err(serde::de::Error::custom(format!("`{path}` is not known"))),
        None => Ok(()),
    }
}

fn unknown(raw: &Value, known: &Value, path: &str) -> Option<String> {
    match (raw, known) {
        (Value::Object(raw), Value::Object(known)) => {
            raw.iter().filter(|(_, value)| !value.is_null()).find_map(|(key, value)| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                known
                    .get(key)
                    .map_or_else(|| Some(path.clone()), |known| unknown(value, known, &path))
            })
        }
        (Value::Array(raw), Value::Array(known)) => raw
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(i, (raw, known))| unknown(raw, known, &format!("{path}[{i}]"))),
        // A list of values in the order of the keys has no keys to check.
        (Value::Array(_), Value::Object(_)) => Some(path.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::Graph;

    #[test]
    fn a_list_in_place_of_keys_is_refused() {
        let said = Graph::from_json("[1, {\"kind\": \"vector\", \"dim\": 2}, []]")
            .unwrap_err()
            .to_string();
        assert!(said.contains("wanted keys with values"), "{said}");
    }

    #[test]
    fn a_key_that_means_nothing_is_named() {
        let graph = |node: &str| {
            let nodes = format!(
                "[{{\"name\": \"a\", {node}}}, \
                 {{\"op\": \"activation\", \"function\": \"relu\", \"scale\": 1.0}}]"
            );
            Graph::from_json(&format!(
                "{{\"format\": 1, \"input\": {{\"kind\": \"vector\", \"dim\": 2}}, \
                 \"nodes\": {nodes}}}"
            ))
        };
        let linear = "\"op\": \"linear\", \"inputs\": 2, \"outputs\": 2, \"bias\": false";
        graph(linear).unwrap();
        for (node, path) in [
            (format!("{linear}, \"sigma_max\": 0.1"), "nodes[0].sigma_max"),
            ("\"op\": \"flatten\", \"axis\": 1".to_string(), "nodes[0].axis"),
            (
                format!("\"op\": \"sequential\", \"body\": [{{{linear}, \"bais\": true}}]"),
                "nodes[0].body[0].bais",
            ),
        ] {
            let said = graph(&node).unwrap_err().to_string();
            assert!(said.contains(&format!("`{path}` is not known")), "{said}");
        }
    }
}
