//! A small oned: answers the calls drivers make, over real HTTP and XML-RPC on the loopback, with the
//! documents it was given, and checks the session. It can misbehave. Tests of verbs put in what oned
//! would answer at that moment and give the verb `env`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const SESSION: &str = "oneadmin:s3cret & <word>";

/// What is done with a call.
#[derive(Clone, Debug, Default)]
pub enum Manner {
    /// As oned does.
    #[default]
    Answers,
    /// Takes the call and says nothing.
    Silent,
    /// Says its answer, a byte now and then.
    Drips,
    /// Says without end.
    Endless,
    /// Closes the connection before or in the middle of its answer.
    Closes,
    Cuts,
    /// A fault of XML-RPC.
    Fault,
    /// A refusal with oned's code.
    Refuses(i64, String),
    /// This HTTP status and this body.
    Says(u16, String),
}

#[derive(Default)]
struct State {
    /// By method and id; lists have id -1.
    documents: BTreeMap<(&'static str, i64), String>,
    manner: Manner,
    /// Method and first argument of every call that came.
    calls: Vec<(String, Option<i64>)>,
    /// What templates were changed by: method, id, text.
    updates: Vec<(String, i64, String)>,
}

pub struct OnedServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OnedServer {
    pub fn start() -> OnedServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut workers = Vec::new();
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (state, stop) = (Arc::clone(&shared), Arc::clone(&stopped));
                // A client that goes away is what some tests are about.
                workers.push(std::thread::spawn(move || drop(serve(&stream, &state, &stop))));
            }
            for worker in workers {
                worker.join().unwrap();
            }
        });
        OnedServer { address, state, stop, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}/RPC2", self.address)
    }

    /// Variables for a verb that is to ask this oned; writes the credentials into `dir`.
    pub fn env(&self, dir: &Path) -> [(&'static str, String); 2] {
        let auth: PathBuf = dir.join("one_auth");
        std::fs::write(&auth, format!("{SESSION}\n")).unwrap();
        [("ONE_XMLRPC", self.endpoint()), ("ONE_AUTH", auth.display().to_string())]
    }

    /// What `one.vm.info` and the like answer from now on; `id` is -1 for lists.
    pub fn put(&self, method: &'static str, id: i64, document: &str) {
        self.state.lock().unwrap().documents.insert((method, id), document.to_owned());
    }

    pub fn put_vm(&self, id: i64, document: &str) {
        self.put("one.vm.info", id, document);
    }

    /// Also in the list of datastores.
    pub fn put_datastore(&self, id: i64, document: &str) {
        self.put("one.datastore.info", id, document);
        let mut state = self.state.lock().unwrap();
        let all: String = state
            .documents
            .iter()
            .filter(|((method, _), _)| *method == "one.datastore.info")
            .map(|(_, document)| document.as_str())
            .collect();
        let pool = format!("<DATASTORE_POOL>{all}</DATASTORE_POOL>");
        state.documents.insert(("one.datastorepool.info", -1), pool);
    }

    pub fn behave(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    pub fn updates(&self) -> Vec<(String, i64, String)> {
        self.state.lock().unwrap().updates.clone()
    }

    /// The calls since the last time this was asked.
    pub fn calls(&self) -> Vec<(String, Option<i64>)> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }
}

impl Drop for OnedServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: &TcpStream, state: &Mutex<State>, stop: &AtomicBool) -> std::io::Result<()> {
    let mut input = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let at = head.len();
        if input.read_line(&mut head)? == 0 {
            return Ok(());
        }
        let line = head[at..].to_ascii_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    let inner = |open: &str, close: &str| Some(body.split_once(open)?.1.split_once(close)?.0.to_owned());
    let method = inner("<methodName>", "</methodName>").unwrap_or_default();
    let session = unescape(&inner("<string>", "</string>").unwrap_or_default());
    let id = inner("<i4>", "</i4>").and_then(|n| n.parse().ok());
    let manner = {
        let mut state = state.lock().unwrap();
        state.calls.push((method.clone(), id));
        if let (true, Some(id)) = (method.ends_with(".update"), id) {
            let text = body.rsplit_once("<string>").and_then(|(_, t)| Some(t.split_once("</string>")?.0));
            state.updates.push((method.clone(), id, unescape(text.unwrap_or_default())));
        }
        state.manner.clone()
    };
    let answer = || {
        let state = state.lock().unwrap();
        if session != SESSION {
            let text = format!("[{method}] User couldn't be authenticated, aborting call.");
            return refusal(0x100, &text);
        }
        let key = |(m, i): &&(&'static str, i64)| *m == method && *i == id.unwrap_or(-1);
        match state.documents.keys().find(key) {
            Some(key) => answered(&state.documents[key]),
            None => refusal(0x400, &format!("[{method}] Error getting object [{}].", id.unwrap_or(-1))),
        }
    };
    let hold = || {
        while !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let mut say = |status: u16, body: &str, promise: usize| {
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: {promise}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())
    };
    match manner {
        Manner::Answers => {
            let body = answer();
            say(200, &body, body.len())
        }
        Manner::Silent => hold(),
        Manner::Drips => {
            let body = answer();
            say(200, "", body.len())?;
            for byte in body.bytes() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                stream.write_all(&[byte])?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Manner::Endless => {
            say(200, "<methodResponse><params>", 1 << 40)?;
            let block = " ".repeat(1 << 20);
            while !stop.load(Ordering::SeqCst) {
                stream.write_all(block.as_bytes())?;
            }
            Ok(())
        }
        Manner::Closes => Ok(()),
        Manner::Cuts => {
            let body = answer();
            say(200, &body[..body.len() / 2], body.len())
        }
        Manner::Fault => {
            let body = "<?xml version=\"1.0\"?><methodResponse><fault><value><struct><member><name>faultCode</name>\
                        <value><int>-506</int></value></member><member><name>faultString</name><value><string>Method \
                        not defined</string></value></member></struct></value></fault></methodResponse>";
            say(200, body, body.len())
        }
        Manner::Refuses(code, text) => {
            let body = refusal(code, &text);
            say(200, &body, body.len())
        }
        Manner::Says(status, body) => say(status, &body, body.len()),
    }
}

fn answered(document: &str) -> String {
    array(&format!(
        "<value><boolean>1</boolean></value>\r\n<value><string>{}</string></value>\r\n<value><i4>0</i4></value>\r\n",
        escape(document)
    ))
}

fn refusal(code: i64, text: &str) -> String {
    array(&format!(
        "<value><boolean>0</boolean></value><value><string>{}</string></value><value><i4>{code}</i4></value>\
         <value><i4>-1</i4></value>",
        escape(text)
    ))
}

fn array(values: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n\
         {values}</data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\r', "&#x0d;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}
