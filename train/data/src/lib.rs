//! What networks are trained on: text, generated plays and pictures.
//!
//! The order in which data comes is a pure function of seed and step ([`order`]), so a resumed run
//! sees what an uninterrupted one would have seen.

mod caught;
pub mod cifar10;
pub mod order;
pub mod play;
pub mod shards;
pub mod task;
pub mod text;
pub mod tokens;

use sha2::{Digest, Sha256};

/// SHA-256 in hexadecimal of byte strings put one behind the other.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_is_the_published_one_however_the_bytes_are_cut() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::digest([b"abc".as_slice()]), abc);
        assert_eq!(super::digest([b"a".as_slice(), b"", b"bc"]), abc);
    }
}
