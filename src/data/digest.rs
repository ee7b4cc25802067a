//! Digests a caller expects of what is transferred.

use std::fmt;
use std::fs::File;
use std::str::FromStr;

use sha2::digest::DynDigest;

use super::{DataError, Watch};
use crate::sys::copy as calls;
use crate::sys::hex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algo {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl Algo {
    fn digits(self) -> usize {
        match self {
            Algo::Md5 => 32,
            Algo::Sha1 => 40,
            Algo::Sha256 => 64,
            Algo::Sha512 => 128,
        }
    }

    pub(super) fn hasher(self) -> Box<dyn DynDigest + Send> {
        match self {
            Algo::Md5 => Box::<md5::Md5>::default(),
            Algo::Sha1 => Box::<sha1::Sha1>::default(),
            Algo::Sha256 => Box::<sha2::Sha256>::default(),
            Algo::Sha512 => Box::<sha2::Sha512>::default(),
        }
    }
}

impl fmt::Display for Algo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algo::Md5 => "MD5",
            Algo::Sha1 => "SHA1",
            Algo::Sha256 => "SHA256",
            Algo::Sha512 => "SHA512",
        })
    }
}

impl FromStr for Algo {
    type Err = ();

    /// `md5`, `sha1`, `sha256`, `sha512`, in any case.
    fn from_str(s: &str) -> Result<Algo, ()> {
        [Algo::Md5, Algo::Sha1, Algo::Sha256, Algo::Sha512]
            .into_iter()
            .find(|a| a.to_string().eq_ignore_ascii_case(s))
            .ok_or(())
    }
}

/// The digest of a file's bytes, in lower-case hexadecimal.
pub fn digest_of(file: &File, algo: Algo, watch: &Watch) -> Result<String, DataError> {
    let (_, len) = calls::measure(file).map_err(DataError::io("looking at the file"))?;
    watch.begin("reading", Some(len))?;
    calls::will_read_once(file);
    let mut hasher = algo.hasher();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        watch.check("reading")?;
        let n = calls::read_full(file, &mut buf, at).map_err(DataError::io("reading the file"))?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        at += n as u64;
        watch.progress.add(n as u64);
    }
    let mut digest = vec![0; algo.digits() / 2];
    hasher.finalize_into_reset(&mut digest).map_err(|_| DataError::Died)?;
    Ok(hex(&digest))
}

/// A digest that must come out; lower-case hexadecimal of the right length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    algo: Algo,
    hex: String,
}

impl Expected {
    /// Accepts hexadecimal of exactly the right length, in any case, with blanks around it.
    pub fn parse(algo: Algo, text: &str) -> Result<Expected, DataError> {
        let hex = text.trim();
        if hex.len() != algo.digits() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let got = text.chars().take(160).collect();
            return Err(DataError::BadDigest { algo, want: algo.digits(), got });
        }
        Ok(Expected { algo, hex: hex.to_ascii_lowercase() })
    }

    pub fn algo(&self) -> Algo {
        self.algo
    }

    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Compares with the bytes that came out.
    pub(super) fn verify(&self, digest: &[u8]) -> Result<(), DataError> {
        let got = hex(digest);
        if got == self.hex {
            return Ok(());
        }
        Err(DataError::DigestMismatch { algo: self.algo, expected: self.hex.clone(), got })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_nothing_are_the_published_ones() {
        for (algo, text) in [
            (Algo::Md5, "D41D8CD98F00B204E9800998ECF8427E"),
            (Algo::Sha1, " da39a3ee5e6b4b0d3255bfef95601890afd80709\n"),
            (Algo::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ] {
            let expected = Expected::parse(algo, text).unwrap();
            let mut digest = vec![0; algo.hasher().output_size()];
            algo.hasher().finalize_into_reset(&mut digest).unwrap();
            expected.verify(&digest).unwrap();
            assert!(expected.verify(&digest[1..]).is_err());
        }
    }

    #[test]
    fn anything_but_a_digest_is_refused() {
        for (algo, text) in [
            (Algo::Md5, ""),
            (Algo::Md5, "d41d8cd98f00b204e9800998ecf8427"),
            (Algo::Md5, "d41d8cd98f00b204e9800998ecf8427e0"),
            (Algo::Md5, "d41d8cd98f00b204e9800998ecf8427g"),
            (Algo::Md5, "$(touch x)0000000000000000000000"),
            (Algo::Sha1, "d41d8cd98f00b204e9800998ecf8427e"),
            (Algo::Sha256, "éééééééééééééééééééééééééééééééé"),
        ] {
            assert!(Expected::parse(algo, text).is_err(), "{text}");
        }
        assert_eq!("SHA256".parse(), Ok(Algo::Sha256));
        assert_eq!("crc32".parse::<Algo>(), Err(()));
    }
}
