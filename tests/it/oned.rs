//! What oned makes of a driver's exit status, stdout and stderr: the contract's section 1.5, written
//! down once and applied to every call the suite makes. A failure is asserted as the user would see it.

/// A log line as oned files it. `object` is -1 when the line names none.
#[derive(Debug, PartialEq, Eq)]
pub struct Log {
    pub level: &'static str,
    pub object: i64,
    pub text: String,
}

/// The message that reaches oned.
#[derive(Debug, PartialEq, Eq)]
pub struct Heard {
    pub success: bool,
    pub info: String,
    pub logs: Vec<Log>,
}

impl Heard {
    /// The text a user reads on the image or VM; `None` when oned suppresses it.
    pub fn shown(&self) -> Option<&str> {
        (!self.info.starts_with('-')).then_some(self.info.as_str())
    }
}

/// `^(ERROR|INFO|WARN|DEBUG):\s+(\d+)?\s*(.*)$`
pub fn log_line(line: &str) -> Option<Log> {
    let level = ["ERROR", "INFO", "WARN", "DEBUG"]
        .into_iter()
        .find(|l| line.strip_prefix(l).is_some_and(|r| r.starts_with(':')))?;
    let rest = &line[level.len() + 1..];
    let text = rest.trim_start();
    if text.len() == rest.len() {
        return None; // at least one blank after the colon
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let object = text[..digits].parse().unwrap_or(-1);
    Some(Log { level, object, text: text[digits..].trim_start().to_owned() })
}

/// `status` is `None` when a signal ended the driver.
pub fn hear(status: Option<i32>, stdout: &[u8], stderr: &[u8]) -> Heard {
    let success = status == Some(0);
    let err = String::from_utf8_lossy(stderr);
    let (mut logs, mut glued) = (Vec::new(), String::new());
    for line in err.lines() {
        match log_line(line) {
            Some(log) => logs.push(log),
            None => glued.push_str(line.trim()),
        }
    }
    let info = if success { String::from_utf8_lossy(stdout).trim().to_owned() } else { glued };
    Heard { success, info: if info.is_empty() { "-".to_owned() } else { info }, logs }
}

/// What our own failures promise beyond the contract: exactly one line that is no log line, readable as
/// it stands after gluing, and log lines of the form `LEVEL: verb: text`.
pub fn failure_line(verb: &str, stderr: &[u8]) -> Result<String, String> {
    let err = std::str::from_utf8(stderr).map_err(|e| format!("stderr is not UTF-8: {e}"))?;
    let lines: Vec<_> = err.lines().filter(|l| log_line(l).is_none()).collect();
    let [line] = lines[..] else {
        return Err(format!("{} failure lines instead of one: {err:?}", lines.len()));
    };
    well_formed_logs(verb, err)?;
    if line.starts_with('-') || line.trim() != line || line.len() < 8 || line.chars().any(char::is_control) {
        return Err(format!("not a line for people: {line:?}"));
    }
    if line.len() > 1000 {
        return Err(format!("a failure line of {} bytes: {line:.200}…", line.len()));
    }
    Ok(line.to_owned())
}

/// A call that succeeded says nothing on stderr but log lines of its own verb.
pub fn quiet_success(verb: &str, stderr: &[u8]) -> Result<(), String> {
    let err = std::str::from_utf8(stderr).map_err(|e| format!("stderr is not UTF-8: {e}"))?;
    if let Some(line) = err.lines().find(|l| log_line(l).is_none()) {
        return Err(format!("exit 0, but a line on stderr that is no log line: {line:?}"));
    }
    well_formed_logs(verb, err)
}

fn well_formed_logs(verb: &str, err: &str) -> Result<(), String> {
    for log in err.lines().filter_map(log_line) {
        if log.object != -1 || !log.text.starts_with(&format!("{verb}: ")) {
            return Err(format!("log line not of the form 'LEVEL: {verb}: text': {log:?}"));
        }
    }
    Ok(())
}

#[test]
fn results_are_read_as_oned_reads_them() {
    let heard = |st, out: &str, err: &str| hear(st, out.as_bytes(), err.as_bytes());
    assert_eq!(heard(Some(0), "/ds/1 raw\n", "").info, "/ds/1 raw");
    assert_eq!(heard(Some(0), "", "noise\n").info, "-");
    // Lines are trimmed and glued, so two lines become one unreadable word.
    assert_eq!(heard(Some(1), "out", "  cannot copy\nno space \n").info, "cannot copyno space");
    assert_eq!(heard(None, "", "").info, "-");
    assert_eq!(heard(Some(1), "", "ERROR: cp: lost for the user\n").shown(), None);
    assert_eq!(heard(Some(1), "", "- hidden\n").shown(), None);
    assert_eq!(heard(Some(1), "", "WARNING: cp: not a level\n").shown(), Some("WARNING: cp: not a level"));
    assert_eq!(heard(Some(1), "", "ERROR:no blank\n").shown(), Some("ERROR:no blank"));
}

#[test]
fn log_lines_are_addressed_as_oned_addresses_them() {
    for (line, object, text) in [
        ("INFO: cp: copying", -1, "cp: copying"),
        ("INFO: 12 copying", 12, "copying"),
        ("WARN:  7up is a drink", 7, "up is a drink"),
        ("DEBUG: ", -1, ""),
    ] {
        let log = log_line(line).unwrap_or_else(|| panic!("{line:?} is a log line"));
        assert_eq!((log.object, log.text.as_str()), (object, text), "{line:?}");
    }
    for line in ["WARNING: x", " INFO: x", "INFO:x", "info: x", "FATAL: x"] {
        assert_eq!(log_line(line), None, "{line:?}");
    }
}

#[test]
fn failure_lines_that_users_could_not_read_are_refused() {
    assert_eq!(
        failure_line("cp", b"INFO: cp: start\ncannot read /x: gone\n").as_deref(),
        Ok("cannot read /x: gone")
    );
    for bad in [
        &b""[..],
        b"INFO: cp: only a log line\n",
        b"one line\nand another\n",
        b"- hidden by the core\n",
        b"INFO: mkfs: another verb's name\ncannot read /x\n",
        b"INFO: 12 addressed to an object\ncannot read /x\n",
        b"a bell \x07 in a line\n",
        b"not utf-8 \xff in a line\n",
        b"why\n",
    ] {
        assert!(failure_line("cp", bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
    }
}
