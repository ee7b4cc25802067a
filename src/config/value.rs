//! Values as text, and what text means: durations, sizes, words. Every layer speaks text, so a value
//! means the same wherever it is written.

use super::settings::Wipe;
use crate::sys::Bytes;
use std::path::PathBuf;
use std::time::Duration;

/// A value of any layer: a TOML array keeps its items apart, everything else is one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::List(items) => f.write_str(&items.join(", ")),
        }
    }
}

/// A type a setting may have; `None` when the text does not mean one.
pub(super) trait Parse: Sized {
    const WANT: &'static str;
    fn parse(value: &Value) -> Option<Self>;
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text.trim()),
        Value::List(_) => None,
    }
}

impl Parse for String {
    const WANT: &'static str = "a text";
    fn parse(value: &Value) -> Option<Self> {
        text(value).map(str::to_owned)
    }
}

impl Parse for bool {
    const WANT: &'static str = "true or false";
    fn parse(value: &Value) -> Option<Self> {
        match text(value)?.to_ascii_lowercase().as_str() {
            "true" | "yes" => Some(true),
            "false" | "no" => Some(false),
            _ => None,
        }
    }
}

impl Parse for u32 {
    const WANT: &'static str = "a whole number";
    fn parse(value: &Value) -> Option<Self> {
        text(value)?.parse().ok()
    }
}

impl Parse for Duration {
    const WANT: &'static str = "a duration such as 500ms, 30s, 10m, 24h or 7d";
    fn parse(value: &Value) -> Option<Self> {
        let (n, unit) = number_and_unit(text(value)?)?;
        Some(match unit {
            "ms" => Duration::from_millis(n),
            "s" => Duration::from_secs(n),
            "m" => Duration::from_secs(n.checked_mul(60)?),
            "h" => Duration::from_secs(n.checked_mul(3600)?),
            "d" => Duration::from_secs(n.checked_mul(86400)?),
            "" if n == 0 => Duration::ZERO,
            _ => return None,
        })
        // Longer is no deadline, and overflows where it is added to a time.
        .filter(|d| d.as_secs() <= 100 * 366 * 86400)
    }
}

impl Parse for Bytes {
    const WANT: &'static str = "a size such as 512B, 64KiB, 16MiB, 10GiB or 2TiB";
    fn parse(value: &Value) -> Option<Self> {
        let (n, unit) = number_and_unit(text(value)?)?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            "" if n == 0 => 0,
            _ => return None,
        };
        n.checked_mul(1 << shift).map(Bytes)
    }
}

impl Parse for PathBuf {
    const WANT: &'static str = "an absolute path";
    fn parse(value: &Value) -> Option<Self> {
        let path = text(value)?;
        (path.starts_with('/') && !path.contains('\0')).then(|| path.into())
    }
}

/// Names, in an array or separated by commas or blanks.
impl Parse for Vec<String> {
    const WANT: &'static str = "a list of words";
    fn parse(value: &Value) -> Option<Self> {
        Some(match value {
            Value::List(items) => items.clone(),
            Value::Text(text) => {
                let words = text.split(|c: char| c == ',' || c.is_whitespace());
                words.filter(|w| !w.is_empty()).map(str::to_owned).collect()
            }
        })
    }
}

/// Arguments of a command: an array, or one text with a shell's quoting and nothing else of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words(pub Vec<String>);

impl Parse for Words {
    const WANT: &'static str = "arguments with balanced quotes";
    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::List(items) => Some(Words(items.clone())),
            Value::Text(text) => shell_words::split(text).ok().map(Words),
        }
    }
}

impl Parse for Wipe {
    const WANT: &'static str = "no, discard or zero";
    fn parse(value: &Value) -> Option<Self> {
        match text(value)? {
            // As TOML has it without quotes, too.
            "no" | "false" => Some(Wipe::No),
            "discard" => Some(Wipe::Discard),
            "zero" => Some(Wipe::Zero),
            _ => None,
        }
    }
}

/// Empty text is none.
impl<T: Parse> Parse for Option<T> {
    const WANT: &'static str = T::WANT;
    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text.trim().is_empty() => Some(None),
            value => T::parse(value).map(Some),
        }
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse<T: Parse>(s: &str) -> Option<T> {
        T::parse(&Value::Text(s.into()))
    }

    #[test]
    fn durations_and_sizes_need_a_unit() {
        for (s, ms) in [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            (" 10 m ", Some(600_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("0", Some(0)),
            ("30", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("1h30m", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
            ("18446744073709551615s", None),
        ] {
            assert_eq!(parse::<Duration>(s), ms.map(Duration::from_millis), "{s}");
        }
        for (s, n) in [
            ("16MiB", Some(16 << 20)),
            ("512B", Some(512)),
            ("2 TiB", Some(2 << 40)),
            ("0", Some(0)),
            ("16", None),
            ("16MB", None),
            ("16M", None),
            ("-1B", None),
            ("18446744073709551615KiB", None),
        ] {
            assert_eq!(parse::<Bytes>(s), n.map(Bytes), "{s}");
        }
    }

    #[test]
    fn words_and_paths() {
        let words = |s| parse::<Words>(s).map(|w| w.0.join("|"));
        assert_eq!(words("-F -O '^has_journal' \"a b\"").unwrap(), "-F|-O|^has_journal|a b");
        assert_eq!(words("$(id) `id`").unwrap(), "$(id)|`id`");
        assert_eq!(words("'open"), None);
        assert_eq!(parse::<Vec<String>>("ext4, xfs  btrfs,").unwrap(), ["ext4", "xfs", "btrfs"]);
        assert_eq!(parse::<Option<PathBuf>>(" "), Some(None));
        assert_eq!(parse::<Option<PathBuf>>("x"), None);
        assert_eq!(parse::<bool>("Yes"), Some(true));
        assert_eq!(parse::<bool>("1"), None);
        assert_eq!(bool::parse(&Value::List(vec![])), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(s in "\\PC{0,30}|[0-9]{0,25}[A-Za-zµ]{0,4}") {
            let _ = (parse::<Duration>(&s), parse::<Bytes>(&s), parse::<Words>(&s), parse::<Vec<String>>(&s));
        }
    }
}
