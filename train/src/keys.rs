//! Types read from TOML tables. A key or a kind that is not known is told apart from a value that
//! does not fit, so that the nearest known name can be suggested.

use std::fmt::{self, Display};

use lipschitz_certify::terminal::places;
use serde::de::value::{MapAccessDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor,
};
use toml::{Table, Value};

use crate::Error;

/// A TOML file as a table.
pub(crate) fn table(text: &str) -> Result<Table, Error> {
    toml::from_str(text).map_err(|error| {
        let what = places::syntax(text, &error);
        Error::Syntax { what, error: Box::new(error) }
    })
}

/// The value of a type that a table holds.
pub(crate) fn read<T: DeserializeOwned>(table: Table) -> Result<T, Mistake> {
    T::deserialize(Reader(Value::Table(table)))
}

/// Why a table does not hold what it should.
#[derive(Debug)]
pub struct Mistake {
    what: What,
    /// The keys that lead there, the innermost first.
    path: Vec<String>,
    /// Where that is in the file, if it is known.
    place: Option<String>,
}

#[derive(Debug)]
enum What {
    /// A field or a variant that is not known, and those that are.
    Unknown { noun: &'static str, found: String, known: &'static [&'static str] },
    /// Anything else.
    Other(String),
}

impl Mistake {
    /// The name that is not known, if that is what is wrong.
    pub fn unknown(&self) -> Option<&str> {
        match &self.what {
            What::Unknown { found, .. } => Some(found),
            What::Other(_) => None,
        }
    }

    /// The known name that is nearest to the one that is not.
    pub fn nearest(&self) -> Option<&'static str> {
        let What::Unknown { found, known, .. } = &self.what else { return None };
        let likeness = |name: &str| strsim::jaro_winkler(name, found);
        known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
    }

    /// The same, with its place in the file that the table is of.
    pub(crate) fn at(mut self, text: &str) -> Self {
        let path = self.path.iter().rev().map(String::as_str);
        let at = places::of_key(text, path, self.unknown());
        self.place = at.map(|at| places::place(text, at));
        self
    }

    fn inside(mut self, key: String) -> Self {
        self.path.push(key);
        self
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let nearest = self.nearest();
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.path.is_empty() && nearest.is_none() {
            let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
            write!(f, "{}: ", path.join("."))?;
        }
        match &self.what {
            What::Unknown { noun, found, known: [] } => {
                write!(f, "unknown {noun} `{found}`, there are no {noun}s")?;
            }
            What::Unknown { noun, found, known } => {
                write!(f, "unknown {noun} `{found}`, expected {}", listed(known))?;
            }
            What::Other(text) => f.write_str(&text.trim().replace('\n', " "))?,
        }
        nearest.map_or(Ok(()), |name| write!(f, "; did you mean `{name}`?"))
    }
}

/// Names in words: `a`, `a` or `b`, one of `a`, `b`, `c`.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match &quoted[..] {
        [one] => one.clone(),
        [one, other] => format!("{one} or {other}"),
        several => format!("one of {}", several.join(", ")),
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: Display>(text: T) -> Self {
        Self { what: What::Other(text.to_string()), path: Vec::new(), place: None }
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        let what = What::Unknown { noun: "field", found: found.to_string(), known };
        Self { what, path: Vec::new(), place: None }
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let what = What::Unknown { noun: "variant", found: found.to_string(), known };
        Self { what, path: Vec::new(), place: None }
    }
}

/// A TOML value to be read, with errors of this kind.
struct Reader(Value);

impl IntoDeserializer<'_, Mistake> for Reader {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Reader {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) if number.is_nan() => Err(de::Error::custom("nan is no number")),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(value) => visitor.visit_bool(value),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(values) => {
                let mut values = SeqDeserializer::new(values.into_iter().map(Reader));
                let read = visitor.visit_seq(&mut values)?;
                values.end().map(|()| read)
            }
            Value::Table(table) => visitor.visit_map(Entries::new(table)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(StringDeserializer::new(text)),
            Value::Table(table) if table.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(Entries::new(table)))
            }
            Value::Table(table) => {
                Err(de::Error::invalid_length(table.len(), &"exactly 1 element"))
            }
            other => Reader(other).deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The entries of a table; an error in a value knows its key.
struct Entries {
    rest: toml::map::IntoIter<String, Value>,
    value: Option<(String, Value)>,
}

impl Entries {
    fn new(table: Table) -> Self {
        Self { rest: table.into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key.clone(), value));
        seed.deserialize(StringDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let Some((key, value)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Reader(value)).map_err(|mistake| mistake.inside(key))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        size: usize,
        inner: Option<Inner>,
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        rate: f64,
        range: [f64; 2],
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[allow(dead_code)]
    enum Kind {
        Plain,
        Of(usize),
    }

    #[test]
    fn a_mistake_has_its_place_in_the_file() {
        let text = "size = 1\n\n[inner]\n  rat = 1\n";
        let said = mistake(text).at(text).to_string();
        assert!(said.starts_with("line 4, column 3, `rat = 1`: unknown field `rat`"), "{said}");
        let text = "size = 1\n[inner]\nrange = [1, 2]\nrate = 'fast'\n";
        let said = mistake(text).at(text).to_string();
        let wanted = "line 4, column 8, `rate = 'fast'`: inner.rate: invalid type";
        assert!(said.starts_with(wanted), "{said}");
        assert!(table("size = = 1").unwrap_err().to_string().starts_with("line 1, column 8, `"));
    }

    fn mistake(text: &str) -> Mistake {
        read::<Outer>(toml::from_str(text).unwrap()).unwrap_err()
    }

    #[test]
    fn names_are_told_apart_from_values() {
        let unknown = mistake("size = 1\ninner = { rat = 1 }");
        assert_eq!((unknown.unknown(), unknown.nearest()), (Some("rat"), Some("rate")));
        let said = unknown.to_string();
        assert_eq!(said, "unknown field `rat`, expected `rate` or `range`; did you mean `rate`?");
        let kind = mistake("size = 1\nkind = 'plan'");
        assert_eq!(kind.nearest(), Some("plain"));
        let wrong = mistake("size = 1\ninner = { rate = 'fast', range = [1, 2] }");
        assert_eq!(wrong.nearest(), None);
        let said = wrong.to_string();
        assert_eq!(said, "inner.rate: invalid type: string \"fast\", expected f64");
        for text in [
            "size = 1\ninner = { rate = 1, range = [1, 2, 3] }",
            "size = 1\nkind = { of = 3, plain = 2 }",
            "size = 1\nkind = 3",
            "size = -1",
            "size = 1\ninner = { rate = nan, range = [1, 2] }",
        ] {
            assert!(mistake(text).unknown().is_none(), "{text}");
        }
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let text = "size = 1\nkind = { of = 3 }\ninner = { rate = 2, range = [1, 2.5] }";
        let outer: Outer = read(toml::from_str(text).unwrap()).unwrap();
        assert!(matches!(outer.kind, Some(Kind::Of(3))));
        assert_eq!(outer.inner.unwrap().range, [1.0, 2.5]);
    }
}
