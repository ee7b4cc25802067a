//! The agent over real ssh: both ways to it, lost connections at each moment, host keys, hosts that are down
//! or silent, and how it gets there.

use crate::bed;
use crate::hosts::{Cloud, eventually};
use onesdm::host::{
    Commit, Handler, HostError, Hosts, Link, Program, Request, Route, Settings, Stage, Transport as _,
};
use onesdm::sys::{Bytes, Cancel, Class, Tools};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

struct Here;

impl Handler for Here {
    fn handle(&self, _: &str, _: Value, _: &dyn Link) -> Result<Value, (Class, String)> {
        Ok(json!("here"))
    }
}

fn settings() -> Settings {
    let [connect, silence, cancel_grace] = [10, 3, 5].map(Duration::from_secs);
    Settings { connect, silence, cancel_grace, ..Settings::default() }
}

/// One request from this thread's host to another; the way it went.
fn call_with<'a>(
    settings: Settings,
    host: &str,
    job: &'a str,
    body: Value,
    commit: Commit<'a>,
    cancel: &Cancel,
) -> Result<(Route, Value), HostError> {
    let tools = Tools::new(BTreeMap::new()).unwrap();
    let hosts = Hosts { tools: &tools, settings, handler: &Here, cancel, forward_agent: false };
    let (route, mut channel) = hosts.open_by(host, Bytes(0))?;
    let request = Request { job, body, commit, source: None };
    channel.call(request, &mut |_| {}, cancel).map(|answer| (route, answer))
}

fn call(host: &str, body: Value) -> Result<(Route, Value), HostError> {
    call_with(settings(), host, "job", body, Commit::Now, &Cancel::default())
}

fn when(
    host: &str,
    job: &str,
    body: Value,
    word: &mut (dyn FnMut() -> bool + Send),
) -> Result<Value, HostError> {
    let got = call_with(settings(), host, job, body, Commit::When(word), &Cancel::default());
    got.map(|(_, answer)| answer)
}

fn is_system(route: &Route) -> bool {
    matches!(route, Route::System { .. })
}

#[test]
fn requests_go_by_the_way_that_suits_the_site() {
    let cloud = Cloud::with_agents(&["h1", "h2"]);
    let config =
        "Host via\n  HostName h1\n  ProxyJump h2\nHost alias\n  HostName 10.78.0.2\n  HostKeyAlias h1\n";
    cloud.write("fe", "/root/.ssh/config", config);
    cloud.inside("fe", || {
        let body = || json!([{"answer": "there"}]);
        let (route, answer) = call("h1", body()).unwrap();
        assert_eq!((route, answer), (Route::Ssh2, json!("there")));
        assert_eq!(call("alias", body()).unwrap().0, Route::Ssh2);
        let (route, answer) = call("via", body()).unwrap();
        assert!(is_system(&route) && route.to_string().contains("h2") && answer == "there", "{route}");
        for us in ["", "localhost", "fe", "10.78.0.1"] {
            let (route, answer) = call(us, body()).unwrap();
            assert!(matches!(route, Route::Local { .. }) && answer == "here", "{us}: {route}");
        }
        // Who is there is said by itself, whatever it is called.
        let tools = Tools::new(BTreeMap::new()).unwrap();
        let cancel = Cancel::default();
        let mut hosts = Hosts {
            tools: &tools,
            settings: settings(),
            handler: &Here,
            cancel: &cancel,
            forward_agent: false,
        };
        let ids = ["h1", "alias", "via", "h2", ""].map(|h| hosts.open(h).unwrap().peer().identity.clone());
        assert_eq!(ids[0].same(&ids[1]), Some(true));
        assert_eq!(ids[0].same(&ids[2]), Some(true));
        assert_eq!(ids[0].same(&ids[3]), Some(false));
        assert_eq!(ids[0].same(&ids[4]), Some(false));
        hosts.forward_agent = true;
        assert!(is_system(&hosts.open_by("h1", Bytes(0)).unwrap().0));
    });
    // A shared connection that is up is used, and not made.
    cloud.write("fe", "/root/.ssh/config", "Host h1\n  ControlPath /tmp/ctl\n  ControlMaster auto\n");
    cloud.inside("fe", || assert_eq!(call("h1", json!([])).unwrap().0, Route::Ssh2));
    cloud.on("fe", &["ssh", "-MNf", "h1"]);
    cloud.inside("fe", || assert!(is_system(&call("h1", json!([])).unwrap().0)));
}

#[test]
fn one_connection_and_one_child_per_host() {
    let cloud = Cloud::with_agents(&["h1"]);
    let program = bed::program();
    let words = ["strace", "-f", "-qq", "-o", "/tmp/trace", "-e", "trace=execve,connect,socket"];
    let said =
        cloud.on("fe", &[&words[..], &[program.to_str().unwrap(), "host", "probe", "h1", "--json"]].concat());
    assert!(said.contains("ssh in this process"), "{said}");
    let trace = cloud.read("fe", "/tmp/trace");
    let count = |what: &str| trace.lines().filter(|l| l.contains(what) && !l.contains("resumed")).count();
    assert_eq!(count("execve("), 2, "{trace}");
    assert_eq!(count("/usr/bin/ssh\", [\"/usr/bin/ssh\", \"-G\", \"--\", \"h1\"]"), 1, "{trace}");
    // Looking at our own addresses takes a datagram socket that sends nothing.
    let streams = trace.lines().filter(|l| l.contains("socket(AF_INET") && l.contains("SOCK_STREAM"));
    assert_eq!(streams.count(), 1, "{trace}");
    let open = trace.lines().filter(|l| l.contains("socket(") && !l.contains("CLOEXEC"));
    assert_eq!(open.count(), 0, "{trace}");
}

#[test]
fn a_lost_network_commits_nothing_and_stops_nothing() {
    let cloud = Cloud::up(&[], &["h1"]);
    cloud.place_agent("h1", "--silence 2 --orphan-grace 1");
    let cut = || drop(cloud.ok(&["cut", "h1"]));
    let word = |file: &str| cloud.read("h1", file);

    // Before it is ready: it goes on, waits its grace, and undoes.
    cloud.inside("fe", || {
        let body = json!([{"note": "/tmp/a"}, {"sleep": 1000}, {"note": "/tmp/a"}, {"ready": "/tmp/a.word"}]);
        std::thread::scope(|s| {
            s.spawn(|| {
                eventually("it begins", SOON, || !word("/tmp/a").is_empty());
                cut();
            });
            let e = when("h1", "a", body, &mut || panic!("not ready")).unwrap_err();
            assert!(matches!(e, HostError::Silent { stage: Stage::Asked, .. }) && !e.may_have_run(), "{e}");
        });
    });
    eventually("the host undoes", SOON, || word("/tmp/a.word") == "false\n");
    assert_eq!(word("/tmp/a"), "a\na\n");
    cloud.ok(&["heal", "h1"]);

    // Between ready and commit.
    cloud.inside("fe", || {
        let mut yes = || {
            cut();
            true
        };
        let e = when("h1", "b", json!([{"ready": "/tmp/b.word"}]), &mut yes).unwrap_err();
        assert!(e.may_have_run(), "{e}");
    });
    eventually("the host undoes", SOON, || word("/tmp/b.word") == "false\n");
    cloud.ok(&["heal", "h1"]);

    // After commit: done, and a caller who asks again by the same id is told so.
    cloud.inside("fe", || {
        let body = || json!([{"ready": "/tmp/c.word"}, {"once": "/tmp/c.done"}, {"sleep": 500}, {"answer": "first"}]);
        std::thread::scope(|s| {
            s.spawn(|| {
                eventually("it is committed", SOON, || word("/tmp/c.done") == "c\n");
                cut();
            });
            let e = when("h1", "c", body(), &mut || true).unwrap_err();
            assert!(e.may_have_run(), "{e}");
        });
        cloud.ok(&["heal", "h1"]);
        assert_eq!(when("h1", "c", body(), &mut || true).unwrap(), "again");
    });
    assert_eq!(word("/tmp/c.word"), "true\ntrue\n");

    // The host itself dies.
    cloud.inside("fe", || {
        std::thread::scope(|s| {
            s.spawn(|| {
                eventually("it begins", SOON, || !word("/tmp/d").is_empty());
                cloud.ok(&["crash", "h1"]);
            });
            let body = json!([{"note": "/tmp/d"}, {"sleep": 60_000}]);
            let e = when("h1", "d", body, &mut || true).unwrap_err();
            assert!(
                matches!(e, HostError::Silent { .. } | HostError::Lost { .. }) && !e.may_have_run(),
                "{e}"
            );
        });
    });
}

#[test]
fn a_front_end_that_dies_commits_nothing() {
    let cloud = Cloud::up(&[], &["h1"]);
    cloud.place_agent("h1", "--silence 2 --orphan-grace 1");
    cloud.inside("fe", || {
        std::thread::scope(|s| {
            s.spawn(|| {
                eventually("it begins", SOON, || !cloud.read("h1", "/tmp/a").is_empty());
                // The session's ssh on the host goes, as when the front-end's process ends.
                cloud.on("h1", &["bash", "-c", "for p in $(pgrep -f '^sshd: root'); do kill -9 $p; done"]);
            });
            let body =
                json!([{"note": "/tmp/a"}, {"sleep": 1000}, {"note": "/tmp/a"}, {"ready": "/tmp/a.word"}]);
            let e = when("h1", "a", body, &mut || panic!("not ready")).unwrap_err();
            assert!(matches!(e, HostError::Lost { stage: Stage::Asked, .. }), "{e}");
        });
    });
    eventually("the host undoes", SOON, || cloud.read("h1", "/tmp/a.word") == "false\n");
    assert_eq!(cloud.read("h1", "/tmp/a"), "a\na\n", "it went on");
    eventually("the agent goes", SOON, || {
        !cloud.hosts(&["exec", "h1", "pgrep", "-x", "onesdm"]).status.success()
    });
}

#[test]
fn cancel_and_sigterm_reach_the_host() {
    let cloud = Cloud::with_agents(&["h1", "h2"]);
    cloud.write("fe", "/root/.ssh/config", "Host via\n  HostName h1\n  ProxyJump h2\n");
    for (host, by_signal) in [("h1", false), ("h1", true), ("via", false)] {
        let file = format!("/tmp/{host}-{by_signal}");
        let cancel = Cancel::default();
        let begin = Instant::now();
        let e = cloud.inside("fe", || {
            std::thread::scope(|s| {
                s.spawn(|| {
                    eventually("it begins", SOON, || !cloud.read("h1", &file).is_empty());
                    if by_signal {
                        cloud.on("h1", &["bash", "-c", "kill -TERM $(pgrep -x onesdm)"]);
                    } else {
                        cancel.request();
                    }
                });
                let body = json!([{"note": file}, {"sleep": 60_000}, {"ready": "/tmp/word"}]);
                let word = Commit::When(&mut || panic!("never ready"));
                call_with(settings(), host, "j", body, word, &cancel).unwrap_err()
            })
        });
        assert!(e.class() == Class::Cancelled && !e.may_have_run(), "{e}");
        assert!(begin.elapsed() < SOON);
        eventually("the agent goes", SOON, || {
            !cloud.hosts(&["exec", "h1", "pgrep", "-x", "onesdm"]).status.success()
        });
    }
}

#[test]
fn host_keys_are_what_the_site_says() {
    let cloud = Cloud::with_agents(&["h1", "h2"]);
    let known = "/root/.ssh/known_hosts";
    let all = cloud.read("fe", known);
    let of = |host: &str| all.lines().find(|l| l.starts_with(&format!("{host},"))).unwrap().to_owned();
    let (h1, h2) = (of("h1"), of("h2"));
    let key = |line: &str| line.split_once(' ').unwrap().1.to_owned();
    let strict = |word: &str| {
        cloud.write(
            "fe",
            "/root/.ssh/config",
            &format!("Host *\n  StrictHostKeyChecking {word}\n  HashKnownHosts yes\n"),
        );
    };
    let go = |records: &str| {
        cloud.write("fe", known, records);
        cloud.inside("fe", || call("h1", json!([])).map(|_| ()))
    };
    for word in ["yes", "ask"] {
        strict(word);
        let e = go(&h2).unwrap_err();
        assert!(matches!(e, HostError::UnknownKey { .. }) && e.class() == Class::Refused, "{word}: {e}");
        assert!(e.to_string().contains("SHA256:") && e.to_string().contains("ssh-keyscan h1"), "{e}");
        assert_eq!(cloud.read("fe", known), h2, "nothing recorded");
        go(&h1).unwrap();
    }
    for word in ["accept-new", "no"] {
        strict(word);
        go("").unwrap();
        let recorded = cloud.read("fe", known);
        assert!(recorded.starts_with("|1|") && recorded.contains(&key(&h1)), "{word}: {recorded}");
        go(&recorded).unwrap();
        assert_eq!(cloud.read("fe", known), recorded, "once");
        // The system's ssh reads what we wrote.
        cloud.on("fe", &["ssh", "-o", "StrictHostKeyChecking=yes", "h1", "true"]);
    }
    for word in ["yes", "accept-new", "no"] {
        strict(word);
        let e = go(&format!("h1 {}\n", key(&h2))).unwrap_err();
        assert!(
            matches!(e, HostError::ChangedKey { .. })
                && e.to_string().contains("known_hosts line 1")
                && e.class() == Class::Refused,
            "{word}: {e}"
        );
        let e = go(&format!("{h1}\n@revoked * {}\n", key(&h1))).unwrap_err();
        assert!(matches!(e, HostError::RevokedKey { .. }), "{word}: {e}");
    }
    // By the system's ssh, too: `no` would let it pass.
    cloud.write("fe", "/root/.ssh/config", "Host *\n  StrictHostKeyChecking no\nHost h1\n  ProxyJump h2\n");
    let e = go(&format!("{h2}\nh1 {}\n", key(&h2))).unwrap_err();
    assert!(e.class() != Class::Internal && e.to_string().contains("refused"), "{e}");
}

#[test]
fn logins_by_key_agent_and_by_file() {
    let cloud = Cloud::with_agents(&["h1"]);
    cloud
        .on("fe", &["bash", "-c", "ssh-agent -a /tmp/agent >/dev/null; SSH_AUTH_SOCK=/tmp/agent ssh-add -q"]);
    cloud.on("fe", &["bash", "-c", "mv /root/.ssh/id_ed25519 /tmp/away"]);
    cloud.inside("fe", || {
        let e = call("h1", json!([])).unwrap_err();
        assert!(matches!(e, HostError::Login { .. }) && e.class() == Class::Refused, "{e}");
        let settings = Settings { auth_sock: Some("/tmp/agent".into()), ..settings() };
        let go = || call_with(settings.clone(), "h1", "j", json!([]), Commit::Now, &Cancel::default());
        assert_eq!(go().unwrap().0, Route::Ssh2);
        std::fs::write("/root/.ssh/config", "Host h1\n  IdentitiesOnly yes\n").unwrap();
        assert!(go().is_err(), "the agent has a key that the site does not name");
        std::fs::write("/root/.ssh/config", "Host h1\n  IdentityAgent /tmp/agent\n").unwrap();
        assert_eq!(call("h1", json!([])).unwrap().0, Route::Ssh2);
        std::fs::write("/root/.ssh/config", "Host h1\n  IdentityAgent none\n  IdentityFile /tmp/a%%way\n")
            .unwrap();
        assert!(go().is_err());
        std::fs::write("/root/.ssh/config", "Host h1\n  IdentityFile /tmp/away\n").unwrap();
        assert_eq!(call("h1", json!([])).unwrap().0, Route::Ssh2);
    });
}

#[test]
fn hosts_that_are_down_or_silent_cost_a_deadline() {
    let cloud = Cloud::with_agents(&["h1"]);
    let timed = |host: &str| {
        let begin = Instant::now();
        let settings = Settings { connect: Duration::from_secs(3), ..settings() };
        let go = || call_with(settings, host, "j", json!([]), Commit::Now, &Cancel::default());
        let e = cloud.inside("fe", || go().unwrap_err());
        assert!(begin.elapsed() < Duration::from_secs(9), "{host}: {:?}", begin.elapsed());
        assert!(!e.may_have_run(), "{e}");
        e
    };
    assert_eq!(timed("nowhere").class(), Class::Remote);
    // Somebody accepts and says nothing, before ssh and after.
    let listener = cloud.inside("fe", || std::net::TcpListener::bind("10.78.0.1:2222").unwrap());
    cloud.write("fe", "/root/.ssh/config", "Host mute\n  HostName 10.78.0.1\n  Port 2222\n");
    let e = timed("mute");
    assert!(matches!(e, HostError::NoAnswer { .. }) && e.class() == Class::Timeout, "{e}");
    drop(listener);
    assert_eq!(timed("mute").class(), Class::Remote);
    cloud.place_script("h1", "#!/bin/sh\nexec sleep 1000\n");
    let e = timed("h1");
    assert!(matches!(e, HostError::Silent { stage: Stage::Connect, .. }), "{e}");
    cloud.place_script("h1", "#!/bin/sh\necho Welcome to h1\n");
    let e = timed("h1");
    assert!(e.to_string().contains("Welcome to h1"), "{e}");
    cloud.ok(&["cut", "h1"]);
    let e = timed("h1");
    assert!(matches!(e, HostError::NoAnswer { .. } | HostError::Connect { .. }), "{e}");
    cloud.ok(&["crash", "h1"]);
    let e = timed("h1");
    assert!(matches!(e, HostError::NoAnswer { .. } | HostError::Connect { .. }), "{e}");
}

/// A program that stands for ours and is quickly sent: it says hello as ours does, by being ours.
fn small_program(dir: &Path) -> Program {
    let path = dir.join("small");
    std::fs::write(&path, format!("#!/bin/sh\nexec {} \"$@\"\n", bed::program().display())).unwrap();
    Program { path }
}

#[test]
fn an_agent_that_is_missing_is_put_there_once() {
    let cloud = Cloud::up(&[], &["h1"]);
    let tmp = bed::scratch();
    let private = || {
        let found = cloud.on("h1", &["find", "/root/.local", "-type", "f", "-printf", "%m %P\n"]);
        found.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let with = |program: Program| Settings { program: Some(program), ..settings() };
    let go = |settings: &Settings| {
        call_with(settings.clone(), "h1", "j", json!([{"answer": 1}]), Commit::Now, &Cancel::default())
    };
    let e = cloud.inside("fe", || go(&settings()).unwrap_err());
    assert!(matches!(e, HostError::NoAgent { .. }), "{e}");
    // Twenty at once.
    let small = with(small_program(tmp.path()));
    cloud.inside("fe", || {
        let begin = Instant::now();
        std::thread::scope(|s| {
            let all: Vec<_> = (0..20).map(|_| s.spawn(|| go(&small).map(|(_, v)| v))).collect();
            for one in all {
                assert_eq!(one.join().unwrap().unwrap(), 1);
            }
        });
        println!("20 first contacts at once in {} ms", begin.elapsed().as_millis());
    });
    let placed = private();
    assert!(placed.len() == 1 && placed[0].starts_with("700 lib/onesdm/"), "{placed:?}");
    assert_eq!(cloud.on("h1", &["stat", "-c", "%a", "/root/.local/lib/onesdm"]), "700");

    // What is there is run only when it is ours to the byte.
    let path = format!("/root/.local/{}", placed[0].split_once(' ').unwrap().1);
    let good = cloud.read("h1", &path);
    for bad in ["#!/bin/sh\ntouch /tmp/ran\n", &good.replace("exec", "kill"), ""] {
        cloud.write("h1", &path, bad);
        cloud.inside("fe", || go(&small).unwrap());
        assert_eq!(cloud.read("h1", &path), good);
        assert!(!cloud.hosts(&["exec", "h1", "test", "-e", "/tmp/ran"]).status.success());
    }
    // Nor from a directory that others may write to, or that is a link elsewhere.
    cloud.on("h1", &["chmod", "777", "/root/.local/lib/onesdm"]);
    let e = cloud.inside("fe", || go(&small).unwrap_err());
    assert!(e.to_string().contains("only its owner"), "{e}");
    cloud.on(
        "h1",
        &["bash", "-c", "cd /root/.local/lib; chmod 700 onesdm; mv onesdm /tmp/x; ln -s /tmp/x onesdm"],
    );
    let e = cloud.inside("fe", || go(&small).unwrap_err());
    assert!(e.to_string().contains("only its owner"), "{e}");
    cloud.on("h1", &["rm", "/root/.local/lib/onesdm"]);

    // Ours, in full, and over the system's ssh.
    let begin = Instant::now();
    cloud.write("fe", "/root/.ssh/config", "Host h1\n  ProxyCommand ssh -W h1:22 -F none h1\n");
    let hints = tmp.path().join("hints");
    let own = Settings { hints: Some(hints), ..with(Program { path: bed::program() }) };
    let own = Settings { silence: SOON, ..own };
    assert!(is_system(&cloud.inside("fe", || go(&own).unwrap()).0));
    println!("the program sent in {} ms", begin.elapsed().as_millis());
    let begin = Instant::now();
    cloud.inside("fe", || go(&own).unwrap());
    println!("and found again in {} ms", begin.elapsed().as_millis());
    assert_eq!(private().len(), 1, "{:?}", private());
    // A host that lost it is seen to.
    cloud.on("h1", &["rm", "-r", "/root/.local/lib/onesdm"]);
    cloud.inside("fe", || go(&own).unwrap());
}

#[test]
fn an_agent_of_another_protocol_is_named() {
    let cloud = Cloud::up(&[], &["h1"]);
    let hello = r#"{"hello":{"protocol":99,"version":"9.9.9"}}"#;
    let text = format!("#!/bin/bash\nprintf '\\0\\0\\0\\{:o}J%s' '{hello}'\ncat >/dev/null\n", hello.len());
    cloud.place_script("h1", &text);
    let e = cloud.inside("fe", || call("h1", json!([])).unwrap_err());
    assert!(matches!(e, HostError::Protocol { theirs: 99, .. }) && e.class() == Class::Unsupported, "{e}");
    assert!(e.to_string().contains("9.9.9"), "{e}");
    // Ours beside it helps.
    let tmp = bed::scratch();
    let settings = Settings { program: Some(small_program(tmp.path())), ..settings() };
    cloud.inside("fe", || {
        call_with(settings, "h1", "j", json!([]), Commit::Now, &Cancel::default()).unwrap();
    });
}

#[test]
fn twenty_at_once() {
    let cloud = Cloud::with_agents(&["h1"]);
    cloud.inside("fe", || {
        let begin = Instant::now();
        std::thread::scope(|s| {
            let all: Vec<_> = (0..20)
                .map(|n| s.spawn(move || call("h1", json!([{"sleep": 100}, {"answer": n}])).unwrap()))
                .collect();
            for (n, one) in all.into_iter().enumerate() {
                assert_eq!(one.join().unwrap().1, json!(n));
            }
        });
        println!("20 requests of 100 ms at once in {} ms", begin.elapsed().as_millis());
    });
}

#[test]
fn an_empty_request_costs_less_than_an_empty_ssh() {
    let cloud = Cloud::with_agents(&["h1"]);
    let median = |mut all: Vec<Duration>| {
        all.sort();
        all[all.len() / 2]
    };
    let (ours, theirs) = cloud.inside("fe", || {
        let hints = Some("/tmp/hints".into());
        let ours = || {
            let settings = Settings { hints: hints.clone(), ..settings() };
            call_with(settings, "h1", "j", json!([]), Commit::Now, &Cancel::default()).unwrap();
        };
        let theirs = || assert!(Command::new("ssh").args(["h1", "true"]).status().unwrap().success());
        ours();
        let time = |f: &dyn Fn()| {
            let begin = Instant::now();
            f();
            begin.elapsed()
        };
        let pairs: Vec<_> = (0..9).map(|_| (time(&ours), time(&theirs))).collect();
        let (a, b): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        (median(a), median(b))
    });
    println!("empty request: {} ms; ssh h1 true: {} ms", ours.as_millis(), theirs.as_millis());
    assert!(ours < theirs, "{ours:?} {theirs:?}");
}

/// Without ssh: what the agent makes of the process it is given.
#[test]
fn the_agent_cuts_itself_loose() {
    let leak = ["-c", "exec 9</etc/passwd; exec \"$@\"", "leak"];
    let mut command = Command::new("/bin/sh");
    command.args(leak).arg(bed::program()).arg("agent");
    let mut agent =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let proc = Path::new("/proc").join(agent.id().to_string());
    let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
    eventually("it is up", SOON, || {
        let tasks = bed::names(&proc.join("task"));
        tasks.iter().any(|t| read(&format!("task/{t}/comm")) == "reader\n")
    });
    assert!(!bed::names(&proc.join("fd")).iter().any(|fd| {
        std::fs::read_link(proc.join("fd").join(fd)).is_ok_and(|p| p == Path::new("/etc/passwd"))
    }));
    let stat = read("stat");
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, agent.id().to_string(), "a session of its own: {stat}");
    assert_eq!(std::fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    let pid = rustix::process::Pid::from_child(&agent);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(agent.try_wait().unwrap().is_none(), "a hangup is not for it");
    // Not the protocol: one line, one class.
    agent.stdin.take().unwrap().write_all(b"help\n").unwrap();
    let out = agent.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(6));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.lines().count() == 1 && said.contains("in place of the protocol"), "{said}");
}
