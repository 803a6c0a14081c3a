//! Where a node is in its graph.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A node's number among its siblings, from 0 and from the outermost level on: `3/0/1` is the
/// second node in the body of the first node in the body of the fourth. Unlike a path, it is unique
/// for every node of a graph. Empty for the graph itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct NodeId(Vec<usize>);

impl NodeId {
    /// Child number `i` of this node.
    #[must_use]
    pub fn child(&self, i: usize) -> Self {
        Self(self.0.iter().copied().chain([i]).collect())
    }

    /// Whether this is the graph itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join("/"))
    }
}

impl FromStr for NodeId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split('/').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // One spelling per id, so that whoever compares texts compares nodes.
        let id = text.parse().ok().filter(|id: &Self| id.to_string() == text);
        id.ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no node's id")))
    }
}

#[cfg(test)]
mod tests {
    use super::NodeId;

    #[test]
    fn an_id_is_written_and_read_back() {
        let id = NodeId::default().child(3).child(0).child(12);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"3/0/12\"");
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<NodeId>("\"\"").unwrap().is_root());
        for bad in ["\"3//1\"", "\"a\"", "\"-1\"", "3", "\"03/0\"", "\"+3/0\""] {
            assert!(serde_json::from_str::<NodeId>(bad).is_err(), "{bad}");
        }
    }
}
