//! The input of a call, on its way to a server.
//!
//! The library for MCP keeps arguments as `serde_json::Value`, whose numbers are 64-bit integers or doubles:
//! 12345678901234567890123 would become 1.2345678901234568e22. A server over pipes gets the text that the model
//! wrote, because we write its lines ([`line()`]). Over HTTP the library writes the request, and an input that
//! it would round is refused ([`rounded`]).

use std::collections::BTreeMap;

use rmcp::RoleClient;
use rmcp::model::{ClientRequest, JsonRpcMessage};
use rmcp::service::TxJsonRpcMessage;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// The only field of arguments that stand for a text.
const VERBATIM: &str = "harness/verbatim";

/// Makes arguments that stand for this input, which is a JSON object.
pub fn verbatim(input: &str) -> Map<String, Value> {
    let input = if input.trim().is_empty() { "{}" } else { input };
    Map::from_iter([(VERBATIM.to_owned(), Value::from(input))])
}

/// Returns the text for which the arguments of a call stand.
fn stands_for(message: &TxJsonRpcMessage<RoleClient>) -> Option<&str> {
    let JsonRpcMessage::Request(request) = message else { return None };
    let ClientRequest::CallToolRequest(call) = &request.request else { return None };
    let arguments = call.params.arguments.as_ref().filter(|arguments| arguments.len() == 1)?;
    arguments.get(VERBATIM)?.as_str()
}

/// Writes a message as a line, with the input of a call to the letter.
pub fn line(message: &TxJsonRpcMessage<RoleClient>) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    if let Some(input) = stands_for(message) {
        // A line end is only white space here: within a text it is an escape.
        let input = RawValue::from_string(input.replace(['\n', '\r'], " "))?;
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&line)?;
        if let Some(params) = fields.get_mut("params") {
            let mut inner: BTreeMap<String, Box<RawValue>> = serde_json::from_str(params.get())?;
            inner.insert("arguments".to_owned(), input);
            *params = to_raw_value(&inner)?;
        }
        line = serde_json::to_vec(&fields)?;
    }
    line.push(b'\n');
    Ok(line)
}

/// Returns the first number of a JSON text that 64-bit integers and doubles do not hold exactly.
pub fn rounded(json: &str) -> Option<&str> {
    let (bytes, mut at) = (json.as_bytes(), 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let end = at + bytes[at..].iter().take_while(|byte| of_number(byte)).count();
                let number = &json[at..end];
                if !is_exact(number) {
                    return Some(number);
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

fn is_exact(number: &str) -> bool {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    number.parse::<f64>().is_ok_and(|double| decimal(&format!("{double:e}")) == decimal(number))
}

/// Returns a number as its sign, its digits without zeros around them, and the power of ten of the last one.
fn decimal(number: &str) -> Option<(bool, String, i64)> {
    let (number, is_negative) = number.strip_prefix('-').map_or((number, false), |rest| (rest, true));
    let (mantissa, power) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let power = power.parse::<i64>().ok()? - i64::try_from(fraction.len()).ok()?;
    let significant = digits.trim_end_matches('0');
    let power = power + i64::try_from(digits.len() - significant.len()).ok()?;
    let significant = significant.trim_start_matches('0');
    // Zero has no power.
    let power = if significant.is_empty() { 0 } else { power };
    Some((is_negative, significant.to_owned(), power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_would_be_rounded_is_found_and_no_other() {
        for exact in [
            r#"{"a": 0, "b": -0.0, "c": [18446744073709551615, -9223372036854775808], "d": 1e5, "e": 0.1}"#,
            r#"{"text": "12345678901234567890123 \" 0.12345678901234567890", "n": 100000000000000000000000}"#,
            r#"[1.50, 1E+2, 2.5e-3, 1e300]"#,
        ] {
            assert_eq!(rounded(exact), None, "{exact}");
        }
        for (json, number) in [
            (r#"{"n": 12345678901234567890123}"#, "12345678901234567890123"),
            (r#"{"t": "\"", "n":[1, 0.1234567890123456789]}"#, "0.1234567890123456789"),
            ("[18446744073709551617]", "18446744073709551617"),
            ("[1e400]", "1e400"),
            ("[1e-400]", "1e-400"),
        ] {
            assert_eq!(rounded(json), Some(number), "{json}");
        }
    }
}
