//! The libraries for drivers written in bash, a function a line: what is called, and what comes of it. Every
//! call runs in a bash of its own, with stand-ins for ssh, oned's commands and xpath.rb.

use crate::bed::{self, program, scratch, tool};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const LIBRARIES: [&str; 3] = ["scripts_common.sh", "tm/tm_common.sh", "datastore/libfs.sh"];

struct Tree {
    top: PathBuf,
    _tmp: tempfile::TempDir,
}

fn source(library: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("remotes").join(library)
}

impl Tree {
    fn new() -> Tree {
        let tmp = scratch();
        let top = tmp.path().canonicalize().unwrap();
        for dir in ["remotes/tm/mad", "remotes/tm/other", "remotes/datastore", "bin", "lock", "etc", "ds/0/7"]
        {
            std::fs::create_dir_all(top.join(dir)).unwrap();
        }
        for library in LIBRARIES {
            std::fs::copy(source(library), top.join("remotes").join(library)).unwrap();
        }
        std::os::unix::fs::symlink(program(), top.join("remotes/onesdm")).unwrap();
        let paths =
            ["var", "etc", "run", "state", "log"].map(|k| format!("{k} = \"{}/{k}\"\n", top.display()));
        std::fs::write(top.join("onesdm.toml"), format!("[paths]\n{}", paths.concat())).unwrap();
        let tree = Tree { top, _tmp: tmp };
        tree.put("bin/ssh", "echo \"$1\" >>\"$T/hosts\"\nshift\nexec bash -c \"$*\"");
        tree.put("bin/sudo", "[ \"$1\" = -n ] && shift\n\"$@\"");
        tree.put("bin/onevm", "[ \"$3\" = 7 ] && echo '<VM/>'");
        // A line a path: PATH=VALUE. The document is noted.
        let xpath = "shift\ncat >\"$T/document\"\nfor path; do\n  printf '%s\\0' \"$(sed -n \"s:^${path//[/\\\\[}=::p\" \"$T/answers\")\"\ndone";
        tree.put("remotes/datastore/xpath.rb", xpath);
        tree
    }

    fn put(&self, path: &str, text: &str) {
        std::fs::write(self.top.join(path), format!("#!/bin/bash\n{text}\n")).unwrap();
        bed::chmod(&self.top.join(path), 0o755);
    }

    fn run(&self, script: &str) -> Output {
        let script = format!(
            ". \"$T/remotes/tm/tm_common.sh\"\n. \"$T/remotes/datastore/libfs.sh\"\nPATH=$T/bin:$PATH\ncd \"$T\"\n{script}"
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]).arg(self.top.join("remotes/tm/mad/verb")).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("T", &self.top).env("HOME", self.top.join("home"));
        command.env("SSH", self.top.join("bin/ssh")).env("ONE_LOCK_DIR", self.top.join("lock"));
        command.env("ONESDM_CONFIG", self.top.join("onesdm.toml"));
        command.stdin(Stdio::null()).output().expect("the suite needs bash")
    }

    /// Status, stdout and stderr of a call.
    fn says(&self, script: &str) -> (i32, String, String) {
        let out = self.run(script);
        let text = |b: &[u8]| String::from_utf8_lossy(b).replace(self.top.to_str().unwrap(), "T");
        (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
    }

    #[track_caller]
    fn holds(&self, table: &[(&str, i32, &str, &str)]) {
        let wrong: Vec<String> = table
            .iter()
            .filter_map(|(script, status, out, err)| {
                let said = self.says(script);
                let want = (*status, (*out).to_owned(), (*err).to_owned());
                (said != want).then(|| format!("{script}\n     is {said:?}\n    not {want:?}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn the_libraries_are_clean() {
    let files = LIBRARIES.map(source);
    let mut words: Vec<&std::ffi::OsStr> = vec!["-x".as_ref(), "-P".as_ref()];
    words.push(env!("CARGO_MANIFEST_DIR").as_ref());
    words.extend(files.iter().map(|f| f.as_os_str()));
    tool("shellcheck", &words);
}

#[test]
fn every_documented_function_is_there() {
    let names = "fix_dir_slashes log_date log log_info log_error log_debug log_function error_message exclusive \
        retry_if retry_if_no_error exec_and_log multiline_exec_and_log exec_and_set_error \
        multiline_exec_and_set_error monitor_and_log timeout_exec_and_log retry force_shutdown contains \
        mkfs_command ssh_forward ssh_exec_and_log_no_error ssh_exec_and_log ssh_exec_and_log_stdin \
        ssh_monitor_and_log ssh_make_path enable_local_monitoring disable_local_monitoring xml_esc \
        tgtadm_target_new tgtadm_target_bind_all tgtadm_logicalunit_new tgtadm_target_delete \
        tgtadm_get_tid_for_iqn tgtadm_next_tid tgt_admin_dump_config iscsiadm_discovery iscsiadm_login \
        iscsiadm_logout is_iscsi is_cdrom iqn_get_lv_name iqn_get_vg_name iqn_get_host tgt_setup_lun_install \
        tgt_setup_lun get_source_xml get_disk_information get_nic_information send_to_monitor \
        autonfs_cleanup_command autonfs_mount_command autonfs_tmpsetup_command arg_host arg_path is_disk \
        make_relative disk_type lcm_state is_undeployed migrate_other rebase_backing_files qcow_dir_cmd is_yes \
        set_up_datastore image_format image_vsize image_size_required generate_image_hash generate_image_path \
        set_downloader_args file_size file_type gzip_file_size xz_file_size bzip_file_size fs_size \
        check_restricted remove_off_hosts get_destination_host";
    let script = format!("for f in {names}; do [[ $(type -t \"$f\") == function ]] || echo \"$f\"; done");
    Tree::new().holds(&[(&script, 0, "", "")]);
}

#[test]
fn words_and_paths() {
    Tree::new().holds(&[
        ("fix_dir_slashes //a///b//c/", 0, "/a/b/c\n", ""),
        ("fix_dir_slashes ''; fix_dir_slashes /; fix_dir_slashes a//b", 0, "/\n/\na/b\n", ""),
        ("fix_dir_slashes $'/a b//\\'c\"\\n//ü*/'", 0, "/a b/'c\"\n/ü*\n", ""),
        ("arg_host h:/a; arg_path h:/a//b/; arg_path h:/a//b/ NOFIX", 0, "h\n/a/b\n/a//b/\n", ""),
        ("arg_host /a; arg_path /a/; arg_path ''; arg_path h:/a:b", 0, "/a\n/a\n/\n/a:b\n", ""),
        (
            "is_disk h:/x/disk.0; is_disk /disk.12.snap/3; is_disk /disk.x; is_disk /a/disk0",
            0,
            "1\n1\n0\n0\n",
            "",
        ),
        (
            "make_relative /a/b/c /a/d; make_relative /a/b/c /a/b; make_relative /a /a/b",
            0,
            "../b/c\nc\n../\n",
            "",
        ),
        ("make_relative /x/y /; make_relative /a/bc /a/b; make_relative /a /a", 0, "x/y\n../bc\n.\n", ""),
        (
            "for v in yes YES true TRUE Yes no ''; do is_yes \"$v\" && echo \"$v\"; done",
            1,
            "yes\nYES\ntrue\nTRUE\n",
            "",
        ),
        ("contains a,b,c b ,", 0, "", ""),
        ("contains 'ext4, xfs' xfs ,", 0, "", ""),
        ("contains a,bb,c b ,", 1, "", ""),
        ("contains 'a.b' 'a' .", 0, "", ""),
        ("contains '' '' ,", 1, "", ""),
        ("contains '*' x ,", 1, "", ""),
        ("xml_esc \"a&b'\\\"<c>&amp;\"", 0, "a&amp;b&apos;&quot;&lt;c&gt;&amp;amp;\n", ""),
        ("[[ $(log_date) =~ ^[A-Z][a-z]{2}\\ [A-Z][a-z]{2}\\ [0-9]{2}\\ [0-9:]{8}\\ [0-9]{4}$ ]]", 0, "", ""),
        (
            "log a; log_info 'b  c'; log_error '$d'; log_debug '*'; log_function WARN e",
            0,
            "",
            "INFO: verb: a\nINFO: verb: b  c\nERROR: verb: $d\nDEBUG: verb: *\nWARN: verb: e\n",
        ),
        ("error_message '-n %s ü'", 0, "", "-n %s ü\n"),
        (
            "echo \"$LANG $ONE_LOCAL_VAR $DS_DIR $SED\"",
            0,
            "C /var/lib/one /var/lib/one/datastores sed -r\n",
            "",
        ),
        (
            "ONE_LOCATION=/o; DS_DIR=; . \"$T/remotes/scripts_common.sh\"; echo \"$DS_DIR\"",
            0,
            "/o/var/datastores\n",
            "",
        ),
    ]);
}

#[test]
fn commands_and_how_their_failures_read() {
    let fails = "{ echo out; echo oops >&2; exit 3; }";
    let script = format!("f() {fails}\n");
    let with = |call: &str| format!("{script}{call}\necho on");
    let tree = Tree::new();
    let said = "ERROR: verb: Command \"f\" failed: oops\n";
    tree.holds(&[
        (&with("exec_and_log 'echo a'"), 0, "on\n", ""),
        (&with("exec_and_log f"), 3, "", &format!("{said}Error executing \"f\": oops\n")),
        (&with("exec_and_log f 'it broke'"), 3, "", &format!("{said}it broke\n")),
        ("touch 'a b' c; exec_and_log 'ls c | wc'", 2, "",
         "ERROR: verb: Command \"ls c | wc\" failed: ls: cannot access '|': No such file or directory\nls: cannot access 'wc': No such file or directory\n\
          Error executing \"ls c | wc\": ls: cannot access '|': No such file or directory\nls: cannot access 'wc': No such file or directory\n"),
        ("multiline_exec_and_log $'cd /\\n[ \"$LC_ALL\" = C ] && echo \"ü \\'x\\'\" | grep -q ü'; echo on", 0, "on\n", ""),
        ("multiline_exec_and_log $'echo no >&2\\nexit 9' bad; echo on", 9, "",
         "ERROR: verb: Command \"echo no >&2\nexit 9\" failed: no\nbad\n"),
        ("exec_and_set_error 'echo x >&2; exit 4'; echo \"[$ERROR]\"; exec_and_set_error true; echo \"[$ERROR]\"", 0,
         "[Error executing echo x >&2; exit 4: x]\n[]\n", "ERROR: verb: Command \"echo x >&2; exit 4\" failed: x\n"),
        ("multiline_exec_and_set_error 'false' 'my words'; bash -c 'echo \"$ERROR\"'", 0, "my words\n",
         "ERROR: verb: Command \"false\" failed: \n"),
        ("monitor_and_log 'echo \"a  b\"; echo c >&2' name", 0, "a  b\n", ""),
        ("(monitor_and_log 'echo part; exit 5' name); echo $?", 0, "5\n", "ERROR: verb: Command \"name\" failed: part\n"),
        ("timeout_exec_and_log 20 'echo x'; echo on", 0, "on\n", ""),
        (&with("timeout_exec_and_log 20 f"), 3, "", &format!("{said}Error executing \"f\": oops\n")),
    ]);
    tree.put("bin/slow", "sleep 60\necho end");
    let began = std::time::Instant::now();
    tree.holds(&[(
        "timeout_exec_and_log 0.2 slow; echo on",
        143,
        "",
        "ERROR: verb: Command \"slow\" failed: killed after 0.2 s\nTimeout executing slow\n",
    )]);
    assert!(began.elapsed() < Duration::from_secs(20), "children of what is killed go, too");
    tree.holds(&[
        ("n=0; f() { ((++n == 3)); }; retry 5 f && echo $n", 0, "3\n", ""),
        ("n=0; f() { ((n++)); false; }; retry 1 f; echo $? $n", 0, "1 1\n", ""),
        // The status of the last try, and what it said, as it said it.
        ("f() { echo x >>n; echo 'o  ut'; echo 'active  block job' >&2; return 6; }; retry_if_no_error 'active *block' 3 0 f; echo $?; wc -l <n", 0,
         "o  ut\n6\n3\n", "active  block job\n"),
        ("f() { echo x >>m; echo other >&2; return 6; }; retry_if active 3 0 f; echo on", 6, "", "other\n"),
        ("retry_if active 3 0 printf '%s|' 'a b' '*' $'ü\\n'; echo on", 0, "a b|*|ü\n|\n", ""),
        ("true; force_shutdown d false; echo on", 0, "on\n", ""),
        ("false; force_shutdown d false; echo on", 255, "", "Timed out shutting down d\n"),
        ("FORCE_DESTROY=yes; sleep() { :; }; false; force_shutdown d 'touch destroyed'; ls destroyed", 0, "destroyed\n",
         "ERROR: verb: Timeout shutting down d. Destroying it\n"),
    ]);
}

#[test]
fn a_lock_excludes_and_ends_with_its_command() {
    let tree = Tree::new();
    tree.holds(&[
        ("f() { v=$1; return 5; }; exclusive l 1 f 'a  b'; echo \"$? $v\"", 0, "5 a  b\n", ""),
        ("exclusive l 0 exclusive other 0 echo both; echo $?", 0, "both\n0\n", ""),
        ("f() { flock -n lock/l true; echo $?; }; exclusive l 1 f; flock -n lock/l true; echo $?", 0, "1\n0\n", ""),
        ("(flock 9; touch held; sleep 5) 9>>lock/l & until [ -e held ]; do :; done; exclusive l 0.1 echo no; echo on", 254, "",
         "ERROR: verb: Could not acquire lock T/lock/l within 0.1 s\n"),
        ("exclusive none/l 1 echo no; echo on", 254, "", "ERROR: verb: Could not open lock T/lock/none/l\n"),
        // What stays behind in the background does not keep it.
        ("f() { sleep 2 >/dev/null 2>&1 & }; exclusive l 1 f; flock -n lock/l echo free", 0, "free\n", ""),
        ("exclusive fresh 1 true; stat -c %a lock/fresh", 0, "640\n", ""),
    ]);
}

#[test]
fn commands_of_other_hosts_keep_their_quotes() {
    let tree = Tree::new();
    let odd = "$'ds/0/7/it\\'s \"ü\\nx'";
    tree.holds(&[
        ("ssh_exec_and_log h1 'echo x; echo \"$LC_ALL\" >lc'; cat lc hosts", 0, "C\nh1\n", ""),
        ("ssh_exec_and_log h 'echo bad >&2; exit 7' 'no luck'; echo on", 7, "",
         "ERROR: verb: Command \"echo bad >&2; exit 7\" failed: bad\nno luck\n"),
        ("ssh_exec_and_log_no_error h 'exit 42' no 42; echo $?", 0, "42\n", ""),
        ("ssh_exec_and_log_no_error h 'exit 41' no 42; echo $?", 0, "41\n", "ERROR: verb: Command \"exit 41\" failed: \nno\n"),
        ("echo 'f() { echo \"from  file\" >out; }' >lib; ssh_exec_and_log_stdin h f lib; cat out", 0, "from  file\n", ""),
        ("ssh_exec_and_log_stdin h f nofile msg 2>&1 | tail -1", 0, "Error reading nofile\n", ""),
        ("ssh_monitor_and_log h 'echo \"a  b\"; echo c >&2'", 0, "a  b\n", ""),
        ("SSH_FWD='false'; f() { echo \"$SSH\"; return 3; }; ssh_forward f; echo \"$? $SSH\"", 0, "false\n3 T/bin/ssh\n", ""),
        (&format!("ssh_make_path h {odd}; ssh_make_path h {odd}; [ -d {odd} ]"), 0, "", ""),
        ("ssh_make_path h /proc/none; echo on", 1, "",
         "Error creating directory /proc/none at h: mkdir: cannot create directory '/proc/none': No such file or directory\n"),
        ("enable_local_monitoring h ds/0/7 ssh; cat ds/0/.monitor; disable_local_monitoring h ds/0/7; ls -A ds/0", 0, "ssh\n7\n", ""),
        ("enable_local_monitoring h ds/0/7 ssh; touch -d @1 ds/0/.monitor; enable_local_monitoring h ds/0/7 ssh; stat -c %Y ds/0/.monitor", 0, "1\n", ""),
    ]);
}

#[test]
fn what_prints_commands_prints_commands_that_work() {
    let tree = Tree::new();
    let at = "'it'\\''s a disk'";
    let made =
        |args: &str, then: &str| format!("eval \"$(mkfs_command {at} {args})\" >/dev/null 2>&1 && {then}");
    let create = |how: &str| {
        format!(
            "qemu-img create -q -f qcow2 base 3M; mkdir 'v m'; eval \"$(qcow_dir_cmd $T/base \"$T/v m/disk.0\" {how})\" >/dev/null; cd 'v m'; \
                 readlink disk.0; readlink disk.0.snap/disk.0.snap; image_vsize disk.0; qemu-img info disk.0 | sed -n 's/^backing file: //p'; pwd; rm -r \"$T/v m\""
        )
    };
    tree.holds(&[
        (&made("raw 5 ext4 ''", "stat -c %s it*"), 0, "5242880\n", ""),
        (&made("qcow2 5 ext4 ''", &format!("image_format {at}")), 0, "qcow2\n", ""),
        (&made("raw 8 ext2,ext4 ext2 '-L x'", &format!("blkid -p -o value -s LABEL {at}")), 0, "x\n", ""),
        (&made("swap 5 ext4 ''", &format!("blkid -p -o value -s TYPE -s LABEL {at}")), 0, "swap\nswap\n", ""),
        ("mkfs_command d raw 300 xfs xfs '-m crc=1'", 0, "qemu-img create -f raw d 300M\nmkfs.xfs -f -m crc=1 d\n", ""),
        ("mkfs_command d raw 5 ext4,xfs zfs; echo on", 255, "",
         "ERROR: verb: Unsupported file system type: zfs. Supported types are: ext4,xfs\n"),
        (&create("create"), 0, "disk.0.snap/0\n.\n3145728\nT/base\nT/v m\n", ""),
        (&create("convert"), 0, "disk.0.snap/0\n.\n3145728\nT/v m\n", ""),
        ("mkdir s; cd s; qemu-img create -q -f qcow2 0 1M; qemu-img create -q -f qcow2 -F qcow2 -b $PWD/0 1; ln -s . d.snap; \
          declare -f rebase_backing_files >f; bash -c '. ./f; rebase_backing_files d'; qemu-img info 1 | sed -n 's/^backing file: \\([^ ]*\\).*/\\1/p'", 0,
         "d.snap/0\n", ""),
        ("tgtadm_target_new 1 iqn; tgtadm_target_bind_all 1; tgtadm_logicalunit_new 1 /dev/x; tgtadm_target_delete 1", 0,
         "tgtadm --lld iscsi --op new --mode target --tid 1 --targetname iqn\n\
          tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL\n\
          tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 --backing-store /dev/x\n\
          tgtadm --lld iscsi --op delete --mode target --tid 1\n", ""),
        ("tgtadm() { printf 'Target 2: iqn.a\\n    System information:\\nTarget 11: iqn.b\\n'; }; eval \"$(tgtadm_get_tid_for_iqn iqn.b)\"; eval \"$(tgtadm_next_tid)\"", 0, "11\n12\n", ""),
        ("tgt_admin_dump_config f; tgt_setup_lun i d", 0,
         "tgt-admin --dump | sudo -n tee f >/dev/null 2>&1\ntgt-setup-lun-one -d d -n i 1>&2\n", ""),
        ("iscsiadm_discovery h; iscsiadm_login i h; iscsiadm_logout i", 0,
         "iscsiadm -m discovery -t st -p h\niscsiadm -m node --targetname i -p h --login\niscsiadm -m node --targetname i --logout\n", ""),
        ("i=iqn.2012-02.org.opennebula:san.vg-one.lv-1; iqn_get_lv_name $i; iqn_get_vg_name $i; iqn_get_host $i", 0,
         "lv-1\nvg-one\nsan\n", ""),
        ("NO_ISCSI='h1 h2'; is_iscsi h1 || echo not; is_iscsi h && echo is; IMAGE_TYPE=1; is_cdrom && echo cd", 0, "not\nis\ncd\n", ""),
        ("tgt_setup_lun_install h $T; echo on", 127, "", "tgt-setup-lun-one is not installed in h.\n"),
    ]);
}

#[test]
fn documents_are_read_and_escaped() {
    let tree = Tree::new();
    let vm = "/VMM_DRIVER_ACTION_DATA/VM";
    let disk = format!("{vm}/TEMPLATE/DISK[DISK_ID=2]");
    let nic = format!("{vm}/TEMPLATE/NIC[ATTACH=YES]");
    let answers = format!(
        "{vm}/ID=7\n{disk}/DISK_ID=2\n{disk}/TYPE=RBD\n{disk}/SOURCE=one/img\n{disk}/CLONE=YES\n{disk}/CEPH_HOST=a:1 b\n\
         {disk}/CEPH_USER=u'x\n{disk}/CEPH_SECRET=s\n{disk}/TARGET=vda\n{disk}/READ_IOPS_SEC_MAX=9\n{nic}/MAC=02:00\n\
         {nic}/TARGET=one-7-0\n/VM/LCM_STATE=3\n/VM/TEMPLATE/DISK[DISK_ID=2]/TYPE=CDROM\n\
         /VM/HISTORY_RECORDS/HISTORY[last()]/HOSTNAME=h1\n%m%/VM/TEMPLATE/DISK/TM_MAD=mad other other\n"
    );
    std::fs::write(tree.top.join("answers"), answers).unwrap();
    tree.put("remotes/tm/other/verb", "echo \"$# $6 $(cat)\" >>\"$T/called\"");
    tree.holds(&[
        ("DRV_ACTION=$(base64 <<<'<A>ü</A>'); get_disk_information DISK_ID=2; cat document; echo \"$VMID $DISK_ID $TYPE $SOURCE $VCPU $DISK_TARGET $READ_IOPS_SEC_MAX $DEVICE $TYPE_XML $TYPE_SOURCE $SOURCE_ARGS\"; echo \"$SOURCE_HOST$AUTH\"", 0,
         "<A>ü</A>\n7 2 rbd one/img-7-2 1 vda 9 disk network name protocol='rbd'\n\
          <host name='a' port='1'/><host name='b'/><auth username='u&apos;x'><secret type='ceph' uuid='s'/></auth>\n", ""),
        ("get_nic_information ATTACH=YES <<<'<B/>'; echo \"$VMID $MAC $NIC_TARGET [$IP]\"", 0, "7 02:00 one-7-0 []\n", ""),
        ("get_source_xml 'a:1 b' tcp", 0, "<host name='a' port='1' transport='tcp'/><host name='b' transport='tcp'/>\n", ""),
        ("VMID=7 DST_PATH=/x/disk.2; disk_type; lcm_state; lcm_state 7", 0, "CDROM\n3\n3\n", ""),
        ("is_undeployed 7 h1 || echo same; is_undeployed 7 fe && echo other; is_undeployed 8 fe || echo unknown", 0, "same\nother\nunknown\n", ""),
        ("TEMPLATE_64=$(base64 <<<'<VM/>'); migrate_other h1 h2 /d 7 0; cat called", 0,
         "6 mad PFZNLz4K\n", "INFO: verb: Call other/verb\n"),
        ("rm called; migrate_other h1 h2 /d 7 0 mad; ls called 2>/dev/null || echo none", 0, "none\n", ""),
    ]);
}

#[test]
fn datastore_functions() {
    let tree = Tree::new();
    tree.put("bin/onehost", "[ -e \"$T/dead\" ] && exit 1; printf 'NAME,STAT\\nh2,off\\n'");
    let image = "head -c 3000000 /dev/zero >'a b'; qemu-img create -q -f qcow2 q 7M;";
    let fs = |call: &str| format!("{image} {call}");
    tree.holds(&[
        ("HOME=/h; set_up_datastore /d /r /s; bash -c 'echo \"$BASE_PATH|$RESTRICTED_DIRS|$SAFE_DIRS\"'", 0, "/d|/var/lib/one/ /etc/one/ /h/ /r|/s\n", ""),
        (&fs("image_format 'a b'; image_format q; image_vsize q; image_format none; echo $?"), 0, "raw\nqcow2\n7340032\n1\n", ""),
        (&fs("image_size_required q q; head -c 40 q >h; image_size_required h q"), 0, "65536\n65536\n", ""),
        (&fs("printf 'LUKS\\xba\\xbe' >l; image_size_required l q | grep -c ."), 0, "1\n", ""),
        ("f() { echo 5; }; DATE=f; ID=3 BASE_PATH=/d; generate_image_hash; generate_image_path", 0,
         "fbfe6147004d040332ef66031b53da1e\n/d/fbfe6147004d040332ef66031b53da1e\n", ""),
        ("unset BASE_PATH; ID=3; generate_image_path; echo on", 1, "", "ERROR: verb: Error generating the path in generate_image_path.\n"),
        ("set_downloader_args m s YES 1M \"it's\" '/d x'; set_downloader_args '' '' no '' s", 0,
         "--md5 m --sha1 s --nodecomp --limit 1M 'it'\\''s' '/d x'\n's'\n", ""),
        (&fs("file_size 'a b'; gzip -k 'a b'; xz -k 'a b'; bzip2 -k 'a b'; gzip_file_size 'a b.gz'; xz_file_size 'a b.xz'; bzip_file_size 'a b.bz2'; rm a\\ b.*"), 0,
         "3000000\n3000000\n3000000\n3000000\n", ""),
        (&fs("fs_size 'a b'; fs_size q; gzip -kf 'a b'; fs_size 'a b.gz'; fs_size $T/bin"), 0, "3\n7\n3\n1\n", ""),
        ("fs_size $T/none | sed 's/ (.*//'; fs_size none >/dev/null || echo failed", 0,
         "finding the size of T/none: opening \"T/none\": No such file or directory\nfailed\n", ""),
        ("mkdir safe safer; ln -s /etc/one link; SAFE_DIRS=$T/safe RESTRICTED_DIRS=\"$T/ /etc/one/\"; \
          for p in safe/x safer/x link/y /etc/onex /usr/x 'safe/../x'; do check_restricted \"$p\"; done", 0, "0\n1\n1\n0\n0\n1\n", ""),
        ("RESTRICTED_DIRS=/; check_restricted /usr", 0, "1\n", ""),
        ("remove_off_hosts 'h1 h2 h3'; remove_off_hosts h2; BRIDGE_LIST='h1 h2 h3'; get_destination_host 4; get_destination_host 5", 0, "h1 h3\n\nh1\nh3\n", ""),
        ("BRIDGE_LIST=h2; get_destination_host; echo on", 255, "", "All hosts from 'BRIDGE_LIST' are offline, error or disabled\n"),
        ("BRIDGE_LIST='h1 h2'; [[ h1 == $(get_destination_host) ]]", 0, "", ""),
        ("touch dead; remove_off_hosts 'h1 h2'; echo $?", 0, "h1 h2\n1\n", ""),
    ]);
}

/// The printed code runs with stand-ins, so that no real table or mount is touched.
#[test]
fn nfs_mounts_end_only_for_datastores_known_to_have_ended() {
    let tree = Tree::new();
    let fake = "flock() { shift 3; \"$@\"; }; sudo() { case $1 in sed) cat >>$T/fstab.sed ;; *) echo \"$*\" ;; esac; }; timeout() { shift 3; \"$@\"; }; \
                findmnt() { printf '%s\\n' $DS_DIR/5 $DS_DIR/6 /mnt/7; false; }; DS_DIR=$T/ds; mkdir -p ds/{5,6}; touch ds/{5,6}/.automounted; ";
    let mounted = tree.says(&format!(
        "{fake} onedatastore() {{ false; }}; eval \"$(autonfs_mount_command 9 YES \"n's\" /p rw)\"; ls ds/9/.automounted; cat fstab.sed"
    ));
    assert_eq!(mounted.0, 0, "{mounted:?}");
    assert_eq!(
        mounted.1,
        "mount T/ds/9\nds/9/.automounted\n\\|^[^[:space:]]* T/ds/9 nfs |d\n$a\\\nn's:/p T/ds/9 nfs rw 0 0\n",
        "without a list of datastores nothing is unmounted"
    );
    tree.put("remotes/datastore/xpath.rb", "cat >/dev/null\nprintf '6 9\\0'");
    let cleaned = tree.says(&format!(
        "{fake} onedatastore() {{ echo x; }}; umount() {{ :; }}; \
         rmdir() {{ echo \"rmdir $1\"; }}; eval \"$(autonfs_tmpsetup_command $T/ds/9 yes n /p 'rw,x y')\""
    ));
    assert_eq!(cleaned.1, "umount T/ds/5\nrmdir T/ds/5\nmount -o rw,x y n:/p T/ds/9\n", "{cleaned:?}");
    tree.put("remotes/datastore/xpath.rb", "exit 1");
    let broken =
        tree.says(&format!("{fake} onedatastore() {{ echo x; }}; eval \"$(autonfs_cleanup_command)\""));
    assert_eq!(broken.1, "", "a list that cannot be read is no list: {broken:?}");
    tree.holds(&[("onedatastore() { false; }; autonfs_tmpsetup_command /x no n /p ''", 0, "", "")]);
}

#[test]
fn messages_to_monitord_arrive() {
    let tree = Tree::new();
    tree.holds(&[("send_to_monitor MONITOR_VM 0 -1 x", 0, "", "")]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let conf = format!("NETWORK = [ MONITOR_ADDRESS = \"auto\", PORT = {port}, PUBKEY = \"\" ]\n");
    std::fs::write(tree.top.join("etc/monitord.conf"), conf).unwrap();
    tree.holds(&[("send_to_monitor MONITOR_VM 1 -1 $'VM=[ID=7]\\n'", 0, "", "")]);
    let mut buf = [0; 2048];
    let n = socket.recv(&mut buf).unwrap();
    assert!(String::from_utf8_lossy(&buf[..n]).starts_with("MONITOR_VM FAILURE -1 0 eJ"), "{n}");
}
