//! The little of URLs that fetching needs: what may be shown, and where a redirect leads.

use super::DataError;

/// A URL for people and logs: without user, password, query (signatures, tokens) and fragment.
pub fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.rsplit_once('@').map_or(url, |(_, host)| host).to_owned();
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A raw slash in a password ends the authority early: what looks like a port is its beginning.
    let port = if host.starts_with('[') { "" } else { host.split_once(':').map_or("", |(_, port)| port) };
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return format!("{scheme}://...");
    }
    format!("{scheme}://{host}{path}")
}

/// The scheme in lower case and what follows `://`, for http and https with a host; all else is refused.
fn parts(url: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = ["http", "https"].into_iter().find(|s| s.eq_ignore_ascii_case(scheme))?;
    (!rest.is_empty() && !rest.starts_with(['/', '?', '#'])).then_some((scheme, rest))
}

/// Refuses what is not http or https.
pub(super) fn check(url: &str) -> Result<(), DataError> {
    match parts(url) {
        Some(_) => Ok(()),
        None => Err(DataError::BadUrl { url: shown(url), why: "not an http or https URL" }),
    }
}

/// Where `location`, an answer from `base`, leads. Only to http and https, never from https to http.
pub(super) fn redirect(base: &str, location: &str) -> Result<String, DataError> {
    let refuse = |why| DataError::BadRedirect { url: shown(base), to: shown(location), why };
    let (scheme, rest) = parts(base).ok_or_else(|| refuse("not an http or https URL"))?;
    let location = location.trim().split('#').next().unwrap_or_default();
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let origin = format!("{scheme}://{}", &rest[..authority_end]);
    let path = rest[authority_end..].split(['?', '#']).next().unwrap_or_default();
    let has_scheme = location.find([':', '/', '?']).is_some_and(|i| location[i..].starts_with(':'));
    let next = match location {
        "" => return Err(refuse("it leads nowhere")),
        _ if has_scheme => location.to_owned(),
        l if l.starts_with("//") => format!("{scheme}:{l}"),
        l if l.starts_with('/') => format!("{origin}{l}"),
        l if l.starts_with('?') => format!("{origin}{path}{l}"),
        l => format!("{origin}{}/{l}", path.rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    match parts(&next) {
        None => Err(refuse("only http and https are followed")),
        Some(("http", _)) if scheme == "https" => Err(refuse("from https to http")),
        Some(_) => Ok(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (url, want) in [
            ("https://u:secret@h:8080/a/b.img?sig=secret#secret", "https://h:8080/a/b.img"),
            ("http://secret@h", "http://h"),
            ("http://u:sec@ret@h/x", "http://h/x"),
            ("http://u:sec/ret@h/x", "http://..."),
            ("http://[::1]:80/x?secret", "http://[::1]:80/x"),
            ("u:secret@h/x", "h/x"),
            ("/path/only", "/path/only"),
        ] {
            assert_eq!(shown(url), want);
        }
    }

    #[test]
    fn redirects_lead_where_they_should_or_nowhere() {
        let base = "https://u:p@h:1/a/b?q=1";
        for (location, want) in [
            ("https://other/x?y", "https://other/x?y"),
            ("HTTPS://other/x", "HTTPS://other/x"),
            ("//other/x", "https://other/x"),
            ("/x/y", "https://u:p@h:1/x/y"),
            ("x", "https://u:p@h:1/a/x"),
            ("x:y/z", ""),
            ("?z", "https://u:p@h:1/a/b?z"),
            ("./x?u=http://z#frag", "https://u:p@h:1/a/./x?u=http://z"),
            ("http://other/x", ""),
            ("file:///etc/passwd", ""),
            ("FILE:///etc/passwd", ""),
            ("ftp://h/x", ""),
            ("file:/etc/passwd", ""),
            ("https:///x", ""),
            ("", ""),
            ("#x", ""),
        ] {
            assert_eq!(redirect(base, location).unwrap_or_default(), want, "{location}");
        }
        assert_eq!(redirect("http://h", "x").unwrap(), "http://h/x");
        assert_eq!(redirect("http://h?q", "https://h/").unwrap(), "https://h/");
        for url in ["file:///x", "ssh://h/x", "http://", "http:///x", "x", ""] {
            assert!(check(url).is_err(), "{url}");
        }
    }
}
