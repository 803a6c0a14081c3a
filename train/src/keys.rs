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
    let all = table.clone();
    T::deserialize(Reader(Value::Table(table))).map_err(|mistake| match mistake.what {
        What::Unknown { .. } => mistake,
        What::Other(_) => located::<T>(&all, mistake),
    })
}

/// A mistake with the whole path to its value. Of a section that says which of several kinds it is serde
/// makes a copy before it reads it, and what fails then has lost its keys: the key is the one without which
/// something else, or nothing, is wrong.
fn located<T: DeserializeOwned>(table: &Table, mut mistake: Mistake) -> Mistake {
    let said = mistake.what_said();
    while let Some(section) = section(&mut table.clone(), &mistake.path) {
        let is_it = |key: &&String| {
            let mut without = table.clone();
            let path = &mistake.path;
            if let Some(section) = self::section(&mut without, path) {
                section.remove(*key);
            }
            match T::deserialize(Reader(Value::Table(without))) {
                Ok(_) => true,
                Err(other) => other.what_said() != said,
            }
        };
        let kinds = ["kind", "preset", "method"];
        let Some(key) = section.keys().filter(|key| !kinds.contains(&key.as_str())).find(is_it)
        else {
            break;
        };
        mistake.path.insert(0, key.clone());
    }
    mistake
}

/// The section at a path, whose innermost key is the first.
fn section<'a>(table: &'a mut Table, path: &[String]) -> Option<&'a mut Table> {
    path.iter().rev().try_fold(table, |at, key| at.get_mut(key)?.as_table_mut())
}

/// Why a table does not hold what it should.
#[derive(Debug)]
pub struct Mistake {
    what: What,
    /// The keys that lead there, the innermost first.
    path: Vec<String>,
    /// Where that is in the file, if it is known.
    place: Option<String>,
    /// Whether the file has the field, and a setting leaves it without a meaning.
    left: bool,
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

    /// Whether a field that is not known is one of a table's.
    pub(crate) fn is_in(&self, table: Table) -> bool {
        let What::Unknown { noun: "field", found, .. } = &self.what else { return false };
        let section = self.path.iter().rev().try_fold(Value::Table(table), |at, key| match at {
            Value::Table(mut table) => table.remove(key),
            _ => None,
        });
        matches!(section, Some(Value::Table(table)) if table.contains_key(found))
    }

    /// The same of a field that the file has, and that does not go with a setting.
    pub(crate) fn taken_out(mut self) -> Self {
        self.left = true;
        self
    }

    /// What is wrong, wherever that is.
    fn what_said(&self) -> String {
        match &self.what {
            What::Unknown { noun, found, .. } => format!("{noun} {found}"),
            What::Other(text) => text.clone(),
        }
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
        if !self.path.is_empty() && (nearest.is_none() || self.place.is_none()) {
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
        if self.left {
            let path = self.path.iter().rev().map(String::as_str).chain(self.unknown());
            let path = path.collect::<Vec<_>>().join(".");
            let why = "the file has it, and it does not go with what is set";
            return write!(f, "; {why}; `--set {path}=` takes it out");
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
        let text = text.to_string();
        // serde names the type of the program.
        let text = match text.starts_with("data did not match any variant of untagged enum") {
            true => "has none of its forms, which the reference of configs lists".into(),
            false => text,
        };
        Self { what: What::Other(text), path: Vec::new(), place: None, left: false }
    }

    fn invalid_type(found: de::Unexpected, wanted: &dyn de::Expected) -> Self {
        de::Error::custom(format_args!("is {}, and wants {}", is(found), wants(wanted)))
    }

    fn invalid_value(found: de::Unexpected, wanted: &dyn de::Expected) -> Self {
        Self::invalid_type(found, wanted)
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        let what = What::Unknown { noun: "field", found: found.to_string(), known };
        Self { what, path: Vec::new(), place: None, left: false }
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let what = What::Unknown { noun: "variant", found: found.to_string(), known };
        Self { what, path: Vec::new(), place: None, left: false }
    }
}

/// A value in words.
fn is(found: de::Unexpected) -> String {
    match found {
        de::Unexpected::Map => "a section".into(),
        de::Unexpected::Seq => "a list".into(),
        de::Unexpected::Unsigned(number) => number.to_string(),
        de::Unexpected::Signed(number) => number.to_string(),
        de::Unexpected::Float(number) => number.to_string(),
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Str(text) => format!("the text {text:?}"),
        other => other.to_string(),
    }
}

/// What a type reads in words that name no type of the program.
fn wants(wanted: &dyn de::Expected) -> String {
    let text = wanted.to_string();
    match text.as_str() {
        "f32" | "f64" => "a number".into(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".into(),
        "u8" | "u16" | "u32" => {
            let bits = text[1..].parse().unwrap_or(32);
            format!("a whole number from 0 to {}", u64::MAX >> (64 - bits))
        }
        "u64" | "usize" => "a whole number of 0 or above".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" => "a text".into(),
        "a sequence" => "a list".into(),
        "variant identifier" | "field identifier" => "a name".into(),
        text if text.starts_with("struct ") || text.contains("tagged enum ") => "a section".into(),
        text if text.starts_with("enum ") => "a name".into(),
        text if text.starts_with("an array of length ") => {
            text.replacen("an array of length", "a list of", 1)
        }
        text => text.into(),
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
        let wanted = "line 4, column 8, `rate = 'fast'`: inner.rate: is the text";
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
        assert_eq!(
            said,
            "inner: unknown field `rat`, expected `rate` or `range`; did you mean `rate`?"
        );
        let kind = mistake("size = 1\nkind = 'plan'");
        assert_eq!(kind.nearest(), Some("plain"));
        let wrong = mistake("size = 1\ninner = { rate = 'fast', range = [1, 2] }");
        assert_eq!(wrong.nearest(), None);
        let said = wrong.to_string();
        assert_eq!(said, "inner.rate: is the text \"fast\", and wants a number");
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
    fn no_type_of_the_program_is_named() {
        for (text, wanted) in [
            ("size = 1\ninner = 3", "inner: is 3, and wants a section"),
            ("size = -1", "size: is -1, and wants a whole number of 0 or above"),
            ("size = [1]", "size: is a list, and wants a whole number of 0 or above"),
            ("size = 1\nkind = 3", "kind: is 3, and wants a name"),
            ("size = 1\ninner = { rate = 1, range = [1] }", "inner.range: invalid length 1"),
            (
                "size = 1\ninner = { rate = {}, range = [1, 2] }",
                "inner.rate: is a section, and wants",
            ),
            ("size = true", "size: is true, and wants a whole number of 0 or above"),
        ] {
            let said = mistake(text).to_string();
            assert!(said.starts_with(wanted), "{said}");
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
