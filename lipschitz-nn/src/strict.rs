//! Documents in which every key means something: one that is not known is refused, not passed over.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
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

/// Refuses JSON in which an object has a key twice: parsers keep one of the values, and not all
/// parsers the same.
///
/// # Errors
/// Names the key; or if this is no JSON.
pub fn no_key_twice(json: &[u8]) -> serde_json::Result<()> {
    serde_json::from_slice(json).map(|Unique| ())
}

/// A value all of whose objects have each key once.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("it has the key `{key}` twice")));
            }
            keys.insert(key);
            map.next_value::<Self>()?;
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
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
    fn a_key_twice_is_named() {
        let said = |json: &str| super::no_key_twice(json.as_bytes()).map_err(|e| e.to_string());
        said(r#"{"a": [1, -1, 0.5, "a", true, null], "b": {"a": {}}}"#).unwrap();
        for json in [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "\u0061": 2}}]"#] {
            assert!(said(json).unwrap_err().contains("the key `a` twice"));
        }
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
