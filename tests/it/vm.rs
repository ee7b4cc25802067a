//! The micro-VM (tests/bed/vm) as the suite uses it: a test runs another test of this very program there.

use crate::bed;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/vm")
}

/// A disk that reads zero.
pub fn disk(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Of `packaging/coverage`: what was counted in a machine leaves it behind its output.
pub const PROFILE: &str = "LLVM_PROFILE_FILE";
const COUNTED: (&str, &str) =
    ("LLVM_PROFILE_FILE=/tmp/counted/%8m.profraw", "echo counted:; tar -czC /tmp/counted . | base64;");

/// Programs for an account that may give some commands as root.
const SUDO: [&str; 4] = [
    "/usr/bin/sudo",
    "/usr/libexec/sudo/sudoers.so",
    "/lib/x86_64-linux-gnu/security/pam_permit.so",
    "/usr/bin/true",
];

/// The machine has an account as OpenNebula's packages make it, and the package's sudoers file.
const ACCOUNT: &str = r#"
printf 'root:x:0:0::/:/bin/sh\noneadmin:x:9869:9869::/:/bin/sh\n' >/etc/passwd
printf 'root:x:0:\ndisk:x:6:oneadmin\noneadmin:x:9869:\n' >/etc/group
mkdir -p /etc/pam.d /etc/sudoers.d /run/sudo /var/lib
for kind in auth account session; do echo "$kind required pam_permit.so"; done >/etc/pam.d/sudo
printf 'passwd: files\ngroup: files\nsudoers: files\n' >/etc/nsswitch.conf
echo 'root ALL=(ALL) ALL' >/etc/sudoers; echo '@includedir /etc/sudoers.d' >>/etc/sudoers
printf '%s' "$SUDOERS" >/etc/sudoers.d/onesdm
chmod 440 /etc/sudoers /etc/sudoers.d/*; chmod 4755 /usr/bin/sudo; chmod 1777 /tmp
"#;

/// sanlock's daemon as a host has it, without a watchdog and with a clock ten times as fast. The devices are
/// that account's, too.
const SANLOCK: &str = "
hostname | md5sum | cut -c1-32 >/etc/machine-id
chown root:disk /dev/[uv][bd]*; chmod 660 /dev/[uv][bd]*
lib=/lib/x86_64-linux-gnu; ln -s $lib/libsanlock_client.so.1.* $lib/libsanlock_client.so.1
LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 FAKETIME='+0 x10' FAKETIME_DONT_RESET=1 \
    sanlock daemon -D -w 0 -l 0 -h 0 -U oneadmin -G oneadmin -e $(hostname) >/tmp/sanlock.log 2>&1 &
n=0; until [ -S /run/sanlock/sanlock.sock ]; do n=$((n + 1)); [ $n -lt 200 ] || cat /tmp/sanlock.log; usleep 50000; done
";

/// The same with a watchdog and at real timing, which takes minutes where the other takes seconds.
const WATCHED: &str = "
hostname | md5sum | cut -c1-32 >/etc/machine-id
chown root:disk /dev/vd*; chmod 660 /dev/vd*
lib=/lib/x86_64-linux-gnu; ln -s $lib/libsanlock_client.so.1.* $lib/libsanlock_client.so.1
wdmd -D -G oneadmin >/tmp/wdmd.log 2>&1 &
usleep 2000000
sanlock daemon -D -w 1 -l 0 -h 0 -U oneadmin -G oneadmin -e $(hostname) >/tmp/sanlock.log 2>&1 &
n=0; until [ -S /run/sanlock/sanlock.sock ]; do n=$((n + 1)); [ $n -lt 200 ] || cat /tmp/sanlock.log /tmp/wdmd.log; usleep 50000; done
touch /tmp/watched
";

/// The same on one of several machines, a member of sanlock's, with a watchdog or on user-mode Linux; as root itself
/// if it is long.
pub fn host(name: &str, machine: &str, disks: &[&Path], programs: &[PathBuf], watched: bool) -> Command {
    let programs = [&sanlock_programs(), programs].concat();
    let (more, before): (&[&str], _) =
        if watched { (&["-k", "softdog"], WATCHED) } else { (&["-u"], SANLOCK) };
    // `sudo` takes as long as the command that it is for.
    let who = if crate::kill::full() { "root" } else { "oneadmin" };
    command_of((who, more), name, machine, before, disks, &programs)
}

/// A key by which the hosts of a network know each other and their account's.
pub struct Keys {
    pub private: String,
    pub public: String,
}

impl Keys {
    pub fn new(dir: &Path) -> Keys {
        let at = dir.join("key");
        let mut c = Command::new("ssh-keygen");
        let made = c.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&at).status().unwrap();
        assert!(made.success());
        let read = |p: PathBuf| std::fs::read_to_string(p).unwrap();
        Keys { private: read(at.clone()), public: read(at.with_extension("pub")) }
    }
}

/// A network between two of them, a real ssh server on each, and in its account's place the same place for both:
/// `ONE_LOCATION`. Who is called `h2` has the address 10.9.0.2.
fn network(keys: &Keys) -> String {
    format!(
        "
n=$(hostname | tr -d h); ip link set lo up; ip addr add 10.9.0.$n/24 dev vec0; ip link set vec0 up
mkdir -p {PLACE} /.ssh /run/sshd /usr/local/bin; ln -s {} /usr/local/bin/onesdm
cat >/hostkey <<'EOF'
{}EOF
echo '{}' >/.ssh/authorized_keys; cp /hostkey /.ssh/id_ed25519; chmod 600 /hostkey /.ssh/*
sed 's/^/10.9.0.1,10.9.0.2 /' /.ssh/authorized_keys >/.ssh/known_hosts
echo 'sshd:x:74:74::/run/sshd:/bin/false' >>/etc/passwd
chown -R oneadmin:oneadmin {PLACE} /.ssh
/usr/sbin/sshd -f /dev/null -h /hostkey -E /tmp/sshd.log -o UsePAM=no -o UseDNS=no -o StrictModes=no -o PidFile=none \
    -o AuthorizedKeysFile=/.ssh/authorized_keys -o 'SetEnv=ONE_LOCATION={PLACE} ONESDM_TEST_HISTORY={PLACE}/history' \
    -o 'Subsystem=sftp internal-sftp'
",
        bed::program().display(),
        keys.private,
        keys.public.trim()
    )
}

/// Where the account of a host in a network has everything.
pub const PLACE: &str = "/one";

/// One of two machines, members of sanlock's, with a card in a network that they have by themselves.
pub fn networked(
    name: &str,
    machine: &str,
    (disks, programs): (&[&Path], &[PathBuf]),
    (socket, keys): (i32, &Keys),
) -> Command {
    let socket = socket.to_string();
    let tools = ["/usr/sbin/sshd", "/usr/bin/ssh"].map(PathBuf::from);
    let programs = [&sanlock_programs(), programs, &tools].concat();
    let more = ["-u", "-s", &socket];
    let before = format!("{}{SANLOCK}", network(keys));
    command_of(("oneadmin", &more), name, machine, &before, disks, &programs)
}

fn sanlock_programs() -> Vec<PathBuf> {
    let own = ["/usr/sbin/sanlock", "/lib/x86_64-linux-gnu/libsanlock_client.so.1", "/usr/sbin/wdmd"];
    let clock = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    own.into_iter().chain([clock]).map(PathBuf::from).collect()
}

fn command(name: &str, machine: &str, before: &str, disks: &[&Path], programs: &[PathBuf]) -> Command {
    command_of(("oneadmin", &[]), name, machine, before, disks, programs)
}

/// Whose test it is, and more options of the machine.
fn command_of(
    (who, more): (&str, &[&str]),
    name: &str,
    machine: &str,
    before: &str,
    disks: &[&Path],
    programs: &[PathBuf],
) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(script());
    command.args(["run", "-t", "7200", "-m", "1024", "-n", machine]).args(more).arg("-f").arg(&program);
    for f in SUDO.iter().map(Path::new).chain(programs.iter().map(PathBuf::as_path)) {
        command.arg("-f").arg(f);
    }
    for d in disks {
        command.arg("-d").arg(d);
    }
    let sudoers = include_str!("../../packaging/sudoers");
    // What the test itself arranges; the engine has no such right.
    let own = "oneadmin ALL=(root) NOPASSWD: /usr/sbin/vgcreate, /usr/sbin/vgremove, /usr/sbin/vgck, \
               /usr/sbin/lvs --noheadings *, /usr/sbin/lvchange -K *, /usr/sbin/lvchange -an *, \
               /usr/sbin/lvcreate -q -kn *";
    // What the test there is told: how much, and which random choices.
    let told = ["ONESDM_FULL", "ONESDM_TEST_SEED", "ONESDM_TEST_SCENE", "ONESDM_TEST_PART"]
        .map(|name| std::env::var(name).map_or(String::new(), |v| format!("{name}=\"{v}\"")))
        .join(" ");
    let (counted, take) = if std::env::var_os(PROFILE).is_some() { COUNTED } else { ("", "") };
    let run = format!(
        "{ACCOUNT}{before}su {who} -c '{told} {counted} {} --exact --ignored --nocapture {name}'; status=$?; {take} exit $status",
        program.display()
    );
    command.args(["--", "env", &format!("SUDOERS={sudoers}\n{own}\n"), "sh", "-c", &run]);
    command
}

#[track_caller]
pub fn passes(name: &str, disks: &[&Path]) {
    passes_with(name, disks, &[]);
}

/// The same, with programs that the test starts.
#[track_caller]
pub fn passes_with(name: &str, disks: &[&Path], programs: &[PathBuf]) {
    passes_after("", name, disks, programs);
}

/// The same, after commands of root.
#[track_caller]
pub fn passes_after(before: &str, name: &str, disks: &[&Path], programs: &[PathBuf]) {
    passes_of(command(name, "vm", before, disks, programs), name);
}

/// The same as root itself on user-mode Linux with modules of its kernel, for what is long.
#[track_caller]
pub fn passes_as_root(modules: &[&str], before: &str, name: &str, disks: &[&Path], programs: &[PathBuf]) {
    let more: Vec<&str> = ["-u"].into_iter().chain(modules.iter().flat_map(|m| ["-k", m])).collect();
    passes_of(command_of(("root", &more), name, "vm", before, disks, programs), name);
}

#[track_caller]
fn passes_of(mut command: Command, name: &str) {
    let mut out = command.output().unwrap();
    if let Some(file) = std::env::var_os(PROFILE) {
        let to = Path::new(&file).with_file_name(name);
        std::fs::create_dir_all(&to).unwrap();
        let at = out.stdout.windows(9).rposition(|w| w == b"counted:\n").expect("a machine that counts");
        let mut tar = Command::new("sh");
        tar.args(["-c", "base64 -d | tar -xzC \"$0\""]).arg(to).stdin(std::process::Stdio::piped());
        let mut tar = tar.spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&out.stdout[at + 9..]).unwrap();
        assert!(tar.wait().unwrap().success());
        out.stdout.truncate(at);
    }
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{name}: {said}");
    println!("{said}");
}

#[test]
fn a_machine_runs_a_command_with_its_disk_and_gives_its_output_and_status() {
    let tmp = bed::scratch();
    let d = disk(tmp.path(), "d", 1 << 20);
    let run = |command: &str| {
        let mut c = Command::new(script());
        c.args(["run", "-n", "h7", "-d"]).arg(&d).args(["--", "sh", "-c", command]).output().unwrap()
    };
    let out = run("hostname; dmsetup version >/dev/null || exit 9; echo hello >/dev/vda; exit 7");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(7), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(said.trim(), "h7");
    assert!(std::fs::read(&d).unwrap().starts_with(b"hello\n"), "what was synced is on the disk");
    let out = run("echo c >/proc/sysrq-trigger");
    assert_eq!(out.status.code(), Some(125), "a machine that ends by itself is a failure");
}
