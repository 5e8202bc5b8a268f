//! The two forms of an address as a list of parameters: `postgres://user:password@host:5432/database?name=value` and
//! `host=… dbname=…`, as libpq reads them.
//!
//! An error message names parameters, never values, because a misplaced text may be a part of the password.

use percent_encoding::percent_decode_str;

/// Names and values, in the order in which they are given.
pub(crate) type Parameters = Vec<(String, String)>;

pub(crate) const EXPECTED: &str = "expected postgres://user:password@host:5432/database";

/// Reads either form, without the whitespace around it. If a parameter is given twice, the last one wins.
pub(crate) fn read(text: &str) -> Result<Parameters, String> {
    let text = text.trim();
    let url = ["postgres://", "postgresql://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    let all = match url {
        Some(rest) => read_url(rest)?,
        None if text.contains("://") => return Err(format!("it begins with another scheme, {EXPECTED}")),
        None => read_keywords(text)?,
    };
    let is_last = |at: usize| all[at + 1..].iter().all(|(later, _)| *later != all[at].0);
    let last: Parameters = (0..all.len()).filter(|at| is_last(*at)).map(|at| all[at].clone()).collect();
    let hosts = last.iter().find(|(name, _)| name == "host");
    if hosts.is_some_and(|(_, hosts)| hosts.split(',').any(|host| host.trim().is_empty())) {
        return Err("host: one is empty, expected a name, an IP address or a folder for each".to_owned());
    }
    Ok(last)
}

fn read_url(rest: &str) -> Result<Parameters, String> {
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (account, hosts) = authority.rsplit_once('@').map_or((None, authority), |(a, h)| (Some(a), h));
    if account.is_none() && path.contains('@') {
        return Err(format!(
            "there is an @ after the host: in a user or a password / is written %2F, ? is %3F and @ is %40; {EXPECTED}"
        ));
    }
    let mut parameters = Vec::new();
    let mut add = |name: &str, value: &str| -> Result<(), String> {
        parameters.push((name.to_owned(), decoded(value)?));
        Ok(())
    };
    if let Some(account) = account {
        let (user, password) = account.split_once(':').map_or((account, None), |(u, p)| (u, Some(p)));
        add("user", user)?;
        if let Some(password) = password {
            add("password", password)?;
        }
    }
    if !hosts.is_empty() {
        let hosts = hosts.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
        let (hosts, ports): (Vec<_>, Vec<_>) = hosts.into_iter().unzip();
        add("host", &hosts.join(","))?;
        add("port", &ports.join(","))?;
    }
    let (database, query) = path.split_once('?').unwrap_or((path, ""));
    if let Some(database) = database.strip_prefix('/').filter(|database| !database.is_empty()) {
        add("dbname", database)?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            format!("a parameter after the ? has no value, expected name=value; {EXPECTED}")
        })?;
        add(name, value)?;
    }
    Ok(parameters)
}

/// `host`, `host:port` or `[::1]:port`.
fn host_and_port(text: &str) -> Result<(&str, &str), String> {
    const DEFAULT: &str = "5432";
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or("a host begins with [ and has no ]")?;
            match behind.strip_prefix(':') {
                Some(port) => (host, port),
                None if behind.is_empty() => (host, DEFAULT),
                None => return Err("there is text between the ] of a host and its port".to_owned()),
            }
        }
        None if text.matches(':').count() > 1 => {
            return Err("an IPv6 address is written in brackets, such as [::1]:5432".to_owned());
        }
        None => text.split_once(':').unwrap_or((text, DEFAULT)),
    };
    Ok((host, if port.is_empty() { DEFAULT } else { port }))
}

fn decoded(value: &str) -> Result<String, String> {
    let text = percent_decode_str(value).decode_utf8();
    let text = text.map_err(|_| "the bytes of the % escapes in a part are not UTF-8")?;
    Ok(text.into_owned())
}

/// `name = value` or `name = 'va\'lue'`, separated by whitespace.
fn read_keywords(text: &str) -> Result<Parameters, String> {
    let mut parameters = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, behind) = rest.split_once('=').ok_or_else(|| format!("it is no address, {EXPECTED}"))?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!("it is no address, {EXPECTED}"));
        }
        let (value, behind) = keyword_value(behind.trim_start()).ok_or("a ' has no end")?;
        parameters.push((name.to_owned(), value));
        rest = behind.trim_start();
    }
    Ok(parameters)
}

/// Returns a value, and the text after it, or `None` if a quotation has no end.
fn keyword_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut characters = text.char_indices().skip(usize::from(quoted));
    let mut value = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Some((value, &text[at..])),
            other => value.push(other),
        }
    }
    (!quoted).then_some((value, ""))
}

/// Quotes a value for the second form.
pub(crate) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> String {
        let pairs = read(text).unwrap().into_iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn both_forms_are_the_same_list() {
        assert_eq!(
            found(" postgres://me:p%40s%2Fs@h1:1,[::1]:2,h3/d%20b?sslmode=require&options=-c%20a%3Db\n"),
            "user=me password=p@s/s host=h1,::1,h3 port=1,2,5432 dbname=d b sslmode=require options=-c a=b"
        );
        assert_eq!(found("postgresql://%2Fvar%2Frun/d"), "host=/var/run port=5432 dbname=d");
        assert_eq!(
            found(r"host=h  dbname = 'd b' password='it\'s \\' user=a\ b"),
            r"host=h dbname=d b password=it's \ user=a b"
        );
        assert_eq!(found("postgres://a:b@c@h/d"), "user=a password=b@c host=h port=5432 dbname=d");
        assert_eq!(found("postgres:///d?host=/run"), "dbname=d host=/run");
        assert_eq!(found("postgres://a:1/d?host=/run&user=u&user=v"), "port=1 dbname=d host=/run user=v");
    }

    #[test]
    fn a_message_holds_no_part_of_a_password() {
        for wrong in [
            "postgres://me:sec/ret@h/d",
            "postgres://me:sec?ret@h/d",
            "me:secret@h",
            "amqp://me:secret@h/d",
            "host=h password='secret",
            "postgres://h:1:secret/d",
            "postgres://me:%ff%fesecret@h/d",
            "postgres://me:x@h/d?secret",
        ] {
            let problem = read(wrong).expect_err(wrong);
            assert!(!problem.contains("sec") && !problem.contains("ret "), "{wrong}: {problem}");
        }
    }
}
