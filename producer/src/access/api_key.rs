//! The text of a key: `hfk_` + id (10 characters) + `_` + secret (43) + checksum (6), letters and digits only.
//!
//! A secret of 43 characters of 62 has 256 bits, so its SHA-256 needs neither a salt nor a slow hash. The checksum is
//! the CRC32 of all before it. It finds every single wrong character and every key that was cut off, before anything is
//! looked up. `hfk_` lets scanners find a key that was published by mistake.

use crc::{CRC_32_ISO_HDLC, Crc};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "hfk_";
const ID: usize = 10;
const SECRET: usize = 43;
const CHECKSUM: usize = 6;
const LENGTH: usize = PREFIX.len() + ID + 1 + SECRET + CHECKSUM;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key that is whole. Whether it is valid is in the ledger.
pub struct ApiKey {
    id: String,
    secret_sha256: [u8; 32],
}

/// Why a text is no key. It never shows the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// It begins otherwise.
    #[error("it does not begin with hfk_")]
    Prefix,
    /// It has another length.
    #[error("it has {given} characters, expected {LENGTH}: was it cut off?")]
    Length {
        /// How many it has.
        given: usize,
    },
    /// It has characters that no key has.
    #[error("it has a character that is neither a letter nor a digit")]
    Character,
    /// Its checksum is not that of its other characters.
    #[error("its checksum does not fit: one of its characters is wrong")]
    Checksum,
}

impl ApiKey {
    /// Makes a key. Its text is returned here and nowhere else.
    pub fn make() -> Result<(SecretString, ApiKey), getrandom::Error> {
        let id = random::<ID>()?;
        let secret = random::<SECRET>()?;
        let mut text = String::with_capacity(LENGTH);
        for part in [PREFIX, &id, "_", &secret] {
            text.push_str(part);
        }
        text.push_str(&checksum(&text));
        let key = ApiKey { secret_sha256: Sha256::digest(&secret).into(), id };
        drop(SecretString::from(secret));
        Ok((text.into(), key))
    }

    /// Reads a key. What was typed wrong or cut off is refused here.
    pub fn parse(text: &str) -> Result<ApiKey, BadKey> {
        let rest = text.strip_prefix(PREFIX).ok_or(BadKey::Prefix)?;
        if text.len() != LENGTH {
            return Err(BadKey::Length { given: text.chars().count() });
        }
        let (id, secret) = rest.split_at_checked(ID).ok_or(BadKey::Character)?;
        let secret = secret.strip_prefix('_').ok_or(BadKey::Character)?;
        if !id.bytes().chain(secret.bytes()).all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BadKey::Character);
        }
        let (body, sum) = text.split_at(LENGTH - CHECKSUM);
        if checksum(body) != sum {
            return Err(BadKey::Checksum);
        }
        let secret = &secret[..SECRET];
        Ok(ApiKey { id: id.to_owned(), secret_sha256: Sha256::digest(secret).into() })
    }

    /// Returns whether a text has the form of a key's id.
    pub fn is_id(text: &str) -> bool {
        text.len() == ID && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    }

    /// Returns its public id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the SHA-256 of its secret, as the ledger keeps it.
    pub fn secret_sha256(&self) -> [u8; 32] {
        self.secret_sha256
    }

    /// Returns whether its secret is the one with this SHA-256. How long that takes does not depend on where they
    /// differ.
    pub fn verify(&self, secret_sha256: &[u8; 32]) -> bool {
        self.secret_sha256.ct_eq(secret_sha256).into()
    }
}

/// Returns random characters of the alphabet. A byte from 248 on is left out, so that each character is equally likely.
pub(super) fn random<const N: usize>() -> Result<String, getrandom::Error> {
    let mut text = String::with_capacity(N);
    while text.len() < N {
        let mut bytes = [0; 2 * SECRET];
        getrandom::fill(&mut bytes)?;
        let fair = bytes.iter().filter(|byte| **byte < 248);
        let missing = N - text.len();
        text.extend(fair.take(missing).map(|byte| char::from(ALPHABET[usize::from(*byte % 62)])));
    }
    Ok(text)
}

fn checksum(text: &str) -> String {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut rest = CRC.checksum(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits.map(char::from).iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use secrecy::ExposeSecret;

    use super::*;

    fn made() -> (String, ApiKey) {
        let (text, key) = ApiKey::make().expect("random bytes");
        (text.expose_secret().to_owned(), key)
    }

    #[test]
    fn a_key_that_was_made_is_read_and_is_verified_by_its_hash_alone() {
        let mut seen = HashSet::new();
        for _ in 0..1_000 {
            let (text, key) = made();
            assert_eq!(text.len(), 64);
            let read = ApiKey::parse(&text).expect("a key");
            assert_eq!(read.id(), key.id());
            assert!(ApiKey::is_id(read.id()) && read.verify(&key.secret_sha256()));
            let mut other = key.secret_sha256();
            other[31] ^= 1;
            assert!(!read.verify(&other));
            assert!(!text.contains(&format!("{:x?}", key.secret_sha256())));
            assert!(seen.insert(read.id().to_owned()) && seen.insert(text));
        }
    }

    /// A CRC32 finds each error that lies within 32 bits, so each wrong character and each pair that was swapped.
    #[test]
    fn each_wrong_character_is_refused_without_a_look_up() {
        for _ in 0..20 {
            let (text, _) = made();
            for place in 0..text.len() {
                for byte in (0x20..0x7f_u8).filter(|byte| *byte != text.as_bytes()[place]) {
                    let mut wrong = text.clone().into_bytes();
                    wrong[place] = byte;
                    let wrong = String::from_utf8(wrong).expect("ASCII");
                    assert!(ApiKey::parse(&wrong).is_err(), "{wrong}");
                }
                let mut swapped = text.clone().into_bytes();
                swapped.swap(place, (place + 1) % text.len());
                let swapped = String::from_utf8(swapped).expect("ASCII");
                assert!(swapped == text || ApiKey::parse(&swapped).is_err(), "{swapped}");
            }
        }
    }

    #[test]
    fn what_is_no_key_is_named_without_being_shown() {
        let (text, _) = made();
        let error = |text: &str| ApiKey::parse(text).err().expect("no key");
        assert_eq!(error(""), BadKey::Prefix);
        assert_eq!(error("Bearer x"), BadKey::Prefix);
        for length in PREFIX.len()..text.len() {
            assert_eq!(error(&text[..length]), BadKey::Length { given: length });
        }
        assert_eq!(error(&format!("{text} ")), BadKey::Length { given: 65 });
        // Characters of more than a byte, at every place: no slice cuts one in two.
        for place in 4..text.len() - 1 {
            if text.is_char_boundary(place + 2) {
                let wrong = format!("{}é{}", &text[..place], &text[place + 2..]);
                assert_eq!(error(&wrong), BadKey::Character, "{place}");
            }
        }
        for bad in [BadKey::Prefix, BadKey::Length { given: 3 }, BadKey::Character, BadKey::Checksum] {
            assert!(!bad.to_string().contains(&text[15..]));
        }
    }
}
