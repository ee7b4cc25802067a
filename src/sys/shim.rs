//! A launcher of two lines, for trees that are copied to other hosts: a link would be copied as the whole
//! program. It is here because nothing above this room may name a shell.

use std::path::Path;

/// The file that becomes `program --as verb`, keeping its process: locks may belong to it. `None` when the
/// path cannot be written in a script.
pub fn text(program: &Path, verb: &str) -> Option<String> {
    let program = program.to_str().filter(|p| !p.contains(['\n', '\0']))?;
    let (program, verb) = (shell_words::quote(program), shell_words::quote(verb));
    Some(format!("#!/bin/sh\nexec {program} --as {verb} -- \"$@\"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        for (path, line) in [
            ("/usr/bin/onesdm", "exec /usr/bin/onesdm --as tm/x/ln -- \"$@\""),
            ("/opt/a b/$(x)", "exec '/opt/a b/$(x)' --as tm/x/ln -- \"$@\""),
            ("/it's", "exec '/it'\\''s' --as tm/x/ln -- \"$@\""),
        ] {
            let text = text(Path::new(path), "tm/x/ln").unwrap();
            assert_eq!(text.lines().collect::<Vec<_>>(), ["#!/bin/sh", line]);
        }
        assert_eq!(text(Path::new("/a\nb"), "x"), None);
    }
}
