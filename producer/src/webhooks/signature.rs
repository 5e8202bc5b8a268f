//! Signatures by Standard Webhooks: HMAC-SHA256 over the id, the time and the body.
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use store::WebhookKeys;

/// The prefix of a secret.
const PREFIX: &str = "whsec_";

/// Makes a secret: 256 random bits.
pub fn new_secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{}", BASE64_STANDARD.encode(bytes)))
}

/// Returns the header `webhook-signature`: one signature for each secret that counts.
pub(super) fn signatures(keys: &WebhookKeys, id: &str, timestamp_s: u64, body: &[u8]) -> String {
    let secrets = [Some(&keys.secret), keys.old_secret.as_ref()].into_iter().flatten();
    let signed = secrets.map(|secret| format!("v1,{}", sign(secret, id, timestamp_s, body)));
    signed.collect::<Vec<_>>().join(" ")
}

fn sign(secret: &str, id: &str, timestamp_s: u64, body: &[u8]) -> String {
    let encoded = secret.strip_prefix(PREFIX).unwrap_or(secret);
    // A secret that was edited by hand signs with its text: its receiver refuses that, and shows it.
    let key = BASE64_STANDARD.decode(encoded).unwrap_or_else(|_| secret.as_bytes().to_vec());
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key of any length is taken");
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    BASE64_STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks libraries' own tests.
    #[test]
    fn a_signature_is_that_of_the_standard() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let keys = WebhookKeys { secret: secret.to_owned(), old_secret: None };
        let body = br#"{"test": 2432232314}"#;
        let signed = signatures(&keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other = new_secret().unwrap();
        let keys = WebhookKeys { secret: other, old_secret: Some(secret.to_owned()) };
        let both = signatures(&keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(both.split(' ').nth(1), Some(signed.as_str()), "{both}");
    }
}
