//! XML-RPC to oned: one request, one answer, both bounded in size and time. The session goes into the
//! request and nowhere else.

use super::xml::{self, Visit, Want};
use super::{MAX_DUMP, OneError};
use crate::data::shown;
use quick_xml::escape::escape;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider};

/// Documents come escaped inside the answer, which makes them longer.
const MAX_ANSWER: u64 = 2 * MAX_DUMP;
const DOC: &str = "the answer";

/// How to speak to oned.
#[derive(Clone, Debug)]
pub struct RpcOptions {
    /// For one call as a whole: connecting, asking, the last byte of the answer.
    pub deadline: Duration,
    /// PEM file with the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Do not verify certificates.
    pub insecure: bool,
}

/// `user:password` or `user:token`. Never shown.
#[derive(Clone)]
pub(super) struct Session(String);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    const LIMIT: u64 = 64 << 10;

    /// From a file with one line.
    pub(super) fn read(path: &Path) -> Result<Session, OneError> {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|f| f.take(Self::LIMIT + 1).read_to_string(&mut text))
            .map_err(|source| OneError::Session { path: path.to_owned(), source })?;
        let text = text.trim();
        let why = match text {
            _ if text.len() as u64 >= Self::LIMIT => "it is too long",
            t if t.chars().any(char::is_control) => "it is more than one line",
            t if !t.contains(':') => "expected user:password",
            _ => return Ok(Session(text.to_owned())),
        };
        Err(OneError::BadSession { path: path.to_owned(), why })
    }

    /// `text` without what is secret, for answers that repeat it.
    fn hide(&self, text: &str) -> String {
        let password = self.0.split_once(':').map_or("", |(_, p)| p);
        let text = text.replace(&self.0, "...");
        // So short a one would cut ordinary words, and is no secret.
        if password.len() < 4 { text } else { text.replace(password, "...") }
    }
}

/// What a call is given beside the session.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg<'a> {
    Number(i64),
    Text(&'a str),
}

/// A connection to one oned.
#[derive(Debug)]
pub(super) struct Rpc {
    agent: ureq::Agent,
    endpoint: String,
    session: Session,
    deadline: Duration,
}

impl Rpc {
    pub(super) fn new(endpoint: String, session: Session, options: &RpcOptions) -> Result<Rpc, OneError> {
        let bad = |why| OneError::Endpoint { endpoint: shown(&endpoint), why };
        let uri: ureq::http::Uri = endpoint.parse().map_err(|_| bad("is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(bad("is not an http or https URL"));
        }
        let roots = match &options.ca_file {
            None => RootCerts::PlatformVerifier,
            Some(path) => authorities(path)?,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(roots)
            .disable_verification(options.insecure)
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            // The session is for this server: no proxy of the environment, no redirect gets it.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("onesdm/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(options.deadline))
            .build();
        Ok(Rpc { agent: config.new_agent(), endpoint, session, deadline: options.deadline })
    }

    /// Calls `method` with the session and `args`, and gives the text oned answers with.
    pub(super) fn call(&self, method: &'static str, args: &[Arg<'_>]) -> Result<String, OneError> {
        let response = self
            .agent
            .post(&self.endpoint)
            .header("Content-Type", "text/xml; charset=utf-8")
            .send(self.request(method, args))
            .map_err(|e| self.failed(method, e))?;
        let status = response.status();
        if status != 200 {
            return Err(self.no_answer(method, &format!("HTTP status {}", status.as_u16())));
        }
        let mut bytes = Vec::new();
        let body = response.into_body().into_reader().take(MAX_ANSWER + 1);
        { body }.read_to_end(&mut bytes).map_err(|e| self.failed(method, e.into()))?;
        let answer = xml::decode(DOC, &bytes, MAX_ANSWER)
            .and_then(|text| Answer::read(&text))
            .map_err(|e| self.no_answer(method, &e.to_string()))?;
        match answer {
            Answer::Done(text) => Ok(text),
            Answer::Refused { message, code } => Err(OneError::OnedRefused {
                endpoint: shown(&self.endpoint),
                method,
                message: xml::one_line(&self.session.hide(&message)),
                code,
            }),
        }
    }

    /// An answer that makes no sense, in words that tell no secret.
    pub(super) fn no_answer(&self, method: &'static str, why: &str) -> OneError {
        OneError::OnedAnswer { endpoint: shown(&self.endpoint), method, why: self.session.hide(why) }
    }

    fn request(&self, method: &str, args: &[Arg<'_>]) -> String {
        let session = escape(self.session.0.as_str());
        let mut params = format!("<param><value><string>{session}</string></value></param>");
        for arg in args {
            params.push_str(&match arg {
                Arg::Number(n) => format!("<param><value><i4>{n}</i4></value></param>"),
                Arg::Text(t) => format!("<param><value><string>{}</string></value></param>", escape(*t)),
            });
        }
        format!(
            "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"
        )
    }

    fn failed(&self, method: &'static str, e: ureq::Error) -> OneError {
        let endpoint = shown(&self.endpoint);
        let why = match e {
            ureq::Error::Timeout(_) => {
                return OneError::OnedSilent { endpoint, method, limit: self.deadline };
            }
            // These repeat the URL, secrets and all.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => "not a valid URL".to_owned(),
            ureq::Error::Io(e) => e.to_string(),
            e => e.to_string(),
        };
        OneError::OnedUnreachable { endpoint, method, why: xml::one_line(&why) }
    }
}

fn authorities(path: &Path) -> Result<RootCerts, OneError> {
    let bad =
        |why: &dyn std::fmt::Display| OneError::Authorities { path: path.to_owned(), why: why.to_string() };
    let pem = std::fs::read(path).map_err(|e| bad(&e))?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(c) = item.map_err(|_| bad(&"not a PEM file"))? {
            found.push(c);
        }
    }
    if found.is_empty() {
        return Err(bad(&"no certificate in it"));
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// What oned says: an array of success, text (or error message), and code; or a fault of the protocol.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done(String),
    Refused { message: String, code: i64 },
}

const ITEM: &str = "params/param/value/array/data/value";
const MEMBER: &str = "fault/value/struct/member";
const MEMBER_VALUE: &str = "fault/value/struct/member/value";

impl Answer {
    fn read(text: &str) -> Result<Answer, OneError> {
        let mut items = Items::default();
        xml::scan(DOC, "methodResponse", "", text, &mut items)?;
        let wrong = |want| OneError::Value {
            doc: DOC,
            path: "methodResponse".into(),
            value: xml::one_line(&items.shape()),
            want,
        };
        if items.fault {
            let field = |name: &str| items.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.trim());
            let code = field("faultCode").and_then(|c| c.parse().ok()).unwrap_or(0);
            let message = field("faultString").unwrap_or("fault without a text").to_owned();
            return Ok(Answer::Refused { message, code });
        }
        let item = |i: usize, kinds: &[&str]| {
            items.list.get(i).filter(|(kind, _)| kinds.contains(&kind.as_str())).map(|(_, v)| v)
        };
        let done = item(0, &["boolean"]).map(|b| b.trim());
        match (done, item(1, &["string"])) {
            (Some("1"), Some(text)) => Ok(Answer::Done(text.clone())),
            (Some("0"), Some(message)) => {
                let code = item(2, &["i4", "int"]).and_then(|c| c.trim().parse().ok()).unwrap_or(0);
                Ok(Answer::Refused { message: message.clone(), code })
            }
            _ => Err(wrong("a boolean and a string")),
        }
    }
}

/// For the fuzzer: whether oned's answer is one of success.
#[cfg(feature = "failpoints")]
pub fn read_answer(text: &str) -> Result<bool, OneError> {
    Answer::read(text).map(|a| matches!(a, Answer::Done(_)))
}

/// The typed values of an answer.
#[derive(Default)]
struct Items {
    fault: bool,
    /// Type and text.
    list: Vec<(String, String)>,
    /// Of a fault, by name.
    fields: Vec<(String, String)>,
    name: String,
}

impl Items {
    fn shape(&self) -> String {
        self.list.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>().join(" ")
    }
}

impl Visit for Items {
    fn open(&mut self, parent: &str, name: &str) -> Result<Want, OneError> {
        // Sixteen are more than any answer has.
        let full = self.list.len() + self.fields.len() >= 16;
        if (parent == ITEM || parent == MEMBER_VALUE || (parent == MEMBER && name == "name")) && !full {
            return Ok(Want::Value);
        }
        let path = xml::join(parent, name);
        self.fault |= path == "fault";
        let way = |whole: &str| {
            whole.strip_prefix(path.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        Ok(if !full && (way(ITEM) || way(MEMBER_VALUE)) { Want::Inside } else { Want::Nothing })
    }

    fn value(&mut self, path: &str, text: String) -> Result<(), OneError> {
        let (parent, kind) = path.rsplit_once('/').unwrap_or_default();
        match parent {
            ITEM => self.list.push((kind.to_owned(), text)),
            MEMBER => self.name = text,
            _ => self.fields.push((std::mem::take(&mut self.name), text)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;
    use proptest::prelude::*;

    fn response(values: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\r\n<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n{values}\
             </data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n"
        )
    }

    fn rpc(session: &str) -> Rpc {
        let options = RpcOptions { deadline: Duration::from_secs(1), ca_file: None, insecure: false };
        Rpc::new("http://u:pw@h:2633/RPC2".into(), Session(session.into()), &options).unwrap()
    }

    #[test]
    fn answers_and_refusals() {
        let ok = "<value><boolean>1</boolean></value><value><string>&lt;VM&gt;&amp;#228;]]&gt;</string></value>\
                  <value><i4>0</i4></value>";
        assert_eq!(Answer::read(&response(ok)).unwrap(), Answer::Done("<VM>&#228;]]>".into()));
        let no = "<value><boolean>0</boolean></value><value><string>[one.vm.info] Error</string></value>\
                  <value><int> 1024 </int></value><value><i4>-1</i4></value>";
        let want = Answer::Refused { message: "[one.vm.info] Error".into(), code: 1024 };
        assert_eq!(Answer::read(&response(no)).unwrap(), want);
        let fault = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-506</int></value>\
                     </member><member><name>faultString</name><value><string>no method</string></value></member>\
                     </struct></value></fault></methodResponse>";
        assert_eq!(Answer::read(fault).unwrap(), Answer::Refused { message: "no method".into(), code: -506 });
    }

    #[test]
    fn what_is_no_answer() {
        let bad = [
            response(""),
            response("<value><i4>1</i4></value><value><string>x</string></value>"),
            response("<value><boolean>1</boolean></value><value><i4>7</i4></value>"),
            response("<value><boolean>1</boolean></value><value>untyped</value>"),
            response("<value><boolean>2</boolean></value><value><string>x</string></value>"),
            response("<value><boolean>1</boolean></value><value><string><VM/></string></value>"),
            response("<value><string>x</string></value><value><boolean>1</boolean></value>"),
            response("<value><boolean>&x;</boolean></value>"),
            response(&"<value><i4>1</i4></value>".repeat(100_000)),
            "<methodResponse/>".into(),
            "<html><body>Bad gateway</body></html>".into(),
            "<!DOCTYPE x [<!ENTITY a \"b\">]><methodResponse/>".into(),
            response("<value><boolean>1</boolean></value>").replace("</methodResponse>", ""),
            "<methodResponse><params>".to_owned() + &"<param>".repeat(1000),
        ];
        for text in bad {
            let error = Answer::read(&text).expect_err(&text[..text.len().min(300)]);
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn requests_escape_what_they_are_given() {
        let request = rpc("one:<&\">'").request("one.vm.info", &[Arg::Number(7), Arg::Text("<&>")]);
        assert!(request.contains("<string>one:&lt;&amp;&quot;&gt;&apos;</string>"), "{request}");
        assert!(
            request.contains("<i4>7</i4></value></param><param><value><string>&lt;&amp;&gt;</string>"),
            "{request}"
        );
        assert_eq!(format!("{:?}", Session("one:secret".into())), "Session");
    }

    #[test]
    fn messages_tell_no_secret() {
        let rpc = rpc("one:secret");
        let error = rpc.no_answer("one.vm.info", "one:secret and secret").to_string();
        assert!(!error.contains("secret") && !error.contains("pw"), "{error}");
        assert!(!format!("{:?}", rpc.session).contains("secret"));
    }

    #[test]
    fn endpoints_are_web_addresses() {
        let options = RpcOptions { deadline: Duration::from_secs(1), ca_file: None, insecure: false };
        for bad in ["", "localhost", "h:2633", "ftp://h/", "http://", "unix:/x", "http://h /", "/RPC2"] {
            let error = Rpc::new(bad.into(), Session("a:b".into()), &options).expect_err(bad);
            assert_eq!(error.class(), Class::Usage, "{error}");
        }
        let none = RpcOptions { ca_file: Some("/nowhere".into()), ..options };
        assert!(Rpc::new("https://h/".into(), Session("a:b".into()), &none).is_err());
    }

    #[test]
    fn sessions_are_one_line_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one_auth");
        for (text, ok) in [
            ("one:secret\n", true),
            ("one:se:cret", true),
            ("", false),
            ("secret", false),
            ("a:b\nc:d\n", false),
        ] {
            std::fs::write(&path, text).unwrap();
            let got = Session::read(&path);
            assert_eq!(got.is_ok(), ok, "{text:?}");
            if let Err(e) = got {
                assert!(!e.to_string().contains("secret") && !format!("{e:?}").contains("secret"), "{e}");
            }
        }
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        assert!(matches!(Session::read(&path), Err(OneError::BadSession { .. })));
        assert_eq!(Session::read(&dir.path().join("none")).unwrap_err().class(), Class::NotFound);
    }

    proptest! {
        #[test]
        fn no_answer_panics(inner in "(<|>|/|&|;|value|array|data|string|boolean|fault|struct|member|name|1|<value><string>|</string></value>){0,40}") {
            let _ = Answer::read(&response(&inner));
            let _ = Answer::read(&format!("<methodResponse>{inner}</methodResponse>"));
        }
    }
}
