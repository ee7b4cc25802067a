//! Messages to monitord: one datagram each, `TYPE RESULT OBJECT TIME base64(zlib(payload))`. Contract 5.2. With a
//! public key the payload is encrypted first, piece by piece: PKCS #1 v1.5, as monitord's own clients do.

use super::OneError;
use crate::sys::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, write::ZlibEncoder};
use openssl::pkey::Public;
use openssl::rsa::{Padding, Rsa};
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::Path;

/// What IPv4 carries in a datagram, and monitord reads.
const DATAGRAM: usize = 65_507;
/// Texts of at most this size fit in a datagram whatever is in them, if nobody encrypts them.
pub const PAYLOAD: usize = 45 << 10;
/// As much encrypted text does.
const ENCRYPTED: usize = 47 << 10;
/// What the padding takes of each piece.
const PADDING: usize = 11;
const PORT: u16 = 4124;

/// Where monitord listens.
#[derive(Debug)]
pub struct Monitord {
    to: SocketAddr,
    key: Option<Rsa<Public>>,
}

impl Monitord {
    /// From `monitord.conf` in this directory; `None` when there is none.
    pub fn configured(etc: &Path) -> Result<Option<Monitord>, OneError> {
        let path = etc.join("monitord.conf");
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OneError::Open { path, source }),
            Ok(text) => text,
        };
        let bad = |why| OneError::Monitord { path: path.clone(), why };
        let key = value(&text, "PUBKEY").filter(|key| !key.is_empty()).map(|key| public_key(Path::new(key)));
        let key = key.transpose()?;
        let host = value(&text, "MONITOR_ADDRESS").filter(|a| !["", "auto"].contains(a));
        let port = value(&text, "PORT").map_or(Ok(PORT), str::parse);
        let port = port.map_err(|_| bad("its PORT is no port"))?;
        let found = (host.unwrap_or("127.0.0.1"), port).to_socket_addrs().ok();
        let to = found.and_then(|mut all| all.next());
        Ok(Some(Monitord { to: to.ok_or_else(|| bad("its MONITOR_ADDRESS is no address"))?, key }))
    }

    /// Texts of at most this size fit in a datagram whatever is in them.
    pub fn payload(&self) -> usize {
        let encrypted = |key: &Rsa<Public>| ENCRYPTED / piece(key).1 * piece(key).0;
        self.key.as_ref().map_or(PAYLOAD, encrypted).min(PAYLOAD)
    }

    /// Sends one message; nobody says whether it arrives. `object` is -1 for what is about many.
    pub fn send(&self, kind: &str, good: bool, object: i64, payload: &[u8]) -> Result<(), OneError> {
        let failed = |source| OneError::Datagram { to: self.to, source };
        let secret = self.key.as_ref().map(|key| encrypted(key, payload)).transpose().map_err(failed)?;
        let text = message(kind, good, object, secret.as_deref().unwrap_or(payload)).map_err(failed)?;
        if text.len() > DATAGRAM {
            return Err(OneError::TooLarge { doc: "the message to monitord", limit: Bytes(DATAGRAM as u64) });
        }
        let any = if self.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sent = UdpSocket::bind(any).and_then(|s| s.send_to(&text, self.to));
        sent.map(drop).map_err(failed)
    }
}

/// As stock makes it, or as any other tool does.
fn public_key(path: &Path) -> Result<Rsa<Public>, OneError> {
    let text = std::fs::read(path).map_err(|source| OneError::Open { path: path.to_owned(), source })?;
    let key = Rsa::public_key_from_pem_pkcs1(&text).or_else(|_| Rsa::public_key_from_pem(&text)).ok();
    let key = key.filter(|key| (PADDING + 1..PAYLOAD).contains(&usize::try_from(key.size()).unwrap_or(0)));
    let why = "it is no public RSA key in PEM (PUBKEY of monitord.conf)";
    key.ok_or_else(|| OneError::Monitord { path: path.to_owned(), why })
}

/// How much text is in a piece, and how long the piece is then.
fn piece(key: &Rsa<Public>) -> (usize, usize) {
    let size = usize::try_from(key.size()).unwrap_or(PAYLOAD);
    (size - PADDING, size)
}

fn encrypted(key: &Rsa<Public>, text: &[u8]) -> std::io::Result<Vec<u8>> {
    let (text_size, size) = piece(key);
    let (mut out, mut block) = (Vec::new(), vec![0; size]);
    for part in text.chunks(text_size) {
        let n = key.public_encrypt(part, &mut block, Padding::PKCS1)?;
        out.extend_from_slice(&block[..n]);
    }
    Ok(out)
}

fn message(kind: &str, good: bool, object: i64, payload: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    packed.write_all(payload)?;
    let payload = STANDARD.encode(packed.finish()?);
    let result = if good { "SUCCESS" } else { "FAILURE" };
    // As stock drivers do: what is about many objects has no time.
    let now = if object < 0 { 0 } else { jiff::Timestamp::now().as_second() };
    Ok(format!("{kind} {result} {object} {now} {payload}\n").into_bytes())
}

/// The last `NAME = value`, quoted or not, that is no comment.
fn value<'a>(conf: &'a str, name: &str) -> Option<&'a str> {
    let parts =
        conf.lines().filter(|l| !l.trim_start().starts_with('#')).flat_map(|l| l.split([',', '[', ']']));
    let mut values = parts.filter_map(|p| p.split_once('=').filter(|(k, _)| k.trim() == name));
    values.next_back().map(|(_, v)| v.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::time::Duration;

    const CONF: &str = "# PORT = 1\nNETWORK = [\n  ADDRESS = \"0.0.0.0\",\n  MONITOR_ADDRESS = \"auto\",\n  \
                        PORT = 4124, THREADS = 8,\n  PUBKEY = \"\",\n  PRIKEY = \"\"\n]\n";

    fn of(conf: &str) -> Result<Option<Monitord>, OneError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("monitord.conf"), conf).unwrap();
        Monitord::configured(dir.path())
    }

    #[test]
    fn the_address_is_that_of_the_configuration() {
        assert!(Monitord::configured(Path::new("/nowhere")).unwrap().is_none());
        for (conf, want) in [
            (CONF.to_owned(), "127.0.0.1:4124"),
            (String::new(), "127.0.0.1:4124"),
            (CONF.replace("auto", "192.0.2.7").replace("4124", "99"), "192.0.2.7:99"),
            (CONF.replace("auto", "2001:db8::1"), "[2001:db8::1]:4124"),
        ] {
            assert_eq!(of(&conf).unwrap().unwrap().to.to_string(), want, "{conf}");
        }
        for (conf, why) in [
            (CONF.replace("PUBKEY = \"", "PUBKEY = \"/no/key"), "/no/key"),
            (CONF.replace("PUBKEY = \"", "PUBKEY = \"/etc/passwd"), "PUBKEY"),
            (CONF.replace("4124", "70000"), "PORT"),
            (CONF.replace("auto", "no such host."), "MONITOR_ADDRESS"),
        ] {
            let said = of(&conf).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn what_is_sent_is_what_monitord_reads() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let to = Monitord { to: socket.local_addr().unwrap(), key: None };
        let payload: Vec<u8> = (0..PAYLOAD).map(|i| (i * i / 7).to_le_bytes()[0]).collect();
        to.send("MONITOR_VM", true, -1, &payload).unwrap();
        let mut buf = vec![0; 1 << 16];
        let n = socket.recv(&mut buf).unwrap();
        let text = std::str::from_utf8(&buf[..n]).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[..4], ["MONITOR_VM", "SUCCESS", "-1", "0"]);
        let packed = STANDARD.decode(words[4]).unwrap();
        let mut got = Vec::new();
        flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut got).unwrap();
        assert_eq!(got, payload);
        to.send("MONITOR_VM", false, 7, b"").unwrap();
        let n = socket.recv(&mut buf).unwrap();
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        assert!(text.starts_with("MONITOR_VM FAILURE 7 1"), "{text}");
    }

    #[test]
    fn whatever_is_in_a_payload_of_that_size_fits() {
        let mut seed = 1u64;
        let noise = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        });
        let noise: Vec<u8> = noise.take(PAYLOAD).collect();
        assert!(message("MONITOR_VM", true, -1, &noise).unwrap().len() <= DATAGRAM);
    }

    #[test]
    fn what_is_encrypted_is_read_with_the_private_key_and_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pub");
        for bits in [512, 1024, 2048] {
            let pair = Rsa::generate(bits).unwrap();
            for pem in [pair.public_key_to_pem_pkcs1().unwrap(), pair.public_key_to_pem().unwrap()] {
                std::fs::write(&path, pem).unwrap();
                let key = public_key(&path).unwrap();
                let to = Monitord { to: ([127, 0, 0, 1], 9).into(), key: Some(key.clone()) };
                let text: Vec<u8> = (0..to.payload()).map(|i| (i * i / 7).to_le_bytes()[0]).collect();
                let secret = encrypted(&key, &text).unwrap();
                assert!(message("MONITOR_VM", true, -1, &secret).unwrap().len() <= DATAGRAM, "{bits}");
                let mut got = Vec::new();
                let mut block = vec![0; key.size() as usize];
                for part in secret.chunks(key.size() as usize) {
                    let n = pair.private_decrypt(part, &mut block, Padding::PKCS1).unwrap();
                    got.extend_from_slice(&block[..n]);
                }
                assert!(got == text, "{bits}");
            }
        }
    }
}
