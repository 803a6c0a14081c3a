//! Seeds in files: any 64-bit number. TOML's integers end at 2⁶³ − 1, so a larger one is written as a
//! string; both are read.

use std::fmt;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::ser::Serializer;

/// For `#[serde(with = "seed")]`.
pub(crate) fn serialize<S: Serializer>(seed: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    if i64::try_from(*seed).is_ok() {
        serializer.serialize_u64(*seed)
    } else {
        serializer.collect_str(seed)
    }
}

/// For `#[serde(with = "seed")]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Seed;
    impl Visitor<'_> for Seed {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a whole number from 0 to {}, as a string above {}", u64::MAX, i64::MAX)
        }

        fn visit_u64<E: de::Error>(self, seed: u64) -> Result<u64, E> {
            Ok(seed)
        }

        fn visit_i64<E: de::Error>(self, seed: i64) -> Result<u64, E> {
            u64::try_from(seed).map_err(|_| E::invalid_value(Unexpected::Signed(seed), &self))
        }

        fn visit_str<E: de::Error>(self, seed: &str) -> Result<u64, E> {
            seed.parse().map_err(|_| E::invalid_value(Unexpected::Str(seed), &self))
        }
    }
    deserializer.deserialize_any(Seed)
}
