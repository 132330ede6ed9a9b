//! What makes the nodes of one database one system on the bus, and keeps all others out.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The size of the key, in bytes.
const KEY_BYTES: usize = 32;
/// The size of the value in the names of channels, in bytes.
const CHANNEL_BYTES: usize = 16;
/// The size of the code that authenticates an envelope, in bytes.
pub(crate) const CODE_BYTES: usize = 32;

/// What the nodes of one database have in common on the bus, and share with nobody else: the key that
/// authenticates their envelopes, and a value in the names of their channels.
///
/// It is kept in the database ([`SharedStore::identity`](crate::store::SharedStore::identity)), so whoever can
/// read that can speak for every node. Neither `Debug` nor a log shows the key.
#[derive(Clone)]
pub struct ClusterIdentity {
    key: [u8; KEY_BYTES],
    channel: String,
    /// The HMAC with nothing but the key in it.
    keyed: Hmac<Sha256>,
}

impl ClusterIdentity {
    /// An identity of a key and a value for the names of channels, both of random bytes.
    #[must_use]
    pub fn new(key: [u8; KEY_BYTES], channel: [u8; CHANNEL_BYTES]) -> Self {
        // A key that is shorter than a block counts as filled up with zeros.
        let mut block = [0; 64];
        block[..KEY_BYTES].copy_from_slice(&key);
        let keyed = Hmac::<Sha256>::new(&block.into());
        Self { key, channel: hex(&channel), keyed }
    }

    /// The value in the names of channels: 32 hexadecimal digits.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// The code of an envelope in the channel of this name.
    pub(crate) fn code(&self, channel: &str, envelope: &[u8]) -> [u8; CODE_BYTES] {
        self.authenticate(channel, envelope).finalize().into_bytes().into()
    }

    /// Whether the code is that of the envelope, in a time that says nothing about where they differ.
    pub(crate) fn verifies(&self, channel: &str, envelope: &[u8], code: &[u8]) -> bool {
        self.authenticate(channel, envelope).verify_slice(code).is_ok()
    }

    fn authenticate(&self, channel: &str, envelope: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        // No name of a channel has a NUL in it, so it ends where the envelope begins.
        mac.update(channel.as_bytes());
        mac.update(&[0]);
        mac.update(envelope);
        mac
    }
}

impl PartialEq for ClusterIdentity {
    fn eq(&self, other: &Self) -> bool {
        (&self.key, &self.channel) == (&other.key, &other.channel)
    }
}

impl Eq for ClusterIdentity {}

impl fmt::Debug for ClusterIdentity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterIdentity").field("channel", &self.channel).finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_not_shown() {
        let identity = ClusterIdentity::new([0xab; 32], [0x0f; 16]);
        let shown = format!("{identity:?} {identity:#?}");
        assert!(!shown.contains("ab") && !shown.contains("171"), "{shown}");
        assert_eq!(identity.channel(), "0f".repeat(16));
    }

    #[test]
    fn a_code_is_of_one_key_one_channel_and_all_bytes() {
        let identity = ClusterIdentity::new([1; 32], [2; 16]);
        let code = identity.code("room:a", b"hello");
        assert!(identity.verifies("room:a", b"hello", &code));
        let other = ClusterIdentity::new([3; 32], [2; 16]);
        assert!(!other.verifies("room:a", b"hello", &code));
        for (channel, envelope) in
            [("room:b", "hello"), ("room:a", "hellp"), ("room:a", "hello "), ("room:", "a\0hello")]
        {
            assert!(!identity.verifies(channel, envelope.as_bytes(), &code), "{channel}");
        }
        assert!(!identity.verifies("room:a", b"hello", &code[1..]));
        assert!(!identity.verifies("room:a", b"hello", b""));
    }

    /// Test case 2 of RFC 4231, with the channel as the first part of its data.
    #[test]
    fn it_is_hmac_sha256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac =
            ClusterIdentity::new(key, [0; 16]).keyed.chain_update("what do ya want for nothing?");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&mac.finalize().into_bytes()), expected);
    }
}
